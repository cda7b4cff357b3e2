"""The benchmark runs and its figures hang together; how fast it is belongs in a note, not in a test."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from agriclip_jax.data.corpus import KINDS

ROOT = Path(__file__).parent.parent
KEYS = [f"--config.{key}={value}" for key, value in tiny.SMALL.items()]


def bench(*arguments, **environment):
    command = [sys.executable, "tools/bench.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | environment)


def test_the_step_is_timed_beside_the_matmul_peak(tmp_path):
    told = bench("step", *KEYS, "--repeats=2", f"--out={tmp_path / 'step.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "step.json").read_text())
    assert figures["images/s"] == pytest.approx(16 / figures["seconds/step (median)"])
    assert figures["share of the matmul peak"] == pytest.approx(
        figures["GFLOP/s of the step"] / figures["GFLOP/s of a matmul"]
    )
    assert figures["GFLOP/image"] > 0 and figures["temporary memory, MB/device"] > 0
    assert all(name in told.stdout for name in figures)


def test_transport_is_timed_beside_softmax_in_turns(tmp_path):
    small = [key for key in KEYS if not key.startswith("--config.objectives")]
    sizes = ["--config.batch_size=16", "--config.data.unpaired_batch=8"]
    told = bench("transport", *small, *sizes, "--repeats=6", f"--out={tmp_path / 'transport.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "transport.json").read_text())
    for by in ("by the clock", "by the cores' time"):
        low, high = map(float, figures[f"95 % interval, {by}"].split(", "))
        assert low - 1e-3 <= figures[f"transport / softmax, {by}"] <= high + 1e-3
    assert figures["images/step"] == "16 paired, 8 unpaired"
    assert figures["temporary memory, MB/device, transport"] > 0


@pytest.mark.parametrize(
    ("what", "one", "others"), [("joint", "joint", "contrastive + distill"), ("locked", "kept", "computed")]
)
def test_recipes_take_turns_and_their_ratio_is_told(tmp_path, what, one, others):
    small = [key for key in KEYS if what == "joint" or not key.startswith("--config.objectives")]
    told = bench(what, *small, "--repeats=3", f"--out={tmp_path / 'ratio.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "ratio.json").read_text())
    assert figures[f"{one} / {others}, by the clock"] > 0
    assert not any("interval" in name for name in figures)  # of three turns none holds 95 %


def test_the_aligner_in_closed_form_is_timed_beside_sgd_on_the_same_features(tmp_path):
    told = bench("aligner", "--count=1500", "--repeats=1", f"--out={tmp_path / 'aligner.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "aligner.json").read_text())
    assert figures["sgd / ridge, seconds"] == pytest.approx(figures["seconds, sgd"] / figures["seconds, ridge"])
    assert figures["held-out R2, ridge"] >= figures["held-out R2, sgd"] - 0.01 > 0


def test_the_input_of_both_streams_is_timed(tmp_path, corpus):
    small = [key for key in KEYS if not key.startswith("--config.objectives")]
    given = [*small, f"--config.data.path={corpus}", "--config.data.unpaired_batch=8", "--repeats=1"]
    told = bench("input", "--config=configs/sclip.py", *given)
    assert told.returncode == 0, told.stderr
    assert "images/s, 1 thread" in told.stdout


def test_the_input_is_timed_for_one_thread_and_for_all(tmp_path, corpus):
    told = bench("input", *KEYS, f"--config.data.path={corpus}", "--repeats=1", f"--out={tmp_path / 'input.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "input.json").read_text())
    assert figures["images/s, 1 thread"] > 0 and figures["images/s per core, 1 thread"] > 0


def test_drawing_the_corpus_is_timed_for_one_core(tmp_path):
    told = bench("corpus", "--repeats=1", f"--out={tmp_path / 'corpus.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "corpus.json").read_text())
    assert figures["images/s per core"] > 0 and figures["classes"] == len(KINDS)


def test_a_build_is_timed_beside_a_plain_loop(tmp_path):
    told = bench("build", "--repeats=1", "--count=30", f"--out={tmp_path / 'build.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "build.json").read_text())
    for side in ("96 px", "1024 px"):
        assert figures[f"{side}: photos"] == 30
        speeds = [figures[f"{side}: {what}, images/s"] for what in ("plain loop", "build")]
        assert figures[f"{side}: build / plain loop, by the clock"] == pytest.approx(speeds[0] / speeds[1])


def test_the_memory_of_a_build_is_measured_for_two_sizes(tmp_path):
    told = bench("memory", "--count=1100", f"--out={tmp_path / 'memory.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "memory.json").read_text())
    assert figures["MB for 1,000 photos"] > 20 and figures["MB for 1,100 photos"] > 20


def test_all_planted_duplicates_are_found(tmp_path):
    told = bench("duplicates", "--count=20000", f"--out={tmp_path / 'duplicates.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "duplicates.json").read_text())
    assert figures["planted pairs found"] == figures["pairs planted"] == figures["pairs"] == 200
    assert figures["hashes that stay"] == 20_000 - 200


@pytest.mark.slow
def test_evaluation_is_timed_beside_the_forward_pass_and_its_memory_is_measured(tmp_path):
    told = bench("eval", "--repeats=1", "--count=64", f"--out={tmp_path / 'eval.json'}", *KEYS)
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "eval.json").read_text())
    speeds = figures["photos/s, files to features"], figures["images/s of the bare forward pass"]
    assert figures["share of the bare forward pass"] == pytest.approx(speeds[0] / speeds[1])
    assert (figures["zeroshot: classes"], figures["retrieval: texts"]) == (12, 320)
    assert figures["retrieval: MB"] > 50


@pytest.mark.slow
def test_importing_a_vit_b16_is_timed_beside_reading_its_file(tmp_path):
    one_device = {"XLA_FLAGS": ""}  # each of several would hold the whole model
    told = bench("import", "--repeats=1", f"--out={tmp_path / 'import.json'}", **one_device)
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "import.json").read_text())
    assert figures["MB of parameters"] == pytest.approx(598.4, abs=0.1)  # 149.6 million, in float32
    assert figures["seconds beyond reading"] == pytest.approx(
        figures["seconds, file to devices"] - figures["seconds to read the file"]
    )
    assert figures["MB that the process grew by"] < 2 * figures["MB of parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["step", "--repeats=0"], "--repeats=0 is less than 1"),
        (["step", "--config.batchsize=3"], "did you mean 'batch_size'"),
        (["build", "--source=nowhere"], "--source=nowhere is no folder"),
        (["memory", "--kount=3"], "unknown argument --kount=3"),
        (["compile"], "--topology=: give one of v4, v5e, v5p, v6e and its shape"),
        (["compile", "--topology=v9:2x2"], "--topology=v9:2x2: give one of v4, v5e"),
        pytest.param(
            ["compile", "--topology=v5e:2x2"],
            "the compiler is libtpu (pip install libtpu)",
            marks=pytest.mark.skipif(bool(importlib.util.find_spec("libtpu")), reason="libtpu is here"),
        ),
        (["transport", "--config=configs/sclip.py:mode=supervised"], "give config.objectives.sclip a weight"),
        (["joint", "--config=configs/alive.py:photos"], "joint needs contrastive and distill"),
        (
            ["step", "--out=README.md/x.json", "--repeats=1", *KEYS],
            "README.md, where x.json should be made",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    told = bench(*arguments)
    assert told.returncode == 2 and message in told.stderr and told.stderr.count("\n") == 1
