"""The funnel from what sources hold to what is worth keeping (RS5M, arXiv 2306.11300): each stage drops photos of a
survey and says why. Every one is optional; none reads a photo but those that ask a model.

Where several photos are the same, the one in the test split stays before one in val, and that before one in train, so
what a model is scored on is never what it was trained on, and the split itself does not move.
"""

import itertools
import re
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from agriclip_jax.data import duplicates
from agriclip_jax.data.captions import class_identity, normalise_caption
from agriclip_jax.data.records import parallel_map
from agriclip_jax.data.survey import UNREADABLE, Survey, batched
from agriclip_jax.data.views import load_view
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import read_yaml

KEYWORDS = Path(__file__).parent / "keywords.yaml"

OFF_TOPIC = "off topic"
EXACT = "exact duplicate"
NEAR = "near duplicate"
CONTAMINATED = "in a held-out set"
DISAGREES = "disagrees with its text"
OUTLIER = "outlier of its domain"
STAGES = (OFF_TOPIC, UNREADABLE, EXACT, NEAR, CONTAMINATED, DISAGREES, OUTLIER)  # in the order of the funnel

_SAME = {EXACT: "the same bytes as", NEAR: "the same picture as"}
_WORDS = 4  # of a perceptual hash, 64 bits each
_MOST_BYTES = 1 << 20  # of a file of keywords
_FIRST = "split <> 'test', split <> 'val', id"  # the order of who stays


class Twin(NamedTuple):
    """A photo that is the same as another.

    Attributes:
      photo: its number in the list.
      other_photo: that of the one that stays.
      source: where it comes from.
      other: where the one comes from that stays.
      names: what the two are called.
      is_exact: the same bytes, or only the same picture.
      is_across_splits: they are in different splits.
    """

    photo: int
    other_photo: int
    source: str
    other: str
    names: tuple[str, str]
    is_exact: bool
    is_across_splits: bool


class Stage(NamedTuple):
    """A line of the funnel: what was dropped, and how many were left."""

    name: str
    dropped: int
    left: int


# ---- keywords --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keywords:
    """What a caption must and must not name.

    Attributes:
      include: one of these, if there are any.
      exclude: none of these.
    """

    include: tuple[str, ...]
    exclude: tuple[str, ...]

    def fault(self, text: str) -> str:
        """Why a text is off topic; empty when it is not. Case and plural do not matter."""
        text = normalise_caption(text)
        if found := _pattern(self.exclude).search(text):
            return f"its text names {found.group()!r}"
        if self.include and not _pattern(self.include).search(text):
            return "its text names nothing of the domain"
        return ""


def keywords(name: str) -> Keywords:
    """The lists of domains of the project ("crop,fish"), or of a user's YAML file ({include: [...], exclude: [...]}).

    Raises:
      UserError: the domain is unknown, or the file is not such a file.
    """
    if name.endswith((".yaml", ".yml")):
        return _keywords_of(read_yaml(Path(name), "the keywords", _MOST_BYTES), name)
    shipped, found = read_yaml(KEYWORDS, "the keywords", _MOST_BYTES), []
    for domain in name.split(","):
        if domain not in shipped:
            raise UserError(f"--keywords: no lists for {domain!r}{near_misses(domain, shipped)}; or name a .yaml file")
        found.append(_keywords_of(shipped[domain], domain))
    together = lambda lists: tuple(dict.fromkeys(itertools.chain(*lists)))  # noqa: E731
    return Keywords(together(one.include for one in found), together(one.exclude for one in found))


def _keywords_of(content: object, where: str) -> Keywords:
    lists = content if isinstance(content, dict) else {}
    include, exclude = lists.get("include", []), lists.get("exclude", [])
    for words in (include, exclude):
        if not isinstance(words, list) or not all(isinstance(word, str) and word.strip() for word in words):
            raise UserError(f"the keywords {where} are not {{include: [...], exclude: [...]}} with lists of texts")
    if not (include or exclude) or lists.keys() - {"include", "exclude"}:
        raise UserError(f"the keywords {where} are not {{include: [...], exclude: [...]}}")
    return Keywords(tuple(map(normalise_caption, include)), tuple(map(normalise_caption, exclude)))


@cache
def _pattern(words: tuple[str, ...]) -> re.Pattern:
    listed = "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{listed})(?:e?s)?(?!\w)")


def drop_off_topic(survey: Survey, wanted: Keywords) -> None:
    """Drops photos whose captions, or whose class where they came without, are not what is wanted."""
    names = {part.number: record.classes for part, record in survey.described()}
    where = f"stage IS NULL AND {_part_in(survey, True)} AND id > ?"
    select = f"SELECT id, part, class_key, captions FROM photo WHERE {where} ORDER BY id LIMIT 4096"
    last = -1
    while rows := survey.all(select, last):
        last = rows[-1][0]
        texts = ((row, own or names.get(part, {}).get(key, "")) for row, part, key, own in rows)
        faults = ((wanted.fault(text), row) for row, text in texts)
        survey.many(
            f"UPDATE photo SET stage = '{OFF_TOPIC}', reason = ? WHERE id = ?", ((f, row) for f, row in faults if f)
        )


# ---- duplicates ------------------------------------------------------------------------------------------------------


def find_twins(survey: Survey) -> None:
    """Finds which photos are the same as one that stays, by their bytes or by how they look; drops none."""
    survey.run("CREATE TABLE IF NOT EXISTS twin (photo INTEGER PRIMARY KEY, other INTEGER, stage TEXT)")
    survey.run("DELETE FROM twin")
    survey.run(
        f"INSERT INTO twin SELECT id, first, '{EXACT}' FROM (SELECT id, first_value(id) OVER "
        f"(PARTITION BY sha ORDER BY {_FIRST}) AS first FROM photo WHERE stage IS NULL AND {_part_in(survey, True)}) "
        "WHERE id <> first"
    )
    ids, looks = _looks(survey, f"{_part_in(survey, True)} AND id NOT IN (SELECT photo FROM twin)")
    others = ids[_stays(looks)]
    same = others != ids
    rows = zip(ids[same].tolist(), others[same].tolist(), itertools.repeat(NEAR))
    survey.many("INSERT INTO twin VALUES (?, ?, ?)", rows)


def twins(survey: Survey) -> Iterator[Twin]:
    """What `find_twins` found: exact ones first, then by the order in which photos were listed."""
    pairs = f"SELECT photo, other, stage FROM twin ORDER BY stage <> '{EXACT}', photo"
    return _described_twins(survey, pairs)


def contaminated(survey: Survey) -> Iterator[Twin]:
    """What `drop_contaminated` dropped, with the photos it held it against."""
    pairs = (
        f"SELECT id AS photo, twin AS other, iif(reason = '{_SAME[EXACT]}', '{EXACT}', '{NEAR}') AS stage FROM photo "
        f"WHERE stage = '{CONTAMINATED}' ORDER BY id"
    )
    return _described_twins(survey, pairs)


def _described_twins(survey: Survey, pairs: str) -> Iterator[Twin]:
    names = {part.number: survey.record_of(part).classes for part in survey.parts}
    select = (
        "SELECT photo, other, a.part, a.path, a.class_key, b.part, b.path, b.class_key, pairs.stage, "
        f"a.split <> b.split FROM ({pairs}) AS pairs JOIN photo AS a ON a.id = photo JOIN photo AS b ON b.id = other"
    )
    for photo, other, part, path, key, other_part, other_path, other_key, stage, across in survey.ledger.execute(
        select
    ):
        slug, other_slug = survey.parts[part].slug, survey.parts[other_part].slug
        called = names[part].get(key, key), names[other_part].get(other_key, other_key)
        sources = f"{slug}/{path}", f"{other_slug}/{other_path}"
        yield Twin(photo, other, *sources, called, stage == EXACT, bool(across))


def is_label_noise(twin: Twin) -> bool:
    """Whether one picture stands under two class names."""
    identities = {
        class_identity(name, source.partition("/")[0])
        for name, source in zip(twin.names, (twin.source, twin.other), strict=True)
    }
    return all(twin.names) and len(identities) == 2


def drop_twins(survey: Survey, stage: str) -> None:
    """Drops the photos that `find_twins` found to be `EXACT` or `NEAR` duplicates."""
    survey.run(
        "UPDATE photo SET stage = twin.stage, reason = ?, twin = twin.other FROM twin "
        "WHERE photo.id = twin.photo AND twin.stage = ? AND photo.stage IS NULL",
        _SAME[stage],
        stage,
    )


def drop_contaminated(survey: Survey) -> None:
    """Drops photos that are the same, by bytes or looks, as one of those that are only compared with."""
    survey.run(
        f"UPDATE photo SET stage = '{CONTAMINATED}', reason = '{_SAME[EXACT]}', twin = held.id FROM photo AS held "
        f"WHERE photo.stage IS NULL AND photo.{_part_in(survey, True)} AND held.stage IS NULL AND held.sha = photo.sha "
        f"AND held.{_part_in(survey, False)}"
    )
    ids, looks = _looks(survey, _part_in(survey, True))
    held, held_looks = _looks(survey, _part_in(survey, False))
    pairs = duplicates.near_pairs(looks, held_looks)
    first = np.unique(pairs[:, 0], return_index=True)[1]
    survey.many(
        f"UPDATE photo SET stage = '{CONTAMINATED}', reason = '{_SAME[NEAR]}', twin = ? WHERE id = ?",
        zip(held[pairs[first, 1]].tolist(), ids[pairs[first, 0]].tolist(), strict=True),
    )


def _part_in(survey: Survey, ours: bool) -> str:
    numbers = ", ".join(str(part.number) for part in survey.parts if part.ours == ours)
    return f"part IN ({numbers})"


def _looks(survey: Survey, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and perceptual hashes of the photos that are left, those first that stay before others."""
    ids, looks = array("q"), bytearray()
    for number, look in survey.ledger.execute(
        f"SELECT id, look FROM photo WHERE stage IS NULL AND {where} ORDER BY {_FIRST}"
    ):
        ids.append(number)
        looks += look
    return np.array(ids, np.int64), np.frombuffer(looks, np.uint64).reshape(-1, _WORDS)


def _stays(looks: np.ndarray) -> np.ndarray:
    """For each of the hashes, which stand in the order of who stays first, the place of the one that stays for it.

    Each that goes looks like one that stays: a chain of similar frames does not go as a whole.
    """
    _, first, which = np.unique(looks, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    stays = np.arange(len(order))
    for earlier, later in duplicates.near_pairs(looks[first[order]]).tolist():
        if stays[earlier] == earlier and stays[later] == later:
            stays[later] = earlier
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order[stays[place[which.reshape(-1)]]]]


# ---- what a model thinks ---------------------------------------------------------------------------------------------


class Judge(Protocol):
    """A two-tower model: embeddings are L2-normalised float32 [n, dim]."""

    image_size: int

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        """Of uint8 [n, size, size, 3]."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Of n texts."""


def drop_by_model(
    survey: Survey,
    judge: Judge,
    *,
    min_agreement: float | None = None,
    max_deviation: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Drops photos that a model finds to disagree with their text, or to be far from the others of their domain.

    Args:
      survey: of photos that were read.
      judge: the model.
      min_agreement: cosine similarity that a photo must have to the nearest of its captions.
      max_deviation: how far, in robust standard deviations (1.4826 x the median absolute deviation) above the median,
        a photo's distance to the mean embedding of its domain may lie.
      progress: called with (photos done since the last call, photos in all).
    """
    total = survey.one(f"SELECT count(*) FROM photo WHERE stage IS NULL AND {_part_in(survey, True)}")
    with tempfile.TemporaryFile() as file:
        ids, domains, agreement, embeddings, row = np.zeros(total, np.int64), [], np.zeros(total), None, 0
        for chunk in survey.chunks(None, sys.maxsize):
            for batch in batched(chunk.photos(), 256):
                views = parallel_map(lambda data: load_view(data, judge.image_size), (data for _, data in batch))
                found = judge.embed_images(np.stack(list(views)))
                if embeddings is None:
                    file.truncate(total * found.shape[1] * 4)
                    embeddings = np.memmap(file, np.float32, "r+", shape=(total, found.shape[1]))
                after = row + len(batch)
                ids[row:after], embeddings[row:after] = [photo.id for photo, _ in batch], found
                domains += [chunk.record.domain] * len(batch)
                agreement[row:after] = _agreement(judge, found, [list(chunk.captions(photo)) for photo, _ in batch])
                row = after
                if progress:
                    progress(len(batch), total)
        if min_agreement is not None:
            _drop(survey, DISAGREES, ids, agreement, agreement < min_agreement, "its similarity to its text is")
        if max_deviation is not None:
            deviation = _deviation(embeddings, np.array(domains))
            _drop(survey, OUTLIER, ids, deviation, deviation > max_deviation, "its deviation from its domain is")


def _agreement(judge: Judge, images: np.ndarray, said: Sequence[Sequence[str]]) -> np.ndarray:
    distinct = {text: None for texts in said for text in texts}
    rows = dict(zip(distinct, judge.embed_texts(list(distinct)), strict=True))
    return np.array([max(image @ rows[text] for text in texts) for image, texts in zip(images, said, strict=True)])


def _deviation(embeddings: np.ndarray, domains: np.ndarray) -> np.ndarray:
    """How unusual each distance to the domain's mean is, in robust standard deviations."""
    deviation = np.zeros(len(domains))
    for domain in np.unique(domains):
        rows = np.flatnonzero(domains == domain)
        mean = np.sum([embeddings[batch].sum(0) for batch in _parts(rows)], 0)
        distance = 1 - np.concatenate([embeddings[batch] @ (mean / np.linalg.norm(mean)) for batch in _parts(rows)])
        middle = np.median(distance)
        spread = 1.4826 * np.median(np.abs(distance - middle))
        deviation[rows] = (distance - middle) / max(spread, 1e-6)
    return deviation


def _parts(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // 4096))


def _drop(survey: Survey, stage: str, ids: np.ndarray, values: np.ndarray, which: np.ndarray, why: str) -> None:
    survey.many(
        f"UPDATE photo SET stage = '{stage}', reason = ? WHERE id = ? AND stage IS NULL",
        ((f"{why} {value:.2f}", row) for row, value in zip(ids[which].tolist(), values[which], strict=True)),
    )


# ---- the table -------------------------------------------------------------------------------------------------------


def funnel(survey: Survey, stages: Sequence[str] = STAGES) -> list[Stage]:
    """From all photos found to those kept: a line for finding them, and for each stage."""
    where = _part_in(survey, True)
    left = survey.one(f"SELECT count(*) FROM photo WHERE {where}")
    dropped = dict(survey.all(f"SELECT stage, count(*) FROM photo WHERE stage IS NOT NULL AND {where} GROUP BY stage"))
    lines = [Stage("found", 0, left)]
    for stage in stages:
        left -= dropped.get(stage, 0)
        lines.append(Stage(stage, dropped.get(stage, 0), left))
    return lines
