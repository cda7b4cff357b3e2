"""Whatever way photos lie on disk, the same examples come out; what cannot be used is told."""

import hashlib
import io
import json
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agriclip_jax.data import splits
from agriclip_jax.data.sources import files, find, read_metadata
from agriclip_jax.data.splits import parse_ratios, split_of
from agriclip_jax.data.survey import Problem, examine, survey
from agriclip_jax.errors import UserError

ALL_TRAIN = {"train": 100}


def photo(colour: int = 0, kind: str = "JPEG", size=(12, 10)) -> bytes:
    data = io.BytesIO()
    pixels = np.random.default_rng(colour).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data, kind)
    return data.getvalue()


TREE = {f"{key}/{n}.jpg": photo(n) for key in ("rust", "healthy", "Blight") for n in (10, 2, 1)}


def plant(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def pack_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def look(*paths, **options):
    return survey(find([str(path) for path in paths]), ratios=ALL_TRAIN, **options)


def examples(*paths, **options):
    return list(look(*paths, **options).examples())


# ---- splits ----------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_the_split_rule_is_the_published_one(dataset, key, file):
    u = int.from_bytes(hashlib.sha256(f"{dataset}/{key}/{file}".encode()).digest(), "big") % 100
    assert split_of(dataset, key, file) == ("test" if u < 20 else "val" if u < 30 else "train")


@given(st.integers(0, 100), st.integers(0, 100))
def test_shares_come_out_as_asked_and_test_stays_test_when_val_grows(test, val):
    val = min(val, 100 - test)
    ratios = {"train": 100 - test - val, "val": val, "test": test}
    found = [split_of("d", "c", f"{n}.jpg", ratios) for n in range(400)]
    for split, share in ratios.items():
        assert abs(found.count(split) / 4 - share) < 12
        assert share or split not in found
    assert [s == "test" for s in found] == [
        split_of("d", "c", f"{n}.jpg", {"test": test}) == "test" for n in range(400)
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train:70,valid:10,test:20", "unknown split 'valid'.*'val'"),
        ("train:70,test:20", "sum to 90, not to 100"),
        ("train:x,test:20", "train needs a whole number"),
        ("train:50,train:50", "train is given twice"),
        ("", "unknown split ''"),
    ],
)
def test_bad_shares_are_told(text, told):
    with pytest.raises(UserError, match=told):
        parse_ratios(text)


def test_good_shares():
    assert parse_ratios("train:70,val:10,test:20") == splits.RATIOS
    assert parse_ratios("train:80, test:20") == {"train": 80, "test": 20}


# ---- the same examples from everything -------------------------------------------------------------------------------


def test_a_class_folder_tree_has_the_order_of_imagefolder(tmp_path):
    found = look(plant(tmp_path / "bean", TREE))
    assert list(found.datasets["bean"].classes) == ["Blight", "healthy", "rust"]
    by_hand = [f"bean/{key}/{file}" for key in ("Blight", "healthy", "rust") for file in ("1.jpg", "10.jpg", "2.jpg")]
    assert [example.source for example in found.examples()] == by_hand


def test_zip_and_tar_give_the_examples_of_the_folder(tmp_path):
    folder = examples(plant(tmp_path / "one" / "bean", TREE))
    for name, put in {"plain": TREE, "wrapped": {f"bean/{path}": data for path, data in TREE.items()}}.items():
        (tmp_path / name).mkdir()
        assert examples(pack_zip(tmp_path / name / "bean.zip", put)) == folder
        for ending, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.xz", "w:xz")):
            packed = examples(pack_tar(tmp_path / name / f"bean{ending}", put, mode))
            assert sorted(packed, key=lambda e: e.source) == folder  # a tar is read in its own order


def test_the_image_bytes_are_untouched(tmp_path):
    assert {e.source.removeprefix("bean/"): e.image for e in examples(plant(tmp_path / "bean", TREE))} == TREE


def test_every_photo_is_in_exactly_one_split_and_by_the_rule(tmp_path):
    plant(tmp_path / "bean", {f"rust/{n}.jpg": TREE["rust/1.jpg"] for n in range(60)})
    found = survey(find([str(tmp_path / "bean")]))
    by_split = {split: [e.source for e in give()] for split, give in found.splits().items()}
    assert sum(map(len, by_split.values())) == 60
    for split, paths in by_split.items():
        assert all(split_of(*path.split("/")) == split for path in paths)
        assert len(paths) == found.counts["bean"][split]


def test_a_folder_of_archives_is_a_dataset_each(tmp_path):
    pack_zip(tmp_path / "pea.zip", TREE)
    pack_tar(tmp_path / "bean.tar.gz", TREE)
    (tmp_path / "README.md").write_text("two crops", encoding="utf-8")
    assert list(look(tmp_path).datasets) == ["bean", "pea"]


@pytest.mark.parametrize("pattern", ["bean/*", "bean/*/*.jpg", "bean/*/**", "bean", "be?n"])
def test_a_glob_may_match_trees_class_folders_or_photos(tmp_path, pattern):
    plant(tmp_path / "bean", TREE)
    assert examples(tmp_path / pattern) == examples(tmp_path / "bean")


def test_a_glob_of_one_class_gives_that_class(tmp_path):
    found = look(plant(tmp_path / "bean", TREE) / "r*")
    assert list(found.datasets["bean"].classes) == ["rust"]


def test_nested_folders_keep_the_parent_as_class(tmp_path):
    found = look(plant(tmp_path / "bean", {"train/rust/1.jpg": photo(1), "val/rust/1.jpg": photo(2)}))
    assert {e.source: e.class_key for e in found.examples()} == {
        "bean/train/rust/1.jpg": "rust",
        "bean/val/rust/1.jpg": "rust",
    }


def test_names_in_any_script_and_broken_bytes(tmp_path):
    plant(tmp_path / "豆", {"さび病/α 1.jpg": photo()})
    os.makedirs(os.fsencode(tmp_path) + b"/\xe8\xb1\x86/caf\xe9")
    (tmp_path / "豆").joinpath(os.fsdecode(b"caf\xe9"), "1.jpg").write_bytes(photo())
    found = look(tmp_path / "豆")
    assert list(found.datasets["豆"].classes) == ["caf\N{REPLACEMENT CHARACTER}", "さび病"]


def test_links_are_followed_but_not_round_in_circles(tmp_path):
    plant(tmp_path / "bean", TREE)
    (tmp_path / "bean" / "rust" / "again").symlink_to(tmp_path / "bean")
    plant(tmp_path / "elsewhere", {"1.jpg": photo()})
    (tmp_path / "bean" / "linked").symlink_to(tmp_path / "elsewhere")
    assert "linked" in look(tmp_path / "bean").datasets["bean"].classes


def test_it_streams(tmp_path):
    plant(tmp_path / "bean", TREE)
    stream = look(tmp_path / "bean").examples()
    next(stream)
    (tmp_path / "bean" / "rust" / "2.jpg").unlink()
    with pytest.raises(UserError, match=r"bean/rust/2\.jpg cannot be read any more"):
        list(stream)


# ---- metadata --------------------------------------------------------------------------------------------------------

RECORD = {
    "name": "bean",
    "domain": "crop",
    "classes": {"rust": "bean leaf with rust", "healthy": "healthy bean leaf", "Blight": "bean leaf with blight"},
    "license": "CC0-1.0",
    "source": "someone/beans",
    "commit": "abc",
    "templates": ["a bean picture of {}."],
}


@pytest.mark.parametrize("where", ["given", "inside", "inside the zip", "beside", "beside, in a list"])
def test_metadata_is_found(tmp_path, where):
    as_list = json.dumps([{"name": "pea"}, RECORD]).encode()
    given = {}
    if where == "inside the zip":
        path = pack_zip(
            tmp_path / "bean.zip",
            {"top/dataset.json": json.dumps(RECORD).encode()} | {f"top/{k}": v for k, v in TREE.items()},
        )
    else:
        path = plant(tmp_path / "bean", TREE)
    if where == "given":
        (tmp_path / "list.json").write_bytes(as_list)
        given = read_metadata(tmp_path / "list.json")
    elif where == "inside":
        (path / "dataset.json").write_text(json.dumps(RECORD), encoding="utf-8")
    elif where.startswith("beside"):
        (tmp_path / "dataset.json").write_bytes(as_list if "list" in where else json.dumps(RECORD).encode())
    found = look(path, metadata=given)
    record = found.datasets["bean"]
    assert (record.domain, record.licence, record.source) == ("crop", "CC0-1.0", "someone/beans@abc")
    assert record.classes["rust"] == "bean leaf with rust" and record.templates == ("a bean picture of {}.",)
    assert found.notes == [] and found.ignored == 0
    rusty = [example for example in found.examples() if example.class_key == "rust"]
    assert rusty[0].captions[0] == "a photo of a bean leaf with rust." and rusty[0].licence == "CC0-1.0"


def test_a_name_inside_is_the_name_of_the_dataset(tmp_path):
    plant(tmp_path / "download (3)", TREE | {"dataset.json": json.dumps(RECORD).encode()})
    assert list(look(tmp_path / "download (3)").datasets) == ["bean"]


def test_without_metadata_slugs_become_words_and_it_is_said(tmp_path):
    found = look(plant(tmp_path / "bean", {"leaf_with_rust/1.jpg": photo()}))
    assert found.datasets["bean"].domain == "other"
    assert found.datasets["bean"].classes == {"leaf_with_rust": "leaf with rust"}
    assert found.notes == ["bean: no metadata, so class names come from the folder names and the domain is 'other'"]


def test_a_class_that_the_metadata_lacks_is_said(tmp_path):
    plant(tmp_path / "bean", {"leaf_scab/1.jpg": photo(), "dataset.json": json.dumps({"classes": {}}).encode()})
    assert look(tmp_path / "bean").notes == ["bean: class 'leaf_scab' is not in the metadata and is called 'leaf scab'"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "not valid JSON"),
        ("[1]", "is not an object"),
        ('{"domain": 3}', "a domain that is no text"),
        ('{"name": "a/b"}', "a name with a slash"),
        ('{"classes": ["rust"]}', "has classes that are not"),
        ('{"classes": {"rust": ""}}', "has classes that are not"),
        ('{"templates": ["no place"]}', "has templates that are not"),
    ],
)
def test_broken_metadata_is_told(tmp_path, text, told):
    (tmp_path / "list.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        read_metadata(tmp_path / "list.json")


def test_missing_metadata_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the metadata .*none\.json: No such file"):
        read_metadata(tmp_path / "none.json")


# ---- bad input -------------------------------------------------------------------------------------------------------


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header claims a size, with no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\1\0IDAT"
    )


def test_corrupt_photos_are_listed_and_skipped(tmp_path):
    bad = {
        "rust/a.jpg": b"",
        "rust/b.jpg": photo(1)[:-40],
        "rust/c.png": b"<html>404 not found</html>",
        "rust/d.png": huge_png(20_000, 10_001),
        "rust/e.webp": photo(1, "TIFF"),
    }
    for path in (
        plant(tmp_path / "bean", TREE | bad),
        pack_zip(tmp_path / "bean.zip", TREE | bad),
        pack_tar(tmp_path / "bean.tgz", TREE | bad),
    ):
        found = look(path)
        assert len(list(found.examples())) == len(TREE)
        assert [problem.source for problem in found.problems] == [f"bean/{name}" for name in bad]
        reasons = [problem.reason for problem in found.problems]
        assert reasons[0] == "is empty"
        assert reasons[1].startswith("broken image: image file is truncated")
        assert reasons[2] == reasons[4] == "not an image in one of the formats JPEG, PNG, WEBP, GIF, BMP"
        assert reasons[3] == "image of more than 200 megapixels; shrink it first"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_200_megapixels_are_the_limit():
    assert examine(huge_png(20_000, 10_000)).fault.startswith(
        "broken image"
    )  # the size is allowed, the pixels are missing
    assert examine(huge_png(20_000, 10_001)).fault == "image of more than 200 megapixels; shrink it first"
    assert examine(huge_png(2**31 - 1, 2**31 - 1)).fault == "image of more than 200 megapixels; shrink it first"


def test_a_member_that_expands_too_far_is_skipped_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1 << 20)
    bomb = TREE | {"rust/bomb.jpg": bytes(3 << 20)}
    for path in (
        pack_zip(tmp_path / "bean.zip", bomb),
        pack_tar(tmp_path / "bean.tgz", bomb),
        plant(tmp_path / "bean", bomb),
    ):
        assert look(path).problems == [Problem("bean/rust/bomb.jpg", "is larger than 1 MiB (3 MiB)")]


def test_a_zip_member_that_lies_about_its_size_is_skipped(tmp_path):
    path = pack_zip(tmp_path / "bean.zip", TREE | {"rust/z.jpg": bytes(100_000)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    (problem,) = look(path).problems
    assert problem.source == "bean/rust/z.jpg" and "CRC" in problem.reason


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=64), st.integers(0, 400), st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]))
def test_no_bytes_make_the_check_fail(noise, at, kind):
    whole = photo(3, kind)
    assert examine(whole).fault == ""
    assert isinstance(examine(whole[:at] + noise + whole[at + len(noise) :]).fault, str)
    assert examine(noise).fault != ""


def test_files_that_are_no_photos_are_left_aside_and_counted(tmp_path):
    clutter = {".hidden/1.jpg": photo(), "__MACOSX/rust/._1.jpg": b"x", "rust/Thumbs.db": b"x", "rust/notes.txt": b"x"}
    for path in (plant(tmp_path / "bean", TREE | clutter), pack_zip(tmp_path / "bean.zip", TREE | clutter)):
        found = look(path)
        assert (found.ignored, found.problems) == (4, [])
        assert list(found.datasets["bean"].classes) == ["Blight", "healthy", "rust"]


def test_photos_outside_a_class_folder_are_listed(tmp_path):
    found = look(plant(tmp_path / "bean", TREE | {"stray.jpg": photo()}))
    assert found.problems == [Problem("bean/stray.jpg", "lies outside the class folders")]


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_without_photos_is_left_out_and_said(tmp_path, packed):
    plant(
        tmp_path / "bean",
        TREE | {"scab/1.jpg": b"", "dataset.json": json.dumps({**RECORD, "classes": {"wilt": "wilted bean"}}).encode()},
    )
    (tmp_path / "bean" / "mosaic").mkdir()
    path = tmp_path / "bean"
    if packed:
        with zipfile.ZipFile(tmp_path / "bean.zip", "w") as archive:
            for file in sorted((tmp_path / "bean").rglob("*")):
                archive.write(file, file.relative_to(tmp_path))
        path = tmp_path / "bean.zip"
    found = look(path)
    assert list(found.datasets["bean"].classes) == ["Blight", "healthy", "rust"]
    for key in ("mosaic", "scab", "wilt"):
        assert f"bean: class {key!r} has no readable photo and is left out" in found.notes


def test_two_sources_of_one_name_are_refused(tmp_path):
    one, other = plant(tmp_path / "a" / "bean", TREE), pack_zip(tmp_path / "bean.zip", TREE)
    with pytest.raises(UserError, match=r"two sources are called 'bean': .*a/bean and .*bean\.zip; rename"):
        look(one, other)


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/etc/evil.jpg", "rust/../../evil.jpg", "C:\\evil.jpg", "..\\evil.jpg"]
)
def test_a_member_that_climbs_out_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"bean\.zip has a member that climbs out of its folder"):
        look(pack_zip(tmp_path / "bean.zip", TREE | {name: photo()}))
    if "\\" not in name:
        with pytest.raises(UserError, match=r"bean\.tar has a member that climbs out of its folder"):
            look(pack_tar(tmp_path / "bean.tar", TREE | {name: photo()}, "w"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_that_climbs_out_of_a_tar_is_refused_and_others_are_listed(tmp_path, kind):
    for target, climbs in (("../../etc/passwd", True), ("/etc/passwd", True), ("rust/1.jpg", False)):
        path = pack_tar(tmp_path / "bean.tar", TREE, "w")
        with tarfile.open(path, "a") as archive:
            link = tarfile.TarInfo("rust/link.jpg")
            link.type, link.linkname = kind, target
            archive.addfile(link)
        if climbs:
            with pytest.raises(UserError, match=r"climbs out of its folder: 'rust/link\.jpg'"):
                look(path)
        else:
            found = look(path)
            assert len(list(found.examples())) == len(TREE)
            assert found.problems == [
                Problem("bean/rust/link.jpg", "is a link or no plain file; pack the photo itself")
            ]


def test_a_link_in_a_zip_is_listed_and_skipped(tmp_path):
    path = pack_zip(tmp_path / "bean.zip", TREE)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("rust/link.jpg")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "1.jpg")
    found = look(path)
    assert len(list(found.examples())) == len(TREE)
    assert found.problems == [Problem("bean/rust/link.jpg", "is a link or no plain file; pack the photo itself")]


def test_a_link_in_a_zip_whose_target_is_a_bomb_is_read_no_further_than_a_path(tmp_path):
    path = pack_zip(tmp_path / "bean.zip", TREE)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        link = zipfile.ZipInfo("rust/link.jpg")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        link.compress_type = zipfile.ZIP_DEFLATED
        archive.writestr(link, b"a" * (64 << 20))
    tracemalloc.start()
    found = look(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(list(found.examples())) == len(TREE) and most < 16 << 20


def test_what_is_no_file_is_listed_and_never_waited_for(tmp_path):
    os.mkfifo(plant(tmp_path / "bean", TREE) / "rust" / "pipe.jpg")
    assert look(tmp_path / "bean").problems == [Problem("bean/rust/pipe.jpg", "is no regular file")]


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    plant(tmp_path / "bean", TREE)
    monkeypatch.setattr(Path, "iterdir", forbidden)
    with pytest.raises(UserError, match=r"bean may not be read; give yourself the right to, or leave it out"):
        look(tmp_path / "bean")


def test_nothing_to_keep_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no photo to keep in .*empty; photos belong in one folder for each class"):
        (tmp_path / "empty").mkdir()
        look(tmp_path / "empty")
    with pytest.raises(UserError, match=r"all 1 were dropped, such as bad/rust/1\.jpg: is empty"):
        look(plant(tmp_path / "bad", {"rust/1.jpg": b""}))
    with pytest.raises(UserError, match=r"such as flat/1\.jpg: lies outside the class folders"):
        look(plant(tmp_path / "flat", {"1.jpg": photo()}))


def test_one_empty_source_among_others_is_left_out_and_said(tmp_path):
    (tmp_path / "empty").mkdir()
    found = look(plant(tmp_path / "bean", TREE), tmp_path / "empty")
    assert list(found.datasets) == ["bean"]
    assert any("empty holds no readable photo" in note for note in found.notes)


def test_a_path_that_is_no_source_is_told(tmp_path):
    plant(tmp_path / "bean", TREE)
    with pytest.raises(UserError, match="baen: no such file or folder; did you mean 'bean'"):
        find([str(tmp_path / "baen")])
    with pytest.raises(UserError, match=r"none\* matches no photos, archives or tables"):
        find([str(tmp_path / "none*")])
    with pytest.raises(UserError, match="--source= is empty"):
        find([""])
    with pytest.raises(UserError, match=r"is no folder, archive \(.*\) or table"):
        find([str(plant(tmp_path, {"a.txt": b""}) / "a.txt")])


@pytest.mark.parametrize("ending", ["tar.gz", "tar.bz2", "tar.xz"])
def test_a_tar_that_expands_without_end_is_read_in_little_memory(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1 << 20)
    path = pack_tar(tmp_path / f"bean.{ending}", TREE | {"rust/bomb.jpg": bytes(24 << 20)}, f"w:{ending[4:]}")
    tracemalloc.start()
    found = look(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.problems == [Problem("bean/rust/bomb.jpg", "is larger than 1 MiB (24 MiB)")] and most < 12 << 20


@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz", "tar.xz"])
def test_a_cut_off_archive_is_refused(tmp_path, ending):
    path = tmp_path / f"bean.{ending}"
    pack_zip(path, TREE) if ending == "zip" else pack_tar(path, TREE, f"w:{ending[4:]}")
    for keep in (0, 10, path.stat().st_size // 2):
        path.write_bytes(path.read_bytes()[:keep] if keep else b"")
        with pytest.raises(UserError, match=r"bean\..* cannot be read to its end"):
            look(path)


@pytest.mark.parametrize("cut", [0, 100, 512])
def test_a_plain_tar_cut_between_two_photos_or_in_a_header_is_refused(tmp_path, cut):
    path = pack_tar(tmp_path / "bean.tar", TREE, "w")
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[: offset + cut])
    with pytest.raises(UserError, match=r"bean\.tar cannot be read to its end"):
        look(path)


def test_progress_is_told_of_every_photo(tmp_path):
    told = []
    look(plant(tmp_path / "bean", TREE), progress=lambda done, total: told.append((done, total)))
    assert {total for _, total in told} == {len(TREE)} and sum(done for done, _ in told) == len(TREE)


@pytest.mark.skipif("AGRICLIP_PHOTOS" not in os.environ, reason="AGRICLIP_PHOTOS names no folder of real photos")
def test_real_photos(tmp_path):
    photos = Path(os.environ["AGRICLIP_PHOTOS"])
    listed = {record["name"]: record for record in json.loads((photos / "datasets.json").read_text(encoding="utf-8"))}
    (record,) = [record for record in listed.values() if record["name"] == "rice_leaf_uci"]
    found = look(photos / record["role"] / "rice_leaf_uci.zip", metadata=read_metadata(photos / "datasets.json"))
    assert dict(found.datasets["rice_leaf_uci"].classes) == record["classes"]
    assert found.counts == {"rice_leaf_uci": {"train": sum(record["counts"].values())}}
    assert (found.problems, found.notes, found.ignored) == ([], [], 0)
