"""Photos that show how a model did: small copies for a report, and where the model looked."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agriclip_jax import page
from agriclip_jax.data import views
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import zeroshot
from agriclip_jax.evaluate.features import Features
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.evaluate.zeroshot import Result
from agriclip_jax.files import write_whole

SIDE = 240  # pixels, of a copy
SAMPLES, MISTAKES = 4, 6  # of a task
FOLDER = "pictures"


def images(task: Task, positions: Collection[int]) -> Iterator[tuple[int, Image.Image]]:
    """Some of a task's photos, decoded, in their order; one that cannot be is left out."""
    wanted = set(map(int, positions))
    for position, photo in enumerate(task.photos()):
        if position in wanted:
            try:
                yield position, views.decode(photo.image)
            except UserError:
                continue
        if position >= max(wanted, default=-1):
            return


def _file(task: Task, position: int, what: str = "") -> str:
    return f"{FOLDER}/{task.name}-{position}{what}.jpg"


def save(task: Task, positions: Collection[int], out: Path) -> dict[int, str]:
    """Writes small copies of some of a task's photos.

    Args:
      task: whose photos they are.
      positions: among all of its photos.
      out: the folder of a suite's records.

    Returns:
      position -> file, relative to `out`.

    Raises:
      UserError: a file cannot be written.
    """
    files = {}
    for position, image in images(task, positions):
        files[position] = _file(task, position)
        write_whole(out / files[position], page.jpeg(image, SIDE))
    return files


def pictures(model: Any, task: Task, seen: Features, result: Result, out: Path) -> dict[str, Any]:
    """Samples with their nearest classes and where the model looked, and the mistakes it was surest of.

    Args:
      model: an `inference.Model`, or anything with `attention`, `embed_texts`, `view`, `logit_scale`.
      task: what was asked.
      seen: its photos.
      result: of zero-shot classification; without one only samples are shown.
      out: the folder of a suite's records.

    Returns:
      `samples` and `mistakes`, each a list of {file, source, label, nearest: [[class, probability], ...]}; a sample
      has the file of its `attention` besides.

    Raises:
      UserError: a file cannot be written, or a photo cannot be read any more.
    """
    rows = np.random.default_rng(0).permutation(len(seen))[:SAMPLES]
    shown = rows
    if answers := result.answers:
        surest = np.argsort(-answers.confidence, kind="stable")
        wrong = np.flatnonzero(seen.labels >= 0)[surest[~answers.right[surest]][:MISTAKES]]
        shown = np.concatenate([rows, wrong])
        classes = zeroshot.class_embeddings(model, task.prompts())
        probabilities = zeroshot.probabilities(seen.embeddings[shown] @ classes.T, model.logit_scale)
    decoded = dict(images(task, seen.positions[shown]))
    entries = []
    for place, row in enumerate(shown):
        position = int(seen.positions[row])
        if position not in decoded:
            raise UserError(f"{seen.sources[row]} cannot be read any more; was it changed?")
        file = _file(task, position)
        entry = {"file": file, "source": seen.sources[row], "label": int(seen.labels[row]), "nearest": []}
        if answers:
            nearest = np.argsort(-probabilities[place], kind="stable")[:3]
            entry["nearest"] = [[int(i), round(float(probabilities[place, i]), 4)] for i in nearest]
        write_whole(out / file, page.jpeg(decoded[position], SIDE))
        if place < len(rows):
            view = views.eval_view(decoded[position], model.view)
            heads = np.asarray(model.attention(view[None]))[0]
            entry["attention"] = _file(task, position, "-attention")
            write_whole(out / entry["attention"], page.jpeg(page.overlay(view, heads.mean(axis=0)), SIDE))
        entries.append(entry)
    return {"samples": entries[: len(rows)], "mistakes": entries[len(rows) :]}
