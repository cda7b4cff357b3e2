"""Insects, mostly from above: told apart by wings, legs, feelers and the marks on wing cases or wings."""

from collections.abc import Callable

import numpy as np

from agriclip_jax.data.corpus import coats
from agriclip_jax.data.corpus.canvas import Canvas, Colour, ellipse, mix, pick, place, ribbon, shade, smooth, tint

GROUNDS = ("paper", "sand", "sky", "straw", "pasture")
DARK = ("black", "dark brown", "navy", "dark green", "chestnut", "purple", "red")
LIGHT = ("cream", "yellow", "orange", "golden", "pink", "lime", "silver")
INK = (26, 20, 18)

_HALF_WING = smooth(
    [
        (0.04, -0.1),
        (0.3, -0.62),
        (0.86, -0.80),
        (0.92, -0.42),
        (0.5, 0.0),
        (0.72, 0.3),
        (0.56, 0.78),
        (0.24, 0.66),
        (0.05, 0.2),
    ],
    per=4,
)
_CAPE = np.array([(0.0, -0.62), (0.36, -0.40), (0.86, 0.56), (0.46, 0.66), (0.0, 0.48)])
_MIRROR = np.array([-1.0, 1.0])


def _legs(canvas: Canvas, reach: float, colour: Colour = INK, width: float = 0.055, y: float = 0.05) -> None:
    """Three pairs of jointed legs."""
    for level, knee, foot in ((-0.32, -0.52, -0.74), (0.0, -0.04, 0.10), (0.28, 0.48, 0.80)):
        leg = np.array([(0, level + y), (0.68 * reach, knee + y), (reach, foot + y)])
        canvas.pen.lines(np.stack([leg, leg * _MIRROR]), width, colour)


def _feelers(canvas: Canvas, y: float, length: float = 0.34, knob: float = 0.0) -> None:
    feeler = np.array([(0.05, y), (0.12, y - 0.6 * length), (0.30, y - length)])
    canvas.pen.lines(np.stack([feeler, feeler * _MIRROR]), 0.035, INK)
    if knob:
        canvas.pen.discs([feeler[-1], feeler[-1] * _MIRROR], knob, INK)


def ladybird(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    _legs(canvas, 0.84)
    _feelers(canvas, -0.78, 0.2)
    canvas.pen.discs([(0, -0.60)], 0.33, INK)
    shell = canvas.stencil(ellipse(0, 0.12, 0.70, 0.72))
    canvas.body(shell, colour, contrast=0.15)
    canvas.round_off(shell)
    spots = np.array([(0.24, -0.28), (0.46, 0.08), (0.22, 0.22), (0.36, 0.52)])
    canvas.pen.discs(np.concatenate([spots, spots * _MIRROR]), 0.125, marking)
    canvas.pen.lines([(0, -0.58), (0, 0.84)], 0.04, INK)
    canvas.pen.discs([(-0.18, -0.70), (0.18, -0.70)], 0.07, (232, 228, 214))
    return "a round beetle, {0} with large {1} dots on its wing cases"


def striped_beetle(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    _legs(canvas, 0.80)
    _feelers(canvas, -0.74)
    canvas.pen.discs([(0, -0.62)], 0.26, shade(colour, 0.75))
    shell = canvas.stencil(ellipse(0, 0.16, 0.54, 0.72))
    canvas.body(shell, colour, contrast=0.15)
    xs = np.array([-0.40, -0.20, 0.0, 0.20, 0.40])
    coats.bars(canvas, shell, marking, xs, 0.10)
    canvas.round_off(shell)
    return "an oval beetle, {0} with {1} stripes along its wing cases"


def stag_beetle(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    _legs(canvas, 0.80, width=0.065, y=0.1)
    jaw = smooth([(0.10, -0.58), (0.34, -0.78), (0.24, -1.02), (0.06, -0.98)], closed=False)
    for side in (jaw, jaw * _MIRROR):
        canvas.pen.polygon(ribbon(side, np.linspace(0.14, 0.05, len(side))), shade(colour, 0.6))
    body = canvas.stencil(ellipse(0, 0.38, 0.42, 0.56), ellipse(0, -0.20, 0.40, 0.20), ellipse(0, -0.48, 0.30, 0.18))
    canvas.body(body, colour)
    canvas.round_off(body)
    canvas.pen.lines([(0, -0.02), (0, 0.92)], 0.035, shade(colour, 0.45))
    canvas.pen.lines([(-0.40, -0.03), (0.40, -0.03)], 0.04, shade(colour, 0.45))
    return "a long {0} beetle with big antler-like jaws"


def butterfly(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    wings = canvas.stencil(_HALF_WING, _HALF_WING * _MIRROR)
    canvas.body(wings, colour)
    edge = np.concatenate([_HALF_WING, _HALF_WING[:1]])
    with canvas.inside(wings) as pen:
        pen.lines(np.stack([edge, edge * _MIRROR]), 0.2, marking)
    dots = np.array([(0.52, -0.46), (0.42, 0.42)])
    canvas.pen.discs(np.concatenate([dots, dots * _MIRROR]), 0.13, marking)
    canvas.pen.polygon(ellipse(0, 0.02, 0.075, 0.52), INK)
    _feelers(canvas, -0.46, 0.46, 0.05)
    return "a butterfly with four broad {0} wings, edged and dotted {1}"


def moth(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    cape = canvas.stencil(_CAPE, _CAPE * _MIRROR)
    canvas.body(cape, colour)
    zigzag = np.array(
        [
            (-0.9, 0.36),
            (-0.6, 0.22),
            (-0.4, 0.32),
            (-0.2, 0.12),
            (0, 0.22),
            (0.2, 0.12),
            (0.4, 0.32),
            (0.6, 0.22),
            (0.9, 0.36),
        ]
    )
    with canvas.inside(cape) as pen:
        pen.lines(np.stack([zigzag, zigzag * (0.8, 1) - (0, 0.30)]), 0.085, marking)
    canvas.pen.lines([(0, -0.3), (0, 0.48)], 0.03, INK)
    canvas.pen.polygon(ellipse(0, -0.60, 0.16, 0.20), shade(colour, 0.6))
    plume = np.array([(0.06, -0.74), (0.26, -0.88), (0.50, -0.90)])
    canvas.pen.lines(np.stack([plume, plume * _MIRROR]), 0.075, shade(colour, 0.5))
    return "a {0} moth, its folded wings a triangle with {1} zigzag bands"


def bee(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    _legs(canvas, 0.52, width=0.045)
    _feelers(canvas, -0.72, 0.24)
    for wing in (ellipse(0.52, -0.12, 0.50, 0.19, -0.35), ellipse(0.42, 0.20, 0.36, 0.14, 0.25)):
        for side in (wing, wing * _MIRROR):
            canvas.pen.polygon(side, (214, 222, 228))
            canvas.pen.lines(side, 0.02, (120, 124, 130))
    tail = canvas.stencil(ellipse(0, 0.42, 0.32, 0.52))
    canvas.body(tail, colour, contrast=0.15)
    rings = np.array([[(-0.5, y), (0, y + 0.06), (0.5, y)] for y in (0.16, 0.40, 0.64, 0.88)])
    canvas.paint(canvas.stencil().lines(rings, 0.12), marking, within=tail)
    canvas.round_off(tail)
    canvas.pen.discs([(0, -0.22)], 0.29, mix(colour, INK, 0.55))
    canvas.pen.discs([(0, -0.58)], 0.20, INK)
    return "a bee with short clear wings, a round waist and a body ringed {0} and {1}"


def dragonfly(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    for wing in (ellipse(0.54, -0.42, 0.52, 0.12, -0.18), ellipse(0.52, -0.12, 0.50, 0.13, 0.16)):
        for side in (wing, wing * _MIRROR):
            canvas.pen.polygon(side, (206, 218, 226))
            canvas.pen.lines(np.concatenate([side, side[:1]]), 0.025, (84, 88, 96))
    tail = canvas.stencil(ribbon([(0, -0.1), (0, 0.5), (0, 1.0)], (0.16, 0.12, 0.13)))
    canvas.body(tail, colour)
    rings = np.array([[(-0.2, y), (0.2, y)] for y in (0.14, 0.36, 0.58, 0.80)])
    canvas.paint(canvas.stencil().lines(rings, 0.06), marking, within=tail)
    canvas.pen.polygon(ellipse(0, -0.32, 0.15, 0.26), shade(colour, 0.85))
    canvas.pen.discs([(-0.10, -0.64), (0.10, -0.64)], 0.125, shade(marking, 0.8))
    return "a dragonfly with a thin {0} body and four long clear wings"


def ant(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    _legs(canvas, 0.84, shade(colour, 0.7), 0.05, y=-0.12)
    feeler = np.array([(0.06, -0.72), (0.30, -0.82), (0.42, -1.06)])
    canvas.pen.lines(np.stack([feeler, feeler * _MIRROR]), 0.04, shade(colour, 0.7))
    body = canvas.stencil(ellipse(0, 0.52, 0.30, 0.40), ellipse(0, -0.10, 0.16, 0.26), ellipse(0, -0.60, 0.24, 0.24))
    body.discs([(0, 0.15)], 0.07)
    canvas.body(body, colour)
    canvas.round_off(body)
    return "a {0} ant, three knots on a thin waist, with bent feelers"


def grasshopper(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    canvas.pen.lines([(-0.82, -0.30), (-0.96, -0.62), (-0.80, -0.94)], 0.035, INK)
    for x in (-0.5, -0.2):
        canvas.pen.lines([(x, 0.2), (x - 0.14, 0.48), (x - 0.04, 0.74)], 0.06, shade(colour, 0.6))
    body = canvas.stencil(
        smooth(
            [
                (-0.92, -0.24),
                (-0.74, -0.34),
                (-0.3, -0.22),
                (0.4, -0.02),
                (1.0, 0.14),
                (0.92, 0.26),
                (0.3, 0.28),
                (-0.5, 0.26),
                (-0.90, 0.10),
            ],
            per=4,
        )
    )
    canvas.body(body, colour)
    canvas.round_off(body)
    canvas.pen.lines([(-0.42, -0.20), (0.92, 0.12)], 0.05, marking)
    canvas.pen.lines([(-0.46, -0.24), (-0.42, 0.22)], 0.05, shade(colour, 0.5))
    thigh = ribbon([(-0.02, 0.20), (0.30, -0.24), (0.62, -0.66)], (0.26, 0.20, 0.08))
    canvas.pen.polygon(thigh, shade(colour, 0.8))
    canvas.pen.lines(thigh, 0.02, INK)
    canvas.pen.lines([(0.62, -0.66), (0.80, 0.10), (0.66, 0.74), (0.88, 0.78)], 0.07, shade(colour, 0.6))
    canvas.pen.discs([(-0.78, -0.16)], 0.08, INK)
    return "a {0} grasshopper from the side, its hind leg folded high"


def caterpillar(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    rng = canvas.rng
    x = np.linspace(0.82, -0.82, 9)
    centres = np.stack([x, 0.16 * np.sin(4.0 * x + rng.uniform(0, 6.28))], 1)
    feet = centres[:, None] + np.array([(0, 0.18), (0, 0.36)])
    canvas.pen.lines(feet[1:], 0.09, shade(colour, 0.5))
    body = canvas.stencil().discs(centres, 0.215)
    canvas.body(body, colour)
    canvas.round_off(body)
    canvas.pen.lines((centres[:, None] + np.array([(0.1, -0.2), (0.1, 0.2)]))[1:], 0.03, shade(colour, 0.5))
    canvas.pen.discs(centres[1:] - (0, 0.05), 0.075, marking)
    canvas.pen.discs(centres[-1:], 0.24, shade(colour, 0.7))
    canvas.pen.discs([centres[-1] + (-0.08, -0.06)], 0.055, INK)
    return "a {0} caterpillar, a chain of round segments with a {1} dot on each"


def aphids(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    rng = canvas.rng
    for x, y in ((-0.50, -0.46), (0.46, -0.52), (-0.04, 0.06), (-0.54, 0.56), (0.54, 0.54)):
        at, turn = np.add((x, y), rng.uniform(-0.07, 0.07, 2)), rng.uniform(-0.6, 0.6)
        canvas.pen.lines(place(_APHID_LEGS, at, turn), 0.03, shade(colour, 0.45))
        canvas.pen.polygon(place(_APHID, at, turn), shade(colour, 0.5))
        canvas.pen.polygon(place(_APHID * 0.88, at, turn), colour)
        canvas.pen.lines(place(_APHID_HORNS, at, turn), 0.05, INK)
    return "a colony of small pear-shaped {0} aphids with two short tubes each"


_APHID = smooth([(0, -0.32), (0.12, -0.22), (0.22, 0.08), (0.0, 0.30), (-0.22, 0.08), (-0.12, -0.22)], per=3)
_APHID_LEGS = np.array(
    [[(-0.36, y - 0.12), (0, y), (0.36, y - 0.12)] for y in (-0.16, 0.0)] + [[(-0.34, 0.3), (0, 0.08), (0.34, 0.3)]]
)
_APHID_HORNS = np.array([[(0.12, 0.18), (0.18, 0.36)], [(-0.12, 0.18), (-0.18, 0.36)]])


def weevil(canvas: Canvas, colour: Colour, marking: Colour) -> str:
    for x in (-0.30, 0.06, 0.42):
        canvas.pen.lines([(x, 0.2), (x - 0.12, 0.50), (x + 0.02, 0.80)], 0.07, shade(colour, 0.55))
    snout = smooth([(-0.52, -0.06), (-0.80, 0.06), (-0.94, 0.30), (-0.98, 0.58)], closed=False, per=4)
    canvas.pen.polygon(ribbon(snout, np.linspace(0.16, 0.08, len(snout))), shade(colour, 0.7))
    canvas.pen.lines([(-0.86, 0.16), (-0.98, -0.02), (-1.02, -0.22)], 0.035, INK)
    body = canvas.stencil(
        smooth(
            [
                (-0.62, -0.12),
                (-0.42, -0.32),
                (-0.1, -0.30),
                (0.3, -0.50),
                (0.78, -0.16),
                (0.80, 0.26),
                (0.3, 0.36),
                (-0.3, 0.30),
                (-0.58, 0.12),
            ],
            per=4,
        )
    )
    canvas.body(body, colour)
    coats.speckles(canvas, body, marking, 24, 0.035)
    canvas.round_off(body)
    canvas.pen.lines([(-0.14, -0.32), (-0.20, 0.30)], 0.04, shade(colour, 0.45))
    canvas.pen.discs([(-0.54, -0.06)], 0.06, INK)
    return "a {0} weevil from the side with a long bent snout"


KINDS: dict[str, Callable[[Canvas, Colour, Colour], str]] = {
    "ladybird": ladybird,
    "striped beetle": striped_beetle,
    "stag beetle": stag_beetle,
    "butterfly": butterfly,
    "moth": moth,
    "bee": bee,
    "dragonfly": dragonfly,
    "ant": ant,
    "grasshopper": grasshopper,
    "caterpillar": caterpillar,
    "aphid colony": aphids,
    "weevil": weevil,
}


def draw(canvas: Canvas, kind: str) -> list[str]:
    """Draws one insect, or one colony. Returns what can be said of this picture."""
    rng = canvas.rng
    canvas.pose(turn=12, scale=(0.86, 0.98))
    canvas.ground(*GROUNDS)
    tone, other = pick(rng, DARK), pick(rng, LIGHT)
    seen = KINDS[kind](canvas, tint(rng, tone), tint(rng, other)).format(tone, other)
    ground = canvas.facts["ground"]
    return [f"{seen}, {ground}", f"{kind} {ground}: {seen}"]
