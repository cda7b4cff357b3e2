"""ResNet image towers (arXiv 1512.03385): CLIP's with attention pooling, and the plain one with mean pooling.

Batch norms always use their stored statistics, as when a pretrained tower is fine-tuned on small batches. The
statistics lie in the tree beside the gains, as `norm/mean` and `norm/var`; an optimiser must leave them where they are.
So these towers are for pretrained weights: from fresh ones they train without any normalisation.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from agriclip_jax.encoders import layers, vit

STEMS = ("clip", "plain")
POOLS = ("attention", "mean")
EXPANSION = 4  # channels of a bottleneck's output for each of its own
STRIDE = 32  # pixels along one side of a cell
EPS = 1e-5  # of every batch norm

HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")  # arXiv 1502.01852


@dataclass(frozen=True)
class ResNetConfig:
    """A ResNet of bottleneck blocks.

    Attributes:
      layers: blocks of each of the four stages.
      width: channels of the stem's output; the features have 32 times as many.
      heads: of the attention pool; divides the features' width.
      image_size: side of the square image whose grid the pool's positions are stored for, pixels.
      embed_dim: width of the shared embedding space; 0 leaves the projection out.
      projection_bias: bias of the projection (CLIP's ResNets have one, its transformers none).
      stem: "clip": three 3 x 3 convolutions and average pools wherever the net halves its grid (arXiv 2103.00020,
        section 2.4); "plain": one 7 x 7 convolution, a max pool, and strides in the 3 x 3 convolutions (ResNet v1.5).
      pool: "attention": a query from the mean cell (CLIP); "mean".
      dtype: compute dtype; parameters, batch norms and softmax stay float32.
      unroll: blocks of a stage unrolled per scan iteration; 0 unrolls them all (gradients on a CPU: many times faster).
      mean, std: of each colour channel, in [0, 1], taken off before the first layer.
    """

    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    width: int = 64
    heads: int = 32
    image_size: int = 224
    embed_dim: int = 1024
    projection_bias: bool = True
    stem: str = "clip"
    pool: str = "attention"
    dtype: str = "float32"
    unroll: int = 1
    mean: tuple[float, float, float] = vit.ViTConfig.mean
    std: tuple[float, float, float] = vit.ViTConfig.std

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return 8 * EXPANSION * self.width

    @property
    def grid(self) -> int:
        """Cells along one side at `image_size`."""
        return self.image_size // STRIDE


# CLIP's released towers (arXiv 2103.00020, table 19), and the backbone of DINO's ResNet-50 (arXiv 2104.14294).
CONFIGS = {
    "RN50": ResNetConfig(),
    "RN101": ResNetConfig((3, 4, 23, 3), embed_dim=512),
    "RN50x4": ResNetConfig((4, 6, 10, 6), 80, 40, 288, 640),
    "RN50x16": ResNetConfig((6, 8, 18, 8), 96, 48, 384, 768),
    "RN50x64": ResNetConfig((3, 15, 36, 10), 128, 64, 448, 1024),
    "ResNet50": ResNetConfig(
        embed_dim=0, stem="plain", pool="mean", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    ),
}


class FrozenBatchNorm(nnx.Module):
    """`(x - mean) / sqrt(var + eps) * scale + bias` by stored statistics (arXiv 1502.03167), computed in float32."""

    def __init__(self, width: int, scale: float):
        self.scale = nnx.Param(jnp.full(width, scale))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.Param(jnp.zeros(width))
        self.var = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        gain = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPS)
        return ((x - self.mean[...]) * gain + self.bias[...]).astype(x.dtype)


class ConvNorm(nnx.Module):
    """A square convolution, padded alike on all sides, then a batch norm; maps [batch, rows, columns, channels]."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        config: ResNetConfig,
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        scale: float = 1.0,
    ):
        # Not "SAME", which with a stride of 2 pads one side only.
        self.conv = nnx.Conv(
            inputs,
            outputs,
            (size, size),
            strides=stride,
            padding=size // 2,
            use_bias=False,
            dtype=config.dtype,
            kernel_init=HE,
            rngs=rngs,
        )
        self.norm = FrozenBatchNorm(outputs, scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class Bottleneck(nnx.Module):
    """`relu(shortcut(x) + expand(relu(spatial(relu(reduce(x))))))` (arXiv 1512.03385, figure 5).

    A fresh block starts as its shortcut: the last gain is 0 (arXiv 1706.02677, section 5.1).
    """

    def __init__(self, inputs: int, width: int, stride: int, config: ResNetConfig, rngs: nnx.Rngs):
        outputs = EXPANSION * width
        self.halves = stride > 1 and config.stem == "clip"
        stride = 1 if self.halves else stride
        self.reduce = ConvNorm(inputs, width, 1, config, rngs)
        self.spatial = ConvNorm(width, width, 3, config, rngs, stride=stride)
        self.expand = ConvNorm(width, outputs, 1, config, rngs, scale=0.0)
        self.has_shortcut = inputs != outputs
        if self.has_shortcut:
            self.shortcut = ConvNorm(inputs, outputs, 1, config, rngs, stride=stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.relu(self.spatial(jax.nn.relu(self.reduce(x))))
        if self.halves:
            x, y = halve(x), halve(y)
        return jax.nn.relu(self.expand(y) + (self.shortcut(x) if self.has_shortcut else x))


class Stage(nnx.Module):
    """A first block, which widens and may halve the grid; then blocks alike, each parameter with a leading axis."""

    def __init__(self, inputs: int, width: int, stride: int, depth: int, config: ResNetConfig, rngs: nnx.Rngs):
        self.first = Bottleneck(inputs, width, stride, config, rngs)
        self.rest = depth - 1
        self.unroll = config.unroll or max(1, self.rest)

        @nnx.split_rngs(splits=self.rest)
        @nnx.vmap(in_axes=0, out_axes=0)
        def build(rngs: nnx.Rngs) -> Bottleneck:
            return Bottleneck(EXPANSION * width, width, 1, config, rngs)

        if self.rest:
            self.blocks = build(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.first(x)
        if self.rest:
            x, _ = jax.lax.scan(lambda x, block: (block(x), None), x, self.blocks, unroll=self.unroll)
        return x


class AttentionPool(nnx.Module):
    """CLIP's multi-head attention pooling: the mean cell asks, itself and every cell answer (arXiv 2103.00020, 2.4)."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        width = config.features
        normal = nnx.initializers.normal(width**-0.5)
        self.positions = nnx.Param(normal(rngs.params(), (1 + config.grid**2, width)))  # the mean cell's first
        self.query = layers.Dense(width, width, dtype=config.dtype, rngs=rngs)
        self.key = layers.Dense(width, width, dtype=config.dtype, rngs=rngs)
        self.value = layers.Dense(width, width, dtype=config.dtype, rngs=rngs)
        self.grid, self.heads = config.grid, config.heads

    def tokens(self, x: jax.Array) -> jax.Array:
        """The mean cell and the cells of `x` [batch, rows, columns, width], positions added."""
        batch, rows, columns, width = x.shape
        x = x.reshape(batch, rows * columns, width)
        positions = self.positions[...]
        cells = vit.interpolate_positions(positions[1:], self.grid, rows, columns)
        positions = jnp.concatenate([positions[:1], cells]).astype(x.dtype)
        return jnp.concatenate([x.mean(1, keepdims=True), x], axis=1) + positions

    def weights(self, tokens: jax.Array) -> jax.Array:
        """Softmax weights float32 [batch, heads, tokens] of what `tokens` returned, the mean cell's first."""
        query, keys = self._split(self.query(tokens[:, 0])), self._split(self.key(tokens))
        logits = jnp.einsum("bhd,bthd->bht", query, keys, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits / query.shape[-1] ** 0.5, axis=-1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools [batch, rows, columns, width] to [batch, width]: the attended value."""
        tokens = self.tokens(x)
        values = self._split(self.value(tokens))
        weights = self.weights(tokens).astype(values.dtype)
        return jnp.einsum("bht,bthd->bhd", weights, values).reshape(x.shape[0], -1)

    def _split(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.heads, -1)


class ResNet(nnx.Module):
    """A stem, four stages, a pool and an optional projection; mutates nothing, batch statistics included."""

    def __init__(self, config: ResNetConfig, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        # Names are strings, as everywhere in a parameter tree: an `nnx.List` would number its entries.
        if config.stem == "clip":
            sizes = ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
            stem = [ConvNorm(i, o, 3, config, rngs, stride=stride) for i, o, stride in sizes]
        else:
            stem = [ConvNorm(3, width, 7, config, rngs, stride=2)]
        self.stem = nnx.Dict({str(i): conv for i, conv in enumerate(stem)})
        self.stages = nnx.Dict()
        inputs = width
        for i, depth in enumerate(config.layers):
            self.stages[str(i)] = Stage(inputs, width * 2**i, 2 if i else 1, depth, config, rngs)
            inputs = EXPANSION * width * 2**i
        if config.pool == "attention":
            self.head = AttentionPool(config, rngs)
        if config.embed_dim:
            self.projection = layers.Dense(
                inputs, config.embed_dim, use_bias=config.projection_bias, dtype=config.dtype, rngs=rngs
            )

    def __call__(self, images: jax.Array, *, key: jax.Array | None = None) -> vit.ImageFeatures:
        """Features of images: `pooled` before the projection, and the last stage's cells as `patches`.

        Args:
          images: uint8 [batch, height, width, 3]; any sides from 32 on (positions are interpolated).
          key: not used: a ResNet draws nothing.
        """
        x = self._cells(images)
        patches = x.reshape(x.shape[0], -1, x.shape[-1])
        return vit.ImageFeatures(self.head(x) if self.config.pool == "attention" else patches.mean(1), patches)

    def embed(self, pooled: jax.Array) -> jax.Array:
        """The embedding float32 [..., embed_dim] of `pooled` [..., width]: projected, then L2-normalised."""
        return layers.normalise(self.project(pooled))

    def project(self, pooled: jax.Array) -> jax.Array:
        """The same before its length is taken off, float32."""
        return (self.projection(pooled) if self.config.embed_dim else pooled).astype(jnp.float32)

    def attention(self, images: jax.Array) -> jax.Array:
        """Where the pooled feature comes from.

        Args:
          images: uint8 [batch, height, width, 3].

        Returns:
          float32 [batch, heads, grid rows, grid columns]: the attention pool's softmax weights of each cell. A mean has
          none: there, as one head, each cell's share of the pooled feature's squared length, <cell, pooled> over its
          sum. Features after a ReLU are not negative, so the shares are not either.
        """
        x = self._cells(images)
        if self.config.pool == "attention":
            weights = self.head.weights(self.head.tokens(x))[..., 1:]
        else:
            cells = x.reshape(x.shape[0], 1, -1, x.shape[-1]).astype(jnp.float32)
            weights = jnp.einsum("bhcw,bhw->bhc", cells, cells.mean(2))
            weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-12)
        return weights.reshape(*weights.shape[:2], *x.shape[1:3])

    def dense(self, images: jax.Array) -> jax.Array:
        """Where each cell lies in the embedding space: what the pooled feature would be if it came from it alone.

        With attention pooling that is the cell's value, projected (MaskCLIP, arXiv 2112.01071); with mean pooling the
        cell itself.

        Args:
          images: uint8 [batch, height, width, 3], as for a call.

        Returns:
          float32 [batch, grid rows, grid columns, embed_dim], L2-normalised.
        """
        x = self._cells(images)
        if self.config.pool == "attention":
            x = self.head.value(self.head.tokens(x)[:, 1:]).reshape(x.shape)
        return self.embed(x)

    def _cells(self, images: jax.Array) -> jax.Array:
        """The last stage's output [batch, rows, columns, width]."""
        config = self.config
        x = (images.astype(jnp.float32) / 255.0 - jnp.array(config.mean)) / jnp.array(config.std)
        for conv in self.stem.values():
            x = jax.nn.relu(conv(x))
        # Padding is minus infinity, as in torch.
        x = halve(x) if config.stem == "clip" else nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for stage in self.stages.values():
            x = stage(x)
        return x


def halve(x: jax.Array) -> jax.Array:
    """The mean of each 2 x 2 values of [batch, rows, columns, channels]; an odd last row or column is left out."""
    return nnx.avg_pool(x, (2, 2), strides=(2, 2))
