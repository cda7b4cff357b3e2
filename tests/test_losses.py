"""The losses against dense float64 NumPy, value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.losses import contrastive, distill


def log_softmax(x, axis=-1):
    x = x - x.max(axis=axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=axis, keepdims=True))


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def info_nce_oracle(z, t, s, positive):
    q = positive / positive.sum(1, keepdims=True)
    logits = s * z @ t.T
    return 0.5 * (-(q * log_softmax(logits)).sum(1).mean() - (q * log_softmax(logits.T)).sum(1).mean())


def info_nce_gradient_oracle(z, t, s, positive):
    """By hand: dL/dlogits = (softmax - q) / 2n for each direction; then the chain rule."""
    n = len(z)
    q = positive / positive.sum(1, keepdims=True)
    logits = s * z @ t.T
    d = (np.exp(log_softmax(logits)) - q) / (2 * n) + ((np.exp(log_softmax(logits.T)) - q) / (2 * n)).T
    return s * d @ t, s * d.T @ z, (d * (z @ t.T)).sum()


@pytest.mark.parametrize("groups", [np.arange(12), np.arange(12) % 3, np.zeros(12, int)])
def test_info_nce_equals_the_oracle_in_value_and_gradient(groups):
    rng = np.random.default_rng(0)
    z, t, s = unit(rng, 12, 7), unit(rng, 12, 7), 14.3
    positive = groups[:, None] == groups[None]
    value, gradients = jax.value_and_grad(contrastive.info_nce, (0, 1, 2))(
        *(jnp.asarray(x, jnp.float32) for x in (z, t, s)), jnp.asarray(positive)
    )
    np.testing.assert_allclose(value, info_nce_oracle(z, t, s, positive), rtol=1e-5)
    for got, wanted in zip(gradients, info_nce_gradient_oracle(z, t, s, positive), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_info_nce_is_clips_loss_when_all_captions_differ():
    rng = np.random.default_rng(1)
    z, t, s = unit(rng, 9, 5), unit(rng, 9, 5), 10.0
    logits = s * z @ t.T
    clip = 0.5 * (-np.diag(log_softmax(logits)).mean() - np.diag(log_softmax(logits.T)).mean())
    got = contrastive.info_nce(jnp.float32(z), jnp.float32(t), jnp.float32(s), jnp.eye(9, dtype=bool))
    np.testing.assert_allclose(got, clip, rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_positives_agree_in_the_caption_or_in_the_class(ids):
    caption, group = (np.array(x, np.uint32) for x in zip(*ids, strict=True))
    two = lambda x: jnp.asarray(np.stack([x, x * 7], 1))  # noqa: E731
    got = np.asarray(contrastive.positives(two(caption), two(group)))
    wanted = (caption[:, None] == caption) | (group[:, None] == group)
    np.testing.assert_array_equal(got, wanted)
    assert np.diag(got).all() and (got == got.T).all()


def test_a_hash_that_agrees_in_one_word_only_is_no_positive():
    ids = jnp.array([[1, 2], [1, 3], [4, 2]], jnp.uint32)
    np.testing.assert_array_equal(contrastive.positives(ids), np.eye(3, dtype=bool))


def dino_oracle(student, teacher, centre, tau_s, tau_t):
    p_t = np.exp(log_softmax((teacher - centre) / tau_t))
    log_p = log_softmax(student / tau_s)
    terms = [
        -(p_t[:, q] * log_p[:, v]).sum(-1).mean()
        for q in range(teacher.shape[1])
        for v in range(student.shape[1])
        if q != v
    ]
    return np.mean(terms)


def dino_gradient_oracle(student, teacher, centre, tau_s, tau_t):
    """dH(p, softmax(x / tau)) / dx = (softmax(x / tau) - p) / tau, over batch and terms."""
    batch, views, _ = student.shape
    p_t = np.exp(log_softmax((teacher - centre) / tau_t))
    p_s = np.exp(log_softmax(student / tau_s))
    gradient, terms = np.zeros_like(student), 0
    for q in range(teacher.shape[1]):
        for v in range(views):
            if q != v:
                gradient[:, v] += (p_s[:, v] - p_t[:, q]) / tau_s / batch
                terms += 1
    return gradient / terms


@pytest.mark.parametrize("views", [2, 6])
def test_dino_equals_the_oracle_in_value_and_gradient_and_the_teacher_gets_none(views):
    rng = np.random.default_rng(2)
    student, teacher = rng.uniform(-1, 1, (5, views, 11)), rng.uniform(-1, 1, (5, 2, 11))
    centre = rng.normal(size=11) * 0.1
    loss = lambda s, t, c: distill.dino(s, distill.centred_targets(t, c, 0.05), temperature=0.1)  # noqa: E731
    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(*(jnp.float32(x) for x in (student, teacher, centre)))
    np.testing.assert_allclose(value, dino_oracle(student, teacher, centre, 0.1, 0.05), rtol=1e-5)
    np.testing.assert_allclose(
        gradients[0], dino_gradient_oracle(student, teacher, centre, 0.1, 0.05), rtol=1e-4, atol=1e-5
    )
    assert not np.any(gradients[1]) and not np.any(gradients[2])


def test_two_globals_and_eight_locals_make_dinos_eighteen_terms():
    rng = np.random.default_rng(3)
    student, teacher = rng.normal(size=(4, 10, 6)), rng.normal(size=(4, 2, 6))
    p_t, log_p = np.exp(log_softmax(teacher / 0.04)), log_softmax(student / 0.1)
    total = sum(-(p_t[:, q] * log_p[:, v]).sum(-1).mean() for q in (0, 1) for v in range(10) if v != q) / 18
    targets = distill.centred_targets(jnp.float32(teacher), jnp.zeros(6), 0.04)
    got = distill.dino(jnp.float32(student), targets, temperature=0.1)
    np.testing.assert_allclose(got, total, rtol=1e-5)


def test_the_centre_moves_to_the_mean_of_the_teachers_logits():
    rng = np.random.default_rng(4)
    teacher, centre = rng.normal(size=(6, 2, 5)), rng.normal(size=5)
    got = distill.update_centre(jnp.float32(centre), jnp.float32(teacher), 0.9)
    np.testing.assert_allclose(got, 0.9 * centre + 0.1 * teacher.reshape(12, 5).mean(0), rtol=1e-5)
