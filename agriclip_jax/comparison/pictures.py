"""The sections of pictures: photos with the answers to them, what is found by a text, and maps of the embeddings."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from agriclip_jax import page
from agriclip_jax.comparison import parts
from agriclip_jax.evaluate import records
from agriclip_jax.evaluate.records import Record, Run, percent

PHOTO_TASKS, PHOTOS_PER_TASK = 6, 2  # of which random photos are shown
MISTAKES, MISTAKES_PER_TASK = 12, 2  # of each run
WAYS = {"image_to_text": "photo to text", "text_to_image": "text to photo"}
KS = ("1", "5", "10")
GALLERY_TEXTS = 16  # of each group, over all runs
MAP_POINTS = 6000  # on all maps together
MAP_CLASSES, MAP_KEYS = 12, 24  # coloured by class up to so many, and by at most so many keys
MAX_PHOTO, MAX_PIXELS = 1 << 20, 1 << 22  # bytes and pixels of a photo that is shown


def mistakes(runs: Sequence[Run], names: Sequence[str]) -> str:
    """The wrong answers of each run that it was surest of."""
    shown, most = [], max(4, MISTAKES // len(runs))
    for place, run in enumerate(runs):
        found = [
            (each["nearest"][0][1], task, each)
            for task, record in run.scored("pictures").items()
            for each in [each for each in record["mistakes"] if each["nearest"]][:MISTAKES_PER_TASK]
        ]
        surest = sorted(found, key=lambda each: -each[0])[:most]
        if surest:
            title = f"<h3>{parts.run(place, names)}</h3>" if len(runs) > 1 else ""
            figures = "".join(_mistake(run, task, entry) for _, task, entry in surest)
            shown.append(f'{title}<div class="photos small">{figures}</div>')
    if not shown:
        return ""
    return (
        f"<p>Wrong answers that a model was surest of: the {most} surest of each run, at most {MISTAKES_PER_TASK} of a "
        f"task.</p>{''.join(shown)}"
    )


def _mistake(run: Run, task: str, entry: Mapping[str, Any]) -> str:
    record = run.of("pictures")[task]
    said, confidence = entry["nearest"][0]
    picture = _photo(run, entry["file"], f"{record['class_names'][entry['label']]}, from {task}", 200)
    return (
        f'<figure class="photo">{picture}<figcaption><p>{parts.task(task)}</p><p class="wrong">'
        f'<span aria-hidden="true">✗ </span>{escape(record["class_phrases"][said])}, {percent(confidence)}&nbsp;%</p>'
        f'<p class="truth">It is {escape(record["class_phrases"][entry["label"]])}.</p></figcaption></figure>'
    )


def _chosen(runs: Sequence[Run]) -> list[tuple[str, list[tuple[int, Mapping[str, Any]]]]]:
    """(task, (place of a run, its sample) of each run that has it) of the photos to show, evenly over tasks."""
    tasks = list(dict.fromkeys(task for run in runs for task in run.scored("pictures")))
    kept = [tasks[i] for i in np.linspace(0, len(tasks) - 1, min(PHOTO_TASKS, len(tasks))).round().astype(int)]
    chosen = []
    for task in kept:
        of_sources: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
        for i, run in enumerate(runs):
            for sample in run.scored("pictures").get(task, {}).get("samples", ()):
                of_sources.setdefault(sample["source"], []).append((i, sample))
        most_runs = sorted(of_sources.values(), key=lambda found: -len(found))
        chosen += [(task, found) for found in most_runs[:PHOTOS_PER_TASK]]
    return chosen


def samples(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Random photos, and what each run takes them for."""
    chosen, figures = _chosen(runs), []
    few = 3 if len(runs) <= 2 else 1
    for task, found in chosen:
        answers = []
        for i, sample in found:
            phrases, label = runs[i].of("pictures")[task]["class_phrases"], sample["label"]
            nearest = [(phrases[k], share, k == label) for k, share in sample["nearest"][:few]]
            answers.append(
                parts.who(i, names) + (page.nearest(nearest) if nearest else "<p>not asked: one class only</p>")
            )
        (i, sample), record = found[0], runs[found[0][0]].of("pictures")[task]
        is_known = 0 <= sample["label"] < len(record["class_names"])
        true = record["class_phrases"][sample["label"]] if is_known else "without a label"
        picture = _photo(runs[i], sample["file"], f"{true}, from {task}", 240)
        figures.append(
            f'<figure class="photo">{picture}<figcaption><p>{parts.task(task)}</p>{"".join(answers)}'
            f'<p class="truth">It is {escape(true)}.</p></figcaption></figure>'
        )
    if not figures:
        return ""
    return (
        f"<p>Drawn at random, {PHOTOS_PER_TASK} of {parts.many(len({task for task, _ in chosen}), 'task')} of "
        f"{len({task for run in runs for task in run.scored('pictures')})}; the answers are among the classes of each "
        "photo’s own task. <b class='right'>✓ right</b> · <b class='wrong'>✗ nearest, but wrong</b></p>"
        f'<div class="photos">{"".join(figures)}</div>'
    )


def attention(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Where the runs look on the same photos."""
    figures = []
    for task, found in _chosen(runs)[::PHOTOS_PER_TASK]:
        i, sample = found[0]
        shown = [("photo", _photo(runs[i], sample["file"], f"from {task}", 192))]
        for i, sample in found:
            if "attention" in sample:
                picture = _photo(runs[i], sample["attention"], f"attention of {names[i]} on a photo from {task}", 192)
                shown.append((names[i] if len(runs) > 1 else "attention", picture))
        views = "".join(f"<div>{picture}<p>{escape(title)}</p></div>" for title, picture in shown)
        figures.append(
            f'<figure class="look"><div class="views">{views}</div><figcaption>{parts.task(task)}</figcaption></figure>'
        )
    if not figures:
        return ""
    return (
        "<p>Attention of the image tower’s last block from the pooled output to the patches, mean over the heads. "
        f'Bright is looked at; every map has its own scale.</p><div class="looks">{"".join(figures)}</div>'
    )


def _photo(run: Run, file: str, text: str, side: int) -> str:
    """An `img` of a photo beside the records, or a line where there is none."""
    path, folder = (run.folder / file).resolve(), run.folder.resolve()
    try:
        if folder in path.parents and path.stat().st_size <= MAX_PHOTO:
            with Image.open(path, formats=("JPEG",)) as image:
                if math.prod(image.size) <= MAX_PIXELS:
                    return page.picture(image, text, side)
    except (OSError, SyntaxError, Image.DecompressionBombError):  # of a file that is no JPEG, or half of one
        pass
    return f'<p class="gone">{escape(text)}: the photo is missing</p>'


def retrieval(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Whether photos find their texts and texts their photos."""
    bodies, galleries, notes = [], [], []
    for group in records.groups(runs):
        found = {place: run.of("retrieval")[group] for place, run in enumerate(runs) if group in run.of("retrieval")}
        notes += [(group, names[i], r["not_scored"]) for i, r in found.items() if "not_scored" in r]
        scored, lines = {place: record for place, record in found.items() if "not_scored" not in record}, []
        for key, way in WAYS.items():
            for place, record in scored.items():
                name = f"{way}<small>{parts.run(place, names)}</small>" if len(runs) > 1 else way
                median = f"{record[key]['median_rank']:g}"
                lines.append(parts.row(name, parts.numbers((*_recalls(record[key], "recall"), median))))
            for record in list(scored.values())[:1]:
                chance = parts.numbers((*_recalls(record[key], "chance"), ""))
                lines.append(parts.row(f"{way}, by chance", chance, "quiet"))
        bodies.append(parts.group(group, 7, lines))
        galleries.append(_gallery(runs, names, group))
    columns = ("queries", "candidates", *(f"recall at {k}" for k in KS), "median rank")
    table = parts.table("Retrieval", parts.head("way", numbers=columns), bodies)
    said = (
        "<p>Among all photos and all texts of a group: how often something right is among the first 1, 5 and 10, in "
        "%. A tie counts as lost.</p>"
    )
    return f"{said if table else ''}{table}{parts.notes(notes)}{''.join(galleries)}"


def _recalls(way: Mapping[str, Any], kind: str) -> list[str]:
    return [f"{way['queries']:,}", f"{way['candidates']:,}", *(percent(way[kind].get(k)) for k in KS)]


def _gallery(runs: Sequence[Run], names: Sequence[str], group: str) -> str:
    galleries = [
        {each["text"]: each["photos"] for each in run.scored("retrieval").get(group, {}).get("gallery", ())}
        for run in runs
    ]
    texts = list(dict.fromkeys(text for gallery in galleries for text in gallery))
    figures = []
    for text in texts[: max(2, GALLERY_TEXTS // (2 * len(runs)))]:
        strips = ""
        for i, gallery in enumerate(galleries):
            if text in gallery:
                hits = "".join(_hit(runs[i], photo) for photo in gallery[text])
                strips += f'{parts.who(i, names)}<ol class="strip">{hits}</ol>'
        figures.append(f'<figure class="look"><figcaption>“{escape(text)}”</figcaption>{strips}</figure>')
    if not figures:
        return ""
    left_out = f", the first {len(figures)} of {len(texts)} texts" if len(figures) < len(texts) else ""
    return (
        f"<h3>{escape(group)}: the five photos nearest to a text{left_out}</h3>"
        f'<div class="looks">{"".join(figures)}</div>'
    )


def _hit(run: Run, photo: Mapping[str, Any]) -> str:
    kind, mark = ("right", "✓") if photo["right"] else ("wrong", "✗")
    picture = _photo(run, photo["file"], f"from {photo['dataset']}, {kind}", 112)
    return f'<li class="{kind}">{picture}<span aria-hidden="true">{mark}</span></li>'


SHAPES = (  # of marks, around (0, 0)
    "M-2.6 0a2.6 2.6 0 1 0 5.2 0a2.6 2.6 0 1 0 -5.2 0z",
    "M-2.3 -2.3h4.6v4.6h-4.6z",
    "M0 -3.2l3 5.4h-6z",
    "M0 -3.4l3 3.4l-3 3.4l-3 -3.4z",
    "M-3.1 -1h2.1v-2.1h2v2.1h2.1v2h-2.1v2.1h-2v-2.1h-2.1z",
    "M0 3.2l3 -5.4h-6z",
)


def maps(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Maps of the embeddings, one of each group and run."""
    found = [
        (group, i, run.scored("map")[group])
        for group in records.groups(runs)
        for i, run in enumerate(runs)
        if group in run.scored("map")
    ]
    if not found:
        return ""
    shown = []
    for group in dict.fromkeys(group for group, _, _ in found):
        of_group = [(i, record) for name, i, record in found if name == group]
        keys = _keys([record for _, record in of_group])
        figures = "".join(
            _map(record, keys, f"{group}, {names[i]}", names[i] if len(runs) > 1 else group, MAP_POINTS // len(found))
            for i, record in of_group
        )
        legend = "".join(
            f"<li>{_key(place)}{escape(said)}</li>" for said, place in dict(keys.values()).items() if place < MAP_KEYS
        )
        legend += f"<li>{_key(MAP_KEYS)}others</li>" if len(set(keys.values())) > MAP_KEYS else ""
        shown.append(f'<h3>{escape(group)}</h3><ul class="legend">{legend}</ul><div class="maps">{figures}</div>')
    shapes = "".join(f'<path id="mark-{i}" d="{shape}"/>' for i, shape in enumerate(SHAPES))
    return (
        "<p>Each mark is a photo; photos that are alike to the model lie near each other. Only nearness means "
        "anything: the axes and the distances between far groups do not, and every map has its own.</p>"
        f'<svg class="sr" aria-hidden="true"><defs>{shapes}</defs></svg>{"".join(shown)}'
    )


def _keys(maps: Sequence[Record]) -> dict[tuple[str, int], tuple[str, int]]:
    """(dataset, label) -> (what its mark means, its place), the same on every map of a group."""
    pairs = Counter(pair for record in maps for pair in zip(record["datasets"], record["labels"], strict=True))
    classes = {name: of for record in maps for name, of in record["class_names"].items()}
    datasets = dict.fromkeys(dataset for dataset, _ in pairs)
    by_class = len(pairs) <= MAP_CLASSES or len(datasets) == 1

    def said(dataset: str, label: int) -> str:
        if not by_class:
            return dataset
        name = classes[dataset][label] if label >= 0 else "without a label"
        return name if sum(name in of_dataset for of_dataset in classes.values()) == 1 else f"{name} ({dataset})"

    sizes: Counter[str] = Counter()
    for pair, count in pairs.items():
        sizes[said(*pair)] += count
    order = [name for name, _ in sizes.most_common()] if len(sizes) > MAP_KEYS else list(sizes)
    return {pair: (said(*pair), order.index(said(*pair))) for pair in pairs}


def _colour(place: int) -> str:
    return f"c{place % page.COLOURS + 1}" if place < MAP_KEYS else "rest"


def _key(place: int) -> str:
    return f'<svg class="mark {_colour(place)}" viewBox="-4 -4 8 8" aria-hidden="true">{_mark(place)}</svg>'


def _mark(place: int, at: str = "") -> str:
    shape = place % len(SHAPES) if place < MAP_KEYS else 0
    return f'<use href="#mark-{shape}"{at}/>'


def _map(record: Record, keys: Mapping[tuple[str, int], tuple[str, int]], label: str, title: str, most: int) -> str:
    x, y = np.array(record["x"], float), np.array(record["y"], float)
    kept = np.unique(np.linspace(0, len(x) - 1, min(most, len(x))).round().astype(int))
    wide = max(np.ptp(x), np.ptp(y), 1e-9)
    across = 10 + 340 * (x - (x.min() + x.max() - wide) / 2) / wide
    down = 350 - 340 * (y - (y.min() + y.max() - wide) / 2) / wide
    marks: dict[int, list[str]] = {}
    for i in kept.tolist():
        dataset, of_class = record["datasets"][i], record["labels"][i]
        name = record["class_names"][dataset][of_class] if of_class >= 0 else "without a label"
        place = keys[dataset, of_class][1]
        told = f"<title>{escape(name)}, {escape(dataset)}</title>"
        use = _mark(place, f' x="{across[i]:.1f}" y="{down[i]:.1f}"')
        marks.setdefault(place, []).append(f"{use.removesuffix('/>')}>{told}</use>")
    groups = "".join(f'<g class="{_colour(place)}">{"".join(marks[place])}</g>' for place in sorted(marks))
    note = f"{len(kept):,} of {len(x):,} photos" if len(kept) < len(x) else f"{len(x):,} photos"
    said = f"map of the embeddings of {len(kept)} photos, {label}"
    return (
        f'<figure class="chart map"><figcaption>{escape(title)} <span>{note}</span></figcaption>'
        f'<svg viewBox="0 0 360 360" role="img" aria-label="{escape(said)}">{groups}</svg></figure>'
    )
