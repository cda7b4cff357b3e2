"""Contrastive losses over the global batch."""

import jax
import jax.numpy as jnp

from agriclip_jax.losses.geometry import similarities


def positives(*ids: jax.Array) -> jax.Array:
    """Which examples are each other's positives: those that agree in any of `ids`.

    Args:
      *ids: uint32 [batch, words] each, a hash of what must agree (the caption, the class).

    Returns:
      bool [batch, batch], symmetric, true on the diagonal.
    """
    agree = [jnp.all(i[:, None] == i[None], axis=-1) for i in ids]
    return jnp.any(jnp.stack(agree), axis=0)


def info_nce(images: jax.Array, texts: jax.Array, scale: jax.Array, positive: jax.Array) -> jax.Array:
    """Multi-positive InfoNCE; CLIP's loss when every example is its own only positive.

    `q_ij = positive_ij / sum_j positive_ij`,
    `L = 1/2 [ mean_i H(q_i, softmax_j s z_i.t_j) + mean_i H(q_i, softmax_j s t_i.z_j) ]`
    (arXiv 2103.00020 figure 3, with the targets of SupCon, arXiv 2004.11362 equation 2, for repeated captions).

    Args:
      images, texts: float32 [batch, dim], L2-normalised; row i of each belongs to one example.
      scale: float32 [], s = exp(logit_scale).
      positive: bool [batch, batch], symmetric, true on the diagonal.

    Returns:
      float32 [].
    """
    # TPUs and recent GPUs multiply float32 in fewer bits unless told otherwise: at scale 100 that moves logits by 0.1.
    logits = jnp.matmul(scale * images, texts.T, precision=jax.lax.Precision.HIGHEST)
    count = jnp.sum(positive, axis=1)
    forward = -jnp.sum(positive / count[:, None] * jax.nn.log_softmax(logits, axis=1), axis=1)
    # Columns stay columns: turned, a sharded matrix goes through all devices.
    backward = -jnp.sum(positive / count * jax.nn.log_softmax(logits, axis=0), axis=0)
    return 0.5 * (jnp.mean(forward) + jnp.mean(backward))


def classify(images: jax.Array, texts: jax.Array, scale: jax.Array, right: jax.Array) -> jax.Array:
    """Which of all classes an image shows, each known by a text: zero-shot classification as a loss.

    `L = mean_i H(q_i, softmax_c s z_i.t_c)`, `q_ic = right_ic / sum_c right_ic`: the image-to-text half of UniCL's loss
    (arXiv 2204.03610, equation 3) with every class of the data among the texts, instead of those in the batch.

    Args:
      images: float32 [batch, dim], L2-normalised.
      texts: float32 [classes, dim], L2-normalised.
      scale: float32 [], s = exp(logit_scale).
      right: bool [batch, classes]; an image without a class adds nothing and counts in the mean.

    Returns:
      float32 [].
    """
    targets = right / jnp.maximum(jnp.sum(right, axis=1, keepdims=True), 1)
    log_p = jax.nn.log_softmax(scale * similarities(images, texts), axis=1)
    return -jnp.mean(jnp.sum(targets * log_p, axis=1))


def sigmoid(images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array, positive: jax.Array) -> jax.Array:
    """Every pair judged by itself: the sigmoid loss (SigLIP, arXiv 2303.15343, section 3.2).

    `L = -1/n sum_ij log sigmoid(m_ij (s z_i.t_j + b))`, m_ij = 1 for a positive pair and -1 for any other.

    Args:
      images, texts: [batch, dim], L2-normalised; row i of each belongs to one example.
      scale: float32 [], s = exp(logit_scale); the paper starts at 10.
      bias: float32 [], b; the paper starts at -10, for almost all pairs are negative.
      positive: bool [batch, batch], true on the diagonal.

    Returns:
      float32 [].
    """
    logits = scale * similarities(images, texts) + bias
    return -jnp.sum(jax.nn.log_sigmoid(jnp.where(positive, logits, -logits))) / len(images)
