"""Learning from images without captions beside a few with: S-CLIP (arXiv 2305.14095).

`L = info_nce_with_unpaired + pseudo_label_loss(captions) + pseudo_label_loss(keywords)`. All batches are global, and
all embeddings L2-normalised. As the authors' code has it (alinlab/s-clip, custom/loss.py) but for what is said below.
"""

import jax
import jax.numpy as jnp

from agriclip_jax.losses.geometry import similarities
from agriclip_jax.losses.transport import transport

# How logits [unpaired, paired] become a distribution over the paired, by name.
ASSIGNMENTS = {
    "hard": lambda logits: jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1]),
    "soft": lambda logits: jax.nn.softmax(logits, axis=1),
    "ot": transport,
}


def info_nce_with_unpaired(
    images: jax.Array, texts: jax.Array, unpaired: jax.Array, scale: jax.Array, positive: jax.Array
) -> jax.Array:
    """Multi-positive InfoNCE in which the images without caption are further negatives of every caption.

    `L = 1/2 [ mean_i H(q_i, softmax_j s z_i.t_j) + mean_i H(q_i, softmax_j s t_i.[z; u]_j) ]`, q as in `info_nce` and 0
    for the unpaired; without unpaired images this is `info_nce`.

    Args:
      images, texts: [paired, dim]; row i of each belongs to one example.
      unpaired: [unpaired, dim], embeddings u of the images without caption.
      scale: float32 [], s = exp(logit_scale).
      positive: bool [paired, paired], symmetric, true on the diagonal.

    Returns:
      float32 [].
    """
    pairs = scale * similarities(images, texts)
    others = scale * similarities(texts, unpaired)
    targets = positive / jnp.sum(positive, axis=1, keepdims=True)
    forward = jax.nn.log_softmax(pairs, axis=1)
    backward = jax.nn.log_softmax(jnp.concatenate([pairs.T, others], axis=1), axis=1)[:, : len(images)]
    return -0.5 * jnp.mean(jnp.sum(targets * (forward + backward), axis=1))


def caption_labels(
    unpaired: jax.Array, paired: jax.Array, scale: jax.Array, *, assignment: str = "ot", detached: bool = True
) -> jax.Array:
    """Which captions an image without one may have, by its similarity to what has: S-CLIP's caption-level labels.

    "ot": the plan of `transport` at cost `1 - cos` and regularisation `1 / s`, each row made to sum to 1.
    "soft": `softmax_i(s cos)`. "hard": all on the nearest, of equals the first.

    Args:
      unpaired: [unpaired, dim], image embeddings u.
      paired: [paired, dim], the images z that have captions; or those captions t, for the authors' `-text` variants
        (of which `hard-text` and `ot-text` compare with the images in their code).
      scale: float32 [], s = exp(logit_scale).
      assignment: a name in `ASSIGNMENTS`.
      detached: whether gradients stop here; the authors let them run through the ten iterations of "ot".

    Returns:
      float32 [unpaired, paired], rows summing to 1.
    """
    labels = ASSIGNMENTS[assignment](scale * similarities(unpaired, paired))
    return jax.lax.stop_gradient(labels) if detached else labels


def keyword_labels(
    unpaired: jax.Array,
    keywords: jax.Array,
    scale: jax.Array,
    captions: jax.Array,
    mentions: jax.Array,
    *,
    linear: bool = False,
) -> jax.Array:
    """Which keywords an image without caption may show: S-CLIP's keyword-level partial labels.

    The candidates K_j are the keywords in the likeliest caption. `w_jk = softmax_{k in K_j}(s u_j.e_k)`, detached.
    The authors' weights are `u_j.e_k / sum_{K_j} u_j.e_k`, which neither heed the scale nor stay in [0, 1] when a
    cosine is negative; `linear` takes these of the positive cosines, and equal ones where no candidate has any.

    Args:
      unpaired: [unpaired, dim], image embeddings u.
      keywords: [keywords, dim], text embeddings e.
      scale: float32 [], s = exp(logit_scale).
      captions: [unpaired, paired], what `caption_labels` returned.
      mentions: bool [paired, keywords], whether a caption has a keyword.
      linear: the authors' weights.

    Returns:
      float32 [unpaired, keywords]: rows sum to 1, or are 0 where there is no candidate. No gradient.
    """
    candidates = mentions[jnp.argmax(captions, axis=1)]
    cosines = similarities(unpaired, keywords)
    if linear:
        weights = jnp.where(candidates, jnp.maximum(cosines, 0.0), 0.0)
        weights = jnp.where(jnp.any(weights > 0, axis=1, keepdims=True), weights, candidates)
        total = jnp.sum(weights, axis=1, keepdims=True)
        labels = weights / jnp.where(total > 0, total, 1.0)
    else:
        # Not -inf: a row without candidates would be NaN.
        logits = jnp.where(candidates, scale * cosines, jnp.finfo(jnp.float32).min)
        labels = candidates * jax.nn.softmax(logits, axis=1)
    return jax.lax.stop_gradient(labels)


def pseudo_label_loss(unpaired: jax.Array, texts: jax.Array, scale: jax.Array, labels: jax.Array) -> jax.Array:
    """`L = 1/2 mean_j H(labels_j, softmax_i s u_j.t_i)`, from images to texts only.

    Args:
      unpaired: [unpaired, dim], embeddings u of the images without caption.
      texts: [texts, dim], embeddings t of the captions of the batch, or of all keywords.
      scale: float32 [], s = exp(logit_scale).
      labels: [unpaired, texts]; a row of zeros adds nothing and counts in the mean.

    Returns:
      float32 [].
    """
    log_p = jax.nn.log_softmax(scale * similarities(unpaired, texts), axis=1)
    return -0.5 * jnp.mean(jnp.sum(labels * log_p, axis=1))
