"""Checkpoints of others: read bit for bit from every format, refused in one line when damaged or hostile."""

import io
import json
import os
import pickle
import re
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Evil

from agriclip_jax.errors import UserError
from agriclip_jax.weights.containers import open_weights

BFLOAT16 = ml_dtypes.bfloat16
ARRAYS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "a.bias": np.linspace(-1, 1, 5).astype(np.float16),
    "b": np.linspace(-1, 1, 6).astype(BFLOAT16).reshape(2, 3),
    "steps": np.array(7, np.int64),
    "mask": np.array([True, False, True]),
    "none": np.zeros((0, 3), np.float64),
}


def safetensors(arrays, **changes):
    """The bytes of a safetensors file; `changes` to its header."""
    header, start = {}, 0
    names = {"float": "F", "bfloat": "BF", "int": "I", "bool": "BOOL"}
    for name, array in arrays.items():
        kind, stop = array.dtype.name, start + array.nbytes
        word = kind.rstrip("0123456789")
        dtype = names[word] + kind[len(word) :]
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header | changes).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def zipped(members, compression=zipfile.ZIP_STORED):
    """The bytes of a zip, whose members begin at multiples of 64 as torch's do."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            pad = -(out.tell() + 34 + len(name)) % 64
            info.compress_type, info.extra = compression, struct.pack("<2sH", b"FB", pad) + b"Z" * pad
            archive.writestr(info, content)
    return out.getvalue()


def cases(names, known):
    """Parametrises by a dictionary of name -> case."""
    return pytest.mark.parametrize(names, known.values(), ids=known.keys())


def npz(arrays, save=np.savez):
    out = io.BytesIO()
    save(out, **arrays)
    return out.getvalue()


# A few opcodes, as torch writes them.
MARK, TUPLE, REDUCE, STOP, PROTO = b"(", b"t", b"R", b".", b"\x80\x02"
STORAGES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float64": "Double", "int64": "Long"}


class Code(bytes):
    """Opcodes that leave one value."""


def name(module, attribute):
    return Code(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Code(function + code(arguments) + REDUCE)


def code(value):
    """The opcodes of a value in pickle protocol 2."""
    match value:
        case Code():
            return value
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int() if 0 <= value < 256:
            return b"K" + bytes([value])
        case int():
            return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return MARK + b"".join(map(code, value)) + TUPLE
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case dict():
            return b"}(" + b"".join(code(key) + code(item) for key, item in value.items()) + b"u"


EMPTY = call(name("collections", "OrderedDict"))


def tensor(key, shape, strides, offset=0, kind="Float"):
    storage = Code(code(("storage", name("torch", f"{kind}Storage"), key, "cpu", 0)) + b"Q")
    return call(name("torch._utils", "_rebuild_tensor_v2"), storage, offset, shape, strides, False, EMPTY)


def torch_zip(value, storages=None, compression=zipfile.ZIP_STORED, **more):
    """The bytes of what torch.save writes of opcodes, or of a value of code(); arrays by key as its storages."""
    pickled = value if isinstance(value, bytes) and not isinstance(value, Code) else PROTO + code(value) + STOP
    kept = {f"archive/data/{key}": array.tobytes() for key, array in (storages or {}).items()}
    others = {f"archive/{member}": content for member, content in more.items()}
    return zipped({"archive/data.pkl": pickled, "archive/byteorder": b"little", **kept, **others}, compression)


def state_dict(arrays):
    """(nested opcodes, storages) of contiguous tensors."""
    storages = {str(i): array for i, array in enumerate(arrays.values())}
    tensors = {}
    for (called, array), key in zip(arrays.items(), storages, strict=True):
        strides = tuple(stride // array.itemsize for stride in array.strides)
        kind = STORAGES.get(array.dtype.name, "Bool")
        tensors[called] = tensor(key, array.shape, strides, kind=kind)
    return tensors, storages


def written(path, content):
    path.write_bytes(content)
    return path


def assert_holds(container, arrays):
    assert set(container.tensors) == set(arrays)
    for called, array in arrays.items():
        found = container.tensors[called]
        read = found.read()
        assert (found.shape, found.dtype) == (read.shape, read.dtype) == (array.shape, array.dtype), called
        assert read.flags.c_contiguous and read.tobytes() == array.tobytes(), called


FILES = {
    "safetensors": safetensors(ARRAYS),
    "npz": npz(ARRAYS),
    "npz, compressed": npz(ARRAYS, np.savez_compressed),
    "torch": torch_zip(*state_dict(ARRAYS)),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_format_is_told_from_its_content_and_read_bit_for_bit(tmp_path, kind):
    container = open_weights(written(tmp_path / "weights.txt", FILES[kind]))
    assert container.format == kind.split(",")[0] and container.values == {}
    assert_holds(container, ARRAYS)


@cases("make", {"safetensors": safetensors, "torch": lambda arrays: torch_zip(*state_dict(arrays))})
def test_what_a_file_holds_aligned_is_mapped_and_not_copied(tmp_path, make):
    path = written(tmp_path / "a", make({"a": np.ones(1 << 20, np.float32)}))
    tracemalloc.start()
    read = open_weights(path).tensors["a"].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20 and read.sum() == 1 << 20 and not read.flags.writeable


def test_big_vision_names_and_its_bfloat16_are_kept(tmp_path):
    array = np.linspace(-2, 2, 6).astype(BFLOAT16).reshape(2, 3)
    container = open_weights(written(tmp_path / "a.npz", npz({"params/img/kernel": array.view("V2"), "t": array.T})))
    assert_holds(container, {"params/img/kernel": array, "t": np.ascontiguousarray(array.T)})


def test_arrays_of_other_byte_and_memory_orders_are_turned(tmp_path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    container = open_weights(
        written(tmp_path / "a.npz", npz({"big": array.astype(">f4"), "f": np.asfortranarray(array)}))
    )
    assert_holds(container, {"big": array, "f": array})


def test_metadata_of_safetensors_are_values(tmp_path):
    content = safetensors(ARRAYS, __metadata__={"format": "pt"})
    assert open_weights(written(tmp_path / "a", content)).values == {"format": "pt"}


def test_views_of_one_storage_are_read_through_offset_and_strides(tmp_path):
    base = np.arange(24, dtype=np.float32)
    views = {
        "transposed": (tensor("0", (4, 6), (1, 4)), base.reshape(6, 4).T),
        "sliced": (tensor("0", (2, 3), (12, 2), offset=5), base.reshape(2, 12)[:, 5:10:2]),
        "scalar": (tensor("0", (), (), offset=23), base[23]),
        "a size of one takes no step": (tensor("0", (1, 2), (10**30, 1)), base[None, :2]),
    }
    path = written(tmp_path / "a", torch_zip({key: made for key, (made, _) in views.items()}, {"0": base}))
    assert_holds(
        open_weights(path), {key: np.ascontiguousarray(seen).reshape(seen.shape) for key, (_, seen) in views.items()}
    )


@settings(deadline=None, max_examples=40)
@given(data=st.data(), axes=st.permutations(range(3)))
def test_any_slice_of_any_permutation_is_what_numpy_makes_of_it(tmp_path_factory, data, axes):
    whole = np.arange(60, dtype=np.int64).reshape(3, 4, 5)
    view = whole.transpose(axes)[
        tuple(slice(data.draw(st.integers(0, 2)), None, data.draw(st.integers(1, 3))) for _ in axes)
    ]
    offset = (view.__array_interface__["data"][0] - whole.__array_interface__["data"][0]) // 8
    described = tensor("k", view.shape, tuple(stride // 8 for stride in view.strides), offset, "Long")
    path = written(tmp_path_factory.mktemp("view") / "a", torch_zip({"a": described}, {"k": whole}))
    assert_holds(open_weights(path), {"a": np.ascontiguousarray(view)})


def test_nesting_is_made_flat_and_values_are_kept(tmp_path):
    made, storages = state_dict(ARRAYS)
    parameter = call(name("torch._utils", "_rebuild_parameter"), made["b"], True, EMPTY)
    ordered = Code(
        EMPTY + b"(" + b"".join(code(k) + v for k, v in made.items()) + b"u" + code({"_metadata": {"v": 1}}) + b"b"
    )
    saved = {
        "state_dict": ordered,
        "ema": [parameter],
        "epoch": 3,
        "args": {"lr": 0.5, "name": "é", 7: True, "no": None},
    }
    container = open_weights(written(tmp_path / "a", torch_zip(saved | {"type": name("torch", "float32")}, storages)))
    assert_holds(container, {f"state_dict.{key}": array for key, array in ARRAYS.items()} | {"ema.0": ARRAYS["b"]})
    assert container.values == {"epoch": 3, "args.lr": 0.5, "args.name": "é", "args.7": True}


def test_torchscript_objects_are_their_attributes(tmp_path):
    def instance(where, attributes):
        return Code(name(f"__torch__{where}", "Module") + b")\x81" + code(attributes) + b"b")

    weight = np.linspace(0, 1, 4).astype(np.float16)
    sizes = call(name("torch.jit._pickle", "build_intlist"), [2, 3])
    scales = call(name("torch.jit._pickle", "restore_type_tag"), {"a": 0.5}, "Dict[str, float]")
    visual = instance(".clip", {"proj": tensor("0", (4,), (1,), kind="Half"), "input_resolution": 224, "sizes": sizes})
    model = instance("", {"visual": visual, "training": False, "scales": scales, "hook": None})
    path = written(tmp_path / "ViT.pt", torch_zip(model, {"0": weight}, **{"constants.pkl": b"\x80\x02)."}))
    container = open_weights(path)
    assert container.format == "torchscript"
    assert_holds(container, {"visual.proj": weight})
    values = {
        "visual.input_resolution": 224,
        "visual.sizes.0": 2,
        "visual.sizes.1": 3,
        "scales.a": 0.5,
        "training": False,
    }
    assert container.values == values


def test_a_folder_gives_its_only_file_or_the_shards_of_its_index(tmp_path):
    parts = [dict(list(ARRAYS.items())[:2]), dict(list(ARRAYS.items())[2:])]
    for ending, made in {"safetensors": safetensors, "bin": lambda arrays: torch_zip(*state_dict(arrays))}.items():
        (one := tmp_path / f"one-{ending}").mkdir()
        written(one / f"model.{ending}", made(ARRAYS))
        assert_holds(open_weights(one), ARRAYS)
        (sharded := tmp_path / f"sharded-{ending}").mkdir()
        files = [f"model-{i}-of-2.{ending}" for i in (1, 2)]
        for file, arrays in zip(files, parts, strict=True):
            written(sharded / file, made(arrays))
        with pytest.raises(UserError, match="several checkpoints; name one"):
            open_weights(sharded)
        index = sharded / f"model.{ending}.index.json"
        places = {key: file for file, arrays in zip(files, parts, strict=True) for key in arrays}
        index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
        assert_holds(open_weights(sharded), ARRAYS)
        index.write_text(json.dumps({"weight_map": places | {"more": files[0]}}), encoding="utf-8")
        with pytest.raises(UserError, match="holds 'more', which it does not"):
            open_weights(sharded)


@pytest.mark.parametrize("places", [{}, [], {"a": "../a"}, {"a": 3}, {"a": ".."}, {"a": "gone.bin"}, {"a": "a\0"}])
def test_an_index_names_only_files_beside_it(tmp_path, places):
    index = tmp_path / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": places}), encoding="utf-8")
    assert_refused(tmp_path)


def assert_refused(path, why=""):
    """Opening, or reading what it offers, ends with one line that names the file."""
    with pytest.raises(UserError) as error:
        for tensor in open_weights(path).tensors.values():
            tensor.read()
    line = str(error.value)
    assert line.startswith(str(path)) and line.isprintable() and len(line) < len(str(path)) + 300
    assert re.search(why, line), line


@pytest.mark.parametrize("protocol", range(6))
def test_code_that_pickle_would_run_is_named_and_not_run(tmp_path, protocol):
    path = written(tmp_path / "a.pt", torch_zip(pickle.dumps(Evil(tmp_path / "ran"), protocol)))
    assert_refused(path, rf"asks for {os.name}.system, which is no tensor; weights that need code .* as safetensors")
    assert not (tmp_path / "ran").exists()


@cases(
    ("opcodes", "asked"),
    {
        "GLOBAL": (b"cos\nsystem\n(S'ls'\ntR.", "os.system"),
        "STACK_GLOBAL": (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        "INST": (b"(S'ls'\nios\nsystem\n.", "opcode STRING"),
        "INST alone": (b"(ios\nsystem\n.", "os.system"),
        "INST of an allowed name": (b"(icollections\nOrderedDict\n.", "opcode INST"),
        "OBJ": (b"(" + name("collections", "OrderedDict") + b"o.", "opcode OBJ"),
        "EXT1": (b"\x82\x01.", "opcode EXT1"),
        "EXT4": (b"\x84\x01\x00\x00\x00.", "opcode EXT4"),
        "PERSID": (b"P0\n.", "opcode PERSID"),
        "NEWOBJ_EX": (b"\x80\x04\x92.", "opcode NEWOBJ_EX"),
        "a name like torch's": (b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "torch._utils._rebuild_tensor_v2"),
        "a name with a newline": (b"\x80\x04\x8c\x01a\x8c\x03b\nc\x93.", r"'a\.b\\nc'"),
        "TorchScript's prefix only": (b"c__torch__x\ny\n.", "__torch__x.y"),
    },
)
def test_what_no_weights_need_is_refused_by_name(tmp_path, opcodes, asked):
    assert_refused(written(tmp_path / "a.pt", torch_zip(opcodes)), f"asks for {asked}")


LOOP = b"}q\x00X\x01\x00\x00\x00ah\x00s."  # a dictionary that holds itself
SHARED = b"]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i, i - 1, i - 1) for i in range(1, 40)) + b"."  # 2^40 paths
OBJECT = name("__torch__", "A") + b")\x81}X\x01\x00\x00\x00a"  # one whose attribute "a" follows
FLOATS = np.zeros(4, np.float32)


@cases(
    ("opcodes", "why"),
    {
        "a loop": (LOOP, "without end"),
        "shared parts": (SHARED, "without end"),
        "deep": (b"]" * 100_000 + b"a" * 99_999 + b".", "without end"),
        "deep objects": (OBJECT * 9000 + b"N" + b"sb" * 9000 + b".", "without end"),
        "a long name": (PROTO + code({"a" * 600: 1}) + STOP, "without end"),
        "more steps than any file needs": (b"}" + b"q\x00" * 1_000_000 + b".", "more than 1000000 steps"),
        "more values": (b"](" + b"K\x00" * 300_000 + b"e.", "without end"),
        "a long text": (b"X\xff\xff\xff\x7fabc.", "expected 2147483647 bytes"),
        "a longer text": (b"\x8d" + b"\xff" * 8 + b"abc.", "byte count"),
        "a long number": (b"L" + b"9" * 100_000 + b"L\n.", "digits"),
        "a long name of code": (b"c" + b"a" * 1_000_000 + b"\nb\n.", "asks for aaa"),
        "no end": (b"}", "exhausted before"),
        "nothing": (b"", "exhausted before"),
        "garbage": (b"\xff\xfe", "unknown"),
        "an empty stack": (b".", "pop"),
        "no mark": (b"t.", "pop"),
        "a memo of nothing": (b"h\x05.", "5"),
        "a persistent id of garbage": (b"K\x01Q.", "storage"),
        "an unknown storage": (code(("storage", name("torch", "Size"), "0", "cpu", 1)) + b"Q.", "storage"),
        "a key that is no name": (b"}K\x01\x85K\x01s.", "key"),
        "an odd dictionary": (b"}(K\x01u.", "zip"),
        "text that is called": (code("os.system") + b")R.", "no function"),
        "a dtype that is called": (name("torch", "float32") + b")R.", "torch.float32 is called"),
        "state of a number": (b"K\x01}b.", "attributes"),
        "two of one name": (PROTO + code({"a.b": 1, "a": {"b": 2}}) + STOP, "two of its values"),
        "no tensor": (b"}.", "holds no tensor"),
        "an unprintable name": (PROTO + code({"a\nb": tensor("0", (4,), (1,))}) + STOP, "name"),
        "a lone surrogate": (b"}X\x03\x00\x00\x00\xed\xa0\x80" + tensor("0", (4,), (1,)) + b"s.", "name"),
        "a list in its own tuple": (b"]q\x00(h\x00h\x00tah\x00.", "without end"),
    },
)
def test_a_hostile_or_broken_pickle_is_one_line(tmp_path, opcodes, why):
    assert_refused(written(tmp_path / "a.pt", torch_zip(bytes(opcodes), {"0": FLOATS})), why)


def test_a_memo_of_many_entries_is_read(tmp_path):
    memo = b"".join(b"r" + struct.pack("<I", i) for i in range(500_000))
    opcodes = PROTO + b"}" + memo + code("a") + tensor("0", (4,), (1,)) + b"s."
    assert_holds(open_weights(written(tmp_path / "a.pt", torch_zip(opcodes, {"0": FLOATS}))), {"a": FLOATS})


@cases(
    "view",
    {
        "too many": tensor("0", (5,), (1,)),
        "1e12": tensor("0", (10**6, 10**6), (10**6, 1)),
        "1e12 of stride 0": tensor("0", (10**6, 10**6), (0, 0)),
        "a product beyond 64 bits": tensor("0", (2**32, 2**32), (1, 1)),
        "a stride too far": tensor("0", (2, 2), (3, 1)),
        "a stride beyond 64 bits": tensor("0", (2,), (2**63,)),
        "an offset too far": tensor("0", (2,), (1,), offset=3),
        "a negative offset": tensor("0", (2,), (1,), offset=-1),
        "a negative stride": tensor("0", (2,), (-1,), offset=3),
        "a negative size": tensor("0", (-2, -2), (1, 1)),
        "strides without sizes": tensor("0", (2,), (1, 1)),
        "a size that is no number": tensor("0", ("2",), (1,)),
        "a boolean size": tensor("0", (True,), (1,)),
        "100 dimensions": tensor("0", (1,) * 100, (1,) * 100),
        "an empty tensor of endless size": tensor("0", (0, 2**80), (1, 1)),
        "no such storage": tensor("1", (1,), (1,)),
        "a storage elsewhere": tensor("../../0", (1,), (1,)),
        "a negated view": Code(tensor("0", (2,), (1,))[:-2] + code({"neg": True}) + b"tR"),
        "no dtype": Code(tensor("0", (2,), (1,)).replace(b"ctorch\nFloat", b"ctorch.storage\nUntyped")),
    },
)
def test_a_tensor_that_its_storage_cannot_hold_is_refused(tmp_path, view):
    assert_refused(written(tmp_path / "a.pt", torch_zip({"a": view}, {"0": FLOATS})))


def with_sizes(content, member, size):
    """A zip whose directory gives one member another size, stated in both of its places."""
    at = content.index(member, content.index(b"PK\1\2")) - 46
    assert content[at : at + 4] == b"PK\1\2"
    return content[: at + 24] + struct.pack("<I", size) + content[at + 28 :]


def test_archives_that_state_other_sizes_than_they_have_are_refused(tmp_path):
    good = torch_zip(*state_dict(ARRAYS))
    for member in (b"archive/data.pkl", b"archive/data/0"):
        for size in (2**31, 100, 1):
            assert_refused(written(tmp_path / "a.pt", with_sizes(good, member, size)))
    array = npz({"a": FLOATS}, np.savez_compressed)
    for size in (2**32 - 2, 100, 200):
        assert_refused(written(tmp_path / "a.npz", with_sizes(array, b"a.npy", size)))


def test_bombs_are_refused_before_they_are_inflated(tmp_path):
    deflated = zipfile.ZIP_DEFLATED
    pickle_bomb = written(tmp_path / "pickle.pt", torch_zip(b"}" * (17 << 20), compression=deflated))
    endless_header = np.lib.format.magic(2, 0) + struct.pack("<I", 2**32 - 1)
    header_bomb = written(tmp_path / "head.npz", zipped({"a.npy": endless_header + b" " * (64 << 20)}, deflated))
    storage_bomb = written(tmp_path / "a.pt", torch_zip(*state_dict({"a": np.zeros(1 << 23)}), deflated))
    lean = written(tmp_path / "lean.npz", with_sizes(npz({"a": FLOATS}, np.savez_compressed), b"a.npy", 2**32 - 2))
    tracemalloc.start()
    assert_refused(pickle_bomb, "larger than 16 MiB")
    assert_refused(header_bomb)
    assert_refused(storage_bomb, "not there in full")
    assert_refused(lean)
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert_refused(written(tmp_path / "a.npz", zipped({"a.npy": b""}, kind)), "compressed as neither")


def test_odd_archives_of_torch_are_refused(tmp_path):
    made, storages = state_dict(ARRAYS)
    assert_refused(written(tmp_path / "big", torch_zip(made, storages, byteorder=b"big")), "big-endian")
    twice = zipped({"archive/data.pkl": b"}.", "archive/data.pkk": b"]."}).replace(b"data.pkk", b"data.pkl")
    assert_refused(written(tmp_path / "twice", twice), "one name")
    assert_refused(written(tmp_path / "two", zipped({"a/data.pkl": b"}.", "b/data.pkl": b"}."})), "two archives")
    assert_refused(written(tmp_path / "other", zipped({"a.txt": b""})), "no tensor")


def test_member_names_that_point_elsewhere_do_no_harm(tmp_path):
    made, storages = state_dict(ARRAYS)
    more = {"../../evil": b"x", "/etc/passwd": b"x", "..": b"x"}
    content = torch_zip(made, storages, **more)
    assert_holds(open_weights(written(tmp_path / "a.pt", content)), ARRAYS)
    assert os.listdir(tmp_path) == ["a.pt"]


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def raw_safetensors(header, data=b"\0" * 8, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@cases(
    "content",
    {
        "a header beyond the file": raw_safetensors(HEADER, length=10_000),
        "a header beyond memory": raw_safetensors(HEADER, length=2**63 + 5),
        "a header that is cut": raw_safetensors(HEADER, length=20),
        "data that are cut": raw_safetensors(HEADER, b"\0" * 7),
        "data too many": raw_safetensors(HEADER, b"\0" * 9),
        "an offset beyond the file": raw_safetensors({"a": HEADER["a"] | {"shape": [4], "data_offsets": [0, 16]}}),
        "a gap": raw_safetensors({"a": HEADER["a"] | {"shape": [1], "data_offsets": [4, 8]}}),
        "an overlap": raw_safetensors(HEADER | {"b": HEADER["a"]}),
        "a negative offset": raw_safetensors({"a": HEADER["a"] | {"data_offsets": [-8, 0]}}),
        "a negative size": raw_safetensors({"a": HEADER["a"] | {"shape": [-1, -2]}}),
        "sizes beyond 64 bits": raw_safetensors({"a": HEADER["a"] | {"shape": [2**64, 2**64]}}),
        "a size that is no number": raw_safetensors({"a": HEADER["a"] | {"shape": ["2"]}}),
        "no shape": raw_safetensors({"a": {"dtype": "F32", "data_offsets": [0, 8]}}),
        "an unknown dtype": raw_safetensors({"a": HEADER["a"] | {"dtype": "O8"}}),
        "a list as dtype": raw_safetensors({"a": HEADER["a"] | {"dtype": ["F32"]}}),
        "a list of tensors": raw_safetensors(b"{}" + b" " * 8, b""),
        "one name twice": raw_safetensors(b'{"a":1,"a":' + json.dumps(HEADER["a"]).encode() + b"}"),
        "metadata of numbers": raw_safetensors(HEADER | {"__metadata__": {"a": 1}}),
        "metadata that are a list": raw_safetensors(HEADER | {"__metadata__": []}),
        "endless nesting": raw_safetensors(b'{"a":' + b"[" * 1_000_000),
        "a number of many digits": raw_safetensors(b'{"a":' + b"9" * 100_000 + b"}"),
        "no UTF-8": raw_safetensors(b'{"\xff":1}'),
    },
)
def test_a_broken_safetensors_file_is_one_line(tmp_path, content):
    assert_refused(written(tmp_path / "a.safetensors", content))


def test_descriptions_larger_than_any_real_one_are_refused_unread(tmp_path):
    with open(tmp_path / "a.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 101 << 20) + b"{")
        file.truncate(200 << 20)  # sparse
    assert_refused(tmp_path / "a.safetensors", "larger than 16 MiB")
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 9, 9, 100 << 20, 0, 0)
    with open(tmp_path / "a.zip", "wb") as file:
        file.write(b"PK\3\4")
        file.truncate(100 << 20)
        file.seek(0, io.SEEK_END)
        file.write(end)
    assert_refused(tmp_path / "a.zip", "larger than 16 MiB")


def test_arrays_of_objects_are_refused_by_name(tmp_path):
    content = npz({"fine": np.zeros(2), "params/evil": np.array([Evil("x")], object)})
    assert_refused(written(tmp_path / "a.npz", content), r"'params/evil.npy' of dtype \|O, which is no tensor")


@pytest.mark.parametrize("content", [b"", b"PK", b"hello, world", b"\x80", b"\x80\x02}.", b"PK\3\4" + b"\0" * 100])
def test_what_is_no_checkpoint_is_one_line(tmp_path, content):
    assert_refused(written(tmp_path / "a.pt", content))


def test_a_bare_pickle_is_refused_with_what_to_do(tmp_path):
    path = written(tmp_path / "a.pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    assert_refused(path, r"as torch wrote before 1\.6.* save it anew, best as safetensors")


def test_what_is_not_there_is_one_line(tmp_path):
    assert_refused(tmp_path / "gone.pt", "no file or folder of weights")
    assert_refused(tmp_path, "holds no weights")


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_changes_or_goes_after_it_was_opened_is_one_line(tmp_path, kind):
    path = written(tmp_path / "a", FILES[kind])
    tensor = open_weights(path).tensors["a.weight"]
    path.write_bytes(FILES[kind][:60])
    with pytest.raises(UserError, match="a cannot be read"):
        tensor.read()
    path.unlink()
    with pytest.raises(UserError, match="a cannot be read"):
        tensor.read()


PICKLE = PROTO + code({"m": state_dict(ARRAYS)[0], "epoch": 3, "names": ["a", 0.5]}) + STOP
NPY = io.BytesIO()
np.save(NPY, ARRAYS["a.weight"])
PARTS = {
    **{kind: (content, lambda content: content) for kind, content in FILES.items()},
    "pickle": (PICKLE, lambda content: torch_zip(content, state_dict(ARRAYS)[1])),
    "npy": (NPY.getvalue(), lambda content: zipped({"a.npy": content})),
    "header": (json.dumps(HEADER).encode(), raw_safetensors),
}


@pytest.mark.parametrize("kind", PARTS)
@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_any_bytes_in_place_of_others_give_arrays_or_one_line(tmp_path_factory, kind, data):
    original, wrapped = PARTS[kind]
    content = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        at, other = data.draw(st.integers(0, len(content) - 1)), data.draw(st.binary(max_size=4))
        content[at : at + data.draw(st.sampled_from([len(other), 0, 3]))] = other
        if data.draw(st.integers(0, 9)) == 0:
            del content[at:]
        if not content:
            break
    path = written(tmp_path_factory.getbasetemp() / f"mutated {kind}", wrapped(bytes(content)))
    try:
        for tensor in open_weights(path).tensors.values():
            read = tensor.read()
            assert (read.shape, read.dtype) == (tensor.shape, tensor.dtype) and read.nbytes < 1 << 16
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
