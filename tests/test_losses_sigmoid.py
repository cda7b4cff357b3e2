"""The sigmoid loss against dense float64 NumPy, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import unit
from test_losses_semisupervised import single

from agriclip_jax.losses.contrastive import sigmoid

loss = jax.jit(jax.value_and_grad(sigmoid, (0, 1, 2, 3)))


def oracle(z, t, s, b, positive):
    """`log sigmoid(x) = -log(1 + exp(-x))`; its slope is `sigmoid(-x)`."""
    sign = np.where(positive, 1.0, -1.0)
    margin = sign * (s * z @ t.T + b)
    slope = -sign / (1 + np.exp(margin)) / len(z)
    return np.logaddexp(0, -margin).sum() / len(z), (
        s * slope @ t,
        s * slope.T @ z,
        (slope * (z @ t.T)).sum(),
        slope.sum(),
    )


@pytest.mark.parametrize("groups", [np.arange(12), np.arange(12) % 3, np.zeros(12, int)])
@pytest.mark.parametrize("scale,bias", [(10.0, -10.0), (100.0, 5.0)])
def test_sigmoid_equals_the_oracle_in_value_and_gradient(groups, scale, bias):
    rng = np.random.default_rng(0)
    z, t, positive = unit(rng, 12, 7), unit(rng, 12, 7), groups[:, None] == groups
    value, gradients = loss(*single(z, t, scale, bias), jnp.asarray(positive))
    wanted, slopes = oracle(z, t, scale, bias, positive)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for got, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-4)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_examples_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    z, t, groups, order = unit(rng, 12, 7), unit(rng, 12, 7), rng.integers(0, 4, 12), rng.permutation(12)
    values = [
        loss(*single(z[i], t[i], 10.0, -10.0), jnp.asarray(groups[i][:, None] == groups[i]))[0]
        for i in (np.arange(12), order)
    ]
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_a_certain_mistake_costs_its_margin_and_a_certain_truth_nothing():
    """Where `sigmoid` itself is 0 or 1 in float32."""
    same = jnp.ones((1, 1))
    value, gradients = loss(same, same, jnp.float32(100), jnp.float32(100), jnp.zeros((1, 1), bool))
    assert value == 200 and gradients[3] == 1
    value, gradients = loss(same, same, jnp.float32(100), jnp.float32(100), jnp.ones((1, 1), bool))
    assert value == 0 and not any(np.any(g) for g in gradients)


def test_at_the_papers_start_a_batch_costs_little_more_than_its_positives():
    """Scale 10, bias -10, embeddings at right angles: ten for each example's own pair, almost nothing for the rest."""
    z, t = np.split(np.eye(16), 2)
    value, _ = loss(*single(z, t, 10.0, -10.0), jnp.eye(8, dtype=bool))
    assert 10 < value < 10.001
