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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agriclip_jax.errors import UserError

SIDE = 64  # pixels of the small picture; a photo decoded to a short side of this has the same hash but for a few bits
NEAR = (
    35  # bits of the 256: copies are nearer, but for strong crops; what is farther is more and more often a lookalike
)
MAX_PAIRS = 1 << 27  # 2 GiB of them

_BLOCK = 1 << 15  # hashes compared at a time: they stay in the processor's cache
_BATCH = 1 << 20  # candidates looked at together


def _basis() -> np.ndarray:
    """Cosines of 1 to 16 half waves under a Hann window, blind to brightness: float64 [16, SIDE].

    They are whole numbers, so sums of their products are exact and a hash is the same on every machine.
    """
    x = (np.arange(SIDE) + 0.5) / SIDE
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
    grey = np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC))
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
    if others is None:
        first = _first_equal(hashes)
        distinct, rest = _split(first)
        near = _collect(_search(hashes[distinct], distance))
        return _sorted(np.concatenate([distinct[near], np.stack([first[rest], rest], axis=1)]))
    first, first_other = _first_equal(hashes), _first_equal(others)
    (distinct, rest), (distinct_other, rest_other) = _split(first), _split(first_other)
    size = len(distinct)
    found = _search(np.concatenate([hashes[distinct], others[distinct_other]]), distance)
    near = _collect(pairs[(pairs[:, 0] < size) & (pairs[:, 1] >= size)] for pairs in found)
    near = np.stack([distinct[near[:, 0]], distinct_other[near[:, 1] - size]], axis=1)
    more, more_other = _nearest(rest, first, near), _nearest(rest_other, first_other, near[:, ::-1])
    return _sorted(np.concatenate([near, more, more_other[:, ::-1]]))


def groups(count: int, pairs: np.ndarray) -> np.ndarray:
    """For each of `count` rows the smallest one that pairs link it to, by way of others too: int64 [count]."""
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, smallest, group = np.unique(
        connected_components(links, directed=False)[1], return_index=True, return_inverse=True
    )
    return smallest[group].astype(np.int64)


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


def _sorted(pairs: np.ndarray) -> np.ndarray:
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def _collect(blocks: Iterable[np.ndarray]) -> np.ndarray:
    kept, count = [np.empty((0, 2), np.int64)], 0
    for block in blocks:
        kept.append(block)
        count += len(block)
        if count > MAX_PAIRS:
            raise UserError(f"more than {MAX_PAIRS:,} pairs of photos are near; ask for a smaller distance")
    return np.concatenate(kept)


# ---- the search ------------------------------------------------------------------------------------------------------


def _search(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """Yields the pairs i < j of rows within `distance`, each once: int64 [p, 2].

    The bits are dealt into so few bands that two near hashes differ in at most one bit of some band. So for each bit of
    each band, rows that agree in the band's other bits are compared.
    """
    bands = _bands(64 * hashes.shape[1], distance)
    for number, band in enumerate(bands):
        bits = [_mask([bit], len(band)) for bit in np.flatnonzero(_bits(band))]
        for left_out in bits:
            for i, j in _batches(_candidates(hashes, band & ~left_out, distance)):
                apart = hashes[i] ^ hashes[j]
                within = apart & band
                # A pair may agree in several ways. It counts in the first of them.
                new = (within == left_out).all(axis=1)
                if left_out is bits[0]:
                    new |= ~within.any(axis=1)
                for earlier in bands[:number]:
                    new &= _count(apart & earlier) > 1
                new &= _count(apart) <= distance
                yield np.sort(np.stack([i[new], j[new]], axis=1), axis=1)


def _bands(bits: int, distance: int) -> np.ndarray:
    """Masks of `distance // 2 + 1` bands, of which each bit is in one: uint64 [bands, k].

    Steps of 101 bits bring bits into a band that are far apart in frequency, so hardly more rows agree in them than
    would by chance.
    """
    dealt = np.array_split(101 * np.arange(bits) % bits, distance // 2 + 1)
    return np.stack([_mask(band, bits // 64) for band in dealt])


def _mask(bits: np.ndarray | list[int], words: int) -> np.ndarray:
    """The uint64 [words] in which these bits are set."""
    mask = np.zeros(64 * words, bool)
    mask[bits] = True
    return np.packbits(mask, bitorder="little").view("<u8").astype(np.uint64)


def _bits(mask: np.ndarray) -> np.ndarray:
    return np.unpackbits(mask.astype("<u8").view(np.uint8), bitorder="little")


def _count(hashes: np.ndarray) -> np.ndarray:
    """The bits that are set: int64, one axis less."""
    return np.bitwise_count(hashes).sum(axis=-1, dtype=np.int64)


Rows = tuple[np.ndarray, np.ndarray]


def _candidates(hashes: np.ndarray, mask: np.ndarray, distance: int) -> Iterator[Rows]:
    """Yields pairs of rows, among them all those within `distance` that agree in the bits of the mask.

    Rows are sorted into buckets by 16 bits made of these. Buckets of one size are laid out position by position, so one
    shift compares two positions of all of them, in memory that lies together and is never more than a few times theirs.
    """
    key = np.zeros(len(hashes), np.uint64)
    for word, bits in enumerate(mask):
        key += (hashes[:, word] & bits) * np.uint64((2 * word + 1) * 0x9E3779B97F4A7C15 % 2**64)
    key = (key >> np.uint64(48)).astype(np.uint16)
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=~key[order[:1]]))
    sizes = np.diff(starts, append=len(order))
    for size in np.unique(sizes[sizes > 1]):
        buckets = starts[sizes == size]
        step = max(1, _BLOCK // size)
        for begin in range(0, len(buckets), step):
            rows = order[buckets[begin : begin + step] + np.arange(size)[:, None]]
            width, rows = rows.shape[1], rows.ravel()
            words = [hashes[rows, word] for word in range(min(2, len(mask)))]  # chance brings next to none near in two
            for shift in range(width, len(rows), width):
                apart = sum(np.bitwise_count(word[shift:] ^ word[:-shift]) for word in words)
                near = (apart <= distance).nonzero()[0]
                if len(near):
                    yield rows[near], rows[near + shift]


def _batches(pairs: Iterable[Rows]) -> Iterator[Rows]:
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
