"""The ResNet towers: shapes, purity, frozen statistics, where they look, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from agriclip_jax import encoders, rules
from agriclip_jax.encoders import resnet
from agriclip_jax.errors import UserError

FAMILIES = {
    "clip": resnet.ResNetConfig((1, 2, 1, 1), width=4, heads=4, image_size=64, embed_dim=16),
    "plain": resnet.ResNetConfig((1, 1, 2, 1), width=4, image_size=64, embed_dim=16, stem="plain", pool="mean"),
}


@functools.cache
def tower(family, **options):
    """A small tower, and parameters that all differ from where they start: gains, statistics and positions too."""
    network = encoders.resnet_tower(dataclasses.replace(FAMILIES[family], **options))
    rng = np.random.default_rng(0)
    flat = rules.flatten(nnx.to_pure_dict(network.shapes))
    for path, leaf in flat.items():
        if path.endswith(("scale", "var")):
            flat[path] = rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        else:
            std = (2 / np.prod(leaf.shape[:-1])) ** 0.5 if path.endswith("kernel") else 0.3
            flat[path] = rng.normal(0, std, leaf.shape).astype(np.float32)
    return network, rules.unflatten(flat)


@functools.cache
def seen(family):
    """All that a tower says of `pixels(64, 96)`: features, embeddings of the cells, attention and dense maps."""
    network, params = tower(family)

    def look(params, images):
        features = network(params, images)
        cells = network(params, features.patches, method="embed")
        maps = (network(params, images, method=method) for method in ("attention", "dense"))
        return features, cells, *maps

    return jax.device_get(jax.jit(look)(params, pixels(64, 96)))


def pixels(*size, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, *size, 3), np.uint8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(64, 64), (32, 96), (64, 130)])
def test_any_resolution_gives_a_pooled_feature_and_one_for_each_cell_of_32_pixels(family, size):
    network, params = tower(family)
    features = jax.eval_shape(network, params, pixels(*size))
    rows, columns = (-(-side // 32) if family == "plain" else side // 32 for side in size)
    assert features.pooled.shape == (2, 128)
    assert features.patches.shape == (2, rows * columns, 128)
    for method, last in (("dense", (rows, columns, 16)), ("attention", (rows, columns))):
        found = jax.eval_shape(lambda p, x, method=method: network(p, x, method=method), params, pixels(*size))
        assert found.shape[-len(last) :] == last and found.dtype == jnp.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_pass_is_pure_and_each_photo_counts_for_itself(family):
    network, params = tower(family)
    before = jax.tree.map(np.array, params)
    both = seen(family)[0].pooled
    alone = jax.jit(network)(params, pixels(64, 96)[:1], key=jax.random.key(0)).pooled
    np.testing.assert_allclose(both[:1], alone, rtol=1e-4, atol=1e-4)
    assert not np.allclose(both[0], both[1])
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_a_batch_norm_computes_by_its_stored_statistics():
    network = encoders.Network(lambda rngs: resnet.FrozenBatchNorm(5, 1.0))
    x = np.random.default_rng(0).normal(3.0, 2.0, (4, 6, 7, 5)).astype(np.float32)
    np.testing.assert_allclose(network(network.init(jax.random.key(0)), x), x / np.sqrt(1 + 1e-5), rtol=1e-5)
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    scale, bias = np.arange(1, 6, dtype=np.float32), np.arange(5, dtype=np.float32)
    y = np.asarray(network({"scale": scale, "bias": bias, "mean": mean, "var": var}, x))
    np.testing.assert_allclose(y.mean((0, 1, 2)), bias, atol=1e-4)
    np.testing.assert_allclose(y.std((0, 1, 2)), scale, rtol=1e-4)


def test_statistics_lie_in_the_tree_under_names_of_their_own():
    network, params = tower("clip")
    flat = rules.flatten(params)
    statistics = {path for path in flat if path.endswith(("/mean", "/var"))}
    convolutions = {path for path in flat if path.endswith("conv/kernel")}
    assert {path.replace("norm/mean", "conv/kernel") for path in statistics if path.endswith("/mean")} == convolutions
    assert len(statistics) == 2 * len(convolutions)
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(network.init, jax.random.key(0)))
    assert flat["stem/0/conv/kernel"].shape == (3, 3, 3, 2)
    assert flat["stages/1/first/shortcut/conv/kernel"].shape == (1, 1, 16, 32)
    assert flat["stages/1/blocks/spatial/conv/kernel"].shape == (1, 3, 3, 8, 8)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_finite_gradient_that_is_not_zero(family):
    network, params = tower(family)

    def loss(params):
        embedded = network(params, network(params, pixels(64, 64)).pooled, method="embed")
        return jnp.sum(embedded * np.linspace(-1, 1, 16))

    for path, gradient in rules.flatten(jax.jit(jax.grad(loss))(params)).items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


def test_a_fresh_block_is_its_shortcut():
    network = encoders.Network(lambda rngs: resnet.Bottleneck(16, 4, 1, FAMILIES["clip"], rngs))
    x = np.random.default_rng(0).random((2, 6, 6, 16), np.float32)
    np.testing.assert_array_equal(network(network.init(jax.random.key(0)), x), x)


def test_scanned_and_unrolled_stages_compute_the_same():
    (network, params), (unrolled, _) = (tower("clip", layers=(1, 3, 1, 1), unroll=unroll) for unroll in (1, 0))
    np.testing.assert_allclose(
        jax.jit(network)(params, pixels(64, 64)).pooled,
        jax.jit(unrolled)(params, pixels(64, 64)).pooled,
        rtol=1e-4,
        atol=1e-4,
    )


def test_bfloat16_computes_in_bfloat16_and_keeps_parameters_and_embeddings_float32():
    network, params = tower("clip", dtype="bfloat16")
    features = jax.eval_shape(network, params, pixels(64, 64))
    assert features.pooled.dtype == features.patches.dtype == jnp.bfloat16
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(network.shapes))
    assert jax.eval_shape(lambda p, x: network(p, x, method="embed"), params, features.pooled).dtype == jnp.float32


def test_the_attention_pool_is_the_softmax_of_the_mean_cell_and_dense_the_value_of_each():
    _, params = tower("clip")
    features, _, maps, found = seen("clip")
    cells = np.asarray(features.patches, np.float64)
    head = jax.tree.map(lambda v: np.asarray(v, np.float64), params["head"])
    grid = np.asarray(jax.image.resize(params["head"]["positions"][1:].reshape(2, 2, 128), (2, 3, 128), "cubic"))
    x = np.concatenate([cells.mean(1, keepdims=True), cells], 1)
    x = x + np.concatenate([head["positions"][:1], grid.reshape(6, 128)])
    q, k, v = (x @ head[name]["kernel"] + head[name]["bias"] for name in ("query", "key", "value"))
    heads = [slice(i * 32, (i + 1) * 32) for i in range(4)]
    logits = np.stack([np.einsum("bd,btd->bt", q[:, 0, s], k[..., s]) for s in heads], 1) / 32**0.5
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    pooled = np.concatenate([np.einsum("bt,btd->bd", weights[:, i], v[..., s]) for i, s in enumerate(heads)], -1)
    np.testing.assert_allclose(features.pooled, pooled, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(maps.reshape(2, 4, 6), weights[..., 1:], atol=1e-4)
    dense = v[:, 1:] @ np.asarray(params["projection"]["kernel"]) + np.asarray(params["projection"]["bias"])
    dense /= np.linalg.norm(dense, axis=-1, keepdims=True)
    np.testing.assert_allclose(found.reshape(2, 6, 16), dense, atol=1e-4)


def test_with_mean_pooling_a_cells_attention_is_its_share_of_the_pooled_features_length():
    (pooled, patches), cells, maps, dense = seen("plain")
    assert maps.shape == (2, 1, 2, 3) and (maps >= 0).all()
    shares = np.einsum("bcw,bw->bc", patches, pooled) / (6 * np.sum(pooled**2, 1))[:, None]
    np.testing.assert_allclose(maps.reshape(2, 6), shares, rtol=1e-4)
    np.testing.assert_allclose(maps.sum((2, 3)), 1, rtol=1e-4)
    np.testing.assert_allclose(dense.reshape(2, 6, 16), cells, atol=1e-5)


def test_a_photo_without_a_feature_gives_finite_maps_and_embeddings():
    network, params = tower("plain", embed_dim=0)
    flat = {path: value - 1e4 * path.endswith("expand/norm/bias") for path, value in rules.flatten(params).items()}
    flat = {path: value * (not path.endswith("shortcut/norm/scale")) for path, value in flat.items()}
    silent = rules.unflatten(flat)
    look = jax.jit(lambda p, x: (network(p, x).pooled, network(p, x, method="attention")))
    pooled, maps = look(silent, pixels(32, 32))
    assert not pooled.any() and not maps.any()
    assert not network(silent, pooled, method="embed").any()


@pytest.mark.parametrize(
    "options,message",
    [
        ({"stem": "clipp"}, "unknown ResNet stem 'clipp'; did you mean 'clip'"),
        ({"pool": "cls"}, "unknown ResNet pool 'cls'"),
        ({"layers": (3, 4, 6)}, "four stages"),
        ({"layers": (3, 4, 0, 3)}, "at least one block"),
        ({"width": 7}, "must be even"),
        ({"heads": 5}, "5 heads do not divide the 128 features"),
        ({"image_size": 100}, "not a multiple of 32"),
    ],
)
def test_impossible_towers_are_refused_in_plain_words(options, message):
    with pytest.raises(UserError, match=message):
        tower("clip", **options)


def test_the_named_towers_have_the_published_parameter_counts():
    """Millions of parameters, statistics left out: open_clip's visual towers, torchvision's without classifier."""
    published = {"RN50": 38.32, "RN101": 56.26, "RN50x4": 87.14, "RN50x16": 167.33, "RN50x64": 420.38}
    for name, millions in (published | {"ResNet50": 23.51}).items():
        shapes = rules.flatten(nnx.to_pure_dict(encoders.resnet_tower(resnet.CONFIGS[name]).shapes))
        moved = sum(s.size for path, s in shapes.items() if not path.endswith(("/mean", "/var")))
        assert abs(moved / 1e6 - millions) < 0.01, name
