"""The funnel from what sources hold to what is worth keeping (RS5M, arXiv 2306.11300): each stage drops photos of a
survey and says why. Every one is optional; none reads a photo but those that ask a model.

Where several photos are the same, the one in the test split stays before one in val, and that before one in train, so
what a model is scored on is never what it was trained on, and the split itself does not move.
"""

import functools
import itertools
import json
import re
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from agriclip_jax.data import duplicates
from agriclip_jax.data.captions import class_identity, normalise_caption
from agriclip_jax.data.parallel import batched, parallel_map
from agriclip_jax.data.survey import UNREADABLE, WORDLESS, Row, Survey
from agriclip_jax.data.views import EvalView, load_view
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import read_yaml

KEYWORDS = Path(__file__).parent / "keywords.yaml"

OFF_TOPIC = "off topic"
EXACT = "exact duplicate"
NEAR = "near duplicate"
CONTAMINATED = "in a held-out set"
DISAGREES = "disagrees with its text"
OUTLIER = "outlier of its domain"
STAGES = (OFF_TOPIC, UNREADABLE, WORDLESS, EXACT, NEAR, CONTAMINATED, DISAGREES, OUTLIER)  # in the order of the funnel

_SAME = {EXACT: "the same bytes as", NEAR: "the same picture as"}
_WORDS = 4  # of a perceptual hash, 64 bits each
CROWD = 256  # hashes that agree in 16 bits; by chance a million have 15 such
_MOST_BYTES = 1 << 20  # of a file of keywords
# The order of who stays: those of which something is said, then by split, then the first.
_FIRST = "class_key = '' AND captions IS NULL, split <> 'test', split <> 'val', id"


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


@functools.cache
def _pattern(words: tuple[str, ...]) -> re.Pattern:
    listed = "|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)"
    return re.compile(rf"(?<!\w)(?:{listed})(?:e?s)?(?!\w)")


def drop_off_topic(survey: Survey, wanted: Keywords) -> None:
    """Drops photos whose captions, or whose class where they came without, are not what is wanted.

    Those of which nothing is said stay, for a description.
    """
    select = (
        "SELECT id, part, class_key, captions FROM photo WHERE stage IS NULL AND id > ? "
        f"AND {survey.part_in(ours=True)} ORDER BY id LIMIT 4096"
    )
    last = -1
    while rows := survey.all(select, last):
        last = rows[-1][0]
        dropped = []
        for photo, part, key, own in rows:
            said = " . ".join(text for text, _ in json.loads(own)) if own else survey.parts[part].name_of(key)
            if said and (fault := wanted.fault(said)):
                dropped.append((OFF_TOPIC, fault, photo))
        survey.many("UPDATE photo SET stage = ?, reason = ? WHERE id = ?", dropped)


# ---- duplicates ------------------------------------------------------------------------------------------------------


def find_twins(survey: Survey) -> None:
    """Finds which photos are the same as one that stays, by their bytes or by how they look; drops none."""
    survey.run("CREATE TABLE IF NOT EXISTS twin (photo INTEGER PRIMARY KEY, other INTEGER, stage TEXT)")
    survey.run("DELETE FROM twin")
    survey.run(
        "INSERT INTO twin SELECT id, first, ? FROM "
        f"(SELECT id, first_value(id) OVER (PARTITION BY sha ORDER BY {_FIRST}) AS first FROM photo "
        f"WHERE stage IS NULL AND {survey.part_in(ours=True)}) WHERE id <> first",
        EXACT,
    )
    ids, looks = _looks(survey, f"{survey.part_in(ours=True)} AND id NOT IN (SELECT photo FROM twin)")
    others = ids[keepers(looks)]
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
    select = (
        "SELECT photo, other, a.part, a.path, a.class_key, b.part, b.path, b.class_key, pairs.stage, "
        f"a.split <> b.split FROM ({pairs}) AS pairs JOIN photo AS a ON a.id = photo JOIN photo AS b ON b.id = other"
    )
    for photo, other, number, path, key, other_number, other_path, other_key, stage, across in survey.stream(select):
        part, other_part = survey.parts[number], survey.parts[other_number]
        called = part.name_of(key), other_part.name_of(other_key)
        sources = f"{part.slug}/{path}", f"{other_part.slug}/{other_path}"
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
    ours, held = survey.part_in(ours=True), survey.part_in(ours=False)
    survey.run(
        "UPDATE photo SET stage = ?, reason = ?, twin = held.first FROM "
        f"(SELECT sha, min(id) AS first FROM photo WHERE stage IS NULL AND {held} GROUP BY sha) AS held "
        f"WHERE photo.sha = held.sha AND photo.stage IS NULL AND photo.{ours}",
        CONTAMINATED,
        _SAME[EXACT],
    )
    ids, looks = _looks(survey, ours)
    others, other_looks = _looks(survey, held)
    near = first_near(looks, other_looks)
    found = near >= 0
    rows = zip(others[near[found]].tolist(), ids[found].tolist(), strict=True)
    survey.many(
        "UPDATE photo SET stage = ?, reason = ?, twin = ? WHERE id = ?",
        ((CONTAMINATED, _SAME[NEAR], other, photo) for other, photo in rows),
    )


def _looks(survey: Survey, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Ids and perceptual hashes of the photos that are left, those first that stay before others."""
    ids, looks = array("q"), bytearray()
    for number, look in survey.stream(f"SELECT id, look FROM photo WHERE stage IS NULL AND {where} ORDER BY {_FIRST}"):
        ids.append(number)
        looks += look
    return np.array(ids, np.int64), np.frombuffer(looks, np.uint64).reshape(-1, _WORDS)


def keepers(looks: np.ndarray) -> np.ndarray:
    """Who stays for each of the hashes, which stand in the order of who stays first: int64 [n], places.

    One by one, a hash goes if it is near to one that stays. So each that goes is near to the one that stays for it: a
    chain of similar frames does not go as a whole.

    Args:
      looks: uint64 [n, k].
    """
    distinct, which = _distinct(looks)
    rows = looks[distinct]
    stays = np.arange(len(rows))
    # What a still camera took is so alike that all pairs would be too many: its first picture is found at once.
    for crowd in _crowds(rows):
        while len(crowd := crowd[stays[crowd] == crowd]) > CROWD:
            first = crowd[0]
            while len(earlier := _near(rows, first, np.flatnonzero(stays[:first] == np.arange(first)))):
                first = earlier[0]
            after = first + 1 + np.flatnonzero(stays[first + 1 :] == np.arange(first + 1, len(rows)))
            gone = _near(rows, first, after)
            stays[gone] = first
            if 8 * np.isin(gone, crowd).sum() < len(crowd):  # it is no crowd, but agrees in a few bits
                break
    left = np.flatnonzero(stays == np.arange(len(rows)))
    for part in _parts(duplicates.near_pairs(rows[left])):
        for earlier, later in left[part].tolist():
            if stays[earlier] == earlier and stays[later] == later:
                stays[later] = earlier
    return distinct[stays[which]]


def first_near(looks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The first of the other hashes that is near to each of `looks`; -1 where none is: int64 [n].

    Args:
      looks: uint64 [n, k].
      others: uint64 [m, k].
    """
    (mine, which), (theirs, _) = _distinct(looks), _distinct(others)
    rows, other_rows = looks[mine], others[theirs]
    none = len(theirs)
    found = np.full(len(mine), none)
    crowded = np.zeros(len(mine) + none, bool)
    for crowd in _crowds(np.concatenate([rows, other_rows])):
        crowded[crowd] = True
    for row in np.flatnonzero(crowded[: len(mine)]):
        near = np.flatnonzero(_distance(other_rows, rows[row]) <= duplicates.NEAR)
        found[row] = near[0] if len(near) else none
    for other in np.flatnonzero(crowded[len(mine) :]):
        near = _distance(rows, other_rows[other]) <= duplicates.NEAR
        found[near] = np.minimum(found[near], other)
    left, other_left = np.flatnonzero(~crowded[: len(mine)]), np.flatnonzero(~crowded[len(mine) :])
    pairs = duplicates.near_pairs(rows[left], other_rows[other_left])
    np.minimum.at(found, left[pairs[:, 0]], other_left[pairs[:, 1]])
    return np.append(theirs, -1)[found][which]


def _distinct(looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of the first of equal rows, ascending; and for each row the place of its first among them."""
    _, first, which = np.unique(looks, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[which.reshape(-1)]


def _crowds(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Ascending rows of more than `CROWD` hashes that agree in 16 bits, for 16 choices of bits."""
    bits = 64 * rows.shape[1]
    # Bits far apart in the hash, as neighbours are alike by chance.
    for dealt in np.split(101 * np.arange(bits) % bits, bits // 16):
        key = np.zeros(len(rows), np.uint16)
        for place, bit in enumerate(dealt.tolist()):
            key |= (rows[:, bit // 64] >> np.uint64(bit % 64) & np.uint64(1)).astype(np.uint16) << np.uint16(place)
        order = np.argsort(key, kind="stable")
        starts = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
        sizes = np.diff(starts, append=len(order))
        for start, size in zip(starts[sizes > CROWD], sizes[sizes > CROWD], strict=True):
            yield order[start : start + size]


def _near(rows: np.ndarray, row: int, among: np.ndarray) -> np.ndarray:
    return among[_distance(rows[among], rows[row]) <= duplicates.NEAR]


def _distance(rows: np.ndarray, row: np.ndarray) -> np.ndarray:
    return np.bitwise_count(rows ^ row).sum(axis=1, dtype=np.int64)


# ---- what a model thinks ---------------------------------------------------------------------------------------------


class Judge(Protocol):
    """A two-tower model: embeddings are L2-normalised float32 [n, dim]."""

    view: EvalView

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
    total = survey.one(f"SELECT count(*) FROM photo WHERE stage IS NULL AND {survey.part_in(ours=True)}")
    ids, domains, agreement, embeddings, row = np.zeros(total, np.int64), [], np.ones(total), None, 0
    with tempfile.TemporaryFile() as file:
        for dataset in survey.datasets_of():
            of_class = functools.cache(
                lambda key, texts=dataset.texts: judge.embed_texts([text for text, _ in texts[key]])
            )
            for batch in batched(dataset.photos(), 256):
                views = parallel_map(functools.partial(load_view, view=judge.view), (data for _, data in batch))
                found = judge.embed_images(np.stack(list(views)))
                if embeddings is None:
                    file.truncate(total * found.shape[1] * 4)
                    embeddings = np.memmap(file, np.float32, "r+", shape=(total, found.shape[1]))
                after = row + len(batch)
                ids[row:after], embeddings[row:after] = [photo.id for photo, _ in batch], found
                domains += [dataset.record.domain] * len(batch)
                if min_agreement is not None:
                    agreement[row:after] = _agreement(judge, found, [photo for photo, _ in batch], of_class)
                row = after
                if progress:
                    progress(len(batch), total)
        if min_agreement is not None:
            _drop(survey, DISAGREES, ids, agreement, agreement < min_agreement, "its similarity to its text is")
        if max_deviation is not None:
            deviation = _deviation(embeddings, np.array(domains))
            _drop(survey, OUTLIER, ids, deviation, deviation > max_deviation, "its deviation from its domain is")


def _agreement(
    judge: Judge, images: np.ndarray, photos: Sequence[Row], of_class: Callable[[str], np.ndarray]
) -> np.ndarray:
    """The similarity of each image to the nearest of its captions, its own and those of its class."""
    own = [text for photo in photos for text, _ in photo.captions]
    own_embeddings, start, found = judge.embed_texts(own) if own else images[:0], 0, []
    for image, photo in zip(images, photos, strict=True):
        after = start + len(photo.captions)
        texts = [own_embeddings[start:after], *([of_class(photo.class_key)] if photo.class_key else [])]
        found.append(float((np.concatenate(texts) @ image).max()))
        start = after
    return np.array(found)


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
    return np.array_split(rows, max(1, len(rows) // 4096))


def _drop(survey: Survey, stage: str, ids: np.ndarray, values: np.ndarray, which: np.ndarray, why: str) -> None:
    survey.many(
        "UPDATE photo SET stage = ?, reason = ? WHERE id = ? AND stage IS NULL",
        ((stage, f"{why} {value:.2f}", row) for row, value in zip(ids[which].tolist(), values[which], strict=True)),
    )


# ---- the table -------------------------------------------------------------------------------------------------------


def funnel(survey: Survey, stages: Sequence[str] = STAGES) -> list[Stage]:
    """From all photos found to those kept: a line for finding them, and for each stage."""
    where = survey.part_in(ours=True)
    left = survey.one(f"SELECT count(*) FROM photo WHERE {where}")
    dropped = dict(survey.all(f"SELECT stage, count(*) FROM photo WHERE stage IS NOT NULL AND {where} GROUP BY stage"))
    lines = [Stage("found", 0, left)]
    for stage in stages:
        left -= dropped.get(stage, 0)
        lines.append(Stage(stage, dropped.get(stage, 0), left))
    return lines
