"""The DINO projection head (arXiv 2104.14294, section 3.1 and appendix C)."""

import jax
import jax.numpy as jnp
from flax import nnx

from agriclip_jax.encoders import layers


class DinoHead(nnx.Module):
    """MLP with a bottleneck, L2 normalisation, a weight-normalised linear layer of unit gain: logits are cosines."""

    def __init__(
        self, width: int, *, hidden: int = 2048, bottleneck: int = 256, prototypes: int = 65536, rngs: nnx.Rngs
    ):
        def dense(inputs: int, outputs: int) -> layers.Dense:
            return layers.Dense(inputs, outputs, kernel_init=nnx.initializers.truncated_normal(0.02), rngs=rngs)

        self.layer1 = dense(width, hidden)
        self.layer2 = dense(hidden, hidden)
        self.layer3 = dense(hidden, bottleneck)
        self.prototypes = nnx.Param(
            nnx.initializers.truncated_normal(0.02)(rngs.params(), (prototypes, bottleneck)),
        )

    def __call__(self, pooled: jax.Array) -> jax.Array:
        """Cosines float32 [..., prototypes] of features [..., width] with the prototypes."""
        x = jax.nn.gelu(self.layer1(pooled.astype(jnp.float32)), approximate=False)
        x = self.layer3(jax.nn.gelu(self.layer2(x), approximate=False))
        # In full float32: the teacher's temperature of 0.04 would magnify what TPUs otherwise round off.
        return jnp.matmul(
            layers.normalise(x), layers.normalise(self.prototypes[...]).T, precision=jax.lax.Precision.HIGHEST
        )
