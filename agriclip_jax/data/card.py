"""The data card of an ALive folder: what is in it and how it came to be, for a reader who was not there.

What can be measured is, in one pass over the written records, in memory that does not grow with their number; how the
folder was made is told by who made it. card.html needs nothing else, card.md says the same in the form of a Hugging
Face dataset card, card.json holds the numbers of both.
"""

import itertools
import json
import re
import zlib
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import ImageOps

from agriclip_jax import page
from agriclip_jax.data.measure import CONTEXT, PLACES, UNREADABLE, Tally, measure, pass_over, shortened
from agriclip_jax.data.records import Alive
from agriclip_jax.data.views import decode
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_record, write_whole

FEW = 10  # photos; a class with fewer is hardly learnt
SHOWN = 100  # rows of a table, items of a list
NAMED = 240  # letters of names in a row
LONG = 1200  # letters of an item of a list
SUMMARY_LINES = 40
BARS = 200  # of the chart of classes
PHOTOS = 192  # of all contact sheets together
PER_DOMAIN = (12, 24)  # of one contact sheet, least and most
PAIRS = 8  # of duplicates, of each kind
SIDE = 128  # pixels of an embedded photo

KINDS = {
    "template": "the name of the class in a sentence",
    "knowledge": "what the class looks like, from a table of facts",
    "taxonomy": "scientific names, rank by rank",
    "rewritten": "said anew by a language model",
    "described": "what a model saw in the photo",
    "given": "what came with the photo",
}
HUB_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


class Pair(NamedTuple):
    """Two photos that are the same, or nearly.

    Attributes:
      kind: of `PAIR_KINDS`.
      source: where the one comes from.
      other: where the one comes from that stays.
      names: what the two are called.
      image: the encoded photo.
      other_image: the encoded photo that stays.
    """

    kind: str
    source: str
    other: str
    names: tuple[str, str]
    image: bytes
    other_image: bytes


PAIR_KINDS = {
    "noise": ("One picture under two names", "At most one of the names can be right."),
    "held out": ("Also in a held-out set", "Training on them would spoil the score."),
    "near": ("Nearly the same picture", "Another size, crop or compression of one shot."),
    "exact": ("The same picture twice", ""),
}


def write_card(folder: Path | str, build: Mapping[str, Any], pairs: Sequence[Pair] = ()) -> None:
    """Writes card.html, card.md and card.json into an ALive folder, each whole or not at all.

    The same folder, build and pairs give the same bytes.

    Args:
      folder: that `records.write` made.
      build: how it was made, JSON-able, every key optional: command, version, date (texts); sources (a list of {slug,
        kind, origin}); funnel ([stage, dropped, left] each, first ["found", 0, n]); twins (numbers of "exact", "near",
        "noise" and "across_splits", found whether dropped or not); notes (texts); dropped ([source, reason] each, the
        first ones) and dropped_total; endpoints (texts: what language models cost); rejects (reason -> number of their
        answers not taken); unknown (names of classes without facts).
      pairs: duplicates to show.

    Raises:
      UserError: the folder is no whole ALive folder, or cannot be written.
    """
    alive = Alive.open(folder)
    tally = pass_over(alive)
    card = json.loads(json.dumps({"measured": measure(alive, tally), "build": build}))
    sections = _sections(card, _contact_sheets(alive, tally), _pictures(pairs))
    html = [(title, "".join(map(_html, blocks))) for title, blocks in sections]
    files = {
        "card.html": page.render(card["measured"]["name"], "data card", _header(card), html, STYLE),
        "card.md": _markdown(card, sections),
        "card.json": json.dumps(card, indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in files.items():
        # The name of a file that was no UTF-8 comes with surrogates in it.
        write_whole(alive.path / name, text.encode("utf-8", "replace").decode("utf-8"))


def summary(folder: Path | str) -> str:
    """What an ALive folder holds in some 40 lines of text, from its card.json; measured anew where that is missing.

    Raises:
      UserError: the folder is no whole ALive folder, or its card.json is damaged.
    """
    alive = Alive.open(folder)
    path = alive.path / "card.json"
    try:
        card = read_record(path, "measured", "build") if path.is_file() else None
        if card and card["measured"]["fingerprint"] == alive.fingerprint:
            return _summary(card)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, StopIteration) as error:
        raise UserError(f"{path} is damaged ({error!r:.80}); remove it, and all is measured anew") from error
    return _summary({"measured": measure(alive, pass_over(alive)), "build": {}})


# ---- what the card says ----------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """A paragraph; `kind` is "", "warning" or "command"."""

    text: str
    kind: str = ""


class Table(NamedTuple):
    """Rows of texts and numbers.

    Attributes:
      rows: texts, whole numbers, and shares as floats; the first cell names the row.
      head: names of the columns; empty for rows of a name and a value.
      title: what it is; on a page a table with a title is shown only when asked.
      chart: the HTML that a page shows beside it.
      bar: the column that a page draws as bars.
    """

    rows: Sequence[Sequence[Any]]
    head: Sequence[str] = ()
    title: str = ""
    chart: str = ""
    bar: int = -1


class Items(NamedTuple):
    """A list; on a page one with a title is shown only when asked."""

    items: Sequence[str]
    title: str = ""


class Sayings(NamedTuple):
    """Examples of captions by kind."""

    kinds: Mapping[str, Sequence[str]]


class Drawn(NamedTuple):
    """What only a page can show: HTML."""

    html: str


Block = Text | Table | Items | Sayings | Drawn


def _sections(card: Mapping[str, Any], sheets: str, pictures: str) -> list[tuple[str, list[Block]]]:
    """(title, blocks) each, for a page and for Markdown alike; `sheets` and `pictures` are HTML."""
    measured, build = card["measured"], card["build"]
    return [
        ("What is in it", [Drawn(sheets)]),
        ("Datasets", [_datasets(measured)]),
        ("Classes", _classes(measured)),
        ("Photos", [Table(_photo_facts(measured), chart=_side_chart(measured["photos"]))]),
        ("Captions", _captions(measured["captions"])),
        ("From found to kept", _funnel(build.get("funnel", []))),
        ("Duplicates", _duplicates(build.get("twins", {}), pictures)),
        ("Licences", _licences(measured)),
        ("How it was made", _making(measured, build)),
    ]


def _glance(measured: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(of what, how many, how they divide)."""
    captions, sizes, domains = measured["captions"], _sizes(measured), Counter()
    for about in measured["datasets"].values():
        domains[about["domain"]] += sum(about["splits"].values())
    least, most = (sizes[-1].photos, sizes[0].photos) if sizes else (0, 0)
    spread = f"{least:,} to {most:,} photos each" if least < most else f"{_many(most, 'photo')} each"
    kinds = {kind: about["captions"] for kind, about in captions["kinds"].items()}
    return [
        ("photos", f"{sum(measured['splits'].values()):,}", _listed(measured["splits"])),
        ("classes", f"{len(sizes):,}", spread if sizes else "photos have captions only"),
        ("datasets", f"{len(measured['datasets']):,}", _listed(dict(domains.most_common()))),
        ("captions a photo", f"{captions['a photo']['mean']:.1f}", _listed(kinds)),
    ]


def _datasets(measured: Mapping[str, Any]) -> Table:
    rows = [
        [
            slug,
            about["domain"],
            len(about["classes"]),
            *about["splits"].values(),
            _licence_of(about["licences"]),
            about["source"],
        ]
        for slug, about in measured["datasets"].items()
    ]
    return Table(rows, ("dataset", "domain", "classes", *measured["splits"], "licence", "source"))


def _licence_of(licences: Mapping[str, int]) -> str:
    named = {licence or "none stated": number for licence, number in licences.items()}
    return _listed(named) if len(named) > 1 else _named(list(named))


class Size(NamedTuple):
    """How many photos a class has in all splits."""

    photos: int
    dataset: str
    name: str

    def __str__(self) -> str:
        return f"{self.name} ({self.dataset}), {_many(self.photos, 'photo')}"


def _sizes(measured: Mapping[str, Any], *, empty: bool = False) -> list[Size]:
    """The classes with photos, or those without, largest first."""
    sizes = (
        Size(sum(of["photos"].values()), slug, of["name"])
        for slug, about in measured["datasets"].items()
        for of in about["classes"].values()
    )
    return sorted((size for size in sizes if empty != bool(size.photos)), key=lambda size: (-size[0], size[1:]))


def _classes(measured: Mapping[str, Any]) -> list[Block]:
    sizes, names = _sizes(measured), defaultdict(list)
    for size in sizes:
        names[size.dataset].append(f"{size.name} {size.photos:,}")
    listed = [f"{slug}: {_named(names[slug], LONG - 200)}" for slug in measured["datasets"] if slug in names]
    return [
        Table(_class_facts(measured), chart=_class_chart([size.photos for size in sizes])),
        *([Items(listed, "The classes of each dataset, with their photos")] if listed else []),
    ]


def _class_facts(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    sizes, empty = _sizes(measured), _sizes(measured, empty=True)
    few = [f"{size.name} ({size.photos})" for size in reversed(sizes) if size.photos < FEW]
    unlabelled = sum(about["without a class"] for about in measured["datasets"].values())
    facts = []
    if sizes:
        facts += [
            ("largest", str(sizes[0])),
            ("in the middle", _many(sizes[len(sizes) // 2].photos, "photo")),
            ("smallest", str(sizes[-1])),
            ("largest to smallest", f"{sizes[0].photos / sizes[-1].photos:,.3g} to 1"),
            (f"fewer than {FEW} photos", f"{len(few):,}: {_named(few)}" if few else "none"),
        ]
    if empty:
        facts.append(("without a photo", f"{len(empty):,}: {_named([size.name for size in empty])}"))
    if unlabelled:
        facts.append(("photos without a class", f"{unlabelled:,}"))
    return facts


def _photo_facts(measured: Mapping[str, Any]) -> list[tuple[str, str]]:
    photos, count = measured["photos"], sum(measured["splits"].values())
    sides = [(name, _middle(photos[name], "pixels")) for name in ("width", "height", "short side") if photos[name]]
    encoded = f"{_bytes(photos['bytes'])}, {_bytes(photos['bytes'] / count)} a photo"
    return [*sides, ("formats", _listed(photos["formats"])), ("encoded", encoded)]


def _captions(captions: Mapping[str, Any]) -> list[Block]:
    kinds, repeats = captions["kinds"], captions["repeats"]
    rows = [
        (
            kind,
            KINDS.get(kind, ""),
            of["captions"],
            of["captions"] / captions["captions"],
            of["tokens"]["median"],
            of["truncated"],
        )
        for kind, of in kinds.items()
    ]
    times = f"times in {repeats['split']}{'' if repeats['is exact'] else ', at least'}"
    return [
        Table(_caption_facts(captions), chart=_token_chart(captions)),
        Text(
            "What is said of a class is said of each of its photos, so captions repeat. Training treats equal captions "
            "as positives of each other: none is pushed away from a photo that it describes."
        ),
        Table(rows, ("kind", "what it is", "captions", "share", "tokens", f"past {CONTEXT}")),
        Sayings({kind: of["examples"] for kind, of in kinds.items()}),
        Table(repeats["most frequent"], ("most frequent, written alike", times)),
    ]


def _caption_facts(captions: Mapping[str, Any]) -> list[tuple[str, str]]:
    repeats, photo, share = captions["repeats"], captions["a photo"], captions["truncated"] / captions["captions"]
    different, total = repeats["distinct"], repeats["captions"]
    return [
        ("captions", f"{captions['captions']:,}; {photo['least']} to {photo['most']} a photo"),
        ("length", f"{_middle(captions['tokens'], 'tokens')}, the longest {captions['tokens']['most']}"),
        (f"past {CONTEXT} tokens", f"{_percent(share)}, whose ends go unread" if share else "none"),
        ("tokens counted by", captions["counted by"]),
        (f"repeats in {repeats['split']}", f"{_percent(1 - different / total)}; {different:,} different of {total:,}"),
    ]


def _funnel(stages: Sequence[tuple[str, int, int]]) -> list[Block]:
    found = max((left for _, _, left in stages), default=0) or 1
    rows = [(name, dropped, left, left / found) for name, dropped, left in stages]
    return [Table(rows, ("stage", "dropped", "left", "share left"), bar=3)] if rows else []


def _duplicates(twins: Mapping[str, int], pictures: str) -> list[Block]:
    said = {
        "noise": "one picture under two names",
        "near": "nearly the same picture",
        "exact": "the same picture",
        "across_splits": "one picture in two splits",
    }
    rows = [(what, twins[kind]) for kind, what in said.items() if kind in twins]
    found = [Text("Found, whether or not one of the two was dropped."), Table(rows, ("what", "pairs"))]
    return (found if rows else []) + ([Drawn(pictures)] if pictures else [])


def _licences(measured: Mapping[str, Any]) -> list[Block]:
    photos, datasets = Counter(), defaultdict(list)
    for slug, about in measured["datasets"].items():
        for licence, number in about["licences"].items():
            photos[licence] += number
            datasets[licence].append(slug)
    ordered = sorted(photos, key=lambda licence: (_is_stated(licence), -photos[licence], licence))
    rows = [(licence or "none stated", photos[licence], _named(datasets[licence])) for licence in ordered]
    return [
        *(
            Text(f"{said}: no licence stated; ask before you share a model or photos.", "warning")
            for said in _unstated(measured)
        ),
        Table(rows, ("licence, as the source states it", "photos", "datasets")),
    ]


def _unstated(measured: Mapping[str, Any]) -> list[str]:
    """How much has no licence stated, in one text; none where all have."""
    numbers = [
        sum(number for licence, number in about["licences"].items() if not _is_stated(licence))
        for about in measured["datasets"].values()
    ]
    numbers = [number for number in numbers if number]
    return [f"{_many(sum(numbers), 'photo')} of {_many(len(numbers), 'dataset')}"] if numbers else []


def _is_stated(licence: str) -> bool:
    return not re.match(r"$|(unknown|none|not stated|unspecified|n/a)\b", licence, re.IGNORECASE)


def _making(measured: Mapping[str, Any], build: Mapping[str, Any]) -> list[Block]:
    facts = {"version": build.get("version"), "date": build.get("date"), "fingerprint": measured["fingerprint"]}
    sources = [[about.get(key, "") for key in ("slug", "kind", "origin")] for about in build.get("sources", [])]
    dropped = build.get("dropped", [])
    total = build.get("dropped_total", len(dropped))
    first = f", the first {len(dropped):,} here, all in dropped.csv" if total > len(dropped) else ""
    blocks = [
        Text(build.get("command", ""), "command"),
        Table([(name, fact) for name, fact in facts.items() if fact]),
        Items(build.get("notes", [])),
        Table(sources, ("dataset", "kind", "origin"), "Sources"),
        Items(build.get("endpoints", []), "Language models"),
        Table(list(build.get("rejects", {}).items()), ("why", "answers"), "Answers of models that were not taken"),
        Table(dropped, ("photo", "why"), f"What was dropped: {_many(total, 'photo')}{first}"),
        Items(build.get("unknown", []), "Classes of which no fact is known"),
    ]
    return [block for block in blocks if block[0]]


def _many(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 'es' if one.endswith('s') else 's'}"


def _listed(counts: Mapping[str, int]) -> str:
    return _named([f"{name} {count:,}" for name, count in counts.items()])


def _named(names: Sequence[str], most: int = NAMED) -> str:
    """The names in a row of about `most` letters, one at least, and how many more there are."""
    upto = list(itertools.accumulate(len(name) + 2 for name in names))
    shown = max(bisect_right(upto, most), 1)
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")


def _middle(quantiles: Mapping[str, float], unit: str) -> str:
    return f"{quantiles['median']:,} {unit}; nine of ten {quantiles['5 %']:,} to {quantiles['95 %']:,}"


def _percent(share: float) -> str:
    return "< 0.1 %" if 0 < share < 0.001 else f"{100 * share:.1f} %"


def _bytes(number: float) -> str:
    power = min((len(str(int(number))) - 1) // 3, 3)
    return f"{number / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB')[power]}"


def _cell(cell: Any) -> str:
    """A cell of a table as plain text."""
    if isinstance(cell, float):
        return _percent(cell)
    return f"{cell:,}" if isinstance(cell, int) else shortened(cell)


def _left_out(items: Sequence[Any], shown: int = SHOWN) -> str:
    return f"and {len(items) - shown:,} more" if len(items) > shown else ""


# ---- as a page -------------------------------------------------------------------------------------------------------


def _header(card: Mapping[str, Any]) -> str:
    measured, build = card["measured"], card["build"]
    made = [build.get("version", ""), build.get("date", ""), measured["fingerprint"][:12]]
    facts = page.facts(dict(zip(("made with", "date", "fingerprint"), made, strict=True)))
    return facts + page.cards((name, many, "", escape(said)) for name, many, said in _glance(measured))


def _html(block: Block) -> str:
    match block:
        case Text(text, "command"):
            return f'<pre tabindex="0">{escape(text)}</pre>'
        case Text(text, kind):
            return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"
        case Table(rows, _, title, chart):
            table = _html_table(block)
            return _html_folded(title, f'<div class="beside">{chart}{table}</div>' if chart else table, rows)
        case Items(items, title):
            rows = "".join(f"<li>{escape(shortened(item, LONG))}</li>" for item in items[:SHOWN])
            return _html_folded(title, f'<ul class="notes">{rows}</ul>', items)
        case Sayings(kinds):
            return f'<div class="sayings">{"".join(itertools.starmap(_html_saying, kinds.items()))}</div>'
        case Drawn(html):
            return html


def _html_folded(title: str, body: str, items: Sequence[Any]) -> str:
    body += f'<p class="notes">{_left_out(items)}</p>' if _left_out(items) else ""
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if title else body


def _html_saying(kind: str, examples: Sequence[str]) -> str:
    rows = "".join(f'<li dir="auto">{escape(shortened(text, NAMED))}</li>' for text in examples)
    return f'<div class="card"><p>{escape(kind)}</p><ul>{rows}</ul></div>'


def _html_table(table: Table) -> str:
    def cell(column: int, content: Any, scope: str = "") -> str:
        if column == table.bar and not scope:
            return f'<td class="bar">{_html_bar(content)}</td>'
        is_number = isinstance(table.rows[0][column], int | float) and column != table.bar
        kind = ' class="n"' if is_number else ' class="long"' if len(str(content)) > 30 else ""
        tag, of = ("th", f' scope="{scope}"') if scope else ("td", "")
        return f"<{tag}{of}{kind}>{_html_name(_cell(content))}</{tag}>"

    head = "".join(cell(column, name, "col") for column, name in enumerate(table.head))
    rows = "".join(
        f"<tr>{cell(0, name, 'row')}{''.join(cell(column, content) for column, content in enumerate(cells, 1))}</tr>"
        for name, *cells in table.rows[:SHOWN]
    )
    head = f"<thead><tr>{head}</tr></thead>" if head else ""
    kind = "rows" if table.chart or len(table.rows[0]) > 2 else "rows two"
    return page.scrolling(
        table.title or ", ".join(table.head) or "Facts", f'<table class="{kind}">{head}<tbody>{rows}</tbody></table>'
    )


def _html_bar(share: float) -> str:
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{_percent(share)}">'
        '<rect class="track" width="100" height="10"/>'
        f'<rect class="fill" width="{100 * share:.2f}" height="10"/></svg>'
    )


def _html_name(text: str) -> str:
    """A text that may break where a path or a slug has a seam."""
    return re.sub(r"([/_])", r"\1<wbr>", escape(text))


def _class_chart(sizes: Sequence[int]) -> str:
    if not sizes:
        return ""
    ranks = np.linspace(0, len(sizes) - 1, min(BARS, len(sizes))).round().astype(int)
    places = np.linspace(0, len(ranks) - 1, min(5, len(ranks))).round().astype(int)
    return page.bars(
        "Photos of each class",
        "largest first, logarithmic",
        [sizes[rank] for rank in ranks],
        [(place + 0.5, f"{ranks[place] + 1:,}") for place in places],
        f"from {sizes[0]:,} of the largest to {sizes[-1]:,} of the smallest",
        is_logarithmic=True,
    )


def _side_chart(photos: Mapping[str, Any]) -> str:
    counts, edges = photos["histogram"], photos["short side from"]
    filled = [place for place, count in enumerate(counts) if count]
    if not filled:
        return ""
    first, last = max(filled[0] - 3, 0), filled[-1] + 4
    ticks = [(place, f"{edge:,}") for place, edge in enumerate(edges[first:last]) if edge & (edge - 1) == 0]
    said = f"half of them at least {photos['short side']['median']:,} pixels"
    return page.bars("Photos by short side", "pixels", counts[first:last], ticks, said)


def _token_chart(captions: Mapping[str, Any]) -> str:
    edges = captions["tokens from"]
    ticks = [((tokens - edges[0]) / (edges[1] - edges[0]), f"{tokens}") for tokens in range(10, 100, 10)]
    said = f"half of them at least {captions['tokens']['median']} tokens, {captions['truncated']:,} past {CONTEXT}"
    return page.bars(
        "Captions by length",
        "tokens",
        captions["histogram"],
        ticks,
        said,
        limit=(edges.index(CONTEXT + 1), f"{CONTEXT} are read"),
    )


def _contact_sheets(alive: Alive, tally: Tally) -> str:
    """Photos of each domain, spread over its datasets and their classes."""
    sources = {split: alive.source(split) for split in alive.splits}
    photos, groups = Counter(), defaultdict(list)
    for (slug, _, _), count in tally.photos.items():
        photos[alive.datasets[slug].domain] += count
    for slug, key in tally.places.groups:
        groups[alive.datasets[slug].domain].append((slug, key))
    domains = sorted(photos, key=lambda domain: (-photos[domain], domain))
    shown = domains[: PHOTOS // PER_DOMAIN[0]]
    sheets = ["<p>Drawn at random from all splits, evenly over datasets and classes.</p>"]
    for domain in shown:
        figures = []
        for slug, key, split, index in _chosen(tally, groups[domain], min(PHOTOS // len(shown), PER_DOMAIN[1])):
            name = alive.datasets[slug].classes[key] or "no class"
            square = _photo(sources[split][index]["image"], f"{name}, from {slug}", is_square=True)
            figures.append(f"<figure>{square}{_figcaption(name, slug)}</figure>")
        title = f"{escape(domain)} <span>{_many(photos[domain], 'photo')}</span>"
        sheets.append(f'<h3>{title}</h3><div class="sheet">{"".join(figures)}</div>')
    more = f'<p class="notes">{_left_out(domains, len(shown))}</p>' if len(domains) > len(shown) else ""
    return "".join(sheets) + more


def _chosen(tally: Tally, groups: Sequence[tuple[str, str]], count: int) -> Iterator[tuple[str, str, str, int]]:
    """(dataset, class_key, split, index) of up to `count` photos: each dataset in turn, and in it each class."""
    turns, in_order = defaultdict(list), sorted(groups, key=lambda group: zlib.crc32("/".join(group).encode()))
    for turn, (slug, key) in itertools.product(range(PLACES), in_order):
        turns[slug] += [(slug, key, *place) for *_, place in tally.places.groups[slug, key][turn : turn + 1]]
    in_turn = filter(None, itertools.chain(*itertools.zip_longest(*turns.values())))
    chosen = list(itertools.islice(in_turn, count))
    return sorted(chosen, key=lambda photo: groups.index(photo[:2]))


def _photo(data: bytes, text: str, *, is_square: bool = False) -> str:
    """An encoded photo, or its centre square, as an `img`; two words where it cannot be read."""
    try:
        photo = decode(data, SIDE)
    except UserError:
        return f'<p class="unread">{UNREADABLE}</p>'
    if is_square:
        photo = ImageOps.fit(photo, (min(SIDE, *photo.size),) * 2)
    return page.picture(photo, shortened(text, 200), SIDE)


def _figcaption(name: str, place: str) -> str:
    said = f"{_html_name(shortened(name, 80))}<span>{_html_name(shortened(place, 120))}</span>"
    return f'<figcaption dir="auto">{said}</figcaption>'


def _pictures(pairs: Sequence[Pair]) -> str:
    """Pairs of photos by kind, those under two names first."""
    blocks = []
    for kind, (title, said) in PAIR_KINDS.items():
        of_kind = [pair for pair in pairs if pair.kind == kind]
        figures = "".join(
            f'<div class="twins"><figure>{_photo(pair.image, pair.names[0])}{_figcaption(pair.names[0], pair.source)}'
            f"</figure><figure>{_photo(pair.other_image, pair.names[1])}{_figcaption(pair.names[1], pair.other)}"
            "</figure></div>"
            for pair in of_kind[:PAIRS]
        )
        if figures:
            blocks.append(f'<h3>{title} <span>{said}</span></h3><div class="pairs">{figures}</div>')
            blocks.append(f'<p class="notes">{_left_out(of_kind, PAIRS)}</p>' if len(of_kind) > PAIRS else "")
    return "".join(blocks)


STYLE = """
h3{font-size:16px;font-weight:600;margin:26px 0 10px}h3 span{color:var(--soft);font-weight:400;margin-left:6px}
.warning{color:var(--wrong);font-weight:600}
.rows{font-size:14px;border-collapse:separate;border-spacing:0}.rows .long wbr{display:inline}
.rows .long{white-space:normal;overflow-wrap:anywhere;min-width:min(60vw,220px);line-height:1.4}
@media (max-width:700px){.rows .bar{min-width:80px}}
.rows.two{width:auto;min-width:min(100%,400px)}
.beside{align-items:start}.beside .chart{flex:1 1 300px;max-width:520px}.beside .wide{flex:1 1 300px}
section>*+*{margin-top:20px}section>h2+*,section>h3+*{margin-top:0}
details:last-child{border-bottom:0}details+details{margin-top:0}summary+*{margin-top:10px}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(118px,30%),1fr));gap:14px 10px}
.sheet img,.twins img{display:block;width:100%;height:auto;aspect-ratio:1;object-fit:contain;border-radius:6px}
.sheet figcaption,.twins figcaption{font-size:12.5px;line-height:1.3;padding-top:5px;overflow-wrap:anywhere}
.sheet span,.twins span{display:block;color:var(--soft)}
.unread{aspect-ratio:1;margin:0;display:grid;place-items:center;color:var(--soft);font-size:13px;
border:1px solid var(--line);border-radius:6px}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,250px),1fr));gap:16px}
.twins{display:grid;grid-template-columns:1fr 1fr;gap:6px;background:var(--raised);border:1px solid var(--line);
border-radius:10px;padding:10px}
.sayings{display:grid;align-items:start;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:16px}
.sayings ul{margin:10px 0 0;padding:0;list-style:none;font-size:15px}
.sayings li{padding:5px 0;border-top:1px solid var(--line);overflow-wrap:anywhere}
@media print{.sheet{grid-template-columns:repeat(8,1fr)}.sayings{grid-template-columns:1fr 1fr}
.pairs{grid-template-columns:repeat(3,1fr)}h3{break-after:avoid}.twins{break-inside:avoid}}
""".replace("\n", "")


# ---- as text ---------------------------------------------------------------------------------------------------------


def _markdown(card: Mapping[str, Any], sections: Sequence[tuple[str, Sequence[Block]]]) -> str:
    measured = card["measured"]
    licences = {licence for about in measured["datasets"].values() for licence in about["licences"]}
    count = sum(measured["splits"].values())
    front = {
        "license": _hub_licence(licences.pop()) if len(licences) == 1 else "other",
        "task_categories": ["zero-shot-image-classification", "image-to-text"],
        "language": ["en"],
        "size_categories": [next((size for most, size in HUB_SIZES.items() if count < most), "10M<n<100M")],
        "pretty_name": measured["name"],
    }
    said = [(title, [text for text in map(_md_block, blocks) if text]) for title, blocks in sections]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {_md(measured['name'])}",
        "\n".join(f"* **{name}**: {how_many} ({_md(said)})" for name, how_many, said in _glance(measured)),
        *itertools.chain(*([f"## {title}", *texts] for title, texts in said if texts)),
    ]
    return "\n\n".join(parts) + "\n"


def _hub_licence(licence: str) -> str:
    """Hugging Face's identifier of a licence."""
    name = re.sub(r"[^a-z0-9.]+", "-", licence.casefold()).strip("-")
    name = {"": "unknown", "cc0": "cc0-1.0"}.get(name, name)
    known = r"mit|apache-2\.0|gpl-3\.0|odbl|unknown|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.[05]"
    return name if re.fullmatch(known, name) else "other"


def _md(text: str) -> str:
    """A text in one line of Markdown, with nothing in it that Markdown or HTML would read."""
    text = re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _md_block(block: Block) -> str:
    match block:
        case Text(text, kind):
            return f"    {' '.join(text.split())}" if kind == "command" else _md(text)
        case Table(rows, head, title):
            lines = [[_md(name) for name in head] or [""] * len(rows[0]), ["---"] * len(rows[0])]
            lines += [[_md(_cell(cell)) for cell in row] for row in rows[:SHOWN]]
            return _md_titled(title, "\n".join(f"| {' | '.join(line)} |" for line in lines), rows)
        case Items(items, title):
            return _md_titled(title, "\n".join(f"* {_md(shortened(item, LONG))}" for item in items[:SHOWN]), items)
        case Sayings(kinds):
            said = {
                kind: " · ".join(f"“{_md(shortened(text, NAMED))}”" for text in texts) for kind, texts in kinds.items()
            }
            return "\n".join(f"* {_md(kind)}: {texts}" for kind, texts in said.items())
        case Drawn():
            return ""


def _md_titled(title: str, text: str, items: Sequence[Any]) -> str:
    return "\n\n".join(filter(None, (title and f"### {_md(title)}", text, _left_out(items))))


def _summary(card: Mapping[str, Any]) -> str:
    measured, build = card["measured"], card["build"]
    facts = [
        *((name, f"{how_many}: {said}") for name, how_many, said in _glance(measured)),
        *_class_facts(measured),
        *_photo_facts(measured),
        *_caption_facts(measured["captions"])[1:],
        *(("no licence stated", said) for said in _unstated(measured)),
        *((name, build[name]) for name in ("command", "version", "date") if build.get(name)),
        ("fingerprint", measured["fingerprint"]),
    ]
    datasets = [
        (slug, f"{about['domain']}: {_many(len(about['classes']), 'class')}, {_listed(about['splits'])}")
        for slug, about in measured["datasets"].items()
    ]
    room = SUMMARY_LINES - len(facts) - 3
    rows = [f"  {shortened(name, 24):<24} {shortened(said, 100)}" for name, said in [*facts, *datasets[:room]]]
    more = [f"  {_left_out(datasets, room)}"] if len(datasets) > room else []
    return "\n".join([shortened(measured["name"]), *rows[: len(facts)], "", *rows[len(facts) :], *more, ""])
