"""On Apache Beam a build gives what it gives here: the same examples in the same order."""

import dataclasses
import json

import pytest
from test_sources import TREE, pack_tar, pack_zip, photo, plant

from agriclip_jax.data import build, distribute
from agriclip_jax.data.records import Alive
from agriclip_jax.data.sources import find
from agriclip_jax.data.sources.tree import Tree
from agriclip_jax.errors import RunFailure, UserError


def content(folder):
    alive = Alive.open(folder)
    return {split: [repr(example) for example in alive.source(split)] for split in alive.splits}


def test_the_direct_runner_gives_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(distribute, "_ROWS", 4)  # several pieces of work for each source
    plant(tmp_path / "bean", TREE | {"rust/broken.jpg": b"x", "rust/again.jpg": TREE["rust/1.jpg"]})
    pack_zip(tmp_path / "pea.zip", {f"rust/{n}.jpg": photo(n, size=(40, 30)) for n in range(9)})
    pack_tar(tmp_path / "corn.tar.gz", {f"scab/{n}.jpg": photo(n + 20) for n in range(5)})
    plant(tmp_path, {f"img/{n}.jpg": photo(n + 40) for n in range(3)})
    rows = "\n".join(f"img/{n}.jpg,leaf {n}" for n in range(3))
    (tmp_path / "web.csv").write_text(f"filepath,caption\n{rows}", encoding="utf-8")
    names = ("bean", "pea.zip", "corn.tar.gz", "web.csv")
    sources = find([str(tmp_path / name) for name in names])
    plan = build.Plan(max_side=24, duplicates="exact")
    here = build.build(tmp_path / "here", sources, plan)
    beam = distribute.options("DirectRunner", ["--direct_num_workers=1"])
    there = build.build(tmp_path / "there", sources, dataclasses.replace(plan, beam=beam))
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert Alive.open(tmp_path / "there").fingerprint == Alive.open(tmp_path / "here").fingerprint
    assert there.funnel == here.funnel and there.funnel[-1].left > 15
    about = [json.loads((tmp_path / name / "features.json").read_text()) for name in ("here", "there")]
    assert about[0] == about[1]
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


class Vanishing(Tree):
    """A tree whose photos are gone once a file called `gone` lies in it."""

    def read(self, places):
        gone = (self.origin / "gone").exists()
        yield from (OSError("gone") if gone else data for data in super().read(places))


def test_a_photo_that_vanishes_between_the_two_passes_is_one_line(tmp_path):
    source = Vanishing(Tree.open([plant(tmp_path / "bean", TREE)], {})[0].files)
    plan = build.Plan(beam=distribute.options("DirectRunner", []))

    def progress(label):
        return lambda done, total: (tmp_path / "bean" / "gone").touch()

    with pytest.raises((RunFailure, UserError), match="cannot be read any more") as told:
        build.build(tmp_path / "out", [source], plan, progress=progress)
    assert "\n" not in str(told.value) and not (tmp_path / "out").exists()


def test_an_unknown_runner_or_option_is_one_line():
    with pytest.raises(UserError, match=r"--runner=DirektRunner is unknown; Beam has: .*DirectRunner"):
        distribute.options("DirektRunner", [])
    with pytest.raises(UserError, match="--shuffle is an option neither of this command nor"):
        distribute.options("DirectRunner", ["--shuffle=1"])
