"""KoLeo and Gram anchoring against dense float64 NumPy, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import unit
from test_losses_semisupervised import central_differences, single

from agriclip_jax.losses import geometry

koleo = jax.jit(jax.value_and_grad(geometry.koleo))
gram = jax.jit(jax.value_and_grad(geometry.gram_anchoring, (0, 1)))
seeds = st.integers(0, 2**32 - 1)


def test_similarities_are_float32_whatever_comes_in_and_keep_the_leading_axes():
    x, y = (jnp.bfloat16(v) for v in np.random.default_rng(3).normal(size=(2, 3, 6, 4)))
    got = geometry.similarities(x, y[:, :5])
    assert got.dtype == jnp.float32 and got.shape == (3, 6, 5)
    np.testing.assert_allclose(got, np.float64(x) @ np.float64(y[:, :5]).transpose(0, 2, 1), rtol=1e-5, atol=1e-6)


def normalised(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def koleo_oracle(x):
    x = normalised(x)
    apart = np.linalg.norm(x[:, None] - x[None], axis=-1) + np.diag(np.full(len(x), np.inf))
    return -np.log(apart.min(1)).mean()


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_koleo_equals_the_oracle_in_value_and_gradient_whatever_the_order(seed):
    rng = np.random.default_rng(seed)
    x, order = rng.normal(size=(8, 4)), rng.permutation(8)
    value, gradient = koleo(jnp.float32(x))
    np.testing.assert_allclose(value, koleo_oracle(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, central_differences(koleo_oracle, x), rtol=1e-3, atol=1e-3)
    shuffled = koleo(jnp.float32(x[order]))
    np.testing.assert_allclose(shuffled[0], value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(shuffled[1], gradient[order], rtol=1e-3, atol=1e-5)


def test_koleo_measures_neighbours_a_ten_thousandth_apart():
    """Their cosine is 1 in float32; 2 - 2 cos would say that they coincide."""
    x = np.eye(4)[[0, 0, 1, 1, 2, 2]] + 1e-4 * np.eye(4)[[3, 0, 3, 1, 3, 2]]
    assert (np.float32(normalised(x)[0] @ normalised(x)[1]) == 1).all()
    np.testing.assert_allclose(koleo(jnp.float32(x))[0], koleo_oracle(x), rtol=1e-3)


def test_descending_koleo_spreads_what_lies_together():
    x = jnp.float32(unit(np.random.default_rng(0), 8, 3) + np.array([3, 0, 0]))
    before = koleo_oracle(np.float64(x))
    for _ in range(100):
        x = x - 0.1 * koleo(x)[1]
    assert koleo_oracle(np.float64(x)) < before - 0.5


def test_koleo_of_features_that_coincide_or_vanish_is_finite_and_pulls_nowhere():
    for x in (jnp.ones((8, 4)), jnp.zeros((8, 4))):
        value, gradient = koleo(x)
        assert np.isfinite(value) and not np.any(gradient)


def gram_oracle(student, anchor):
    student, anchor = normalised(student), normalised(anchor)
    pairs = [(s @ s.T - a @ a.T) ** 2 for s, a in zip(student, anchor, strict=True)]
    return np.mean(pairs)


def test_gram_anchoring_equals_the_oracle_in_value_and_gradient_and_the_anchor_gets_none():
    rng = np.random.default_rng(1)
    student, anchor = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 6, 5))
    value, gradients = gram(*single(student, anchor))
    np.testing.assert_allclose(value, gram_oracle(student, anchor), rtol=1e-5)
    wanted = central_differences(lambda x: gram_oracle(x, anchor), student)
    np.testing.assert_allclose(gradients[0], wanted, rtol=1e-3, atol=1e-5)
    assert not np.any(gradients[1])


@settings(deadline=None, max_examples=20)
@given(seeds, st.floats(0.01, 100.0))
def test_gram_anchoring_sees_neither_a_rotation_of_the_space_nor_the_length_of_a_feature(seed, length):
    rng = np.random.default_rng(seed)
    anchor = rng.normal(size=(3, 6, 4))
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    value, gradients = gram(*single(length * anchor @ rotation, anchor))
    assert value < 1e-11 and np.abs(gradients[0]).max() * length < 1e-6
    assert gram(*single(anchor[:, rng.permutation(6)], anchor))[0] >= 0
