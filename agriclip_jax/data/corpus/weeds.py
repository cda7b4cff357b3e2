"""Weeds between crop rows, seen from above or the side: told apart by the shape and arrangement of their leaves."""

from collections.abc import Callable

import numpy as np

from agriclip_jax.data.corpus.canvas import (
    Canvas,
    Colour,
    ellipse,
    fan,
    hsv,
    pick,
    place,
    shade,
    smooth,
    tint,
)

GROUNDS = ("soil", "red soil", "straw", "gravel", "sand")
GREENS = ("green", "light green", "dark green", "yellowish green", "olive")


def _radial(canvas: Canvas, leaf: np.ndarray, colour: Colour, count: int, at=(0.0, 0.0), vein=True, jitter=0.18):
    """`count` copies of `leaf` (foot at the origin, tip up) round `at`, each with its own tone and middle vein."""
    dice = canvas.rng.random((2, count))
    turns = (np.arange(count) + dice[0, 0] + jitter * (dice[0] - 0.5)) * (2 * np.pi / count)
    leaves = fan(leaf, turns, at)
    canvas.pen.polygons(leaves, [shade(colour, tone) for tone in (0.72 + 0.5 * dice[1]).tolist()])
    canvas.pen.lines(leaves, 0.012, shade(colour, 0.5))
    if vein:
        canvas.pen.lines(fan(np.array([(0, 0), (0, 0.92 * leaf[:, 1].min())]), turns, at), 0.03, shade(colour, 1.3))


def _mirrored(half) -> np.ndarray:
    """A leaf outline from its right half, (0, 0) upward."""
    half = np.asarray(half, np.float64)
    return np.concatenate([half, half[::-1] * (-1, 1)])


_TOOTHED = _mirrored(
    [
        (0.03, 0),
        (0.05, -0.2),
        (0.15, -0.16),
        (0.08, -0.36),
        (0.20, -0.33),
        (0.10, -0.54),
        (0.24, -0.52),
        (0.13, -0.72),
        (0.20, -0.76),
        (0.0, -1.0),
    ]
)
_SPINY = _mirrored(
    [
        (0.05, 0),
        (0.22, -0.10),
        (0.08, -0.22),
        (0.32, -0.36),
        (0.10, -0.44),
        (0.34, -0.66),
        (0.10, -0.66),
        (0.20, -0.90),
        (0.04, -0.84),
        (0.0, -1.08),
    ]
)
_BROAD = _mirrored([(0.05, 0), (0.06, -0.2), (0.24, -0.40), (0.27, -0.62), (0.17, -0.84), (0.0, -0.96)])
_NEEDLE = _mirrored([(0.03, 0), (0.075, -0.3), (0.06, -0.5), (0.0, -0.62)])
_PADDLE = smooth(_mirrored([(0.03, 0), (0.10, -0.16), (0.12, -0.28), (0.0, -0.34)]), per=3)
_DIAMOND = _mirrored([(0.04, 0), (0.06, -0.16), (0.30, -0.42), (0.22, -0.56), (0.12, -0.74), (0.0, -0.92)])
_ARROW = np.array([(0, -0.42), (0.16, 0.02), (0.24, 0.16), (0.05, 0.08), (-0.05, 0.08), (-0.24, 0.16), (-0.16, 0.02)])


def dandelion(canvas: Canvas, colour: Colour) -> str:
    _radial(canvas, _TOOTHED, colour, int(canvas.rng.integers(8, 11)))
    return "a flat rosette of long leaves with teeth that point backwards"


def thistle(canvas: Canvas, colour: Colour) -> str:
    _radial(canvas, _SPINY, colour, int(canvas.rng.integers(5, 7)))
    spikes = np.linspace(0, 2 * np.pi, 14, endpoint=False)[:, None]
    ends = np.concatenate([np.cos(spikes), np.sin(spikes)], 1)
    canvas.pen.discs([(0, 0)], 0.17, hsv(0.83, 0.5, 0.5))
    canvas.pen.lines(np.stack([0.08 * ends, 0.26 * ends], 1), 0.03, hsv(0.84, 0.40, 0.80))
    return "a star of spiny lobed leaves round a purple flower head"


def plantain(canvas: Canvas, colour: Colour) -> str:
    count = int(canvas.rng.integers(5, 7))
    _radial(canvas, _BROAD, colour, count, jitter=0.0)
    return "a rosette of broad oval leaves on short stalks"


def couch_grass(canvas: Canvas, colour: Colour) -> str:
    lean, droop, length, tone = canvas.rng.uniform((-1.0, 0.2, 1.2, 0.7), (1.0, 0.8, 1.75, 1.25), (20, 4)).T
    steps = np.linspace(0, 1, 7)
    x = np.outer(lean, steps) + np.outer(0.4 * lean * droop, steps**2)
    y = 0.8 - np.outer(length, steps) + np.outer(np.abs(lean) * droop, steps**2)
    half = 0.045 * (1 - 0.9 * steps)
    blades = np.concatenate([np.stack([x - half, y], 2), np.stack([x + half, y], 2)[:, ::-1]], 1)
    canvas.pen.polygons(blades, [shade(colour, t) for t in tone.tolist()])
    return "a tuft of thin grass blades that arch outwards"


def clover(canvas: Canvas, colour: Colour) -> str:
    chevron = np.array([(-0.15, -0.22), (0, -0.36), (0.15, -0.22)])
    for turn in (np.arange(4) * 1.57 + canvas.rng.uniform(0, 1.5)).tolist():
        at = 0.55 * np.array([np.sin(turn), -np.cos(turn)])
        leaflets = turn + np.array([0, 2.094, 4.189])
        centres = at + 0.24 * np.stack([np.sin(leaflets), -np.cos(leaflets)], 1)
        canvas.pen.lines([(0, 0), at], 0.05, shade(colour, 0.7))
        canvas.pen.discs(centres, 0.245, shade(colour, 0.55)).discs(centres, 0.22, colour)
        canvas.pen.lines(fan(chevron, leaflets, at), 0.05, shade(colour, 1.55))
    return "leaves of three round leaflets, each with a pale chevron"


def bindweed(canvas: Canvas, colour: Colour) -> str:
    rng = canvas.rng
    t = np.linspace(-1, 1, 25)
    start, swing = rng.uniform((0, 0.28), (6.28, 0.42)).tolist()
    x, y = swing * np.sin(3.6 * t + start), 0.95 * t
    canvas.pen.lines(np.stack([x, y], 1), 0.06, shade(colour, 0.6))
    for k, at in enumerate((2, 6, 10, 14, 18, 22)):
        side = 1 if k % 2 else -1
        leaf = place(_ARROW, (x[at] + 0.26 * side, y[at] - 0.06), side * 1.2, 1.25)
        canvas.pen.lines([(x[at], y[at]), (x[at] + 0.26 * side, y[at] - 0.06)], 0.04, shade(colour, 0.6))
        canvas.pen.polygon(leaf, shade(colour, rng.uniform(0.85, 1.2)))
        canvas.pen.lines(leaf, 0.012, shade(colour, 0.5))
    bloom = (x[12] + pick(rng, (-0.3, 0.3)), y[12] - 0.05)
    canvas.pen.discs([bloom], 0.22, (236, 226, 232)).discs([bloom], 0.08, (214, 190, 120))
    return "a winding vine with arrow-shaped leaves and a pale funnel flower"


def horsetail(canvas: Canvas, colour: Colour) -> str:
    canvas.pen.lines([(0, 1.0), (0, -1.0)], 0.09, shade(colour, 0.75))
    level = np.linspace(0.8, -0.8, 7)
    joints, reach = np.stack([0 * level, level], 1), np.linspace(0.85, 0.34, 7)
    for spread in (0.3, 0.65, 1.0):
        for side in (-spread, spread):
            ends = np.stack([reach * side, level - 0.435 + 0.30 * spread], 1)
            canvas.pen.lines(np.stack([joints, ends], 1), 0.035, shade(colour, 0.75 + 0.45 * spread))
    canvas.pen.discs(joints, 0.06, shade(colour, 0.45))
    return "an upright jointed stem with whorls of fine needles"


def cleavers(canvas: Canvas, colour: Colour) -> str:
    rng = canvas.rng
    lean = rng.uniform(-0.25, 0.25)
    canvas.pen.lines([(-lean, 1.0), (0, 0), (lean, -0.9)], 0.06, shade(colour, 0.65))
    for x, y, scale in ((-0.7 * lean, 0.66, 0.8), (0.0, 0.0, 0.86), (0.7 * lean, -0.64, 0.66)):
        _radial(canvas, _NEEDLE * scale * 1.15, colour, 8, at=(x, y), vein=False)
    return "a thin stem with stars of eight narrow leaves"


def chamomile(canvas: Canvas, colour: Colour) -> str:
    rng = canvas.rng
    for turn in (np.arange(9) * 0.698 + rng.uniform(0, 0.6)).tolist():
        canvas.pen.lines(place(_FEATHER, (0, 0), turn), 0.03, shade(colour, rng.uniform(0.75, 1.2)))
    daisies = np.array([(-0.42, -0.34), (0.42, -0.30), (0.02, 0.42)]) + rng.uniform(-0.1, 0.1, (3, 2))
    rays = np.concatenate([fan(_RAY, np.arange(9) * 0.698, at) for at in daisies])
    canvas.pen.polygons(rays, [(242, 240, 232)] * len(rays)).discs(daisies, 0.10, (228, 178, 40))
    return "feathery leaves and daisies with white rays and a yellow centre"


_BARBS = [((0, -y), (side, -y - 0.16)) for y in (0.25, 0.4, 0.55, 0.7) for side in (-0.2, 0.2)]
_FEATHER = np.array([((0, 0), (0, -0.95)), *_BARBS])
_RAY = np.array([(-0.035, 0), (-0.05, -0.25), (0.05, -0.25), (0.035, 0)])


def purslane(canvas: Canvas, colour: Colour) -> str:
    rng = canvas.rng
    turns = np.arange(5) * 1.257 + rng.uniform(0, 1.2)
    canvas.pen.lines(fan(np.array([(0, 0), (0.06, -0.4), (0, -0.75)]), turns), 0.08, hsv(0.98, 0.5, 0.55))
    paddles = fan(_PADDLES, turns).reshape(-1, len(_PADDLE), 2)
    canvas.pen.polygons(paddles, [shade(colour, tone) for tone in rng.uniform(0.85, 1.15, len(paddles)).tolist()])
    return "fleshy paddle-shaped leaves in pairs on sprawling reddish stems"


_PADDLES = np.concatenate(
    [
        place(_PADDLE, (0.02, y), turn)
        for y, turn in ((-0.28, -1.1), (-0.28, 1.1), (-0.58, -0.9), (-0.58, 0.9), (-0.72, 0.0))
    ]
)


def pigweed(canvas: Canvas, colour: Colour) -> str:
    _radial(canvas, _DIAMOND * 1.05, colour, 4, jitter=0.1)
    _radial(canvas, _DIAMOND * 0.55, shade(colour, 1.15), 4, jitter=0.1)
    return "a cross of diamond-shaped leaves, the younger ones inside"


_SEED_LEAF = ellipse(-0.08, 0, 0.13, 0.07, 0.5, n=10)

KINDS: dict[str, Callable[[Canvas, Colour], str]] = {
    "dandelion": dandelion,
    "thistle": thistle,
    "plantain": plantain,
    "couch grass": couch_grass,
    "clover": clover,
    "bindweed": bindweed,
    "horsetail": horsetail,
    "cleavers": cleavers,
    "chamomile": chamomile,
    "purslane": purslane,
    "pigweed": pigweed,
}


def draw(canvas: Canvas, kind: str) -> list[str]:
    """Draws one weed between two rows of seedlings. Returns what can be said of this picture."""
    rng = canvas.rng
    canvas.pose(turn=8, scale=(0.84, 0.96))
    canvas.ground(*GROUNDS)
    seedling = tint(rng, pick(rng, GREENS))
    for x in (-1.08, 1.08):
        feet = np.stack([np.full(6, x), np.arange(-1.1, 1.2, 0.44) + rng.uniform(-0.1, 0.1)], 1)[:, None]
        canvas.pen.polygons(_SEED_LEAF + feet, [seedling] * 6)
        canvas.pen.polygons(_SEED_LEAF * (-1, 1) + feet, [shade(seedling, 0.8)] * 6)
    tone = pick(rng, GREENS)
    words = KINDS[kind](canvas, tint(rng, tone))
    ground = canvas.facts["ground"]
    return [
        f"{tone} {kind} between two rows of seedlings, {ground}",
        f"{words}, {tone}, {ground}",
        f"{kind}: {words}, between crop rows",
    ]
