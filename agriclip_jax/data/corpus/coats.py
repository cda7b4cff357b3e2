"""Coats, plumages and skins: patterns that livestock, poultry and fish share, drawn only where a mask shows."""

import numpy as np

from agriclip_jax.data.corpus.canvas import Canvas, Colour, Pen, blob, ribbon


def patches(canvas: Canvas, mask: Pen, colour: Colour, count: int = 5, radius: float = 0.24) -> None:
    """A few large irregular patches."""
    shapes = (blob(canvas.rng, radius * canvas.rng.uniform(0.8, 1.2), 0.3) + at for at in canvas.scatter(mask, count))
    canvas.paint(canvas.stencil(*shapes), colour, within=mask)


def speckles(canvas: Canvas, mask: Pen, colour: Colour, count: int = 40, radius: float = 0.045) -> None:
    """Many small spots."""
    spots = canvas.stencil().discs(canvas.scatter(mask, count), canvas.rng.uniform(0.8, 1.3, count) * radius)
    canvas.paint(spots, colour, within=mask)


def belt(canvas: Canvas, mask: Pen, colour: Colour, x: float, width: float) -> None:
    """One broad upright band round the middle."""
    left, right, lean = (x + canvas.rng.uniform(-0.05, 0.05, 3) + (-width / 2, width / 2, 0)).tolist()
    band = np.array([(left, -2), (right, -2), (right + lean - x, 2), (left + lean - x, 2)])
    canvas.paint(canvas.stencil(band), colour, within=mask)


def bars(canvas: Canvas, mask: Pen, colour: Colour, xs: np.ndarray, width: float, lean: float = 0.0) -> None:
    """Bars at `xs` [n] from top to bottom, where they are `lean` further right."""
    lines = np.stack([np.stack([x, np.full_like(x, y)], 1) for x, y in ((xs - lean, -1.2), (xs + lean, 1.2))], 1)
    canvas.paint(canvas.stencil().lines(lines, width), colour, within=mask)


def stripes(canvas: Canvas, mask: Pen, colour: Colour, lines: np.ndarray, width: float) -> None:
    """Stripes along `lines` [n, points, 2]."""
    canvas.paint(canvas.stencil(*(ribbon(line, width) for line in lines)), colour, within=mask)
