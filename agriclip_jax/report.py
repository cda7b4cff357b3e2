"""A run's report: one HTML file that needs nothing else, for a reader who was not there.

Curves, the zero-shot table, what is confused with what, photos with their nearest captions, where the model looks.
It opens offline, prints, follows the reader's light or dark setting, and gives every picture a text.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from agriclip_jax import page
from agriclip_jax.comparison import training
from agriclip_jax.data import views
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import records, statistics, zeroshot
from agriclip_jax.evaluate.measures import Scores
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.evaluate.zeroshot import Mean, Result
from agriclip_jax.files import write_whole

SAMPLES = 12  # photos with their nearest captions
ATTENTION_MAPS = 6
HEADS_SHOWN = 6
CONFUSIONS = 4  # tasks with a confusion picture
CONFUSION_CLASSES = 32  # a larger picture is not readable


def write_report(workdir: Path | str, model: Any, results: Sequence[Result], *, out: Path | str | None = None) -> Path:
    """Writes the report of a run.

    Args:
      workdir: of the run; its config.json, environment.json, metrics.jsonl and evaluations.jsonl are shown, as far as
        they are there.
      model: an `inference.Model`, or a live one with the same methods: it embeds and looks at the sample photos.
      results: as from `zeroshot.evaluate` with that model.
      out: the file to write; default report.html in the workdir.

    Returns:
      The path of the file.

    Raises:
      UserError: the file cannot be written.
    """
    workdir = Path(workdir)
    out = Path(out) if out else workdir / "report.html"
    samples = _samples(model, results)
    name = records.settings(workdir / "config.json").get("recipe") or workdir.name
    sections = [
        ("Zero-shot classification", _scores(results)),
        ("Learning curves", training.curves({"": workdir})),
        ("What is confused with what", _confusions(results)),
        ("Photos and their nearest captions", _captions(samples)),
        ("Where the model looks", _attention(model, samples)),
        ("How it was made", _provenance(workdir)),
    ]
    header = _facts(workdir, model) + _headline(results)
    write_whole(out, page.render(str(name), "report of a run", header, sections, page.SCORES + STYLE))
    return out


def _facts(workdir: Path, model: Any) -> str:
    rows, config, environment = (
        records.log(workdir / "metrics.jsonl"),
        records.settings(workdir / "config.json"),
        records.settings(workdir / "environment.json"),
    )
    devices = ", ".join(environment.get("devices", ()))
    facts = {
        "folder": str(workdir),
        "checkpoint": f"step {model.step:,}, {model.use}",
        "training time": _duration(_seconds(rows, _images_per_step(config))),
        "device": f"{environment.get('device_count', 1)} × {devices}" if devices else "",
        "image size": f"{model.image_size} px",
        "seed": str(config.get("seed", "")),
        "code version": model.code_version,
    }
    return page.facts(facts)


def _images_per_step(config: Mapping[str, Any]) -> int:
    return config.get("batch_size", 0) + config.get("data", {}).get("unpaired_batch", 0)


def _seconds(rows: Sequence[dict], images: int) -> float:
    """Seconds of training, from steps and images/s: without evaluations, pauses and what was made twice."""
    steps = [0, *(row["step"] for row in rows)]
    return sum(
        (after - before) * images / row["images_per_s"]
        for before, after, row in zip(steps, steps[1:], rows, strict=False)
        if row.get("images_per_s")
    )


def _headline(results: Sequence[Result]) -> str:
    return page.cards(
        (
            mean.group,
            _percent(mean.top1),
            "%",
            f"mean top-1, {mean.top1 / mean.chance:.1f} × chance ({_percent(mean.chance)} %)<br>"
            f"{mean.tasks} {'task' if mean.tasks == 1 else 'tasks'}, {mean.images:,} images",
        )
        for mean in zeroshot.means(results)
    )


# ---------------------------------------------------------------------------------------------- the zero-shot table


def _scores(results: Sequence[Result]) -> str:
    if not results:
        return ""
    names = ("95 % interval", "chance", "mean per class", "classes", "images")
    head = (
        '<th scope="col">task</th><th scope="col" class="n">top-1</th>'
        + f'<th scope="col" class="bar">{page.BARS}</th>'
    )
    head += "".join(f'<th scope="col" class="n">{name}</th>' for name in names)
    bodies = []
    for mean in zeroshot.means(results):
        rows = [
            _score_row(escape(r.task.name).replace("_", "_<wbr>"), len(r.task.class_names), r.metrics, "")
            for r in results
            if r.metrics and r.task.group == mean.group
        ]
        rows.append(_score_row(f"mean of {mean.tasks}", "", mean, ' class="mean"'))
        title = f'<tr class="group"><th scope="rowgroup" colspan="8">{escape(mean.group)}</th></tr>'
        bodies.append(f"<tbody>{title}{''.join(rows)}</tbody>")
    left_out = "".join(
        f"<li><b>{escape(r.task.name)}</b>: not scored, {escape(r.reason)}</li>" for r in results if not r.metrics
    )
    unreadable = "".join(
        f"<li><b>{escape(r.task.name)}</b>: {len(r.unreadable)} unreadable, left out, such as "
        f"{escape(r.unreadable[0][0])} ({escape(r.unreadable[0][1])})</li>"
        for r in results
        if r.unreadable
    )
    notes = f'<ul class="notes">{left_out}{unreadable}</ul>' if left_out or unreadable else ""
    table = f'<table class="rows"><thead><tr>{head}</tr></thead>{"".join(bodies)}</table>'
    return (
        "<p>Nothing was fitted to these tasks: an image gets the class whose description lies nearest. "
        "Chance is what guessing would reach; an interval that holds the chance mark shows no skill. "
        "The interval says what other images of the same kind could have given; one training run says nothing about "
        f"other seeds.</p>{page.scrolling('Zero-shot table', table)}{notes}"
    )


def _score_row(name: str, classes: int | str, scored: Scores | Mean, kind: str) -> str:
    low, high = scored.interval
    bar = page.share_bars([("", scored.top1, scored.interval)], scored.chance)
    numbers = (
        f"{_percent(low)} – {_percent(high)}",
        _percent(scored.chance),
        _percent(scored.mean_per_class),
        str(classes),
        f"{scored.images:,}",
    )
    cells = "".join(f'<td class="n">{number}</td>' for number in numbers)
    return (
        f'<tr{kind}><th scope="row">{name}</th><td class="n"><b>{_percent(scored.top1)}</b></td>'
        f'<td class="bar">{bar}</td>{cells}</tr>'
    )


# ---------------------------------------------------------------------------------------------------- confusions


def _confusions(results: Sequence[Result]) -> str:
    def skill(result: Result) -> float:
        return (result.metrics.top1 - result.metrics.chance) / (1 - result.metrics.chance)

    scored = [r for r in results if r.metrics and len(r.task.class_names) <= CONFUSION_CLASSES]
    worst = sorted(scored, key=skill)[: CONFUSIONS // 2]
    largest = sorted((r for r in scored if r not in worst), key=lambda r: -r.metrics.images)
    shown = sorted(worst + largest[: CONFUSIONS - len(worst)], key=lambda r: len(r.task.class_names))
    if not shown:
        return ""
    return (
        "<p>The tasks with the least skill, and the largest. A row is the true class, a column what the model said, by "
        "number; a row sums to 100 %, its diagonal (green) is the recall.</p>"
        f'<div class="matrices">{"".join(map(_matrix, shown))}</div>'
    )


def _matrix(result: Result) -> str:
    answers, metrics = result.answers, result.metrics
    counts = statistics.confusion(answers.labels, answers.predicted, answers.classes)
    note = f"top-1 {_percent(metrics.top1)} %, chance {_percent(metrics.chance)} %"
    return page.confusion(result.task.name, note, result.task.class_names, counts)


# --------------------------------------------------------------------------- photos, captions, and where it looks


class Sample(NamedTuple):
    """A scored photo, what the model sees of it, and its probabilities over the classes of its task."""

    task: Task
    label: int
    photo: Image.Image
    view: np.ndarray
    captions: list[str]
    probabilities: np.ndarray


def _samples(model: Any, results: Sequence[Result]) -> list[Sample]:
    """Photos drawn with a fixed seed from scored tasks, evenly over them."""
    scored = [result.task for result in results if result.metrics]
    chosen = [scored[i] for i in np.linspace(0, len(scored) - 1, min(SAMPLES, len(scored))).round().astype(int)]
    rng = np.random.default_rng(0)
    samples = []
    for i, task in enumerate(chosen):
        wanted = rng.permutation(task.count)[: len(range(i, SAMPLES, len(chosen)))]
        prompts = task.prompts()
        classes = zeroshot.class_embeddings(model, prompts)
        for photo in (photo for position, photo in enumerate(task.photos()) if position in wanted):
            try:
                image = views.decode(photo.image)
            except UserError:
                continue
            view = views.eval_view(image, model.view)
            cosines = model.embed_images(view[None])[0] @ classes.T
            probabilities = zeroshot.probabilities(cosines, model.logit_scale)
            samples.append(Sample(task, photo.label, image, view, [texts[0] for texts in prompts], probabilities))
    return samples


def _captions(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    figures = []
    for sample in samples:
        task, truth = sample.task, sample.label
        nearest = np.argsort(-sample.probabilities, kind="stable")[:3]
        rows = page.nearest((sample.captions[i], float(sample.probabilities[i]), i == truth) for i in nearest)
        missed = "" if truth in nearest else f'<p class="truth">It is {escape(task.phrases[truth])}.</p>'
        figures.append(
            f'<figure class="photo">{page.picture(sample.photo, f"{task.class_names[truth]}, from {task.name}")}'
            f"<figcaption><p>{escape(task.name)}</p>{rows}{missed}</figcaption></figure>"
        )
    return (
        "<p>Drawn at random from the photos that were scored, among the classes of each photo’s own task. "
        "<b class='right'>✓ right</b> · <b class='wrong'>✗ nearest, but wrong</b></p>"
        f'<div class="photos">{"".join(figures)}</div>'
    )


def _attention(model: Any, samples: Sequence[Sample]) -> str:
    samples = samples[:: max(1, len(samples) // ATTENTION_MAPS)][:ATTENTION_MAPS]
    if not samples:
        return ""
    maps = np.asarray(model.attention(np.stack([sample.view for sample in samples])))
    heads = maps.shape[1]
    figures = []
    for sample, of_heads in zip(samples, maps, strict=True):
        name = sample.task.class_names[sample.label]
        view = Image.fromarray(sample.view)
        small = "".join(
            page.picture(page.overlay(sample.view, of_head), f"attention of head {h} over {name}")
            for h, of_head in enumerate(of_heads[:HEADS_SHOWN], 1)
        )
        figures.append(
            f'<figure class="look"><div class="pair">{page.picture(view, name)}'
            f"{page.picture(page.overlay(sample.view, of_heads.mean(axis=0)), f'mean attention over {name}')}</div>"
            f'<div class="heads">{small}</div><figcaption>{escape(name)}</figcaption></figure>'
        )
    of = f" (the first {HEADS_SHOWN} of {heads})" if heads > HEADS_SHOWN else ""
    return (
        "<p>Attention of the image tower’s last block from the pooled output to the patches: the photo as the model "
        f"sees it, the mean over the heads, and below each head by itself{of}. Bright is looked at; every map has its "
        "own scale.</p>"
        f'<div class="looks">{"".join(figures)}</div>'
    )


# -------------------------------------------------------------------------------------------------- provenance


def _provenance(workdir: Path) -> str:
    files = (("Configuration", "config.json"), ("Environment", "environment.json"), ("Parameters", "parameters.txt"))
    shown = [(title, _text(workdir / name)) for title, name in files]
    return "".join(
        f"<details><summary>{title}</summary><pre tabindex='0'>{escape(text)}</pre></details>"
        for title, text in shown
        if text
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


STYLE = """
.looks{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:16px}
.look{padding:12px}.look figcaption{font-size:14px;padding-top:8px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:6px}
.heads{display:grid;grid-template-columns:repeat(6,1fr);gap:6px;margin-top:6px}
.look img{display:block;width:100%;height:auto;border-radius:5px}
@media print{.looks{grid-template-columns:repeat(3,1fr)}}
""".replace("\n", "")
