"""DINOv2's additions to self-distillation against dense float64 NumPy, value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import log_softmax
from test_losses_semisupervised import single

from agriclip_jax.losses import distill


def sinkhorn_oracle(logits, temperature, iterations=3):
    """Rows are samples; in turn each prototype gets a mass of 1 / prototypes and each sample one of 1 / samples."""
    q = np.exp(logits / temperature)
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(0) * q.shape[1]
        q /= q.sum(1, keepdims=True) * q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("temperature", [0.04, 0.07])
def test_sinkhorn_targets_share_the_prototypes_among_all_views_of_the_batch(temperature):
    logits = np.random.default_rng(0).uniform(-1, 1, (6, 2, 5))
    got = distill.sinkhorn_targets(jnp.float32(logits), temperature)
    np.testing.assert_allclose(
        got, sinkhorn_oracle(logits.reshape(12, 5), temperature).reshape(6, 2, 5), rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(np.sum(got, axis=-1), 1, atol=1e-6)


def test_a_prototype_that_every_logit_prefers_is_used_no_more_than_the_others():
    logits = np.random.default_rng(1).uniform(-0.1, 0.1, (32, 2, 4)) + np.array([1.0, 0, 0, 0])
    got = np.asarray(distill.sinkhorn_targets(jnp.float32(logits), 0.1, 20))
    assert (np.exp(log_softmax(logits / 0.1)).argmax(-1) == 0).all()
    np.testing.assert_allclose(got.mean((0, 1)), 1 / 4, atol=1e-3)


def test_sinkhorn_targets_of_masked_patches_are_those_of_these_patches_alone():
    rng = np.random.default_rng(2)
    logits, masked = rng.uniform(-1, 1, (4, 9, 5)), rng.random((4, 9)) < 0.4
    got = np.asarray(distill.sinkhorn_targets(jnp.float32(logits), 0.05, where=jnp.asarray(masked)))
    np.testing.assert_allclose(got[masked], sinkhorn_oracle(logits[masked], 0.05), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("local", [1, 8])
def test_dino_has_the_weights_of_dinov2s_terms(local):
    """DINOv2 takes local and global crops apart, each sum of terms over the number of all, 2 + 2 locals."""
    rng = np.random.default_rng(3)
    student, teacher = rng.uniform(-1, 1, (4, 2 + local, 6)), rng.uniform(-1, 1, (4, 2, 6))
    p_t, log_p = sinkhorn_oracle(teacher.reshape(8, 6), 0.07).reshape(4, 2, 6), log_softmax(student / 0.1)
    terms = 2 + 2 * local
    locals_ = -sum((p_t[:, q] * log_p[:, v]).sum(-1).mean() for q in (0, 1) for v in range(2, 2 + local)) / terms
    swapped = np.concatenate([p_t[:, 1], p_t[:, 0]])
    globals_ = -2 * (swapped * np.concatenate([log_p[:, 0], log_p[:, 1]])).sum(-1).mean() / terms
    got = distill.dino(jnp.float32(student), distill.sinkhorn_targets(jnp.float32(teacher), 0.07), temperature=0.1)
    np.testing.assert_allclose(got, locals_ + globals_, rtol=1e-4)


def ibot_oracle(student, targets, masked, temperature):
    """Value and gradient, image by image: dH / dg = (softmax - target) / temperature."""
    total, gradient = 0.0, np.zeros_like(student)
    log_p = log_softmax(student / temperature)
    for i, mask in enumerate(masked):
        for p in np.flatnonzero(mask):
            weight = 1 / mask.sum() / len(masked)
            total -= weight * targets[i, p] @ log_p[i, p]
            gradient[i, p] = weight * (np.exp(log_p[i, p]) - targets[i, p]) / temperature
    return total, gradient


@functools.partial(jax.jit, static_argnames="temperature")
@functools.partial(jax.value_and_grad, argnums=(0, 1))
def ibot(student, teacher, masked, temperature=0.1):
    targets = distill.sinkhorn_targets(teacher, 0.07, where=masked)
    return distill.ibot(student, targets, distill.patch_weights(masked), temperature=temperature)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=36, max_size=36).filter(any))
def test_ibot_equals_the_oracle_in_value_and_gradient_and_the_teacher_gets_none(masked):
    rng, masked = np.random.default_rng(4), np.reshape(masked, (4, 9))
    student, teacher = rng.uniform(-1, 1, (2, 4, 9, 5))
    targets = np.zeros_like(teacher)
    targets[masked] = sinkhorn_oracle(teacher[masked], 0.07)
    value, gradients = ibot(*single(student, teacher), jnp.asarray(masked))
    wanted, gradient = ibot_oracle(student, targets, masked, 0.1)
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    np.testing.assert_allclose(gradients[0], gradient, rtol=1e-3, atol=1e-4)
    assert not np.any(gradients[1])


def test_a_batch_without_a_mask_costs_nothing_and_is_finite():
    student, teacher = np.random.default_rng(5).uniform(-1, 1, (2, 4, 9, 5))
    value, gradients = ibot(*single(student, teacher), jnp.zeros((4, 9), bool))
    assert value == 0 and not np.any(gradients[0]) and not np.any(gradients[1])


def test_every_image_with_a_mask_weighs_the_same_and_one_without_counts_in_the_mean():
    masked = jnp.array([[[1, 1, 1, 1], [0, 1, 0, 0]], [[0, 0, 0, 0], [0, 1, 1, 0]]], bool)
    weights = distill.patch_weights(masked)
    np.testing.assert_allclose(jnp.sum(weights, axis=-1), [[0.25, 0.25], [0, 0.25]])
    assert not np.any(weights[~masked])


def test_masked_patches_picked_out_and_padded_cost_what_they_cost_in_place():
    rng = np.random.default_rng(6)
    student, targets = rng.uniform(-1, 1, (4, 9, 5)), np.exp(log_softmax(rng.normal(size=(4, 9, 5))))
    masked = rng.random((4, 9)) < 0.4
    weights = np.asarray(distill.patch_weights(jnp.asarray(masked)))
    everywhere = distill.ibot(*single(student, targets, weights), temperature=0.1)
    at = np.concatenate([np.flatnonzero(masked), np.zeros(7, int)])
    picked = np.where(np.arange(len(at)) < masked.sum(), weights.ravel()[at], 0)
    got = distill.ibot(*single(student.reshape(36, 5)[at], targets.reshape(36, 5)[at], picked), temperature=0.1)
    np.testing.assert_allclose(got, everywhere, rtol=1e-5)
