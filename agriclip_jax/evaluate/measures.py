"""Measures of a nearest-class classifier: how often it is right, how sure it is, and what chance alone would give.

Pure functions of embeddings and labels; nothing here reads a file or knows a model. Images are compared with classes
in blocks, so that no array of images x classes is ever made. Of equal scores the class that comes first wins.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from agriclip_jax.evaluate.statistics import DRAWS, Interval, wilson

BLOCK = 1 << 24  # cosines held at once: 64 MiB
BLOCK_IMAGES = 4096  # images in a block at most, and images a temperature is fitted on at most
BINS = 15  # of the confidence (Guo et al. 2017)
SCALES = (1e-2, 1e4)  # a fitted logit scale lies between: from no confidence at all to certainty


@dataclass(frozen=True, eq=False)
class Answers:
    """What a nearest-class classifier says of n images.

    Attributes:
      classes: how many it chose from.
      labels: int64 [n], the true classes.
      predicted: int64 [n], the classes of largest cosine.
      rank: int64 [n], how many classes it places before the true one; 0 where it is right.
      confidence: float64 [n], softmax probability of the predicted class at the model's logit scale.
    """

    classes: int
    labels: np.ndarray
    predicted: np.ndarray
    rank: np.ndarray
    confidence: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """bool [n]."""
        return self.predicted == self.labels


@dataclass(frozen=True)
class Scores:
    """How often the answers are right; shares in [0, 1].

    Attributes:
      images: how many were asked about.
      chance: 1 / number of classes.
      top1: share of images whose nearest class is theirs.
      top5: share whose class is among the nearest five; None with five classes or fewer.
      mean_per_class: mean recall of the classes that have images.
      macro_f1: mean F1 of the classes that have images or were predicted (scikit-learn's "macro").
      interval: 95 % Wilson interval of `top1`.
      bootstrap: 95 % bootstrap intervals over the images, of "top1", "mean_per_class" and "macro_f1"; or empty.
    """

    images: int
    chance: float
    top1: float
    top5: float | None
    mean_per_class: float
    macro_f1: float
    interval: Interval
    bootstrap: dict[str, Interval]


class Bin(NamedTuple):
    """The images of one bin of a reliability plot: mean confidence, share that is right, how many."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """How far the confidence can be taken for a probability.

    Attributes:
      error: expected calibration error, in [0, 1].
      bins: the bins that hold images, from unsure to sure.
      logit_scale: the fitted inverse temperature; at an end of `SCALES` where all is wrong, or all easily right.
      fitted_error: calibration error when each half of the images is read at the scale fitted on the other half;
        None for one image.
    """

    error: float
    bins: tuple[Bin, ...]
    logit_scale: float
    fitted_error: float | None


@dataclass(frozen=True)
class OpenSet:
    """How well a score tells images of offered classes from images of others: AUROC, 0.5 by chance, mean over folds.

    Attributes:
      cosine: by the largest cosine.
      probability: by the largest softmax probability.
      folds: how many there were.
    """

    cosine: float
    probability: float
    folds: int


@dataclass(frozen=True)
class RolledUp:
    """How often the group of classes is right; shares in [0, 1].

    Attributes:
      groups: how many.
      chance: 1 / groups.
      top1: by the largest sum of the classes' probabilities.
      mean_per_group: its mean recall of the groups that have images.
      nearest_top1: by the group of the nearest class.
      nearest_mean_per_group: its mean recall.
      nearest_chance: what a class at random would give; more than `chance` where most images are of a large group.
    """

    groups: int
    chance: float
    top1: float
    mean_per_group: float
    nearest_top1: float
    nearest_mean_per_group: float
    nearest_chance: float


def classify(
    embeddings: np.ndarray, class_embeddings: np.ndarray, labels: np.ndarray, logit_scale: float | np.ndarray
) -> Answers:
    """Compares every image with every class.

    Args:
      embeddings: float [n, d], L2-normalised; n at least 1.
      class_embeddings: float [classes, d], L2-normalised.
      labels: int [n], each below the number of classes.
      logit_scale: what cosines are multiplied by before the softmax; float, or one for each image, [n].
    """
    scales = np.broadcast_to(np.float32(logit_scale), len(labels))
    found = _in_blocks(_answer, class_embeddings, embeddings, np.asarray(labels, np.int32), scales)
    predicted, rank, log_confidence = found
    return Answers(
        classes=len(class_embeddings),
        labels=np.asarray(labels, np.int64),
        predicted=predicted.astype(np.int64),
        rank=rank.astype(np.int64),
        confidence=np.exp(log_confidence.astype(np.float64)),
    )


def score(answers: Answers, seed: int = 0, *, bootstrap: bool = True) -> Scores:
    """The shares of right answers, each with what drawing other images could have given.

    Args:
      answers: as from `classify`.
      seed: of the draws.
      bootstrap: whether its intervals are computed, which takes most of the time.
    """
    count, classes = len(answers.labels), answers.classes
    names = ("top1", "mean_per_class", "macro_f1")
    shares = _shares(answers.labels[None], answers.predicted[None], classes)[:, 0]
    ends = _bootstrap(answers, shares, seed) if bootstrap else ()
    return Scores(
        images=count,
        chance=1 / classes,
        top5=float((answers.rank < 5).mean()) if classes > 5 else None,
        interval=wilson(int(answers.right.sum()), count),
        bootstrap=dict(zip(names, ends, strict=False)),
        **{name: float(shares[i]) for i, name in enumerate(names)},
    )


def _bootstrap(answers: Answers, shares: np.ndarray, seed: int) -> list[Interval]:
    """The 95 % interval of each of the shares.

    A draw that misses the only image of a class moves a mean over classes to one side. The bootstrap's percentiles
    are therefore shifted by the difference of the estimate and the draws' mean.
    """
    count, classes = len(answers.labels), answers.classes
    rng, at_once, draws = np.random.default_rng(seed), max(1, (1 << 20) // max(count, classes)), []
    for start in range(0, DRAWS, at_once):
        images = rng.integers(0, count, (min(at_once, DRAWS - start), count))
        draws.append(_shares(answers.labels[images], answers.predicted[images], classes))
    drawn = np.concatenate(draws, axis=1)
    shift = shares[:, None] - drawn.mean(axis=1, keepdims=True)
    low, high = np.percentile(drawn + shift, (2.5, 97.5), axis=1)
    low, high = np.clip(low, 0, shares), np.clip(high, shares, 1)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def calibration(answers: Answers, embeddings: np.ndarray, class_embeddings: np.ndarray, seed: int = 0) -> Calibration:
    """How honest the confidence is, as the model gives it and at the best temperature (Guo et al. 2017).

    A scale is fitted by the negative log likelihood of at most one block of images, drawn by `seed`. Its error is
    measured on images it was not fitted on.

    Args:
      answers: what `classify` gives for these embeddings.
      embeddings: as for `classify`, and so are `class_embeddings`.
      seed: of the draw and of the halves.
    """

    def fitted(images: np.ndarray) -> float:
        images = images[: _block_images(class_embeddings)]
        (scale,) = _in_blocks(_fit_scale, class_embeddings, embeddings[images], np.int32(labels[images]))
        return float(scale[0])

    labels = answers.labels
    error, bins = _reliability(answers)
    order = np.random.default_rng(seed).permutation(len(labels))
    fitted_error = None
    if len(labels) > 1:
        scales = np.empty(len(labels))
        scales[order[::2]], scales[order[1::2]] = fitted(order[1::2]), fitted(order[::2])
        fitted_error, _ = _reliability(classify(embeddings, class_embeddings, labels, scales))
    return Calibration(error, bins, fitted(order), fitted_error)


def open_set(
    embeddings: np.ndarray,
    class_embeddings: np.ndarray,
    labels: np.ndarray,
    logit_scale: float,
    folds: int = 5,
    seed: int = 0,
) -> OpenSet | None:
    """Whether a low score says "none of these".

    The classes are dealt into folds; the names of one fold after another are not offered, and its images are to be
    told from the others by their largest score among the names that are.

    Args:
      embeddings: as for `classify`, and so are `class_embeddings`, `labels` and `logit_scale`.
      folds: at least 2; fewer are used where fewer classes have images, for every fold needs some.
      seed: of the deal.

    Returns:
      None where fewer than three classes have images.
    """
    rng = np.random.default_rng(seed)
    has_images = np.isin(np.arange(len(class_embeddings)), labels)
    folds = min(folds, int(has_images.sum()))
    if has_images.sum() < 3:
        return None
    deal = np.concatenate([rng.permutation(np.flatnonzero(part)) for part in (has_images, ~has_images)])
    fold = np.empty(len(deal), int)
    fold[deal] = np.arange(len(deal)) % folds
    hands = np.pad(deal, (0, -len(deal) % folds), constant_values=-1).reshape(-1, folds).T  # a row for each fold
    within = partial(_within_folds, dealt=jnp.asarray(hands >= 0), scale=logit_scale)
    found = _in_blocks(within, np.asarray(class_embeddings)[hands.ravel()], embeddings)
    best, rest = (part.astype(np.float64) for part in found)
    aurocs = []
    for held_out in range(folds):
        known, offered = fold[labels] != held_out, np.arange(folds) != held_out
        cosine = best[:, offered].max(axis=1)
        odds = logit_scale * (best[:, offered] - cosine[:, None]) + np.logaddexp(0, rest[:, offered])
        log_probability = -np.logaddexp.reduce(odds, axis=1)  # exact also near 0, where the probability is rounded to 1
        aurocs.append([auroc(cosine, known), auroc(log_probability, known)])
    cosine, probability = np.mean(aurocs, axis=0)
    return OpenSet(float(cosine), float(probability), folds)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """How often a positive one has the larger score of a positive and a negative; a tie counts half.

    Args:
      scores: float [n].
      positive: bool [n], of both kinds at least one.
    """
    ranks = stats.rankdata(scores)[positive]
    return float((ranks.mean() - (len(ranks) + 1) / 2) / (len(scores) - len(ranks)))


def roll_up(
    embeddings: np.ndarray,
    class_embeddings: np.ndarray,
    labels: np.ndarray,
    logit_scale: float,
    groups: Sequence[int],
) -> RolledUp:
    """Whether at least the group of classes is right: the genus of a species, sick or healthy of a disease.

    Args:
      embeddings: as for `classify`, and so are `class_embeddings`, `labels` and `logit_scale`.
      groups: the group of each class, any numbers; of equal sums the smallest number wins.
    """
    names, group = np.unique(np.asarray(groups), return_inverse=True)
    groups_of = partial(_groups_of, groups=jnp.asarray(group, jnp.int32), count=len(names), scale=logit_scale)
    predicted = np.stack(_in_blocks(groups_of, class_embeddings, embeddings))
    true = np.broadcast_to(group[labels], predicted.shape)
    (top1, nearest_top1), (recall, nearest_recall), _ = _shares(true, predicted, len(names))
    return RolledUp(
        groups=len(names),
        chance=1 / len(names),
        top1=float(top1),
        mean_per_group=float(recall),
        nearest_top1=float(nearest_top1),
        nearest_mean_per_group=float(nearest_recall),
        nearest_chance=float((np.bincount(group)[group[labels]] / len(group)).mean()),
    )


def _block_images(class_embeddings: np.ndarray) -> int:
    return min(BLOCK_IMAGES, max(1, BLOCK // len(class_embeddings)))


def _in_blocks(
    function: Callable[..., tuple[jax.Array, ...]], class_embeddings: np.ndarray, *columns: np.ndarray
) -> list[np.ndarray]:
    """`function(class_embeddings, *columns)` of a block of images at a time, its outputs joined.

    Every block has the same shape, so that it is compiled once: the last one is filled with zeros, whose outputs are
    left out.

    Args:
      function: each of its outputs has a row for each image.
      class_embeddings: [classes, d].
      *columns: embeddings [n, d] first; each has a row for each image.
    """
    images, names = _block_images(class_embeddings), jnp.asarray(class_embeddings, jnp.float32)
    outputs = []
    for start in range(0, len(columns[0]), images):
        blocks = [column[start : start + images] for column in columns]
        count = len(blocks[0])
        padded = [
            np.concatenate([block, np.zeros((images - count, *block.shape[1:]), block.dtype)]) for block in blocks
        ]
        outputs.append([np.asarray(output)[:count] for output in function(names, *padded)])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def _cosines(names: jax.Array, images: jax.Array) -> jax.Array:
    # An accelerator would otherwise round to fewer bits, and near ties with it.
    return jnp.matmul(images.astype(jnp.float32), names.T, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _answer(names: jax.Array, images: jax.Array, labels: jax.Array, scales: jax.Array) -> tuple[jax.Array, ...]:
    """Predicted class, rank and log probability of the predicted class, each [images]."""
    cosines, position = _cosines(names, images), jnp.arange(len(names))
    best = cosines.max(axis=1, keepdims=True)
    true = jnp.take_along_axis(cosines, labels[:, None], axis=1)
    before = (cosines > true) | ((cosines == true) & (position < labels[:, None]))
    log_sum = jnp.log(jnp.exp(scales[:, None] * (cosines - best)).sum(axis=1))
    predicted = jnp.where(cosines == best, position, len(names)).min(axis=1)
    return predicted, before.sum(axis=1), -log_sum


@jax.jit
def _fit_scale(names: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array]:
    """The scale of least negative log likelihood, by bisection of its slope (convex, so the slope only rises).

    An image of zeros adds nothing to the slope.
    """
    cosines = _cosines(names, images)
    ahead = cosines - jnp.take_along_axis(cosines, labels[:, None], axis=1)
    most = ahead.max(axis=1, keepdims=True)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = jnp.sqrt(low * high)
        odds = jnp.exp(middle * (ahead - most))
        rises = ((odds * ahead).sum(axis=1) / odds.sum(axis=1)).sum() >= 0
        return jnp.where(rises, low, middle), jnp.where(rises, middle, high)

    low, high = jax.lax.fori_loop(0, 24, halve, (jnp.float32(SCALES[0]), jnp.float32(SCALES[1])))
    return (jnp.full(len(images), jnp.sqrt(low * high)),)


@jax.jit
def _within_folds(names: jax.Array, images: jax.Array, dealt: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """For each image and fold its largest cosine, and the log odds of all other classes of the fold to that one.

    A probability would be rounded to 1 where odds still differ.

    Args:
      names: the classes of one fold after another, [folds * most, d].
      images: [images, d].
      dealt: bool [folds, most]; the others only fill up a shorter fold.
      scale: the logit scale.
    """
    cosines = jnp.where(dealt, _cosines(names, images).reshape(-1, *dealt.shape), -jnp.inf)
    best = cosines.max(axis=2)
    other = jnp.arange(dealt.shape[1]) != cosines.argmax(axis=2)[..., None]
    return best, jax.nn.logsumexp(scale * (cosines - best[..., None]), axis=2, where=dealt & other)


@partial(jax.jit, static_argnames="count")
def _groups_of(
    names: jax.Array, images: jax.Array, groups: jax.Array, count: int, scale: float
) -> tuple[jax.Array, jax.Array]:
    """For each image the group of largest summed probability, and the group of its nearest class."""
    cosines = _cosines(names, images).T
    odds = jnp.exp(scale * (cosines - cosines.max(axis=0)))  # a sum may become 0, but not the largest
    return jnp.argmax(jax.ops.segment_sum(odds, groups, count), axis=0), groups[jnp.argmax(cosines, axis=0)]


def _shares(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Top-1, mean recall and macro F1, float64 [3, draws], of int [draws, n] labels and predictions."""
    draws = len(labels)
    first = np.arange(draws)[:, None] * classes

    def count(cells: np.ndarray) -> np.ndarray:
        return np.bincount(cells.ravel(), minlength=draws * classes).reshape(draws, classes)

    right = labels == predicted
    true, said, hits = count(first + labels), count(first + predicted), count((first + labels)[right])
    recall = (hits / np.maximum(true, 1)).sum(axis=1) / (true > 0).sum(axis=1)
    f1 = (2 * hits / np.maximum(true + said, 1)).sum(axis=1) / (true + said > 0).sum(axis=1)
    return np.stack([right.mean(axis=1), recall, f1])


def _reliability(answers: Answers) -> tuple[float, tuple[Bin, ...]]:
    """Expected calibration error and the bins that hold images; bin i is (i / BINS, (i + 1) / BINS]."""
    place = np.clip(np.ceil(answers.confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for i in np.unique(place):
        inside = place == i
        bins.append(
            Bin(float(answers.confidence[inside].mean()), float(answers.right[inside].mean()), int(inside.sum()))
        )
    error = sum(found.count * abs(found.accuracy - found.confidence) for found in bins) / len(place)
    return error, tuple(bins)
