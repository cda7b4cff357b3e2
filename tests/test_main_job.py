"""The main job as the README's first command runs it: what it promises of the model that comes out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from agriclip_jax.data import corpus, views
from agriclip_jax.data.records import Alive
from agriclip_jax.evaluate import tasks

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """`zeroshot.json` of the default run, with XLA as a user has it."""
    workdir = tmp_path_factory.mktemp("runs") / "alive"
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "NPROC")}
    command = [sys.executable, "-m", "agriclip_jax.main", "--config=configs/alive.py", f"--workdir={workdir}"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert f"report: {workdir / 'report.html'}" in run.stdout.replace("\n", "")
    return json.loads((workdir / "zeroshot.json").read_text(encoding="utf-8"))


def mean_of(results, group):
    return next(mean for mean in results["means"] if mean["group"] == group)


def test_the_mean_over_its_tasks_is_five_times_chance(results):
    mean = mean_of(results, tasks.EMBEDDED)
    assert mean["tasks"] >= 6
    assert mean["top1"] >= 5 * mean["chance"], mean


def test_combinations_never_seen_in_training_are_known_at_three_times_chance(results):
    mean = mean_of(results, tasks.UNSEEN)
    assert mean["top1"] >= 3 * mean["chance"], mean


def test_colour_alone_reaches_at_most_half_of_it(results):
    """Nearest centroid of the histograms of 4 x 4 x 4 colours of all training images, on the same test images."""
    alive = Alive.open(corpus.ensure())
    scores = []
    for train, test in zip(tasks.from_alive(alive, "train"), tasks.from_alive(alive, "test"), strict=True):
        if test.group != tasks.EMBEDDED:
            continue
        sums = np.zeros((len(train.class_names), 64))
        for photo in train.photos():
            sums[photo.label] += histogram(photo)
        centroids = sums / sums.sum(1, keepdims=True)
        found = [np.square(centroids - histogram(photo)).sum(1).argmin() == photo.label for photo in test.photos()]
        scores.append(np.mean(found))
    assert len(scores) == mean_of(results, tasks.EMBEDDED)["tasks"]
    assert np.mean(scores) <= mean_of(results, tasks.EMBEDDED)["top1"] / 2


def histogram(photo):
    """Shares of an image's pixels in 64 boxes of colour."""
    pixels = views.load_view(photo.image, views.EvalView(64)).reshape(-1, 3) // 64
    return np.bincount(pixels @ np.array([16, 4, 1]), minlength=64) / len(pixels)
