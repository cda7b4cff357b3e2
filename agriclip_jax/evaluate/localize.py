"""Which part of the photo is "a brown lesion"? Heat maps of a text over a photo, and how often they are right.

A map comes from one of two methods: the cosines of the image tower's patches with the text, or the cosines of many
windows, each looked at as a photo of its own. It is judged in two ways: by pointing at the lesions that the embedded
corpus drew, and by Semantic Localisation (SeLo, Yuan et al. 2022) as GeoRSCLIP's authors report it (arXiv 2306.11300).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from agriclip_jax.data import captions, corpus, views
from agriclip_jax.data.sources.files import MAX_TEXT_BYTES, read_file
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import measures
from agriclip_jax.evaluate.statistics import wilson
from agriclip_jax.evaluate.terminal import screen
from agriclip_jax.files import read_record

SCALES, BLUR = (256, 512, 768), 251  # of SeLo, in pixels: sides of the windows, width of the median
ANNOTATIONS, IMAGES = Path("annotations", "anno.json"), "imgs"  # where AIR-SLT keeps them
LONGEST = 32  # times the short side; a longer photo would be cut into windows without number
BATCH = 64  # windows looked at together


class Localizer(Protocol):
    """What a map needs of a model; `inference.Model` is one."""

    view: views.EvalView

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> float32 [n, d], L2-normalised."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """-> float32 [n, d], L2-normalised."""

    def dense(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, size, size, 3] -> float32 [n, rows, columns, d], L2-normalised."""


def directions(model: Localizer, queries: Sequence[str], contrast: Sequence[str] = ()) -> np.ndarray:
    """What a map looks for: an embedding's product with it is its cosine with the query, less that with the contrast.

    Args:
      model: anything with `embed_texts`.
      queries: texts.
      contrast: texts that say what is everywhere ("a photo."); they count as the mean of their embeddings.

    Returns:
      float32 [queries, d].
    """
    found = model.embed_texts([*queries, *contrast])
    wanted, others = found[: len(queries)], found[len(queries) :]
    if not len(others):
        return wanted
    mean = others.mean(axis=0)
    return wanted - mean / max(np.linalg.norm(mean), 1e-12)


def dense_map(model: Localizer, photo: Image.Image, wanted: np.ndarray) -> np.ndarray:
    """The cosine of each patch, enlarged bicubically to the photo.

    A photo that is no square is looked at in squares of its short side that overlap; where they do, their mean counts.

    Args:
      model: anything that is a `Localizer`.
      photo: RGB.
      wanted: float32 [queries, d], as from `directions`.

    Returns:
      float32 [queries, height, width].

    Raises:
      UserError: the photo is more than `LONGEST` times as long as wide.
    """
    squares = windows(photo, [min(photo.size)])
    side = int(squares[0, 2] - squares[0, 0])

    def enlarged() -> Iterator[np.ndarray]:
        for patches in _looked_at(model.dense, model.view, photo, squares):
            maps = map(Image.fromarray, np.moveaxis(patches @ wanted.T, -1, 0))
            yield np.stack([np.asarray(each.resize((side, side), Image.Resampling.BICUBIC)) for each in maps])

    return _mean(photo, squares, enlarged(), len(wanted))


def window_map(
    model: Localizer, photo: Image.Image, wanted: np.ndarray, scales: Sequence[int] | None = None
) -> np.ndarray:
    """The mean over the windows that hold a pixel of their cosines.

    Args:
      model: anything that is a `Localizer`.
      photo: RGB.
      wanted: float32 [queries, d], as from `directions`.
      scales: sides of the windows in pixels; None: a quarter, a half and three quarters of the short side.

    Returns:
      float32 [queries, height, width].

    Raises:
      UserError: the photo is more than `LONGEST` times as long as wide.
    """
    boxes = windows(photo, scales or [max(1, min(photo.size) * part // 4) for part in (1, 2, 3)])
    looks = _looked_at(model.embed_images, model.view, photo, boxes)
    return _mean(photo, boxes, ((wanted @ look)[:, None, None] for look in looks), len(wanted))


METHODS = {"dense": dense_map, "windows": window_map}


def windows(photo: Image.Image, scales: Iterable[int]) -> np.ndarray:
    """SeLo's windows: for each scale a grid that begins at the corner and one half a window from it in both directions.

    A window that would leave the photo is moved back inside; a scale larger than the short side is that side. Windows
    that fall together count once.

    Returns:
      int64 [n, 4]: top, left, bottom, right; sorted.

    Raises:
      UserError: the photo is more than `LONGEST` times as long as wide.
    """
    width, height = photo.size
    if max(photo.size) > LONGEST * min(photo.size):
        raise UserError(f"is {width} x {height} pixels, more than {LONGEST} times as long as wide; cut it into parts")
    found = set()
    for side in {min(scale, width, height) for scale in scales}:
        for begin in (0, side // 2):
            tops = [min(top, height - side) for top in range(begin, height, side)]
            lefts = [min(left, width - side) for left in range(begin, width, side)]
            found |= {(top, left, top + side, left + side) for top in tops for left in lefts}
    return np.array(sorted(found))


def _looked_at(
    look: Callable[[np.ndarray], np.ndarray], view: views.EvalView, photo: Image.Image, boxes: np.ndarray
) -> Iterator[np.ndarray]:
    """What the model gives for each box, one after the other; of a box no margin is cut off."""
    for start in range(0, len(boxes), BATCH):
        crops = [photo.crop((left, top, right, bottom)) for top, left, bottom, right in boxes[start : start + BATCH]]
        yield from look(np.stack([views.eval_view(crop, view._replace(share=1.0)) for crop in crops]))


def _mean(photo: Image.Image, boxes: np.ndarray, values: Iterable[np.ndarray], queries: int) -> np.ndarray:
    """The mean of the values [queries, ...] of the boxes over each pixel."""
    total = np.zeros((queries, photo.height, photo.width), np.float32)
    count = np.zeros((photo.height, photo.width), np.uint16)
    for (top, left, bottom, right), value in zip(boxes, values, strict=True):
        total[:, top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    total /= count
    return total


def peak(heat: np.ndarray) -> tuple[int, int]:
    """(x, y) of the maximum of a map [height, width]; of several, the one nearest to the middle of them."""
    places = np.argwhere(heat == heat.max())
    y, x = places[np.square(places - places.mean(axis=0)).sum(axis=1).argmin()]
    return int(x), int(y)


# -------------------------------------------------------------------------------------------------- pointing


@dataclass(frozen=True)
class Pointing:
    """How often the maximum of a map lies on a lesion, or within half a patch of one; shares in [0, 1].

    Attributes:
      images: how many pictures with a lesion were asked.
      accuracy: share whose maximum lies there.
      interval: 95 % Wilson interval of `accuracy`.
      chance: mean share of the picture that would have been right.
      centre: accuracy of always pointing at the middle of the picture.
      auroc: mean over the pictures of how well the map tells lesion from other pixels (no tolerance); 0.5 is chance.
    """

    images: int
    accuracy: float
    interval: tuple[float, float]
    chance: float
    centre: float
    auroc: float


def pointing(
    model: Localizer,
    *,
    method: str = "dense",
    contrast: Sequence[str] = (),
    count: int = corpus.COUNT["test"],
    seed: int = 0,
    size: int = 64,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Pointing]:
    """Asks the leaves of the embedded corpus' test split where "a leaf with rust" shows rust.

    Args:
      model: anything that is a `Localizer`.
      method: a key of `METHODS`.
      contrast: see `directions`.
      count: pictures of each class.
      seed, size: of the corpus.
      progress: called with the number of pictures done since the last call.

    Returns:
      By symptom, and over all of them as "all".
    """
    kinds = [kind for kind in corpus.KINDS if kind.domain == "crop" and kind.marks]
    symptoms = list(dict.fromkeys(kind.marks for kind in kinds))
    template = captions.templates("crop")[0]
    texts = [captions.fill(template, f"a leaf with {symptom}") for symptom in symptoms]
    wanted = dict(zip(symptoms, directions(model, texts, contrast), strict=True))
    patches = model.dense(np.zeros((1, model.view.size, model.view.size, 3), np.uint8)).shape[1]
    rows: dict[str, list[tuple[float, ...]]] = {symptom: [] for symptom in symptoms}
    for kind in kinds:
        for index in range(count):
            pixels, lesion = corpus.lesions(kind, "test", index, seed=seed, size=size)
            progress(1)
            if not lesion.any():
                continue
            (heat,) = METHODS[method](model, Image.fromarray(pixels), wanted[kind.marks][None])
            x, y = peak(heat)
            near = ndimage.distance_transform_edt(~lesion) <= size / patches / 2
            auroc = measures.auroc(heat.ravel(), lesion.ravel())
            rows[kind.marks].append((near[y, x], near.mean(), near[size // 2, size // 2], auroc))

    def summary(rows: Sequence[tuple[float, ...]]) -> Pointing:
        accuracy, chance, centre, auroc = np.mean(rows, axis=0).tolist()
        hits = sum(bool(row[0]) for row in rows)
        return Pointing(len(rows), accuracy, wilson(hits, len(rows)), chance, centre, auroc)

    everything = [row for of_symptom in rows.values() for row in of_symptom]
    return {"all": summary(everything)} | {name: summary(found) for name, found in rows.items() if found}


def show(found: Mapping[str, Pointing]) -> None:
    """Prints what `pointing` gave; shares in per cent."""
    console, table = screen()
    table.add_column("symptom")
    for column in ("images", "accuracy", "95 % interval", "chance", "centre", "AUROC"):
        table.add_column(column, justify="right")
    for name, of_name in found.items():
        shares = (of_name.accuracy, *of_name.interval, of_name.chance, of_name.centre, of_name.auroc)
        accuracy, low, high, *others = (f"{100 * share:.1f}" for share in shares)
        table.add_row(name, str(of_name.images), accuracy, f"{low} – {high}", *others)
    console.print(table)


# -------------------------------------------------------------------------------------------------- SeLo


@dataclass(frozen=True)
class Selo:
    """SeLo's indicators of a map against polygons, each in [0, 1].

    Attributes:
      rsu: how much of the map's mass lies in the regions, for their area; larger is better.
      ras: how far the peaks lie from the regions' centres; smaller is better.
      rda: whether a region has one peak; larger is better. One peak gives 1, two at one place 0.64: a step of the
        published formula, kept so that numbers compare.
      rmi: 0.4 rsu + 0.35 (1 - ras) + 0.25 rda.
    """

    rsu: float
    ras: float
    rda: float
    rmi: float


@dataclass(frozen=True, eq=False)
class Located:
    """A text of a photo and where it is true.

    Attributes:
      image: file name.
      caption: the text.
      regions: polygons, each float64 [vertices, 2] of (x, y) in pixels.
    """

    image: str
    caption: str
    regions: tuple[np.ndarray, ...]


def read_located(file: Path | str) -> list[Located]:
    """The queries of an annotation file in AIR-SLT's form.

    That is a JSON list of `{"jpg_name": "0.jpg", "caption": "...", "points": [[[x, y], ...], ...]}`.

    Raises:
      UserError: it cannot be read, is larger than 16 MiB, or not of that form.
    """
    file = Path(file)
    if file.is_file() and file.stat().st_size > MAX_TEXT_BYTES:
        raise UserError(f"{file} is larger than {MAX_TEXT_BYTES >> 20} MiB; that is no list of regions")
    records = read_record(file)
    found = []
    for number, record in enumerate(records if isinstance(records, list) else [None], 1):
        try:
            regions = tuple(np.array(region, np.float64).reshape(-1, 2) for region in record["points"])
            name, caption = record["jpg_name"], record["caption"].strip()
            if not regions:
                raise ValueError("it has no region")
            if not all(len(region) > 1 and np.abs(region).max() < 1e6 for region in regions):
                raise ValueError("a region of fewer than two vertices, or a vertex that is no place")
            if Path(name).name != name:
                raise ValueError("jpg_name is no file name")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            wrong = " ".join(str(error).split())
            form = '{"jpg_name", "caption", "points": [[[x, y], ...], ...]}'
            raise UserError(f"{file}: entry {number} is not {form} ({type(error).__name__}: {wrong})") from None
        found.append(Located(name, caption, regions))
    if not found:
        raise UserError(f"{file} holds no query")
    return found


def selo(
    model: Localizer,
    folder: Path | str,
    *,
    contrast: Sequence[str] = (),
    scales: Sequence[int] = SCALES,
    blur: int = BLUR,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, float], list[tuple[Located, Selo]]]:
    """Semantic Localisation over a data set that lies as AIR-SLT does: `annotations/anno.json` and `imgs/`.

    Of GeoRSCLIP's evaluation are left out: JPEG between the steps, the detour of a window over 256 pixels, 8 bits of
    the map (its peaks keep them: plateaus are made of them).

    Args:
      model: anything that is a `Localizer`.
      folder: of the data set.
      contrast: see `directions`; GeoRSCLIP has none.
      scales: sides of the windows, pixels.
      blur: width of the median, pixels.
      progress: called with the number of queries done since the last call.

    Returns:
      The mean of each indicator over the queries, and the indicators of each query, those of one image together.

    Raises:
      UserError: the annotations or an image cannot be read, or a region lies beside its image.
    """
    folder = Path(folder)
    queries = read_located(folder / ANNOTATIONS)
    results = []
    for name in dict.fromkeys(query.image for query in queries):
        asked = {number: query for number, query in enumerate(queries, 1) if query.image == name}
        try:
            photo = views.decode(read_file(folder / IMAGES / name))
            for number, query in asked.items():
                for place, region in enumerate(query.regions, 1):
                    if not _mask([region], photo.size).any():
                        size = f"{photo.width} x {photo.height} pixels"
                        raise UserError(f"region {place} of entry {number} lies beside its {size}")
            wanted = directions(model, [query.caption for query in asked.values()], contrast)
            heats = window_map(model, photo, wanted, scales)
        except (OSError, ValueError, UserError) as error:
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{folder / IMAGES / name}: {why}; restore the data set") from error
        for query, heat in zip(asked.values(), heats, strict=True):
            results.append((query, indicators(probability(heat, blur), query.regions)))
            progress(1)
    means = {name: float(np.mean([asdict(found)[name] for _, found in results])) for name in asdict(results[0][1])}
    return means, results


def probability(heat: np.ndarray, blur: int = BLUR) -> np.ndarray:
    """A map [height, width] brought to [0, 1] and smoothed by a median; a constant one becomes zeros.

    The median is taken over every `blur // 25`-th pixel of a row and column and repeated between them, which moves an
    edge by half that distance at most; up to a width of 49 it is exact.
    """
    low, high = float(heat.min()), float(heat.max())
    if high <= low:
        return np.zeros_like(heat)
    step = max(1, blur // 25)
    rows, columns = (np.arange(min(step // 2, side - 1), side, step) for side in heat.shape)
    thin = ndimage.median_filter((heat[np.ix_(rows, columns)] - low) / (high - low), blur // step | 1, mode="nearest")
    return thin[
        np.ix_(*(np.minimum(np.arange(side) // step, n - 1) for side, n in zip(heat.shape, thin.shape, strict=True)))
    ]


def peaks(prob: np.ndarray) -> np.ndarray:
    """SeLo's peaks of a map in [0, 1]: int64 [n, 2] of (x, y).

    In 8 bits, after five means over 50 x 50 pixels: the middles of what is largest among 1000 x 1000 pixels, where the
    map itself is at least 0.5.
    """
    gray = (prob * 255).astype(np.uint8)
    for _ in range(5):
        mean = ndimage.uniform_filter(gray, 50, output=np.float32, mode="mirror")
        gray = np.rint(mean).astype(np.uint8)
    plateaus, count = ndimage.label((gray == ndimage.maximum_filter(gray, 1000)) & (gray > 0), np.ones((3, 3)))
    middles = np.array(ndimage.center_of_mass(plateaus > 0, plateaus, range(1, count + 1)), np.int64).reshape(-1, 2)
    return middles[prob[middles[:, 0], middles[:, 1]] >= 0.5][:, ::-1]


def indicators(prob: np.ndarray, regions: Sequence[np.ndarray]) -> Selo:
    """SeLo's indicators of a map against the regions where its text is true.

    As the published code computes them (RS5M, inference_tool.py, class SLM), but: without any peak every region counts
    its radius, not only the first; a radius is one pixel at least; regions that overlap are one area.

    Args:
      prob: float [height, width] in [0, 1], as from `probability`.
      regions: polygons, each [vertices, 2] of (x, y); what lies outside the map is cut off.
    """
    height, width = prob.shape
    mask = _mask(regions, (width, height))
    area, inside, total = int(mask.sum()), float(prob[mask].sum(dtype=np.float64)), float(prob.sum(dtype=np.float64))
    rsu = 1 - math.exp(-0.707 * inside / (total - inside + 1e-7) * (height * width - area) / area) if area else 0.0

    found, offsets, singles = peaks(prob), [], []
    for region in regions:
        centre = region.mean(axis=0).astype(int)
        radius = max(1, int(1.5 * np.linalg.norm(region - centre, axis=1).mean()))
        distances = np.linalg.norm(found - centre, axis=1)
        own, near = found[distances <= radius], distances[distances <= radius]
        offsets.append((near.mean() if len(own) else radius) / radius)
        if len(own) <= 1:
            singles.append(float(len(own)))
        else:
            spread = np.linalg.norm(own - own.mean(axis=0), axis=1).mean() / radius
            singles.append(0.5 * (1 - spread) + math.exp(-0.5 * (len(own) + 2)))
    ras = (math.exp(3 * float(np.mean(offsets))) - 1) / (math.exp(3) - 1)
    rda = float(np.mean(singles))
    return Selo(rsu, ras, rda, 0.4 * rsu + 0.35 * (1 - ras) + 0.25 * rda)


def _mask(regions: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """bool [height, width]: the pixels of polygons; `size` is (width, height)."""
    drawn = Image.new("1", size)
    for region in regions:
        ImageDraw.Draw(drawn).polygon([tuple(vertex) for vertex in region.astype(int).tolist()], fill=1, outline=1)
    return np.asarray(drawn)
