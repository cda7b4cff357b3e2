"""Captions of images that nobody labelled, by a vision-language model: RS5M's way (arXiv 2306.11300).

The model proposes several captions of an image. The one is kept that agrees best with the image however it is turned,
by a two-tower model: a photo of a field, a leaf or a fish has no upright side, and what holds only upright is often a
guess.
"""

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from PIL import Image

from agriclip_jax.data.captions import normalise_caption
from agriclip_jax.data.endpoint import Answer, Endpoint, Prompt
from agriclip_jax.data.rewriting import form_fault, lines
from agriclip_jax.data.views import decode
from agriclip_jax.errors import UserError

MAX_SIDE = 512  # pixels of what is sent and judged
BATCH = 16  # images of one call of the judge

SYSTEM = (
    "You write captions for photos from agriculture, livestock keeping and fishery. You write nothing but captions."
)
TEXT = """\
Write one caption for this photo: one sentence of 6 to 30 words on one line.
What can be seen comes first: the subject by its most exact name that the photo shows for certain, then its parts,
colours, shapes, textures, condition and surroundings.
No numbers, places, dates, cameras or guesses; nothing that the photo does not show."""

# [images], [texts] -> their cosine similarities [images, texts].
Judge = Callable[[Sequence[Image.Image], Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class Description:
    """The caption of one image.

    Attributes:
      key: of the image.
      caption: empty when there is none.
      score: its mean cosine similarity to the image turned by 0, 90, 180 and 270 degrees; 0 when nobody judged.
      error: why there is no caption, in one line.
    """

    key: str
    caption: str = ""
    score: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class _Candidates:
    """An image on its way: as it was sent (nothing when it cannot be decoded), and the captions it may get."""

    key: str
    image: bytes = b""
    texts: tuple[str, ...] = ()
    error: str = ""


def describe(
    images: Iterable[tuple[str, bytes]],
    endpoint: Endpoint,
    judge: Judge | None,
    *,
    candidates: int = 4,
    count_tokens: Callable[[str], int],
    most_tokens: int = 60,
) -> Iterator[Description]:
    """Captions images, in order, a few of them held at a time.

    Args:
      images: (key, encoded image).
      endpoint: a model that sees.
      judge: chooses among the candidates, the first of equals; None takes the first.
      candidates: captions to ask for of each image.
      count_tokens: the length of a text for the text encoder.
      most_tokens: of a caption.
    """
    proposed = (
        _valid(image, answer, count_tokens, most_tokens) for image, answer in _asked(images, endpoint, candidates)
    )
    while batch := list(islice(proposed, BATCH)):
        scores = _scores([image for image in batch if image.texts], judge)
        for image in batch:
            if not image.texts:
                yield Description(image.key, error=image.error)
                continue
            score = next(scores)
            best = int(np.argmax(score))
            yield Description(image.key, image.texts[best], float(score[best]))


def _asked(
    images: Iterable[tuple[str, bytes]], endpoint: Endpoint, count: int
) -> Iterator[tuple[_Candidates, Answer | None]]:
    """Every image with the model's answer; None to one that cannot be decoded and was not sent."""
    waiting: deque[_Candidates] = deque()

    def prompts() -> Iterator[Prompt]:
        for key, data in images:
            try:
                waiting.append(_Candidates(key, small(data)))
            except UserError as error:
                waiting.append(_Candidates(key, error=str(error)))
                continue
            yield Prompt(TEXT, SYSTEM, waiting[-1].image, count)

    for answer in endpoint.ask(prompts()):
        while not waiting[0].image:
            yield waiting.popleft(), None
        yield waiting.popleft(), answer
    yield from ((image, None) for image in waiting)


def small(data: bytes) -> bytes:
    """The image as it is sent: a JPEG of at most `MAX_SIDE` pixels a side, without its metadata.

    The same image gives the same bytes, or the cache would not know it.

    Raises:
      UserError: it cannot be decoded.
    """
    image = decode(data, MAX_SIDE)
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    image.info = {}  # a comment in it would be saved too
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=90)
    return jpeg.getvalue()


def _valid(
    image: _Candidates, answer: Answer | None, count_tokens: Callable[[str], int], most_tokens: int
) -> _Candidates:
    """The image with the first caption of each text of its answer, no two of them alike."""
    if answer is None:
        return image
    texts, faults = {}, {}
    for text in answer.texts:
        for line in lines(text):
            if fault := form_fault(line, count_tokens, most_tokens):
                faults[fault] = None
            else:
                texts.setdefault(normalise_caption(line), line)
                break
    error = answer.error or f"no usable caption ({'; '.join(faults) or 'empty'})"
    return replace(image, texts=tuple(texts.values()), error="" if texts else error)


def _scores(images: Sequence[_Candidates], judge: Judge | None) -> Iterator[np.ndarray]:
    """For each image the scores of its candidates, by one call of the judge."""
    if not (images and judge):
        yield from (np.zeros(len(image.texts)) for image in images)
        return
    views = [view for image in images for view in turned(decode(image.image))]
    texts = [text for image in images for text in image.texts]
    similarities = np.asarray(judge(views, texts)).reshape(len(images), -1, len(texts)).mean(axis=1)
    start = 0
    for image, row in zip(images, similarities, strict=True):
        yield row[start : start + len(image.texts)]
        start += len(image.texts)


def turned(image: Image.Image) -> list[Image.Image]:
    """The image turned by 0, 90, 180 and 270 degrees."""
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return [image, *map(image.transpose, turns)]
