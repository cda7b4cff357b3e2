"""Parquet files that hold the images themselves, as Hugging Face datasets and img2dataset write them."""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agriclip_jax.data.sources import columns
from agriclip_jax.data.sources.base import About, Aside, Item, Known
from agriclip_jax.data.sources.files import MAX_FILE_BYTES, children, printable
from agriclip_jax.errors import UserError

ENDING = ".parquet"
ROWS = 64  # handed out at once; of the row group that they are in, Arrow holds the images in memory


@contextlib.contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """A `pyarrow.parquet.ParquetFile`; whatever keeps it from being read is one clear line.

    Raises:
      UserError: the file may not be read, or is damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as Parquet ({' '.join(str(error).split())[:120]})") from error


@dataclass(frozen=True)
class Parquet:
    """One or several Parquet files of one dataset, a row an image."""

    files: tuple[Path, ...]
    slug: str
    options: Mapping[str, str]

    OPTIONS = columns.OPTIONS
    in_order = True
    seekable = True

    @staticmethod
    def guess(path: Path) -> bool:
        """Whether a path is such a file, or a folder of them."""
        return bool(_files_of(path))

    @classmethod
    def open(cls, paths: Sequence[Path], options: Mapping[str, str]) -> list["Parquet"]:
        """One source of all paths."""
        files = tuple(file for path in paths for file in _files_of(path))
        if not files:
            raise UserError(f"{paths[0]} is no {ENDING} file with a column of images, and no folder of such files")
        name = paths[0].resolve().name if paths[0].is_dir() else paths[0].stem
        if len(paths) > 1:
            name = paths[0].parent.resolve().name
        return [cls(files, name, dict(options))]

    @property
    def origin(self) -> Path:
        """The first of its files."""
        return self.files[0]

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`; the images are not read."""
        for number, path in enumerate(self.files):
            with opened_parquet(path) as file:
                names = columns.choose(file.schema_arrow.names, self.options, str(path))
                classes = _class_names(file, names.get("label"))
                if number == 0 and classes:
                    yield About({"classes": {name: name.replace("_", " ") for name in classes}})
                told = [names[role] for role in ("caption", "label") if role in names]
                batches = file.iter_batches(batch_size=1024, columns=told) if told else ()
                cells = (cell for batch in batches for cell in batch.to_pylist())
                for row, cell in enumerate(cells if told else itertools.repeat({}, file.metadata.num_rows)):
                    label = cell.get(names.get("label"))
                    if classes and isinstance(label, int) and 0 <= label < len(classes):
                        label = classes[label]
                    captions = columns.texts(cell.get(names.get("caption")))
                    yield Item(printable(f"{path.name}:{row}"), [number, row], columns.key(label), captions)

    def read(self, places: Iterable[tuple[int, int]]) -> Iterator[bytes | Exception]:
        """See `Source`; places must ascend."""
        places = iter(places)
        wanted = next(places, None)
        for number, path in enumerate(self.files):
            if wanted is None:
                return
            if wanted[0] != number:
                continue
            with opened_parquet(path) as file:
                column = columns.choose(file.schema_arrow.names, self.options, str(path))["image"]
                start = 0
                for group in range(file.num_row_groups):
                    after = start + file.metadata.row_group(group).num_rows
                    if wanted is not None and wanted[0] == number and wanted[1] < after:
                        row = start
                        for batch in file.iter_batches(batch_size=ROWS, row_groups=[group], columns=[column]):
                            while wanted is not None and wanted[0] == number and wanted[1] < row + batch.num_rows:
                                yield _image(batch.column(0)[wanted[1] - row])
                                wanted = next(places, None)
                            row += batch.num_rows
                    start = after


def _files_of(path: Path) -> tuple[Path, ...]:
    """The Parquet files with images that a path names: itself, those in a folder, or those in its `data` folder."""
    if path.is_file():
        return (path,) if path.name.lower().endswith(ENDING) and _has_images(path) else ()
    if not path.is_dir():
        return ()
    for folder in (path, path / "data"):
        if folder.is_dir() and (found := [file for file in children(folder) if file.name.lower().endswith(ENDING)]):
            return tuple(file for file in found if _has_images(file))
    return ()


def _has_images(path: Path) -> bool:
    import pyarrow.types as kinds

    with opened_parquet(path) as file:
        schema = file.schema_arrow
    binary = lambda kind: kinds.is_binary(kind) or kinds.is_large_binary(kind)  # noqa: E731
    return any(
        binary(field.type) or (kinds.is_struct(field.type) and any(binary(part.type) for part in field.type))
        for field in schema
    )


def _class_names(file, label: str | None) -> list[str]:
    """The names that whole-number labels stand for, from the description that Hugging Face keeps in the schema."""
    try:
        about = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
        names = about["info"]["features"][label]["names"]
        return names if isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names) else []
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _image(cell) -> bytes | Exception:
    value = cell.as_py()
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        return ValueError("holds no image")
    return data if len(data) <= MAX_FILE_BYTES else ValueError(f"is larger than {MAX_FILE_BYTES >> 20} MiB")
