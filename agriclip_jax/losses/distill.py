"""Self-distillation losses."""

import jax
import jax.numpy as jnp


def centred_targets(teacher: jax.Array, centre: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """What the student is to predict: `sg softmax((g_t - c) / tau_t)` (DINO, arXiv 2104.14294, section 3.1).

    Args:
      teacher: float32 [batch, global views, prototypes], logits; gets no gradient.
      centre: float32 [prototypes], taken off the teacher's logits.
      temperature: tau_t.

    Returns:
      float32 [batch, global views, prototypes], rows summing to 1.
    """
    return jax.lax.stop_gradient(jax.nn.softmax((teacher - centre) / temperature, axis=-1))


def dino(student: jax.Array, targets: jax.Array, *, temperature: float) -> jax.Array:
    """Cross-entropy of every student view with every other teacher view (DINO, arXiv 2104.14294, equation 3).

    `p_s = softmax(g_s / tau_s)`, mean of `H(targets^q, p_s^v)` over the batch and over all pairs `q != v`. The
    teacher's views are the student's first ones, in the same order.

    Args:
      student: float32 [batch, views, prototypes], logits of all views, the global ones first.
      targets: float32 [batch, global views, prototypes], probabilities.
      temperature: tau_s.

    Returns:
      float32 [].
    """
    log_p = jax.nn.log_softmax(student / temperature, axis=-1)
    cross = -jnp.einsum("bqk,bvk->qv", targets, log_p, precision=jax.lax.Precision.HIGHEST) / student.shape[0]
    other = 1.0 - jnp.eye(*cross.shape)
    return jnp.sum(cross * other) / jnp.sum(other)


def update_centre(centre: jax.Array, teacher: jax.Array, momentum: float) -> jax.Array:
    """`c <- m c + (1 - m) mean(teacher logits)` over the global batch and all views (arXiv 2104.14294, equation 4)."""
    return momentum * centre + (1.0 - momentum) * jnp.mean(teacher, axis=(0, 1))
