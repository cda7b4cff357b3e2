"""Statistics of shares and of differences: what other images, or other draws, could have given.

Pure functions of who was right; nothing here knows a model, and nothing needs jax.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Z95 = 1.959963984540054  # the standard normal quantile of a two-sided 95 % interval
DRAWS = 1000  # bootstrap draws
FLIPS = 9999  # random sign flips

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """How far B is ahead of A: share of B less share of A, its 95 % interval, two-sided p-value of no difference."""

    difference: float
    interval: Interval
    p_value: float


def wilson(hits: int, count: int) -> Interval:
    """The 95 % score interval of a share (Wilson 1927): closed form, and honest at 0 and at 1."""
    share = hits / count
    centre = share + Z95**2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    low, high = ((centre + sign * half) / (1 + Z95**2 / count) for sign in (-1, 1))
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 [classes, classes]; row: the true class, column: the predicted one."""
    cells = np.asarray(labels, np.int64) * classes + predicted
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def confused_pairs(labels: np.ndarray, predicted: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """The `most` frequent mistakes, (true class, predicted class, images), largest first; fits any number of classes.

    Of equally frequent ones the classes that come first are first.
    """
    wrong = np.asarray(labels) != predicted
    pairs, counts = np.unique(np.stack([labels, predicted], axis=1)[wrong], axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [(int(true), int(said), int(count)) for (true, said), count in zip(pairs[order], counts[order], strict=True)]


def mean_of_shares(shares: Sequence[float], intervals: Sequence[Interval]) -> tuple[float, Interval]:
    """The mean of independent shares, each with the same weight, and its interval from theirs.

    The ends combine as MOVER has it (Zou & Donner 2008): other images of the same tasks.
    """
    values, (low, high) = np.asarray(shares, np.float64), np.asarray(intervals, np.float64).T
    mean, count = float(values.mean()), len(values)
    below, above = np.linalg.norm(values - low), np.linalg.norm(high - values)
    return mean, (mean - float(below) / count, mean + float(above) / count)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values as Holm (1979) adjusts them, so that of all true null hypotheses one in twenty families rejects any."""
    values, count = np.asarray(p_values, np.float64), len(p_values)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(count)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * (count - np.arange(count))))
    return adjusted.tolist()


def paired_difference(right_a: np.ndarray, right_b: np.ndarray) -> Difference:
    """B against A on the same images.

    The interval is Agresti & Min's (2005: half an image is added to each cell of the 2 x 2 table), which is honest
    where A and B never differ; the p-value is McNemar's, exact.

    Args:
      right_a: bool [n], where A is right; n at least 1.
      right_b: bool [n], where B is.
    """
    gained, lost = _discordant(right_a, right_b)
    count = len(right_a)
    centre, changed = (gained - lost) / (count + 2), (gained + lost + 1) / (count + 2)
    half = Z95 * math.sqrt((changed - centre**2) / (count + 2))
    difference = (gained - lost) / count
    return Difference(
        difference,
        (max(-1.0, min(centre - half, difference)), min(1.0, max(centre + half, difference))),
        float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    )


def paired_mean_difference(pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0) -> Difference:
    """B against A in the mean over tasks, every task with the same weight.

    The interval is the bootstrap's over the images within each task: other images of the same tasks. The p-value is
    a sign-flip test's: were A and B the same, each image on which they differ would favour either with even odds. So
    it holds for any number of images, and for one task it is McNemar's test.

    Args:
      pairs: for each task, `right_a` and `right_b` as for `paired_difference`; at least one.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    difference, drawn, flipped = 0.0, np.zeros(DRAWS), np.zeros(FLIPS)
    for right_a, right_b in pairs:
        gained, lost = _discordant(right_a, right_b)
        count, weight = len(right_a), 1 / (len(right_a) * len(pairs))
        difference += (gained - lost) * weight
        cells = rng.multinomial(count, [gained / count, lost / count, (count - gained - lost) / count], DRAWS)
        drawn += (cells[:, 0] - cells[:, 1]) * weight
        flipped += (2 * rng.binomial(gained + lost, 0.5, FLIPS) - (gained + lost)) * weight
    return _difference(difference, drawn, flipped)


def paired_mean_gain(gains: Sequence[np.ndarray], seed: int = 0) -> Difference:
    """B against A in the mean over tasks, where both were trained several times and answered the same images each time.

    As `paired_mean_difference`, with an image's gain in the place of its answers: the seeds are averaged before images
    are drawn or flipped, for they are asked the same ones. So it speaks of other images, not of other seeds.

    Args:
      gains: for each task float [images], the share of seeds by which B is right less that by which A is.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    difference, drawn, flipped = 0.0, np.zeros(DRAWS), np.zeros(FLIPS)
    for gain in gains:
        weight = 1 / (len(gain) * len(gains))
        values, counts = np.unique(np.asarray(gain, np.float64), return_counts=True)
        difference += float(values @ counts) * weight
        drawn += rng.multinomial(len(gain), counts / len(gain), DRAWS) @ values * weight
        for value, count in zip(values, counts, strict=True):
            flipped += (2 * rng.binomial(count, 0.5, FLIPS) - count) * value * weight
    return _difference(difference, drawn, flipped)


def paired_gain_of_seeds(gains: Sequence[float]) -> Difference:
    """B against A trained anew: the mean gain with Student's interval of 95 % and the p-value of the paired t-test.

    Args:
      gains: of each seed that both were trained with; at least two.
    """
    mean = float(np.mean(gains))
    if np.ptp(gains) == 0:
        return Difference(mean, (mean, mean), 0.0 if mean else 1.0)
    test = stats.ttest_1samp(gains, 0.0)
    low, high = test.confidence_interval()
    return Difference(mean, (float(low), float(high)), float(test.pvalue))


def mean_interval(shares: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean of shares over draws or seeds and its 95 % Student-t interval, as far as it lies between 0 and 1.

    The ends are None where there is one value.
    """
    mean, count = float(np.mean(shares)), len(shares)
    if count == 1:
        return mean, None, None
    half = float(stats.t.ppf(0.975, count - 1) * np.std(shares, ddof=1) / math.sqrt(count))
    return mean, max(mean - half, 0.0), min(mean + half, 1.0)


def _discordant(right_a: np.ndarray, right_b: np.ndarray) -> tuple[int, int]:
    """Images that only B has right, and that only A has."""
    right_a, right_b = np.asarray(right_a, bool), np.asarray(right_b, bool)
    return int((right_b & ~right_a).sum()), int((right_a & ~right_b).sum())


def _difference(difference: float, drawn: np.ndarray, flipped: np.ndarray) -> Difference:
    """A difference with the interval of its bootstrap draws and the p-value of its sign flips."""
    low, high = np.percentile(drawn, (2.5, 97.5))
    extreme = int((np.abs(flipped) >= abs(difference) - 1e-12).sum())  # equal sums may differ in the last bit
    return Difference(
        difference,
        (min(float(low), difference), max(float(high), difference)),
        (extreme + 1) / (FLIPS + 1),
    )
