"""The frame of an HTML page that needs nothing else: it opens offline, prints, and follows the reader's light or dark.

A caller gives the header and the sections as HTML in which every text of others is escaped; tables have the class
"rows", stand in `scrolling`, and their numbers have the class "n".
"""

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np
from PIL import Image


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


STYLE = """
:root{color-scheme:light dark;--paper:#fbfaf6;--raised:#fff;--ink:#20291f;--soft:#5d675b;--line:#e1ded3;
--leaf:#2f6f4e;--heat:47,111,78;--miss:178,73,44;--right:#24633f;--wrong:#a63c20;--chance:#b07a1e;--deep:#fff}
@media (prefers-color-scheme:dark){:root{--paper:#141a16;--raised:#1b231e;--ink:#e6e9e1;--soft:#9fac9f;--line:#2e3932;
--leaf:#6fbf92;--heat:111,191,146;--miss:232,128,96;--right:#86d3a6;--wrong:#f09a7d;--chance:#e0b057;--deep:#0f1512}}
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
--heat:47,111,78;--miss:178,73,44;--right:#24633f;--wrong:#a63c20;--chance:#b07a1e;--deep:#fff}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
nav{display:none}body{font-size:11pt}header,main{max-width:none;padding:0}section{padding:18px 0 8px}
figure,.card,tr{break-inside:avoid}h2,h2+p{break-after:avoid}h2+p{break-inside:avoid}
.cards{grid-template-columns:repeat(4,1fr)}.charts{grid-template-columns:repeat(3,1fr)}
.card .figure{font-size:30px}.card p,.chart figcaption{font-size:8.5pt}.wide{overflow:visible}
.rows{font-size:9pt}.rows th,.rows td{padding:3px 5px}.rows .bar{min-width:90px}}
""".replace("\n", "")
