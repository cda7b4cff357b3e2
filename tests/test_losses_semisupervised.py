"""Optimal transport and the S-CLIP losses against dense float64 NumPy, value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from test_losses import info_nce_oracle, log_softmax, unit

from agriclip_jax.losses import contrastive, semisupervised
from agriclip_jax.losses.transport import transport

transported = jax.jit(transport, static_argnums=1)
seeds = st.integers(0, 2**32 - 1)


def central_differences(f, x, step=1e-6):
    """The gradient of a float64 function of one array."""
    x, gradient = np.array(x, float), np.zeros(np.shape(x))
    for at in np.ndindex(x.shape):
        kept = x[at]
        x[at] = kept + step
        above = f(x)
        x[at] = kept - step
        gradient[at] = (above - f(x)) / (2 * step)
        x[at] = kept
    return gradient


def single(*arrays):
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


def kernel_plan(cosines, scale, iterations=10):
    """Sinkhorn as it is written for vectors and a kernel, `diag(u) K diag(v)`, then each row over its sum."""
    rows, columns = cosines.shape
    kernel, u = np.exp(-(1 - cosines) * scale), np.ones(rows) / rows
    for _ in range(iterations):
        v = (1 / columns) / (kernel.T @ u)
        u = (1 / rows) / (kernel @ v)
    plan = u[:, None] * kernel * v
    return plan / plan.sum(1, keepdims=True)


@pytest.mark.parametrize("rows,columns,scale", [(8, 8, 14.3), (24, 16, 50.0), (16, 24, 100.0)])
def test_the_plan_equals_the_kernel_form_in_float64(rows, columns, scale):
    rng = np.random.default_rng(0)
    cosines = unit(rng, rows, 16) @ unit(rng, columns, 16).T
    got = transported(jnp.float32(scale * cosines), 10)
    np.testing.assert_allclose(got, kernel_plan(cosines, scale), atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(seeds, st.floats(0.1, 100.0))
def test_rows_are_exact_and_columns_come_nearer_with_every_iteration(seed, scale):
    rng = np.random.default_rng(seed)
    cosines = unit(rng, 12, 16) @ unit(rng, 8, 16).T
    plans = {n: np.asarray(transported(jnp.float32(scale * cosines), n)) for n in (1, 3, 10)}
    for plan in plans.values():
        assert (plan >= 0).all()
        np.testing.assert_allclose(plan.sum(1), 1, atol=1e-6)
    off = {n: np.abs(plan.sum(0) - 12 / 8).sum() for n, plan in plans.items()}
    assert off[10] <= off[3] + 1e-5 <= off[1] + 2e-5
    if scale < 10:
        assert off[10] < 0.05


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_the_order_of_rows_and_columns_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    logits, i, j = 20 * rng.uniform(-1, 1, (12, 8)), rng.permutation(12), rng.permutation(8)
    shuffled = transported(jnp.float32(logits[i][:, j]), 10)
    np.testing.assert_allclose(shuffled, transported(jnp.float32(logits), 10)[i][:, j], atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_a_constant_added_to_a_column_or_to_a_row_changes_nothing(seed):
    """The share of a column is given, however near to everything it is: what tells this from softmax."""
    rng = np.random.default_rng(seed)
    logits = 5 * rng.uniform(-1, 1, (8, 8))
    moved = logits + 10 * rng.normal(size=(8, 1)) + 10 * rng.normal(size=8)
    got, wanted = (transported(jnp.float32(x), 300) for x in (moved, logits))
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_without_regularisation_the_plan_is_the_cheapest_assignment():
    rng = np.random.default_rng(1)
    logits = rng.uniform(-1, 1, (8, 8))
    rows, columns = linear_sum_assignment(-logits)
    assert (columns != logits.argmax(1)).any()
    wanted = np.zeros((8, 8))
    wanted[rows, columns] = 1
    np.testing.assert_allclose(transported(jnp.float32(300 * logits), 2000), wanted, atol=1e-2)


def test_with_all_regularisation_the_plan_is_uniform():
    np.testing.assert_allclose(transported(jnp.zeros((6, 4)), 10), np.full((6, 4), 1 / 4), rtol=1e-6)


def test_opposite_embeddings_at_scale_100_do_not_underflow():
    """`exp(-100 (1 - cos))` is 0 in float32 for every pair here, so the kernel form would divide by 0."""
    cosines = np.random.default_rng(2).uniform(-1.0, -0.8, (8, 8))
    assert (np.exp(np.float32(-100 * (1 - cosines))) == 0).all()
    logits = jnp.float32(100 * cosines)
    np.testing.assert_allclose(transported(logits, 10), kernel_plan(cosines, 100.0), atol=2e-5)
    assert np.isfinite(jax.grad(lambda x: jnp.sum(transported(x, 10) ** 2))(logits)).all()


@settings(deadline=None, max_examples=20)
@given(st.lists(st.booleans(), min_size=12, max_size=12).filter(any), seeds)
def test_rows_that_do_not_count_take_no_share(counted, seed):
    logits, counted = np.random.default_rng(seed).normal(size=(12, 5)), np.array(counted)
    got = transported(jnp.float32(logits), 3, jnp.asarray(counted))
    np.testing.assert_allclose(got[counted], kernel_plan(logits[counted], 1.0, 3), atol=1e-5)
    np.testing.assert_allclose(np.sum(got, axis=1), 1, atol=1e-6)


def test_when_no_row_counts_the_plan_is_finite():
    logits = jnp.arange(12.0).reshape(4, 3) ** 2
    np.testing.assert_array_equal(transported(logits, 3, jnp.zeros(4, bool)), transported(logits, 3))


def batch(seed=0, paired=8, unpaired=12, dim=7):
    rng = np.random.default_rng(seed)
    return unit(rng, paired, dim), unit(rng, paired, dim), unit(rng, unpaired, dim)


def info_nce_with_unpaired_oracle(z, t, u, s, positive):
    q = positive / positive.sum(1, keepdims=True)
    padded = np.concatenate([q, np.zeros((len(t), len(u)))], axis=1)
    everything = np.concatenate([z, u])
    forward = -(q * log_softmax(s * z @ t.T)).sum(1).mean()
    return 0.5 * (forward - (padded * log_softmax(s * t @ everything.T)).sum(1).mean())


@pytest.mark.parametrize("groups", [np.arange(8), np.arange(8) % 3])
def test_info_nce_with_unpaired_equals_the_oracle_in_value_and_gradient(groups):
    (z, t, u), s = batch(), 14.3
    positive = groups[:, None] == groups
    loss = jax.jit(jax.value_and_grad(semisupervised.info_nce_with_unpaired, (0, 1, 2, 3)))
    value, gradients = loss(*single(z, t, u, s), jnp.asarray(positive))
    np.testing.assert_allclose(value, info_nce_with_unpaired_oracle(z, t, u, s, positive), rtol=1e-5)
    inputs = [z, t, u, s]
    for i, got in enumerate(gradients):
        of = lambda x, i=i: info_nce_with_unpaired_oracle(*inputs[:i], x, *inputs[i + 1 :], positive)  # noqa: E731
        np.testing.assert_allclose(got, central_differences(of, inputs[i]), rtol=1e-4, atol=1e-5)


def test_without_unpaired_images_it_is_info_nce():
    z, t, _ = batch()
    positive = (np.arange(8) % 3)[:, None] == np.arange(8) % 3
    got = semisupervised.info_nce_with_unpaired(*single(z, t, np.zeros((0, 7)), 10.0), jnp.asarray(positive))
    np.testing.assert_allclose(got, info_nce_oracle(z, t, 10.0, positive), rtol=1e-5)
    np.testing.assert_allclose(got, contrastive.info_nce(*single(z, t, 10.0), jnp.asarray(positive)), rtol=1e-5)


def labels_oracle(u, paired, s, assignment):
    cosines = u @ paired.T
    if assignment == "ot":
        return kernel_plan(cosines, s)
    return np.eye(len(paired))[cosines.argmax(1)] if assignment == "hard" else np.exp(log_softmax(s * cosines))


@pytest.mark.parametrize("assignment", ["hard", "soft", "ot"])
def test_caption_labels_compare_with_the_images_or_with_the_texts_as_they_are_given(assignment):
    z, t, u = batch()
    for paired in (z, t):
        got = semisupervised.caption_labels(*single(u, paired, 14.3), assignment=assignment)
        np.testing.assert_allclose(got, labels_oracle(u, paired, 14.3, assignment), atol=1e-5)
    assert np.abs(labels_oracle(u, z, 14.3, assignment) - labels_oracle(u, t, 14.3, assignment)).max() > 0.1


def test_every_assignment_gives_each_image_its_own_double_when_it_is_sure():
    z, _, _ = batch(paired=8, dim=16)
    order = np.random.default_rng(3).permutation(8)
    for assignment in semisupervised.ASSIGNMENTS:
        got = semisupervised.caption_labels(*single(z[order], z, 1000.0), assignment=assignment)
        np.testing.assert_allclose(got, np.eye(8)[order], atol=1e-6)


def pseudo_label_oracle(u, t, s, labels):
    return -0.5 * (labels * log_softmax(s * u @ t.T)).sum(1).mean()


@functools.partial(jax.jit, static_argnames=("assignment", "detached"))
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2, 3))
def caption_loss(u, z, t, s, assignment, detached):
    labels = semisupervised.caption_labels(u, z, s, assignment=assignment, detached=detached)
    return semisupervised.pseudo_label_loss(u, t, s, labels)


@pytest.mark.parametrize("assignment", ["hard", "soft", "ot"])
@pytest.mark.parametrize("detached", [True, False])
def test_the_caption_loss_equals_the_oracle_in_value_and_gradient_with_its_labels_detached_or_not(assignment, detached):
    (z, t, u), s = batch(paired=5, unpaired=6, dim=4), 14.3
    value, gradients = caption_loss(*single(u, z, t, s), assignment, detached)
    fixed = labels_oracle(u, z, s, assignment)
    np.testing.assert_allclose(value, pseudo_label_oracle(u, t, s, fixed), rtol=1e-5)
    inputs = [u, z, t, s]

    def oracle(x, i):
        u, z, t, s = (*inputs[:i], x, *inputs[i + 1 :])
        return pseudo_label_oracle(u, t, s, fixed if detached else labels_oracle(u, z, s, assignment))

    for i, got in enumerate(gradients):
        wanted = central_differences(lambda x, i=i: oracle(x, i), inputs[i])
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    assert np.any(gradients[1]) == (not detached and assignment != "hard")


MENTIONS = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], bool)
NEAREST = np.array([0, 1, 2, 0, 0])


def keyword_labels(u, e, s, **options):
    captions = np.eye(3)[NEAREST] * 0.6 + 0.4 / 3
    return semisupervised.keyword_labels(*single(u, e, s, captions), jnp.asarray(MENTIONS), **options)


def keyword_oracle(u, e, s, linear):
    labels = np.zeros((len(u), len(e)))
    for j, nearest in enumerate(NEAREST):
        candidates = np.flatnonzero(MENTIONS[nearest])
        if len(candidates):
            cosines = e[candidates] @ u[j]
            weights = np.maximum(cosines, 0) if linear else np.exp(s * (cosines - cosines.max()))
            labels[j, candidates] = weights / weights.sum() if weights.any() else 1 / len(candidates)
    return labels


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_keyword_labels_spread_over_the_candidates_of_the_likeliest_caption(linear, scale):
    rng = np.random.default_rng(5)
    u, e = unit(rng, 5, 6), unit(rng, 4, 6)
    u[4] = -e[[0, 1, 3]].sum(0) / np.linalg.norm(e[[0, 1, 3]].sum(0))
    assert (e[[0, 1, 3]] @ u[4] < 0).all()
    got = np.asarray(keyword_labels(u, e, scale, linear=linear))
    np.testing.assert_allclose(got, keyword_oracle(u, e, scale, linear), atol=2e-5)
    np.testing.assert_array_equal(got[1], [0, 1, 0, 0])
    np.testing.assert_array_equal(got[2], 0)
    np.testing.assert_allclose(got.sum(1), [1, 1, 0, 1, 1], rtol=1e-6)
    assert (got >= 0).all()


@pytest.mark.parametrize("linear", [False, True])
def test_the_keyword_loss_equals_the_oracle_in_value_and_gradient_and_its_labels_are_detached(linear):
    rng = np.random.default_rng(6)
    u, e, s = unit(rng, 5, 6), unit(rng, 4, 6), 14.3
    fixed = keyword_oracle(u, e, s, linear)

    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def loss(u, e, s):
        return semisupervised.pseudo_label_loss(u, e, s, keyword_labels(u, e, s, linear=linear))

    value, gradients = loss(*single(u, e, s))
    np.testing.assert_allclose(value, pseudo_label_oracle(u, e, s, fixed), rtol=1e-5)
    for i, got in enumerate(gradients):
        inputs = [u, e, s]
        of = lambda x, i=i: pseudo_label_oracle(*inputs[:i], x, *inputs[i + 1 :], fixed)  # noqa: E731, B023
        np.testing.assert_allclose(got, central_differences(of, inputs[i]), rtol=1e-4, atol=1e-5)


def test_an_image_without_candidates_adds_nothing_and_counts_in_the_mean():
    rng = np.random.default_rng(7)
    u, t, labels = unit(rng, 4, 6), unit(rng, 3, 6), np.eye(3)[[0, 1, 2, 0]]
    loss = lambda u, labels: semisupervised.pseudo_label_loss(*single(u, t, 10.0, labels))  # noqa: E731
    padded = loss(np.concatenate([u, unit(rng, 4, 6)]), np.concatenate([labels, np.zeros((4, 3))]))
    np.testing.assert_allclose(padded, loss(u, labels) / 2, rtol=1e-6)
