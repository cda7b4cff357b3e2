"""Fish from the side: three bodies and four skins, every pairing."""

from collections.abc import Callable

import numpy as np

from agriclip_jax.data.corpus import coats
from agriclip_jax.data.corpus.canvas import Canvas, Colour, Pen, pick, ribbon, shade, smooth, tint

GROUNDS = ("water", "deep water", "murky water", "slate")
DARK = ("dark brown", "chestnut", "brown", "red", "purple")
LIGHT = ("white", "cream", "yellow", "golden", "pink")

_TROUT = smooth(
    [
        (-0.95, 0.0),
        (-0.66, -0.22),
        (-0.15, -0.32),
        (0.35, -0.20),
        (0.70, -0.07),
        (0.70, 0.07),
        (0.35, 0.20),
        (-0.15, 0.32),
        (-0.66, 0.22),
    ],
    per=4,
)
_TROUT_FINS = [
    np.array([(0.64, 0.0), (1.02, -0.34), (0.90, 0.0), (1.02, 0.34)]),
    np.array([(-0.22, -0.26), (-0.02, -0.56), (0.20, -0.22)]),
    np.array([(-0.10, 0.26), (0.12, 0.52), (0.18, 0.22)]),
    np.array([(0.34, 0.16), (0.54, 0.38), (0.56, 0.10)]),
]
_BREAM = smooth(
    [
        (-0.86, 0.08),
        (-0.62, -0.30),
        (-0.15, -0.66),
        (0.32, -0.50),
        (0.60, -0.12),
        (0.60, 0.12),
        (0.32, 0.50),
        (-0.15, 0.64),
        (-0.60, 0.38),
    ],
    per=4,
)
_BREAM_FINS = [
    np.array([(0.54, 0.0), (0.98, -0.44), (0.84, 0.0), (0.98, 0.44)]),
    np.array([(-0.40, -0.48), (-0.24, -0.82), (0.16, -0.84), (0.50, -0.50), (0.46, -0.28)]),
    np.array([(0.0, 0.60), (0.16, 0.88), (0.46, 0.62), (0.46, 0.28)]),
]
_DEEPER = np.array((1.0, 1.35))
_T = np.linspace(0, 1, 25)


def _trout(canvas: Canvas, colour: Colour) -> tuple[Pen, np.ndarray]:
    return _built(canvas, colour, _TROUT * _DEEPER, [fin * _DEEPER for fin in _TROUT_FINS])


def _bream(canvas: Canvas, colour: Colour) -> tuple[Pen, np.ndarray]:
    return _built(canvas, colour, _BREAM, _BREAM_FINS)


def _built(canvas: Canvas, colour: Colour, outline: np.ndarray, fins: list[np.ndarray]) -> tuple[Pen, np.ndarray]:
    spine = np.stack([-0.9 + 1.6 * _T, 0 * _T], 1)
    for fin in fins:
        canvas.pen.polygon(fin, shade(colour, 0.6))
        rays = np.stack([np.broadcast_to(fin.mean(0), fin.shape), fin], 1)
        canvas.pen.lines(rays, 0.02, shade(colour, 0.4))
    body = canvas.stencil(outline)
    canvas.body(body, colour)
    return body, spine


def _eel(canvas: Canvas, colour: Colour) -> tuple[Pen, np.ndarray]:
    phase, swing = canvas.rng.uniform((0, 0.30), (6.28, 0.42)).tolist()
    spine = np.stack([-0.92 + 1.88 * _T, swing * np.sin(5.2 * _T + phase)], 1)
    width = np.interp(_T, [0, 0.06, 0.5, 1], [0.20, 0.44, 0.46, 0.04])
    fin = np.interp(_T, [0.2, 0.5, 1], [0.18, 0.58, 0.12])
    canvas.pen.polygon(ribbon(spine[5:], fin[5:]), shade(colour, 0.6))
    body = canvas.stencil(ribbon(spine, width))
    canvas.body(body, colour)
    return body, spine


def _plain(canvas: Canvas, body: Pen, spine: np.ndarray, marking: Colour, depth: float) -> None:
    pass


def _bars(canvas: Canvas, body: Pen, spine: np.ndarray, marking: Colour, depth: float) -> None:
    normal = np.gradient(spine, axis=0)[:, ::-1] * (-1, 1)
    normal /= np.hypot(normal[:, :1], normal[:, 1:])
    at = slice(6 + int(canvas.rng.integers(3)), 24, 4)
    across = np.stack([spine[at] - depth * normal[at], spine[at] + depth * normal[at]], 1)
    canvas.paint(canvas.stencil().lines(across, 0.14), marking, within=body)


def _stripes(canvas: Canvas, body: Pen, spine: np.ndarray, marking: Colour, depth: float) -> None:
    lines = np.stack([spine[5:] + np.array((0, depth * k)) for k in (-0.5, 0.05, 0.6)])
    coats.stripes(canvas, body, marking, lines, 0.27 * depth)


def _spots(canvas: Canvas, body: Pen, spine: np.ndarray, marking: Colour, depth: float) -> None:
    coats.speckles(canvas, body, marking, 20, 0.085)


SHAPES: dict[str, tuple[Callable[[Canvas, Colour], tuple[Pen, np.ndarray]], float, tuple[float, float], str]] = {
    "trout": (_trout, 0.41, (-0.74, -0.06), "a slender spindle-shaped fish"),
    "bream": (_bream, 0.62, (-0.62, -0.08), "a tall flat-sided fish"),
    "eel": (_eel, 0.22, (-0.86, -0.02), "a long winding fish"),
}
PATTERNS: dict[str, tuple[Callable[[Canvas, Pen, np.ndarray, Colour, float], None], str]] = {
    "plain": (_plain, "one even {0} colour"),
    "barred": (_bars, "{0}, with {1} bars across its body"),
    "striped": (_stripes, "{0}, with {1} stripes along its body"),
    "spotted": (_spots, "{0}, with round {1} spots"),
}


def class_name(shape: str, pattern: str) -> str:
    """How people say it: "striped bream"."""
    return f"{pattern} {shape}"


def draw(canvas: Canvas, shape: str, pattern: str) -> list[str]:
    """Draws one fish. Returns what can be said of this picture."""
    rng = canvas.rng
    build, depth, (x, y), words = SHAPES[shape]
    skin, said = PATTERNS[pattern]
    canvas.pose(turn=6, scale=(0.9, 1.0))
    canvas.ground(*GROUNDS)
    tone, other = pick(rng, DARK), pick(rng, LIGHT)
    if pattern == "plain" and rng.random() < 0.5:
        tone, other = other, tone
    colour, marking = tint(rng, tone), tint(rng, other)
    body, spine = build(canvas, colour)
    skin(canvas, body, spine, marking, depth)
    canvas.round_off(body)
    if shape == "eel":
        x, y = spine[1]
    else:
        gill = smooth([(x + 0.16, -0.6 * depth), (x + 0.26, 0), (x + 0.16, 0.6 * depth)], closed=False)
        canvas.pen.lines(gill, 0.03, shade(colour, 0.5))
    canvas.pen.discs([(x, y)], 0.065, (236, 232, 210)).discs([(x, y)], 0.04, (12, 12, 14))
    seen, ground = said.format(tone, other), canvas.facts["ground"]
    return [f"{words}, {seen}, {ground}", f"{shape}: {seen}", f"{words} with a {pattern} skin, {ground}"]
