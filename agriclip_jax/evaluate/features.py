"""What a model sees in the photos of a task, in one pass: every measure is made of it.

The pass is kept on disk in parts, under a key of the model, the photos and how they are prepared. So a second measure
costs no second pass, and one that was killed goes on where it was.
"""

import copy
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agriclip_jax.data import views
from agriclip_jax.data.parallel import parallel_map
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate.tasks import Photo, Task
from agriclip_jax.files import write_whole

VERSION = 1  # of what a pass finds; those of another one are made anew
BATCH = 64  # photos that a model looks at together
PART = 16 * BATCH  # photos of a part on disk
TEXTS = 1 << 16  # that are remembered, besides those asked last: 256 MiB of 1,024 dimensions


class Embedder(Protocol):
    """What evaluation needs of a model; `inference.Model` is one."""

    image_size: int
    view: views.EvalView
    logit_scale: float
    fingerprint: str

    def look(self, images: np.ndarray) -> tuple[Any, Any]:
        """uint8 [n, size, size, 3], n <= `BATCH` -> features float32 [n, width], L2-normalised embeddings [n, d].

        The arrays may still be on their way.
        """

    def embed_texts(self, texts: Sequence[str], *, normalise: bool = True) -> np.ndarray:
        """-> float32 [n, d], L2-normalised unless told otherwise."""


@dataclass(frozen=True, eq=False)
class Features:
    """The readable photos of a task as a model sees them, in the task's order.

    Attributes:
      features: float32 [n, width], of the image tower before its projection.
      embeddings: float32 [n, d], L2-normalised.
      labels: int64 [n]; -1 for a photo without a label.
      positions: int64 [n], places among all photos of the task.
      sources: paths of the photos.
      captions: of each photo its own ones.
      unreadable: (path, why) of the photos that were left out.
    """

    features: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    sources: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    unreadable: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, rows: np.ndarray) -> "Features":
        """The photos of these rows."""
        columns = (column[rows] for column in (self.features, self.embeddings, self.labels, self.positions))
        texts = (tuple(column[row] for row in rows) for column in (self.sources, self.captions))
        return Features(*columns, *texts, self.unreadable)


def of_task(
    model: Embedder,
    task: Task,
    *,
    cache: Path | str | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Features:
    """The features of a task's photos: read from the cache as far as they are there, and put there else.

    Args:
      model: anything that is an `Embedder`.
      task: as from `tasks.load_tasks`.
      cache: a folder for the passes of any number of models and tasks; None keeps nothing.
      progress: called with the number of photos done since the last call.

    Raises:
      RunFailure: the model gave an embedding that is not finite.
      UserError: the cache cannot be written.
    """
    folder = Path(cache) / key(model, task) if cache else None
    parts: list[Features] = []
    done = 0
    while folder and (part := _read(folder / f"{len(parts):05}.npz", done)):
        parts.append(part)
        done += _count(part)
        progress(_count(part))
    photos = islice(task.photos(), done, None) if done < task.count else iter(())  # those skipped are not decoded
    while count := _count(part := _pass(model, islice(photos, PART), done, progress)):
        if folder:
            _write(folder / f"{len(parts):05}.npz", part)
        parts.append(part)
        done += count
    return _joined(parts, task.unreadable)


def cache_of(model: Any) -> Path:
    """Where the passes of a run's checkpoints are kept: in its own folder."""
    return Path(model.workdir) / "features"


def key(model: Embedder, task: Task) -> str:
    """What decides a pass, hashed: the model, the photos and their labels, and how photos are prepared."""
    said = [
        VERSION,
        model.fingerprint,
        model.image_size,
        str(model.view),
        task.fingerprint,
        task.split,
        task.class_keys,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def see(
    model: Embedder,
    photos: Iterable[bytes | Exception],
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
    """Looks at photos in one pass; the next ones are decoded in other processes while the model is at work.

    Args:
      model: anything with `look` and `view`.
      photos: encoded photos; an exception stands for one that could not be read.
      progress: called with the number of photos done since the last call.

    Returns:
      float32 [n, width] features and float32 [n, d] embeddings of the readable photos, int64 [n] their positions, and
      {position: why} of the others.

    Raises:
      RunFailure: the model gave an embedding that is not finite.
    """
    kept, unreadable = [], {}

    def readable() -> Iterator[np.ndarray]:
        for position, pixels in enumerate(parallel_map(partial(_view, view=model.view), photos)):
            if isinstance(pixels, str):
                unreadable[position] = pixels
            else:
                kept.append(position)
                yield pixels
            progress(1)

    features, embeddings = look(model, readable())
    return features, embeddings, np.array(kept, np.int64), unreadable


def _view(photo: bytes | Exception, view: views.EvalView) -> np.ndarray | str:
    """A photo's view, or why there is none."""
    if isinstance(photo, Exception):
        return getattr(photo, "strerror", None) or str(photo)
    try:
        return views.load_view(photo, view)
    except UserError as error:
        return str(error)


def look(model: Embedder, shown: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n, width] features and float32 [n, d] embeddings of n views, uint8 [size, size, 3] each.

    Raises:
      RunFailure: the model gave an embedding that is not finite.
    """
    seen, looking, shown = [], None, iter(shown)
    while batch := list(islice(shown, BATCH)):
        ahead = model.look(np.stack(batch))  # is computed while the one before is fetched
        seen += [tuple(map(np.asarray, looking))] if looking else []
        looking = ahead
    seen += [tuple(map(np.asarray, looking))] if looking else [(np.zeros((0, 0), np.float32),) * 2]
    features, embeddings = (np.concatenate(column) for column in zip(*seen, strict=True))
    return finite(features, "image"), finite(embeddings, "image")


def remembering(model: Any) -> Any:
    """The same model, which embeds a text once however often it is asked; when its memory is full it forgets all."""
    known: dict[tuple[str, bool], np.ndarray] = {}

    def embed_texts(texts: Sequence[str], *, normalise: bool = True) -> np.ndarray:
        if len(known) > TEXTS:
            known.clear()
        if new := [text for text in dict.fromkeys(texts) if (text, normalise) not in known]:
            found = model.embed_texts(new, normalise=normalise)
            known.update(zip(((text, normalise) for text in new), found, strict=True))
        return np.stack([known[text, normalise] for text in texts])

    remembers = copy.copy(model)
    remembers.embed_texts = embed_texts
    return remembers


def finite(embeddings: np.ndarray, kind: str) -> np.ndarray:
    """The embeddings, when all of them are numbers.

    Raises:
      RunFailure: they are not.
    """
    if not np.isfinite(embeddings).all():
        raise RunFailure(f"the model gave {kind} embeddings that are not finite: its parameters are damaged")
    return embeddings


def _pass(model: Embedder, photos: Iterable[Photo], start: int, progress: Callable[[int], None]) -> Features:
    about: list[Photo] = []

    def images() -> Iterator[bytes]:
        for photo in photos:
            about.append(photo._replace(image=b""))
            yield photo.image

    features, embeddings, kept, errors = see(model, images(), progress=progress)
    return Features(
        features=features,
        embeddings=embeddings,
        labels=np.array([about[row].label for row in kept], np.int64),
        positions=start + kept,
        sources=tuple(about[row].source for row in kept),
        captions=tuple(about[row].captions for row in kept),
        unreadable=tuple((about[row].source, why) for row, why in errors.items()),
    )


def _count(part: Features) -> int:
    return len(part) + len(part.unreadable)


def _joined(parts: Sequence[Features], unreadable: Sequence[tuple[str, str]]) -> Features:
    """The parts as one; those in which no photo is readable have no width."""
    full = [part for part in parts if len(part)]
    empty = (np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
    columns = zip(*((p.features, p.embeddings, p.labels, p.positions) for p in full), strict=True) if full else ()
    return Features(
        *([np.concatenate(column) for column in columns] or empty),
        sources=tuple(source for part in full for source in part.sources),
        captions=tuple(texts for part in full for texts in part.captions),
        unreadable=(*unreadable, *(problem for part in parts for problem in part.unreadable)),
    )


def _write(file: Path, part: Features) -> None:
    texts = {"sources": part.sources, "captions": part.captions, "unreadable": part.unreadable}
    data = io.BytesIO()
    np.savez(
        data,
        features=part.features,
        embeddings=part.embeddings,
        labels=part.labels,
        positions=part.positions,
        texts=np.frombuffer(json.dumps(texts).encode(), np.uint8),
    )
    write_whole(file, data.getvalue())


def _read(file: Path, start: int) -> Features | None:
    """The part of the photos from `start` on; None when it is not there, or damaged, and is to be made anew."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            texts = json.loads(stored["texts"].tobytes())
            part = Features(
                *(stored[name] for name in ("features", "embeddings", "labels", "positions")),
                sources=tuple(texts["sources"]),
                captions=tuple(map(tuple, texts["captions"])),
                unreadable=tuple(map(tuple, texts["unreadable"])),
            )
    except Exception:  # bytes that were changed raise many kinds
        return None
    rows = {len(column) for column in (part.features, part.embeddings, part.positions, part.sources, part.captions)}
    inside = (part.positions >= start) & (part.positions < start + _count(part))
    whole = rows == {len(part)} and inside.all() and np.isfinite(part.features).all()
    return part if whole and np.isfinite(part.embeddings).all() else None
