"""The map of embeddings: its affinities and its neighbourhoods against scikit-learn's, and its edges."""

import numpy as np
import pytest
from scipy.spatial.distance import squareform
from sklearn.manifold import TSNE, _utils, trustworthiness
from sklearn.manifold._t_sne import _joint_probabilities

from agriclip_jax.evaluate.embedding_map import affinities, embedding_map


def clustered(count=240, width=64, clusters=8, spread=0.7, seed=0):
    """Normalised embeddings around some centres, and which centre each belongs to."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % clusters
    points = rng.standard_normal((clusters, width))[labels] + spread * rng.standard_normal((count, width))
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32), labels


def squared_distances(points):
    return np.square(points[:, None].astype(np.float64) - points).sum(axis=-1)


@pytest.mark.parametrize("perplexity", [2.0, 30.0, 100.0])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_affinities_equal_those_of_scikit_learn(perplexity, scale):
    points = scale * clustered()[0]
    # scikit-learn's bisection begins at one precision whatever the scale, so it is given the unscaled distances.
    expected = squareform(_joint_probabilities(squared_distances(points / scale), perplexity, 0))
    np.testing.assert_allclose(affinities(points, perplexity), expected, rtol=1e-3, atol=1e-3 * expected.mean())


def test_each_point_has_the_neighbours_that_the_perplexity_says():
    distances = squared_distances(clustered()[0]).astype(np.float32)
    conditional = _utils._binary_search_perplexity(distances, 20.0, 0)
    expected = (conditional + conditional.T) / (2 * len(distances))
    found = np.asarray(affinities(clustered()[0], 20.0))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * expected.mean())
    assert found.sum() == pytest.approx(1, abs=1e-5) and not found.diagonal().any()
    np.testing.assert_allclose(found, found.T, rtol=1e-6)


def test_neighbours_in_the_map_are_neighbours_as_often_as_in_scikit_learns():
    points, labels = clustered(120)
    found = embedding_map(points)
    theirs = TSNE(method="exact", init="pca", random_state=0).fit_transform(points)
    assert trustworthiness(points, found, n_neighbors=10) >= trustworthiness(points, theirs, n_neighbors=10) - 0.01
    nearest = np.argsort(squared_distances(found), axis=1)[:, 1]
    assert (labels[nearest] == labels).mean() > 0.98


def test_the_same_embeddings_give_the_same_map_and_another_seed_may_give_another():
    points, _ = clustered(60)
    np.testing.assert_array_equal(embedding_map(points), embedding_map(points))
    assert np.abs(embedding_map(points, seed=1) - embedding_map(points)).max() > 0


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 12])
@pytest.mark.parametrize("width", [1, 2, 60])
def test_few_points_are_placed_apart(count, width):
    found = embedding_map(np.random.default_rng(0).standard_normal((count, width)).astype(np.float32))
    assert found.shape == (count, 2) and found.dtype == np.float32 and np.isfinite(found).all()
    apart = squared_distances(found)[~np.eye(count, dtype=bool)]
    assert (apart > 0).all()


def test_equal_embeddings_and_points_on_a_line_have_a_map_too():
    for points in (np.ones((50, 8)), np.arange(50.0)[:, None] * np.ones(8), np.repeat(clustered(5)[0], 40, axis=0)):
        found = embedding_map(points)
        assert np.isfinite(found).all() and (found.std(axis=0) > 0).all()
        np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-3)


def test_a_map_knows_neither_the_place_nor_the_scale_of_the_embeddings():
    points, labels = clustered(120)
    found = embedding_map(1e4 * points + 3e4)
    nearest = np.argsort(squared_distances(found), axis=1)[:, 1]
    assert (labels[nearest] == labels).mean() > 0.95
