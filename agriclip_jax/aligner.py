"""The aligner: an affine map from one tower's features to another's, fitted in closed form (arXiv 2410.01407).

AgriCLIP follows Text-to-Concept (arXiv 2305.06386) and fits it by 70 epochs of SGD; `sgd` does that too. The optimum of
a ridge regression needs the features' second moments only, so one pass over the photos is enough, and every strength
can be tried on held-out photos without another one.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from agriclip_jax.errors import UserError

# Ridge strengths that are tried, as a share of the features' mean variance.
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-16, 3))
COLLAPSED = "the image features to align are the same for every photo: the tower has collapsed"


class Affine(NamedTuple):
    """`y = x @ kernel + bias`: float64 [d1, d2] and [d2] on the host."""

    kernel: np.ndarray
    bias: np.ndarray


class Moments(NamedTuple):
    """First and second moments of n pairs (x, y), each taken off `origin`; float64, on the host.

    Attributes:
      count: n.
      x, y: sums, [d1] and [d2].
      xx, xy: sums of outer products, [d1, d1] and [d1, d2].
      yy: sum of squares, [].
      origin: points near the means of x and y, so that sums of squares lose no digits.
    """

    count: float
    x: np.ndarray
    y: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: float
    origin: tuple[np.ndarray, np.ndarray]


class Fit(NamedTuple):
    """What `ridge` found.

    Attributes:
      affine: the map.
      strength: the ridge's, as a share of the mean variance of x.
      r2: on the held-out pairs.
      tried: strength -> r2 of each that was tried.
    """

    affine: Affine
    strength: float
    r2: float
    tried: dict[float, float]


def moments(batches: Iterable[tuple[jax.Array, jax.Array, jax.Array]]) -> Moments:
    """One pass over pairs of features; no more than a batch is held.

    Sums within a batch are float32 at full precision on the devices (a sharded batch is summed over all of them), sums
    of batches float64 on the host.

    Args:
      batches: x [batch, d1], y [batch, d2] and weights float32 [batch], 0 for rows that only fill up.

    Raises:
      UserError: there is no pair, or a feature is not finite.
    """
    total, origin, ahead = None, None, None
    for batch in batches:
        if origin is None:
            # Every process gets the sums.
            place = batch[0].sharding
            whole = NamedSharding(place.mesh, PartitionSpec()) if isinstance(place, NamedSharding) else None
            sums = jax.jit(_sums, out_shardings=whole)
            origin = jax.device_get(jax.jit(_means, out_shardings=whole)(*batch))
        if ahead is not None:  # fetched while the devices are at the next one
            total = _added(total, ahead)
        ahead = sums(*batch, *origin)
    total = _added(total, ahead) if ahead is not None else None
    if total is None or not total[0]:
        raise UserError("there is no photo to fit the aligner on")
    if not all(np.isfinite(part).all() for part in total):
        raise UserError("a tower gives features that are not finite: its parameters are damaged")
    count, x, y, xx, xy, yy = total
    return Moments(float(count), x, y, xx, xy, float(yy), tuple(np.asarray(o, np.float64) for o in origin))


def _means(x: jax.Array, y: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(weights @ part.astype(jnp.float32) / jnp.sum(weights) for part in (x, y))


def _sums(x: jax.Array, y: jax.Array, weights: jax.Array, x0: jax.Array, y0: jax.Array) -> tuple[jax.Array, ...]:
    x, y = ((part.astype(jnp.float32) - o) * weights[:, None] for part, o in ((x, x0), (y, y0)))
    outer = lambda a, b: jnp.matmul(a.T, b, precision=jax.lax.Precision.HIGHEST)  # noqa: E731
    return jnp.sum(weights), jnp.sum(x, 0), jnp.sum(y, 0), outer(x, x), outer(x, y), jnp.sum(y * y)


def _added(total: Sequence[np.ndarray] | None, sums: Sequence[jax.Array]) -> list[np.ndarray]:
    parts = [np.asarray(part, np.float64) for part in jax.device_get(sums)]
    return parts if total is None else [a + b for a, b in zip(total, parts, strict=True)]


def check_count(photos: int, features: int) -> None:
    """Raises `UserError` where there are fewer photos than a `ridge` of so many features takes."""
    if photos <= features:
        raise UserError(
            f"an aligner of {features} features cannot be fitted on {photos} photos; give more, or a smaller tower"
        )


def ridge(train: Moments, held_out: Moments, strengths: Sequence[float] = STRENGTHS) -> Fit:
    """The affine map that explains most on held-out pairs.

    `min_W 1/n ||(X - mean X) W - (Y - mean Y)||^2 + s v ||W||^2`, v the mean variance of a column of X; the bias
    `mean y - mean x W` is not shrunk, which centring does. One eigendecomposition of X's covariance serves every s.

    Args:
      train: of more pairs than x has columns.
      held_out: of others.
      strengths: s.

    Raises:
      UserError: fewer pairs than columns, or features that never vary.
    """
    check_count(int(train.count), len(train.x))
    xx, xy, _ = _about(train, *_mean(train))
    values, vectors = np.linalg.eigh(xx / train.count)
    scale = values.mean()
    if not scale > 0:
        raise UserError(COLLAPSED)
    rotated, mean_x, mean_y = vectors.T @ (xy / train.count), *_mean(train)
    maps = {}
    for strength in strengths:
        kernel = vectors @ (rotated / (np.maximum(values, 0) + strength * scale)[:, None])
        maps[strength] = Affine(kernel, mean_y - mean_x @ kernel)
    tried = {strength: r2(affine, held_out) for strength, affine in maps.items()}
    best = max(tried, key=tried.get)
    return Fit(maps[best], best, tried[best], tried)


def r2(affine: Affine, pairs: Moments) -> float:
    """`1 - sum ||y - x W - b||^2 / sum ||y - mean y||^2`, the share of the variance that is explained.

    Raises:
      UserError: y does not vary.
    """
    mean_x, mean_y = _mean(pairs)
    xx, xy, yy = _about(pairs, mean_x, mean_y)
    kernel = affine.kernel
    error = yy - 2 * np.sum(kernel * xy) + np.sum(kernel * (xx @ kernel))
    error += pairs.count * np.sum((mean_y - mean_x @ kernel - affine.bias) ** 2)
    if not yy > 0:
        raise UserError("the photos held out to judge an aligner by look all the same to the tower; give others")
    return float(1 - error / yy)


def _mean(pairs: Moments) -> tuple[np.ndarray, np.ndarray]:
    return tuple(o + part / pairs.count for o, part in zip(pairs.origin, (pairs.x, pairs.y), strict=True))


def _about(pairs: Moments, mean_x: np.ndarray, mean_y: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Second moments about the means of the pairs themselves."""
    x, y = (mean_x - pairs.origin[0]), (mean_y - pairs.origin[1])
    n = pairs.count
    return pairs.xx - n * np.outer(x, x), pairs.xy - n * np.outer(x, y), pairs.yy - n * float(y @ y)


def sgd(
    x: np.ndarray,
    y: np.ndarray,
    *,
    epochs: int = 70,
    batch_size: int = 100,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    period: int = 200,
    seed: int = 0,
) -> Affine:
    """The authors' fit: SGD on the mean squared error of scaled features, undone at the end.

    Features are scaled to a variance of 4.5 over all their entries, x by c1 and y by c2; weights and bias decay; the
    learning rate is `learning_rate / 2 (1 + cos(pi epoch / period))`. In the end `W <- W c1 / c2` and `b <- b / c2`;
    the authors multiply the bias by c1 too, which no measure of theirs sees.

    Args:
      x, y: float32 [n, d1] and [n, d2].
      epochs ... seed: as published; every epoch takes the rows in a new order, and whole batches of them.

    Raises:
      UserError: features that never vary.
    """
    if not (np.ptp(x, axis=0).any() and np.ptp(y, axis=0).any()):
        raise UserError(COLLAPSED)
    c1, c2 = (float(np.sqrt(4.5 / part.var())) for part in (x, y))
    x, y = jnp.asarray(x * np.float32(c1)), jnp.asarray(y * np.float32(c2))
    size = min(batch_size, len(x))
    steps = len(x) // size
    rate = lambda count: learning_rate / 2 * (1 + jnp.cos(jnp.pi * (count // steps) / period))  # noqa: E731
    mover = optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(rate, momentum))
    params = _torch_linear(jax.random.key(seed), x.shape[1], y.shape[1])

    def loss(params: tuple[jax.Array, jax.Array], x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.mean((jnp.matmul(x, params[0], precision=jax.lax.Precision.HIGHEST) + params[1] - y) ** 2)

    @jax.jit
    def epoch(carry, key, x, y):
        def step(carry, rows):
            params, state = carry
            updates, state = mover.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
            return (optax.apply_updates(params, updates), state), None

        order = jax.random.permutation(key, len(x))[: steps * size].reshape(steps, size)
        return jax.lax.scan(step, carry, order)[0]

    carry = params, mover.init(params)
    for key in jax.random.split(jax.random.key(seed + 1), epochs):
        carry = epoch(carry, key, x, y)
    kernel, bias = (np.asarray(part, np.float64) for part in carry[0])
    return Affine(kernel * c1 / c2, bias / c2)


def _torch_linear(key: jax.Array, inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """Where the authors start: uniform in +- 1 / sqrt(inputs), kernel and bias."""
    bound = inputs**-0.5
    keys = jax.random.split(key)
    return tuple(
        jax.random.uniform(k, shape, minval=-bound, maxval=bound)
        for k, shape in zip(keys, ((inputs, outputs), (outputs,)), strict=True)
    )
