"""Photos that show the same: a hash of what a picture looks like, and the search for near hashes among millions.

The hash is pHash's (Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010): the signs of
low frequencies of a small grey picture, which another file format, size, brightness or contrast hardly moves. Here the
picture fades out towards its edges first, so that borders, captions and small crops move few of them. The search is
multi-index hashing (Norouzi, Punjani and Fleet, CVPR 2012): exact, and far from comparing all with all.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from agriclip_jax.errors import UserError

SIDE = 128  # pixels: a photo decoded to this short side has the same hash but for a few bits
NEAR = 35  # bits: as near are copies, with a border or slightly cropped too; beyond, photos that only look alike begin
MAX_PAIRS = 1 << 25  # half a GiB, and 3 GiB while they are put together

_SMALL = 64  # side of the small picture
_BLOCK = 1 << 15  # hashes compared at a time: they stay in the processor's cache
_BATCH = 1 << 20  # candidates looked at together

_Rows = tuple[np.ndarray, np.ndarray]  # the rows i and the rows j of pairs


def _basis() -> np.ndarray:
    """Cosines of 1 to 16 half waves under a Hann window, blind to brightness: float64 [16, _SMALL].

    They are whole numbers, so sums of their products are exact and a hash is the same on every machine.
    """
    x = (np.arange(_SMALL) + 0.5) / _SMALL
    window = np.sin(np.pi * x) ** 2
    waves = np.cos(np.pi * np.outer(np.arange(1, 17), x))
    waves -= (waves @ window / window.sum())[:, None]
    return np.rint(4096 * window * waves)


_BASIS = _basis()
_FAINT = np.square(_BASIS).sum(1).mean()  # what noise with a deviation of one grey level makes of a frequency


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """The hash of an upright RGB image: uint64 [4], 256 bits.

    Where most frequencies are weaker than noise of one grey level, as in blank pictures and smooth gradients, their
    signs say nothing. The hash is then a digest of the small picture: the same for the same, far from all others.
    """
    grey = np.asarray(image.convert("L").resize((_SMALL, _SMALL), Image.Resampling.BICUBIC))
    waves = _BASIS @ grey @ _BASIS.T
    if np.median(np.abs(waves)) < _FAINT:
        packed = np.frombuffer(hashlib.sha256(grey.tobytes()).digest(), np.uint8)
    else:
        packed = np.packbits(waves > 0, bitorder="little")
    return packed.view("<u8").astype(np.uint64)


def near_pairs(hashes: np.ndarray, others: np.ndarray | None = None, *, distance: int = NEAR) -> np.ndarray:
    """The pairs of hashes that differ in at most `distance` bits: int64 [p, 2], sorted.

    Of rows with equal hashes the first has all its pairs; each of the rest has one: with that first row, or, between
    `hashes` and `others`, with the first row that is near. So a million copies of a photo make a million pairs.

    Args:
      hashes: uint64 [n, k].
      others: uint64 [m, k]; when given, a pair is a row of `hashes` and a row of `others`, otherwise two rows i < j of
        `hashes`. Takes as long as a search among both together.
      distance: less than 64 k.

    Raises:
      UserError: there are more than `MAX_PAIRS` pairs.
    """
    first = _first_equal(hashes)
    distinct, rest = _split(first)
    if others is None:
        near = _collect((distinct[i], distinct[j]) for i, j in _search(hashes[distinct], distance))
        return _sorted(np.concatenate([near, np.stack([first[rest], rest], axis=1)]))
    first_other = _first_equal(others)
    distinct_other, rest_other = _split(first_other)

    def across(i: np.ndarray, j: np.ndarray) -> _Rows:
        kept = (i < len(distinct)) & (j >= len(distinct))
        return distinct[i[kept]], distinct_other[j[kept] - len(distinct)]

    both = np.concatenate([hashes[distinct], others[distinct_other]])
    near = _collect(across(i, j) for i, j in _search(both, distance))
    more, more_other = _nearest(rest, first, near), _nearest(rest_other, first_other, near[:, ::-1])
    return _sorted(np.concatenate([near, more, more_other[:, ::-1]]))


# ---- rows with equal hashes ------------------------------------------------------------------------------------------


def _first_equal(hashes: np.ndarray) -> np.ndarray:
    """For each row the first one with the same hash: int64 [n]."""
    order = np.lexsort(hashes.T)
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(axis=1)
    first = np.empty(len(hashes), np.int64)
    first[order] = order[new][np.cumsum(new) - 1]
    return first


def _split(first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that are the first with their hash, and the rest."""
    is_first = first == np.arange(len(first))
    return np.flatnonzero(is_first), np.flatnonzero(~is_first)


def _nearest(rest: np.ndarray, first: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Each row of the rest, with the smallest partner that its first row has in `near`, if any: int64 [p, 2]."""
    none = np.iinfo(np.int64).max
    partner = np.full(len(first), none)
    np.minimum.at(partner, near[:, 0], near[:, 1])
    pairs = np.stack([rest, partner[first[rest]]], axis=1)
    return pairs[pairs[:, 1] < none]


def _collect(blocks: Iterable[_Rows]) -> np.ndarray:
    """All pairs together: int64 [p, 2]."""
    kept, count = [np.empty((0, 2), np.int64)], 0
    for i, j in blocks:
        kept.append(np.stack([i, j], axis=1))
        count += len(i)
        if count > MAX_PAIRS:
            raise UserError(f"more than {MAX_PAIRS:,} pairs of photos are near; leave out most frames of long films")
    return np.concatenate(kept)


def _sorted(pairs: np.ndarray) -> np.ndarray:
    ordered = pairs[:, 0] << 32 | pairs[:, 1]
    ordered.sort()
    return np.stack([ordered >> 32, ordered & 0xFFFFFFFF], axis=1)


# ---- the search ------------------------------------------------------------------------------------------------------


def _search(hashes: np.ndarray, distance: int) -> Iterator[_Rows]:
    """Yields the pairs of rows i < j within `distance`, each once.

    The bits are dealt into so few bands that two near hashes differ in at most one bit of some band. So for each bit of
    each band, rows that agree in the other bits of the band are compared.
    """
    words = np.ascontiguousarray(hashes.T)
    earlier = []
    for band, width in _bands(words, distance):
        for place in range(width):
            left_out = 1 << place
            for i, j in _batches(_candidates(words, band & (2**width - 1 - left_out), distance)):
                # Rows may agree in several ways. They are a pair in the first of these.
                apart = band[i] ^ band[j]
                new = apart <= 1 if place == 0 else apart == left_out
                i, j = i[new], j[new]
                for other in earlier:
                    new = np.bitwise_count(other[i] ^ other[j]) > 1
                    i, j = i[new], j[new]
                near = np.bitwise_count(words[:, i] ^ words[:, j]).sum(axis=0, dtype=np.int64) <= distance
                yield i[near], j[near]
        earlier.append(band)


def _bands(words: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, int]]:
    """Deals the bits into more than `distance / 2` bands: the bits of each, unsigned [n], and how many they are.

    Steps of 101 bits bring bits into a band that are far apart in frequency, so hardly more photos agree in them than
    would by chance.
    """
    bits = 64 * len(words)
    for dealt in np.array_split(101 * np.arange(bits) % bits, max(distance // 2 + 1, len(words))):
        band = np.zeros(words.shape[1], np.min_scalar_type(2 ** len(dealt) - 1))
        for place, bit in enumerate(dealt.tolist()):
            band |= ((words[bit // 64] >> bit % 64 & 1) << place).astype(band.dtype)
        yield band, len(dealt)


def _candidates(words: np.ndarray, key: np.ndarray, distance: int) -> Iterator[_Rows]:
    """Yields pairs of rows i < j, among them all those within `distance` whose keys are equal.

    Rows are sorted into buckets by 16 bits of their keys. Buckets of one size are laid out position by position, so one
    shift compares two positions of all of them, in memory that lies together and is never more than a few times theirs.
    """
    key = (key.astype(np.uint64) * 0x9E3779B97F4A7C15 >> 48).astype(np.uint16)  # Fibonacci hashing
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
    sizes = np.diff(starts, append=len(order))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    grain = 1 << np.maximum(np.frexp(sizes)[1] - 4, 0)
    rounded = -(-sizes // grain) * grain  # to 4 bits, so that many are equal; what is past the end of a bucket is idle
    for size in np.unique(rounded):
        alike = np.flatnonzero(rounded == size)
        step = max(1, _BLOCK // size)
        for begin in range(0, len(alike), step):
            buckets = alike[begin : begin + step]
            count = len(buckets)
            rows = order.take(starts[buckets] + np.arange(size)[:, None], mode="clip").ravel()
            some = words[:2, rows]  # enough to tell: chance brings next to none as near in two words
            for shift in range(count, len(rows), count):
                apart = sum(np.bitwise_count(word[shift:] ^ word[:-shift]) for word in some)
                near = (apart <= distance).nonzero()[0]
                near = near[(near + shift) // count < sizes[buckets[near % count]]]
                if len(near):
                    yield rows[near], rows[near + shift]


def _batches(pairs: Iterable[_Rows]) -> Iterator[_Rows]:
    """The same pairs, more at a time."""
    kept, count = [], 0
    for rows in pairs:
        kept.append(rows)
        count += len(rows[0])
        if count >= _BATCH:
            yield tuple(map(np.concatenate, zip(*kept, strict=True)))
            kept, count = [], 0
    if kept:
        yield tuple(map(np.concatenate, zip(*kept, strict=True)))
