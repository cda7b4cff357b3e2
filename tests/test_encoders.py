"""The towers: shapes, purity, invariances, and what each option means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agriclip_jax import encoders
from agriclip_jax.encoders import dino_head, layers, text, vit
from agriclip_jax.errors import UserError


def blocks(**overrides):
    return encoders.block_config("Ti", **{"width": 32, "depth": 3, "heads": 2} | overrides)


def tower(pool="cls", image_size=32, key=0, projected=True, **options):
    options |= {"image_size": image_size, "embed_dim": 16 if projected else 0, "pool": pool}
    network = encoders.image_tower(vit.ViTConfig(blocks(**options.pop("blocks", {})), patch=8, **options))
    return network, network.init(jax.random.key(key))


def pixels(batch=2, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, size, size, 3), np.uint8)


@pytest.mark.parametrize("pool", vit.POOLS)
@pytest.mark.parametrize("registers", [0, 3])
def test_any_resolution_gives_a_pooled_feature_and_one_feature_for_each_patch(pool, registers):
    network, params = tower(pool, registers=registers)
    for size in (32, 16, 48):
        features = network(params, pixels(size=size))
        assert features.pooled.shape == (2, network.config.features)
        assert features.patches.shape == (2, (size // 8) ** 2, 32)
    np.testing.assert_allclose(
        np.linalg.norm(network(params, features.pooled, method="embed"), axis=-1), 1.0, rtol=1e-5
    )


def test_cls_mean_sets_the_mean_patch_beside_the_class_token():
    network, params = tower("cls_mean", registers=2)
    headless = {name: value for name, value in params.items() if name != "projection"}
    alone, both = tower("cls", registers=2, projected=False)[0](headless, pixels()), network(params, pixels())
    assert network.config.features == 64 and params["projection"]["kernel"].shape == (64, 16)
    np.testing.assert_array_equal(both.pooled[:, :32], alone.pooled)
    np.testing.assert_allclose(both.pooled[:, 32:], np.asarray(alone.patches).mean(1), atol=1e-6)


def test_a_head_of_blocks_reads_the_normalised_tokens_of_the_tower_without_its_adaptation():
    network, params = tower("cls_mean", head_blocks=2, blocks={"drop_path": 0.5, "lora": 2})
    assert "lora_a" in params["blocks"]["attention"] and "lora_a" not in params["head_blocks"]["attention"]
    own = {name: value for name, value in params.items() if not name.startswith(("head", "projection"))}
    below = tower("cls", projected=False, blocks={"lora": 2})[0](own, pixels())
    tokens = jnp.concatenate([below.pooled[:, None], below.patches], axis=1)
    head = nnx.merge(network.graph, params)
    tokens = head.head_norm(layers.run(head.head_blocks, tokens, blocks(depth=2)))
    found = network(params, pixels())
    np.testing.assert_allclose(found.pooled, jnp.concatenate([tokens[:, 0], tokens[:, 1:].mean(1)], 1), atol=1e-5)
    np.testing.assert_allclose(found.patches, tokens[:, 1:], atol=1e-5)


def test_the_forward_pass_is_pure_and_deterministic_without_a_key():
    network, params = tower(token_keep=0.5, blocks={"drop_path": 0.5})
    first, second = (network(params, pixels()).pooled for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_position_embeddings_of_the_own_grid_are_untouched_and_a_constant_stays_constant():
    positions = jnp.asarray(np.random.default_rng(0).normal(size=(16, 5)), jnp.float32)
    assert vit.interpolate_positions(positions, 4, 4, 4) is positions
    constant = vit.interpolate_positions(jnp.ones((16, 5)), 4, 7, 2)
    np.testing.assert_allclose(constant, np.ones((14, 5)), rtol=1e-5)


def test_token_dropping_keeps_the_share_it_says_and_varies_by_image():
    network, params = tower("mean", token_keep=0.5)
    features = network(params, np.repeat(pixels(1), 2, axis=0), key=jax.random.key(0))
    assert features.patches.shape == (2, 8, 32)
    assert not np.allclose(features.pooled[0], features.pooled[1])


@pytest.mark.parametrize("rotary_base", [0, 100])
def test_a_hidden_patch_is_the_mask_token_at_its_place_and_tells_nothing_of_its_pixels(rotary_base):
    network, params = tower(mask_token=True, rotary_base=rotary_base)
    params |= {"mask": jax.random.normal(jax.random.key(1), (1, 32))}
    images, mask = pixels(), np.zeros((2, 16), bool)
    mask[0, [1, 6]] = True
    other = images.copy()
    other[0, :8, 8:16] = 255 - other[0, :8, 8:16]  # patch 1
    see = lambda images, params=params: network(params, images, mask=mask)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, see(images), see(other))
    assert not np.allclose(see(images).patches[0, 1], see(images).patches[0, 6], atol=1e-3)
    whole = network(params, images)
    assert not np.allclose(see(images).pooled[0], whole.pooled[0], atol=1e-3)
    np.testing.assert_allclose(see(images).pooled[1], whole.pooled[1], atol=1e-5)
    assert not np.allclose(see(images).pooled[0], see(images, params | {"mask": -params["mask"]}).pooled[0], atol=1e-3)


def test_a_mask_token_is_a_parameter_only_where_it_is_asked_for_and_changes_no_other():
    plain, masked = tower()[1], tower(mask_token=True)[1]
    assert "mask" not in plain and masked["mask"].shape == (1, 32)
    jax.tree.map(np.testing.assert_array_equal, plain, {k: v for k, v in masked.items() if k != "mask"})


def test_drop_path_never_drops_the_first_block_and_keeps_the_expectation():
    config = blocks(depth=2, drop_path=0.5)
    stack = layers.stack(config, nnx.Rngs(0))
    # Without its MLP a block is x + attention(x): the expectation over dropping it is exact.
    stack.mlp.down.kernel[...] = jnp.zeros_like(stack.mlp.down.kernel[...])
    x = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (4, 32)), (2048, 4, 32))
    whole = layers.run(stack, x, config)[0]
    first = layers.run(jax.tree.map(lambda p: p[:1], stack), x, config)[0]
    dropped = np.asarray(layers.run(stack, x, config, key=jax.random.key(0)))
    kinds = np.unique(np.round(dropped[:, 0], 3), axis=0)
    assert len(kinds) == 2  # the second block comes, doubled, or goes; the first is always there
    assert min(np.abs(kinds - np.asarray(first[0])).max(1)) < 2e-3
    np.testing.assert_allclose(dropped.mean(0), whole, atol=0.08)


def test_layer_scale_zeroes_a_block_and_shows_as_a_parameter():
    network, params = tower(blocks={"layer_scale": 1e-12})
    assert params["blocks"]["scale1"].shape == (3, 32)
    plain, _ = tower()
    x = network(params, pixels())
    changed = jax.tree.map(lambda p: p, params)
    changed["blocks"]["mlp"]["up"]["kernel"] = params["blocks"]["mlp"]["up"]["kernel"] * 3
    np.testing.assert_allclose(network(changed, pixels()).pooled, x.pooled, atol=1e-5)
    assert "scale1" not in plain.init(jax.random.key(0))["blocks"]


@pytest.mark.parametrize("option", [{"remat": "nothing_saveable"}, {"remat": "dots_saveable"}, {"unroll": 0}])
def test_how_a_stack_runs_does_not_change_what_it_computes(option):
    plain, params = tower()
    other, _ = tower(blocks=option)
    weights = np.random.default_rng(0).normal(size=(2, 32))
    loss = lambda network: lambda p: jnp.sum(network(p, pixels()).pooled * weights)  # noqa: E731
    for a, b in zip(*(jax.tree.leaves(jax.grad(loss(n))(params)) for n in (plain, other)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_embeddings_float32():
    network, params = tower(blocks={"dtype": "bfloat16"})
    features = network(params, pixels())
    assert features.pooled.dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
    assert network(params, features.pooled, method="embed").dtype == jnp.float32


def sums_of_bfloat16(jaxpr):
    """Shapes of what a program and those within it sum up in bfloat16."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "reduce_sum" and equation.invars[0].aval.dtype == jnp.bfloat16:
            yield equation.invars[0].aval.shape
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sums_of_bfloat16(inner)


@pytest.mark.parametrize("pool", ["cls", "mean", "attention"])
def test_no_gradient_of_an_image_tower_in_bfloat16_is_a_sum_in_bfloat16(pool):
    blocks = layers.BlockConfig(16, 2, 2, 32, dtype="bfloat16", layer_scale=0.1, remat="dots_saveable", drop_path=0.1)
    tower = encoders.tower(vit.ViTConfig(blocks, patch=4, registers=2, image_size=8, embed_dim=8, pool=pool))
    params = tower.init(jax.random.key(0))
    assert not any(leaf.aval.weak_type for leaf in jax.tree.leaves(params))

    def loss(params):
        features = tower(params, np.zeros((2, 8, 8, 3), np.uint8), key=jax.random.key(1))
        return jnp.sum(tower(params, features.pooled, method="embed"))

    program = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    assert not list(sums_of_bfloat16(program))
    other = jax.make_jaxpr(jax.grad(lambda y: jnp.sum((jnp.zeros((4, 2), jnp.bfloat16) + y).astype(jnp.float32))))
    assert list(sums_of_bfloat16(other(jnp.zeros(2, jnp.bfloat16)).jaxpr))  # where there is one it is found


@pytest.mark.parametrize("head_blocks", [0, 2])
@pytest.mark.parametrize("pool", vit.POOLS)
def test_attention_maps_are_shares_of_the_patches(pool, head_blocks):
    network, params = tower(pool, registers=2, head_blocks=head_blocks)
    maps = network(params, pixels(size=48), method="attention")
    assert maps.shape == (2, 2, 6, 6)
    assert (maps >= 0).all() and (maps.sum((2, 3)) <= 1 + 1e-5).all()


@pytest.mark.parametrize("rotary_base", [0, 100])
def test_the_attention_map_is_the_class_tokens_softmax_in_the_last_block(rotary_base):
    network, params = tower("cls", blocks={"depth": 1}, rotary_base=rotary_base)
    images = pixels()
    maps = np.asarray(network(params, images, method="attention"), np.float64)
    p = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
    mean, std = (np.array(v) for v in (network.config.mean, network.config.std))
    patches = ((images / 255 - mean) / std).reshape(2, 4, 8, 4, 8, 3).swapaxes(2, 3).reshape(2, 16, 192)
    x = patches @ p["patch"]["kernel"] + p["patch"]["bias"] + p.get("positions", 0)
    x = np.concatenate([np.broadcast_to(p["cls"], (2, 1, 32)), x], 1)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    qkv = p["blocks"]["attention"]["qkv"]
    q, k, _ = np.split((x @ qkv["kernel"][0] + qkv["bias"][0]).reshape(2, 17, 6, 16), 3, axis=2)
    if rotary_base:  # a head's 16 channels are 8 planes, the first 4 turned by the row, the others by the column
        place = (2 * np.stack(np.divmod(np.arange(16), 4), axis=1) + 1) / 4 - 1
        turns = place.repeat(4, axis=1) / 100 ** (np.arange(8) % 4 / 4)
        planes = (k[..., :8] + 1j * k[..., 8:])[:, 1:] * np.exp(2j * np.pi * turns)[:, None]
        k[:, 1:] = np.concatenate([planes.real, planes.imag], -1)
    logits = np.einsum("bhd,bkhd->bhk", q[:, 0], k) / 4
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(maps.reshape(2, 2, 16), weights[..., 1:], atol=1e-5)


def test_a_query_sees_of_rotary_positions_only_how_far_away_a_key_is():
    angles = vit.axial_angles(6, 6, 16, base=100).reshape(6, 6, 1, 8)
    query, key = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    turned = [layers.rotate(jnp.broadcast_to(x, (6, 6, 1, 16)), jnp.cos(angles), jnp.sin(angles)) for x in (query, key)]
    scores = np.einsum("abhd,cehd->abce", *turned)  # of rows and columns of the query, then of the key
    np.testing.assert_allclose(scores[:-1, :-2, :-1, :-2], scores[1:, 2:, 1:, 2:], atol=1e-4)
    assert scores.std() > 0.1
    np.testing.assert_allclose(scores[0, 0, 0, 0], query @ key, atol=1e-4)


def test_rotary_positions_are_no_parameter_and_tell_where_a_patch_is():
    network, params = tower("cls", registers=2, rotary_base=100, blocks={"depth": 1})
    assert "positions" not in params
    images = pixels(1)
    moved = np.concatenate([images[:, 8:], images[:, :8]], axis=1)
    assert np.abs(network(params, images).pooled - network(params, moved).pooled).max() > 1e-3


@pytest.mark.parametrize("rotary_base", [0, 100])
def test_a_patch_keeps_its_place_when_others_are_dropped(rotary_base):
    network, params = tower(token_keep=0.999, rotary_base=rotary_base)  # all 16 of 16 are drawn, in another order
    drawn, whole = network(params, pixels(), key=jax.random.key(0)), network(params, pixels())
    assert np.abs(drawn.patches - whole.patches).max() > 0.1
    np.testing.assert_allclose(drawn.pooled, whole.pooled, atol=1e-5)


def test_swiglu_gates_the_second_half_of_its_hidden_layer_with_the_first():
    mlp = layers.Mlp(blocks(activation="swiglu", mlp=24), nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(5, 32))
    up, down = (np.asarray(layer.kernel[...], np.float64) for layer in (mlp.up, mlp.down))
    assert up.shape == (32, 48) and down.shape == (24, 32)
    gate, value = (x @ up)[:, :24], (x @ up)[:, 24:]
    np.testing.assert_allclose(mlp(jnp.asarray(x, jnp.float32)), gate / (1 + np.exp(-gate)) * value @ down, atol=1e-5)


def test_a_projection_with_a_bias_is_an_affine_map_of_the_features():
    network, params = tower(projection_bias=True)
    params["projection"]["bias"] = np.random.default_rng(0).normal(size=16).astype(np.float32)
    pooled = np.asarray(network(params, pixels()).pooled)
    wanted = pooled @ params["projection"]["kernel"] + params["projection"]["bias"]
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    np.testing.assert_allclose(network(params, pooled, method="embed"), wanted, atol=1e-5)


def words(causal=True, pool="end", **options):
    config = text.TextConfig(
        blocks(depth=2), vocab_size=50, context_length=12, end_id=49, embed_dim=16, causal=causal, pool=pool, **options
    )
    network = encoders.text_tower(config)
    return network, network.init(jax.random.key(0))


def captions(*lengths, pad=0, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.full((len(lengths), 12), pad, np.int32)
    for row, n in zip(rows, lengths, strict=True):
        row[: n - 1], row[n - 1] = rng.integers(1, 49, n - 1), 49
    return rows


@pytest.mark.parametrize("causal,pool", [(True, "end"), (False, "mean"), (False, "end"), (True, "mean")])
def test_what_follows_the_end_token_changes_nothing(causal, pool):
    network, params = words(causal, pool)
    features = [network(params, captions(5, 12, 3, pad=pad)) for pad in (0, 7, 49)]
    np.testing.assert_allclose(features[0], features[1], atol=1e-5)
    np.testing.assert_allclose(features[0], features[2], atol=1e-5)


def test_a_causal_tower_reads_from_the_left():
    network, params = words()
    short, long = captions(12), captions(12)
    long[0, 8] = long[0, 8] % 48 + 1
    at = lambda tokens, end: network(params, np.where(np.arange(12) == end, 49, tokens))  # noqa: E731
    np.testing.assert_allclose(at(short, 5), at(long, 5), atol=1e-6)
    assert np.abs(at(short, 9) - at(long, 9)).max() > 1e-4


def test_dino_logits_are_cosines_with_the_prototypes():
    network = encoders.Network(lambda rngs: dino_head.DinoHead(8, hidden=16, bottleneck=4, prototypes=7, rngs=rngs))
    params = network.init(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(5, 3, 8)).astype(np.float32)
    logits = network(params, x)
    assert logits.shape == (5, 3, 7) and np.abs(logits).max() <= 1 + 1e-6
    params["prototypes"] = params["prototypes"] * 100
    np.testing.assert_allclose(network(params, x), logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "build,message",
    [
        (lambda: encoders.block_config("Bb"), "did you mean 'B'"),
        (lambda: encoders.block_config("Ti", remat="all"), "nothing_saveable"),
        (lambda: encoders.block_config("Ti", heads=5), "heads must divide width"),
        (lambda: tower("clss"), "unknown image pool 'clss'; did you mean 'cls'"),
        (lambda: tower(image_size=30), "not a multiple of the patch 8"),
        (lambda: tower(rotary_base=100, blocks={"heads": 16}), "16 heads of a tower of width 32 cannot have rotary"),
        (lambda: words(pool="eot"), "unknown text pool"),
    ],
)
def test_impossible_towers_are_refused_in_plain_words(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_the_named_sizes_have_the_published_parameter_counts():
    """Millions of parameters of ViT/16 (or /14), no head: arXiv 2010.11929 table 1, 2106.04560 table 2, OpenCLIP."""
    published = {"Ti": 5.5, "S": 21.7, "B": 85.8, "L": 303.3, "H": 630.8, "So400m": 412.4, "g": 1011.2, "bigG": 1842.8}
    for size, millions in published.items():
        patch = 14 if size in ("H", "So400m", "g", "bigG") else 16
        network = encoders.image_tower(vit.ViTConfig(encoders.block_config(size), patch, 224, embed_dim=0))
        count = sum(np.prod(s.shape) for s in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(0))))
        assert abs(count / 1e6 - millions) < 0.01 * millions, (size, count)


@pytest.mark.parametrize("size,heads,parameters", [("L", 16, 354_032_640), ("H", 20, 694_659_840)])
def test_named_sizes_hold_the_text_towers_of_openclips_h_and_g_and_of_its_big_g(size, heads, parameters):
    config = text.TextConfig(encoders.block_config(size, heads=heads), 49408, 77, 49407, vit.SIZES[size][0])
    assert sum(np.prod(s.shape) for s in jax.tree.leaves(encoders.text_tower(config).shapes)) == parameters


@pytest.mark.parametrize("head_blocks", [0, 1, 2])
@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_the_dense_embedding_of_a_photo_of_one_patch_is_that_of_the_photo(pool, head_blocks):
    network, params = tower(pool, head_blocks=head_blocks)
    images = pixels(size=8)
    whole = network(params, network(params, images).pooled, method="embed")
    np.testing.assert_allclose(network(params, images, method="dense")[:, 0, 0], whole, atol=1e-5)


@pytest.mark.parametrize("pool", vit.POOLS)
def test_dense_embeddings_are_one_of_length_1_for_each_patch_of_any_grid(pool):
    network, params = tower(pool, registers=2)
    found = network(params, np.concatenate([pixels(size=32), pixels(size=32)], axis=2), method="dense")
    assert found.shape == (2, 4, 8, 16)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize("layer_scale,rotary_base", [(0.0, 0), (0.3, 0), (0.3, 100)])
def test_with_a_class_token_a_patch_is_its_value_in_the_last_block(layer_scale, rotary_base):
    network, params = tower("cls", registers=1, rotary_base=rotary_base, blocks={"layer_scale": layer_scale})
    layer, final = jax.tree.map(lambda p: np.asarray(p[-1], np.float64), params["blocks"]), params["norm"]
    if layer_scale:
        gains = params["blocks"]["scale1"] = np.random.default_rng(0).random((3, 32)).astype(np.float32)
        layer["scale1"] = gains[-1]
    _, entering, _ = nnx.merge(network.graph, params)._before_last(pixels())

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * np.asarray(p["scale"]) + np.asarray(p["bias"])

    qkv = norm(np.asarray(entering, np.float64), layer["norm1"]) @ layer["attention"]["qkv"]["kernel"]
    values = (qkv + layer["attention"]["qkv"]["bias"])[..., 64:]
    values = values @ layer["attention"]["out"]["kernel"] + layer["attention"]["out"]["bias"]
    values = norm(values * layer.get("scale1", 1), final)[:, 2:] @ np.asarray(params["projection"]["kernel"])
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    np.testing.assert_allclose(network(params, pixels(), method="dense").reshape(2, 16, 16), values, atol=1e-4)
