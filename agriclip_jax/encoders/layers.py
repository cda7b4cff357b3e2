"""What every tower is made of: pre-norm transformer blocks, stacked and scanned, and attention pooling."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


def swiglu(x: jax.Array) -> jax.Array:
    """Gate and value side by side [..., 2 * mlp] to the gated value [..., mlp] (arXiv 2002.05202, section 2)."""
    gate, value = jnp.split(x, 2, axis=-1)
    return jax.nn.silu(gate) * value


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI CLIP
    "swiglu": swiglu,
}

REMAT_POLICIES: dict[str, Callable | None] = {
    "none": None,
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "dots_saveable": jax.checkpoint_policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

# Cosines and sines, as `rotate` takes them, by which the queries and keys of a stack turn.
Rotation = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class BlockConfig:
    """One transformer block and how its stack runs.

    Attributes:
      width: channels.
      depth: number of blocks in the stack.
      heads: attention heads; divides `width`.
      mlp: hidden width of the MLP; with "swiglu" that of its gate and that of its value.
      activation: a name in `ACTIVATIONS`.
      norm_eps: epsilon of every layer norm.
      layer_scale: initial LayerScale gain (CaiT, arXiv 2103.17239); 0 leaves it out.
      drop_path: stochastic-depth rate of the last block, growing linearly from 0 (arXiv 1603.09382).
      dtype: compute dtype; parameters, layer norms and softmax stay float32.
      remat: a name in `REMAT_POLICIES`: what the backward pass keeps of each block.
      unroll: blocks unrolled per scan iteration; 0 unrolls them all (faster on a CPU, compiles longer).
      attention: implementation of `jax.nn.dot_product_attention`, `None` letting JAX choose.
      pfeiffer: bottleneck of an adapter after the block (arXiv 2005.00247); 0 leaves it out, as the next ones.
      houlsby: bottleneck of two adapters, after attention and after the MLP (arXiv 1902.00751).
      prefix: learned keys and values that stand before the tokens' (arXiv 2101.00190).
      prompts: learned tokens that stand before a block's own and are dropped behind it (VPT-Deep, arXiv 2203.12119).
      lora: rank of what is added to the query-key-value projection (arXiv 2106.09685).
      gated: whether `pfeiffer`, `prefix` and `lora` each count by a learned share (UniPELT, arXiv 2110.07577).
    """

    width: int
    depth: int
    heads: int
    mlp: int
    activation: str = "gelu"
    norm_eps: float = 1e-6
    layer_scale: float = 0.0
    drop_path: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1
    attention: str | None = None
    pfeiffer: int = 0
    houlsby: int = 0
    prefix: int = 0
    prompts: int = 0
    lora: int = 0
    gated: bool = False


class Dense(nnx.Linear):
    """A dense layer of [..., inputs] to [..., outputs], its leading axes merged into rows.

    XLA's CPU backend transposes less for the gradient of a matrix product than for that of a batched one.
    """

    def __call__(self, x: jax.Array) -> jax.Array:
        rows, kernel = self.promote_dtype((x.reshape(-1, x.shape[-1]), self.kernel[...]), dtype=self.dtype)
        y = rows @ kernel
        if self.bias is not None:  # in float32, for its gradient is a sum over all rows
            y = (y + self.bias[...]).astype(y.dtype)
        return y.reshape(*x.shape[:-1], self.out_features)


class LayerNorm(nnx.LayerNorm):
    """A layer norm in float32, its parameters too, whatever dtype it takes and gives."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        super().__init__(config.width, epsilon=config.norm_eps, dtype=jnp.float32, rngs=rngs)
        self.gives = config.dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x).astype(self.gives)


NORMAL, ZEROS = nnx.initializers.lecun_normal(), nnx.initializers.zeros_init()


def linear(
    inputs: int, outputs: int, config: BlockConfig, rngs: nnx.Rngs, *, bias: bool = True, init: Any = NORMAL
) -> Dense:
    """A dense layer with float32 parameters that computes in `config.dtype`; truncated normal, std 1/sqrt(fan in)."""
    return Dense(
        inputs,
        outputs,
        use_bias=bias,
        dtype=config.dtype,
        kernel_init=init,
        rngs=rngs,
    )


def learned(config: BlockConfig, rngs: nnx.Rngs, *shape: int) -> nnx.Param:
    """Vectors float32 [*shape, width], normal with a standard deviation of 0.02."""
    return nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (*shape, config.width)))


def share(gates: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """What parts count for (UniPELT, arXiv 2110.07577, section 3.2), one half where its gate is 0.

    Args:
      gates: [batch, tokens, parts].
      lengths: as for `run`; the others' gates do not count.

    Returns:
      [batch, 1, parts]: the mean over the tokens of the sigmoid.
    """
    real = None if lengths is None else (jnp.arange(gates.shape[1]) < lengths[:, None])[..., None]
    opened = jax.nn.sigmoid(gates.astype(jnp.float32))
    return jnp.mean(opened, axis=1, keepdims=True, where=real).astype(gates.dtype)


class Adapter(nnx.Module):
    """A bottleneck beside a skip, `x + up(gelu(down(x)))`, at first the identity (arXiv 1902.00751, section 2.1)."""

    def __init__(self, config: BlockConfig, bottleneck: int, rngs: nnx.Rngs, *, norm: bool, gated: bool):
        self.down = linear(config.width, bottleneck, config, rngs)
        self.up = linear(bottleneck, config.width, config, rngs, init=ZEROS)
        self.has_norm, self.gated = norm, gated
        if norm:
            self.norm = LayerNorm(config, rngs)
        if gated:
            self.gate = linear(config.width, 1, config, rngs, init=ZEROS)

    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """Maps [batch, tokens, width] to that shape."""
        y = self.norm(x) if self.has_norm else x
        added = self.up(ACTIVATIONS["gelu"](self.down(y)))
        return x + (added * share(self.gate(y), lengths) if self.gated else added)


class Attention(nnx.Module):
    """Multi-head self-attention with one fused query-key-value projection (arXiv 1706.03762, section 3.2)."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        # A tower without a key bias (DINOv3) has zeros there: the same function, though training may move them.
        self.qkv = linear(config.width, 3 * config.width, config, rngs)
        self.out = linear(config.width, config.width, config, rngs)
        self.config = config
        if config.prefix:
            self.prefix = learned(config, rngs, 2, config.prefix)
        if config.lora:
            self.lora_a = linear(config.width, config.lora, config, rngs, bias=False)
            self.lora_b = linear(config.lora, 3 * config.width, config, rngs, bias=False, init=ZEROS)
        if config.gated:
            self.gates = linear(config.width, 2, config, rngs, init=ZEROS)

    def heads_of(
        self,
        x: jax.Array,
        rotation: Rotation | None = None,
        lengths: jax.Array | None = None,
        prompts: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key (both turned) and value of tokens.

        Args:
          x: like a block's, after its first layer norm.
          rotation, lengths: as for `run`.
          prompts: [prompts, width], tokens before those of `x` that are looked at and do not look.

        Returns:
          [batch, tokens, heads, width / heads], and twice the same with a prefix or prompts before the tokens.
        """
        config, projected = self.config, self.qkv(x)
        shares = jnp.split(share(self.gates(x), lengths), 2, axis=-1) if config.gated else (1, 1)
        if config.lora:
            projected = projected + shares[1] * self.lora_b(self.lora_a(x))
        split = lambda y: y.reshape(*y.shape[:-1], config.heads, -1)  # noqa: E731
        q, k, v = map(split, jnp.split(projected, 3, axis=-1))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        if config.prefix or prompts is not None:
            # Nothing reads what a block makes of its prompts, so that keys and values are all there is of them.
            before = self.prefix[...] if config.prefix else jnp.split(self.qkv(prompts), 3, axis=-1)[1:]
            before = (jnp.broadcast_to(y.astype(x.dtype), (len(x), *y.shape)) * shares[0] for y in before)
            k, v = (jnp.concatenate([split(y), z], axis=1) for y, z in zip(before, (k, v), strict=True))
        return q, k, v

    def __call__(
        self,
        x: jax.Array,
        *,
        causal: bool,
        lengths: jax.Array | None,
        rotation: Rotation | None,
        prompts: jax.Array | None,
    ) -> jax.Array:
        q, k, v = self.heads_of(x, rotation, lengths, prompts)
        mask, before = None, k.shape[1] - q.shape[1]
        if before:
            # Every token may look at what stands before the first; JAX's own causal mask counts from there.
            mask = jnp.tril(jnp.ones((1, 1, q.shape[1], k.shape[1]), bool), before) if causal else None
            lengths = None if lengths is None else lengths + before
        y = jax.nn.dot_product_attention(
            q,
            k,
            v,
            mask=mask,
            is_causal=causal and not before,
            key_value_seq_lengths=lengths,
            implementation=self.config.attention,
        )
        return self.out(y.reshape(x.shape))


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each head's channels i and i + half as one plane (arXiv 2104.09864, section 3.2); float32 inside.

    Args:
      x: [batch, tokens, heads, head width].
      cos, sin: float32 [..., tokens, 1, head width / 2], of each plane's angle.
    """
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Mlp(nnx.Module):
    """Two dense layers with an activation between them."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.up = linear(config.width, config.mlp * (2 if config.activation == "swiglu" else 1), config, rngs)
        self.down = linear(config.mlp, config.width, config, rngs)
        self.activation = config.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
    """Pre-norm block: `x += s1 * attention(norm1(x)); x += s2 * mlp(norm2(x))` (arXiv 2010.11929, equations 2-3)."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(config, rngs)
        self.attention = Attention(config, rngs)
        self.norm2 = LayerNorm(config, rngs)
        self.mlp = Mlp(config, rngs)
        if config.layer_scale:
            self.scale1 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))
            self.scale2 = nnx.Param(jnp.full(config.width, config.layer_scale, jnp.float32))
        self.config = config
        if config.houlsby:
            self.adapter1 = Adapter(config, config.houlsby, rngs, norm=False, gated=False)
            self.adapter2 = Adapter(config, config.houlsby, rngs, norm=False, gated=False)
        if config.pfeiffer:
            self.adapter = Adapter(config, config.pfeiffer, rngs, norm=True, gated=config.gated)
        if config.prompts:
            self.prompts = learned(config, rngs, config.prompts)

    def __call__(
        self,
        x: jax.Array,
        *,
        causal: bool = False,
        lengths: jax.Array | None = None,
        rotation: Rotation | None = None,
        keep: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Maps [batch, tokens, width] to that shape; `keep`: drop path's gains [batch, 1, 1] of the two residuals."""
        attended = self.attention(
            self.norm1(x), causal=causal, lengths=lengths, rotation=rotation, prompts=self._prompts
        )
        attended = self.adapter1(attended, lengths) if self.config.houlsby else attended
        x = x + self._gain(attended, 0, keep)
        y = self.mlp(self.norm2(x))
        x = x + self._gain(self.adapter2(y, lengths) if self.config.houlsby else y, 1, keep)
        return self.adapter(x, lengths) if self.config.pfeiffer else x

    def heads_of(self, x: jax.Array, rotation: Rotation | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What its attention compares, of `x` [batch, tokens, width]: see `Attention.heads_of`."""
        return self.attention.heads_of(self.norm1(x), rotation, prompts=self._prompts)

    def own_values(self, x: jax.Array) -> jax.Array:
        """What attention would add to each token of `x` [batch, tokens, width] if every token saw itself alone."""
        _, _, values = self.heads_of(x)
        attended = self.attention.out(values[:, -x.shape[1] :].reshape(x.shape))
        return self._gain(self.adapter1(attended, None) if self.config.houlsby else attended, 0, None)

    @property
    def _prompts(self) -> jax.Array | None:
        return self.norm1(self.prompts[...]) if self.config.prompts else None

    def _gain(self, y: jax.Array, which: int, keep: tuple[jax.Array, jax.Array] | None) -> jax.Array:
        gain = (self.scale2 if which else self.scale1)[...] if self.config.layer_scale else 1
        return (y * gain * (1 if keep is None else keep[which])).astype(y.dtype)


def stack(config: BlockConfig, rngs: nnx.Rngs) -> Block:
    """`config.depth` independently initialised blocks as one, every parameter with a leading axis of `depth`."""

    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=0, out_axes=0)
    def build(rngs: nnx.Rngs) -> Block:
        return Block(config, rngs)

    return build(rngs)


def run(
    blocks: Block,
    x: jax.Array,
    config: BlockConfig,
    *,
    causal: bool = False,
    lengths: jax.Array | None = None,
    rotation: Rotation | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """Scans a stack over `x`.

    Args:
      blocks: what `stack` returned, or any slice of it along the leading axis.
      x: [batch, tokens, width].
      config: of the stack.
      causal: token i attends to tokens <= i.
      lengths: int32 [batch], tokens of each row that may be attended to; `None` for all.
      rotation: of every block's queries and keys; `None` turns none.
      key: randomness of stochastic depth; `None` (evaluation, the teacher) keeps every block.

    Returns:
      [batch, tokens, width] in `config.dtype`.
    """
    depth = jax.tree.leaves(blocks)[0].shape[0]
    drops = config.drop_path > 0 and key is not None
    rates = jnp.linspace(0.0, config.drop_path, depth)
    keys = jax.random.split(key, depth) if drops else None

    def body(x: jax.Array, layer: tuple) -> tuple[jax.Array, None]:
        block, rate, block_key = layer
        keep = None
        if drops:
            kept = jax.random.bernoulli(block_key, 1 - rate, (2, x.shape[0], 1, 1))
            keep = tuple(kept / (1 - rate))
        return block(x, causal=causal, lengths=lengths, rotation=rotation, keep=keep), None

    if config.remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[config.remat])
    x, _ = jax.lax.scan(body, x.astype(config.dtype), (blocks, rates, keys), unroll=config.unroll or depth)
    return x


class AttentionPool(nnx.Module):
    """Multi-head attention pooling with one learned query, then a residual MLP (arXiv 2106.04560, appendix)."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, config.width)))
        self.query = linear(config.width, config.width, config, rngs)
        self.key_value = linear(config.width, 2 * config.width, config, rngs)
        self.out = linear(config.width, config.width, config, rngs)
        self.norm = LayerNorm(config, rngs)
        self.mlp = Mlp(config, rngs)
        self.heads = config.heads

    def weights_and_values(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Softmax weights float32 [batch, heads, tokens] and values [batch, tokens, heads, head width] of `x`."""
        split = lambda y: y.reshape(*y.shape[:-1], self.heads, -1)  # noqa: E731
        query = split(self.query(self.probe[...]))[0]
        keys, values = map(split, jnp.split(self.key_value(x), 2, axis=-1))
        logits = jnp.einsum("hd,bthd->bht", query, keys, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits / query.shape[-1] ** 0.5, axis=-1), values

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pools [batch, tokens, width] to [batch, width]."""
        weights, values = self.weights_and_values(x)
        pooled = jnp.einsum("bht,bthd->bhd", weights.astype(values.dtype), values)
        pooled = self.out(pooled.reshape(x.shape[0], -1))
        return pooled + self.mlp(self.norm(pooled))


def normalise(x: jax.Array, eps: float = 1e-12) -> jax.Array:
    """Rows of `x` [..., width] scaled to unit L2 norm, float32; finite, value and gradient, also for a zero row."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps))
