"""Photos to views: decoding, the view that evaluation sees, and the augmented crops that training sees.

Only NumPy and Pillow. Every function is pure: the same image, generator state and spec give the same pixels. The
augmentation is DINO's (arXiv 2104.14294, `main_dino.py`) with torchvision's meaning of every strength; each crop costs
one resize, one colour matrix and, where drawn, one blur.
"""

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from agriclip_jax.data.records import MAX_PIXELS, eight_bits, is_turned, upright
from agriclip_jax.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
RESIZES = ("crop", "squash")
FILTERS = {filter.name.lower(): filter for filter in Image.Resampling}

# Luma and the two chroma axes of NTSC (FCC 1953): gray is (y, 0, 0), a turn of hue is a rotation of (i, q).
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_Y = _YIQ[0].tolist()
_FROM_CHROMA = np.linalg.inv(_YIQ)[:, 1:]
# For each entry of a 3 x 3 colour matrix: its part in keeping luma, in keeping chroma, in turning chroma by a quarter.
_LUMA_AND_CHROMA = np.stack(
    [np.tile(_YIQ[0], (3, 1)), _FROM_CHROMA @ _YIQ[1:], _FROM_CHROMA @ ((0, -1), (1, 0)) @ _YIQ[1:]], axis=-1
)
_LUMA_AND_CHROMA = _LUMA_AND_CHROMA.reshape(9, 3).tolist()
_LEAST_SIGMA = 0.1  # pixels; Pillow moves no value below it
_LONGEST = 32  # times the short side


@dataclass(frozen=True)
class ViewSpec:
    """How the crops of one kind of view are made.

    Attributes:
      count: crops per image.
      size: side of a crop, in pixels.
      scale: least and greatest share of the image's area that a crop shows, drawn uniformly.
      ratio: least and greatest width / height of the shown area, drawn uniformly in its logarithm.
      flip: probability of a mirrored crop.
      jitter: strengths of brightness, contrast, saturation (factors drawn from 1 +- strength) and hue (+- turns).
      jitter_prob: probability that a crop is jittered.
      grayscale: probability that a crop loses its colour.
      blur: probability of a Gaussian blur for the first crop, the second, ...; the last one holds for all that follow.
      sigma: least and greatest width of the blur, in pixels of the crop, drawn uniformly.
      solarise: probability, by crop as in `blur`, that values from 128 on are inverted.

    Raises:
      UserError: a range is not one.
    """

    count: int
    size: int
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    jitter_prob: float = 0.8
    grayscale: float = 0.0
    blur: tuple[float, ...] = ()
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: tuple[float, ...] = ()

    def __post_init__(self):
        for name in ("scale", "ratio", "sigma"):
            if len(getattr(self, name)) != 2:
                raise UserError(f"{name} is {getattr(self, name)}; it needs a least and a greatest value")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"scale is {self.scale}; it needs 0 < least <= greatest <= 1")
        for name in ("ratio", "sigma"):
            least, greatest = getattr(self, name)
            if not 0 < least <= greatest:
                raise UserError(f"{name} is {(least, greatest)}; it needs 0 < least <= greatest")
        if self.count < 0 or self.size < 1 or len(self.jitter) != 4:
            raise UserError(f"count {self.count}, size {self.size}, jitter {self.jitter} make no crop")

    @property
    def source_side(self) -> int:
        """The short side, in pixels, an image needs: its smallest crops are then enlarged by a quarter at most."""
        return math.ceil(0.8 * self.size / math.sqrt(self.scale[0]))


def decode(data: bytes, side: int | None = None) -> Image.Image:
    """The image in an encoded photo: upright (EXIF), RGB, transparent parts white, 16 bits brought to 8.

    Args:
      data: a JPEG, PNG, WEBP, GIF (its first picture) or BMP file.
      side: when given, a larger image comes shrunk by a whole factor to a short side of `side` to `2 * side` pixels,
        which is several times faster for large JPEGs. None gives every pixel.

    Raises:
      UserError: more than 200 megapixels (refused before they are decoded), or not a whole photo of these kinds.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if side:
            image.draft(image.mode, (side, side))  # JPEG only: the decoder skips detail
        image = _rgb(upright(image))
        factor = min(image.size) // side if side else 1
        return image.reduce(factor) if factor > 1 else image
    except Image.DecompressionBombError:
        raise UserError(f"image of more than {MAX_PIXELS // 10**6} megapixels; shrink it first") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # Pillow's decoders answer broken bytes with many kinds of exception
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"broken image: {reason}") from error


def size_of(data: bytes) -> tuple[int, int]:
    """Width and height, in pixels, of the upright image in a photo that `decode` takes; only its header is read."""
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    return image.size[::-1] if is_turned(image) else image.size


def _rgb(image: Image.Image) -> Image.Image:
    image = eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


class EvalView(NamedTuple):
    """How evaluation makes of a photo the square that a model looks at: CLIP's way, or that of imported weights.

    Attributes:
      size: side of the square, pixels.
      resize: "crop": the short side is resized and the centre cut out; "squash": both sides are (SigLIP).
      share: of the resized short side, how much the square has (DINO: 224 of 256).
      filter: a key of `FILTERS`.
    """

    size: int
    resize: str = "crop"
    share: float = 1.0
    filter: str = "bicubic"

    @property
    def short(self) -> int:
        """The short side after the resize, pixels."""
        return math.floor(self.size / self.share + 1e-6)  # 224 / (224 / 354) is 354, less a rounding

    def __str__(self) -> str:
        both = "both sides" if self.resize == "squash" else "short side"
        cut = "" if self.resize == "squash" else ", centre square"
        cut += f" of {self.share:.4g}" if self.share != 1 else ""
        return f"views.load_view: upright, RGB, {both} resized ({self.filter}){cut}"


def eval_view(image: Image.Image, view: EvalView) -> np.ndarray:
    """The square of an image that a model looks at: uint8 [size, size, 3].

    Pixel for pixel torchvision's `Resize(size / share)` and `CenterCrop(size)`, or its `Resize((size, size))`. The
    middle of an image many times as long as it is high is cut out first, or a strip of a few pixels could ask for all
    the memory.
    """
    if view.resize == "squash":
        return np.array(image.resize((view.size, view.size), FILTERS[view.filter]))
    short, target = min(image.size), view.short
    image = _centre(image, *(min(side, _LONGEST * short) for side in image.size))
    resized = [target if side == short else int(target * side / short) for side in image.size]
    return np.array(_centre(image.resize(resized, FILTERS[view.filter]), view.size, view.size))


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def load_view(photo: bytes, view: EvalView) -> np.ndarray:
    """The evaluation view of one encoded photo: uint8 [size, size, 3].

    Raises:
      UserError: `decode` refuses it.
    """
    return eval_view(decode(photo), view)


class _Draw(NamedTuple):
    """The uniform numbers in [0, 1) that decide one crop; always all of them, so no strength moves another's chance."""

    area: float
    ratio: float
    left: float
    top: float
    flip: float
    jitter: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grayscale: float
    blur: float
    sigma: float
    solarise: float


def crops(image: Image.Image, rng: np.random.Generator, spec: ViewSpec) -> np.ndarray:
    """Random resized crops of an image: uint8 [count, size, size, 3].

    Each is cropped and resized (bicubic), mirrored, jittered, made gray, blurred, solarised, by `spec`'s chances.

    Args:
      image: RGB.
      rng: decides everything; advanced by the same amount whatever `spec`'s strengths are.
      spec: sizes, ranges and chances.
    """
    views = np.empty((spec.count, spec.size, spec.size, 3), np.uint8)
    for index, numbers in enumerate(rng.random((spec.count, len(_Draw._fields))).tolist()):
        views[index] = _crop(image, _Draw(*numbers), spec, index)
    return views


def _crop(image: Image.Image, draw: _Draw, spec: ViewSpec, index: int) -> np.ndarray:
    view = image.resize((spec.size, spec.size), Image.Resampling.BICUBIC, box=_box(image.size, draw, spec))
    if draw.flip < spec.flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    jittered, gray = draw.jitter < spec.jitter_prob and any(spec.jitter), draw.grayscale < spec.grayscale
    if jittered or gray:
        view = view.convert("RGB", _colour_matrix(view, draw, spec.jitter if jittered else (0, 0, 0, 0), gray))
    sigma = _between(draw.sigma, *spec.sigma)
    if draw.blur < _of_crop(spec.blur, index) and sigma > _LEAST_SIGMA:
        view = view.filter(ImageFilter.GaussianBlur(sigma))
    pixels = np.asarray(view)
    if draw.solarise < _of_crop(spec.solarise, index):
        pixels = np.where(pixels < 128, pixels, 255 - pixels)
    return pixels


def _box(size: tuple[int, int], draw: _Draw, spec: ViewSpec) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the part that a crop shows; inside the image.

    The ratio is drawn among those that fit the drawn area, so the area is uniform without rejection; an image so long
    that none fits gives the largest part of the nearest ratio.
    """
    width, height = size
    area = _between(draw.area, *spec.scale) * width * height
    fits = (area / height**2, width**2 / area)
    least, greatest = (math.log(min(max(bound, fits[0]), fits[1])) for bound in spec.ratio)
    ratio = min(max(math.exp(_between(draw.ratio, least, greatest)), spec.ratio[0]), spec.ratio[1])
    high = min(math.sqrt(area / ratio), height, width / ratio)
    wide = min(high * ratio, width)
    left, top = draw.left * (width - wide), draw.top * (height - high)
    return left, top, min(left + wide, width), min(top + high, height)


def _colour_matrix(view: Image.Image, draw: _Draw, jitter: tuple, gray: bool) -> tuple[float, ...]:
    """The 3 x 4 matrix (row by row) of brightness, contrast, saturation, hue and grayscale together.

    In YIQ all five act on the luma and on the plane of chroma apart, so they commute and their order need not be drawn;
    only the clipping to [0, 255] between them is left out.
    """
    factors = zip((draw.brightness, draw.contrast, draw.saturation), jitter[:3], strict=True)
    brightness, contrast, saturation = (_between(u, max(0, 1 - strength), 1 + strength) for u, strength in factors)
    turn = 2 * math.pi * _between(draw.hue, -jitter[3], jitter[3])
    chroma = 0 if gray else saturation
    cos, sin = chroma * math.cos(turn), chroma * math.sin(turn)
    gain = brightness * contrast
    linear = [gain * (y + cos * c + sin * t) for y, c, t in _LUMA_AND_CHROMA]
    mean = sum(y * value for y, value in zip(_Y, view.reduce(view.size).getpixel((0, 0)), strict=True))
    offset = brightness * (1 - contrast) * mean
    return (*linear[:3], offset, *linear[3:6], offset, *linear[6:], offset)


def _of_crop(chances: tuple[float, ...], index: int) -> float:
    return chances[min(index, len(chances) - 1)] if chances else 0.0


def _between(u: float, low: float, high: float) -> float:
    return low + u * (high - low)
