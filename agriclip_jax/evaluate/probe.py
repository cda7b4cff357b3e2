"""What frozen features are worth: classifiers fitted on training images and asked about test images.

Three ways: nearest neighbours, a linear probe, few-shot classifiers in closed form. Each is a function of arrays. What
it returns is ready for JSON and says what is needed to compute it again; where nothing can be scored it is
`{"reason": why}` alone.

Of equal scores the class that comes first wins. A class without training images is never predicted and stays in the
count of classes. Features are float [n, width] and finite; labels are int [n], each below `classes`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.sparse import csr_array

from agriclip_jax.evaluate import measures, retrieval
from agriclip_jax.evaluate.statistics import mean_interval

NEIGHBOURS = (10, 20, 100, 200)  # DINO's, as is the temperature
TEMPERATURE = 0.07
SHOTS = (1, 2, 4, 8, 16)
PROBE_L2 = tuple(10.0**power for power in range(2, -5, -1))  # from strong to weak: each fit starts from the last
LEAST_LOG = -50.0  # of a class without training images, where a log probability must be finite
RIDGE_L2 = tuple(10.0**power for power in range(3, -4, -1))
GRADIENT_NORM = 1e-6  # where the linear probe has converged
MOST_ITERATIONS, SWEEP_ITERATIONS = 1000, 200  # of the probe itself, and of each fit that only helps to choose l2
ROWS = 1024  # rows of a block

_matmul = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)  # a GPU would round float32 to 10 bits
_product = jax.jit(_matmul)


class Classifier(NamedTuple):
    """A class for each image: the largest of `transform(features) @ weights + bias`.

    Attributes:
      transform: float [n, width] -> float [n, width].
      weights: float64 [width, classes].
      bias: float64 [classes]; -inf for a class without training images.
    """

    transform: Callable[[np.ndarray], np.ndarray]
    weights: np.ndarray
    bias: np.ndarray

    def scores(self, features: np.ndarray) -> Iterator[np.ndarray]:
        """float64 [at most ROWS, classes], block by block."""
        weights = jnp.asarray(self.weights, jnp.float32)
        for start in range(0, len(features), ROWS):
            block = np.asarray(self.transform(features[start : start + ROWS]), np.float32)
            padded = np.pad(block, ((0, ROWS - len(block)), (0, 0)))
            yield np.asarray(_product(padded, weights), np.float64)[: len(block)] + self.bias


@dataclass(frozen=True, eq=False)
class Linear:
    """A fitted linear probe, for features as they are: the standardisation is folded into weights and bias.

    Attributes:
      record: scores and how they came about, ready for JSON; `{"reason": why}` when there is no probe.
      weights: float64 [width, classes].
      bias: float64 [classes]; -inf for a class without training images.
      predicted: int64 [test images], the likeliest class.
      confidence: float64 [test images], its probability.
    """

    record: dict[str, Any]
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None
    predicted: np.ndarray | None = None
    confidence: np.ndarray | None = None


def knn(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
) -> dict[str, Any]:
    """Weighted k-nearest-neighbour classification by DINO's protocol (Caron et al. 2021, eval_knn.py).

    Each of the k training images of largest cosine votes for its class with weight exp(cosine / 0.07); of equally
    near ones those that come first. A class without a vote is never among the first five.

    Returns:
      `train_images`, `temperature`, and in `results` for each k the scores; `neighbours` is k, or the number of
      training images where that is smaller.
    """
    if reason := _reason(train_labels, test_labels):
        return {"reason": reason}
    cosines, positions = _nearest(train, test, max(neighbours))
    weights, voters = np.exp(cosines.astype(np.float64) / TEMPERATURE), train_labels[positions]

    def votes(count: int) -> Iterator[np.ndarray]:
        for start in range(0, len(test), ROWS):
            chosen = voters[start : start + ROWS, :count]
            cells = np.arange(len(chosen))[:, None] * classes + chosen
            given = np.bincount(cells.ravel(), weights[start : start + ROWS, :count].ravel(), len(chosen) * classes)
            yield np.where(given > 0, given, -np.inf).reshape(len(chosen), classes)

    results = []
    for k in neighbours:
        scored, _, _ = _judge(votes(k), test_labels, classes)
        results.append({"k": k, "neighbours": min(k, len(train)), **scored})
    return {"train_images": len(train), "temperature": TEMPERATURE, "results": results}


def _nearest(train: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float32 and positions int32 of the nearest min(k, n) of n training images; both [queries, min(k, n)]."""
    units = (_normalise(rows).astype(np.float32) for rows in (queries, train))
    positions, cosines = retrieval.nearest(*units, k)
    return cosines, positions


def linear(
    train: np.ndarray,
    train_labels: np.ndarray,
    val: np.ndarray | None,
    val_labels: np.ndarray | None,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    *,
    seed: int = 0,
) -> Linear:
    """Multinomial logistic regression: mean cross entropy + l2 / 2 · ‖weights‖², the bias free, by full-batch L-BFGS.

    Features are standardised by mean and standard deviation of the images fitted on; a constant channel is 0. l2 is the
    one of highest accuracy on the validation images (of equal ones that of least cross entropy): of powers of ten, then
    of the half steps beside the best. The probe is then fitted on training and validation images together.

    Args:
      train: float [n, width].
      train_labels: int [n].
      val: features to choose l2 on; None: a tenth of the training images, by `hold_out`.
      val_labels: int, parallel to `val`.
      test: features to score.
      test_labels: int, parallel to `test`.
      classes: number of classes.
      seed: of `hold_out`.
    """
    if reason := _reason(train_labels, test_labels):
        return Linear({"reason": reason})
    held = None
    if val is None or not len(val):
        held = hold_out(train_labels, seed)
        if not len(held):
            return Linear({"reason": "no class has a second training image to choose l2 on"})
        whole, whole_labels = train, train_labels
        val, val_labels = train[held], train_labels[held]
        train, train_labels = np.delete(train, held, axis=0), np.delete(train_labels, held)
    else:
        whole, whole_labels = np.concatenate([train, val]), np.concatenate([train_labels, val_labels])

    regression, fits, accuracy, losses = _Regression(train, train_labels, classes), {}, {}, {}

    def attempt(l2: float, start: dict[str, jax.Array]) -> dict[str, jax.Array]:
        fits[l2] = regression.fit(l2, start, SWEEP_ITERATIONS)
        scores = np.concatenate(list(regression.classifier(fits[l2]).scores(val)))
        accuracy[l2] = _judge([scores], val_labels, classes)[0]["top1"]
        own = scores[np.arange(len(val)), val_labels] - np.logaddexp.reduce(scores, axis=1)
        losses[l2] = -float(np.maximum(own, LEAST_LOG).mean())
        return fits[l2].parameters

    def best() -> float:
        return max(accuracy, key=lambda l2: (accuracy[l2], -losses[l2], l2))

    parameters = {"weights": jnp.zeros((train.shape[1], classes)), "bias": jnp.zeros(classes)}
    for l2 in PROBE_L2:
        parameters = attempt(l2, parameters)
    centre = best()
    for l2 in (centre * math.sqrt(10), centre / math.sqrt(10)):
        attempt(l2, fits[centre].parameters)
    l2 = best()

    regression = _Regression(whole, whole_labels, classes)
    fit = regression.fit(l2, fits[l2].parameters, MOST_ITERATIONS)
    classifier = regression.classifier(fit)
    log_probabilities = (
        scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) for scores in classifier.scores(test)
    )
    scored, predicted, highest = _judge(log_probabilities, test_labels, classes)
    weights = regression.scale[:, None] * classifier.weights
    record = {
        **scored,
        "l2": l2,
        "iterations": fit.iterations,
        "converged": fit.converged,
        "sweep": [
            {
                "l2": l2,
                "accuracy": accuracy[l2],
                "cross_entropy": losses[l2],
                "iterations": fits[l2].iterations,
                "converged": fits[l2].converged,
            }
            for l2 in sorted(accuracy)
        ],
        "standardised": True,
        "train_images": len(train),
        "val_images": len(val),
        "val_held_out_with_seed": None if held is None else seed,
    }
    return Linear(record, weights, classifier.bias - regression.mean @ weights, predicted, np.exp(highest))


def hold_out(labels: np.ndarray, seed: int) -> np.ndarray:
    """Sorted positions of a tenth of the images, spread evenly over the classes; each class keeps one image at least.

    Empty when no class has two images.
    """
    order = _shuffled_by_class(labels, seed)
    spare = order[_place_in_class(labels[order]) > 0]
    count = min(max(1, round(len(labels) / 10)), len(spare))
    return np.sort(spare[np.linspace(0, len(spare), count, endpoint=False).astype(np.int64)])


class _Fit(NamedTuple):
    """The parameters {"weights", "bias"} of standardised features, and how L-BFGS came to them."""

    parameters: dict[str, jax.Array]
    iterations: int
    converged: bool


class _Regression:
    """Logistic regression on standardised features, of which it holds one copy in blocks."""

    def __init__(self, features: np.ndarray, labels: np.ndarray, classes: int) -> None:
        self.mean, self.scale = _mean_and_scale(features)
        self.absent = np.where(np.bincount(labels, minlength=classes) > 0, 0.0, -np.inf)
        count, width = features.shape
        in_block = ROWS if count > ROWS else -(-count // 128) * 128  # few shapes, so that few are compiled
        rows = -(-count // in_block) * in_block
        standard = np.zeros((rows, width), np.float32)
        for start in range(0, count, ROWS):
            block = features[start : start + ROWS]
            standard[start : start + len(block)] = self._standardise(block)
        targets = np.pad(labels.astype(np.int32), (0, rows - count), mode="edge")
        shares = np.pad(np.full(count, 1 / count, np.float32), (0, rows - count))
        self.blocks = tuple(
            jnp.asarray(array.reshape(-1, in_block, *array.shape[1:])) for array in (standard, targets, shares)
        )

    def _standardise(self, features: np.ndarray) -> np.ndarray:
        return (features - self.mean) * self.scale

    def fit(self, l2: float, start: dict[str, jax.Array], most: int) -> _Fit:
        parameters, iterations, gradient_norm = _minimise(self.blocks, self.absent, l2, start, most)
        return _Fit(parameters, int(iterations), bool(gradient_norm <= GRADIENT_NORM))

    def classifier(self, fit: _Fit) -> Classifier:
        weights, bias = (np.asarray(fit.parameters[name], np.float64) for name in ("weights", "bias"))
        return Classifier(self._standardise, weights, bias + self.absent)


@jax.jit
def _minimise(blocks, absent, l2, start, most):
    """Parameters of least objective after at most `most` iterations, their number and the norm of the last gradient."""

    @jax.checkpoint  # the backward pass computes a block's logits again, so that no two blocks are held at once
    def cross_entropy(parameters, features, targets, shares):
        logits = _matmul(features, parameters["weights"]) + parameters["bias"] + absent
        return jnp.sum(shares * optax.softmax_cross_entropy_with_integer_labels(logits, targets))

    def objective(parameters):
        total, _ = jax.lax.scan(lambda sum_, block: (sum_ + cross_entropy(parameters, *block), None), 0.0, blocks)
        return total + l2 / 2 * jnp.sum(parameters["weights"] ** 2)

    solver = optax.lbfgs()
    value_and_gradient = optax.value_and_grad_from_state(objective)

    def step(carry):
        parameters, state = carry
        value, gradient = value_and_gradient(parameters, state=state)
        updates, state = solver.update(gradient, state, parameters, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(parameters, updates), state

    def progress(state):
        return optax.tree.get(state, "count"), optax.tree.norm(optax.tree.get(state, "grad"))

    def goes_on(carry):
        iterations, gradient_norm = progress(carry[1])  # before the first step the state holds no gradient
        return (iterations == 0) | ((iterations < most) & (gradient_norm > GRADIENT_NORM))

    parameters, state = jax.lax.while_loop(goes_on, step, (start, solver.init(start)))
    return parameters, *progress(state)


def few_shot(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Classifiers in closed form, `ridge` and `centroid`, from a few training images a class.

    Returns:
      `seed`, `draws`, counts, and in `results` for each (method, shots) the means over the draws of `top1` and
      `mean_per_class`; `values`, the top-1 of each draw; `interval`, Student's 95 % interval of their mean within
      [0, 1]: what drawing other training images could have given (None of one draw); `l2` of each draw;
      `short_classes`, how many classes have fewer training images than shots and gave all they have.
    """
    if reason := _reason(train_labels, test_labels):
        return {"reason": reason}
    results = []
    for count in shots:
        rows = [draw(train_labels, count, (seed, index)) for index in range(draws)]
        short = int((np.bincount(train_labels, minlength=classes) < count).sum())
        for method in (ridge, centroid):
            values, per_class, chosen = [], [], []
            for drawn in rows:
                classifier, l2 = method(train[drawn], train_labels[drawn], classes)
                scored, _, _ = _judge(classifier.scores(test), test_labels, classes)
                values.append(scored["top1"])
                per_class.append(scored["mean_per_class"])
                chosen.append(l2)
            mean, low, high = mean_interval(values)
            results.append(
                {
                    "method": method.__name__,
                    "shots": count,
                    "short_classes": short,
                    "top1": mean,
                    "interval": None if low is None else [max(low, 0.0), min(high, 1.0)],
                    "values": values,
                    "mean_per_class": float(np.mean(per_class)),
                    "l2": chosen,
                }
            )
    counts = {"train_images": len(train), "images": len(test), "classes": classes, "chance": 1 / classes}
    return {"seed": seed, "draws": draws, **counts, "results": results}


def draw(labels: np.ndarray, shots: int, seed: int | Sequence[int]) -> np.ndarray:
    """Positions of `shots` images of each class, or all of a class with fewer; more shots of a seed hold the fewer."""
    order = _shuffled_by_class(labels, seed)
    return order[_place_in_class(labels[order]) < shots]


def ridge(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[Classifier, float]:
    """Least squares to targets of +1 (its class) and -1 (others), as big_vision's few-shot probe, with a free bias.

    Minimises ‖standardised @ weights + bias - targets‖² / n + l2 · ‖weights‖². l2 is the one of `RIDGE_L2` of least
    squared leave-one-out error (PRESS, Allen 1974; of equal ones the first), for which nothing is fitted again: an
    image's own error without it is its residual / (1 - leverage). Where no class has a second image, leaving one out
    says nothing, and l2 is 1.

    Returns:
      the classifier and l2.
    """
    mean, scale = _mean_and_scale(features)
    count = len(features)
    one_hot = csr_array((np.ones(count), (labels, np.arange(count))), (classes, count))
    # The thin decomposition is the primal or the dual problem, whichever is smaller; it serves every l2.
    left, singular, right = np.linalg.svd((features - mean) * scale, full_matrices=False)
    left_targets = 2 * (one_hot @ left).T  # the singular vectors are centred, so the targets' means drop out
    target_mean = 2 * one_hot.sum(axis=1) / count - 1

    def press(l2: float) -> float:
        kept = singular**2 / (singular**2 + count * l2)
        total, mapped = 0.0, kept[:, None] * left_targets
        for start in range(0, count, ROWS):
            block, own = left[start : start + ROWS], labels[start : start + ROWS]
            residuals = -1 - target_mean - block @ mapped
            residuals[np.arange(len(own)), own] += 2
            leverages = 1 / count + block**2 @ kept
            total += np.sum((residuals / (1 - leverages[:, None])) ** 2)
        return total

    l2 = min(RIDGE_L2, key=press) if one_hot.sum(axis=1).max() > 1 else 1.0
    weights = right.T @ ((singular / (singular**2 + count * l2))[:, None] * left_targets)
    bias = np.where(one_hot.sum(axis=1) > 0, target_mean, -np.inf)
    return Classifier(lambda x: (x - mean) * scale, weights, bias), l2


def centroid(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[Classifier, None]:
    """The nearest class mean of centred, L2-normalised features (CL2N of SimpleShot, Wang et al. 2019).

    The centre is the mean of the given images; SimpleShot has base classes to take it from.

    Returns:
      the classifier, and None for the l2 that it has not.
    """
    mean, count = features.mean(axis=0, dtype=np.float64), len(features)
    one_hot = csr_array((np.ones(count), (labels, np.arange(count))), (classes, count))
    sizes = one_hot.sum(axis=1)
    means = one_hot @ _normalise(features - mean) / np.maximum(sizes, 1)[:, None]
    # ‖x - mean‖² is least where x · mean - ‖mean‖² / 2 is largest.
    bias = np.where(sizes > 0, -np.sum(means**2, axis=1) / 2, -np.inf)
    return Classifier(lambda x: _normalise(x - mean), means.T, bias), None


def _judge(
    scores: Iterable[np.ndarray], labels: np.ndarray, classes: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """Shares, and for each image the class of largest score and that score.

    Args:
      scores: float [any number, classes], block by block; -inf for what cannot be the answer.
      labels: int, of all blocks together.
      classes: number of classes.
    """
    ranks, predicted, highest = [], [], []
    done = 0
    for block in scores:
        own = labels[done : done + len(block)]
        done += len(block)
        true = block[np.arange(len(own)), own][:, None]
        before = (block > true) | ((block == true) & (np.arange(classes) < own[:, None]))
        ranks.append(np.where(np.isneginf(true[:, 0]), classes, before.sum(axis=1)))
        predicted.append(block.argmax(axis=1))
        highest.append(block.max(axis=1))
    predicted, ranks, highest = map(np.concatenate, (predicted, ranks, highest))
    found = measures.score(measures.Answers(classes, labels, predicted, ranks, confidence=highest), bootstrap=False)
    shares = {name: getattr(found, name) for name in ("images", "chance", "top1", "top5", "mean_per_class")}
    return {"classes": classes, **shares, "interval": list(found.interval)}, predicted, highest


def _reason(train_labels: np.ndarray, test_labels: np.ndarray) -> str:
    """Why nothing can be scored, or ""."""
    if not len(test_labels):
        return "no test image"
    return "fewer than two classes have training images" if len(np.unique(train_labels)) < 2 else ""


def _shuffled_by_class(labels: np.ndarray, seed: int | Sequence[int]) -> np.ndarray:
    """All positions, class by class, in each class in random order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    return order[np.argsort(labels[order], kind="stable")]


def _place_in_class(labels: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each class of sorted labels."""
    return np.arange(len(labels)) - np.searchsorted(labels, labels)


def _mean_and_scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64 mean and 1 / standard deviation of each channel; 0 for a constant one, whatever its rounding."""
    deviation = features.std(axis=0, dtype=np.float64)
    varies = features.max(axis=0) > features.min(axis=0)
    return features.mean(axis=0, dtype=np.float64), np.divide(1, deviation, np.zeros_like(deviation), where=varies)


def _normalise(features: np.ndarray) -> np.ndarray:
    features = features.astype(np.float64)
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
