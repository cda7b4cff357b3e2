"""How features lie to each other: their inner products, and the losses on those or on the distances."""

import jax
import jax.numpy as jnp

KOLEO_EPS = 1e-8  # below this distance two features count as one


def similarities(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner products of the rows of `x` [..., n, dim] with those of `y` [..., m, dim]: float32 [..., n, m]."""
    # TPUs and recent GPUs multiply float32 in fewer bits unless told otherwise.
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    return jnp.einsum("...nd,...md->...nm", x, y, precision=jax.lax.Precision.HIGHEST)


def koleo(features: jax.Array) -> jax.Array:
    """Spreads features over the sphere: KoLeo (arXiv 1806.03198; DINOv2, arXiv 2304.07193, section 4).

    `L = -mean_i log ||x_i - x_nn(i)||`, x the features at unit norm and nn(i) the nearest other one in the global
    batch (in DINOv2's own code: on the same device). The views of one image would be each other's nearest, so DINOv2
    takes the loss of each view apart and sums.

    Args:
      features: [batch, dim], not normalised, of a single view.

    Returns:
      float32 []; finite, with a gradient of 0, for features that coincide.
    """
    x = _unit(features)
    itself = jnp.eye(len(x), dtype=bool)
    nearest = jnp.argmax(jnp.where(itself, -jnp.inf, similarities(x, x)), axis=1)
    # From the difference: 2 - 2 cos has no digits left where it matters, between near ones.
    squared = jnp.sum(jnp.square(x - x[nearest]), axis=1)
    return -0.5 * jnp.mean(jnp.log(squared + KOLEO_EPS**2))


def gram_anchoring(student: jax.Array, anchor: jax.Array) -> jax.Array:
    """Keeps how the patches of an image resemble each other (DINOv3, arXiv 2508.10104, section 4).

    `L = mean (X_S X_S^T - sg X_G X_G^T)^2` over images and pairs of patches, X the patches' features at unit norm. The
    paper writes the squared Frobenius norm, the authors' code the mean; theirs is the weight of 2.

    Args:
      student: [..., patches, dim].
      anchor: [..., patches, any dim], of an earlier teacher on the same grid; gets no gradient.

    Returns:
      float32 [].
    """
    x, y = _unit(student), _unit(jax.lax.stop_gradient(anchor))
    return jnp.mean(jnp.square(similarities(x, x) - similarities(y, y)))


def _unit(x: jax.Array) -> jax.Array:
    """Rows at unit norm, float32; finite, value and gradient, also for a zero row."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-12))
