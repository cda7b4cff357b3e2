"""Self-distillation losses."""

import jax
import jax.numpy as jnp

from agriclip_jax.losses.transport import transport


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


def update_centre(centre: jax.Array, teacher: jax.Array, momentum: float, where: jax.Array | None = None) -> jax.Array:
    """`c <- m c + (1 - m) mean(teacher logits)` over the global batch and all views (arXiv 2104.14294, equation 4).

    Args:
      centre: float32 [prototypes], c.
      teacher: float32 [batch, views or patches, prototypes], logits.
      momentum: m.
      where: bool [batch, views or patches], the predictions that count (all by default); if none does, c stays.
    """
    if where is None:
        return momentum * centre + (1.0 - momentum) * jnp.mean(teacher, axis=(0, 1))
    mean = jnp.sum(teacher, axis=(0, 1), where=where[..., None]) / jnp.maximum(jnp.sum(where), 1)
    return jnp.where(jnp.any(where), momentum * centre + (1.0 - momentum) * mean, centre)


def sinkhorn_targets(
    teacher: jax.Array, temperature: jax.Array | float, iterations: int = 3, where: jax.Array | None = None
) -> jax.Array:
    """What the student is to predict, every prototype used alike: instead of `centred_targets` in DINOv2.

    `transport` of `sg g_t / tau_t`, from all that leads to the prototypes (SwAV, arXiv 2006.09882, section 3;
    DINOv2, arXiv 2304.07193, section 4).

    Args:
      teacher: [..., prototypes], logits of the global batch; gets no gradient.
      temperature: tau_t.
      iterations: of Sinkhorn-Knopp.
      where: bool [...], the predictions that count (for patches, the masked ones); all by default.

    Returns:
      float32 [..., prototypes], each summing to 1.
    """
    logits = jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature
    flat = logits.reshape(-1, teacher.shape[-1])
    return transport(flat, iterations, None if where is None else where.reshape(-1)).reshape(teacher.shape)


def patch_weights(masked: jax.Array) -> jax.Array:
    """Weights of the masked patches in `ibot`: every image with a mask weighs the same, `m_ip / max(|M_i|, 1) / n`.

    Args:
      masked: bool [..., patches].

    Returns:
      float32 [..., patches], 0 where not masked; sums to the share of the images that have a mask.
    """
    count = jnp.sum(masked, axis=-1, keepdims=True)
    return masked / jnp.maximum(count, 1) / (masked.size // masked.shape[-1])


def ibot(student: jax.Array, targets: jax.Array, weights: jax.Array, *, temperature: float) -> jax.Array:
    """Cross-entropy of masked patches with what the teacher, who sees them, says (iBOT, arXiv 2111.07832, section 3).

    `L = -1/n sum_i 1/max(|M_i|, 1) sum_{p in M_i} targets_ip . log softmax(g_s,ip / tau_s)`, M_i the masked patches of
    image i of n (every global view is one).

    Args:
      student: [..., prototypes], logits of all patches, or of masked ones picked out before the head.
      targets: [..., prototypes], probabilities.
      weights: [...], `patch_weights`, picked out likewise; 0 for what only pads.
      temperature: tau_s.

    Returns:
      float32 [].
    """
    log_p = jax.nn.log_softmax(student.astype(jnp.float32) / temperature, axis=-1)
    return -jnp.sum(weights * jnp.sum(targets * log_p, axis=-1))
