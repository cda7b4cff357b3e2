"""The text tower: a causal transformer pooled at its end token (CLIP), or a bidirectional one."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from agriclip_jax.encoders import layers

POOLS = ("end", "mean", "last")


@dataclass(frozen=True)
class TextConfig:
    """A text transformer.

    Attributes:
      blocks: the stack.
      vocab_size: rows of the token embedding.
      context_length: tokens of a caption, start and end included.
      end_id: the token that ends a caption; what follows its first occurrence is padding.
      embed_dim: width of the shared embedding space.
      causal: token i attends to tokens <= i (CLIP, arXiv 2103.00020 section 2.4); else to all but padding.
      pool: "end": feature at the end token; "mean": over the tokens up to it; "last": at the last position (SigLIP).
      projection_bias: bias of the projection (SigLIP has one).
    """

    blocks: layers.BlockConfig
    vocab_size: int
    context_length: int
    end_id: int
    embed_dim: int = 512
    causal: bool = True
    pool: str = "end"
    projection_bias: bool = False


class TextTransformer(nnx.Module):
    """Token and position embeddings, a stack of blocks, a pool and a projection; mutates nothing."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        width = config.blocks.width
        self.config = config
        self.tokens = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (config.vocab_size, width)))
        self.positions = nnx.Param(nnx.initializers.normal(0.01)(rngs.params(), (config.context_length, width)))
        self.blocks = layers.stack(config.blocks, rngs)
        self.norm = layers.LayerNorm(config.blocks, rngs)
        self.projection = layers.linear(width, config.embed_dim, config.blocks, rngs, bias=config.projection_bias)

    def __call__(self, tokens: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Pooled features [batch, width] of token ids int32 [batch, length], length <= context_length."""
        config = self.config
        lengths = jnp.argmax(tokens == config.end_id, axis=1) + 1
        x = self.tokens[...][tokens] + self.positions[: tokens.shape[1]]
        # What follows the end is out of sight of the tokens before it, but not of gates, which are means over tokens.
        unmasked = (config.causal and not config.blocks.gated) or config.pool == "last"
        x = layers.run(
            self.blocks, x, config.blocks, causal=config.causal, lengths=None if unmasked else lengths, key=key
        )
        x = self.norm(x)
        if config.pool == "last":
            return x[:, -1]
        if config.pool == "end":
            return jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
        real = (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]
        return jnp.sum(x * real, axis=1) / lengths[:, None].astype(x.dtype)

    def embed(self, pooled: jax.Array) -> jax.Array:
        """The embedding float32 [..., embed_dim] of `pooled` [..., width]: projected, then L2-normalised."""
        return layers.normalise(self.project(pooled))

    def project(self, pooled: jax.Array) -> jax.Array:
        """The same before its length is taken off, float32."""
        return self.projection(pooled).astype(jnp.float32)
