"""The drawing table of the embedded corpus: a supersampled canvas, pens in the subject's own frame, light and blur.

Everything is NumPy and Pillow. Points are float arrays [n, 2] in the *subject's frame*: x to the right, y down, the
subject within [-1, 1]. A random pose takes them to pixels, so a shape is written down once and drawn in many ways.
Textures are drawn once per size from fixed seeds; an image crops, turns and tints them.
"""

import colorsys
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
Box = tuple[float, float, float, float]

SUPERSAMPLING = 2

# name -> hue, saturation, value; `tint` jitters them, so one name covers a range
PALETTE = {
    "black": (0.08, 0.15, 0.12),
    "dark brown": (0.06, 0.55, 0.27),
    "brown": (0.07, 0.60, 0.45),
    "chestnut": (0.04, 0.65, 0.50),
    "golden": (0.11, 0.62, 0.75),
    "grey": (0.10, 0.06, 0.50),
    "cream": (0.12, 0.22, 0.88),
    "white": (0.11, 0.05, 0.96),
    "red": (0.99, 0.72, 0.72),
    "orange": (0.06, 0.75, 0.88),
    "yellow": (0.14, 0.70, 0.90),
    "lime": (0.20, 0.62, 0.80),
    "green": (0.30, 0.58, 0.55),
    "dark green": (0.34, 0.58, 0.34),
    "light green": (0.26, 0.55, 0.70),
    "yellowish green": (0.21, 0.60, 0.62),
    "olive": (0.18, 0.55, 0.42),
    "navy": (0.62, 0.55, 0.28),
    "purple": (0.79, 0.45, 0.42),
    "pink": (0.95, 0.35, 0.88),
    "silver": (0.57, 0.09, 0.78),
}

# background -> texture, darker colour, lighter colour, words
GROUNDS = {
    "soil": ("crumbs", (0.07, 0.45, 0.25), (0.08, 0.38, 0.50), "on bare soil"),
    "red soil": ("crumbs", (0.03, 0.60, 0.38), (0.05, 0.55, 0.66), "on red soil"),
    "grass": ("blades", (0.29, 0.55, 0.28), (0.24, 0.52, 0.60), "in green grass"),
    "straw": ("straws", (0.11, 0.45, 0.48), (0.13, 0.40, 0.85), "on straw"),
    "gravel": ("pebbles", (0.10, 0.06, 0.35), (0.10, 0.06, 0.72), "on grey gravel"),
    "board": ("grain", (0.08, 0.40, 0.45), (0.09, 0.36, 0.70), "on a wooden board"),
    "paper": ("cloud", (0.12, 0.06, 0.78), (0.12, 0.04, 0.96), "on white paper"),
    "slate": ("cloud", (0.60, 0.16, 0.22), (0.60, 0.14, 0.42), "on dark slate"),
    "sky": ("cloud", (0.57, 0.40, 0.72), (0.56, 0.12, 0.95), "against a pale sky"),
    "water": ("ripples", (0.53, 0.55, 0.38), (0.50, 0.40, 0.72), "in clear water"),
    "deep water": ("ripples", (0.60, 0.60, 0.20), (0.57, 0.52, 0.45), "in dark water"),
    "murky water": ("ripples", (0.18, 0.40, 0.28), (0.16, 0.36, 0.52), "in murky water"),
    "pasture": ("blades", (0.25, 0.50, 0.45), (0.21, 0.45, 0.75), "on a light green pasture"),
    "hedge": ("leaves", (0.33, 0.55, 0.18), (0.27, 0.50, 0.46), "before a dark hedge"),
    "sand": ("crumbs", (0.11, 0.30, 0.66), (0.12, 0.22, 0.90), "on pale sand"),
}


def hsv(hue: float, saturation: float, value: float) -> Colour:
    """A colour from hue (a turn is 1), saturation and value in [0, 1], clipped."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0))
    return int(255 * red), int(255 * green), int(255 * blue)


def tint(rng: np.random.Generator, name: str, spread: float = 1.0) -> Colour:
    """A random colour of the palette's range `name`."""
    hue, saturation, value = PALETTE[name]
    a, b, c = rng.uniform(-spread, spread, 3).tolist()
    return hsv(hue + 0.025 * a, saturation + 0.12 * b, value + 0.10 * c)


def shade(colour: Colour, factor: float) -> Colour:
    """`colour` made darker (factor < 1) or lighter (factor > 1, towards white)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in colour)
    return mix(colour, (255, 255, 255), factor - 1)


def mix(one: Colour, other: Colour, share: float) -> Colour:
    """`share` of `other` in `one`."""
    return tuple(int(a + (b - a) * share) for a, b in zip(one, other, strict=True))


def pick(rng: np.random.Generator, options: Sequence):
    """One of `options`, each as likely as the others."""
    return options[int(rng.integers(len(options)))]


def smooth(points, per: int = 5, closed: bool = True) -> np.ndarray:
    """The Catmull-Rom curve through `points` [n, 2], `per` samples a segment."""
    return _spline(len(points), per, closed) @ np.asarray(points)


@lru_cache
def _spline(n: int, per: int, closed: bool) -> np.ndarray:
    """The matrix [samples, n] that takes control points to the curve."""
    t = np.arange(per) / per
    basis = 0.5 * np.stack([-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2], 1)
    segments = n if closed else n - 1
    matrix = np.zeros((segments * per + (not closed), n))
    for segment in range(segments):
        for k in range(4):
            point = segment + k - 1
            point = point % n if closed else min(max(point, 0), n - 1)
            matrix[segment * per : (segment + 1) * per, point] += basis[:, k]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def ribbon(line: np.ndarray, width) -> np.ndarray:
    """The outline [2n, 2] of a band along `line` [n, 2], `width` wide (a number, or one per point)."""
    line = np.asarray(line, np.float64)
    along = np.gradient(line, axis=0)
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    across = along[:, ::-1] * (-0.5, 0.5) * np.broadcast_to(np.asarray(width, np.float64), len(line))[:, None]
    return np.concatenate([line + across, (line - across)[::-1]])


def ellipse(x: float, y: float, rx: float, ry: float, turn: float = 0.0, n: int = 28) -> np.ndarray:
    """The outline [n, 2] of an ellipse, turned by `turn` radians."""
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return place(np.stack([rx * np.cos(angle), ry * np.sin(angle)], 1), (x, y), turn)


def place(points: np.ndarray, at=(0.0, 0.0), turn: float = 0.0, scale: float = 1.0) -> np.ndarray:
    """`points` [..., 2] scaled, turned by `turn` radians (clockwise on the picture) and moved to `at`."""
    cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
    return points @ np.array(((cos, sin), (-sin, cos))) + at


def fan(points: np.ndarray, turns, at=(0.0, 0.0)) -> np.ndarray:
    """Copies [copies, n, 2] of `points` [n, 2], each turned by one of `turns` radians and moved to `at`."""
    cos, sin = np.cos(turns), np.sin(turns)
    return points @ np.stack([cos, sin, -sin, cos], 1).reshape(-1, 2, 2) + np.reshape(at, (-1, 1, 2))


def blob(rng: np.random.Generator, radius: float, rough: float = 0.25) -> np.ndarray:
    """The outline of an irregular spot round the origin."""
    angle = np.arange(9) * (2 * np.pi / 9)
    r = radius * (1 + rng.uniform(-rough, rough, 9))
    return smooth(np.stack([r * np.cos(angle), r * np.sin(angle)], 1), per=3)


class Pen:
    """Draws on one image in the subject's frame."""

    def __init__(self, image: Image.Image, frame: np.ndarray, unit: float):
        self.image = image
        self.frame = frame
        self.unit = unit
        self._draw = ImageDraw.Draw(image)

    def pixels(self, points) -> np.ndarray:
        """`points` [..., 2] of the subject's frame as pixel coordinates [..., 2]."""
        return np.asarray(points) @ self.frame[:, :2].T + self.frame[:, 2]

    def polygon(self, points, fill=1) -> "Pen":
        self._draw.polygon(self.pixels(points).ravel().tolist(), fill=fill)
        return self

    def polygons(self, outlines: np.ndarray, fills: Sequence) -> "Pen":
        """One polygon for each of `outlines` [n, points, 2] with its own fill."""
        outlines = self.pixels(outlines).reshape(len(outlines), -1).tolist()
        for outline, fill in zip(outlines, fills, strict=True):
            self._draw.polygon(outline, fill=fill)
        return self

    def lines(self, points, width: float, fill=1) -> "Pen":
        """Lines through `points` [n, 2] or [lines, n, 2], `width` wide in the subject's units, at least one pixel."""
        points = self.pixels(points)
        width = max(1, round(width * self.unit))
        for line in points.reshape(-1, 2 * points.shape[-2]).tolist():
            self._draw.line(line, fill=fill, width=width)
        return self

    def discs(self, centres, radii, fill=1) -> "Pen":
        """Discs at `centres` [n, 2], `radii` a number or [n]."""
        centres = self.pixels(np.reshape(centres, (-1, 2)))
        radii = np.broadcast_to(np.asarray(radii) * self.unit, len(centres))[:, None]
        for corners in np.concatenate([centres - radii, centres + radii], 1).tolist():
            self._draw.ellipse(corners, fill=fill)
        return self


class Canvas:
    """One picture being drawn, `SUPERSAMPLING` times as wide as it will be.

    Attributes:
      size: side of the finished picture in pixels.
      rng: the source of everything random about it.
      image: the picture so far, RGB [side, side].
      backdrop: the picture as it was when the ground was laid.
      pen: a pen on the picture, in the frame of the pose; there is none before `pose` is called.
      facts: what can be said beside the subject: "ground", "light", "focus" -> words.
      boxes: (ymin, xmin, ymax, xmax) in [0, 1] of what was marked.
      marked: mode 1 [side, side], everything that was marked.
    """

    def __init__(self, size: int, rng: np.random.Generator):
        self.size = size
        self.rng = rng
        self.side = SUPERSAMPLING * size
        self.image = self.backdrop = Image.new("RGB", (self.side, self.side))
        self.marked = Image.new("1", (self.side, self.side))
        self.facts: dict[str, str] = {}
        self.boxes: list[Box] = []

    def pose(self, turn: float = 8.0, scale=(0.86, 0.98), shift: float = 0.06) -> None:
        """Draws a new pose for the subject: up to `turn` degrees either way, mirrored or not."""
        angle, size, x, y, mirror, slim = self.rng.random(6).tolist()
        angle = math.radians(turn) * (2 * angle - 1)
        half = self.side / 2
        self.unit = half * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = 0.92 + 0.16 * slim
        sign = -1.0 if mirror < 0.5 else 1.0
        cos, sin = math.cos(angle) * self.unit, math.sin(angle) * self.unit
        self.frame = np.array(
            [
                [sign * cos / aspect, -sin * aspect, half * (1 + shift * (2 * x - 1))],
                [sign * sin / aspect, cos * aspect, half * (1 + shift * (2 * y - 1))],
            ]
        )
        self.pen = Pen(self.image, self.frame, self.unit)

    def ground(self, *names: str) -> None:
        """Covers the canvas with one of the named `GROUNDS`."""
        texture, dark, light, words = GROUNDS[pick(self.rng, names)]
        a, b, c, d = self.rng.uniform(-1, 1, 4).tolist()
        low = hsv(dark[0] + 0.03 * a, dark[1] + 0.12 * b, dark[2] * (1 + 0.25 * c))
        high = hsv(light[0] + 0.03 * a, light[1] + 0.12 * b, light[2] * (1 + 0.20 * d))
        self.backdrop = self.tinted(texture, mix(low, high, 0.25), mix(high, low, 0.15))
        self.image.paste(self.backdrop, (0, 0))
        self.facts["ground"] = words

    def texture(self, name: str, rng: np.random.Generator | None = None) -> Image.Image:
        """A random window, randomly mirrored, of a texture: mode L, but "patches" is a mask (mode 1)."""
        x, y, turn = ((rng or self.rng).random(3) * (self.side, self.side, 4)).astype(int).tolist()
        return _texture(name, self.side, turn).crop((x, y, x + self.side, y + self.side))

    def tinted(self, name: str, low: Colour, high: Colour) -> Image.Image:
        """A random window of a texture in the colours from `low` to `high`: mode RGB."""
        window = self.texture(name)
        window.putpalette((_STEPS * np.subtract(high, low) + low).astype(np.uint8).tobytes())
        return window.convert("RGB")

    def stencil(self, *polygons: np.ndarray) -> Pen:
        """A pen on a new empty mask (mode 1) with `polygons` filled."""
        pen = Pen(Image.new("1", (self.side, self.side)), self.frame, self.unit)
        for polygon in polygons:
            pen.polygon(polygon)
        return pen

    def paint(self, mask: Pen | Image.Image, fill: Colour | Image.Image, *, within: Pen | None = None) -> Image.Image:
        """Covers what `mask` (and `within`, if given) shows with a colour or a picture; returns the mask it used."""
        mask = mask.image if isinstance(mask, Pen) else mask
        if within is not None:
            mask = ImageChops.logical_and(mask, within.image)
        self.image.paste(fill, (0, 0, self.side, self.side), mask)
        return mask

    def body(self, mask: Pen, colour: Colour, *, contrast: float = 0.25) -> None:
        """Paints a solid: its shadow on the ground, then `colour`, mottled by `contrast`."""
        reach = round(0.07 * self.unit)
        self.image.paste(self._darkened(self.backdrop, 0.5), (reach // 2, reach), mask.image)
        self.paint(mask, self.tinted("cloud", shade(colour, 1 - contrast), shade(colour, 1 + 0.4 * contrast)))

    def round_off(self, mask: Pen) -> None:
        """Darkens the lower edge of what `mask` shows, as light from above leaves a rounded body."""
        reach = max(2, round(0.16 * self.unit))
        lifted = ImageChops.offset(mask.image, 0, -reach)
        under = ImageChops.logical_and(mask.image, ImageChops.invert(lifted))
        self.image.paste(self._darkened(self.image, 0.62), (0, 0), under)

    def _darkened(self, image: Image.Image, factor: float) -> Image.Image:
        return Image.blend(Image.new("RGB", image.size), image, factor)

    @contextmanager
    def inside(self, mask: Pen) -> Iterator[Pen]:
        """A pen on the picture that leaves marks only where `mask` shows."""
        copy = self.image.copy()
        yield Pen(copy, self.frame, self.unit)
        self.image.paste(copy, (0, 0), mask.image)

    def scatter(self, mask: Pen, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
        """`count` random places [count, 2] of what `mask` shows, in the subject's frame."""
        shown = np.flatnonzero(np.asarray(mask.image))
        chosen = shown[((rng or self.rng).random(count) * len(shown)).astype(int)]
        pixels = np.stack([chosen % self.side, chosen // self.side], 1)
        return (pixels - self.frame[:, 2]) @ np.linalg.inv(self.frame[:, :2]).T

    def mark(self, mask: Pen | Image.Image, *, within: Pen | None = None) -> None:
        """Records what `mask` (and `within`, if given) shows, and a box round it unless that is next to nothing."""
        mask = mask.image if isinstance(mask, Pen) else mask
        mask = ImageChops.logical_and(mask, within.image) if within else mask
        self.marked = ImageChops.logical_or(self.marked, mask)
        found = mask.getbbox()
        if found is not None and min(found[2] - found[0], found[3] - found[1]) >= 2 * SUPERSAMPLING:
            left, top, right, bottom = (v / self.side for v in found)
            self.boxes.append((top, left, bottom, right))

    def finish(self) -> np.ndarray:
        """The picture, uint8 [size, size, 3]: light, colour cast, focus and sensor noise applied."""
        direction, slope, exposure, warmth, green, blur, left, top = self.rng.random(8).tolist()
        image = self.image.reduce(SUPERSAMPLING)
        blur = max(0.0, blur - 0.65) * 2.2
        if blur > 0.1:
            image = image.filter(ImageFilter.GaussianBlur(blur * self.size / 64))
        exposure = 0.78 + 0.44 * exposure
        cast = np.tile(np.float32((0.92 + 0.16 * warmth, 0.96 + 0.08 * green, 1.08 - 0.16 * warmth)), self.size)
        angle, slope = 2 * math.pi * direction, 0.28 * slope * exposure
        x, y, grain = _sensor(self.size)
        light = (exposure + slope * math.cos(angle) * x) * cast + y * (slope * math.sin(angle) * cast)
        left, top = int(left * self.size), int(top * self.size)
        pixels = np.asarray(image).reshape(self.size, -1) * light
        pixels += grain[top : top + self.size, 3 * left : 3 * (left + self.size)]
        pixels = np.clip(pixels, 0, 255, out=pixels).astype(np.uint8).reshape(self.size, self.size, 3)
        self.facts["light"] = "in bright light" if exposure > 1.12 else "in low light" if exposure < 0.88 else ""
        self.facts["focus"] = "blurry" if blur > 0.45 else ""
        return pixels


_STEPS = np.linspace(0, 1, 256)[:, None]


@lru_cache(maxsize=8)
def _sensor(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ramps over a row of RGB pixels [3 size] and over rows [size, 1], and a field of grey noise [2 size, 6 size]."""
    line = np.linspace(-1, 1, size, dtype=np.float32)
    noise = np.random.default_rng(0).normal(0, 3, (2 * size, 2 * size)).astype(np.float32)
    return np.repeat(line, 3), line[:, None], np.repeat(noise, 3, axis=1)


@lru_cache(maxsize=256)
def _texture(name: str, side: int, turn: int) -> Image.Image:
    """A texture of twice the canvas' side, mode L; `turn` in 0..3 mirrors it."""
    if turn:
        flips = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
        return _texture(name, side, 0).transpose(flips[turn - 1])
    rng = np.random.default_rng(list(name.encode()))
    full = 2 * side
    cloud = _noise(rng, full, (8, 16, 32, 64))
    if name == "cloud":
        return cloud
    if name == "crumbs":
        return _noise(rng, full, (16, 64, 128))
    if name == "patches":
        return _noise(rng, full, (22,)).point([255 * (v > 127) for v in range(256)], "1")
    if name == "grain":
        return cloud.resize((full, full), box=(0, 0, full / 16, full))
    image = cloud.point([v // 3 for v in range(256)])
    draw = ImageDraw.Draw(image)
    count, length, width, spread = {
        "blades": (2600, 0.16, 0.016, 0.5),
        "straws": (1100, 0.45, 0.030, np.pi),
        "ripples": (420, 0.40, 0.022, 0.25),
        "pebbles": (1500, 0.05, 0.0, 0.0),
        "leaves": (500, 0.16, 0.0, np.pi),
    }[name]
    upright = name == "blades"
    for x, y, size, turn, tone in rng.random((count, 5)).tolist():
        x, y, size, tone = x * full, y * full, side * length * (0.5 + size), int(60 + 190 * tone)
        angle = (np.pi / 2 if upright else 0) + spread * (2 * turn - 1)
        if width:
            end = x + size * np.cos(angle), y - size * np.sin(angle)
            draw.line((x, y, *end), fill=tone, width=max(1, round(width * side)))
        else:
            shape = ellipse(x, y, size, size * (0.75 if name == "pebbles" else 0.42), angle, n=12)
            draw.polygon(shape.ravel().tolist(), fill=tone)
    return image.filter(ImageFilter.GaussianBlur(side / 128))


def _noise(rng: np.random.Generator, full: int, cells: Sequence[int]) -> Image.Image:
    """Smooth noise: random grids of `cells` cells a side, enlarged and added, stretched over 0..255."""
    total = np.zeros((full, full), np.float32)
    for n in cells:
        grid = Image.fromarray(rng.random((n, n), np.float32))
        total += np.asarray(grid.resize((full, full), Image.Resampling.BICUBIC)) / np.sqrt(n / cells[0])
    low, high = np.percentile(total, (2, 98))
    return Image.fromarray(np.clip((total - low) / (high - low) * 255, 0, 255).astype(np.uint8))
