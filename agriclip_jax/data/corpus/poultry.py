"""Poultry from the side: told apart by build, comb, tail and neck, and among hens by the pattern of the plumage."""

from collections.abc import Callable

import numpy as np

from agriclip_jax.data.corpus import coats
from agriclip_jax.data.corpus.canvas import Canvas, Colour, ellipse, pick, place, ribbon, shade, smooth, tint

GROUNDS = ("grass", "pasture", "hedge", "sky")
DARK = ("black", "dark brown", "chestnut", "brown")
LIGHT = ("white", "cream", "golden", "grey")
RED, BEAK, SHANK = (196, 38, 36), (226, 164, 52), (206, 150, 60)

_HEN = smooth(
    [
        (-0.60, -0.56),
        (-0.46, -0.66),
        (-0.32, -0.54),
        (-0.22, -0.24),
        (0.08, -0.08),
        (0.40, -0.24),
        (0.62, -0.62),
        (0.84, -0.52),
        (0.74, -0.05),
        (0.46, 0.34),
        (0.06, 0.48),
        (-0.34, 0.36),
        (-0.56, 0.02),
        (-0.50, -0.30),
    ],
    per=4,
)
_ROOSTER = smooth(
    [
        (-0.56, -0.70),
        (-0.42, -0.80),
        (-0.28, -0.66),
        (-0.16, -0.26),
        (0.10, -0.10),
        (0.42, -0.20),
        (0.56, 0.0),
        (0.40, 0.30),
        (0.04, 0.42),
        (-0.34, 0.30),
        (-0.54, -0.06),
        (-0.46, -0.40),
    ],
    per=4,
)
_DUCK = smooth(
    [
        (-0.74, -0.34),
        (-0.58, -0.48),
        (-0.40, -0.40),
        (-0.36, -0.10),
        (0.0, -0.06),
        (0.5, -0.10),
        (0.92, -0.26),
        (0.80, 0.18),
        (0.4, 0.44),
        (-0.2, 0.46),
        (-0.58, 0.26),
        (-0.60, -0.06),
        (-0.74, -0.18),
    ],
    per=4,
)
_GOOSE = smooth(
    [(-0.50, 0.10), (-0.2, -0.08), (0.3, -0.12), (0.92, -0.14), (0.72, 0.26), (0.2, 0.48), (-0.3, 0.44)], per=4
)
_GOOSE_NECK = smooth(
    [(-0.62, -0.84), (-0.46, -0.78), (-0.46, -0.56), (-0.56, -0.28), (-0.44, 0.06), (-0.22, 0.22)], closed=False, per=4
)
_TURKEY = smooth(
    [
        (-0.46, -0.34),
        (-0.2, -0.30),
        (0.1, -0.16),
        (0.36, 0.10),
        (0.26, 0.46),
        (-0.1, 0.58),
        (-0.46, 0.42),
        (-0.60, 0.06),
    ],
    per=4,
)
_GUINEA = smooth(
    [
        (-0.54, -0.44),
        (-0.42, -0.40),
        (-0.24, -0.36),
        (0.2, -0.42),
        (0.60, -0.16),
        (0.84, 0.26),
        (0.5, 0.44),
        (0.0, 0.48),
        (-0.36, 0.34),
        (-0.52, -0.02),
        (-0.60, -0.28),
    ],
    per=4,
)
_SICKLES = [
    smooth(
        [(0.30, -0.05), (0.46, -0.50 - 0.10 * k), (0.72, -0.62 - 0.06 * k), (0.98 - 0.06 * k, -0.24 + 0.14 * k)],
        closed=False,
        per=4,
    )
    for k in (3, 2, 1, 0, -1)
]


def _legs(canvas: Canvas, x: float, top: float, bottom: float = 0.92) -> None:
    for foot in (x - 0.12, x + 0.14):
        canvas.pen.lines([(foot, top), (foot - 0.02, bottom)], 0.06, SHANK)
        canvas.pen.lines(
            [(foot - 0.18, bottom + 0.03), (foot - 0.02, bottom), (foot + 0.10, bottom + 0.02)], 0.05, SHANK
        )


def _face(canvas: Canvas, x: float, y: float, comb: float, beak=BEAK) -> None:
    canvas.pen.polygon(np.array([(x - 0.08, y - 0.05), (x - 0.30, y + 0.05), (x - 0.06, y + 0.09)]), beak)
    if comb:
        canvas.pen.discs([(x - 0.08, y - 0.15), (x + 0.02, y - 0.19), (x + 0.12, y - 0.14)], comb, RED)
        canvas.pen.polygon(ellipse(x - 0.06, y + 0.16, 0.06, 0.06 + comb, n=10), RED)
    canvas.pen.discs([(x, y)], 0.035, (14, 12, 12))


def _wing(canvas: Canvas, colour: Colour, x: float = 0.1, y: float = 0.12, size: float = 1.0) -> None:
    wing = smooth([(-0.34, -0.12), (0.1, -0.18), (0.46, 0.02), (0.16, 0.18), (-0.2, 0.14)], per=3) * size + (x, y)
    canvas.pen.lines(np.concatenate([wing, wing[:1]]), 0.035, shade(colour, 0.5))


def _hen(canvas: Canvas, colour: Colour, marking: Colour, plumage: str) -> None:
    _legs(canvas, 0.06, 0.40)
    body = canvas.stencil(_HEN)
    canvas.body(body, colour)
    _plumage(canvas, body, marking, plumage)
    canvas.round_off(body)
    _wing(canvas, marking if plumage != "plain" else colour)
    _face(canvas, -0.48, -0.52, 0.0 if plumage == "crested" else 0.075)
    if plumage == "crested":
        tuft = np.array([-0.42, -0.74]) + canvas.rng.uniform(-0.13, 0.13, (12, 2))
        canvas.pen.discs(tuft, 0.13, shade(colour, 0.8)).discs(tuft - (0.02, 0.03), 0.08, shade(colour, 1.25))


def _rooster(canvas: Canvas, colour: Colour, marking: Colour, plumage: str) -> None:
    _legs(canvas, 0.04, 0.34)
    tail = canvas.stencil(*(ribbon(line, np.interp(np.arange(13), [0, 8, 12], [0.2, 0.15, 0.03])) for line in _SICKLES))
    canvas.body(tail, shade(colour, 0.8))
    body = canvas.stencil(_ROOSTER)
    canvas.paint(body, colour)
    for pen in (tail, body):
        _plumage(canvas, pen, marking, plumage)
    for line in _SICKLES:
        canvas.pen.lines(line, 0.02, shade(colour, 0.35))
    canvas.round_off(body)
    _wing(canvas, marking if plumage != "plain" else colour)
    _face(canvas, -0.44, -0.66, 0.115)


def _plumage(canvas: Canvas, mask, marking: Colour, plumage: str) -> None:
    if plumage == "barred":
        coats.bars(canvas, mask, marking, np.arange(-0.8, 1.1, 0.24) + canvas.rng.uniform(0, 0.15), 0.10, -0.12)
    elif plumage == "speckled":
        coats.speckles(canvas, mask, marking, 34, 0.065)


def _duck(canvas: Canvas, colour: Colour, marking: Colour, plumage: str) -> None:
    afloat = "water" in canvas.facts["ground"]
    if not afloat:
        _legs(canvas, 0.06, 0.40, 0.70)
    body = canvas.stencil(_DUCK)
    canvas.body(body, colour)
    if plumage == "collared":
        with canvas.inside(body) as pen:
            pen.polygon(np.array([(-1, -0.6), (-0.2, -0.6), (-0.2, -0.16), (-1, -0.16)]), marking)
            pen.polygon(np.array([(-0.8, -0.22), (-0.2, -0.22), (-0.2, -0.10), (-0.8, -0.10)]), (240, 238, 230))
    canvas.round_off(body)
    _wing(canvas, colour, 0.2, 0.12, 1.15)
    canvas.pen.polygon(smooth([(-0.70, -0.34), (-0.98, -0.26), (-1.02, -0.18), (-0.72, -0.20)], per=3), BEAK)
    canvas.pen.discs([(-0.58, -0.34)], 0.04, (14, 12, 12))
    if afloat:
        ripple = np.array([(-0.95, 0.50), (-0.3, 0.54), (0.3, 0.52), (0.95, 0.48)])
        canvas.pen.lines(np.stack([ripple, ripple * 0.8 + (0.05, 0.16)]), 0.05, (222, 232, 236))


def _goose(canvas: Canvas, colour: Colour, marking: Colour, plumage: str) -> None:
    _legs(canvas, 0.10, 0.42)
    body = canvas.stencil(_GOOSE, ribbon(_GOOSE_NECK, np.interp(np.arange(21), [0, 12, 20], [0.18, 0.19, 0.46])))
    body.discs([(-0.58, -0.82)], 0.14)
    canvas.body(body, colour)
    canvas.round_off(body)
    _wing(canvas, colour, 0.22, 0.12, 1.1)
    canvas.pen.polygon(np.array([(-0.66, -0.90), (-0.94, -0.74), (-0.66, -0.72)]), BEAK)
    canvas.pen.discs([(-0.60, -0.85)], 0.035, (14, 12, 12))


def _turkey(canvas: Canvas, colour: Colour, marking: Colour, plumage: str) -> None:
    _legs(canvas, -0.08, 0.5)
    feather = np.array([(-0.05, 0), (-0.16, -0.84), (0, -0.92), (0.16, -0.84), (0.05, 0)])
    for turn in np.linspace(-1.35, 1.75, 11):
        canvas.pen.polygon(place(feather, (0.14, 0.18), turn), shade(colour, 0.8))
        canvas.pen.lines(place(np.array([(-0.14, -0.72), (0.14, -0.72)]), (0.14, 0.18), turn), 0.11, marking)
        canvas.pen.lines(place(feather, (0.14, 0.18), turn), 0.02, shade(colour, 0.35))
    body = canvas.stencil(_TURKEY)
    canvas.paint(body, shade(colour, 0.9))
    canvas.round_off(body)
    canvas.pen.lines(smooth([(-0.62, -0.50), (-0.48, -0.36), (-0.44, -0.1)], closed=False), 0.16, (120, 150, 190))
    canvas.pen.discs([(-0.62, -0.52)], 0.12, (120, 150, 190))
    canvas.pen.lines([(-0.70, -0.52), (-0.76, -0.24)], 0.08, RED)
    canvas.pen.discs([(-0.58, -0.24), (-0.52, -0.12)], 0.07, RED)
    _face(canvas, -0.64, -0.54, 0.0)


def _guinea_fowl(canvas: Canvas, colour: Colour, marking: Colour, plumage: str) -> None:
    _legs(canvas, 0.06, 0.40)
    body = canvas.stencil(_GUINEA)
    canvas.body(body, colour)
    coats.speckles(canvas, body, marking, 60, 0.038)
    canvas.round_off(body)
    canvas.pen.lines([(-0.56, -0.60), (-0.50, -0.36)], 0.13, (168, 186, 206))
    canvas.pen.discs([(-0.58, -0.62)], 0.12, (168, 186, 206))
    canvas.pen.polygon(np.array([(-0.64, -0.70), (-0.50, -0.92), (-0.48, -0.68)]), (150, 110, 70))
    canvas.pen.discs([(-0.64, -0.48)], 0.06, RED)
    _face(canvas, -0.60, -0.62, 0.0)


# class -> what draws it, plumage, what is seen
KINDS: dict[str, tuple[Callable[[Canvas, Colour, Colour, str], None], str, str]] = {
    "plain hen": (_hen, "plain", "a hen of one even {0} colour"),
    "barred hen": (_hen, "barred", "a {0} hen with {1} bars across its feathers"),
    "speckled hen": (_hen, "speckled", "a {0} hen sprinkled with {1} specks"),
    "crested hen": (_hen, "crested", "a {0} hen with a round crest of feathers on its head"),
    "plain rooster": (_rooster, "plain", "a {0} rooster with a tall red comb and long arching tail feathers"),
    "barred rooster": (_rooster, "barred", "a {0} rooster with {1} bars and long arching tail feathers"),
    "plain duck": (_duck, "plain", "a {0} duck with a flat bill"),
    "collared duck": (_duck, "collared", "a {0} duck with a {1} head and a white ring round its neck"),
    "goose": (_goose, "plain", "a {0} goose with a long upright neck"),
    "turkey": (_turkey, "plain", "a {0} turkey with its banded tail spread as a fan"),
    "guinea fowl": (_guinea_fowl, "pearled", "a round {0} guinea fowl with {1} pearls and a bare helmeted head"),
}


def draw(canvas: Canvas, kind: str) -> list[str]:
    """Draws one bird. Returns what can be said of this picture."""
    rng = canvas.rng
    shape, plumage, words = KINDS[kind]
    canvas.pose(turn=5, scale=(0.84, 0.96))
    canvas.ground(*(("water", "deep water", "murky water") if shape is _duck else ()), *GROUNDS)
    tone, other = pick(rng, DARK), pick(rng, LIGHT)
    if plumage == "plain" and rng.random() < 0.5:
        tone, other = other, tone
    shape(canvas, tint(rng, tone, 0.7), tint(rng, other, 0.7), plumage)
    seen, ground = words.format(tone, other), canvas.facts["ground"]
    return [f"{seen}, {ground}", f"{kind} {ground}: {seen}"]
