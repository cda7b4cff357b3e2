"""A map of embeddings: points on a plane, near each other where the embeddings are.

Exact t-SNE (van der Maaten & Hinton, JMLR 9, 2008), every pair of points in every step, for up to some 3,000 points.
"""

import jax
import jax.numpy as jnp
import numpy as np

COMPONENTS = 50  # principal components that distances are taken in; the rest is mostly noise
BISECTIONS = 60  # of a point's bandwidth: far below what float32 tells apart
STEPS = 1000
EXAGGERATED = 250  # steps in which near points are drawn together more strongly, so that clusters find their place
EXAGGERATION = 12.0


def embedding_map(embeddings: np.ndarray, *, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Places each embedding on a plane.

    Args:
      embeddings: float [n, d], finite.
      seed: of the tiny noise that parts equal points at the start, which is the first two principal components.
      perplexity: how many neighbours a point has in effect; of few points at most (n - 1) / 3.

    Returns:
      float32 [n, 2], with mean 0.
    """
    count = len(embeddings)
    if count < 2:
        return np.zeros((count, 2), np.float32)
    principal = _principal(np.asarray(embeddings, np.float64))
    start = 1e-4 * principal[:, :2] / max(principal[:, 0].std(), 1e-12)
    start += 1e-6 * np.random.default_rng(seed).standard_normal(start.shape)
    joint = affinities(principal, max(1.0, min(perplexity, (count - 1) / 3)))
    return np.asarray(_descend(joint, jnp.asarray(start, jnp.float32)))


def _principal(points: np.ndarray) -> np.ndarray:
    """The first principal components [n, 2 to COMPONENTS]; where there are fewer than two, zeros."""
    centred = points - points.mean(axis=0)
    _, directions = np.linalg.eigh(centred.T @ centred)  # by growing variance
    directions = directions[:, ::-1][:, :COMPONENTS]
    # Of the two signs of a direction, the one that makes its largest entry positive.
    directions *= np.sign(np.take_along_axis(directions, np.abs(directions).argmax(axis=0)[None], axis=0))
    return np.pad(centred @ directions, ((0, 0), (0, max(0, 2 - directions.shape[1]))))


@jax.jit
def affinities(points: jax.Array, perplexity: float) -> jax.Array:
    """How likely two points pick each other as neighbours, p_ij of equation 2 and section 3.1.

    Args:
      points: float [n, c], n at least 2.
      perplexity: of each point's own choice among the others, from 1 to n - 1.

    Returns:
      float32 [n, n], symmetric up to rounding, with sum 1 and zeros on the diagonal.
    """
    points, count = jnp.asarray(points, jnp.float32), len(points)
    squares = jnp.sum(points**2, axis=1)
    products = jnp.matmul(points, points.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.maximum(squares[:, None] + squares - 2 * products, 0)
    distances /= jnp.maximum(distances.mean(), 1e-30)  # so that a precision of 1 is a fair first guess at any scale
    distances = jnp.where(jnp.eye(count, dtype=bool), jnp.inf, distances)
    distances -= distances.min(axis=1, keepdims=True)  # the nearest gets weight 1, so that no row underflows

    def conditional(precision: jax.Array) -> jax.Array:
        weights = jnp.exp(-distances * precision)
        return weights / weights.sum(axis=1, keepdims=True)

    def bisect(_, bounds):
        low, precision, high = bounds
        chosen = conditional(precision)
        entropy = -jax.scipy.special.xlogy(chosen, chosen).sum(axis=1, keepdims=True)
        wide = entropy > jnp.log(perplexity)
        low, high = jnp.where(wide, precision, low), jnp.where(wide, high, precision)
        return low, jnp.where(jnp.isinf(high), 2 * precision, (low + high) / 2), high

    one = jnp.ones((count, 1), jnp.float32)
    _, precision, _ = jax.lax.fori_loop(0, BISECTIONS, bisect, (0 * one, one, jnp.inf * one))
    chosen = conditional(precision)
    return (chosen + chosen.T) / (2 * count)


@jax.jit
def _descend(joint: jax.Array, start: jax.Array) -> jax.Array:
    """Moves the points [n, 2] down the gradient of KL(joint, map), as section 3.4 does."""
    count, itself = len(start), jnp.eye(len(start), dtype=bool)
    rate = max(count / EXAGGERATION / 4, 50.0)  # Belkina et al. 2019

    def gradient(points: jax.Array, exaggeration: jax.Array) -> jax.Array:
        x, y = points.T
        kernel = jnp.where(itself, 0, 1 / (1 + (x[:, None] - x) ** 2 + (y[:, None] - y) ** 2))
        pull = (exaggeration * joint - kernel / kernel.sum()) * kernel
        # The sum over j of pull_ij (y_i - y_j), as one product.
        sums = jnp.matmul(pull, jnp.column_stack([points, jnp.ones(count)]), precision=jax.lax.Precision.HIGHEST)
        return 4 * (points * sums[:, 2:] - sums[:, :2])

    def step(index, carry):
        points, speed, gain = carry
        early = index < EXAGGERATED
        slope = gradient(points, jnp.where(early, EXAGGERATION, 1.0))
        gain = jnp.maximum(jnp.where(slope * speed < 0, gain + 0.2, 0.8 * gain), 0.01)
        speed = jnp.where(early, 0.5, 0.8) * speed - rate * gain * slope
        return points + speed - jnp.mean(points + speed, axis=0), speed, gain

    points, _, _ = jax.lax.fori_loop(0, STEPS, step, (start, jnp.zeros_like(start), jnp.ones_like(start)))
    return points
