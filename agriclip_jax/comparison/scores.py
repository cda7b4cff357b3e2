"""The sections of scores: what each run reaches, how far they differ, and where."""

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from agriclip_jax import page
from agriclip_jax.comparison import parts
from agriclip_jax.evaluate import comparing, records, statistics
from agriclip_jax.evaluate.comparing import Change, Moved, Row, Share, means, rows, top1
from agriclip_jax.evaluate.records import Record, Run, percent

OPEN_ROWS = 16  # of a table that need not be opened first
CLASSES_MOVED = 10  # with the largest gains, and with the largest losses
CONFUSIONS, CONFUSION_CLASSES, CONFUSED_PAIRS = 4, 32, 12
BINS = 15  # of the confidence, as `measures.calibration` has them
UNITS = {
    "blur": "sides",
    "noise": "of the scale",
    "dark": "stops",
    "bright": "stops",
    "jpeg": "quality",
    "rotation": "°",
}


def zeroshot(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Zero-shot classification, task by task, with the means of groups."""
    bodies, notes = [], []
    for group in records.groups(runs):
        table, lines = rows(runs, "zeroshot", group), []
        for row in table:
            notes += parts.reasons(row, names)
            if first := row.first:
                counts = (percent(first["chance"]), f"{len(first['class_names']):,}", f"{first['images']:,}")
                star = "" if row.is_shared else "*"
                shares = [record and top1(record) for record in row.found]
                lines.append(_bar_row(parts.task(row.task) + star, names, shares, first["chance"], counts))
        found, count = means(table, top1)
        if count:
            shared = [row.first for row in table if row.is_shared]
            chance = float(np.mean([record["chance"] for record in shared]))
            counts = (percent(chance), "", f"{sum(record['images'] for record in shared):,}")
            lines.append(_bar_row(f"mean of {count}", names, found, chance, counts, "mean"))
        bodies.append(parts.group(group, 5 + len(runs), lines))
    heads = parts.head("task") + f'<th scope="col" class="bar">{page.BARS}</th>'
    heads += parts.head(numbers=(*parts.runs(names), "chance", "classes", "images"))
    table = parts.table("Zero-shot classification", heads, bodies)
    if not table:
        return parts.notes(notes)
    over = "tasks that every run answered on the same photos" if len(runs) > 1 else "tasks"
    star = " A star marks a task that is in no mean; below the table stands why." if "*</th>" in table else ""
    return (
        "<p>Nothing was fitted to these tasks: an image gets the class whose description lies nearest. Intervals are "
        "of 95 % (Wilson’s for a task, MOVER’s for a mean) and say what other images of the same tasks could have "
        f"given; they say nothing about another training run. A mean is over {over}, each with the same weight.{star}"
        f"</p>{page.legend(names)}{table}{parts.notes(notes)}"
    )


def _bar_row(
    task: str,
    names: Sequence[str],
    shares: Sequence[Share | None],
    chance: float,
    counts: Sequence[str],
    kind: str = "",
) -> str:
    bars = [share and (name if len(names) > 1 else "", *share) for name, share in zip(names, shares, strict=True)]
    cells = f'<td class="bar">{page.share_bars(bars, chance)}</td>' + "".join(map(parts.share, shares))
    return parts.row(task, cells + parts.numbers(counts), kind)


def differences(runs: Sequence[Run], names: Sequence[str]) -> str:
    """How far each run is ahead of the first on the same images."""
    changes = [comparing.changes(runs, place) for place in range(1, len(runs))]
    every = [change for of_run in changes for of_group in of_run.values() for change in of_group]
    if not every:
        return ""
    limit = max(0.1, math.ceil(10 * max(abs(end) for change in every for end in change.found.interval)) / 10)
    heads = parts.head("task") + f'<th scope="col" class="bar">−{100 * limit:.0f} to +{100 * limit:.0f} points</th>'
    only = ("only this run right", f"only {escape(names[0])} right")
    heads += parts.head(numbers=("points", "95 % interval", "p", "p, Holm", *only))
    shown = []
    for place, of_run in enumerate(changes, 1):
        bodies = [
            parts.group(group, 8, (_change_row(change, limit, place + 1) for change in of_group))
            for group, of_group in of_run.items()
        ]
        tests = [change.adjusted for of_group in of_run.values() for change in of_group if change.adjusted is not None]
        clear = sum(adjusted < 0.05 for adjusted in tests)
        wholes = "; ".join(
            f"{group} {parts.points(of_group[-1].found.difference)} ({_ends(of_group[-1])})"
            for group, of_group in of_run.items()
        )
        left_out = [
            note
            for group in records.groups(runs)
            for row in rows([runs[0], runs[place]], "zeroshot", group)
            if row.first
            for note in parts.reasons(row, (names[0], names[place]))
        ]
        title = f"{names[place]} against {names[0]}"
        table = parts.table(title, heads, bodies) + parts.notes(left_out)
        if len(runs) > 2 and len(tests) > OPEN_ROWS:
            table = f"<details><summary>{parts.many(len(tests), 'task')}, one by one</summary>{table}</details>"
        shown.append(
            f"<h3>{parts.run(place, names)} against {escape(names[0])}</h3><p>Means: {escape(wholes)}. {clear} of "
            f"{parts.many(len(tests), 'task')} {'differs' if clear == 1 else 'differ'} clearly (Holm’s p below 0.05)."
            f"</p>{table}"
        )
    return (
        f"<p>The share of images that a run has right less the share that {escape(names[0])} has right, on the same "
        "photos, in percentage points. A task’s interval is Agresti and Min’s and its p is McNemar’s, exact; a mean’s "
        "interval is the paired bootstrap’s over images and its p a sign-flip test’s. Of twenty tasks without any "
        "difference one has a p below 0.05 by chance; Holm’s p takes that into account. Tasks with other photos are "
        f"left out.</p>{''.join(shown)}"
    )


def _change_row(change: Change, limit: float, colour: int) -> str:
    low, here, high = (
        f"{50 + 50 * share / limit:.2f}"
        for share in (change.found.interval[0], change.found.difference, change.found.interval[1])
    )
    cells = (
        f"<b>{parts.points(change.found.difference)}</b>",
        _ends(change),
        parts.p_value(change.found.p_value),
        "" if change.adjusted is None else parts.p_value(change.adjusted),
        f"{change.gained:,}",
        f"{change.lost:,}",
    )
    bar = (
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" '
        f'aria-label="{parts.points(change.found.difference)} points, between {_ends(change)}">'
        '<rect class="track" width="100" height="10"/><line class="zero" x1="50" x2="50" y1="0" y2="10"/>'
        f'<g class="c{colour}"><line class="span" x1="{low}" x2="{high}" y1="5" y2="5"/>'
        f'<line class="point" x1="{here}" x2="{here}" y1="1" y2="9"/></g></svg>'
    )
    kind = "mean" if change.adjusted is None else ""
    return parts.row(parts.task(change.name), f'<td class="bar">{bar}</td>{parts.numbers(cells)}', kind)


def _ends(change: Change) -> str:
    low, high = change.found.interval
    return f"{parts.points(low)} to {parts.points(high)}"


def moved(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The classes that gained and lost most from the first run to each other one."""
    shown = []
    for place in range(1, len(runs)):
        found = comparing.moved(runs, place)
        sides = {
            "Gained most": [each for each in found if each.clearness > 0][:CLASSES_MOVED],
            "Lost most": [each for each in reversed(found) if each.clearness < 0][:CLASSES_MOVED],
        }
        tables = "".join(
            _moved_table(title, classes, (names[0], names[place])) for title, classes in sides.items() if classes
        )
        if tables:
            title = f"<h3>{parts.run(place, names)} against {escape(names[0])}</h3>"
            shown.append(f'{title}<div class="sides">{tables}</div>')
    if not shown:
        return ""
    return (
        "<p>Images of a class that are answered rightly, by the first run and by the other. The clearest changes stand "
        "first: those that chance explains least, by (gained − lost) / √(gained + lost), so that one image of a small "
        f"class does not outweigh twenty of a large one.</p>{''.join(shown)}"
    )


def _moved_table(title: str, classes: Sequence[Moved], names: Sequence[str]) -> str:
    lines = []
    for each in classes:
        name = f"{escape(each.name)}<small>{parts.task(each.task)}</small>"
        points = f"<b>{parts.points((each.after - each.before) / each.images)}</b>"
        lines.append(parts.row(name, parts.numbers((each.images, each.before, each.after, points))))
    heads = parts.head("class", numbers=("images", *map(escape, names), "points"))
    label = f"{title}, {names[1]} against {names[0]}"
    return f"<div><h4>{title}</h4>{parts.table(label, heads, [parts.body(lines)])}</div>"


def measures(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The means of all measures, and every task by every measure."""
    columns = {title: each for title, each in comparing.COLUMNS.items() if any(run.scored(each[0]) for run in runs)}
    if len(columns) < 2:
        return ""
    of_groups, of_tasks, notes = [], [], {}
    for group in records.groups(runs):
        tables = {title: rows(runs, measure, group) for title, (measure, _) in columns.items()}
        found = [means(tables[title], share) for title, (_, share) in columns.items()]
        lines = []
        for place in range(len(runs)):
            cells = "".join(
                parts.share(shares[place] if shares else None, f"of {n}" if n else "") for shares, n in found
            )
            lines.append(parts.row(parts.run(place, names), cells))
        of_groups.append(parts.group(group, 1 + len(columns), lines))
        tasks: dict[str, dict[str, Row]] = {}
        for title, table in tables.items():
            for row in table:
                tasks.setdefault(row.task, {})[title] = row
                for note in parts.reasons(row, names):
                    notes.setdefault(note, []).append(title)
        for task, of_task in tasks.items():
            if any(row.first for row in of_task.values()):
                lines = []
                for place in range(len(runs)):
                    cells = ""
                    for title, (_, share) in columns.items():
                        record = of_task[title].found[place] if title in of_task else None
                        cells += parts.share(record and share(record))
                    lines.append(parts.row(parts.run(place, names), cells))
                of_tasks.append(parts.group(task, 1 + len(columns), lines))
    heads = parts.head("run", numbers=tuple(columns))
    told = [(task, who, f"{', '.join(of)}: {note}") for (task, who, note), of in notes.items() if "zero-shot" not in of]
    opened = " open" if len(of_tasks) * len(runs) <= OPEN_ROWS else ""
    return (
        "<p>In %, and of how many shared tasks a mean is. 20-NN, the linear probe and the few-shot classifiers are "
        "fitted on the train split and asked on the test split, so they say what the features hold, not what the texts "
        "find. The open-set AUROC says how well the largest cosine tells images of offered classes from images of "
        f"others: 50 is chance.</p>{parts.table('Means of all measures', heads, of_groups)}"
        f"<details{opened}><summary>Every task by every measure</summary>"
        f"{parts.table('Every task by every measure', heads, of_tasks)}{parts.notes(told)}</details>"
    )


def few_shot(runs: Sequence[Run], names: Sequence[str]) -> str:
    """What few-shot classifiers reach by the number of images."""
    shots = sorted({each["shots"] for run in runs for r in run.scored("few_shot").values() for each in r["results"]})
    if len(shots) < 2:
        return ""
    ticks = [(place, str(count)) for place, count in enumerate(shots)]
    charts = []
    for group in records.groups(runs):
        table = rows(runs, "few_shot", group)
        for method in ("ridge", "centroid"):
            found = [means(table, comparing.few_shot(method, count)) for count in shots]
            note = parts.many(found[0][1], "task")
            shares = [shares for shares, _ in found]
            charts.append(_share_lines(f"{group}: {method}", note, names, shares, ticks, "with {} images a class"))
    return (
        "<p>Top-1 in %; along the bottom, training images of each class. Lines are means over tasks; the bands say "
        "what drawing other training images could have given (95 %, Student’s t over the draws).</p>"
        f'{page.legend(names)}<div class="charts">{"".join(charts)}</div>'
    )


def _share_lines(
    title: str,
    note: str,
    names: Sequence[str],
    shares: Sequence[Sequence[Share | None]],
    ticks: Sequence[tuple[float, str]],
    where: str,
    y_range: tuple[float, float] | None = None,
) -> str:
    """A chart of the shares of every run at each tick; nothing where no run has all of them."""
    shown, said = [], []
    for colour, (name, *of_run) in enumerate(zip(names, *shares, strict=True) if all(shares) else (), 1):
        if None not in of_run:
            y, intervals = [100 * share for share, _ in of_run], [interval for _, interval in of_run]
            low, high = ((), ()) if None in intervals else 100 * np.array(intervals).T
            shown.append(page.Line(colour, [place for place, _ in ticks], y, low, high))
            ends = (f"{y[at]:.1f} % {where.format(ticks[at][1])}" for at in (0, -1))
            said.append(f"{name} {', '.join(ends)}")
    told = f"{title}: {'; '.join(said)}"
    return page.lines(title, note, shown, told, x_ticks=ticks, y_range=y_range) if shown else ""


def prompts(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Zero-shot classification by what is said of a class."""
    kinds = dict.fromkeys(
        (each["prompts"], each["order"])
        for run in runs
        for record in run.scored("zeroshot").values()
        for each in record.get("by_prompts", ())
    )
    bodies, first = [], next(iter(kinds), None)
    for group in records.groups(runs):
        table, lines = rows(runs, "zeroshot", group), []
        for kind in kinds:
            having = _having(table, _by(kind))
            (found, count), (against, _) = means(having, _by(kind)), means(having, _by(first))
            if count:
                cells = ""
                for share, other in zip(found, against, strict=True):
                    ahead = parts.points(share[0] - other[0]) if share and kind != first else ""
                    cells += parts.share(share, ahead)
                name = f"{escape(kind[0])}<small>{escape(kind[1].replace('-', ' '))}</small>"
                lines.append(parts.row(name, parts.numbers([count]) + cells))
        bodies.append(parts.group(group, 2 + len(runs), lines))
    table = parts.table("Prompts", parts.head("prompts", numbers=("tasks", *parts.runs(names))), bodies)
    if not table:
        return ""
    return (
        "<p>Zero-shot top-1 by what is said of a class, and by whether each prompt’s embedding has length 1 before "
        "their mean. Not every task has every kind; beside each mean stands how far it is ahead of the first row on "
        f"the same tasks, in points.</p>{table}"
    )


def _by(kind: tuple[str, str]) -> Callable[[Record], Share | None]:
    def share(record: Record) -> Share | None:
        found = [each for each in record.get("by_prompts", ()) if (each["prompts"], each["order"]) == kind]
        return (found[0]["top1"], tuple(found[0]["interval"])) if found else None

    return share


def _having(table: Sequence[Row], what: Callable[[Record], Any]) -> list[Row]:
    """The rows in which every record has something."""
    return [row for row in table if all(what(record) for record in row.found if record)]


def ranks(runs: Sequence[Run], names: Sequence[str]) -> str:
    """How often at least the group of classes is right."""
    bodies = []
    for group in records.groups(runs):
        table, lines = rows(runs, "zeroshot", group), []
        for rank in dict.fromkeys(
            rank for row in table for each in row.found if each for rank in each.get("ranks", ())
        ):
            having = [row for row in _having(table, lambda r, n=rank: n in r.get("ranks", ())) if row.first]
            chance = [row.first["ranks"][rank]["chance"] for row in having if row.is_shared]
            for way, key in (("by summed probability", "top1"), ("by the nearest class", "nearest_top1")):
                found, count = means(having, lambda record, n=rank, k=key: (record["ranks"][n][k], None))
                if count:
                    cells = parts.numbers((count, percent(float(np.mean(chance))))) + "".join(map(parts.share, found))
                    lines.append(parts.row(f"{escape(rank)}<small>{way}</small>", cells))
        bodies.append(parts.group(group, 3 + len(runs), lines))
    table = parts.table("Ranks", parts.head("rank", numbers=("tasks", "chance", *parts.runs(names))), bodies)
    said = "How often at least the group of classes is right, in %: sick or healthy, the genus of a species."
    return f'<p class="more">{said}</p>{table}' if table else ""


def calibration(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Whether the confidence can be taken for a probability."""
    charts, bodies = [], []
    for group in records.groups(runs):
        table = [row for row in rows(runs, "zeroshot", group) if row.is_shared]
        having = _having(table, lambda record: record.get("calibration"))
        shown, said, lines = [], [], []
        for place, name in enumerate(names):
            of_run = [row.found[place] for row in having if row.found[place]]
            if of_run:
                found = [record["calibration"] for record in of_run]
                x, y, low, high = _reliability(found)
                shown.append(page.Line(place + 1, x, y, low, high))
                said.append(f"{name} is right {y[-1]:.0f} % of the time where it is {x[-1]:.0f} % sure")
                after = [each["fitted_error"] for each in found if each["fitted_error"] is not None]
                numbers = (
                    len(found),
                    percent(float(np.mean([each["error"] for each in found]))),
                    percent(float(np.mean(after))) if after else "–",
                    f"{np.median([record['logit_scale'] for record in of_run]):.1f}",
                    f"{np.median([each['logit_scale'] for each in found]):.1f}",
                )
                lines.append(parts.row(parts.run(place, names), parts.numbers(numbers)))
        if shown:
            ticks = [(share, f"{share}") for share in range(0, 101, 20)]
            note, told = f"{parts.many(len(having), 'task')} pooled", f"{group}: {'; '.join(said)}"
            charts.append(page.lines(group, note, shown, told, x_ticks=ticks, y_range=(0, 100), diagonal=True))
        bodies.append(parts.group(group, 6, lines))
    if not charts:
        return ""
    columns = ("tasks", "error, %", "error after fitting, %", "logit scale", "fitted logit scale, median")
    return (
        "<p>Along the bottom, how sure a model is; upwards, how often it is right then, both in %. On the dotted line "
        "a model that says 80 % is right 80 % of the time; below it, it is too sure of itself. Points are bins of "
        "confidence, bands Wilson’s 95 %. The expected calibration error is the mean over tasks, as the model’s own "
        "temperature gives it and at a temperature fitted on the other half of each task’s images.</p>"
        f'{page.legend(names)}<div class="charts">{"".join(charts)}</div>'
        f"{parts.table('Calibration errors', parts.head('run', numbers=columns), bodies)}"
    )


def _reliability(of_tasks: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, ...]:
    """Confidence, share that is right and the ends of its interval, in %, of the bins of several tasks put together."""
    sums = np.zeros((BINS, 3))
    for confidence, accuracy, count in (each for found in of_tasks for each in found["bins"]):
        place = min(max(math.ceil(confidence * BINS) - 1, 0), BINS - 1)
        sums[place] += (confidence * count, accuracy * count, count)
    confidence, hits, count = sums[sums[:, 2] > 0].T
    intervals = [statistics.wilson(round(h), round(n)) for h, n in zip(hits, count, strict=True)]
    return 100 * confidence / count, 100 * hits / count, *(100 * np.array(intervals).T)


def robustness(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Zero-shot classification of worse photos, by how much worse they are."""
    ticks = [(0, "none"), *((strength, str(strength)) for strength in range(1, 6))]
    shown = []
    for group in records.groups(runs):
        table = rows(runs, "robustness", group)
        kinds = dict.fromkeys(kind for row in table for record in row.found if record for kind in record["top1"])
        found = {kind: [means(table, _corrupted(kind, strength))[0] for strength, _ in ticks] for kind in kinds}
        every = [share for of_kind in found.values() for shares in of_kind for share in shares if share]
        if every:
            low, high = min(ends[0] for _, ends in every), max(ends[1] for _, ends in every)
            y_range = (10 * math.floor(10 * low), 10 * math.ceil(10 * high))
            charts = "".join(
                _share_lines(kind, _amounts(table, kind), names, shares, ticks, "at strength {}", y_range)
                for kind, shares in found.items()
            )
            count = parts.many(means(table, comparing.corrupted)[1], "task")
            shown.append(f'<h3>{escape(group)}: mean of {count}</h3><div class="charts">{charts}</div>')
    if not shown:
        return ""
    return (
        "<p>Zero-shot top-1 in % on the same photos made worse, by strength from none to 5; beside the name, what "
        "strengths 1 and 5 are. Some photos of each task; bands are of 95 %, from Wilson’s intervals.</p>"
        f"{page.legend(names)}{''.join(shown)}"
    )


def _corrupted(kind: str, strength: int) -> Callable[[Record], Share | None]:
    def share(record: Record) -> Share | None:
        if kind not in record["top1"]:
            return None
        value = record["top1"][kind][strength - 1] if strength else record["metrics"]["acc1_clean"]
        return value, statistics.wilson(round(value * record["images"]), record["images"])

    return share


def _amounts(table: Sequence[Row], kind: str) -> str:
    for row in table:
        if row.first and (amounts := row.first.get("strengths", {}).get(kind)):
            return f"{amounts[0]:g} … {amounts[-1]:g} {UNITS.get(kind, '')}".replace("-", "−").strip()
    return ""


def confusions(run: Run, name: str) -> str:
    """What a run confuses with what, in its worst tasks and in its largest."""
    scored = run.scored("zeroshot")

    def skill(task: str) -> float:
        return (top1(scored[task])[0] - scored[task]["chance"]) / (1 - scored[task]["chance"])

    worst = sorted(scored, key=skill)[: CONFUSIONS // 2]
    largest = sorted((task for task in scored if task not in worst), key=lambda task: -scored[task]["images"])
    chosen, figures = worst + largest[: CONFUSIONS - len(worst)], []
    for task in sorted(chosen, key=lambda task: len(scored[task]["class_names"])):
        record, classes = scored[task], scored[task]["class_names"]
        note = f"top-1 {percent(top1(record)[0])} %, chance {percent(record['chance'])} %"
        if len(classes) <= CONFUSION_CLASSES:
            counts = statistics.confusion(record["labels"], record["predicted"], len(classes))
            figures.append(page.confusion(task, note, classes, counts))
        else:
            totals = np.bincount(record["labels"], minlength=len(classes))
            pairs = statistics.confused_pairs(record["labels"], record["predicted"], CONFUSED_PAIRS)
            told = page.mistakes([(classes[true], classes[said], count, totals[true]) for true, said, count in pairs])
            title = f"<b>{escape(task)}</b> {note}; {len(classes):,} classes, the most frequent mistakes"
            figures.append(f'<figure class="matrix"><figcaption>{title}</figcaption>{told}</figure>')
    if not figures:
        return ""
    return (
        f"<p>The tasks on which {escape(name)} has the least skill, and its largest; {len(figures)} of {len(scored)}. "
        "A row is the true class, a column what the model said, by number; a row sums to 100 %, its diagonal (green) "
        f'is the recall.</p><div class="matrices">{"".join(figures)}</div>'
    )
