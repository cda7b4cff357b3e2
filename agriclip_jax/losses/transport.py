"""Entropic optimal transport between a batch and what it is assigned to."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp


def transport(logits: jax.Array, iterations: int = 10, where: jax.Array | None = None) -> jax.Array:
    """Spreads rows over columns so that no column gets more than its share (Sinkhorn-Knopp; arXiv 1306.0895).

    The plan `argmax <P, logits> + H(P)` with rows of sum 1 and columns of sum `rows / columns`: transport of uniform
    masses at cost `C` and regularisation `reg`, for `logits = -C / reg` up to a constant, divided by the mass of a row.
    From `f = 0`, each iteration sets `g_j = -lse_i(logits_ij + f_i)`, then `f_i = -lse_j(logits_ij + g_j)`;
    `P_ij = exp(logits_ij + f_i + g_j)`. All in logarithms: `exp(-C / reg)` underflows at a scale of 100.

    Args:
      logits: [rows, columns], any dtype.
      iterations: S-CLIP takes 10, DINOv2 takes 3. Rows are exact after any number, columns in the limit.
      where: bool [rows], the rows that count (all by default); each of the others is given what a row like it would
        get, and takes no share. If none counts, all do.

    Returns:
      float32 [rows, columns].
    """
    logits = logits.astype(jnp.float32)
    if where is not None:
        where = (where | ~jnp.any(where))[:, None]

    def iterate(_: int, potentials: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        row, _ = potentials
        column = -logsumexp(logits + row, axis=0, keepdims=True, where=where)
        return -logsumexp(logits + column, axis=1, keepdims=True), column

    start = jnp.zeros((logits.shape[0], 1)), jnp.zeros((1, logits.shape[1]))
    _, column = jax.lax.fori_loop(0, iterations, iterate, start)
    # exp(logits + row + column), with rows exact to the last rounding.
    return jax.nn.softmax(logits + column, axis=1)
