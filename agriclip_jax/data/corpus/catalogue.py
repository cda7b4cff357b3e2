"""What the embedded corpus holds: its datasets and classes, and how one example of a class is made.

Example `index` of a class depends only on (seed, class, split, index) and the size: never on how many there are, in
which order or by how many processes they are drawn.
"""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from agriclip_jax.data import captions
from agriclip_jax.data.corpus import fish, fruit, insects, leaves, livestock, poultry, weeds
from agriclip_jax.data.corpus.canvas import Canvas
from agriclip_jax.data.records import DatasetRecord, Example

SPLITS = ("train", "val", "test")
UNSEEN = "embedded_unseen_combinations"


@dataclass(frozen=True)
class Kind:
    """One class.

    Attributes:
      dataset: slug of the dataset, one zero-shot task.
      domain: "crop", "fruit", ...
      name: as people say it: "maize leaf with rust".
      draw: puts one on a canvas and says what can be seen.
      marks: what the boxes surround: "rust"; empty when nothing is marked.
      splits: those it has examples in.
    """

    dataset: str
    domain: str
    name: str
    draw: Callable[[Canvas], list[str]]
    marks: str = ""
    splits: tuple[str, ...] = SPLITS

    @property
    def key(self) -> str:
        return re.sub(r"[^a-z0-9]+", "_", self.name)


def _leaf(crop: str, symptom: str) -> Kind:
    unseen = (crop, symptom) in leaves.UNSEEN
    return Kind(
        UNSEEN if unseen else "embedded_crop_leaves",
        "crop",
        leaves.class_name(crop, symptom),
        partial(leaves.draw, crop=crop, symptom=symptom),
        "" if symptom == "healthy" else symptom,
        ("test",) if unseen else SPLITS,
    )


def _kinds() -> list[Kind]:
    every_leaf = [_leaf(crop, symptom) for crop in leaves.CROPS for symptom in leaves.SYMPTOMS]
    kinds = [kind for kind in every_leaf if kind.dataset != UNSEEN]
    for kind in fruit.KINDS:
        for stage in fruit.STAGES:
            draw = partial(fruit.draw, kind=kind, stage=stage)
            name = fruit.class_name(kind, stage)
            kinds.append(Kind("embedded_fruit", "fruit", name, draw, "rot" if stage == "rotten" else ""))
    for module, dataset, domain in (
        (weeds, "embedded_weeds", "weed"),
        (livestock, "embedded_livestock", "livestock"),
        (poultry, "embedded_poultry", "poultry"),
        (insects, "embedded_insects", "insect"),
    ):
        kinds += [Kind(dataset, domain, name, partial(module.draw, kind=name)) for name in module.KINDS]
    for shape in fish.SHAPES:
        for pattern in fish.PATTERNS:
            draw = partial(fish.draw, shape=shape, pattern=pattern)
            kinds.append(Kind("embedded_fish", "fish", fish.class_name(shape, pattern), draw))
    return kinds + [kind for kind in every_leaf if kind.dataset == UNSEEN]


KINDS: tuple[Kind, ...] = tuple(_kinds())
_NUMBER = {(kind.dataset, kind.name): number for number, kind in enumerate(KINDS)}


def datasets() -> dict[str, DatasetRecord]:
    """The datasets of the corpus by slug, their classes in the order of `KINDS`."""
    classes: dict[str, dict[str, str]] = {}
    for kind in KINDS:
        classes.setdefault(kind.dataset, {})[kind.key] = kind.name
    domains = {kind.dataset: kind.domain for kind in KINDS}
    return {
        slug: DatasetRecord(domain=domains[slug], classes=names, licence="Apache-2.0", source="drawn by agriclip_jax")
        for slug, names in classes.items()
    }


def picture(
    kind: Kind, split: str, index: int, *, seed: int = 0, size: int = 64
) -> tuple[np.ndarray, Canvas, list[str]]:
    """Draws example `index` of a class.

    Returns:
      The picture, uint8 [size, size, 3]; the canvas it was drawn on (its boxes, facts and random stream); what is seen.
    """
    rng = np.random.default_rng([seed, _NUMBER[kind.dataset, kind.name], SPLITS.index(split), index])
    canvas = Canvas(size, rng)
    seen = kind.draw(canvas)
    return canvas.finish(), canvas, seen


def lesions(kind: Kind, split: str, index: int, *, seed: int = 0, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """The picture of `picture`, and bool [size, size]: where most of a pixel was marked (`kind.marks` says as what)."""
    pixels, canvas, _ = picture(kind, split, index, seed=seed, size=size)
    shares = canvas.marked.convert("L").resize((size, size), Image.Resampling.BOX)
    return pixels, np.asarray(shares) >= 128


def example(kind: Kind, split: str, index: int, *, seed: int = 0, size: int = 64) -> Example:
    """Example `index` of a class as a JPEG with its captions and boxes."""
    pixels, canvas, seen = picture(kind, split, index, seed=seed, size=size)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=90)
    general = _general_captions(kind.name, kind.domain, kind.dataset)
    first = int(canvas.rng.integers(len(general)))
    texts = [general[first], general[(first + int(canvas.rng.integers(1, len(general)))) % len(general)]]
    known = [_sentence(text, canvas.facts) for text in seen]
    return Example(
        image=encoded.getvalue(),
        captions=(*texts, *known),
        caption_kinds=("template",) * len(texts) + ("knowledge",) * len(known),
        class_name=kind.name,
        class_key=kind.key,
        dataset=kind.dataset,
        domain=kind.domain,
        source=f"{kind.dataset}/{kind.key}/{split}_{index:04d}.jpg",
        licence="Apache-2.0",
        boxes=tuple(canvas.boxes),
        box_names=(kind.marks,) * len(canvas.boxes),
    )


@cache
def _general_captions(name: str, domain: str, dataset: str) -> tuple[str, ...]:
    return tuple(text for text, _ in captions.captions(name, domain, dataset))


def _sentence(text: str, facts: dict[str, str]) -> str:
    """A knowledge caption: its articles right, light and focus added where they are out of the ordinary."""
    text = re.sub(r"\b(a) (?=[aeiou])", "an ", text)
    light = f", {facts['light']}" if facts["light"] else ""
    return f"{text}{light}{', out of focus' if facts['focus'] else ''}."


def contact_sheet(size: int = 96, *, columns: int = 17, seed: int = 0) -> Image.Image:
    """A labelled grid with one picture of every class, grouped by dataset.

    Args:
      size: side of a picture in pixels.
      columns: pictures in a row.
      seed: of the pictures.

    Returns:
      An RGB image.
    """
    font, bold = ImageFont.load_default(max(8, size // 9)), ImageFont.load_default(max(10, size // 6))
    label, header, gap = int(size * 0.30), int(size * 0.30), max(2, size // 24)
    slugs = list(datasets())
    groups = [[kind for kind in KINDS if kind.dataset == slug] for slug in slugs]
    rows = sum(-(-len(group) // columns) for group in groups)
    sheet = Image.new(
        "RGB", (columns * (size + gap) + gap, rows * (size + label + gap) + len(groups) * header + gap), (255, 255, 255)
    )
    pen = ImageDraw.Draw(sheet)
    y = gap
    for slug, group in zip(slugs, groups, strict=True):
        title = slug.removeprefix("embedded_").replace("_", " ")
        pen.text((gap, y), f"{title}: {len(group)} classes", fill=(20, 60, 30), font=bold)
        y += header
        for start in range(0, len(group), columns):
            for column, kind in enumerate(group[start : start + columns]):
                x = gap + column * (size + gap)
                sheet.paste(Image.fromarray(picture(kind, "test", 0, seed=seed, size=size)[0]), (x, y))
                for line, text in enumerate(_wrapped(kind.name, font, size)):
                    pen.text((x, y + size + line * label * 0.45), text, fill=(30, 30, 30), font=font)
            y += size + label + gap
    return sheet


def _wrapped(text: str, font, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
