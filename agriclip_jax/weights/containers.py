"""Checkpoints of others as named arrays: safetensors, npz and torch's archives, read without running what is in them.

What a file is, its content says and not its name. No file is trusted: whatever it claims is checked against the bytes
that are there before memory is given to it, and a tensor is read only when it is asked for.
"""

import contextlib
import io
import json
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from agriclip_jax.errors import UserError
from agriclip_jax.files import read_record
from agriclip_jax.weights import torchfile

MOST_DESCRIPTION = 16 << 20  # bytes that say what a file holds: of 2 billion parameters a few hundred thousand do
MOST_INFLATED = 4 << 30  # bytes of one compressed array

ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".npz")  # of weights in a folder, best first

_SAFETENSORS = {
    "BOOL": "bool",
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
}
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    tokenize.TokenError,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, eq=False)
class Tensor:
    """One array of a file, not yet read.

    Attributes:
      shape: of the array.
      dtype: of its elements, native; of ml_dtypes where NumPy has none.
      read: gives it, C-contiguous, mapped read-only from the file wherever that holds it so; raises UserError.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Container:
    """What a checkpoint holds.

    Attributes:
      format: "safetensors", "npz", "torch" or "torchscript".
      tensors: by name, nesting joined by "."; of npz by their names there.
      values: plain text, numbers and booleans by name, of torch's files and of safetensors' metadata.
    """

    format: str
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


def open_weights(path: Path | str) -> Container:
    """Opens a checkpoint; nothing but its description is read.

    Args:
      path: a file of any of the formats, or a folder with one file of the first of `ENDINGS` that any has, or with the
        index (*.index.json) of several such files.

    Raises:
      UserError: nothing is there, it is damaged or of no such format, or reading it would need to run code.
    """
    path = Path(path).expanduser()
    with _damage(path):
        return _folder(path) if path.is_dir() else _file(path)


def _folder(folder: Path) -> Container:
    names = sorted(file.name for file in folder.iterdir())
    for ending in ENDINGS:
        indices = [name for name in names if name.endswith(f"{ending}.index.json")]
        found = indices or [name for name in names if name.endswith(ending)]
        if len(found) > 1:
            raise UserError(f"{folder} holds several checkpoints; name one: {', '.join(found[:5])}")
        if found:
            return _shards(folder / found[0]) if indices else _file(folder / found[0])
    raise UserError(f"{folder} holds no weights (*{', *'.join(ENDINGS)})")


def _shards(index: Path) -> Container:
    with _damage(index):
        if index.stat().st_size > MOST_DESCRIPTION:
            raise ValueError(f"it is larger than {MOST_DESCRIPTION >> 20} MiB")
        files = read_record(index, "weight_map")["weight_map"]
        plain = isinstance(files, dict) and all(Path(f).name == f and f.isprintable() for f in files.values())
        if not plain or not files:
            raise ValueError("its weight_map does not name files beside it")
    shards = {file: _file(index.parent / file) for file in sorted(set(files.values()))}
    for name, file in files.items():
        if name not in shards[file].tensors:
            raise UserError(f"{index} says {file} holds {name[:100]!r}, which it does not; fetch both again")
    tensors = {name: shards[file].tensors[name] for name, file in files.items()}
    values = {name: value for shard in shards.values() for name, value in shard.values.items()}
    return Container(next(iter(shards.values())).format, tensors, values)


def _file(path: Path) -> Container:
    if not path.is_file():
        raise UserError(f"{path} is no file or folder of weights")
    with _damage(path), _Bounded(path) as file:
        start = file.read(9)
        if start[8:] == b"{":
            container = _safetensors(path, file)
        elif start[:2] == b"PK":
            container = _zip(path, file)
        elif start[:1] == b"\x80":
            raise UserError(
                f"{path} is a bare pickle, as torch wrote before 1.6, which only running its code can read; "
                "load it in a torch you trust it with and save it anew, best as safetensors"
            )
        else:
            raise ValueError("it is neither safetensors nor npz nor an archive of torch")
        if not container.tensors:
            raise ValueError("it holds no tensor")
        for name in (*container.tensors, *container.values):
            if not name.isprintable() or len(name) > torchfile.LONGEST_NAME:
                raise ValueError(f"a name in it is none that anyone gives: {name[:50]!a}")
    return container


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Makes one line of whatever a file with other content than it claims may raise."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    except _DAMAGE as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} cannot be read as weights ({why}); fetch or save it anew") from None


class _Bounded(io.FileIO):
    """A file of which no reader gets more at once than a description may take, whatever size it believed."""

    def read(self, size: int = -1) -> bytes:
        if size > MOST_DESCRIPTION:
            raise ValueError(f"what describes its content is larger than {MOST_DESCRIPTION >> 20} MiB")
        return super().read(size)


def _tensor(path: Path, shape: tuple[int, ...], dtype: np.dtype, load: Callable[[], np.ndarray]) -> Tensor:
    native = dtype.newbyteorder("=")

    def read() -> np.ndarray:
        with _damage(path):
            return np.require(load(), native, ["C", "A"])

    return Tensor(shape, native, read)


def _mapped(path: Path, start: int, size: int) -> np.ndarray:
    """uint8 [size] of a file; what is no longer referred to leaves the memory."""
    return np.asarray(np.memmap(path, np.uint8, "r", start, (size,))) if size else np.empty(0, np.uint8)


def _typed(raw: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return raw != 0 if dtype.kind == "b" else raw.view(dtype)  # NumPy counts on booleans that are 0 or 1


def _bytes(shape: Any, dtype: np.dtype) -> int:
    if len(shape) > 64 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("a tensor's shape is none")
    return math.prod(shape) * dtype.itemsize


def _safetensors(path: Path, file: io.FileIO) -> Container:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError("its header is said to be longer than the file")
    header = json.loads(file.read(length).decode(), object_pairs_hook=_without_twins)
    values = header.pop("__metadata__", {})
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise ValueError("its metadata are other than text")
    tensors, start = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape = _SAFETENSORS[entry["dtype"]], tuple(entry["shape"])
        dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
        stop = start + _bytes(shape, dtype)
        if entry["data_offsets"] != [start, stop]:
            raise ValueError("a tensor's place overlaps another's, leaves a gap or does not fit its shape")

        def load(place=8 + length + start, size=stop - start, dtype=dtype, shape=shape):
            return _typed(_mapped(path, place, size), dtype).reshape(shape)

        tensors[name] = _tensor(path, shape, dtype, load)
        start = stop
    if start != size - 8 - length:
        raise ValueError("its tensors do not end where the file does")
    return Container("safetensors", tensors, values)


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("its header gives one name twice")
    return found


def _zip(path: Path, file: io.FileIO) -> Container:
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) != len(archive.infolist()):
            raise ValueError("two of its members have one name")
        for member in members.values():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others inflate without bound
                raise ValueError("it is compressed as neither NumPy nor torch does")
        pickles = [name for name in members if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) > 1:
            raise ValueError("it holds two archives of torch in one")
        if pickles:
            return _torch(path, archive, members, pickles[0].removesuffix("data.pkl"))
        tensors = {
            name.removesuffix(".npy"): _npy(path, archive, member)
            for name, member in members.items()
            if name.endswith(".npy")
        }
        return Container("npz", tensors, {})


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MOST_DESCRIPTION:
        raise ValueError(f"its {member.filename[:100]!r} is larger than {MOST_DESCRIPTION >> 20} MiB")
    with archive.open(member) as opened:
        return b"".join(iter(lambda: opened.read(1 << 20), b""))


def _place(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """Where in the file the bytes of a member that is not compressed begin; all of them are there."""
    file = archive.fp
    file.seek(member.header_offset)
    header = file.read(30)
    start = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    whole = header[:4] == b"PK\3\4" and member.compress_size == member.file_size and not member.flag_bits & 1
    if not whole or start + member.file_size > file.seek(0, io.SEEK_END):
        raise ValueError(f"its {member.filename[:100]!r} is not there in full")
    return start


def _npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Tensor:
    name = member.filename[:100]
    with archive.open(member) as opened:
        start = io.BytesIO(opened.read(1 << 14))  # NumPy refuses longer headers
    version = np.lib.format.read_magic(start)
    parse = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = parse(start)
    if dtype == np.dtype("V2"):  # which NumPy makes of bfloat16 when it saves
        dtype = _BFLOAT16
    if dtype.kind not in "biufc" and dtype != _BFLOAT16:
        raise UserError(f"{path} holds {name!r} of dtype {dtype.str}, which is no tensor; save it without")
    header, size = start.tell(), _bytes(shape, dtype)
    if header + size != member.file_size:
        raise ValueError(f"its {name!r} has another size than its shape says")
    stored = member.compress_type == zipfile.ZIP_STORED
    if not stored and size > MOST_INFLATED:
        raise ValueError(f"its {name!r} is compressed and larger than {MOST_INFLATED >> 30} GiB; save it uncompressed")
    place = _place(archive, member) + header if stored else None

    def load() -> np.ndarray:
        raw = _mapped(path, place, size) if stored else _inflated(path, member, header)
        return _typed(raw, dtype).reshape(shape, order="F" if fortran else "C")

    return _tensor(path, shape, dtype, load)


def _inflated(path: Path, member: zipfile.ZipInfo, header: int) -> np.ndarray:
    raw = np.empty(member.file_size - header, np.uint8)
    filled = 0
    with _Bounded(path) as file, zipfile.ZipFile(file) as archive, archive.open(member) as opened:
        opened.read(header)
        while part := opened.read(1 << 20):
            raw[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
    if filled != len(raw):
        raise ValueError(f"its {member.filename[:100]!r} is not there in full")
    return raw


def _torch(path: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], root: str) -> Container:
    order = members.get(f"{root}byteorder")
    if order and _content(archive, order) != b"little":
        raise ValueError("it was saved by a big-endian machine; save it as safetensors")
    tensors, values = {}, {}
    for name, value in torchfile.describe(_content(archive, members[f"{root}data.pkl"]), path).items():
        if isinstance(value, torchfile.View):
            member = members.get(f"{root}data/{value.storage}")
            if member is None:
                raise ValueError(f"the content of {name!r} is missing")
            tensors[name] = _view(path, name, value, _place(archive, member), member.file_size)
        else:
            values[name] = value
    return Container("torchscript" if f"{root}constants.pkl" in members else "torch", tensors, values)


def _view(path: Path, name: str, view: torchfile.View, place: int, size: int) -> Tensor:
    """The tensor of a view into the `size` bytes at `place`."""
    item = view.dtype.itemsize
    # A size of one or none never takes a step, whatever its stride is said to be.
    strides = [stride if n > 1 else 0 for n, stride in zip(view.shape, view.strides, strict=True)]
    span = 1 + sum((n - 1) * stride for n, stride in zip(view.shape, strides, strict=True)) if all(view.shape) else 0
    if _bytes(view.shape, view.dtype) > size or (span and (view.offset + span) * item > size):
        raise ValueError(f"{name!r} claims more elements than its storage has")

    def load() -> np.ndarray:
        flat = _typed(_mapped(path, place + view.offset * item, span * item), view.dtype)
        return np.ndarray(view.shape, view.dtype, flat, strides=[stride * item for stride in strides])

    return _tensor(path, view.shape, view.dtype, load)
