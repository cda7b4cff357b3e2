"""Robustness: the same view as a worse camera, a worse light or an unsteady hand would have taken it.

Six corruptions at five strengths, in the spirit of ImageNet-C (Hendrycks & Dietterich 2019). Lengths are relative to
the view's side, so that a small view and a large one of one photo are made equally bad. Only NumPy and Pillow.
"""

import io
import math

import numpy as np
from PIL import Image, ImageFilter

from agriclip_jax.errors import UserError, near_misses

BICUBIC = Image.Resampling.BICUBIC

_SIDE = 224  # pixels; the view for which noise and JPEG are stated
_GAMMA = 2.2  # of sRGB, nearly: twice the light is 2 ** (1 / 2.2) times the pixel's value

# What each strength from 1 to 5 means.
CORRUPTIONS = {
    "blur": (0.005, 0.01, 0.015, 0.02, 0.03),  # width of the Gaussian, in sides: 1 to 7 pixels of 224
    "noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # standard deviation at 224 pixels, of a full scale of 1
    "dark": (-1.0, -2.0, -3.0, -4.0, -5.0),  # exposure, in stops
    "bright": (0.5, 1.0, 1.5, 2.0, 2.5),  # exposure, in stops; fewer, for what is burnt out is lost
    "jpeg": (25, 18, 15, 10, 7),  # quality at 224 pixels
    "rotation": (9, 18, 27, 36, 45),  # degrees, anticlockwise; from 45 on a square comes nearer to itself again
}


def corrupt(view: np.ndarray, kind: str, strength: int, seed: int) -> np.ndarray:
    """A view made worse; the same arguments give the same pixels.

    Args:
      view: uint8 [side, side, 3].
      kind: one of `CORRUPTIONS`.
      strength: from 1, mild, to 5, severe.
      seed: of the noise; all strengths scale the same draw.

    Returns:
      uint8 [side, side, 3].

    Raises:
      UserError: there is no such kind or strength.
    """
    if kind not in CORRUPTIONS:
        raise UserError(f"unknown corruption {kind!r}{near_misses(kind, CORRUPTIONS)}")
    if strength not in range(1, 6):
        raise UserError(f"strength {strength} of corruption {kind!r}: give a whole number from 1 to 5")
    amount, side = CORRUPTIONS[kind][strength - 1], len(view)
    if kind == "blur":
        return np.array(Image.fromarray(view).filter(ImageFilter.GaussianBlur(amount * side)))
    if kind == "noise":
        # A pixel of a smaller view is the mean of more of the sensor, whose noise the mean makes less.
        noise = np.random.default_rng(seed).standard_normal(view.shape, np.float32) * (255 * amount * side / _SIDE)
        return np.clip(np.rint(view + noise), 0, 255).astype(np.uint8)
    if kind in ("dark", "bright"):
        return np.clip(np.rint(np.arange(256) * 2 ** (amount / _GAMMA)), 0, 255).astype(np.uint8)[view]
    if kind == "jpeg":
        # Compressed at one side, for the blocks of 8 pixels are a larger part of a smaller view.
        file = io.BytesIO()
        Image.fromarray(view).resize((_SIDE, _SIDE), BICUBIC).save(file, "JPEG", quality=amount, subsampling="4:2:0")
        with Image.open(file) as image:
            return np.array(image.resize((side, side), BICUBIC))
    margin = math.ceil(side * (math.sqrt(2) - 1) / 2) + 2  # a corner's way beyond the edge, and what bicubic reads
    # The photo goes on as its mirror image, so that no black corner gives the rotation away.
    mirrored = Image.fromarray(np.pad(view, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric"))
    return np.array(mirrored.rotate(amount, BICUBIC))[margin:-margin, margin:-margin]
