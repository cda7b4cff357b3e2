"""What is in an ALive folder, in figures: one pass over its records, in memory that does not grow with their number."""

import functools
import hashlib
import itertools
import math
import zlib
from array import array
from bisect import bisect_left, bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from agriclip_jax.data import tokenizers
from agriclip_jax.data.captions import normalise_caption
from agriclip_jax.data.records import Alive
from agriclip_jax.data.views import size_of
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_record

CONTEXT = 77  # tokens that CLIP's text encoder reads, start and end included

# What bounds the memory of the pass.
PLACES = 8  # photos kept in mind of each class
EXAMPLES = 5  # captions of each kind
TEXTS = 1 << 16  # captions whose number is known at a time
LICENCES = 20  # told apart in a dataset
MOST_PIXELS, MOST_TOKENS = 1 << 14, 1 << 9  # larger ones count as these

SIDE_EDGES = sorted({math.ceil(2 ** (half / 2)) for half in range(29)})  # two bins an octave: 32, 46, 64, ...
TOKEN_EDGES = list(range(2, 102, 4))  # the shortest caption has start and end; the limit ends a bin
FORMATS = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WEBP", b"GIF8": "GIF", b"BM": "BMP"}
UNREADABLE = "not readable"


class Sample:
    """A few of each group, chosen by a hash of their keys: the same whatever their order, and spread over all."""

    def __init__(self, size: int):
        self._size, self.groups = size, {}

    def add(self, group: Hashable, key: str, value: Any = None) -> None:
        kept = self.groups.setdefault(group, [])
        place = (zlib.crc32(key.encode()), key)
        is_full = len(kept) == self._size
        if not (is_full and place >= kept[-1][:2]) and all(key != known for _, known, _ in kept):
            insort(kept, (*place, value), key=lambda entry: entry[:2])
            del kept[self._size :]


class Frequent:
    """The most frequent texts: exact while there are few different ones, else at least so many of each."""

    def __init__(self):
        self.counts, self.is_exact = Counter(), True

    def add(self, text: str) -> None:
        self.counts[text] += 1
        if len(self.counts) > TEXTS:  # what is rare among so many hardly becomes the most frequent
            self.counts, self.is_exact = Counter(dict(self.counts.most_common(TEXTS // 2))), False

    def first(self, count: int) -> list[tuple[str, int]]:
        return sorted(self.counts.items(), key=lambda entry: (-entry[1], entry[0]))[:count]


class Tally:
    """What the pass adds up; its size depends on the number of classes and datasets, not on that of examples.

    Attributes:
      photos: (dataset, class_key, split) -> number.
      licences: dataset -> licence as its source states it, or "" -> number of photos.
      places: a few (split, index) of each (dataset, class_key).
      formats: format -> number of photos.
      bytes: of all photos.
      sides: "width", "height", "short side" -> pixels -> number of photos.
      per_photo: number of captions -> number of photos.
      tokens: kind of caption -> length -> number.
      examples: a few captions of each kind.
      training: the split whose captions are compared.
      hashes: eight bytes for each of its captions.
      frequent: its most frequent captions.
      counted_by: how lengths are known.
    """

    def __init__(self, alive: Alive):
        self._stated = {slug: record.licence for slug, record in alive.datasets.items()}
        self.photos, self.licences, self.places = Counter(), defaultdict(Counter), Sample(PLACES)
        self.formats, self.bytes = Counter(), 0
        self.sides = {name: Counter() for name in ("width", "height", "short side")}
        self.per_photo, self.tokens, self.examples = Counter(), defaultdict(Counter), Sample(EXAMPLES)
        self.training = "train" if "train" in alive.splits else next(iter(alive.splits))
        self.hashes, self.frequent = array("Q"), Frequent()
        count, self.counted_by = tokenizers.counter()

        @functools.lru_cache(TEXTS)
        def known(caption: str) -> tuple[int, int, str]:
            text = normalise_caption(caption)
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            return min(count(caption), MOST_TOKENS), int.from_bytes(digest, "big"), text

        self._known = known

    def add(self, split: str, index: int, row: Mapping[str, Any]) -> None:
        """Counts a row of `records.Source`."""
        dataset, image = row["dataset"], row["image"]
        self.photos[dataset, row["class_key"], split] += 1
        self.places.add((dataset, row["class_key"]), row["source"], (split, index))
        licences, licence = self.licences[dataset], shortened(row["licence"] or self._stated[dataset])
        licences[licence if licence in licences or len(licences) < LICENCES else "others"] += 1
        self.bytes += len(image)
        try:
            sides = size_of(image)
        except Exception:  # Pillow answers broken headers with many kinds
            self.formats[UNREADABLE] += 1
        else:
            self.formats[next(name for magic, name in FORMATS.items() if image.startswith(magic))] += 1
            for name, pixels in zip(self.sides, (*sides, min(sides)), strict=True):
                self.sides[name][min(pixels, MOST_PIXELS)] += 1
        self.per_photo[len(row["captions"])] += 1
        for caption, kind in zip(row["captions"], row["caption_kinds"], strict=True):
            tokens, digest, text = self._known(caption)
            self.tokens[kind][tokens] += 1
            self.examples.add(kind, caption)
            if split == self.training:
                self.hashes.append(digest)
                self.frequent.add(text)


def pass_over(alive: Alive) -> Tally:
    """Reads every record once.

    Raises:
      UserError: one names a class that alive.json does not.
    """
    tally, known = Tally(alive), set(alive.classes)
    for split in alive.splits:
        for index, row in enumerate(alive.source(split)):
            if (name := f"{row['dataset']}/{row['class_key']}") not in known:
                raise UserError(f"{alive.path}: its alive.json names no class {name!r}; build the folder again")
            tally.add(split, index, row)
    return tally


def measure(alive: Alive, tally: Tally) -> dict[str, Any]:
    """What the pass found, JSON-able."""
    datasets = {}
    for slug, record in alive.datasets.items():
        photos = {key: {split: tally.photos[slug, key, split] for split in alive.splits} for key in record.classes}
        datasets[slug] = {
            "domain": record.domain,
            "source": record.source,
            "licences": dict(tally.licences[slug].most_common()),
            "splits": {split: sum(of[split] for of in photos.values()) for split in alive.splits},
            "classes": {key: {"name": record.classes[key], "photos": of} for key, of in photos.items() if key},
            "without a class": sum(photos.get("", {}).values()),
        }
    tokens = sum(tally.tokens.values(), Counter())
    return {
        "name": read_record(alive.path / "alive.json", "name")["name"],
        "fingerprint": alive.fingerprint,
        "splits": dict(alive.splits),
        "datasets": datasets,
        "photos": {
            "formats": dict(tally.formats.most_common()),
            "bytes": tally.bytes,
            **{name: quantiles(counts) for name, counts in tally.sides.items()},
            "short side from": SIDE_EDGES,
            "histogram": histogram(tally.sides["short side"], SIDE_EDGES),
        },
        "captions": {
            **lengths(tokens),
            "counted by": tally.counted_by,
            "a photo": quantiles(tally.per_photo),
            "tokens from": TOKEN_EDGES,
            "histogram": histogram(tokens, TOKEN_EDGES),
            "kinds": {
                kind: lengths(of) | {"examples": [caption for _, caption, _ in tally.examples.groups[kind]]}
                for kind, of in sorted(tally.tokens.items(), key=lambda entry: (-entry[1].total(), entry[0]))
            },
            "repeats": {
                "split": tally.training,
                "captions": len(tally.hashes),
                "distinct": len(np.unique(np.asarray(tally.hashes))),
                "most frequent": tally.frequent.first(5),
                "is exact": tally.frequent.is_exact,
            },
        },
    }


def lengths(tokens: Mapping[int, int]) -> dict[str, Any]:
    truncated = sum(count for length, count in tokens.items() if length > CONTEXT)
    return {"captions": sum(tokens.values()), "tokens": quantiles(tokens), "truncated": truncated}


def quantiles(counts: Mapping[int, int]) -> dict[str, float]:
    """Least, 5 %, median, 95 %, most (nearest rank) and mean of the values that are counted; empty for none."""
    if not counts:
        return {}
    values = sorted(counts)
    upto = list(itertools.accumulate(counts[value] for value in values))
    ranks = {"least": 0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "most": 1}
    found = {name: values[bisect_left(upto, share * upto[-1])] for name, share in ranks.items()}
    return found | {"mean": sum(value * count for value, count in counts.items()) / upto[-1]}


def histogram(counts: Mapping[int, int], edges: Sequence[int]) -> list[int]:
    """How many values lie from each edge to before the next; from the last edge on all."""
    bins = [0] * len(edges)
    for value, count in counts.items():
        bins[bisect_right(edges, value) - 1] += count
    return bins


def shortened(text: str, most: int = 400) -> str:
    """The text in one line, cut where it is long."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
