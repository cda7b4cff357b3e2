"""The frame of an HTML page that needs nothing else: it opens offline, prints, and follows the reader's light or dark.

A caller gives the header and the sections as HTML in which every text of others is escaped; tables have the class
"rows", stand in `scrolling`, and their numbers have the class "n". What is drawn of scores needs `SCORES` as style.
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from PIL import Image

COLOURS = 8  # that can be told apart, also by the colour-blind
# What `share_bars` draws, for the head of their column.
BARS = (
    '<span class="nowrap"><i class="key fill"></i>top-1</span> <span class="nowrap"><i class="key"></i>interval</span> '
    '<span class="nowrap"><i class="key chance"></i>chance</span>'
)
FEW_POINTS = 40  # of a line; they are marked


def render(title: str, kind: str, header: str, sections: Iterable[tuple[str, str]], style: str = "") -> str:
    """A whole page.

    Args:
      title: of the page, plain text.
      kind: what the page is, above the title: "report of a run", plain text.
      header: HTML below the title.
      sections: (title in plain text, HTML) each; one without HTML is left out.
      style: CSS of what only this page has.
    """
    filled = [(f"section-{i}", escape(name), body) for i, (name, body) in enumerate(sections) if body]
    links = "".join(f'<a href="#{key}">{name}</a>' for key, name, _ in filled)
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{name}</h2>{body}</section>' for key, name, body in filled
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · agriclip_jax</title><style>{STYLE}{style}</style></head><body>"
        f'<header><p class="eyebrow">agriclip_jax · {escape(kind)}</p><h1>{escape(title)}</h1>{header}</header>'
        f'<nav aria-label="Sections">{links}</nav><main>{body}</main></body></html>\n'
    )


def facts(named: Mapping[str, str]) -> str:
    """A line of facts by name, in plain text; an empty one is left out."""
    shown = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>" for name, fact in named.items() if fact
    )
    return f'<dl class="facts">{shown}</dl>'


def cards(figures: Iterable[tuple[str, str, str, str]]) -> str:
    """Large figures: (what it is, the figure, its unit, what it says) each; the last is HTML, the others plain text."""
    shown = "".join(
        f'<div class="card"><p>{escape(name)}</p>'
        f'<p class="figure">{escape(figure)}{f"<span> {escape(unit)}</span>" if unit else ""}</p>'
        f"<p>{note}</p></div>"
        for name, figure, unit, note in figures
    )
    return f'<div class="cards">{shown}</div>' if shown else ""


def scrolling(label: str, table: str) -> str:
    """A table that scrolls by itself where the page is narrower, with the keyboard too; `label` is plain text."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def picture(image: Image.Image, text: str, side: int = 240) -> str:
    """An `img` that carries its own pixels.

    Args:
      image: of any size; `side` pixels are the most that its longer side keeps.
      text: what it shows, in plain text, for who does not see it.
      side: in pixels.
    """
    return photo(jpeg(image, side), text)


def photo(data: bytes, text: str) -> str:
    """An `img` that carries a JPEG as it is; raises OSError when it is none."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        width, height = image.size
    encoded = base64.b64encode(data).decode()
    return f'<img src="data:image/jpeg;base64,{encoded}" alt="{escape(text)}" width="{width}" height="{height}">'


def jpeg(image: Image.Image, side: int) -> bytes:
    """A JPEG of an image whose longer side keeps at most `side` pixels."""
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=82)
    return data.getvalue()


def overlay(view: np.ndarray, heat: np.ndarray, side: int = 192) -> Image.Image:
    """A view in grey with a map laid over it in colour, bright where the map is high.

    Args:
      view: uint8 [height, width, 3].
      heat: [rows, columns] over the whole view, of any range; it is scaled to its own.
      side: of the picture's longer side, pixels.
    """
    from matplotlib import colormaps

    size = [max(1, round(side * edge / max(view.shape[:2]))) for edge in view.shape[1::-1]]
    low, high = heat.min(), heat.max()
    scaled = ((heat - low) / max(high - low, 1e-12)).astype(np.float32)
    scaled = np.asarray(Image.fromarray(scaled).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    shown = Image.fromarray(view).resize(size, Image.Resampling.BICUBIC)
    grey = np.asarray(shown.convert("L"), np.float32)[..., None] / 255
    colour = colormaps["inferno"](scaled[..., 0])[..., :3]
    strength = 0.25 + 0.5 * scaled
    return Image.fromarray((255 * ((1 - strength) * grey + strength * colour)).round().astype(np.uint8))


def bars(
    title: str,
    unit: str,
    heights: Sequence[int],
    ticks: Iterable[tuple[float, str]],
    said: str,
    *,
    is_logarithmic: bool = False,
    limit: tuple[int, str] | None = None,
) -> str:
    """A chart of bars that takes its colours from the page; all texts are plain.

    Args:
      title: what is counted.
      unit: of what lies along the bottom.
      heights: of the bars; one at least is above 0.
      ticks: (place, label) along the bottom, a place in bars from the left.
      said: what it shows, for who does not see it.
      is_logarithmic: whether the heights are drawn so.
      limit: (place, label) of a line whose right side is bad.
    """
    from matplotlib.ticker import MaxNLocator

    left, right, top, bottom = 52, 398, 16, 160
    wide = (right - left) / len(heights)
    if is_logarithmic:
        marks = [10**power for power in range(math.floor(math.log10(max(heights))) + 1)]
        marks += [max(heights)] if max(heights) > 2 * marks[-1] else []
        scale, lowest, highest = math.log, 0.6, 1.15 * max(heights)
    else:
        marks = [int(mark) for mark in MaxNLocator(4, integer=True).tick_values(0, max(heights))]
        scale, lowest, highest = float, 0, marks[-1]

    def y(value: float) -> float:
        return bottom - (bottom - top) * (scale(value) - scale(lowest)) / (scale(highest) - scale(lowest))

    def label(x: float, y: float, text: str, anchor: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

    def path(kind: str, shown: Sequence[str]) -> str:
        return f'<path class="{kind}" d="{"".join(shown)}"/>'

    gap = 1.5 if wide > 5 else 0
    drawn = [
        f"M{left + wide * place + gap / 2:.2f} {bottom}V{y(height):.1f}h{wide - gap:.2f}V{bottom}z" if height else ""
        for place, height in enumerate(heights)
    ]
    parts = [f'<line class="grid" x1="{left}" x2="{right}" y1="{y(mark):.1f}" y2="{y(mark):.1f}"/>' for mark in marks]
    parts += [label(left - 6, y(mark) + 3.5, f"{mark:,}", "end") for mark in marks]
    parts += [label(left + wide * place, bottom + 16, text, "middle") for place, text in ticks]
    place, text = limit or (len(heights), "")
    parts.append(path("fill", drawn[:place]))
    if limit:
        x = left + wide * place
        parts.append(path("bad", drawn[place:]))
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{bottom}"/>')
        parts.append(label(x - 5, top + 4, text, "end"))
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span>{escape(unit)}</span></figcaption>'
        f'<svg viewBox="0 0 420 182" role="img" aria-label="{escape(title)}: {escape(said)}">{"".join(parts)}</svg>'
        "</figure>"
    )


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
      colour: from 1 to `COLOURS`.
      x: of its points.
      y: of its points.
      low: of the band around it; none without.
      high: of the band around it.
      pale: whether another line says it more clearly.
    """

    colour: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    pale: bool = False


def lines(
    title: str,
    note: str,
    shown: Sequence[Line],
    said: str,
    *,
    x_ticks: Sequence[tuple[float, str]] = (),
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
) -> str:
    """A chart of lines that takes its colours from the page; all texts are plain.

    Args:
      title: what is measured.
      note: beside the title, such as the last value.
      shown: at least one line, drawn in this order.
      said: what it shows, for who does not see it.
      x_ticks: (place, label) along the bottom, which they span; whole numbers from 0 without them.
      y_range: of what is drawn; that of the points without it.
      diagonal: whether x = y is drawn.
    """
    from matplotlib.ticker import MaxNLocator

    heights = np.concatenate([np.concatenate([line.y, line.low, line.high]) for line in shown])
    y_ticks = MaxNLocator(4).tick_values(*(y_range or (heights.min(), heights.max())))
    first, last = (x_ticks[0][0], x_ticks[-1][0]) if x_ticks else (0, max(1, *(max(line.x) for line in shown)))
    x_ticks = x_ticks or [(v, _tick(v)) for v in MaxNLocator(4, integer=True).tick_values(0, last) if v <= last]
    left, right, top, bottom = 52, 342, 10, 150

    def place(x: float, y: float) -> str:
        across = left + (right - left) * (x - first) / (last - first)
        return f"{across:.1f},{bottom - (bottom - top) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]):.1f}"

    def path(x: Sequence[float], y: Sequence[float]) -> str:
        return " ".join(map(place, x, y))

    parts = []
    for value in y_ticks:
        y = place(first, value).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{float(y) + 3.5:.1f}" text-anchor="end">{_tick(value)}</text>')
    for at, label in x_ticks:
        x = place(at, y_ticks[0]).split(",")[0]
        parts.append(f'<text x="{x}" y="{bottom + 16}" text-anchor="middle">{escape(label)}</text>')
    if diagonal:
        parts.append(f'<polyline class="ideal" points="{path(y_ticks[[0, -1]], y_ticks[[0, -1]])}"/>')
    for line in shown:
        band = f"{path(line.x, line.low)} {path(line.x[::-1], line.high[::-1])}" if len(line.low) else ""
        drawn = f'<polygon class="band" points="{band}"/>' if band else ""
        drawn += f'<polyline class="{"pale" if line.pale else "line"}" points="{path(line.x, line.y)}"/>'
        if len(line.x) <= FEW_POINTS and not line.pale:
            places = (place(x, y).split(",") for x, y in zip(line.x, line.y, strict=True))
            drawn += "".join(f'<circle class="dot" cx="{x}" cy="{y}" r="2.2"/>' for x, y in places)
        parts.append(f'<g class="c{line.colour}">{drawn}</g>')
    return (
        f'<figure class="chart"><figcaption>{escape(title)} <span>{escape(note)}</span></figcaption>'
        f'<svg viewBox="0 0 360 172" role="img" aria-label="{escape(said)}">{"".join(parts)}</svg></figure>'
    )


def _tick(value: float) -> str:
    return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.4g}"


def legend(names: Sequence[str]) -> str:
    """Which line or bar is whose, in the order of the colours; nothing for fewer than two. Plain texts."""
    if len(names) < 2:
        return ""
    shown = "".join(f"<li>{swatch(colour)}{escape(name)}</li>" for colour, name in enumerate(names, 1))
    return f'<ul class="legend">{shown}</ul>'


def swatch(colour: int) -> str:
    """A short piece of a line of that colour."""
    line = '<polyline class="line" points="1,6 31,6"/>'
    return f'<svg class="swatch c{colour}" viewBox="0 0 32 12" aria-hidden="true">{line}</svg>'


def share_bars(shares: Sequence[tuple[str, float, tuple[float, float]] | None], chance: float) -> str:
    """Bars from 0 to 100 %, one below the other in the order of the colours, with intervals and the mark of chance.

    Args:
      shares: (name, share, interval) each, names in plain text; None leaves its place empty.
      chance: a share.
    """
    parts, said = [], []
    for row, bar in enumerate(shares):
        parts.append(f'<rect class="track" y="{10 * row + 0.5}" width="100" height="9"/>')
        if bar:
            name, share, (low, high) = bar[0], 100 * bar[1], (100 * end for end in bar[2])
            parts.append(
                f'<g class="c{row + 1}"><rect class="fill" y="{10 * row + 0.5}" width="{share:.2f}" height="9"/></g>'
                f'<line class="whisker" x1="{low:.2f}" x2="{high:.2f}" y1="{10 * row + 5}" y2="{10 * row + 5}"/>'
            )
            said.append(f"{name} {share:.1f} %, between {low:.1f} and {high:.1f}; ".lstrip())
    mark, height = f"{100 * chance:.2f}", 10 * len(shares)
    return (
        f'<svg viewBox="0 0 100 {height}" preserveAspectRatio="none" style="height:{4 + height}px" role="img" '
        f'aria-label="{escape("".join(said))}chance {100 * chance:.1f}">{"".join(parts)}'
        f'<line class="chance" x1="{mark}" x2="{mark}" y1="0" y2="{height}"/></svg>'
    )


def confusion(title: str, note: str, names: Sequence[str], counts: np.ndarray) -> str:
    """A confusion matrix in shares of its rows, and its most frequent mistakes in words; all texts are plain.

    Args:
      title: what was asked.
      note: beside the title, such as the scores.
      names: of the classes.
      counts: int [classes, classes]; row: the true class, column: the predicted one.
    """
    totals = counts.sum(axis=1)
    shares = counts / np.maximum(totals, 1)[:, None]
    size = "small" if len(names) <= 6 else "middle" if len(names) <= 12 else "broad"
    head = "".join(f'<th scope="col" title="{escape(name)}">{i}</th>' for i, name in enumerate(names, 1))
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, share in enumerate(shares[i]):
            said = f"{counts[i, j]} of {totals[i]} “{escape(name)}” seen as “{escape(names[j])}”"
            text = f"{100 * share:.0f}" if counts[i, j] else '<span class="sr">0</span>'
            kind = "ok" if i == j else "no"
            dark = " deep" if share > 0.55 else ""
            cells.append(f'<td class="{kind}{dark}" style="--v:{share:.2f}" title="{said}">{text}</td>')
        rows.append(f'<tr><th scope="row"><span>{escape(name)}</span> {i + 1}</th>{"".join(cells)}</tr>')
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:4]
    pairs = [np.unravel_index(at, wrong.shape) for at in order]
    told = mistakes([(names[i], names[j], int(wrong[i, j]), int(totals[i])) for i, j in pairs if wrong[i, j]])
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return (
        f'<figure class="matrix {size}"><figcaption><b>{escape(title)}</b> {escape(note)}</figcaption>'
        f'<div class="beside">{scrolling(f"Confusion of {title}", table)}{told}</div></figure>'
    )


def mistakes(pairs: Iterable[tuple[str, str, int, int]]) -> str:
    """A list of (true class, predicted class, images, images of the true class), names in plain text."""
    shown = "".join(
        f"<li>{count} of {total} “{escape(true)}” seen as “{escape(said)}”</li>" for true, said, count, total in pairs
    )
    return f'<ul class="notes">{shown}</ul>'


def nearest(answers: Iterable[tuple[str, float, bool]]) -> str:
    """The answers to a photo, nearest first: (plain text, probability, whether it is right)."""
    rows = []
    for rank, (text, probability, is_right) in enumerate(answers):
        kind, mark = ("right", "✓") if is_right else ("wrong", "✗") if rank == 0 else ("other", "·")
        told = "" if kind == "other" else f'<span class="sr"> ({kind})</span>'
        rows.append(
            f'<li class="{kind}"><span class="mark" aria-hidden="true">{mark}</span><span>{escape(text)}{told}</span>'
            f'<span class="n">{100 * probability:.0f} %</span></li>'
        )
    return f"<ol>{''.join(rows)}</ol>"


STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf6;--raised:#fff;--ink:#20291f;--soft:#5d675b;--line:#e1ded3;
--leaf:#2f6f4e;--heat:47,111,78;--miss:178,73,44;--right:#24633f;--wrong:#a63c20;--chance:#b07a1e;--deep:#fff;
--c1:#2f6f4e;--c2:#d9772b;--c3:#3f78b5;--c4:#a8326f;--c5:#a38a12;--c6:#45aecb;--c7:#7b5ea7;--c8:#6b6b6b}
@media (prefers-color-scheme:dark){:root{--paper:#141a16;--raised:#1b231e;--ink:#e6e9e1;--soft:#9fac9f;--line:#2e3932;
--leaf:#6fbf92;--heat:111,191,146;--miss:232,128,96;--right:#86d3a6;--wrong:#f09a7d;--chance:#e0b057;--deep:#0f1512;
--c1:#4fb083;--c2:#ffb066;--c3:#7db1ee;--c4:#ec86bb;--c5:#dccb5a;--c6:#8fe0f2;--c7:#b99af0;--c8:#b5b5b5}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",sans-serif;font-variant-numeric:tabular-nums}
header,nav,main{max-width:1160px;margin:0 auto;padding:0 clamp(16px,4vw,40px)}
header{padding-top:clamp(28px,5vw,60px)}
h1,h2,.figure{font-family:"Iowan Old Style","Palatino Linotype",Palatino,"Book Antiqua",Georgia,serif;font-weight:500;
letter-spacing:-.01em;text-wrap:balance}
h1{font-size:clamp(34px,5vw,52px);line-height:1.1;margin:.1em 0 .5em}
h2{font-size:clamp(24px,3vw,30px);line-height:1.2;margin:0 0 .5em}
p{max-width:70ch;margin:0 0 1em}
a{color:var(--leaf)}
.eyebrow{color:var(--leaf);letter-spacing:.04em;margin:0;font-size:15px}
.facts{display:flex;flex-wrap:wrap;gap:10px 32px;margin:0 0 28px}
.facts dt{color:var(--soft);font-size:13px}.facts dd{margin:0;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,240px),1fr));gap:16px;margin-bottom:28px}
.card,.chart{background:var(--raised);border:1px solid var(--line);border-radius:10px}
.card{padding:16px 20px}.card p{margin:0;color:var(--soft);font-size:14px}
.card p:first-child{color:var(--ink);font-size:15px}
.card .figure{color:var(--ink);font-size:44px;line-height:1.15}.figure span{font-size:24px;color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:6px 22px;padding-top:12px;padding-bottom:12px;font-size:14px}
nav a{text-decoration:none}nav a:hover{text-decoration:underline}
section{padding:36px 0 20px;border-top:1px solid var(--line)}
figure{margin:0}
.wide{overflow-x:auto}
:focus-visible{outline:2px solid var(--leaf);outline-offset:2px}
table{border-collapse:collapse}
.rows{width:100%;font-size:15px}
.rows th,.rows td{padding:4px 10px;text-align:left;border-bottom:1px solid var(--line);font-weight:400;
white-space:nowrap}
.rows thead th{color:var(--soft);font-size:13px;vertical-align:bottom;white-space:normal;line-height:1.35}
.rows tbody th[scope=row]{position:sticky;left:0;background:var(--paper)}
.rows .n{text-align:right}.rows wbr{display:none}
.rows .bar{width:30%;min-width:190px}
.bar svg{display:block;width:100%;height:14px}
@media (max-width:700px){.rows wbr{display:inline}
.rows th,.rows td{padding:4px 7px}.rows tbody th[scope=row]{white-space:normal;
overflow-wrap:break-word;min-width:120px;line-height:1.3}}
.track{fill:var(--line);opacity:.55}.fill{fill:var(--leaf);opacity:.55}
.notes{color:var(--soft);font-size:14px;padding-left:1.2em;margin:12px 0 0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:16px}
.chart{padding:12px 12px 6px}
.chart figcaption{display:flex;justify-content:space-between;gap:12px;font-size:14px;padding:0 4px 6px}
.chart figcaption span{color:var(--soft)}
.chart svg{display:block;width:100%;height:auto}
.chart text{fill:var(--soft);font-size:11px}
.grid{stroke:var(--line)}.bad{fill:rgb(var(--miss))}.limit{stroke:var(--chance);stroke-width:1.5}
.beside{display:flex;flex-wrap:wrap;gap:4px 32px}.beside>*{min-width:0}
details{border-bottom:1px solid var(--line);padding:10px 0}
summary{cursor:pointer}
pre{overflow:auto;max-height:480px;font:13px/1.5 ui-monospace,"Cascadia Mono",Menlo,Consolas,monospace;
background:var(--raised);border:1px solid var(--line);border-radius:8px;padding:14px}
.sr{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
@media print{:root{color-scheme:light;--paper:#fff;--raised:#fff;--ink:#000;--soft:#444;--line:#ccc;--leaf:#2f6f4e;
--heat:47,111,78;--miss:178,73,44;--right:#24633f;--wrong:#a63c20;--chance:#b07a1e;--deep:#fff;
--c1:#2f6f4e;--c2:#d9772b;--c3:#3f78b5;--c4:#a8326f;--c5:#a38a12;--c6:#45aecb;--c7:#7b5ea7;--c8:#6b6b6b}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
nav{display:none}body{font-size:11pt}header,main{max-width:none;padding:0}section{padding:18px 0 8px}
figure,.card,tr{break-inside:avoid}h2,h2+p{break-after:avoid}h2+p{break-inside:avoid}
.cards{grid-template-columns:repeat(4,1fr)}.charts{grid-template-columns:repeat(3,1fr)}
.card .figure{font-size:30px}.card p,.chart figcaption{font-size:8.5pt}.wide{overflow:visible}
.rows{font-size:9pt}.rows th,.rows td{padding:3px 5px}.rows .bar{min-width:90px}}
""".replace("\n", "")

SCORES = """
.c1{--c:var(--c1)}.c2{--c:var(--c2);--dash:6 4}.c3{--c:var(--c3);--dash:1.5 4}.c4{--c:var(--c4);--dash:10 4 1.5 4}
.c5{--c:var(--c5);--dash:4 3}.c6{--c:var(--c6);--dash:9 3 3 3}.c7{--c:var(--c7);--dash:2 6}
.c8{--c:var(--c8);--dash:12 5}
.photo,.matrix,.look{background:var(--raised);border:1px solid var(--line);border-radius:10px}
.key{display:inline-block;width:14px;height:10px;margin:0 3px 0 6px;border-bottom:2px solid var(--ink);
transform:translateY(-4px)}
.key.fill{background:var(--leaf);opacity:.55;border:0;transform:none;margin-left:0}
.key.chance{width:3px;height:13px;background:var(--chance);border:0;transform:translateY(2px)}
.nowrap{white-space:nowrap}
.rows .group th{padding-top:22px;font-weight:600}
.rows .mean th,.rows .mean td{font-weight:600;border-bottom-width:2px}
.mean .fill{opacity:.9}
.whisker{stroke:var(--ink);stroke-width:1.5;vector-effect:non-scaling-stroke}
.chance{stroke:var(--chance);stroke-width:2.5;vector-effect:non-scaling-stroke}
polyline{fill:none;stroke:var(--c);stroke-linejoin:round;stroke-linecap:round}
.line{stroke-width:1.8;stroke-dasharray:var(--dash,none)}.pale{stroke-width:1;opacity:.3}
.ideal{stroke:var(--soft);stroke-dasharray:1 4}.dot,.fill{fill:var(--c,var(--leaf))}.band{fill:var(--c);opacity:.13}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;list-style:none;margin:0 0 14px;padding:0;font-size:14px}
.swatch{width:32px;height:12px;margin-right:7px;overflow:visible;vertical-align:middle}.swatch .line{stroke-width:2.4}
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
.photo .right,.photo .wrong{font-weight:600}.photo p.wrong{color:var(--wrong)}
@media print{.group{break-after:avoid}.photos{grid-template-columns:repeat(3,1fr)}.photo figcaption{font-size:8.5pt}}
""".replace("\n", "")
