"""Zero-shot classification: class names in, how often the model's nearest name is the right one out.

A class is the mean of its prompts' embeddings; an image belongs to the class of largest cosine. Nothing is fitted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agriclip_jax.evaluate import features, measures
from agriclip_jax.evaluate.features import Embedder, Features
from agriclip_jax.evaluate.measures import Answers, Scores
from agriclip_jax.evaluate.statistics import mean_of_shares
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.evaluate.terminal import screen
from agriclip_jax.files import write_json

# How the prompts of a class become one embedding. CLIP's own gives every prompt the same weight; GeoRSCLIP and AgriCLIP
# give a longer embedding more.
ORDERS = ("normalise-then-mean", "mean-then-normalise")

Prompts = Sequence[Sequence[str]]  # for each class its prompts


@dataclass(frozen=True, eq=False)
class Result:
    """One task's outcome.

    Attributes:
      task: what was asked.
      metrics: None when the task cannot be scored.
      answers: what the scores are made of; None likewise.
      reason: why not; "" when it was scored.
      unreadable: (source, why) of images that were left out of every number.
      sources: paths of the images, parallel to the answers.
      details: by other prompts, calibration, open set, ranks; ready for JSON.
    """

    task: Task
    metrics: Scores | None
    answers: Answers | None = None
    reason: str = ""
    unreadable: tuple[tuple[str, str], ...] = ()
    sources: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


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
    macro_f1: float
    interval: tuple[float, float]


def class_embeddings(model: Embedder, prompts: Prompts, order: str = ORDERS[0]) -> np.ndarray:
    """One embedding per class, the normalised mean of its prompts' embeddings.

    Args:
      model: anything with `embed_texts`.
      prompts: for each class at least one.
      order: of `ORDERS`: whether each prompt's embedding has length 1 before the mean.

    Returns:
      float64 [classes, d], L2-normalised.
    """
    return _embedded(model, [prompts])(prompts, order)


def _embedded(model: Embedder, kinds: Iterable[Prompts]) -> Callable[[Prompts, str], np.ndarray]:
    """`class_embeddings` of prompts among these, whose texts are embedded once."""
    texts = list(dict.fromkeys(text for prompts in kinds for of_class in prompts for text in of_class))
    row = {text: i for i, text in enumerate(texts)}
    embeddings = features.finite(model.embed_texts(texts, normalise=False), "text").astype(np.float64)

    def classes(prompts: Prompts, order: str) -> np.ndarray:
        given = _unit(embeddings) if order == ORDERS[0] else embeddings
        return _unit(np.stack([given[[row[text] for text in of_class]].mean(axis=0) for of_class in prompts]))

    return classes


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def probabilities(cosines: np.ndarray, logit_scale: float) -> np.ndarray:
    """softmax(logit_scale * cosine) over the last axis: what the model, by its own temperature, would bet."""
    odds = np.exp(logit_scale * (cosines - cosines.max(axis=-1, keepdims=True)))
    return odds / odds.sum(axis=-1, keepdims=True)


def evaluate(
    model: Embedder,
    tasks: Iterable[Task],
    *,
    cache: Path | str | None = None,
    detailed: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Result]:
    """Scores each task; one that cannot be scored comes back with the reason.

    Args:
      model: anything that is an `Embedder`.
      tasks: as from `tasks.load_tasks`.
      cache: a folder for what the model sees, as `features.of_task` takes it.
      detailed: whether `details` are measured too.
      progress: called with the number of photos done since the last call.

    Raises:
      RunFailure: the model gave an embedding that is not finite.
    """
    results = []
    for task in tasks:
        if reason := cannot(task):
            progress(task.count)
            results.append(Result(task, None, reason=reason, unreadable=task.unreadable))
        else:
            results.append(score(model, task, features.of_task(model, task, cache=cache, progress=progress), detailed))
    return results


def cannot(task: Task) -> str:
    """Why a task cannot be scored; "" when it can."""
    if task.mismatch:
        return task.mismatch
    if not task.count:
        return f"no image with a label in split {task.split!r}"
    if not task.class_names:
        return "its images have no labels"
    if len(task.class_names) < 2:
        return f"one class only ({', '.join(task.class_names)}), so every answer would be right"
    return ""


def score(model: Embedder, task: Task, seen: Features, detailed: bool = False) -> Result:
    """The result of a task from what the model sees in its photos.

    Args:
      model: embeds the prompts.
      task: one that `cannot` says nothing against.
      seen: its photos; those without a label do not count.
      detailed: whether `details` are measured too.
    """
    seen = seen.only(np.flatnonzero(seen.labels >= 0))
    if not len(seen):
        return Result(task, None, reason="no readable image", unreadable=seen.unreadable)
    kinds = task.prompt_kinds() if detailed else {"": task.prompts()}
    embedded = _embedded(model, kinds.values())
    classes = embedded(task.prompts(), ORDERS[0])
    answers = measures.classify(seen.embeddings, classes, seen.labels, model.logit_scale)
    details = _details(model, task, seen, kinds, embedded, answers) if detailed else {}
    return Result(task, measures.score(answers), answers, "", seen.unreadable, seen.sources, details)


def _details(
    model: Embedder,
    task: Task,
    seen: Features,
    kinds: Mapping[str, Prompts],
    embedded: Callable[..., np.ndarray],
    answers: Answers,
) -> dict[str, Any]:
    given = (seen.embeddings, embedded(task.prompts(), ORDERS[0]), seen.labels, model.logit_scale)
    by_prompts = []
    for kind, prompts in kinds.items():
        several = any(len(texts) > 1 for texts in prompts)
        for order in ORDERS if several else ORDERS[:1]:
            asked = (seen.embeddings, embedded(prompts, order), seen.labels, model.logit_scale)
            # The first kind in the first order is what was answered already.
            found = measures.score(measures.classify(*asked) if by_prompts else answers, bootstrap=False)
            shares = {name: getattr(found, name) for name in ("top1", "top5", "mean_per_class", "macro_f1")}
            by_prompts.append({"prompts": kind, "order": order, **shares, "interval": found.interval})
    open_set = measures.open_set(*given)
    return {
        "by_prompts": by_prompts,
        "calibration": {"logit_scale": model.logit_scale, **asdict(measures.calibration(answers, *given[:2]))},
        "open_set": open_set and asdict(open_set),
        "ranks": {
            rank: asdict(measures.roll_up(*given, np.unique(groups, return_inverse=True)[1]))
            for rank, groups in task.ranks.items()
        },
    }


def means(results: Iterable[Result]) -> list[Mean]:
    """The mean of each group, in order of appearance; tasks that were not scored are in none."""
    groups: dict[str, list[Scores]] = {}
    for result in results:
        if result.metrics:
            groups.setdefault(result.task.group, []).append(result.metrics)
    return [_mean(group, metrics) for group, metrics in groups.items()]


def _mean(group: str, metrics: list[Scores]) -> Mean:
    top1, interval = mean_of_shares([m.top1 for m in metrics], [m.interval for m in metrics])
    return Mean(
        group=group,
        tasks=len(metrics),
        images=sum(m.images for m in metrics),
        top1=top1,
        **{
            name: float(np.mean([getattr(m, name) for m in metrics]))
            for name in ("chance", "mean_per_class", "macro_f1")
        },
        interval=interval,
    )


def show(results: Sequence[Result]) -> None:
    """Prints the table: tasks by group, each group's mean under it, then what was not scored; shares in per cent."""
    from rich.markup import escape

    console, table = screen()
    table.add_column("task", overflow="fold")
    for column in ("images", "classes", "chance", "top-1", "mean per class", "macro F1", "95 % interval"):
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


def _cells(scored: Scores | Mean, classes: int | str) -> tuple[str, ...]:
    low, high = scored.interval
    shares = (scored.chance, scored.top1, scored.mean_per_class, scored.macro_f1)
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
    return {
        "checkpoint": {"workdir": str(model.workdir), "step": int(model.step), "use": model.use},
        "code_version": model.code_version,
        "image_size": int(model.image_size),
        "prompts": {"order": ORDERS[0]},
        "interval": "Wilson, 95 %",
        "means": [asdict(mean) for mean in means(results)],
        "results": [record(result, model) for result in results],
    }


def identity(task: Task, model: Any, kind: str) -> dict[str, Any]:
    """The part of a record that says what was asked of whom: CLIP_benchmark's keys but `metrics`, and the task.

    Args:
      task: what was asked.
      model: as for `as_json`.
      kind: "zeroshot_classification", "linear_probe", ...
    """
    return {
        "dataset": task.name,
        "model": Path(model.workdir).resolve().name,
        "pretrained": f"step {int(model.step)}, {model.use}",
        "task": kind,
        "language": "en",
        "metrics": None,
        "group": task.group,
        "domain": task.domain,
        "split": task.split,
        "photos": {"typed": task.spec, "split": task.split, "fingerprint": task.fingerprint},
        "class_keys": list(task.class_keys),
        "class_names": list(task.class_names),
    }


def record(result: Result, model: Any) -> dict[str, Any]:
    """The record of a result, ready for JSON."""
    task, scored, answers = result.task, result.metrics, result.answers
    said = identity(task, model, "zeroshot_classification") | {
        "class_phrases": list(task.phrases),
        "templates": list(task.templates),
        "own_prompts": [list(texts) for texts in task.own_prompts],
        "unreadable": [{"source": source, "why": why} for source, why in result.unreadable],
    }
    if not scored:
        return {**said, "not_scored": result.reason}
    of_class = np.bincount(answers.labels, minlength=answers.classes)
    right = np.bincount(answers.labels[answers.right], minlength=answers.classes)
    return {
        **said,
        "metrics": {
            "acc1": scored.top1,
            "acc5": scored.top5,
            "mean_per_class_recall": scored.mean_per_class,
            "macro_f1": scored.macro_f1,
        },
        "images": scored.images,
        "chance": scored.chance,
        "interval": list(scored.interval),
        "bootstrap": {name: list(ends) for name, ends in scored.bootstrap.items()},
        "images_per_class": of_class.tolist(),
        "recall": [float(hits / count) if count else None for hits, count in zip(right, of_class, strict=True)],
        "logit_scale": model.logit_scale,
        "sources": list(result.sources),
        "labels": answers.labels.tolist(),
        "predicted": answers.predicted.tolist(),
        "confidence": [round(float(share), 4) for share in answers.confidence],
        **result.details,
    }


def write(results: Sequence[Result], path: Path | str, model: Any) -> None:
    """Writes `as_json` to `path`, all of it or nothing.

    Raises:
      UserError: the file cannot be written.
    """
    write_json(path, as_json(results, model))
