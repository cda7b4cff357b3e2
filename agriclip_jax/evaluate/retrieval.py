"""Retrieval: does an image find its texts among all texts, and a text its images among all images.

Every image is scored against every text, a block of products at a time, and each block serves both directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agriclip_jax.errors import RunFailure, UserError

BLOCK = 1024  # rows and columns of one product: 4 MiB of scores, which a processor's cache holds


@dataclass(frozen=True, eq=False)
class Direction:
    """How queries of one kind find candidates of the other; shares in [0, 1].

    Attributes:
      queries: how many were scored.
      left_out: how many have no relevant candidate, and so are in no number.
      candidates: how many each query chose among.
      recall: for each k, the share of queries with a relevant candidate among the first k, ties counted as lost.
      recall_ties_won: the same with every tie counted as won.
      chance: the recall that a random order of the candidates has in expectation.
      median_rank: of the best relevant candidate, ties counted as lost; 1 is first.
      ties: how many queries score their best relevant candidate like an irrelevant one.
      ranks: int32 [queries + left_out], of the best relevant candidate, ties counted as lost; 1 is first, and 0 means
        that the query was left out.
    """

    queries: int
    left_out: int
    candidates: int
    recall: dict[int, float]
    recall_ties_won: dict[int, float]
    chance: dict[int, float]
    median_rank: float
    ties: int
    ranks: np.ndarray


@dataclass(frozen=True, eq=False)
class Retrieval:
    """Both directions; `mean_recall` is the mean of all their recalls."""

    image_to_text: Direction
    text_to_image: Direction
    mean_recall: float


def retrieve(
    images: np.ndarray,
    texts: np.ndarray,
    image_keys: np.ndarray,
    text_keys: np.ndarray,
    *,
    ks: Sequence[int] = (1, 5, 10),
    block: int = BLOCK,
) -> Retrieval:
    """Scores retrieval both ways; a text is relevant to an image when their keys are equal.

    A query's rank is one more than the number of irrelevant candidates with at least the score of its best relevant
    one, so other relevant candidates never stand in its way and a tie is lost.

    Args:
      images: float32 [n, d], L2-normalised.
      texts: float32 [m, d], L2-normalised.
      image_keys: int [n].
      text_keys: int [m]; captions of one image share its key, captions of a class the class's.
      ks: at least 1 each.
      block: rows and columns of one product, below 2**15; moves time and memory only.

    Raises:
      UserError: no text is relevant to any image.
      RunFailure: an embedding is not finite.
    """
    _, keys = np.unique(np.concatenate([image_keys, text_keys]), return_inverse=True)
    image_keys, text_keys = np.split(keys, [len(images)])
    images_of, texts_of = (np.bincount(of, minlength=keys.max(initial=0) + 1) for of in (image_keys, text_keys))
    if not (images_of * texts_of).any():
        raise UserError("retrieval needs an image and a text with the same key; of these, none belong together")

    rows, columns = _blocks(images, image_keys, block), _blocks(texts, text_keys, block)
    row_best, column_best = ([jnp.full(block, -jnp.inf, jnp.float32)] * len(side) for side in (rows, columns))
    row_beaten, column_beaten = ([jnp.zeros((2, block), jnp.int32)] * len(side) for side in (rows, columns))
    # The blocks are sorted by key, so relevant pairs lie in few products; those are made twice, and alike to the bit.
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            if row.first_key <= column.last_key and column.first_key <= row.last_key:
                row_best[r], column_best[c] = _best(
                    _products(row, column), row.keys, column.keys, row_best[r], column_best[c]
                )
    for r, row in enumerate(rows):
        for c, column in enumerate(columns):
            row_beaten[r], column_beaten[c] = _count(
                _products(row, column),
                row.keys,
                column.keys,
                row_best[r],
                column_best[c],
                row_beaten[r],
                column_beaten[c],
            )

    to_text = _direction(rows, row_beaten, relevant=texts_of[image_keys], candidates=len(texts), ks=ks)
    to_image = _direction(columns, column_beaten, relevant=images_of[text_keys], candidates=len(images), ks=ks)
    return Retrieval(to_text, to_image, float(np.mean([*to_text.recall.values(), *to_image.recall.values()])))


def nearest(
    queries: np.ndarray, candidates: np.ndarray, k: int, *, block: int = BLOCK
) -> tuple[np.ndarray, np.ndarray]:
    """The k candidates of largest product for each query; of equal scores the candidate that comes first wins.

    Args:
      queries: float32 [q, d].
      candidates: float32 [n, d].
      k: at least 1; more than n gives all n.
      block: rows and columns of one product; moves time and memory only.

    Returns:
      int32 [q, min(k, n)] indices of candidates, best first, and float32 [q, min(k, n)] their scores.

    Raises:
      RunFailure: an embedding is not finite.
    """
    k = min(k, len(candidates))
    columns = _blocks(candidates, np.zeros(len(candidates), int), block)
    indices, scores = [np.zeros((0, k), np.int32)], [np.zeros((0, k), np.float32)]
    for row in _blocks(queries, np.zeros(len(queries), int), block):
        found = jnp.zeros((block, k), jnp.int32), jnp.full((block, k), -jnp.inf, jnp.float32)
        for c, column in enumerate(columns):
            found = _first(_products(row, column), c * block, *found)
        indices.append(np.asarray(found[0])[: len(row.places)])
        scores.append(np.asarray(found[1])[: len(row.places)])
    return np.concatenate(indices), np.concatenate(scores)


class _Block(NamedTuple):
    """Rows of one side, padded to the block's size."""

    places: np.ndarray  # of the rows in the caller's array
    embeddings: jax.Array
    keys: jax.Array
    first_key: int
    last_key: int


def _blocks(embeddings: np.ndarray, keys: np.ndarray, block: int) -> list[_Block]:
    """All rows, sorted by key; of equal keys in the order they came."""
    order, blocks = np.argsort(keys, kind="stable"), []
    for start in range(0, len(order), block):
        places = order[start : start + block]
        of, padding = np.asarray(embeddings[places], np.float32), block - len(places)
        if not np.isfinite(of).all():
            raise RunFailure("retrieval was given embeddings that are not finite: the model's parameters are damaged")
        sorted_keys = np.pad(keys[places].astype(np.int32), (0, padding))
        padded = jnp.asarray(np.pad(of, ((0, padding), (0, 0))))
        first, last = int(sorted_keys[0]), int(sorted_keys[len(places) - 1])
        blocks.append(_Block(places, padded, jnp.asarray(sorted_keys), first, last))
    return blocks


def _products(row: _Block, column: _Block) -> jax.Array:
    return _masked_product(row.embeddings, column.embeddings, len(row.places), len(column.places))


# A program of its own, so that whoever asks for a block again is given the same bits.
@jax.jit
def _masked_product(a: jax.Array, b: jax.Array, rows: int, columns: int) -> jax.Array:
    """Every row of `a` times every row of `b` [block, block]; padding scores -inf."""
    scores = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    real = (jnp.arange(len(a)) < rows)[:, None] & (jnp.arange(len(b)) < columns)
    return jnp.where(real, scores, -jnp.inf)


@jax.jit
def _best(scores, row_keys, column_keys, row_best, column_best):
    """The best relevant score so far of each row and of each column."""
    relevant = jnp.where(row_keys[:, None] == column_keys, scores, -jnp.inf)
    return jnp.maximum(row_best, relevant.max(axis=1)), jnp.maximum(column_best, relevant.max(axis=0))


@jax.jit
def _count(scores, row_keys, column_keys, row_best, column_best, row_beaten, column_beaten):
    """Adds, for each row and each column, how many irrelevant scores are above its best relevant one and not below."""
    irrelevant = row_keys[:, None] != column_keys

    def added(best: jax.Array, axis: int) -> jax.Array:
        above = (scores > best).astype(jnp.int32)  # no relevant score is above the best one
        not_below = ((scores >= best) & irrelevant).astype(jnp.int32)
        both = (above + (not_below << 16)).sum(axis=axis)  # one sum for two counts, each at most the block's size
        return jnp.stack([both & 0xFFFF, both >> 16])

    return row_beaten + added(row_best[:, None], axis=1), column_beaten + added(column_best, axis=0)


@jax.jit
def _first(scores, start, indices, best):
    """The best k of those found so far and of a block whose columns are candidates from `start` on."""
    columns = jnp.broadcast_to(start + jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    best, chosen = jax.lax.top_k(jnp.concatenate([best, scores], axis=1), best.shape[1])  # of equals the first
    return jnp.take_along_axis(jnp.concatenate([indices, columns], axis=1), chosen, axis=1), best


def _direction(
    blocks: list[_Block], beaten_by: list[jax.Array], *, relevant: np.ndarray, candidates: int, ks: Sequence[int]
) -> Direction:
    """Sums up the queries of `blocks`, each beaten by (above, not below) candidates, with `relevant` [queries] each."""
    beaten = np.zeros((2, len(relevant)), np.int32)
    for block, counts in zip(blocks, beaten_by, strict=True):
        beaten[:, block.places] = np.asarray(counts)[:, : len(block.places)]
    asked = relevant > 0
    won, lost = beaten[:, asked] + 1
    return Direction(
        queries=len(lost),
        left_out=len(relevant) - len(lost),
        candidates=candidates,
        recall={k: float((lost <= k).mean()) for k in ks},
        recall_ties_won={k: float((won <= k).mean()) for k in ks},
        chance={k: _chance(relevant[asked], candidates, k) for k in ks},
        median_rank=float(np.median(lost)),
        ties=int((won < lost).sum()),
        ranks=np.where(asked, beaten[1] + 1, 0).astype(np.int32),
    )


def _chance(relevant: np.ndarray, candidates: int, k: int) -> float:
    """The mean share of queries with one of their `relevant` candidates among k drawn without putting back."""
    counts, queries = np.unique(relevant, return_counts=True)
    drawn = np.arange(min(k, candidates))
    missed = np.clip((candidates - counts[:, None] - drawn) / (candidates - drawn), 0, None).prod(axis=1)
    return float(1 - missed @ queries / queries.sum())
