"""ALive on disk: what is written comes back, all of it or nothing."""

import contextlib
import io
import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from agriclip_jax.data import records
from agriclip_jax.data.records import Alive, DatasetRecord, Example, class_list, shrink, write
from agriclip_jax.errors import UserError

DATASETS = {
    "bean": DatasetRecord(
        "crop", {"healthy": "healthy bean leaf", "rust": "bean leaf with rust"}, "CC0", "me@1", ("{}?",)
    ),
    "ziege": DatasetRecord("livestock", {"weiß": "weiße Ziege 山羊"}),
}


def photo(kind: str = "PNG", size=(8, 6), mode: str = "RGB", colour=120) -> bytes:
    data = io.BytesIO()
    Image.new(mode, size, colour if mode in ("L", "P") else (colour,) * len(mode)).save(data, kind)
    return data.getvalue()


def example(number: int = 0, **changes) -> Example:
    plain = Example(
        image=photo(colour=number % 250),
        captions=("a photo of a healthy bean leaf.",),
        caption_kinds=("template",),
        class_name="healthy bean leaf",
        class_key="healthy",
        dataset="bean",
        domain="crop",
        source=f"bean/healthy/{number}.png",
    )
    return replace(plain, **changes)


def write_examples(out, examples, **changes):
    splits = {"train": lambda: iter(examples), "val": lambda: iter(()), "test": lambda: iter(examples[:1])}
    write(out, splits, **{"name": "alive", "description": "for a test", "datasets": DATASETS, **changes})


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_every_field_comes_back(tmp_path):
    goat = Example(
        image=photo("WEBP"),
        captions=("eine weiße Ziege", "山羊, from a farm", "x"),
        caption_kinds=("template", "described", "taxonomy"),
        class_name="weiße Ziege 山羊",
        class_key="weiß",
        dataset="ziege",
        domain="livestock",
        source="ziege/weiß/ä b.webp",
        licence="CC BY 4.0 – Müller",
        boxes=((0.0, 0.25, 0.5, 1.0), (0.1, 0.2, 0.3, 0.4)),
        box_names=("Horn", "角"),
    )
    examples = [goat, *(example(i, image=photo(kind)) for i, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF", "BMP")))]
    write_examples(tmp_path / "alive", examples)
    source = Alive.open(tmp_path / "alive").source("train")
    assert len(source) == len(examples)
    for row, put in zip(source, examples, strict=True):
        boxes, label = row.pop("boxes"), row.pop("label")
        assert boxes.dtype == np.float32 and boxes.shape == (len(put.boxes), 4)
        np.testing.assert_allclose(boxes, np.reshape(put.boxes, (-1, 4)), atol=1e-7)
        assert class_list(DATASETS)[label] == f"{put.dataset}/{put.class_key}"
        assert row == {name: getattr(put, name) if name == "image" else _plain(getattr(put, name)) for name in row}
        assert set(row) | {"boxes", "label"} >= set(Example.__dataclass_fields__)


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_tfds_opens_it_without_tensorflow(tmp_path):
    import tensorflow_datasets as tfds

    write_examples(tmp_path / "alive", [example(i) for i in range(3)])
    builder = tfds.builder_from_directory(tmp_path / "alive")
    assert {name: split.num_examples for name, split in builder.info.splits.items()} == {"train": 3, "test": 1}
    assert builder.info.features["label"].names == ["bean/healthy", "bean/rust", "ziege/weiß"]
    row = builder.as_data_source(split="train+test")[1]
    assert row["image"].shape == (6, 8, 3)
    assert row["captions"] == [b"a photo of a healthy bean leaf."]
    assert "tensorflow" not in sys.modules


def test_alive_json_can_be_read_without_tfds(tmp_path):
    write_examples(tmp_path / "alive", [example()])
    about = json.loads((tmp_path / "alive" / "alive.json").read_text(encoding="utf-8"))
    assert about["splits"] == {"train": 1, "test": 1}
    assert about["datasets"]["ziege"]["classes"] == {"weiß": "weiße Ziege 山羊"}
    assert Alive.open(tmp_path / "alive").datasets == DATASETS


def test_examples_keep_their_order_across_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "EXAMPLES_PER_SHARD", 4)
    write_examples(tmp_path / "alive", [example(i) for i in range(10)])
    assert len(list((tmp_path / "alive").glob("alive-train.array_record-*"))) == 3
    source = Alive.open(tmp_path / "alive").source("train")
    assert [row["source"] for row in source] == [f"bean/healthy/{i}.png" for i in range(10)]


def test_a_source_is_random_access_picklable_and_thread_safe(tmp_path):
    import grain

    write_examples(tmp_path / "alive", [example(i) for i in range(40)])
    source = pickle.loads(pickle.dumps(Alive.open(tmp_path / "alive").source("train")))
    assert source[-1]["source"] == "bean/healthy/39.png"
    assert source[np.int64(7)]["source"] == "bean/healthy/7.png"
    with pytest.raises(IndexError):
        source[40]
    with ThreadPoolExecutor(8) as pool:
        assert [row["source"] for row in pool.map(source.__getitem__, range(40))] == [r["source"] for r in source]
    shuffled = grain.MapDataset.source(source).seed(0).shuffle()
    assert {row["source"] for row in shuffled} == {row["source"] for row in source}


def test_the_fingerprint_tells_content_not_place(tmp_path):
    examples = [example(i) for i in range(3)]
    for name, changed in {
        "here": examples,
        "there": examples,
        "caption": [replace(examples[0], captions=("another",)), *examples[1:]],
        "pixels": [replace(examples[0], image=photo(colour=99)), *examples[1:]],
        "order": examples[::-1],
    }.items():
        write_examples(tmp_path / name, changed)
    prints = {path.name: Alive.open(path).fingerprint for path in tmp_path.iterdir()}
    (tmp_path / "here").rename(tmp_path / "moved")
    os.utime(tmp_path / "moved" / "alive.json", (1, 1))
    assert prints["here"] == prints["there"] == Alive.open(tmp_path / "moved").fingerprint
    assert len(set(prints.values())) == 4


def test_nothing_to_write_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="no example"):
        write_examples(tmp_path / "alive", [])
    assert list(tmp_path.iterdir()) == []


def test_an_example_needs_captions_with_kinds_and_named_boxes(tmp_path):
    for broken in ({"captions": (), "caption_kinds": ()}, {"caption_kinds": ()}, {"boxes": ((0.0, 0.0, 1.0, 1.0),)}):
        with pytest.raises(ValueError, match=r"bean/healthy/0\.png"):
            write_examples(tmp_path / "alive", [example(**broken)])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_alive_folder_is_never_touched(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and not an ALive folder"):
            write_examples(tmp_path / "thesis", [example()], overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter1.txt").read_text(encoding="utf-8") == "years of work"


def test_a_finished_folder_is_replaced_only_when_asked(tmp_path):
    (tmp_path / "alive").mkdir()  # empty: may be used
    write_examples(tmp_path / "alive", [example()])
    with pytest.raises(UserError, match=r"already holds a finished ALive folder.*--overwrite"):
        write_examples(tmp_path / "alive", [example(1), example(2)])
    assert Alive.open(tmp_path / "alive").splits["train"] == 1
    write_examples(tmp_path / "alive", [example(1), example(2)], overwrite=True)
    assert Alive.open(tmp_path / "alive").splits["train"] == 2
    assert leftovers(tmp_path) == []


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(UserError, match="is a file; name a new folder"):
        write_examples(tmp_path / "file", [example()])
    with pytest.raises(UserError, match=r"cannot write into .*file"):
        write_examples(tmp_path / "file" / "alive", [example()])


def run_python(code: str, *arguments, **options) -> subprocess.Popen:
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom test_records import *\n{code}"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], text=True, **options)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    code = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).bytes(10_000)
try:
    write_examples(sys.argv[1], [example(i, image=noise) for i in range(100)])
except UserError as error:
    print(error)
"""
    process = run_python(code, tmp_path / "alive", stdout=subprocess.PIPE)
    told, _ = process.communicate()
    assert told.count("\n") == 1 and "could not write" in told and "File too large" in told
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_leaves_nothing_that_looks_finished_and_the_next_completes(tmp_path):
    code = """
def examples():
    for number in range(1000):
        if number == 600:
            print("halfway", flush=True)
            sys.stdin.read()
        yield example(number)
write(sys.argv[1], {"train": examples}, name="alive", description="", datasets=DATASETS)
"""
    out = tmp_path / "alive"
    process = run_python(code, out, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert process.stdout.readline() == "halfway\n"
    with pytest.raises(UserError, match="no ALive folder"):
        Alive.open(out)
    write_examples(tmp_path / "alive2", [example()])
    write_examples(out, [example()])  # while the other still runs: it keeps its folder
    assert len(leftovers(tmp_path)) == 1
    process.kill()
    process.communicate()
    assert len(leftovers(tmp_path)) == 1
    write_examples(out, [example(), example(1)], overwrite=True)
    assert leftovers(tmp_path) == []
    assert Alive.open(out).splits["train"] == 2


def test_an_error_in_the_source_leaves_nothing(tmp_path):
    def examples():
        yield example()
        raise UserError("the photo is gone")

    with pytest.raises(UserError, match="gone"):
        write(tmp_path / "alive", {"train": examples}, name="alive", description="", datasets=DATASETS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("same", [True, False])
def test_two_builds_may_race_when_their_content_is_the_same(tmp_path, same):
    def examples():  # another process finishes while this one is at work
        yield example()
        write_examples(tmp_path / "alive", [example(), example(1)] if same else [example()])
        yield example(1)

    splits = {"train": examples, "test": lambda: [example()]}
    told = contextlib.nullcontext() if same else pytest.raises(UserError, match=r"could not write .*not empty")
    with told:
        write(tmp_path / "alive", splits, name="alive", description="", datasets=DATASETS)
    assert Alive.open(tmp_path / "alive").splits == {"train": 2 if same else 1, "test": 1}
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (lambda path: path.rename(path.with_name("elsewhere")), "there is no ALive folder"),
        (lambda path: (path / "alive.json").unlink(), "is not an ALive folder"),
        (lambda path: (path / "dataset_info.json").unlink(), "is not an ALive folder"),
        (lambda path: (path / "alive.json").write_text("{", encoding="utf-8"), "is damaged"),
        (lambda path: (path / "alive.json").write_text("[]", encoding="utf-8"), "cannot be read"),
        (lambda path: (path / "alive-test.array_record-00000").unlink(), "1 of 2 shards missing or cut off"),
        (lambda path: os.truncate(path / "alive-train.array_record-00000", 9), "1 of 2 shards missing or cut off"),
    ],
)
def test_a_harmed_folder_is_told_when_opened(tmp_path, harm, told):
    write_examples(tmp_path / "alive", [example()])
    harm(tmp_path / "alive")
    with pytest.raises(UserError, match=told):
        Alive.open(tmp_path / "alive")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_tfds_wrote_missing_or_damaged_is_one_line(tmp_path, name, content):
    write_examples(tmp_path / "alive", [example()])
    alive = Alive.open(tmp_path / "alive")
    (tmp_path / "alive" / name).unlink()
    if content:
        (tmp_path / "alive" / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"its dataset_info\.json or features\.json is missing or damaged") as error:
        alive.source("train")
    assert "\n" not in str(error.value)


def test_a_shard_with_flipped_bytes_is_one_line(tmp_path):
    write_examples(tmp_path / "alive", [example(i) for i in range(3)])
    (shard,) = (tmp_path / "alive").glob("*train*array_record*")
    data = np.frombuffer(shard.read_bytes(), np.uint8).copy()
    data[np.flatnonzero(data)[100:200]] ^= 255  # what is zero is padding
    shard.write_bytes(data.tobytes())
    with pytest.raises(UserError, match=r"its shard is damaged; copy or build the folder again"):
        list(Alive.open(tmp_path / "alive").source("train"))


def test_out_may_be_a_link_to_a_folder_still_to_be_made(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "alive")
    (tmp_path / "disk").mkdir()
    write_examples(tmp_path / "link", [example()])
    assert Alive.open(tmp_path / "disk" / "alive").splits == Alive.open(tmp_path / "link").splits


def test_an_unknown_split_names_the_nearest(tmp_path):
    write_examples(tmp_path / "alive", [example()])
    with pytest.raises(UserError, match=r"no split 'tran'.*'train'"):
        Alive.open(tmp_path / "alive").source("tran")


@pytest.mark.parametrize(
    ("kind", "mode", "becomes"),
    [
        ("JPEG", "RGB", "JPEG"),
        ("JPEG", "L", "JPEG"),
        ("JPEG", "CMYK", "JPEG"),
        ("PNG", "RGBA", "PNG"),
        ("PNG", "P", "PNG"),
        ("WEBP", "RGB", "WEBP"),
        ("GIF", "P", "PNG"),
        ("BMP", "RGB", "BMP"),
    ],
)
def test_shrinking_bounds_the_longer_side_and_keeps_the_format(kind, mode, becomes):
    large = photo(kind, (200, 100), mode)
    small = Image.open(io.BytesIO(shrink(large, 50)))
    assert (small.format, small.size) == (becomes, (50, 25))
    assert shrink(large, 200) is large


def test_shrinking_turns_upright():
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (200, 100)).save(turned, "JPEG", exif=exif)
    small = Image.open(io.BytesIO(shrink(turned.getvalue(), 50)))
    assert small.size == (25, 50) and 0x0112 not in small.getexif()


def test_shrinking_keeps_the_brightness_of_sixteen_bits():
    deep = io.BytesIO()
    Image.fromarray(np.full((40, 60), 0x7FFF, np.uint16)).save(deep, "PNG")
    small = Image.open(io.BytesIO(shrink(deep.getvalue(), 30)))
    assert small.size == (30, 20) and set(np.asarray(small).ravel().tolist()) == {127}


def test_max_side_shrinks_what_is_written_and_nothing_else(tmp_path):
    large, small = photo("JPEG", (300, 200)), photo("JPEG", (30, 20))
    write_examples(tmp_path / "alive", [example(0, image=large), example(1, image=small)], max_side=60)
    first, second = Alive.open(tmp_path / "alive").source("train")
    assert Image.open(io.BytesIO(first["image"])).size == (60, 40)
    assert second["image"] == small


def test_progress_counts_every_example(tmp_path):
    done = []
    write_examples(tmp_path / "alive", [example(i) for i in range(5)], progress=done.append)
    assert sum(done) == 6
