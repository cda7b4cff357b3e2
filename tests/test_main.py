"""The command, end to end: what it writes, what it refuses, and that a stopped run continues to the same bits."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from agriclip_jax import inference, runs
from agriclip_jax import main as command
from agriclip_jax.checkpoint import Checkpoints
from agriclip_jax.data import pipeline
from agriclip_jax.data.records import Alive
from agriclip_jax.data.selection import select
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate import tasks

ROOT = Path(__file__).parent.parent


def arguments(workdir, data, **overrides):
    keys = tiny.SMALL | {"data.path": str(data), "log_every": "1", "checkpoint.every": "3", "checkpoint.keep": "9"}
    keys |= {k.replace("__", "."): str(v) for k, v in overrides.items()}
    return [f"--config={tiny.RECIPE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]


def rows(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def params(workdir, use="student"):
    return jax.device_get(inference.load(workdir, use=use).params)


def equal_bits(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert command.run(arguments(workdir, corpus)) == 0
    return workdir


def test_a_run_leaves_everything_it_promises(finished):
    names = {p.name for p in finished.iterdir()}
    assert names >= {
        "config.json",
        "environment.json",
        "classes.json",
        "data.json",
        "tokenizer.json",
        "parameters.txt",
        "metrics.jsonl",
        "evaluations.jsonl",
        "tensorboard",
        "checkpoints",
        "zeroshot.json",
        "report.html",
    }
    assert not any(name.endswith(".partial") for name in names)
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["device_count"] == 8 and environment["packages"]["jax"] == jax.__version__
    assert any((finished / "tensorboard").iterdir())


def test_metrics_have_each_step_once_with_the_promised_columns(finished):
    got = rows(finished)
    assert [row["step"] for row in got] == list(range(1, 9))
    wanted = {
        "step",
        "time",
        "loss",
        "loss/contrastive",
        "loss/distill",
        "lr",
        "grad_norm",
        "images_per_s",
        "input_wait",
    }
    assert all(wanted <= row.keys() for row in got)
    assert all(row["loss"] == pytest.approx(row["loss/contrastive"] + row["loss/distill"], rel=1e-5) for row in got)
    assert all(0 <= row["input_wait"] <= 1 for row in got)


def test_the_checkpoints_are_the_newest_and_the_best(finished):
    checkpoints = Checkpoints(finished / "checkpoints")
    assert checkpoints.latest() == 8 and checkpoints.best() == 8
    assert inference.load(finished, step="best").step == 8 and inference.load(finished, step=3).step == 3
    with pytest.raises(UserError, match=r"holds no checkpoint of step 4; it has: 3, 6, 8"):
        inference.load(finished, step=4)


def test_student_and_teacher_can_be_loaded_and_differ(finished, corpus):
    student, teacher = inference.load(finished), inference.load(finished, use="teacher")
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    a, b = student.embed_images(images), teacher.embed_images(images)
    np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1, rtol=1e-5)
    assert a.shape == b.shape == (5, 16) and not np.allclose(a, b)
    np.testing.assert_array_equal(student.embed_texts(["a leaf"]), teacher.embed_texts(["a leaf"]))
    assert student.embed_images(images[:0]).shape == (0, 16)


def test_a_finished_run_says_so_and_does_nothing(finished, corpus, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert command.run(arguments(finished, corpus)) == 0
    assert "is finished (8 steps)" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_a_damaged_record_of_the_run_is_one_line_that_names_it(finished, corpus, tmp_path, name):
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / name).write_text((workdir / name).read_text()[:40])
    with pytest.raises(UserError, match=f"{workdir / name} is damaged .*; restore it"):
        command.run(arguments(workdir, corpus))
    if name == "config.json":
        with pytest.raises(UserError, match=f"{workdir / name} is damaged"):
            inference.load(workdir)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{}"),
        ("config.json", None),
        ("data.json", "[]"),
        ("checkpoints/8/data/metadata", '{"x": 1}'),
        ("checkpoints/8/rest", None),
        ("checkpoints/8/metrics/metrics", "garbage"),
    ],
)
def test_a_damaged_workdir_is_one_line_that_names_what(finished, corpus, tmp_path, file, content):
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / "report.html").unlink()
    if (workdir / file).is_dir():
        shutil.rmtree(workdir / file)
    elif content is None:
        (workdir / file).unlink()
    else:
        (workdir / file).write_text(content)
    with pytest.raises(UserError, match=r"damaged|cannot be read") as error:
        command.run(arguments(workdir, corpus))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_rows_that_are_none_are_dropped_from_the_metrics(finished, corpus, tmp_path):
    workdir = interrupted(finished, tmp_path, 3)
    with (workdir / "metrics.jsonl").open("ab") as file:
        file.write(b'\n\xff\n{"loss": 1}\n3\n')
    assert command.run(arguments(workdir, corpus)) == 0
    assert [row["step"] for row in rows(workdir)] == list(range(1, 9))


@pytest.mark.parametrize(("name", "content"), [("config.json", "{}"), ("classes.json", "[1]")])
def test_predict_says_what_is_damaged_in_one_line(finished, tmp_path, name, content):
    workdir = shutil.copytree(finished, tmp_path / "run")
    (workdir / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        inference.load(workdir)
        tasks.known_classes(workdir)


def test_a_second_run_in_the_same_workdir_is_refused(finished, corpus, tmp_path):
    workdir = interrupted(finished, tmp_path, 3)
    with runs.claimed(workdir), pytest.raises(UserError, match=r"is in use by another run; wait for its end"):
        command.run(arguments(workdir, corpus))
    assert command.run(arguments(workdir, corpus)) == 0


def test_the_same_content_at_another_path_is_the_same_data(finished, corpus, tmp_path, capsys):
    moved = shutil.copytree(corpus, tmp_path / "elsewhere")
    assert command.run(arguments(finished, moved, log_every=2, data__threads=3)) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides,message",
    [
        ({"seed": 1}, r"holds another run: seed was 0, is now 1; set them back, or give another --workdir"),
        (
            {"batch_size": 8, "optimizer__learning_rate": 0.5},
            r"batch_size was 16, is now 8; optimizer.learning_rate was",
        ),
        ({"objectives__distill": 0.5}, r"objectives.distill was 1.0, is now 0.5"),
        ({"total_steps": 4}, r"is a run of 8 steps; config.total_steps=4 is fewer"),
        ({"total_steps": 12}, r"is a run of 8 steps; to go on to 12, add --extend"),
        ({"mesh": "data=3"}, r"config.mesh: 'data=3' asks for 3 devices, there are 8"),
        ({"batch_size": 12}, r"config.batch_size 12 is not divisible by data \* fsdp = 8"),
    ],
)
def test_what_may_not_change_is_named(finished, corpus, overrides, message):
    with pytest.raises(UserError, match=message):
        command.run(arguments(finished, corpus, **overrides))


def test_other_data_is_named(finished, tmp_path):
    from agriclip_jax.data import corpus

    corpus.build(tmp_path / "other", size=32, seed=5, count={"train": 2, "val": 1, "test": 1})
    with pytest.raises(UserError, match=r"the content of data\.path"):
        command.run(arguments(finished, tmp_path / "other"))


def interrupted(finished, tmp_path, step):
    """The workdir as a run that was killed just after `step` was saved would have left it."""
    workdir = shutil.copytree(finished, tmp_path / "interrupted")
    for name in ("zeroshot.json", "report.html"):
        (workdir / name).unlink()
    for folder in (workdir / "checkpoints").iterdir():
        if folder.name.isdigit() and int(folder.name) > step:
            shutil.rmtree(folder)
    with (workdir / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 9, "loss": 1')  # a row cut in writing
    return workdir


def test_a_stopped_run_continues_to_the_same_bits(finished, corpus, tmp_path):
    workdir = interrupted(finished, tmp_path, 3)
    assert command.run(arguments(workdir, corpus)) == 0
    assert equal_bits(params(workdir), params(finished))
    assert equal_bits(params(workdir, "teacher"), params(finished, "teacher"))
    assert [row["step"] for row in rows(workdir)] == list(range(1, 9))
    assert [row["loss"] for row in rows(workdir)] == [row["loss"] for row in rows(finished)]


class Asked(Checkpoints):
    """Checkpoints of a run that is asked to stop at a step: SIGTERM comes while the step is saved or evaluated."""

    at: int

    def save(self, state, position, *, score=None):
        super().save(state, position, score=score)
        if int(state.step) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def scores(workdir):
    lines = (workdir / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["step"], row["score"]) for row in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 8])
def test_a_run_asked_to_stop_where_it_evaluates_ends_with_the_same_evaluations_and_report(
    corpus, tmp_path, monkeypatch, capsys, at
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert command.run(arguments(whole, corpus, eval_every=4)) == 0
    monkeypatch.setattr(Asked, "at", at, raising=False)
    monkeypatch.setattr("agriclip_jax.stages.Checkpoints", Asked)
    assert command.run(arguments(stopped, corpus, eval_every=4)) == 0
    assert f"stopped; step {at if at == 8 else at + 1} is saved" in capsys.readouterr().out
    assert not (stopped / "report.html").exists()
    monkeypatch.setattr("agriclip_jax.stages.Checkpoints", Checkpoints)
    assert command.run(arguments(stopped, corpus, eval_every=4)) == 0
    assert (stopped / "report.html").is_file()
    assert scores(stopped) == scores(whole) and [step for step, _ in scores(whole)] == [4, 8]


def test_what_goes_wrong_after_training_began_is_a_failure_and_not_bad_input(corpus, tmp_path, monkeypatch):
    def full(*_, **__):
        raise UserError("could not write report.html: No space left on device")

    monkeypatch.setattr("agriclip_jax.report.write_report", full)
    with pytest.raises(RunFailure, match="could not write report") as error:
        command.run(arguments(tmp_path / "run", corpus, total_steps=2))
    assert error.value.status == 1


def test_tasks_of_slurm_that_cannot_find_each_other_are_one_line(corpus, tmp_path):
    slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_JOB_ID": "12"}
    run = subprocess.run(
        [sys.executable, "-m", "agriclip_jax.main", *arguments(tmp_path / "run", corpus)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | slurm,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.count("\n") == 1 and "start them with srun, or set SLURM_NTASKS=1" in run.stderr


def test_extending_says_that_the_schedule_changes_and_goes_on(finished, corpus, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "longer")
    assert command.run([*arguments(workdir, corpus, total_steps=10), "--extend"]) == 0
    assert "extending from 8 to 10 steps: the schedules are now those of 10 steps" in capsys.readouterr().out
    assert [row["step"] for row in rows(workdir)] == list(range(1, 11))
    assert json.loads((workdir / "config.json").read_text())["total_steps"] == 10


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(corpus, tmp_path):
    workdir = tmp_path / "diverges"
    huge = ("switch", 1.0, 1e39, 0.5)  # overflows float32 from the fifth step of eight on
    with pytest.raises(RunFailure, match=r"step 5: the loss or gradient of .* is not finite; the batch is in") as error:
        command.run(arguments(workdir, corpus, objectives__contrastive=huge))
    assert error.value.status == 1
    batch = np.load(next(workdir.glob("nonfinite-step5-*.npz")))
    assert batch["tokens"].shape == (16, 12) and batch["image/global"].dtype == np.uint8
    assert Checkpoints(workdir / "checkpoints").latest() == 3
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(params(workdir)))


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda d: d.mkdir() or (d / "thesis.txt").write_text("mine"), r"is not empty and is no run"),
        (lambda d: d.write_text("mine"), r"is a file; give another --workdir"),
    ],
)
def test_a_workdir_that_is_something_else_is_left_alone(corpus, tmp_path, make, message):
    workdir = tmp_path / "mine"
    make(workdir)
    before = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match=message):
        command.run(arguments(workdir, corpus))
    assert before == sorted(p.name for p in tmp_path.rglob("*"))


@pytest.mark.parametrize("written", range(len(runs.IDENTITY)))
def test_a_first_start_killed_while_it_wrote_who_it_is_starts_again(finished, corpus, tmp_path, written):
    workdir = tmp_path / "killed"
    workdir.mkdir()
    for name in runs.IDENTITY[:written]:
        shutil.copy(finished / name, workdir / name)
    (workdir / f"{runs.IDENTITY[written]}.partial").write_text('{"half')
    config, alive = tiny.config(), Alive.open(corpus)
    classes, data = runs.what_was_seen(config, alive, None, {})
    assert not runs.is_finished(workdir, config, data, extend=False, say=print)
    tokenizer = runs.tokenizer_of(workdir, config, {}, select(alive, "train"), lambda line: None)
    runs.prepare(workdir, config, tokenizer, classes, data)
    assert sorted(p.name for p in workdir.iterdir()) == sorted(runs.IDENTITY)


def test_another_tokenizer_is_another_run(finished, corpus, tmp_path):
    shutil.copy(finished / "tokenizer.json", tmp_path / "mine.json")
    with pytest.raises(UserError, match=r"holds another run: text.tokenizer was '', is now .*mine.json"):
        command.run(arguments(finished, corpus, text__tokenizer=tmp_path / "mine.json"))


def test_a_tokenizer_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config.text.tokenizer: there is no file /no.json"):
        runs.tokenizer_of(tmp_path, tiny.config(text__tokenizer="/no.json"), {}, None, print)


def test_captions_that_are_cut_are_counted_and_said(corpus, tmp_path, capsys):
    chosen = select(Alive.open(corpus), "train")
    runs.tokenizer_of(tmp_path, tiny.config(text__context_length=4), {}, chosen, print)
    count = len(pipeline.captions(chosen.paired, ("template",)))
    assert capsys.readouterr().out == (
        f"captions: {count} of {count} are longer than config.text.context_length=4 and are cut\n"
    )


def test_the_three_options_of_several_processes_go_together(capsys):
    with pytest.raises(SystemExit) as ended:
        command.run(["--config=configs/alive.py", "--coordinator=127.0.0.1:1"])
    assert ended.value.code == 2
    assert "--coordinator, --num_processes and --process_id go together" in capsys.readouterr().err


def test_an_unwritable_workdir_is_one_clear_line(corpus):
    with pytest.raises(UserError, match=r"cannot write to /proc/nothing/run .* give another --workdir"):
        command.run(arguments("/proc/nothing/run", corpus))


def test_missing_shards_are_named(corpus, tmp_path):
    broken = shutil.copytree(corpus, tmp_path / "alive")
    next(broken.glob("*train*array_record*")).unlink()
    with pytest.raises(UserError, match=r"train"):
        command.run(arguments(tmp_path / "run", broken))
    assert not (tmp_path / "run").exists()


def test_an_unknown_argument_is_refused_with_status_2():
    run = subprocess.run(
        [sys.executable, "-m", "agriclip_jax.main", "--config=configs/alive.py", "--wordkir=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2 and "unknown argument '--wordkir=x'" in run.stderr


def test_a_user_error_is_one_line_on_stderr_with_status_2():
    run = subprocess.run(
        [sys.executable, "-m", "agriclip_jax.main", "--config=configs/alive.py", "--config.sede=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert run.stderr == "error: --config.sede: unknown key; did you mean 'seed'?\n"
