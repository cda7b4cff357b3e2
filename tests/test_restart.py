"""Real processes: stopped by SIGTERM, Ctrl-C and kill -9, on one, two and eight devices and on two processes."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from agriclip_jax import inference

ROOT = Path(__file__).parent.parent
# Those of the tests' own process; each process here says how many devices it has.
FLAGS = re.sub(r"--xla_force_host_platform_device_count=\d+", "", os.environ["XLA_FLAGS"])

pytestmark = pytest.mark.slow


def command(workdir, data, *more, recipe=tiny.RECIPE, without=()):
    """The command of a run of 24 steps; keys of the miniature that start with one of `without` are the recipe's own."""
    keys = {key: value for key, value in tiny.SMALL.items() if not key.startswith(tuple(without))}
    keys |= {"total_steps": "24", "data.path": str(data), "log_every": "1", "checkpoint.every": "4"}
    # At the miniature's own rate rounding alone grows to 1e-5 of a loss within twelve steps, on some processors.
    keys |= {"checkpoint.keep": "99", "optimizer.learning_rate": "0.003"}
    values = [f"--config.{key}={value}" for key, value in keys.items()]
    return [
        sys.executable,
        "-m",
        "agriclip_jax.main",
        f"--config={recipe}",
        f"--workdir={workdir}",
        *values,
        *more,
    ]


def start(workdir, data, *more, devices=1, recipe=tiny.RECIPE, without=(), **variables):
    flags = f"{FLAGS} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags} | variables
    log = Path(workdir).with_suffix(f".{len(more)}.log").open("a+", encoding="utf-8")
    process = subprocess.Popen(
        command(workdir, data, *more, recipe=recipe, without=without),
        cwd=ROOT,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    process.log = log
    return process


def end(process, status=0):
    code = process.wait(timeout=400)
    process.log.seek(0)
    text = process.log.read()
    assert code == status, text[-3000:]
    return text


def rows(workdir):
    try:
        lines = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def wait_for_step(process, workdir, step):
    while not (done := rows(workdir)) or done[-1]["step"] < step:
        assert process.poll() is None, end(process)
        time.sleep(0.02)


def losses(workdir):
    got = rows(workdir)
    assert [row["step"] for row in got] == list(range(1, 25))
    return np.array([row["loss"] for row in got])


def params(workdir):
    return jax.tree.leaves(jax.device_get(inference.load(workdir).params))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    """A run on one device that was never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    end(start(workdir, corpus))
    return workdir


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_stopped_anywhere_continues_to_the_bits_of_one_that_was_not(whole, corpus, tmp_path, number):
    workdir = tmp_path / "stopped"
    process = start(workdir, corpus)
    wait_for_step(process, workdir, 9)
    process.send_signal(number)
    if number == signal.SIGKILL:
        process.wait(timeout=60)
    else:
        text = end(process)
        step = rows(workdir)[-1]["step"]
        assert f"stopped; step {step} is saved" in text
        assert f"To continue:\n  {sys.executable} -m agriclip_jax.main" in text
    assert rows(workdir)[-1]["step"] < 24, "the run ended before it could be stopped"
    assert "continuing" in end(start(workdir, corpus))
    np.testing.assert_array_equal(losses(workdir), losses(whole))
    for a, b in zip(params(workdir), params(whole), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_full_disk_stops_the_run_with_one_line_and_with_room_it_ends_as_one_that_was_not(whole, corpus, tmp_path):
    workdir = tmp_path / "full"
    room = 60_000  # bytes of a file: enough for everything but a checkpoint
    run = subprocess.run(
        command(workdir, corpus),
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": FLAGS, "AGRICLIP_CACHE": str(tmp_path / "cache")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith(f"error: a checkpoint could not be written to {workdir}/checkpoints")
    end(start(workdir, corpus))
    np.testing.assert_array_equal(losses(workdir), losses(whole))


def continued(source, tmp_path, step):
    """A copy of a finished run as it was when `step` had just been saved."""
    workdir = shutil.copytree(source, tmp_path / "moved")
    for name in ("zeroshot.json", "report.html"):
        (workdir / name).unlink()
    for folder in (workdir / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)
    return workdir


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes(workdir, data, *more, **options):
    port = free_port()
    job = (*more, f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    return [start(workdir, data, *job, f"--process_id={i}", devices=2, **options) for i in range(2)]


def test_two_processes_find_each_other_under_slurm(whole, corpus, tmp_path):
    job = {"SLURM_JOB_ID": str(free_port()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    pair = [
        start(tmp_path / "pair", corpus, devices=2, **job, SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(2)
    ]
    first, _ = map(end, pair)
    assert "on 4 x cpu (data=4)" in first
    np.testing.assert_allclose(losses(tmp_path / "pair")[:12], losses(whole)[:12], rtol=1e-5)


def test_eight_devices_continue_a_run_of_one_and_one_continues_that_of_eight(whole, corpus, tmp_path):
    workdir = continued(whole, tmp_path, 8)
    end(start(workdir, corpus, "--config.mesh=data=2,fsdp=2,tensor=2", devices=8))
    np.testing.assert_allclose(losses(workdir)[:12], losses(whole)[:12], rtol=1e-5)
    alone = continued(workdir, tmp_path / "back", 16)
    end(start(alone, corpus))
    np.testing.assert_allclose(losses(alone)[:20], losses(workdir)[:20], rtol=1e-5)


def test_two_processes_agree_with_one_and_one_continues_what_two_began(whole, corpus, tmp_path):
    workdir = tmp_path / "pair"
    for process in two_processes(workdir, corpus):
        end(process)
    np.testing.assert_allclose(losses(workdir)[:12], losses(whole)[:12], rtol=1e-5)
    alone = continued(workdir, tmp_path, 8)
    assert "continuing" in end(start(alone, corpus))
    np.testing.assert_allclose(losses(alone)[:12], losses(workdir)[:12], rtol=1e-5)
    back = continued(whole, tmp_path / "back", 8)
    for process in two_processes(back, corpus):
        end(process)
    np.testing.assert_allclose(losses(back)[:12], losses(whole)[:12], rtol=1e-5)


def test_two_processes_look_at_the_photos_of_a_locked_tower_together_as_one_does_alone(whole, corpus, tmp_path):
    options = {"recipe": "configs/lit.py", "without": ("objectives", "image.", "embed")}
    tower = f"--config.init.image={whole}"
    end(start(tmp_path / "alone", corpus, tower, AGRICLIP_CACHE=str(tmp_path / "one"), **options))
    for process in two_processes(tmp_path / "pair", corpus, tower, AGRICLIP_CACHE=str(tmp_path / "two"), **options):
        end(process)
    (one,), (two,) = ([*(tmp_path / name / "features").glob("*/*.npy")] for name in ("one", "two"))
    np.testing.assert_allclose(np.load(two), np.load(one), atol=1e-5)
    np.testing.assert_allclose(losses(tmp_path / "pair")[:12], losses(tmp_path / "alone")[:12], rtol=1e-5)


def test_two_processes_align_as_one_does(corpus, tmp_path):
    options = {"recipe": "configs/agriclip.py", "without": ("objectives",)}
    end(start(tmp_path / "alone", corpus, **options))
    for stage in ("clip", "distill"):
        shutil.copytree(tmp_path / "alone" / stage, tmp_path / "pair" / stage)
    for process in two_processes(tmp_path / "pair", corpus, **options):
        end(process)
    one, two = (json.loads((tmp_path / name / "align" / "aligner.json").read_text()) for name in ("alone", "pair"))
    assert two["strength"] == one["strength"] and two["r2"] == pytest.approx(one["r2"], abs=1e-5)
    for a, b in zip(params(tmp_path / "pair" / "align"), params(tmp_path / "alone" / "align"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_sigterm_to_one_of_two_processes_stops_both_at_the_same_saved_step(corpus, tmp_path):
    workdir = tmp_path / "preempted"
    pair = two_processes(workdir, corpus)
    wait_for_step(pair[0], workdir, 5)
    pair[1].send_signal(signal.SIGTERM)
    texts = [end(process) for process in pair]
    step = rows(workdir)[-1]["step"]
    assert step < 24 and f"step {step} is saved" in texts[0]
    assert (workdir / "checkpoints" / str(step)).is_dir()
