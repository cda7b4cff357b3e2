"""Fruit: five kinds by silhouette and skin, three stages by what the skin shows. Every kind comes in every colour."""

from collections.abc import Callable

import numpy as np

from agriclip_jax.data.corpus.canvas import (
    Canvas,
    Colour,
    Pen,
    blob,
    ellipse,
    hsv,
    mix,
    place,
    ribbon,
    shade,
    smooth,
    tint,
)

GROUNDS = ("paper", "slate", "gravel", "sky")
COLOURS = ("red", "orange", "yellow", "lime", "green")

_APPLE = smooth(
    [
        (0, -0.58),
        (0.42, -0.72),
        (0.82, -0.40),
        (0.80, 0.22),
        (0.42, 0.78),
        (0, 0.70),
        (-0.42, 0.78),
        (-0.80, 0.22),
        (-0.82, -0.40),
        (-0.42, -0.72),
    ]
)
_PEAR = smooth(
    [
        (0, -0.84),
        (0.24, -0.72),
        (0.32, -0.30),
        (0.66, 0.20),
        (0.60, 0.70),
        (0, 0.90),
        (-0.60, 0.70),
        (-0.66, 0.20),
        (-0.32, -0.30),
        (-0.24, -0.72),
    ]
)
_STRAWBERRY = smooth(
    [(0, -0.52), (0.5, -0.66), (0.76, -0.28), (0.48, 0.40), (0, 0.94), (-0.48, 0.40), (-0.76, -0.28), (-0.5, -0.66)]
)
_BANANA_LINE = smooth([(-0.90, -0.42), (-0.62, 0.18), (0.0, 0.48), (0.62, 0.22), (0.92, -0.36)], closed=False)
_BANANA = ribbon(_BANANA_LINE, np.interp(np.linspace(0, 1, 21), [0, 0.12, 0.5, 0.88, 1], [0.1, 0.30, 0.46, 0.32, 0.08]))
_PINEAPPLE = ellipse(0, 0.32, 0.50, 0.64)


def _apple(canvas: Canvas, mask: Pen, colour: Colour) -> None:
    canvas.pen.lines(smooth([(-0.3, -0.58), (0, -0.46), (0.3, -0.58)], closed=False), 0.05, shade(colour, 0.5))
    canvas.pen.lines([(0, -0.5), (0.05, -0.72), (0.14, -0.95)], 0.09, (60, 40, 22))
    canvas.pen.polygon(smooth([(0.1, -0.78), (0.36, -1.0), (0.66, -0.9), (0.4, -0.74)]), (46, 105, 40))


def _pear(canvas: Canvas, mask: Pen, colour: Colour) -> None:
    canvas.pen.lines([(0, -0.8), (0.04, -0.92), (0.14, -1.06)], 0.09, (60, 40, 22))


def _strawberry(canvas: Canvas, mask: Pen, colour: Colour) -> None:
    canvas.pen.discs(_SEEDS, 0.04, shade(colour, 0.45))
    for turn in (-1.5, -0.8, 0.0, 0.8, 1.5):
        sepal = np.array([(-0.12, 0.0), (0, 0.46), (0.12, 0.0)])
        canvas.pen.polygon(place(sepal, (0, -0.66), turn), (52, 120, 44))
    canvas.pen.lines([(0, -0.66), (0.06, -0.95)], 0.07, (52, 110, 44))


_SEEDS = np.array([(x + 0.14 * (row % 2), -0.28 + 0.2 * row) for row in range(6) for x in (-0.49, -0.21, 0.07, 0.35)])
_SEEDS = _SEEDS[np.abs(_SEEDS[:, 0]) < 0.62 - 0.5 * np.maximum(_SEEDS[:, 1], 0)]


def _banana(canvas: Canvas, mask: Pen, colour: Colour) -> None:
    canvas.pen.lines(_BANANA_LINE[2:-2] + np.array((0, -0.06)), 0.04, shade(colour, 0.62))
    canvas.pen.lines([(-0.90, -0.42), (-0.96, -0.66)], 0.14, shade(colour, 0.6))
    canvas.pen.discs([(0.92, -0.36)], 0.06, (50, 34, 20))


def _pineapple(canvas: Canvas, mask: Pen, colour: Colour) -> None:
    with canvas.inside(mask) as pen:
        pen.lines(_HATCH, 0.045, shade(colour, 0.42))
    for turn in (-1.0, 0.95, -0.6, 0.58, -0.2, 0.22):
        length = 0.72 - 0.16 * abs(turn)
        canvas.pen.polygon(
            place(np.array([(-0.1, 0), (0, -length), (0.1, 0)]), (0.1 * turn, -0.24), turn), (58, 122, 62)
        )
        canvas.pen.lines(place(np.array([(0, 0), (0, -length)]), (0.1 * turn, -0.24), turn), 0.02, (34, 80, 40))


_HATCH = np.array([[(c - 1.2 * s, -0.9), (c + 1.2 * s, 1.5)] for s in (-1, 1) for c in np.arange(-1.5, 1.6, 0.25)])

KINDS: dict[str, tuple[np.ndarray, Callable[[Canvas, Pen, Colour], None], str]] = {
    "apple": (_APPLE, _apple, "a round fruit with a short stalk and one leaf"),
    "banana": (_BANANA, _banana, "a long curved fruit with a ridge along it"),
    "strawberry": (_STRAWBERRY, _strawberry, "a cone-shaped fruit dotted with seeds under a green cap"),
    "pear": (_PEAR, _pear, "a fruit that is narrow at the stalk and broad below"),
    "pineapple": (_PINEAPPLE, _pineapple, "an oval fruit with a net of eyes and a spiky crown"),
}
STAGES = ("ripe", "half-ripe", "rotten")


def class_name(kind: str, stage: str) -> str:
    """How people say it: "half-ripe pear"."""
    return f"{stage} {kind}"


def draw(canvas: Canvas, kind: str, stage: str) -> list[str]:
    """Draws one fruit; rot is marked. Returns what can be said of this picture."""
    rng = canvas.rng
    outline, details, words = KINDS[kind]
    canvas.pose(turn=10, scale=(0.84, 0.98))
    canvas.ground(*GROUNDS)
    first = int(rng.integers(len(COLOURS)))
    tone, other = COLOURS[first], COLOURS[(first + int(rng.integers(2, 4))) % len(COLOURS)]
    colour = tint(rng, tone)
    mask = canvas.stencil(outline)
    canvas.body(mask, colour, contrast=0.15)
    if stage == "half-ripe":
        level = rng.uniform(-0.05, 0.2)
        top = smooth(
            [(-1.3, level), *((x, level + rng.uniform(-0.14, 0.14)) for x in (-0.6, 0.0, 0.6)), (1.3, level)],
            closed=False,
        )
        canvas.paint(canvas.stencil(np.concatenate([top, [(1.3, -1.3), (-1.3, -1.3)]])), tint(rng, other), within=mask)
        seen = f"{other} above and {tone} below, not yet ripe all over"
    canvas.round_off(mask)
    details(canvas, mask, colour)
    if stage == "rotten":
        _rot(canvas, mask)
        seen = f"{tone} with sunken brown rot and white mould"
    if stage == "ripe":
        seen = f"evenly {tone}, with a clean shining skin"
    x, y = (-0.45, 0.18) if kind == "banana" else (-0.26, -0.2 if kind != "pineapple" else 0.1)
    with canvas.inside(mask) as pen:
        pen.polygon(ellipse(x, y, 0.09, 0.16, 0.5, n=12), mix(colour, (255, 255, 255), 0.65))
    ground = canvas.facts["ground"]
    return [f"a {kind}, {seen}, {ground}", f"{words}, {seen}", f"{_article(stage)} {kind} {ground}, {seen}"]


def _rot(canvas: Canvas, mask: Pen) -> None:
    rng = canvas.rng
    for at in canvas.scatter(mask, int(rng.integers(2, 4))):
        patch = blob(rng, rng.uniform(0.26, 0.36))
        canvas.mark(canvas.paint(canvas.stencil(patch + at), hsv(0.06, 0.55, 0.20), within=mask))
        canvas.paint(canvas.stencil(patch * 0.8 + at), hsv(0.07, 0.50, 0.33), within=mask)
        mould = canvas.stencil().discs(at + rng.normal(0, 0.10, (8, 2)), rng.uniform(0.03, 0.06, 8))
        canvas.paint(mould, hsv(0.3, 0.04, 0.88), within=mask)


def _article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
