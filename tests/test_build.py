"""A whole build: what each choice of the plan does to the folder that comes out, and to its card."""

import csv
import json
import re
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import answers, image_of, said, serving, status
from test_build_alive import TOOL, build, refused
from test_curation import A, B, C, ColourJudge, drawn, plain, recoded
from test_sources import TREE, photo, plant

from agriclip_jax.data import build as builds
from agriclip_jax.data import sources, splits
from agriclip_jax.data.endpoint import Endpoint
from agriclip_jax.data.records import Alive
from agriclip_jax.data.survey import WORDLESS
from agriclip_jax.data.tokenizers import clean, counter
from agriclip_jax.errors import UserError


def made(tmp_path, *paths, **plan) -> tuple[builds.Built, Alive]:
    """A build of sources with a plan, and the folder."""
    found = sources.find([str(path) for path in paths])
    built = builds.build(tmp_path / "alive", found, builds.Plan(**{"ratios": {"train": 100}, **plan}), overwrite=True)
    return built, Alive.open(tmp_path / "alive")


def captions_of(alive: Alive, kind: str) -> dict[str, set[str]]:
    """The captions of a kind by the image's source."""
    return {
        row["source"]: {text for text, of in zip(row["captions"], row["caption_kinds"], strict=True) if of == kind}
        for split in alive.splits
        for row in alive.source(split)
    }


# ---- curation through the command ------------------------------------------------------------------------------------


def test_the_command_curates_counts_and_lists(tmp_path):
    plant(tmp_path / "mine", {"bean_rust/a.jpg": A, "bean_rust/again.jpg": A, "bean_scab/b.jpg": B})
    plant(tmp_path / "mine", {"bean_scab/near.jpg": recoded(B), "bean_scab/c.jpg": C, "bean_scab/broken.jpg": A[:-9]})
    plant(tmp_path / "mine", {"bean_rust/b.jpg": B})
    plant(tmp_path / "test", {"x/1.jpg": recoded(C)})
    mine, out = f"--source={tmp_path / 'mine'}", tmp_path / "alive"
    kept = build(mine, f"--out={out}", "--split=train:100")
    assert kept.returncode == 0 and "wrote 6 examples" in kept.stdout
    assert "2 exact and 1 near duplicates found, 0 of them in another split than their twin" in kept.stderr
    assert "2 pictures stand under two class names" in kept.stderr
    against = f"--against={tmp_path / 'test'}"
    again = build(mine, f"--out={out}", "--split=train:100", "--duplicates=near", against, "--overwrite")
    assert again.returncode == 0 and "wrote 2 examples" in again.stdout, again.stderr
    for line in (r"found\W+7", r"unreadable\W+1\W+6", r"exact duplicate\W+2\W+4", r"near duplicate\W+1\W+3"):
        assert re.search(line, again.stdout)
    assert re.search(r"in a held-out set\W+1\W+2", again.stdout)
    with (out / "dropped.csv").open(encoding="utf-8") as file:
        dropped = {row["source"]: (row["stage"], row["reason"]) for row in csv.DictReader(file)}
    assert len(dropped) == 5
    assert dropped["mine/bean_scab/c.jpg"] == ("in a held-out set", "the same picture as test/x/1.jpg")
    about = json.loads((out / "card.json").read_text(encoding="utf-8"))["build"]
    assert about["funnel"][0] == ["found", 0, 7] and about["twins"]["noise"] == 2
    assert about["command"].startswith("python tools/build_alive.py --source=") and about["version"]
    inspected = build(f"--inspect={out}")
    assert inspected.returncode == 0 and "bean rust" in inspected.stdout
    assert not any(tmp_path.glob(".alive.partial-*"))


def test_the_datasets_known_by_name_are_listed_at_once_and_without_jax():
    listed = build("--list")
    assert listed.returncode == 0 and "plant_village" in listed.stdout and "unknown" in listed.stdout
    code = f"import sys, runpy; sys.argv = {[*TOOL[1:], '--list']!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, encoding="utf-8"
    )
    assert ran.returncode == 0 and "plant_village" in ran.stdout
    assert not re.search(r"\| +(jax|tensorflow_datasets|apache_beam)$", ran.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--out=x"], "--source is missing"),
        (["--source=x"], "--out is missing"),
        (["--rewriter=http://localhost:1", "--source=x", "--out=y"], "need the name of the model; give --model"),
        (["--min_agreement=0.2", "--source=x", "--out=y"], "need a trained model; name its workdir with --ckpt"),
        (["--sauce=x"], "unknown argument --sauce=x"),
        (["--source=x", "--out=y", "--candidates=0"], "--candidates=0 is too small"),
        (["--inspect=nowhere"], "there is no ALive folder nowhere"),
    ],
)
def test_what_the_arguments_alone_show_to_be_wrong_is_one_line(tmp_path, arguments, told):
    assert told in refused(build(*arguments))


def test_names_command_no_terminal_and_break_no_line(tmp_path):
    evil = "\x1b[2J\x1b]0;owned\x07[red]a\u2028b"
    plant(tmp_path / evil, {f"{evil}/1.jpg": A, f"{evil}/2.jpg": b"broken"})
    built = build(f"--source={tmp_path / evil}", f"--out={tmp_path / 'alive'}", "--split=train:100")
    told = build(f"--source={tmp_path / evil / 'none'}", f"--out={tmp_path / 'x'}")
    inspected = build(f"--inspect={tmp_path / 'alive'}")
    assert built.returncode == inspected.returncode == 0 and "[red]a" in built.stdout
    assert told.returncode == 2 and len(told.stderr.splitlines()) == 1
    for shown in (built.stdout, built.stderr.split("note:", 1)[1], told.stderr, inspected.stdout):
        assert not set(shown) & {"\x1b", "\x07", "\u2028"}


def test_whoever_reads_the_output_may_stop(tmp_path):
    command = f"{sys.executable} {TOOL[1]} --list | head -1"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, encoding="utf-8")
    assert ran.stderr == "" and ran.stdout.count("\n") == 1


def test_an_against_that_is_not_there_is_called_by_its_flag(tmp_path):
    mine = plant(tmp_path / "mine", TREE)
    line = refused(build(f"--source={mine}", f"--out={tmp_path / 'out'}", f"--against={tmp_path / 'tst'}"))
    assert line.startswith("error: --against=") and "no such file or folder" in line


# ---- captions by a language model ------------------------------------------------------------------------------------


def writer(payload: dict) -> str:
    """A model that writes two good captions, names another class, repeats itself and remarks on it."""
    name = re.search(r"names the class in its own words: (.*)\.", said(payload)).group(1)
    other = "bean scab" if "rust" in name else "bean rust"
    good = [f"Close view of {name} with small orange spots.", f"In soft light, {name} among other plants."]
    return "\n".join(["Sure, here are captions:", *good, good[0], f"{name} beside {other}."])


def test_rewritten_captions_are_checked_and_a_rerun_asks_nothing(tmp_path):
    mine = plant(tmp_path / "mine", {"bean_rust/a.jpg": A, "bean_scab/b.jpg": B})
    with serving(answers(writer)) as server:
        for run in range(2):
            endpoint = Endpoint(server.url, "tiny", cache=tmp_path / "cache")
            built, alive = made(tmp_path, mine, rewriter=endpoint, rewrites=2)
            written = captions_of(alive, "rewritten")
            assert written["mine/bean_rust/a.jpg"] == {
                "Close view of bean rust with small orange spots.",
                "In soft light, bean rust among other plants.",
            }
            assert len(written["mine/bean_scab/b.jpg"]) == 2
            assert len(server.payloads) == 2 and ("2 from the cache" in str(endpoint.usage)) == (run == 1)
    assert built.rejects["a remark, no caption"] == 2
    assert any(line.startswith("rewriting: 4 captions of 2 classes") for line in built.endpoints)


def test_where_the_endpoint_fails_the_captions_stay_what_they_were(tmp_path):
    mine = plant(tmp_path / "mine", {"bean_rust/a.jpg": A, "bean_scab/b.jpg": B})
    with serving(status(404, "no such model")) as server:
        built, alive = made(tmp_path, mine, rewriter=Endpoint(server.url, "tiny", cache=tmp_path / "cache"))
    assert not any(captions_of(alive, "rewritten").values()) and all(captions_of(alive, "template").values())
    assert any("0 captions of 0 classes, 2 classes keep those they had" in line for line in built.endpoints)
    assert any("no such model" in line for line in built.endpoints)


def colour_namer(payload: dict) -> str:
    """A vision model that guesses: of every image it says first that it is green, then what it is."""
    import io

    from PIL import Image

    _, data = image_of(payload)
    mean = np.asarray(Image.open(io.BytesIO(data))).reshape(-1, 3).mean(0)
    colour = ("red", "green", "blue")[int(mean.argmax())]
    turn = payload.get("seed", 0) or 0
    return "A green leaf in the sun." if turn % 2 == 0 else f"A {colour} leaf on the ground."


def test_photos_without_words_get_the_caption_that_agrees_with_them_however_turned(tmp_path):
    plant(
        tmp_path, {f"img/{n}.png": plain(*colour) for n, colour in enumerate([(220, 0, 0), (0, 210, 9), (9, 0, 230)])}
    )
    rows = "\n".join(f"img/{n}.png,{'said already' if n == 1 else ''}" for n in range(3))
    (tmp_path / "web.csv").write_text(f"filepath,caption\n{rows}", encoding="utf-8")
    with serving(answers(colour_namer)) as server:
        endpoint = Endpoint(server.url, "eyes", cache=tmp_path / "cache")
        built, alive = made(tmp_path, tmp_path / "web.csv", describer=endpoint, judge=ColourJudge(), candidates=2)
    assert captions_of(alive, "described") == {
        "web/img/0.png": {"A red leaf on the ground."},
        "web/img/1.png": set(),
        "web/img/2.png": {"A blue leaf on the ground."},
    }
    assert any(line.startswith("describing: ") for line in built.endpoints)


def test_photos_without_words_are_dropped_where_nobody_describes_them(tmp_path):
    plant(tmp_path, {"img/0.jpg": A, "img/1.jpg": B})
    (tmp_path / "web.csv").write_text("filepath,caption\nimg/0.jpg,a leaf\nimg/1.jpg,\n", encoding="utf-8")
    built, alive = made(tmp_path, tmp_path / "web.csv")
    assert alive.splits == {"train": 1}
    assert list(built.survey.dropped(WORDLESS)) == [("web/img/1.jpg", "has neither a class nor a caption")]


# ---- splits and captions ---------------------------------------------------------------------------------------------


def test_photos_of_one_leaf_stay_in_one_split(tmp_path):
    leaves = {f"rust/leaf{n // 4:02}_shot{n % 4}.jpg": drawn(n) for n in range(80)}
    plant(tmp_path / "bean", leaves)
    group = {"bean": {"name": "bean", "group": r"^(leaf\d+)_"}}
    _, alive = made(tmp_path, tmp_path / "bean", metadata=group, ratios=splits.RATIOS)
    of = {row["source"]: split for split in alive.splits for row in alive.source(split)}
    assert len(set(of.values())) > 1
    for n in range(20):
        assert len({of[f"bean/rust/leaf{n:02}_shot{shot}.jpg"] for shot in range(4)}) == 1


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa){1,}$", ".*" * 20 + "x", "(", "a" * 101])
def test_a_pattern_that_may_never_end_is_refused(tmp_path, pattern):
    record = json.dumps({"name": "bean", "group": pattern}).encode()
    plant(tmp_path / "bean", {"rust/" + "a" * 60 + "!.jpg": A, "dataset.json": record})
    with pytest.raises(UserError, match="has a group that"):
        made(tmp_path, tmp_path / "bean")


def test_a_dataset_known_by_name_brings_names_domain_and_licence_and_an_own_one_of_that_name_does_not(tmp_path):
    plant(tmp_path / "beans", {"angular_leaf_spot/1.jpg": A, "bean_rust/2.jpg": B, "healthy/3.jpg": C})
    built, alive = made(tmp_path, tmp_path / "beans")
    assert alive.datasets["beans"].domain == "crop" and alive.datasets["beans"].licence
    assert any("taken for" in note for note in built.survey.notes)
    plant(tmp_path / "own" / "beans", {"kidney/1.jpg": A, "broad/2.jpg": B})
    _, own = made(tmp_path, tmp_path / "own" / "beans")
    assert (own.datasets["beans"].domain, own.datasets["beans"].licence) == ("other", "")
    plant(tmp_path / "half" / "beans", {"healthy/1.jpg": A, "mould/2.jpg": B})
    _, half = made(tmp_path, tmp_path / "half" / "beans")
    assert half.datasets["beans"].licence == ""
    mine = {"beans": {"name": "beans", "license": "all rights reserved"}}
    assert made(tmp_path, tmp_path / "beans", metadata=mine)[1].datasets["beans"].licence == "all rights reserved"


@settings(deadline=None)
@given(st.text(max_size=200))
def test_the_length_of_any_text_can_be_told(text):
    count, _ = counter()
    assert 2 <= count(text) <= 2 + len(clean(text))


# ---- failure ---------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    plant(tmp_path / "mine", {f"rust/{n}.jpg": photo(n, size=(200, 200)) for n in range(60)})
    before = sorted(tmp_path.iterdir())

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, 1 << 17))

    command = [*TOOL, f"--source={tmp_path / 'mine'}", f"--out={tmp_path / 'alive'}"]
    ran = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", preexec_fn=small_files)
    assert ran.returncode == 2 and "Traceback" not in ran.stderr
    assert "could not write" in ran.stderr and "nothing was kept" in ran.stderr
    assert sorted(tmp_path.iterdir()) == before
