"""Zero-shot classification: class names in, how often the model's nearest name is the right one out.

A class is the mean of its prompts' embeddings; an image belongs to the class of largest cosine. Nothing is fitted.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agriclip_jax.data import views
from agriclip_jax.data.records import parallel_map
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.files import write_whole

ORDER = "normalise-then-mean"  # CLIP's: every prompt's embedding has length 1 before the mean, and the mean again
Z95 = 1.959963984540054  # the standard normal quantile of a two-sided 95 % interval


class Embedder(Protocol):
    """What evaluation needs of a model; `inference.Model` is one, training passes its own live one."""

    image_size: int
    logit_scale: float

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> float32 [n, d], L2-normalised."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """-> float32 [n, d], L2-normalised."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """The scores of one task over its `images` readable images; shares in [0, 1].

    Attributes:
      images: how many images were scored.
      chance: 1 / number of classes.
      top1: share of images whose nearest class is theirs.
      top5: share whose class is among the nearest five; None with five classes or fewer.
      mean_per_class: mean of `recall` over the classes that have images.
      interval: 95 % Wilson interval of `top1`: what drawing other images could have given.
      recall: float64 [classes]; nan for a class without images.
      confusion: int64 [classes, classes]; row: the true class, column: the predicted one.
    """

    images: int
    chance: float
    top1: float
    top5: float | None
    mean_per_class: float
    interval: tuple[float, float]
    recall: np.ndarray
    confusion: np.ndarray


@dataclass(frozen=True, eq=False)
class Result:
    """One task's outcome.

    Attributes:
      task: what was asked.
      metrics: None when the task cannot be scored.
      reason: why not; "" when it was scored.
      unreadable: (source, why) of images that were left out of every number.
    """

    task: Task
    metrics: Metrics | None
    reason: str = ""
    unreadable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Mean:
    """The mean over the scored tasks of one group, every task with the same weight; shares in [0, 1].

    `interval` combines the tasks' own intervals (MOVER, Zou & Donner 2008): other images of the same tasks.
    """

    group: str
    tasks: int
    images: int
    chance: float
    top1: float
    mean_per_class: float
    interval: tuple[float, float]


def class_embeddings(model: Embedder, prompts: Sequence[Sequence[str]]) -> np.ndarray:
    """One embedding per class, the normalised mean of its prompts' normalised embeddings.

    Args:
      model: anything with `embed_texts`.
      prompts: for each class at least one.

    Returns:
      float64 [classes, d], L2-normalised.
    """
    texts = list(dict.fromkeys(text for of_class in prompts for text in of_class))
    row = {text: i for i, text in enumerate(texts)}
    embeddings = _finite(model.embed_texts(texts), "text")
    means = np.stack([embeddings[[row[text] for text in of_class]].mean(axis=0) for of_class in prompts])
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)


def embed_photos(
    model: Embedder,
    photos: Iterable[bytes | Exception],
    *,
    batch_size: int = 128,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Embeds photos in one pass; the next ones are decoded in threads meanwhile.

    Args:
      model: anything with `embed_images` and `image_size`.
      photos: encoded photos; an exception stands for one that could not be read.
      batch_size: photos a call of the model; the last batch is as short as it comes.
      progress: called with the number of photos done since the last call.

    Returns:
      float64 [n, d] embeddings of the readable photos, int64 [n] their positions, and {position: why} of the others.
    """

    def view(photo: bytes | Exception) -> np.ndarray | str:
        if isinstance(photo, Exception):
            return getattr(photo, "strerror", None) or str(photo)
        try:
            return views.load_view(photo, model.image_size)
        except UserError as error:
            return str(error)

    embeddings, pending, kept, unreadable = [], [], [], {}

    def embed_pending() -> None:
        if pending:
            embeddings.append(_finite(model.embed_images(np.stack(pending)), "image"))
            pending.clear()

    for position, pixels in enumerate(parallel_map(view, photos)):
        if isinstance(pixels, str):
            unreadable[position] = pixels
        else:
            kept.append(position)
            pending.append(pixels)
        if len(pending) == batch_size:
            embed_pending()
        progress(1)
    embed_pending()
    return np.concatenate(embeddings or [np.zeros((0, 0))]), np.array(kept, np.int64), unreadable


def score(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """The metrics of a matrix of scores.

    Of equal scores the class that comes first wins, in the prediction as in the first five.

    Args:
      scores: float [n, classes], larger is nearer; n and classes at least 1.
      labels: int [n], each below the number of classes.
    """
    count, classes = scores.shape
    true = scores[np.arange(count), labels][:, None]
    earlier = np.arange(classes)[None] < labels[:, None]
    rank = ((scores > true) | ((scores == true) & earlier)).sum(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, scores.argmax(axis=1)), 1)
    of_class = confusion.sum(axis=1)
    recall = np.where(of_class > 0, np.diag(confusion) / np.maximum(of_class, 1), np.nan)
    hits = int((rank == 0).sum())
    return Metrics(
        images=count,
        chance=1 / classes,
        top1=hits / count,
        top5=float((rank < 5).mean()) if classes > 5 else None,
        mean_per_class=float(np.nanmean(recall)),
        interval=wilson(hits, count),
        recall=recall,
        confusion=confusion,
    )


def probabilities(cosines: np.ndarray, logit_scale: float) -> np.ndarray:
    """softmax(logit_scale * cosine) over the last axis: what the model, by its own temperature, would bet."""
    odds = np.exp(logit_scale * (cosines - cosines.max(axis=-1, keepdims=True)))
    return odds / odds.sum(axis=-1, keepdims=True)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927): closed form, and honest at 0 and at 1."""
    share = hits / count
    centre = share + Z95**2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    low, high = ((centre + sign * half) / (1 + Z95**2 / count) for sign in (-1, 1))
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


def evaluate(
    model: Embedder,
    tasks: Iterable[Task],
    *,
    batch_size: int = 128,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Result]:
    """Scores each task; one that cannot be scored comes back with the reason.

    Args:
      model: anything that is an `Embedder`.
      tasks: as from `tasks.load_tasks`.
      batch_size: photos a call of the model.
      progress: called with the number of photos done since the last call.

    Raises:
      RunFailure: the model gave an embedding that is not finite.
    """
    return [_evaluate(model, task, batch_size, progress) for task in tasks]


def _evaluate(model: Embedder, task: Task, batch_size: int, progress: Callable[[int], None]) -> Result:
    if len(task.class_names) < 2 or not task.count:
        progress(task.count)
        one = f"one class only ({', '.join(task.class_names)}), so every answer would be right"
        return Result(task, None, one if task.count else f"no image in split {task.split!r}", task.unreadable)
    labels, sources = [], []

    def images() -> Iterator[bytes]:
        for photo in task.photos():
            labels.append(photo.label)
            sources.append(photo.source)
            yield photo.image

    embeddings, kept, errors = embed_photos(model, images(), batch_size=batch_size, progress=progress)
    unreadable = (*task.unreadable, *((sources[position], why) for position, why in errors.items()))
    if not len(kept):
        return Result(task, None, "no readable image", unreadable)
    scores = embeddings @ class_embeddings(model, task.prompts()).T
    return Result(task, score(scores, np.array(labels)[kept]), unreadable=unreadable)


def means(results: Iterable[Result]) -> list[Mean]:
    """The mean of each group, in order of appearance; tasks that were not scored are in none."""
    groups: dict[str, list[Metrics]] = {}
    for result in results:
        if result.metrics:
            groups.setdefault(result.task.group, []).append(result.metrics)
    return [_mean(group, metrics) for group, metrics in groups.items()]


def _mean(group: str, metrics: list[Metrics]) -> Mean:
    top1 = np.array([m.top1 for m in metrics])
    low, high = np.array([m.interval for m in metrics]).T
    mean, count = float(top1.mean()), len(metrics)
    return Mean(
        group=group,
        tasks=count,
        images=sum(m.images for m in metrics),
        chance=float(np.mean([m.chance for m in metrics])),
        top1=mean,
        mean_per_class=float(np.mean([m.mean_per_class for m in metrics])),
        interval=(
            mean - float(np.linalg.norm(top1 - low)) / count,
            mean + float(np.linalg.norm(high - top1)) / count,
        ),
    )


def show(results: Sequence[Result]) -> None:
    """Prints the table: tasks by group, each group's mean under it, then what was not scored; shares in per cent."""
    from rich.markup import escape

    console, table = screen()
    table.add_column("task", overflow="fold")
    for column in ("images", "classes", "chance", "top-1", "mean per class", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=" " not in column)
    for mean in means(results):
        table.add_section()
        for result in results:
            if result.metrics and result.task.group == mean.group:
                table.add_row(escape(result.task.name), *_cells(result.metrics, len(result.task.class_names)))
        table.add_row(f"mean, {escape(mean.group)} ({mean.tasks})", *_cells(mean, ""), style="bold")
    console.print(table)
    for result in results:
        if not result.metrics:
            console.print(f"not scored: {escape(result.task.name)}, {escape(result.reason)}", soft_wrap=True)
        if result.unreadable:
            source, why = result.unreadable[0]
            left_out = f"{len(result.unreadable)} unreadable, left out, such as {source}: {why}"
            console.print(f"{escape(result.task.name)}: {escape(left_out)}", soft_wrap=True)


def screen():
    """A `rich` console and an empty table for it, in the project's style."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 110))  # a file has no width that names must fit
    return console, Table(box=SIMPLE, pad_edge=False, header_style="")


def _cells(scored: Metrics | Mean, classes: int | str) -> tuple[str, ...]:
    low, high = scored.interval
    shares = (scored.chance, scored.top1, scored.mean_per_class)
    return (
        str(scored.images),
        str(classes),
        *(f"{100 * share:.1f}" for share in shares),
        f"{100 * low:.1f} – {100 * high:.1f}",
    )


def as_json(results: Sequence[Result], model: Any) -> dict[str, Any]:
    """What a result file says: enough to compute every number again.

    Each entry of `results` has CLIP_benchmark's keys (`dataset, model, pretrained, task, language, metrics`), and
    beside them ours.

    Args:
      results: as from `evaluate`.
      model: an `inference.Model`, or anything with its `workdir`, `step`, `use`, `code_version`.
    """
    checkpoint = {"workdir": str(model.workdir), "step": int(model.step), "use": model.use}
    identity = {"model": Path(model.workdir).name, "pretrained": f"step {model.step}, {model.use}"}
    return {
        "checkpoint": checkpoint,
        "code_version": model.code_version,
        "image_size": int(model.image_size),
        "prompts": {"order": ORDER},
        "interval": "Wilson, 95 %",
        "means": [vars(mean) for mean in means(results)],
        "results": [_record(result, identity) for result in results],
    }


def _record(result: Result, identity: dict[str, str]) -> dict[str, Any]:
    task, scored = result.task, result.metrics
    record = {
        "dataset": task.name,
        **identity,
        "task": "zeroshot_classification",
        "language": "en",
        "metrics": None,
        "group": task.group,
        "domain": task.domain,
        "split": task.split,
        "class_keys": list(task.class_keys),
        "class_names": list(task.class_names),
        "class_phrases": list(task.phrases),
        "templates": list(task.templates),
        "unreadable": [{"source": source, "why": why} for source, why in result.unreadable],
    }
    if not scored:
        return {**record, "not_scored": result.reason}
    return {
        **record,
        "metrics": {"acc1": scored.top1, "acc5": scored.top5, "mean_per_class_recall": scored.mean_per_class},
        "images": scored.images,
        "images_per_class": scored.confusion.sum(axis=1).tolist(),
        "chance": scored.chance,
        "interval": list(scored.interval),
        "recall": [None if math.isnan(share) else share for share in scored.recall],
        "confusion": scored.confusion.tolist(),
    }


def write(results: Sequence[Result], path: Path | str, model: Any) -> None:
    """Writes `as_json` to `path`, all of it or nothing.

    Raises:
      UserError: the file cannot be written.
    """
    text = json.dumps(as_json(results, model), indent=1, ensure_ascii=False, allow_nan=False)
    # A row of numbers becomes one line; no string matches, for a string in JSON holds no newline.
    text = re.sub(r"\[\n([-+.,\deEnul\s]+)\]", lambda row: f"[{' '.join(row[1].split())}]", text)
    write_whole(path, text + "\n")


def _finite(embeddings: np.ndarray, kind: str) -> np.ndarray:
    if not np.isfinite(embeddings).all():
        raise RunFailure(f"the model gave {kind} embeddings that are not finite: its parameters are damaged")
    return np.asarray(embeddings, np.float64)
