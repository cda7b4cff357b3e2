"""Cattle, sheep and goats from the side: told apart by build, and within a kind by the pattern of the coat."""

from collections.abc import Callable

import numpy as np

from agriclip_jax.data.corpus import coats
from agriclip_jax.data.corpus.canvas import Canvas, Colour, Pen, ellipse, pick, ribbon, shade, smooth, tint

GROUNDS = ("grass", "pasture", "hedge", "sky")
DARK = ("black", "dark brown", "chestnut", "brown")
LIGHT = ("white", "cream", "golden", "grey")

_COW = smooth(
    [
        (-0.56, -0.38),
        (-0.1, -0.32),
        (0.42, -0.38),
        (0.70, -0.33),
        (0.78, -0.1),
        (0.72, 0.22),
        (0.25, 0.33),
        (-0.3, 0.32),
        (-0.58, 0.22),
        (-0.68, -0.02),
    ],
    per=4,
)
_COW_NECK = np.array([(-0.42, -0.38), (-0.74, -0.62), (-0.86, -0.40), (-0.66, 0.10), (-0.45, 0.1)])
_COW_HEAD = smooth(
    [(-0.68, -0.62), (-0.82, -0.62), (-0.98, -0.34), (-1.06, -0.12), (-0.94, -0.04), (-0.78, -0.2)], per=4
)
_GOAT = smooth(
    [(-0.44, -0.30), (0.0, -0.24), (0.44, -0.30), (0.60, -0.2), (0.60, 0.08), (0.2, 0.24), (-0.3, 0.24), (-0.54, 0.08)],
    per=4,
)
_GOAT_NECK = np.array([(-0.30, -0.28), (-0.58, -0.72), (-0.78, -0.60), (-0.58, 0.02), (-0.4, 0.1)])
_GOAT_HEAD = smooth(
    [(-0.56, -0.80), (-0.72, -0.80), (-0.90, -0.58), (-0.98, -0.44), (-0.86, -0.40), (-0.64, -0.54)], per=4
)
_SHEEP_HEAD = smooth(
    [(-0.52, -0.36), (-0.70, -0.36), (-0.92, -0.10), (-0.94, 0.04), (-0.80, 0.06), (-0.56, -0.08)], per=4
)
_CURLS = np.linspace(0, 2 * np.pi, 15, endpoint=False)


def _legs(canvas: Canvas, colour: Colour, front: float, back: float, top: float, bottom: float, width: float) -> None:
    for x, tone in ((front + 0.17, 0.6), (back - 0.17, 0.6), (front, 0.92), (back, 0.92)):
        step = canvas.rng.uniform(-0.07, 0.07)
        leg = [(x - width, top), (x + width, top), (x + 0.6 * width + step, bottom), (x - 0.6 * width + step, bottom)]
        canvas.pen.polygon(np.array(leg), shade(colour, tone))
        hoof = [(x - 0.7 * width + step, bottom - 0.07), (x + 0.7 * width + step, bottom - 0.07), *leg[2:]]
        canvas.pen.polygon(np.array(hoof), (34, 28, 24))


def _cow(canvas: Canvas, colour: Colour) -> tuple[Pen, Pen]:
    canvas.pen.lines([(0.74, -0.28), (0.88, -0.02), (0.86, 0.34)], 0.05, shade(colour, 0.7))
    canvas.pen.discs([(0.86, 0.42)], 0.08, shade(colour, 0.45))
    canvas.pen.discs([(0.44, 0.34)], 0.12, (206, 150, 140))
    _legs(canvas, colour, -0.46, 0.62, 0.1, 0.92, 0.10)
    canvas.pen.polygon(ribbon([(-0.70, -0.60), (-0.62, -0.76), (-0.68, -0.88)], (0.09, 0.06, 0.02)), (226, 214, 190))
    canvas.pen.polygon(ribbon([(-0.80, -0.60), (-0.94, -0.70), (-0.96, -0.86)], (0.09, 0.06, 0.02)), (226, 214, 190))
    body, head = canvas.stencil(_COW, _COW_NECK, _COW_HEAD), canvas.stencil(_COW_HEAD)
    canvas.body(body, colour)
    return body, head


def _cow_front(canvas: Canvas, colour: Colour) -> None:
    canvas.pen.polygon(ellipse(-0.58, -0.52, 0.14, 0.07, 0.3, n=10), shade(colour, 0.55))
    canvas.pen.polygon(ellipse(-0.99, -0.11, 0.09, 0.08, n=10), (196, 150, 140))
    canvas.pen.discs([(-0.82, -0.42)], 0.035, (16, 12, 10))


def _sheep(canvas: Canvas, colour: Colour) -> tuple[Pen, Pen]:
    _legs(canvas, shade(colour, 0.75), -0.34, 0.46, 0.2, 0.84, 0.065)
    tufts = np.stack([0.08 + 0.52 * np.cos(_CURLS), -0.06 + 0.34 * np.sin(_CURLS)], 1)
    fleece = canvas.stencil(ellipse(0.08, -0.06, 0.56, 0.40)).discs(tufts, 0.15)
    canvas.body(fleece, colour)
    with canvas.inside(fleece) as pen:
        curls = canvas.scatter(fleece, 26)
        pen.discs(curls, 0.075, shade(colour, 0.72)).discs(curls - (0.012, 0.025), 0.065, shade(colour, 1.15))
    head = canvas.stencil(_SHEEP_HEAD)
    canvas.paint(head, shade(colour, 0.9))
    return fleece, head


def _sheep_front(canvas: Canvas, colour: Colour) -> None:
    canvas.pen.polygon(ellipse(-0.50, -0.26, 0.14, 0.06, 0.5, n=10), shade(colour, 0.6))
    canvas.pen.discs([(-0.74, -0.20)], 0.035, (12, 10, 10))
    canvas.pen.lines([(-0.92, -0.02), (-0.86, 0.01)], 0.03, shade(colour, 0.4))


def _goat(canvas: Canvas, colour: Colour) -> tuple[Pen, Pen]:
    canvas.pen.polygon(np.array([(0.52, -0.24), (0.74, -0.48), (0.66, -0.16)]), shade(colour, 0.8))
    _legs(canvas, colour, -0.38, 0.48, 0.05, 0.94, 0.07)
    for shift in (0.0, -0.08):
        horn = smooth([(-0.62, -0.76), (-0.56, -0.98), (-0.36, -1.06), (-0.20, -0.96)], closed=False, per=4)
        horn = horn + np.array((shift, 0))
        canvas.pen.polygon(
            ribbon(horn + np.array((shift, 0)), np.linspace(0.10, 0.03, len(horn))),
            shade((150, 128, 100), 0.8 - 2 * shift),
        )
    canvas.pen.polygon(np.array([(-0.86, -0.42), (-0.74, -0.48), (-0.80, -0.20)]), shade(colour, 0.65))
    body, head = canvas.stencil(_GOAT, _GOAT_NECK, _GOAT_HEAD), canvas.stencil(_GOAT_HEAD)
    canvas.body(body, colour)
    return body, head


def _goat_front(canvas: Canvas, colour: Colour) -> None:
    canvas.pen.polygon(ellipse(-0.50, -0.64, 0.13, 0.05, 0.6, n=10), shade(colour, 0.55))
    canvas.pen.discs([(-0.74, -0.66)], 0.035, (14, 12, 8))


def _ram_horn(canvas: Canvas) -> None:
    turn = np.linspace(0.4, 2.4 * np.pi, 18)
    radius = np.linspace(0.27, 0.05, 18)
    spiral = np.stack([-0.50 - radius * np.cos(turn), -0.24 - radius * np.sin(turn)], 1)
    canvas.pen.polygon(ribbon(spiral, np.linspace(0.15, 0.06, 18) + 0.03), (70, 54, 38))
    canvas.pen.polygon(ribbon(spiral, np.linspace(0.15, 0.06, 18)), (204, 182, 142))


BUILDS: dict[str, tuple[Callable[[Canvas, Colour], tuple[Pen, Pen]], Callable[[Canvas, Colour], None]]] = {
    "cow": (_cow, _cow_front),
    "sheep": (_sheep, _sheep_front),
    "goat": (_goat, _goat_front),
}
# class -> build, coat, what is seen, with the names of the ground colour and the marking in it
KINDS = {
    "solid cow": ("cow", "solid", "a cow of one even {0} colour"),
    "patched cow": ("cow", "patched", "a {0} cow with large {1} patches"),
    "belted cow": ("cow", "belted", "a {0} cow with a broad {1} belt round its middle"),
    "white-faced cow": ("cow", "white-faced", "a {0} cow with a white face"),
    "speckled cow": ("cow", "speckled", "a {0} cow sprinkled with small {1} spots"),
    "brindled cow": ("cow", "brindled", "a {0} cow with narrow upright {1} streaks"),
    "plain sheep": ("sheep", "solid", "a {0} woolly sheep, face and fleece alike"),
    "black-faced sheep": ("sheep", "black-faced", "a {0} woolly sheep with a black face"),
    "patched sheep": ("sheep", "patched", "a {0} woolly sheep with {1} patches"),
    "horned ram": ("sheep", "horned", "a {0} woolly ram with a curled horn"),
    "solid goat": ("goat", "solid", "a goat of one even {0} colour, with long horns"),
    "two-coloured goat": ("goat", "halved", "a goat, {1} in front and {0} behind"),
    "speckled goat": ("goat", "speckled", "a {0} goat sprinkled with small {1} spots"),
}


def draw(canvas: Canvas, kind: str) -> list[str]:
    """Draws one animal. Returns what can be said of this picture."""
    rng = canvas.rng
    build, coat, words = KINDS[kind]
    canvas.pose(turn=5, scale=(0.86, 0.96))
    canvas.ground(*GROUNDS)
    tone, other = pick(rng, DARK), pick(rng, LIGHT)
    if coat == "solid" and rng.random() < 0.5:
        tone, other = other, tone
    if coat == "black-faced":
        tone, other = pick(rng, ("white", "cream", "golden", "grey", "brown")), "black"
    if coat == "white-faced":
        other = "white"
    if coat == "brindled":
        tone, other = pick(rng, ("golden", "grey", "cream", "white")), pick(rng, DARK)
    colour, marking = tint(rng, tone, 0.7), tint(rng, other, 0.7)
    shape, front = BUILDS[build]
    body, head = shape(canvas, colour)
    match coat:
        case "patched":
            coats.patches(canvas, body, marking, count=6 if build == "cow" else 5)
        case "belted":
            coats.belt(canvas, body, marking, 0.06, 0.44)
        case "speckled":
            coats.speckles(canvas, body, marking, 40, 0.06)
        case "brindled":
            coats.bars(canvas, body, marking, np.arange(-0.9, 0.9, 0.2) + rng.uniform(0, 0.1), 0.08, 0.05)
        case "halved":
            coats.belt(canvas, body, marking, -0.85, 1.6)
        case "white-faced" | "black-faced":
            canvas.paint(head, marking)
    if build != "sheep":
        canvas.round_off(body)
    front(canvas, marking if coat in ("white-faced", "black-faced", "halved") else colour)
    if coat == "horned":
        _ram_horn(canvas)
    seen, ground = words.format(tone, other), canvas.facts["ground"]
    return [f"{seen}, {ground}", f"{seen}, standing sideways", f"{kind} {ground}: {seen}"]
