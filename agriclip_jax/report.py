"""A run's report: one HTML file that needs nothing else, for a reader who was not there.

Curves, the zero-shot table, what is confused with what, photos with their nearest captions, where the model looks.
It opens offline, prints, follows the reader's light or dark setting, and gives every picture a text.
"""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from agriclip_jax import page
from agriclip_jax.data import views
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import measures, zeroshot
from agriclip_jax.evaluate.measures import Scores
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.evaluate.zeroshot import Mean, Result
from agriclip_jax.files import write_whole

SAMPLES = 12  # photos with their nearest captions
ATTENTION_MAPS = 6
HEADS_SHOWN = 6
CONFUSIONS = 4  # tasks with a confusion picture
CONFUSION_CLASSES = 32  # a larger picture is not readable
POINTS = 400  # of a curve; a longer run is averaged in bins


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
    name = _json(workdir / "config.json").get("recipe") or workdir.name
    sections = [
        ("Zero-shot classification", _scores(results)),
        ("Learning curves", _curves(workdir)),
        ("What is confused with what", _confusions(results)),
        ("Photos and their nearest captions", _captions(samples)),
        ("Where the model looks", _attention(model, samples)),
        ("How it was made", _provenance(workdir)),
    ]
    header = _facts(workdir, model) + _headline(results)
    write_whole(out, page.render(str(name), "report of a run", header, sections, STYLE))
    return out


def _facts(workdir: Path, model: Any) -> str:
    rows, config, environment = (
        _rows(workdir / "metrics.jsonl"),
        _json(workdir / "config.json"),
        _json(workdir / "environment.json"),
    )
    devices = ", ".join(environment.get("devices", ()))
    facts = {
        "folder": str(workdir),
        "checkpoint": f"step {model.step:,}, {model.use}",
        "training time": _duration(_seconds(rows, config.get("batch_size", 0))),
        "device": f"{environment.get('device_count', 1)} × {devices}" if devices else "",
        "image size": f"{model.image_size} px",
        "seed": str(config.get("seed", "")),
        "code version": model.code_version,
    }
    return page.facts(facts)


def _seconds(rows: Sequence[dict], batch_size: int) -> float:
    """Seconds of training, from steps and images/s: without evaluations, pauses and what was made twice."""
    steps = [0, *(row["step"] for row in rows)]
    return sum(
        (after - before) * batch_size / row["images_per_s"]
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
    key = '<i class="key fill"></i>top-1 <i class="key"></i>interval <i class="key chance"></i>chance'
    names = ("95 % interval", "chance", "mean per class", "classes", "images")
    head = '<th scope="col">task</th><th scope="col" class="n">top-1</th>' + f'<th scope="col" class="bar">{key}</th>'
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
        f'<td class="bar">{_bar(scored)}</td>{cells}</tr>'
    )


def _bar(scored: Scores | Mean) -> str:
    low, high = (100 * share for share in scored.interval)
    top1, chance = 100 * scored.top1, 100 * scored.chance
    label = f"{top1:.1f} %, between {low:.1f} and {high:.1f}; chance {chance:.1f}"
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect class="track" width="100" height="10"/><rect class="fill" width="{top1:.2f}" height="10"/>'
        f'<line class="whisker" x1="{low:.2f}" x2="{high:.2f}" y1="5" y2="5"/>'
        f'<line class="chance" x1="{chance:.2f}" x2="{chance:.2f}" y1="0" y2="10"/></svg>'
    )


# ------------------------------------------------------------------------------------------------ learning curves

NAMES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "logit_scale": "logit scale",
    "images_per_s": "images per second",
    "input_wait": "share of time waiting for input",
}


def _curves(workdir: Path) -> str:
    training, validation = _rows(workdir / "metrics.jsonl"), _rows(workdir / "evaluations.jsonl")
    keys = {key for row in training for key, value in row.items() if _is_number(value)} - {"step", "time"}
    charts = [
        _chart(NAMES.get(key, key.replace("_", " ")), *_points(training, key)) for key in sorted(keys, key=_place)
    ]
    charts.append(_chart("validation: mean top-1", *_points(validation, "score")))
    if not any(charts):
        return ""
    return (
        "<p>Along the bottom: training steps. Pale: as measured; dark: smoothed, where there are enough points. "
        f'The number is the last value.</p><div class="charts">{"".join(charts)}</div>'
    )


def _place(key: str) -> tuple[int, str]:
    """Where a curve stands: the loss, its parts, then the rest in the order of `NAMES`."""
    order = ["loss", "loss/", *NAMES]
    part = "loss/" if key.startswith("loss/") else key
    return (order.index(part) if part in order else len(order), key)


def _points(rows: Sequence[dict], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and finite values of a key."""
    found = [(row["step"], row[key]) for row in rows if _is_number(row.get(key)) and math.isfinite(row[key])]
    steps, values = np.array(found, np.float64).reshape(-1, 2).T
    return steps, values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _chart(title: str, steps: np.ndarray, values: np.ndarray) -> str:
    """One line over steps as an SVG that takes its colours from the page; nothing for fewer than two points."""
    if len(steps) < 2:
        return ""
    from matplotlib.ticker import MaxNLocator

    said = f"{title}: {values[0]:.4g} at step {steps[0]:.0f}, {values[-1]:.4g} at step {steps[-1]:.0f}"
    bins = max(1, math.ceil(len(steps) / POINTS))
    steps, values = _binned(steps, bins), _binned(values, bins)
    y_ticks = MaxNLocator(4).tick_values(values.min(), values.max())
    x_ticks = MaxNLocator(4, integer=True).tick_values(0, max(steps.max(), 1))
    x_ticks = x_ticks[x_ticks <= max(steps.max(), 1)]
    left, right, top, bottom = 58, 352, 10, 150

    def x(step: np.ndarray | float) -> np.ndarray | float:
        return left + (right - left) * step / max(steps.max(), 1)

    def y(value: np.ndarray | float) -> np.ndarray | float:
        return bottom - (bottom - top) * (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    def path(kind: str, along: np.ndarray) -> str:
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(steps), y(along), strict=True))
        return f'<polyline class="{kind}" points="{points}"/>'

    grid = "".join(
        f'<line class="grid" x1="{left}" x2="{right}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{left - 6}" y="{y(v) + 3.5:.1f}" text-anchor="end">{_tick(v)}</text>'
        for v in y_ticks
    ) + "".join(f'<text x="{x(s):.1f}" y="{bottom + 16}" text-anchor="middle">{_tick(s)}</text>' for s in x_ticks)
    if len(values) > 40:
        lines = path("pale", values) + path("line", _smooth(values))
    else:
        lines = path("line", values) + "".join(
            f'<circle class="dot" cx="{x(s):.1f}" cy="{y(v):.1f}" r="2.2"/>' for s, v in zip(steps, values, strict=True)
        )
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span>{values[-1]:.4g}</span></figcaption>'
        f'<svg viewBox="0 0 360 172" role="img" aria-label="{escape(said)}">{grid}{lines}</svg></figure>'
    )


def _binned(values: np.ndarray, size: int) -> np.ndarray:
    return np.array([values[i : i + size].mean() for i in range(0, len(values), size)])


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred mean, narrower at the ends."""
    half = max(1, len(values) // 40)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _tick(value: float) -> str:
    return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.4g}"


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
    task, answers = result.task, result.answers
    confusion = measures.confusion(answers.labels, answers.predicted, answers.classes)
    counts = confusion.sum(axis=1)
    shares = confusion / np.maximum(counts, 1)[:, None]
    size = "small" if len(task.class_names) <= 6 else "middle" if len(task.class_names) <= 12 else "broad"
    head = "".join(f'<th scope="col" title="{escape(n)}">{i}</th>' for i, n in enumerate(task.class_names, 1))
    rows = []
    for i, name in enumerate(task.class_names):
        cells = []
        for j, share in enumerate(shares[i]):
            said = f"{confusion[i, j]} of {counts[i]} “{escape(name)}” seen as “{escape(task.class_names[j])}”"
            text = f"{100 * share:.0f}" if confusion[i, j] else '<span class="sr">0</span>'
            kind = "ok" if i == j else "no"
            dark = " deep" if share > 0.55 else ""
            cells.append(f'<td class="{kind}{dark}" style="--v:{share:.2f}" title="{said}">{text}</td>')
        rows.append(f'<tr><th scope="row"><span>{escape(name)}</span> {i + 1}</th>{"".join(cells)}</tr>')
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:4]
    pairs = [np.unravel_index(at, wrong.shape) for at in order]
    said = "".join(
        f"<li>{wrong[i, j]} of {counts[i]} “{escape(task.class_names[i])}” seen as “{escape(task.class_names[j])}”</li>"
        for i, j in pairs
        if wrong[i, j]
    )
    scores = f"top-1 {_percent(result.metrics.top1)} %, chance {_percent(result.metrics.chance)} %"
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return (
        f'<figure class="matrix {size}"><figcaption><b>{escape(task.name)}</b> {scores}</figcaption>'
        f'<div class="beside">{page.scrolling(f"Confusion of {task.name}", table)}'
        f'<ul class="notes">{said}</ul></div></figure>'
    )


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
            view = views.eval_view(image, model.image_size)
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
        rows = "".join(
            f'<li class="{"right" if i == truth else "wrong" if rank == 0 else "other"}">'
            f'<span class="mark" aria-hidden="true">{"✓" if i == truth else "✗" if rank == 0 else "·"}</span>'
            f"<span>{escape(sample.captions[i])}{_hidden(i == truth, rank)}</span>"
            f'<span class="n">{_percent(sample.probabilities[i], 0)} %</span></li>'
            for rank, i in enumerate(nearest)
        )
        missed = "" if truth in nearest else f'<p class="truth">It is {escape(task.phrases[truth])}.</p>'
        figures.append(
            f'<figure class="photo">{page.picture(sample.photo, f"{task.class_names[truth]}, from {task.name}")}'
            f"<figcaption><p>{escape(task.name)}</p><ol>{rows}</ol>{missed}</figcaption></figure>"
        )
    return (
        "<p>Drawn at random from the photos that were scored, among the classes of each photo’s own task. "
        "<b class='right'>✓ right</b> · <b class='wrong'>✗ nearest, but wrong</b></p>"
        f'<div class="photos">{"".join(figures)}</div>'
    )


def _hidden(right: bool, rank: int) -> str:
    said = "right" if right else "wrong" if rank == 0 else ""
    return f'<span class="sr"> ({said})</span>' if said else ""


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


def _json(path: Path) -> dict:
    try:
        found = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _rows(path: Path) -> list[dict]:
    """The rows of a .jsonl file; a last line that a kill cut short is left out."""
    rows = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


STYLE = """
.photo,.matrix,.look{background:var(--raised);border:1px solid var(--line);border-radius:10px}
.key{display:inline-block;width:14px;height:10px;margin:0 3px 0 6px;border-bottom:2px solid var(--ink);
transform:translateY(-4px)}
.key.fill{background:var(--leaf);opacity:.55;border:0;transform:none;margin-left:0}
.key.chance{width:3px;height:13px;background:var(--chance);border:0;transform:translateY(2px)}
.rows .group th{padding-top:22px;font-weight:600}
.rows .mean th,.rows .mean td{font-weight:600;border-bottom-width:2px}
.mean .fill{opacity:.9}
.whisker{stroke:var(--ink);stroke-width:1.5;vector-effect:non-scaling-stroke}
.chance{stroke:var(--chance);stroke-width:2.5;vector-effect:non-scaling-stroke}
polyline{fill:none;stroke:var(--leaf);stroke-linejoin:round}
.line{stroke-width:1.8}.pale{stroke-width:1;opacity:.3}.dot{fill:var(--leaf)}
.matrices{display:grid;gap:16px}
.matrix{padding:16px 20px;min-width:0;--cell:30px}.matrix.small{--cell:40px}.matrix.broad{--cell:25px}
.matrix figcaption{margin-bottom:10px;font-size:14px;color:var(--soft)}
.matrix figcaption b{color:var(--ink);font-size:16px;margin-right:8px}
.beside .notes{flex:1 1 240px}
.matrix table{font-size:12px;line-height:1}
.matrix.broad table{font-size:11px}
.matrix thead th{font-weight:400;color:var(--soft);padding:3px 0}
.matrix tbody th{font-weight:400;text-align:right;padding:0 8px 0 0;white-space:nowrap;color:var(--soft)}
.matrix tbody th span{display:inline-block;max-width:300px;overflow:hidden;text-overflow:ellipsis;
vertical-align:middle;color:var(--ink);line-height:1.4}
.matrix tbody td{width:var(--cell);min-width:22px;height:calc(.8*var(--cell));padding:0;text-align:center;
border:1px solid var(--raised);border-radius:4px}
@media (max-width:700px){.matrix tbody th span{max-width:130px}}
.matrix .ok{background:rgba(var(--heat),calc(.05 + .95*var(--v)))}
.matrix .no{background:rgba(var(--miss),calc(.05*min(1,100*var(--v)) + .95*var(--v)))}
.matrix .deep{color:var(--deep)}
.photos{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:16px}
.photo{overflow:hidden}
.photo img{display:block;width:100%;height:auto;aspect-ratio:4/3;object-fit:cover}
.photo figcaption{padding:10px 14px 12px;font-size:14px;line-height:1.4}
.photo p{margin:0;color:var(--soft);font-size:13px}.photo .truth{margin-top:6px;color:var(--ink)}
.photo ol{list-style:none;margin:4px 0 0;padding:0}
.photo li{display:grid;grid-template-columns:1.1em 1fr auto;gap:4px;padding:2px 0}
.right{color:var(--right)}.wrong{color:var(--wrong)}.other{color:var(--soft)}
.photo .right,.photo .wrong{font-weight:600}
.looks{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:16px}
.look{padding:12px}.look figcaption{font-size:14px;padding-top:8px}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:6px}
.heads{display:grid;grid-template-columns:repeat(6,1fr);gap:6px;margin-top:6px}
.look img{display:block;width:100%;height:auto;border-radius:5px}
@media print{.group{break-after:avoid}.looks,.photos{grid-template-columns:repeat(3,1fr)}
.photo figcaption{font-size:8.5pt}}
""".replace("\n", "")
