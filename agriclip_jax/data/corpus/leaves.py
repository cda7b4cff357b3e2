"""Leaves: six crops by outline and venation, eight conditions by where and how the blade changes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from agriclip_jax.data.corpus.canvas import Canvas, Colour, Pen, blob, hsv, mix, pick, place, shade, tint

GROUNDS = ("soil", "red soil", "straw", "gravel", "board", "paper", "slate", "sky")
GREENS = ("green", "light green", "dark green", "yellowish green", "olive")


@dataclass(frozen=True)
class Leaf:
    """The geometry of one leaf in the subject's frame.

    Attributes:
      blades: outlines [n, 2].
      veins: (polylines [lines, n, 2], width), the finest first.
      stalk: a polyline [n, 2] below the blades.
    """

    blades: list[np.ndarray]
    veins: list[tuple[np.ndarray, float]]
    stalk: np.ndarray


def _blade(length: float, width: float, belly: float, teeth: int = 0, bite: float = 0.0, pairs: int = 5, sharp=0.9):
    """A blade from (0, 0) up to (0, -length): outline and pinnate veins. `belly` < 1 moves its widest place down."""
    t = _steps(4 * teeth + 1 if teeth else 15)
    half = 0.5 * width * np.sin(np.pi * t**belly) ** sharp
    if teeth:
        half = half * (1 + bite * (((t * teeth) % 1.0) < 0.5))
    outline = np.stack([np.concatenate([half, -half[::-1]]), -length * np.concatenate([t, t[::-1]])], 1)
    start = 0.10 + 0.68 * _steps(pairs)
    end = np.minimum(start + 0.17, 0.97)
    reach = 0.42 * width * np.sin(np.pi * end**belly) ** sharp
    x = np.stack([0 * reach, 0.6 * reach, reach], 1)
    y = -length * np.stack([start, start + 0.07, end], 1)
    side = np.stack([np.concatenate([x, -x]), np.concatenate([y, y])], 2)
    middle = np.array(((0.0, 0.0), (0.0, -0.96 * length)))
    return outline, side, middle


def _compound(parts, stalk) -> Leaf:
    """A leaf of several blades: `parts` are (blade, where its foot is, turn, scale)."""
    blades = [place(outline, *where) for (outline, _, _), *where in parts]
    fine = [place(side, *where) for (_, side, _), *where in parts]
    middles = [place(middle, *where) for (_, _, middle), *where in parts]
    return Leaf(blades, [(np.concatenate(fine), 0.02), (np.stack(middles), 0.04)], np.array(stalk))


@lru_cache
def _steps(n: int) -> np.ndarray:
    return np.linspace(0, 1, n)


def maize(rng: np.random.Generator) -> Leaf:
    """A long strap with parallel veins, hanging over."""
    width, bend, wave = rng.uniform((0.62, -0.35, 0.0), (0.78, 0.35, 6.28)).tolist()
    y = 1.3 - 2.35 * _steps(16)
    middle = bend * (y - 0.2) ** 2 - bend * 0.4
    half = 0.5 * width * np.sqrt(np.maximum(y + 1.05, 0) / 1.5) * (1 + 0.06 * np.sin(5 * y + wave))
    outline = np.concatenate([np.stack([middle - half, y], 1), np.stack([middle + half, y], 1)[::-1]])
    veins = np.stack([np.stack([middle + half * k, y], 1)[:14] for k in (-0.75, -0.5, -0.25, 0.25, 0.5, 0.75)])
    return Leaf([outline], [(veins, 0.02), (np.stack([middle, y], 1), 0.055)], np.array([[0, 1.2], [0, 1.4]]))


def grape(rng: np.random.Generator) -> Leaf:
    """Five toothed lobes round a stalk, one vein to each."""
    depth, wide = rng.uniform((0.30, 0.95), (0.42, 1.08)).tolist()
    at = np.array([0.0, 0.22])
    r = (_GRAPE_REACH[_GRAPE_LOBE] * (1 - depth * _GRAPE_AWAY) * _GRAPE_TEETH)[:, None]
    outline = np.concatenate([r * _GRAPE_WAY, ((0, -0.27),)]) * (wide, 1.0) + at
    return Leaf([outline], [(_GRAPE_FINE + at, 0.02), (_GRAPE_MAIN + at, 0.04)], np.stack([at, (0.05, 1.0)]))


_GRAPE_ANGLE = np.linspace(-2.92, 2.92, 89)
_GRAPE_TURN = np.deg2rad([-128.0, -62.0, 0.0, 62.0, 128.0])
_GRAPE_REACH = np.array([0.70, 0.93, 1.08, 0.93, 0.70])
_GRAPE_WAY = np.stack([np.sin(_GRAPE_ANGLE), -np.cos(_GRAPE_ANGLE)], 1)
_GRAPE_LOBE = np.abs(_GRAPE_ANGLE[:, None] - _GRAPE_TURN).argmin(1)
_GRAPE_AWAY = np.minimum(np.abs(_GRAPE_ANGLE - _GRAPE_TURN[_GRAPE_LOBE]) / np.deg2rad(32), 1.25) ** 1.3
_GRAPE_TEETH = 1 + 0.10 * (np.arange(89) % 4 < 2)


def _rays(turn, share):
    return (share * _GRAPE_REACH)[:, None] * np.stack([np.sin(turn), -np.cos(turn)], 1)


_GRAPE_MAIN = np.stack([_rays(_GRAPE_TURN, 0.0), _rays(_GRAPE_TURN, 0.95)], 1)
_GRAPE_FINE = np.concatenate(
    [
        np.stack([_rays(_GRAPE_TURN, low), _rays(_GRAPE_TURN + side * aside, high)], 1)
        for side in (-1, 1)
        for low, high, aside in ((0.35, 0.62, 0.5), (0.55, 0.82, 0.3))
    ]
)


def bean(rng: np.random.Generator) -> Leaf:
    """Three broad leaflets."""
    width, spread = rng.uniform((0.82, 1.15), (0.98, 1.45)).tolist()
    blade = _blade(1.0, width, 0.62, pairs=4)
    parts = [(blade, (-0.06, 0.22), -spread, 0.92), (blade, (0.06, 0.22), spread, 0.92), (blade, (0, 0.06), 0, 1.02)]
    return _compound(parts, [[0, 0.1], [0.02, 1.0]])


def coffee(rng: np.random.Generator) -> Leaf:
    """One oval blade with a drip tip and veins that arch."""
    width, belly = rng.uniform((0.86, 0.85), (1.06, 1.0)).tolist()
    outline, side, middle = _blade(1.75, width, belly, pairs=7, sharp=1.15)
    tip = np.array([[0.035, -1.70], [0.0, -1.95], [-0.035, -1.70]])
    outline = np.concatenate([outline[:14], tip, outline[-14:]])
    return _compound([((outline, side, middle), (0, 0.88), 0, 1.0)], [[0, 0.85], [0.02, 1.1]])


def cassava(rng: np.random.Generator) -> Leaf:
    """Narrow fingers spread from one point."""
    width, spread = rng.uniform((0.29, 1.95), (0.36, 2.2)).tolist()
    finger = _blade(1.0, width, 1.2, pairs=4, sharp=1.0)
    turns = (spread * (2 * _steps(7) - 1)).tolist()
    parts = [(finger, (0, 0.18), turn, 1.15 - 0.11 * abs(turn)) for turn in turns]
    return _compound(parts, [[0, 0.18], [-0.03, 1.05]])


def tomato(rng: np.random.Generator) -> Leaf:
    """Ragged leaflets in pairs along a stalk, one at its end."""
    width, droop = rng.uniform((0.42, 1.2), (0.50, 1.5)).tolist()
    blade = _blade(0.9, width, 0.75, teeth=4, bite=0.40, pairs=3)
    parts = [(blade, (0, y), side * droop, 1.0) for y in (0.78, 0.24) for side in (-1, 1)]
    return _compound([*parts, (blade, (0, -0.12), 0, 1.0)], [[0, 1.1], [0, -0.3]])


def healthy(canvas, leaf, mask, colour, rng) -> str:
    return pick(rng, ("without any damage", "with an even clean blade", "with unbroken surface and clear veins"))


def rust(canvas: Canvas, leaf: Leaf, mask: Pen, colour: Colour, rng: np.random.Generator) -> str:
    """Small raised pustules with a pale ring."""
    spots = canvas.scatter(mask, int(rng.integers(28, 42)), rng)
    radii = rng.uniform(0.04, 0.068, len(spots))
    with canvas.inside(mask) as pen:
        pen.discs(spots, radii * 1.6, mix(colour, tint(rng, "yellow"), 0.6))
        pen.discs(spots, radii, hsv(rng.uniform(0.02, 0.07), 0.85, 0.62))
    canvas.mark(canvas.stencil().discs(spots, radii), within=mask)
    return "orange rust pustules scattered over"


def blight(canvas: Canvas, leaf: Leaf, mask: Pen, colour: Colour, rng: np.random.Generator) -> str:
    """A few large dead patches, ringed."""
    centres = canvas.scatter(mask, int(rng.integers(3, 5)), rng)
    patches = [
        (blob(rng, radius), at) for at, radius in zip(centres, rng.uniform(0.24, 0.34, len(centres)), strict=True)
    ]
    with canvas.inside(mask) as pen:
        for scale, tone in ((1.0, 0.16), (0.82, 0.50), (0.58, 0.30), (0.40, 0.60)):
            for outline, at in patches:
                pen.polygon(outline * scale + at, hsv(0.07, 0.48, tone))
    for outline, at in patches:
        canvas.mark(canvas.stencil(outline + at), within=mask)
    return "large brown blight lesions with dark rings on"


def mosaic(canvas: Canvas, leaf: Leaf, mask: Pen, colour: Colour, rng: np.random.Generator) -> str:
    """Hard-edged pale and green patches all over."""
    pale = hsv(rng.uniform(0.15, 0.20), rng.uniform(0.40, 0.60), rng.uniform(0.80, 0.92))
    canvas.mark(canvas.paint(canvas.texture("patches", rng), pale, within=mask))
    return "a mottled mosaic of pale and green patches over"


def mildew(canvas: Canvas, leaf: Leaf, mask: Pen, colour: Colour, rng: np.random.Generator) -> str:
    """White felt in soft round patches."""
    centres = canvas.scatter(mask, int(rng.integers(7, 11)), rng)
    tufts = (centres[:, None] + rng.normal(0, 0.085, (len(centres), 11, 2))).reshape(-1, 2)
    felt = canvas.stencil().discs(tufts, rng.uniform(0.035, 0.085, len(tufts)))
    canvas.mark(canvas.paint(felt, hsv(0.12, 0.04, 0.93), within=mask))
    return "white powdery mildew in felt-like patches on"


def chlorosis(canvas: Canvas, leaf: Leaf, mask: Pen, colour: Colour, rng: np.random.Generator) -> str:
    """Yellow tissue, green veins."""
    canvas.mark(canvas.paint(mask, hsv(rng.uniform(0.14, 0.17), 0.62, rng.uniform(0.82, 0.95))))
    with canvas.inside(mask) as pen:
        for line, width in leaf.veins:
            pen.lines(line, 2.0 * width + 0.035, shade(colour, 0.75))
    return "yellowing between veins that stay green on"


def edge_burn(canvas: Canvas, leaf: Leaf, mask: Pen, colour: Colour, rng: np.random.Generator) -> str:
    """A scorched margin, wider in places."""
    depth = 0.22 if len(leaf.blades) == 1 else 0.15
    points = np.concatenate([outline[:: max(1, len(outline) // 12)] for outline in leaf.blades])
    radii = depth * rng.uniform(0.2, 0.6, len(points))
    burnt = canvas.stencil().discs(points, radii)
    with canvas.inside(mask) as pen:
        for outline in leaf.blades:
            pen.lines(outline, 1.5 * depth, mix(colour, tint(rng, "yellow"), 0.7))
            burnt.lines(outline, depth)
    canvas.mark(canvas.paint(burnt, hsv(rng.uniform(0.05, 0.08), 0.60, rng.uniform(0.28, 0.42)), within=mask))
    return "a brown burnt edge all round"


def holes(canvas: Canvas, leaf: Leaf, mask: Pen, colour: Colour, rng: np.random.Generator) -> str:
    """Eaten away: the ground shows through."""
    centres = canvas.scatter(mask, int(rng.integers(7, 11)), rng)
    bites = [blob(rng, radius, 0.35) for radius in rng.uniform(0.08, 0.16, len(centres))]
    with canvas.inside(mask) as pen:
        for bite, at in zip(bites, centres, strict=True):
            pen.polygon(bite * 1.25 + at, shade(colour, 0.45))
    eaten = canvas.stencil(*(bite + at for bite, at in zip(bites, centres, strict=True)))
    canvas.paint(eaten, canvas.backdrop, within=mask)
    for bite, at in zip(bites, centres, strict=True):
        canvas.mark(canvas.stencil(bite + at), within=mask)
    return "ragged holes eaten by insects in"


CROPS: dict[str, tuple[Callable[[np.random.Generator], Leaf], str]] = {
    "maize": (maize, "a long strap-shaped leaf with parallel veins"),
    "grape": (grape, "a toothed leaf with five lobes"),
    "bean": (bean, "a leaf of three broad leaflets"),
    "coffee": (coffee, "a glossy oval leaf with a pointed tip and arching veins"),
    "cassava": (cassava, "a leaf of narrow fingers spread from one point"),
    "tomato": (tomato, "a ragged leaf of paired leaflets along a stalk"),
}
SYMPTOMS: dict[str, Callable[[Canvas, Leaf, Pen, Colour, np.random.Generator], str]] = {
    "healthy": healthy,
    "rust": rust,
    "blight": blight,
    "mosaic": mosaic,
    "powdery mildew": mildew,
    "chlorosis": chlorosis,
    "edge burn": edge_burn,
    "insect holes": holes,
}
UNSEEN = (
    ("maize", "rust"),
    ("maize", "powdery mildew"),
    ("grape", "blight"),
    ("grape", "chlorosis"),
    ("bean", "mosaic"),
    ("bean", "edge burn"),
    ("coffee", "rust"),
    ("coffee", "insect holes"),
    ("coffee", "mosaic"),
    ("cassava", "blight"),
    ("cassava", "powdery mildew"),
    ("tomato", "chlorosis"),
    ("tomato", "edge burn"),
    ("maize", "insect holes"),
)


def class_name(crop: str, symptom: str) -> str:
    """How people say it: "healthy maize leaf", "maize leaf with rust"."""
    return f"healthy {crop} leaf" if symptom == "healthy" else f"{crop} leaf with {symptom}"


def draw(canvas: Canvas, crop: str, symptom: str) -> list[str]:
    """Draws a leaf and records where its lesions are.

    The lesions come from a random stream of their own: the same canvas seed gives the same leaf in every condition.

    Returns:
      What can be said of this picture.
    """
    rng = canvas.rng
    marks = rng.spawn(1)[0]
    geometry, words = CROPS[crop]
    canvas.pose(turn=12, scale=(0.88, 1.0))
    canvas.ground(*GROUNDS)
    leaf = geometry(rng)
    tone = pick(rng, GREENS)
    colour = tint(rng, tone)
    canvas.pen.lines(leaf.stalk, 0.06, shade(colour, 0.8))
    mask = canvas.stencil(*leaf.blades)
    canvas.body(mask, colour)
    vein = shade(colour, 1.45 if rng.random() < 0.7 else 0.6)
    for line, width in leaf.veins:
        canvas.pen.lines(line, width, vein)
    seen = SYMPTOMS[symptom](canvas, leaf, mask, colour, marks)
    edge = shade(colour, 0.6)
    for outline in leaf.blades:
        canvas.pen.lines(outline, 0.015, edge)
    ground = canvas.facts["ground"]
    if symptom == "healthy":
        return [f"a healthy {tone} {crop} leaf {seen}, {ground}", f"{words}, {tone} and {seen}"]
    return [f"{seen} a {tone} {crop} leaf, {ground}", f"{seen} {words}, {ground}", f"{symptom} on {words} of {crop}"]
