"""The aligner: one pass, the exact optimum, a bias that is right, and the strength that held-out photos ask for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from agriclip_jax import aligner, mesh
from agriclip_jax.errors import UserError


def pairs(n, d1=12, d2=5, seed=0, noise=0.1, offset=3.0):
    """x far from the origin and of unequal scales, and y an affine map of it with noise."""
    rng, truth = np.random.default_rng(seed), np.random.default_rng(99)
    x = rng.normal(size=(n, d1)) * np.logspace(-1, 1, d1) + offset
    y = x @ truth.normal(size=(d1, d2)) + truth.normal(size=d2) * 10 + noise * rng.normal(size=(n, d2))
    return x.astype(np.float32), y.astype(np.float32)


def batches(x, y, size=32):
    for start in range(0, len(x), size):
        rows = slice(start, start + size)
        fill = size - len(x[rows])
        # What fills up is not zero: only its weight says that it counts for nothing.
        parts = [np.concatenate([part[rows], np.full((fill, part.shape[1]), 7, np.float32)]) for part in (x, y)]
        yield *map(jnp.asarray, parts), jnp.asarray([1.0] * (size - fill) + [0.0] * fill)


def of(x, y, size=32):
    return aligner.moments(batches(x, y, size))


def test_moments_are_those_of_all_pairs_whatever_the_batches():
    x, y = pairs(150)
    got = of(x, y)
    a, b = x.astype(np.float64) - got.origin[0], y.astype(np.float64) - got.origin[1]
    assert got.count == 150
    for name, wanted in {"x": a.sum(0), "y": b.sum(0), "xx": a.T @ a, "xy": a.T @ b, "yy": np.sum(b * b)}.items():
        np.testing.assert_allclose(getattr(got, name), wanted, rtol=1e-5, atol=1e-3, err_msg=name)


@settings(deadline=None, max_examples=15)
@given(st.sampled_from(aligner.STRENGTHS), st.integers(0, 3), st.integers(20, 120))
def test_the_map_is_the_ridge_regression_of_centred_pairs_in_float64(strength, seed, n):
    x, y = (part.astype(np.float64) for part in pairs(n, seed=seed))
    fit = aligner.ridge(of(x.astype(np.float32), y.astype(np.float32)), of(*pairs(40, seed=9)), [strength])
    centred, target = x - x.mean(0), y - y.mean(0)
    mean_variance = (centred**2).mean()
    system = centred.T @ centred / n + strength * mean_variance * np.eye(x.shape[1])
    kernel = np.linalg.solve(system, centred.T @ target / n)
    wanted = x @ kernel + y.mean(0) - x.mean(0) @ kernel
    np.testing.assert_allclose(x @ fit.affine.kernel + fit.affine.bias, wanted, rtol=1e-4, atol=2e-3)


def test_the_strength_is_the_one_that_explains_most_of_the_held_out_pairs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 30)).astype(np.float32)
    y = (x[:, :1] + 2 * rng.normal(size=(40, 3))).astype(np.float32)
    other = rng.normal(size=(400, 30)).astype(np.float32)
    seen = (other[:, :1] + 2 * rng.normal(size=(400, 3))).astype(np.float32)
    fit = aligner.ridge(of(x, y), of(other, seen))
    assert fit.r2 == max(fit.tried.values()) > fit.tried[min(fit.tried)] + 0.1
    assert fit.strength > 1e-2
    predicted = other.astype(np.float64) @ fit.affine.kernel + fit.affine.bias
    explained = 1 - np.sum((seen - predicted) ** 2) / np.sum((seen - seen.mean(0)) ** 2)
    assert fit.r2 == pytest.approx(explained, abs=1e-5)


def test_features_far_from_the_origin_lose_no_digits():
    x, y = pairs(300, noise=0.01, offset=1000.0)
    assert aligner.ridge(of(x, y), of(*pairs(100, seed=1, noise=0.01, offset=1000.0))).r2 > 0.999


def test_the_bias_is_right_where_the_authors_is_not():
    x, y = pairs(300, noise=0.01)
    x = x / 20  # so that c1 is far from 1
    held_out = of(*((a / 20, b) for a, b in [pairs(100, seed=1, noise=0.01)]).__next__())
    fit = aligner.ridge(of(x, y), held_out)
    c1 = np.sqrt(4.5 / x.astype(np.float64).var())
    theirs = fit.affine._replace(bias=fit.affine.bias * c1)
    assert fit.r2 > 0.99 and aligner.r2(theirs, held_out) < 0


def test_the_authors_sgd_reaches_the_optimum_of_its_own_objective():
    x, y = pairs(200, d1=6, noise=0.5, offset=0.0)
    x = x / np.logspace(-1, 1, 6).astype(np.float32) + 0.5  # SGD with one rate needs equal scales
    got = aligner.sgd(x, y, epochs=3000, batch_size=200, period=10**9, seed=3)
    c1, c2 = np.sqrt(4.5 / x.var()), np.sqrt(4.5 / y.var())
    design = np.concatenate([x * c1, np.ones((200, 1))], 1).astype(np.float64)
    system = design.T @ design + 5e-4 * 200 * y.shape[1] / 2 * np.eye(7)
    optimum = np.linalg.solve(system, design.T @ (y * c2))
    np.testing.assert_allclose(got.kernel, optimum[:-1] * c1 / c2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(got.bias, optimum[-1] / c2, rtol=1e-3, atol=1e-3)


def test_a_sharded_pass_is_that_of_one_device():
    x, y = pairs(96)
    place = mesh.batch_sharding(mesh.make("data=4,fsdp=2"))
    whole, spread = of(x, y), aligner.moments(tuple(jax.device_put(p, place) for p in b) for b in batches(x, y))
    for one, other in zip(whole[:-1], spread[:-1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-3)
    assert isinstance(place, NamedSharding) and place.spec != PartitionSpec()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((8, 12), np.float32), r"an aligner of 12 features cannot be fitted on 8 photos"),
        (np.ones((40, 12), np.float32), r"the same for every photo"),
        (np.full((40, 12), np.nan, np.float32), r"not finite"),
    ],
)
def test_what_cannot_be_fitted_is_one_line(x, message):
    with pytest.raises(UserError, match=message):
        aligner.ridge(of(x, np.ones((len(x), 2), np.float32)), of(*pairs(40, d2=2)))


def test_the_authors_fit_of_what_never_varies_is_one_line_too():
    x, y = pairs(40)
    for same in ((np.ones_like(x), y), (x, np.ones_like(y))):
        with pytest.raises(UserError, match=r"the same for every photo"):
            aligner.sgd(*same, epochs=1)


def test_a_share_of_a_variance_that_there_is_not_is_one_line():
    x, y = pairs(40)
    fitted = aligner.ridge(of(x, y), of(x, y)).affine
    with pytest.raises(UserError, match=r"held out to judge an aligner by look all the same"):
        aligner.r2(fitted, of(x[:1], y[:1]))


def test_a_pass_without_a_photo_is_one_line():
    with pytest.raises(UserError, match="no photo"):
        aligner.moments([])
