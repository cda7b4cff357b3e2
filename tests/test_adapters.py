"""What methods add to a block: against dense float64 forward passes, and without effect where a method begins so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx

from agriclip_jax import encoders, rules
from agriclip_jax.encoders import layers, text, vit

PLAIN = layers.BlockConfig(width=16, depth=2, heads=2, mlp=24, norm_eps=1e-5)
METHODS = {
    "pfeiffer": {"pfeiffer": 5},
    "houlsby": {"houlsby": 5},
    "prefix": {"prefix": 3},
    "prompts": {"prompts": 4},
    "unipelt": {"pfeiffer": 5, "prefix": 3, "lora": 2, "gated": True},
}
MASKS = {
    "all tokens": {},
    "causal": {"causal": True},
    "lengths": {"lengths": True},
    "causal, lengths": {"causal": True, "lengths": True},
    "rotary": {"rotation": True},
}


def random(tree, seed=0, scale=0.5):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, scale, x.shape), jnp.float32), tree)


def network(config):
    return encoders.Network(lambda rngs: layers.stack(config, rngs))


# ---- the oracle: one block after the other, one row after the other, one head after the other -----------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gelu(x):
    return x * 0.5 * (1 + scipy.special.erf(x / np.sqrt(2)))


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def norm(p, x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def adapter(p, x, real):
    y = norm(p["norm"], x) if "norm" in p else x
    added = dense(p["up"], gelu(dense(p["down"], y)))
    return x + added * (sigmoid(dense(p["gate"], y))[real].mean() if "gate" in p else 1)


def turned(x, angles):
    first, second = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], 1)


def attention(p, block, x, real, causal, angles):
    y, tokens = norm(block["norm1"], x), len(x)
    projected, before = dense(p["qkv"], y), np.zeros((2, 0, x.shape[1]))
    gates = sigmoid(dense(p["gates"], y))[real].mean(0) if "gates" in p else (1, 1)
    if "lora_a" in p:
        projected = projected + gates[1] * dense(p["lora_b"], dense(p["lora_a"], y))
    if "prefix" in p:
        before = gates[0] * p["prefix"]
    if "prompts" in block:
        before = np.stack(np.split(dense(p["qkv"], norm(block["norm1"], block["prompts"])), 3, axis=1)[1:])
    queries, keys, values = np.split(projected, 3, axis=1)
    wide, out = x.shape[1] // PLAIN.heads, np.zeros_like(x)
    for head in range(PLAIN.heads):
        of = slice(head * wide, (head + 1) * wide)
        q, k = queries[:, of], keys[:, of]
        if angles is not None:
            q, k = turned(q, angles), turned(k, angles)
        k, v = np.concatenate([before[0][:, of], k]), np.concatenate([before[1][:, of], values[:, of]])
        for i in range(tokens):
            seen = [*[True] * len(before[0]), *(real[j] and (j <= i or not causal) for j in range(tokens))]
            weights = scipy.special.softmax(np.where(seen, k @ q[i] / np.sqrt(wide), -np.inf))
            out[i, of] = weights @ v
    return dense(p["out"], out)


def stacked(params, x, lengths, causal, angles):
    out = []
    for row, length in zip(x, lengths, strict=True):
        real = np.arange(len(row)) < length
        for layer in range(PLAIN.depth):
            block = jax.tree.map(lambda p, layer=layer: np.asarray(p[layer], np.float64), params)
            y = attention(block["attention"], block, row, real, causal, angles)
            row = row + (adapter(block["adapter1"], y, real) if "adapter1" in block else y)
            y = dense(block["mlp"]["down"], gelu(dense(block["mlp"]["up"], norm(block["norm2"], row))))
            row = row + (adapter(block["adapter2"], y, real) if "adapter2" in block else y)
            row = adapter(block["adapter"], row, real) if "adapter" in block else row
        out.append(row)
    return np.stack(out)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("method", METHODS)
def test_a_stack_is_what_the_papers_write(method, mask):
    given = MASKS[mask]
    config = dataclasses.replace(PLAIN, **METHODS[method])
    blocks = network(config)
    params = random(blocks.init(jax.random.key(0)))
    x = np.random.default_rng(1).normal(size=(3, 6, 16))
    lengths = np.array([2, 6, 4]) if "lengths" in given else np.array([6, 6, 6])
    angles = np.random.default_rng(2).normal(size=(6, 4)) if "rotation" in given else None
    rotation = None if angles is None else (np.cos(angles)[:, None], np.sin(angles)[:, None])

    class Stack(nnx.Module):
        def __init__(self, rngs):
            self.blocks = layers.stack(config, rngs)

        def __call__(self, x):
            at = {"causal": "causal" in given, "lengths": jnp.asarray(lengths) if "lengths" in given else None}
            return layers.run(self.blocks, x, config, rotation=rotation, **at)

    got = jax.jit(encoders.Network(Stack))({"blocks": params}, jnp.asarray(x, jnp.float32))
    wanted = stacked(params, x, lengths, "causal" in given, angles)
    # A padding token that is masked itself sees what its row's mask leaves, as the oracle says.
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)


# ---- towers --------------------------------------------------------------------------------------------------------

IMAGE = vit.ViTConfig(PLAIN, patch=4, image_size=12, embed_dim=8)
WORDS = text.TextConfig(PLAIN, vocab_size=30, context_length=9, end_id=29, embed_dim=8)
PIXELS = np.random.default_rng(3).integers(0, 256, (2, 12, 12, 3), np.uint8)
TOKENS = np.array([[5, 7, 29, 29, 29, 29, 29, 29, 29], [3, 4, 5, 6, 7, 8, 9, 10, 29]])


def added(config, method):
    return dataclasses.replace(config, blocks=dataclasses.replace(config.blocks, **METHODS[method]))


@pytest.mark.parametrize("method", ["pfeiffer", "houlsby"])
def test_adapters_change_nothing_at_step_0(method):
    plain, more = encoders.image_tower(IMAGE), encoders.image_tower(added(IMAGE, method))
    params = plain.init(jax.random.key(0))
    both = rules.unflatten(rules.flatten(more.init(jax.random.key(1))) | rules.flatten(params))
    assert rules.flatten(both).keys() > rules.flatten(params).keys()
    np.testing.assert_array_equal(more(both, PIXELS).pooled, plain(params, PIXELS).pooled)


def test_a_tower_without_any_has_the_parameters_it_always_had():
    own = set(rules.flatten(encoders.image_tower(IMAGE).init(jax.random.key(0))))
    parts = ("norm1/bias", "norm1/scale", "norm2/bias", "norm2/scale")
    parts += tuple(
        f"{p}/{k}" for p in ("attention/qkv", "attention/out", "mlp/up", "mlp/down") for k in ("bias", "kernel")
    )
    assert {path for path in own if path.startswith("blocks/")} == {f"blocks/{part}" for part in parts}


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((method, {}) for method in METHODS),
        ("unipelt", {"causal": False}),
        ("prompts", {"causal": False, "pool": "mean"}),
    ],
)
def test_what_follows_the_end_of_a_text_changes_nothing(method, more):
    tower = encoders.text_tower(dataclasses.replace(added(WORDS, method), **more))
    params = random(tower.init(jax.random.key(0)))
    other = TOKENS.copy()
    other[0, 3:] = [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(tower(params, other), tower(params, TOKENS), atol=1e-5)
    np.testing.assert_allclose(tower(params, TOKENS[:1, :4]), tower(params, TOKENS)[:1], atol=1e-5)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        *((method, {}) for method in METHODS),
        ("unipelt", {"pool": "mean", "registers": 2, "rotary_base": 100.0}),
        ("prompts", {"pool": "attention"}),
    ],
)
def test_pictures_of_where_a_tower_looks_have_a_cell_for_each_patch(method, more):
    tower = encoders.image_tower(dataclasses.replace(added(IMAGE, method), **more))
    params = random(tower.init(jax.random.key(0)))
    assert tower(params, PIXELS).patches.shape == (2, 9, 16)
    weights = tower(params, PIXELS, method="attention")
    assert weights.shape == (2, 2, 3, 3) and np.all(weights > 0) and np.all(weights.sum((2, 3)) <= 1.0 + 1e-6)
    assert tower(params, PIXELS, method="dense").shape == (2, 3, 3, 8)


@pytest.mark.parametrize("method", ["prefix", "prompts"])
def test_what_stands_before_the_patches_takes_from_all_of_them_alike_and_is_none_of_them(method):
    """In a single block a prefix adds to the denominator of the softmax, and to no patch's own value."""
    config = dataclasses.replace(IMAGE, blocks=dataclasses.replace(PLAIN, depth=1))
    plain, more = encoders.image_tower(config), encoders.image_tower(added(config, method))
    both = random(more.init(jax.random.key(0)))
    params = rules.unflatten({path: rules.flatten(both)[path] for path in rules.flatten(plain.init(jax.random.key(0)))})
    left = more(both, PIXELS, method="attention") / plain(params, PIXELS, method="attention")
    np.testing.assert_allclose(left, np.broadcast_to(left[..., :1, :1], left.shape), rtol=1e-4)
    assert np.all(left < 0.99)
    dense = [tower(p, PIXELS, method="dense") for tower, p in ((plain, params), (more, both))]
    np.testing.assert_allclose(dense[0], dense[1], atol=1e-6)


def test_prompts_cost_keys_and_values_once_and_no_tokens():
    """Forty prompts beside ten tokens: as tokens of a block they would make it five times as dear."""

    def flops(prompts):
        blocks = dataclasses.replace(IMAGE, blocks=dataclasses.replace(PLAIN, prompts=prompts))
        tower = encoders.image_tower(blocks)
        lowered = jax.jit(tower).lower(tower.init(jax.random.key(0)), np.repeat(PIXELS, 16, axis=0))
        return lowered.cost_analysis()["flops"]

    assert flops(40) < 2 * flops(0)
