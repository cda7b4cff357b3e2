"""The tool that turns photos into an ALive folder, run as a user runs it."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from test_sources import TREE, pack_tar, pack_zip, photo, plant

from agriclip_jax.data.records import Alive
from agriclip_jax.errors import UserError

TOOL = [sys.executable, str(Path(__file__).parents[1] / "tools" / "build_alive.py")]


def build(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([*TOOL, *map(str, arguments)], capture_output=True, text=True, encoding="utf-8")


def refused(result: subprocess.CompletedProcess) -> str:
    """The one line of a build that ended with 2."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def many(folder: Path, count: int) -> Path:
    data = photo(1, size=(64, 64))
    return plant(folder, {f"class{n % 5}/{n}.jpg": data for n in range(count)})


def test_help_is_instant_and_imports_nothing_heavy():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        told = build("--help")
        seconds.append(time.perf_counter() - start)
        assert told.returncode == 0 and "--source" in told.stdout
    assert min(seconds) < 0.5
    code = """
import sys, runpy
sys.argv = ["build_alive.py", "--help"]
try:
    runpy.run_path(%r, run_name="__main__")
except SystemExit:
    print(sorted({"jax", "tensorflow_datasets", "numpy", "PIL", "rich"} & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", code % TOOL[1]], capture_output=True, text=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_photos_become_an_alive_folder(tmp_path):
    plant(tmp_path / "bean", TREE | {"rust/broken.jpg": b"", "rust/notes.txt": b"x"})
    (tmp_path / "bean" / "mosaic").mkdir()
    pack_zip(tmp_path / "pea.zip", TREE)
    (tmp_path / "about.json").write_text(
        json.dumps([{"name": "pea", "domain": "crop", "classes": {"rust": "pea leaf with rust"}, "license": "CC0"}]),
        encoding="utf-8",
    )
    sources = f"--source={tmp_path / 'bean'}", f"--source={tmp_path / 'pea.zip'}"
    out, about = tmp_path / "alive", tmp_path / "about.json"
    built = build(*sources, f"--meta={about}", f"--out={out}", "--split=train:60,test:40", "--max_side=8")
    assert built.returncode == 0, built.stderr
    assert re.search(r"bean\W+other\W+3\W+\d+\W+0\W+\d+\W+1\W", built.stdout)
    assert re.search(r"pea\W+crop\W+3\W+\d+\W+0\W+\d+\W+0\W", built.stdout)
    assert "wrote 18 examples" in built.stdout
    for said in (
        "skipped: bean/rust/broken.jpg: is empty",
        "note: bean: no metadata, so class names come from the folder names and the domain is 'other'",
        "note: bean: class 'mosaic' has no readable photo and is left out",
        "note: pea: class 'Blight' is not in the metadata and is called 'Blight'",
        "note: left aside, being no photos: 1 files",
    ):
        assert said in built.stderr
    alive = Alive.open(out)
    assert set(alive.splits) == {"train", "test"} and sum(alive.splits.values()) == 18
    assert alive.datasets["pea"].classes["rust"] == "pea leaf with rust"
    assert {row["licence"] for row in alive.source("train") if row["dataset"] == "pea"} == {"CC0"}
    assert {max(Image.open(io.BytesIO(row["image"])).size) for row in alive.source("train")} == {8}


def test_classes_get_captions_of_what_they_look_like_and_the_unknown_ones_are_listed(tmp_path):
    photos = dict(enumerate(TREE.values()))
    plant(tmp_path / "bean", {f"{key}/{n}.jpg": data for key in ("rust", "gold_fever") for n, data in photos.items()})
    (tmp_path / "bean" / "dataset.json").write_text(json.dumps({"name": "bean", "domain": "crop"}), encoding="utf-8")
    arguments = f"--source={tmp_path / 'bean'}", "--split=train:100"
    built = build(*arguments, f"--out={tmp_path / 'one'}")
    assert built.returncode == 0, built.stderr
    assert "1 of 2 classes have no fact to make knowledge captions of" in built.stderr
    assert "say what they look like with --facts=FILE.yaml: bean/gold fever" in built.stderr
    mine = tmp_path / "mine.yaml"
    mine.write_text("- {name: gold fever, kind: disease, signs: [yellow dust on the leaf]}", encoding="utf-8")
    built = build(*arguments, f"--out={tmp_path / 'two'}", f"--facts={mine}")
    assert built.returncode == 0 and "no fact" not in built.stderr
    for row in Alive.open(tmp_path / "two").source("train"):
        known = [text for text, kind in zip(row["captions"], row["caption_kinds"], strict=True) if kind == "knowledge"]
        assert known and all(", showing " in text for text in known)
        if row["class_key"] == "gold_fever":
            assert len(known) == 1 and known[0].endswith("gold fever, showing yellow dust on the leaf.")
    lines = refused(build(*arguments, f"--out={tmp_path / 'x'}", f"--facts={tmp_path / 'none.yaml'}"))
    assert "none.yaml cannot be read" in lines


def test_bad_input_ends_with_2_and_writes_nothing(tmp_path):
    good = f"--source={plant(tmp_path / 'photos' / 'bean', TREE)}"
    out = f"--out={tmp_path / 'alive'}"
    before = sorted(tmp_path.rglob("*"))
    told = {
        "nothing there": build(f"--source={tmp_path / 'photos' / 'baen'}", out),
        "same name": build(good, good, out),
        "shares": build(good, out, "--split=train:90"),
        "side": build(good, out, "--max_side=1"),
        "meta": build(good, out, f"--meta={tmp_path / 'none.json'}"),
        "nothing to keep": build(f"--source={tmp_path / 'photos' / 'bean' / 'rust'}", out),
        "taken": build(good, f"--out={tmp_path / 'photos'}"),
    }
    lines = {name: refused(result) for name, result in told.items()}
    assert "no such file or folder; did you mean 'bean'" in lines["nothing there"]
    assert "two sources are called 'bean'" in lines["same name"]
    assert "sum to 90" in lines["shares"]
    assert "--max_side=1 is too small" in lines["side"]
    assert "cannot read the metadata" in lines["meta"]
    assert "no photo to keep" in lines["nothing to keep"]
    assert "is not empty and not an ALive folder" in lines["taken"]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_climbing_archive_ends_with_2_and_writes_nothing(tmp_path):
    archive = pack_tar(tmp_path / "bean.tar.gz", TREE | {"../../evil.jpg": photo()})
    assert "climbs out of its folder: '../../evil.jpg'" in refused(
        build(f"--source={archive}", f"--out={tmp_path / 'a'}")
    )
    assert list(tmp_path.iterdir()) == [archive]


def test_a_killed_build_is_completed_by_the_next(tmp_path):
    source, out = many(tmp_path / "photos", 1500), tmp_path / "alive"
    process = subprocess.Popen([*TOOL, f"--source={source}", f"--out={out}"], stderr=subprocess.DEVNULL)
    while not any(tmp_path.glob(".alive.partial-*/new/*array_record*")):
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and len(list(tmp_path.glob(".alive.partial-*"))) == 1
    with pytest.raises(UserError, match="there is no ALive folder"):
        Alive.open(out)
    again = build(f"--source={source}", f"--out={out}")
    assert again.returncode == 0, again.stderr
    assert sum(Alive.open(out).splits.values()) == 1500
    assert not list(tmp_path.glob(".alive.partial-*"))
    assert "already holds a finished ALive folder" in refused(build(f"--source={source}", f"--out={out}"))


@pytest.mark.slow
@pytest.mark.skipif("AGRICLIP_PHOTOS" not in os.environ, reason="AGRICLIP_PHOTOS names no folder of real photos")
def test_real_photos(tmp_path):
    photos = Path(os.environ["AGRICLIP_PHOTOS"])
    records = json.loads((photos / "datasets.json").read_text(encoding="utf-8"))
    records = {record["name"]: record for record in records if record["role"] == "train"}
    built = build(f"--source={photos / 'train'}", f"--meta={photos / 'datasets.json'}", f"--out={tmp_path / 'alive'}")
    assert built.returncode == 0, built.stderr
    alive = Alive.open(tmp_path / "alive")
    assert sum(alive.splits.values()) == sum(sum(record["counts"].values()) for record in records.values())
    assert {slug: dict(d.classes) for slug, d in alive.datasets.items()} == {
        n: r["classes"] for n, r in records.items()
    }
