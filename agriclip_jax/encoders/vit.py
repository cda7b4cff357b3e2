"""The image tower: one Vision Transformer family (arXiv 2010.11929), from Ti to bigG."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from agriclip_jax.encoders import layers
from agriclip_jax.errors import UserError

# width, depth, heads, mlp: arXiv 2010.11929 table 1, 2106.04560 table 2 (g), 2305.13035 (So400m), OpenCLIP (bigG).
SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "So400m": (1152, 27, 16, 4304),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
    "bigG": (1664, 48, 16, 8192),
}
POOLS = ("cls", "mean", "cls_mean", "attention")
WITH_CLS = ("cls", "cls_mean")  # of them, those that read a class token


class ImageFeatures(NamedTuple):
    """What the image tower gives, before any projection.

    Attributes:
      pooled: [batch, features].
      patches: [batch, patches, width], row-major over the patch grid, after the last layer norm.
    """

    pooled: jax.Array
    patches: jax.Array


@dataclass(frozen=True)
class ViTConfig:
    """A Vision Transformer.

    Attributes:
      blocks: the stack.
      patch: side of a patch, pixels.
      image_size: side of the square image whose grid the position embedding is stored for, pixels.
      embed_dim: width of the shared embedding space; 0 leaves the projection out (LiT).
      projection_bias: bias of the projection (an affine map into another tower's space has one).
      pool: "cls", the class token; "mean" of the patches; "cls_mean", the two side by side; or "attention".
      head_blocks: further blocks of the same size behind the last layer norm, with a layer norm of their own: the head
        of dino.txt (arXiv 2412.16334), which trains on a tower that is locked.
      registers: extra learned tokens that belong to no patch (arXiv 2309.16588).
      token_keep: share of the patches kept in training, drawn anew for each image (FLIP, arXiv 2212.00794).
      pre_norm: layer norm before the first block (CLIP).
      patch_bias: bias of the patch embedding (CLIP has none).
      rotary_base: base of the wavelengths of rotary position embeddings (DINOv3: 100), which then stand in for the
        learned ones; 0 leaves them out.
      antialias: how learned positions are interpolated to another grid; see `interpolate_positions`.
      mask_token: whether there is a learned token that takes the place of hidden patches (iBOT, arXiv 2111.07832).
      mean, std: of each colour channel, in [0, 1], taken off before the first layer.
    """

    blocks: layers.BlockConfig
    patch: int
    image_size: int
    embed_dim: int = 512
    projection_bias: bool = False
    pool: str = "cls"
    head_blocks: int = 0
    registers: int = 0
    token_keep: float = 1.0
    pre_norm: bool = False
    patch_bias: bool = True
    rotary_base: float = 0.0
    antialias: bool = True
    mask_token: bool = False
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def grid(self) -> int:
        """Patches along one side at `image_size`."""
        return self.image_size // self.patch

    @property
    def features(self) -> int:
        """Width of the pooled features."""
        return self.blocks.width * (2 if self.pool == "cls_mean" else 1)

    @property
    def head(self) -> layers.BlockConfig:
        """The stack of the head: nothing is adapted in it, and none of it dropped."""
        plain = {"drop_path": 0.0, "pfeiffer": 0, "houlsby": 0, "prefix": 0, "prompts": 0, "lora": 0, "gated": False}
        return replace(self.blocks, depth=self.head_blocks, **plain)


class ViT(nnx.Module):
    """Vision Transformer with optional class token, registers and projection; mutates nothing."""

    def __init__(self, config: ViTConfig, rngs: nnx.Rngs):
        width = config.blocks.width
        normal = nnx.initializers.truncated_normal(0.02)
        self.config = config
        self.patch = layers.linear(config.patch**2 * 3, width, config.blocks, rngs, bias=config.patch_bias)
        if not config.rotary_base:
            self.positions = nnx.Param(sinusoids(config.grid, width))
        elif width % (4 * config.blocks.heads):
            raise UserError(
                f"{config.blocks.heads} heads of a tower of width {width} cannot have rotary positions: "
                "each needs a multiple of 4 channels"
            )
        if config.pool in WITH_CLS:
            self.cls = nnx.Param(normal(rngs.params(), (1, width)))
        if config.registers:
            self.registers = nnx.Param(normal(rngs.params(), (config.registers, width)))
        if config.mask_token:
            self.mask = nnx.Param(jnp.zeros((1, width)))
        if config.pre_norm:
            self.norm_pre = layers.LayerNorm(config.blocks, rngs)
        self.blocks = layers.stack(config.blocks, rngs)
        self.norm = layers.LayerNorm(config.blocks, rngs)
        if config.head_blocks:
            self.head_blocks = layers.stack(config.head, rngs)
            self.head_norm = layers.LayerNorm(config.blocks, rngs)
        if config.pool == "attention":
            self.head = layers.AttentionPool(config.blocks, rngs)
        if config.embed_dim:
            self.projection = layers.linear(
                config.features, config.embed_dim, config.blocks, rngs, bias=config.projection_bias
            )

    def __call__(
        self, images: jax.Array, *, key: jax.Array | None = None, mask: jax.Array | None = None
    ) -> ImageFeatures:
        """Features of images.

        Args:
          images: uint8 [batch, height, width, 3]; sides divisible by the patch, any grid (learned positions are
            interpolated).
          key: randomness of token dropping and stochastic depth; `None` turns both off.
          mask: bool [batch, patches], the patches that the mask token stands in for, before positions are added;
            `None` hides none.
        """
        drop_key, path_key = jax.random.split(key) if key is not None else (None, None)
        x, rotation = self._tokens(images, drop_key, mask)
        x = layers.run(self.blocks, x, self.config.blocks, rotation=rotation, key=path_key)
        return self._pool(layers.run(self.head_blocks, self.norm(x), self.config.head) if self._headed else x)

    def embed(self, pooled: jax.Array) -> jax.Array:
        """The embedding float32 [..., embed_dim] of `pooled` [..., features]: projected, then L2-normalised."""
        return layers.normalise(self.project(pooled))

    def project(self, pooled: jax.Array) -> jax.Array:
        """The same before its length is taken off, float32."""
        return (self.projection(pooled) if self.config.embed_dim else pooled).astype(jnp.float32)

    def attention(self, images: jax.Array) -> jax.Array:
        """Where the pooled feature looks, in the last layer.

        Args:
          images: uint8 [batch, height, width, 3].

        Returns:
          float32 [batch, heads, grid rows, grid columns]: softmax weights from the class token (or, with mean pooling,
          averaged over the patches) to each patch; with attention pooling, the pooling head's own weights.
        """
        config = self.config
        rows, columns = images.shape[1] // config.patch, images.shape[2] // config.patch
        last, x, rotation = self._before_last(images)
        if config.pool == "attention":
            weights, _ = self.head.weights_and_values(self._last_norm(last(x, rotation=rotation)))
        else:
            q, k, _ = last.heads_of(x, rotation)
            logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(logits / q.shape[-1] ** 0.5, axis=-1)[..., -x.shape[1] :]
            weights = weights[:, :, 0] if config.pool in WITH_CLS else weights[:, :, self._extra :].mean(2)
        return weights[..., self._extra :].reshape(*weights.shape[:2], rows, columns)

    def dense(self, images: jax.Array) -> jax.Array:
        """Where each patch lies in the embedding space.

        Each stands for what the pooled feature would be if its last look had been at that patch alone: with attention
        pooling the head's output for it, with mean pooling the patch token itself, both projected. A class token looks
        in the last block: there it is the patch's value (MaskCLIP, arXiv 2112.01071) without the residual and the MLP
        (ClearCLIP, arXiv 2407.12442), through the last layer norm and the projection. Towers trained on photos point
        better so than by the last block's patch tokens, which no loss has tied to texts. Where both are pooled, each
        half is as it would be alone.

        Args:
          images: uint8 [batch, height, width, 3], as for a call.

        Returns:
          float32 [batch, grid rows, grid columns, embed_dim], L2-normalised.
        """
        batch, height, width, _ = images.shape
        last, x, rotation = self._before_last(images)
        patches = self._last_norm(last(x, rotation=rotation))[:, self._extra :]
        if self.config.pool == "attention":
            patches = self.head(patches.reshape(-1, 1, patches.shape[-1]))
        elif self.config.pool in WITH_CLS:
            looked = self._last_norm(last.own_values(x))[:, self._extra :]
            patches = looked if self.config.pool == "cls" else jnp.concatenate([looked, patches], axis=-1)
        return self.embed(patches).reshape(batch, height // self.config.patch, width // self.config.patch, -1)

    def _before_last(self, images: jax.Array) -> tuple[layers.Block, jax.Array, layers.Rotation | None]:
        """The last block, the tokens that enter it, and their rotation."""
        x, rotation = self._tokens(images, None)
        blocks, config = self.blocks, self.config.blocks
        if self._headed:
            x, rotation = self.norm(layers.run(blocks, x, config, rotation=rotation)), None
            blocks, config = self.head_blocks, self.config.head
        if config.depth > 1:
            x = layers.run(jax.tree.map(lambda p: p[:-1], blocks), x, config, rotation=rotation)
        return jax.tree.map(lambda p: p[-1], blocks), x, rotation

    def _last_norm(self, x: jax.Array) -> jax.Array:
        return self.head_norm(x) if self._headed else self.norm(x)

    @property
    def _headed(self) -> bool:
        return self.config.head_blocks > 0

    @property
    def _extra(self) -> int:
        return (self.config.pool in WITH_CLS) + self.config.registers

    def _tokens(
        self, images: jax.Array, key: jax.Array | None, mask: jax.Array | None = None
    ) -> tuple[jax.Array, layers.Rotation | None]:
        """Class, register and patch tokens [batch, tokens, width], some patches hidden or dropped, and where they are.

        Learned positions are added; rotary ones are the second result, for `layers.run`.
        """
        config, patch = self.config, self.config.patch
        batch, height, width, _ = images.shape
        rows, columns = height // patch, width // patch
        # Bytes are moved, and then made numbers: a quarter of the traffic.
        x = images.reshape(batch, rows, patch, columns, patch * 3).swapaxes(2, 3).reshape(batch, rows * columns, -1)
        mean, std = (jnp.tile(jnp.array(of), patch**2) for of in (config.mean, config.std))
        x = self.patch((x.astype(jnp.float32) / 255.0 - mean) / std)
        if mask is not None:
            x = jnp.where(mask[..., None], self.mask[...], x)
        rotary, angles = config.rotary_base, None
        if rotary:
            angles = axial_angles(rows, columns, config.blocks.width // config.blocks.heads, rotary)
        else:
            positions = interpolate_positions(self.positions[...], config.grid, rows, columns, config.antialias)
            x = x + positions
        if key is not None and config.token_keep < 1.0:
            kept = max(1, round(rows * columns * config.token_keep))
            order = jax.random.uniform(key, x.shape[:2])
            chosen = jax.lax.top_k(order, kept)[1]
            x = jnp.take_along_axis(x, chosen[..., None], axis=1)
            angles = angles[chosen] if rotary else None
        extra = [self.cls[...]] if config.pool in WITH_CLS else []
        extra += [self.registers[...]] if config.registers else []
        x = jnp.concatenate([jnp.broadcast_to(e, (batch, *e.shape)) for e in extra] + [x], axis=1)
        x = self.norm_pre(x) if config.pre_norm else x.astype(config.blocks.dtype)
        if not rotary:
            return x, None
        # Tokens of no patch turn by an angle of 0, which leaves them as they are.
        angles = jnp.pad(angles, [(0, 0)] * (angles.ndim - 2) + [(self._extra, 0), (0, 0)])[..., None, :]
        return x, (jnp.cos(angles), jnp.sin(angles))

    def _pool(self, x: jax.Array) -> ImageFeatures:
        """Of what the last block gives; the last norm is of each part by itself, so that none is of what is unread."""
        patches = self._last_norm(x[:, self._extra :])
        pooled = {
            "cls": lambda: self._last_norm(x[:, 0]),
            "mean": lambda: patches.mean(1),
            "cls_mean": lambda: jnp.concatenate([self._last_norm(x[:, 0]), patches.mean(1)], axis=-1),
            "attention": lambda: self.head(self._last_norm(x)),
        }
        return ImageFeatures(pooled[self.config.pool](), patches)


def sinusoids(grid: int, width: int) -> jax.Array:
    """Where the learned position embeddings start: fixed 2-D sine-cosine waves (arXiv 2205.01580, section 2).

    From-scratch towers learn in fewer steps than from small random positions: places differ from the first step on.

    Args:
      grid: side of the patch grid.
      width: channels, a multiple of 4.

    Returns:
      float32 [grid * grid, width], row-major; a quarter of the channels each: sin and cos of column, of row.
    """
    frequencies = 1.0 / 10_000.0 ** jnp.linspace(0.0, 1.0, width // 4)
    rows, columns = jnp.divmod(jnp.arange(grid**2), grid)
    angles = [place[:, None] * frequencies for place in (columns, rows)]
    return jnp.concatenate([wave(angle) for angle in angles for wave in (jnp.sin, jnp.cos)], axis=1)


def axial_angles(rows: int, columns: int, head_width: int, base: float) -> jax.Array:
    """Angles of rotary position embeddings on a grid (DINOv3, arXiv 2508.10104, section 3.2).

    A patch's place is its centre, each axis running from -1 to 1 over the image whatever the grid.

    Args:
      rows, columns: of the grid.
      head_width: channels of a head, a multiple of 4.
      base: plane i of an axis turns by 2 pi * place / base^(4 i / head_width).

    Returns:
      float32 [rows * columns, head_width / 2], row-major: the planes of the rows, then those of the columns.
    """
    frequencies = 2 * jnp.pi / base ** (jnp.arange(head_width // 4) * 4 / head_width)
    centres = [(2 * jnp.arange(n) + 1) / n - 1 for n in (rows, columns)]
    places = jnp.stack(jnp.meshgrid(*centres, indexing="ij"), axis=-1)
    return (places[..., None] * frequencies).reshape(rows * columns, -1)


def interpolate_positions(
    positions: jax.Array, grid: int, rows: int, columns: int, antialias: bool = True
) -> jax.Array:
    """Position embeddings of another grid, so that global and local views share one tower.

    Args:
      positions: float32 [grid * grid, width], row-major.
      grid: side of the stored grid.
      rows, columns: of the wanted grid.
      antialias: True: bicubic (a = -0.5) with antialiasing, as timm and open_clip do; False: torch's plain bicubic
        (a = -0.75), as transformers does.

    Returns:
      float32 [rows * columns, width]: unchanged when the grids agree.
    """
    if (rows, columns) == (grid, grid):
        return positions
    square = positions.reshape(grid, grid, -1)
    if antialias:
        return jax.image.resize(square, (rows, columns, square.shape[-1]), "cubic").reshape(rows * columns, -1)
    down, across = plain_bicubic(grid, rows), plain_bicubic(grid, columns)
    return jnp.einsum("rg,gkw,ck->rcw", down, square, across, precision="highest").reshape(rows * columns, -1)


def plain_bicubic(old: int, new: int) -> np.ndarray:
    """Weights float32 [new, old] of cubic convolution with a = -0.75 (R. Keys 1981), edges repeated."""
    places = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(places).astype(int)[:, None] + np.arange(-1, 3)
    x, a = np.abs(places[:, None] - taps), -0.75
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    weights = np.zeros((new, old), np.float32)
    np.add.at(weights, (np.arange(new)[:, None], taps.clip(0, old - 1)), np.where(x <= 1, near, far))
    return weights
