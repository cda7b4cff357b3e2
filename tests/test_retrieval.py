"""Retrieval against plain sorting of a dense float64 matrix, at its edges, and in what must not change it."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate.retrieval import nearest, retrieve

SEEDS = st.integers(0, 2**32 - 1)
KS = (1, 2, 5)


def sorted_ranks(queries, candidates, query_keys, candidate_keys):
    """Ranks (ties lost, ties won) of each query's best relevant candidate by plain sorting; 0 without one."""
    scores, ranks = queries.astype(np.float64) @ candidates.T.astype(np.float64), []
    for row, key in zip(scores.tolist(), query_keys, strict=True):
        ranked = []
        for relevant_last in (True, False):
            hits = [key == other for other in candidate_keys]
            order = sorted(range(len(row)), key=lambda c: (-row[c], hits[c] == relevant_last))
            first = next((i for i, c in enumerate(order) if hits[c]), None)
            ranked.append(0 if first is None else 1 + first)
        ranks.append(ranked)
    return np.array(ranks).T


def chance(key_counts, candidates, k):
    """The share of all draws of k candidates that hold a relevant one, in exact arithmetic."""
    k = min(k, candidates)
    hit = [1 - Fraction(comb(candidates - relevant, k), comb(candidates, k)) for relevant in key_counts]
    return float(sum(hit) / len(hit))


def check(way, queries, candidates, query_keys, candidate_keys):
    lost, won = sorted_ranks(queries, candidates, query_keys, candidate_keys)
    asked = lost > 0
    assert (way.queries, way.left_out, way.candidates) == (asked.sum(), (~asked).sum(), len(candidates))
    assert way.ranks.dtype == np.int32
    np.testing.assert_array_equal(way.ranks, lost)
    assert way.ties == (won < lost).sum()
    assert way.median_rank == np.median(lost[asked])
    key_counts = [sum(key == other for other in candidate_keys) for key in np.asarray(query_keys)[asked]]
    for k in KS:
        assert way.recall[k] == (lost[asked] <= k).mean()
        assert way.recall_ties_won[k] == (won[asked] <= k).mean()
        assert way.chance[k] == pytest.approx(chance(key_counts, len(candidates), k), abs=1e-12)


def check_both(images, texts, image_keys, text_keys):
    found = retrieve(images, texts, np.array(image_keys), np.array(text_keys), ks=KS, block=16)
    check(found.image_to_text, images, texts, image_keys, text_keys)
    check(found.text_to_image, texts, images, text_keys, image_keys)
    recalls = [*found.image_to_text.recall.values(), *found.text_to_image.recall.values()]
    assert found.mean_recall == pytest.approx(np.mean(recalls), abs=1e-12)


def exact(rng, count, levels=2, width=3):
    """Embeddings whose products float32 holds exactly, with many ties among them."""
    return (rng.integers(-levels, levels + 1, (count, width)) / 4).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 30), st.integers(0, 4), SEEDS)
def test_every_number_equals_plain_sorting(n, m, keys, levels, seed):
    rng = np.random.default_rng(seed)
    image_keys, text_keys = rng.integers(-keys, keys, n), rng.integers(-keys, keys, m)
    text_keys[rng.integers(m)] = image_keys[rng.integers(n)]
    check_both(exact(rng, n, levels), exact(rng, m, levels), image_keys, text_keys)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 32])
@pytest.mark.parametrize("m", [1, 16, 33])
def test_the_edges_of_blocks_are_no_edges_of_the_numbers(n, m):
    rng = np.random.default_rng(n * m)
    check_both(exact(rng, n), exact(rng, m), np.arange(n) % 7, np.arange(m) % 5)


def test_one_key_for_all_is_always_right_and_chance_says_so():
    rng = np.random.default_rng(0)
    found = retrieve(exact(rng, 20), exact(rng, 33), np.zeros(20, int), np.zeros(33, int), block=16)
    for way in (found.image_to_text, found.text_to_image):
        assert set(way.recall.values()) == set(way.chance.values()) == {1.0}
        assert (way.median_rank, way.ties) == (1, 0)


def test_a_model_that_says_the_same_of_everything_finds_nothing_unless_ties_are_won():
    images, texts = np.ones((40, 4), np.float32), np.ones((40, 4), np.float32)
    found = retrieve(images, texts, np.arange(40), np.arange(40), block=16)
    for way in (found.image_to_text, found.text_to_image):
        assert set(way.recall.values()) == {0.0} and set(way.recall_ties_won.values()) == {1.0}
        assert way.ties == 40 and way.ranks.tolist() == [40] * 40
        assert way.chance == {k: pytest.approx(k / 40) for k in (1, 5, 10)}


def test_negative_scores_are_not_beaten_by_the_padding_of_a_block():
    images, texts = np.array([[1.0], [2.0]]), np.array([[-1.0], [-1.0], [-2.0]])
    found = retrieve(images, texts, np.array([7, 9]), np.array([7, 7, 9]), block=16)
    assert found.image_to_text.ranks.tolist() == [1, 3]
    assert found.text_to_image.ranks.tolist() == [1, 1, 2]


def test_several_captions_of_an_image_do_not_stand_in_each_others_way():
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[0.5, 0, 0], [0.75, 0, 0], [1, 0, 0], [0.625, 1, 0], [0, 0, 1]], np.float32)
    found = retrieve(images, texts, np.arange(3), np.array([0, 0, 0, 1, 2]), block=16)
    assert found.image_to_text.ranks.tolist() == [1, 1, 1]
    assert found.image_to_text.chance[1] == pytest.approx((3 / 5 + 1 / 5 + 1 / 5) / 3)
    assert found.text_to_image.queries == 5 and found.text_to_image.recall[1] == 1


def test_queries_without_a_partner_are_counted_and_stay_candidates():
    images = np.eye(3, dtype=np.float32)
    texts = np.array([[1, 0, 0], [2, 0, 0]], np.float32)  # the second has no image, and is nearer than the first
    found = retrieve(images, texts, np.array([0, 1, 2]), np.array([0, 99]), block=16)
    assert (found.image_to_text.queries, found.image_to_text.left_out) == (1, 2)
    assert (found.text_to_image.queries, found.text_to_image.left_out) == (1, 1)
    assert found.image_to_text.ranks.tolist() == [2, 0, 0] and found.text_to_image.ranks.tolist() == [1, 0]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), SEEDS)
def test_the_order_of_images_and_texts_changes_no_rank(n, m, seed):
    rng = np.random.default_rng(seed)
    images, texts = exact(rng, n), exact(rng, m)
    image_keys, text_keys = np.r_[0, rng.integers(0, 6, n - 1)], np.r_[0, rng.integers(0, 6, m - 1)]
    i, t = rng.permutation(n), rng.permutation(m)
    found = retrieve(images, texts, image_keys, text_keys, block=16)
    moved = retrieve(images[i], texts[t], image_keys[i], text_keys[t], block=16)
    np.testing.assert_array_equal(moved.image_to_text.ranks, found.image_to_text.ranks[i])
    np.testing.assert_array_equal(moved.text_to_image.ranks, found.text_to_image.ranks[t])


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), SEEDS)
def test_recall_grows_with_k_and_with_ties_won(count, seed):
    rng = np.random.default_rng(seed)
    keys = np.arange(count)
    found = retrieve(exact(rng, count), exact(rng, count), keys, keys, ks=range(1, 2 * count), block=16)
    for way in (found.image_to_text, found.text_to_image):
        for shares in (way.recall, way.recall_ties_won, way.chance):
            assert list(shares.values()) == sorted(shares.values()) and shares[count] == shares[2 * count - 1] == 1
        assert all(way.recall_ties_won[k] >= way.recall[k] for k in way.recall)


def test_equal_texts_tie_wherever_they_stand_also_in_numbers_that_round():
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((count, 512)).astype(np.float32) for count in (300, 400))
    images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    both = np.concatenate([texts, texts])  # of every text a twin, which is relevant to nothing
    found = retrieve(images, both, np.arange(300), np.r_[np.arange(400), np.arange(1000, 1400)], block=64)
    assert found.image_to_text.ties == found.image_to_text.queries == 300


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(1, 50), st.sampled_from([1, 3, 20, 60]), SEEDS)
def test_nearest_equals_a_stable_sort(q, n, k, seed):
    rng = np.random.default_rng(seed)
    queries, candidates = exact(rng, q), exact(rng, n)
    indices, scores = nearest(queries, candidates, k, block=16)
    dense = queries.astype(np.float64) @ candidates.T
    order = np.argsort(-dense, axis=1, kind="stable")[:, :k]
    assert indices.dtype == np.int32 and scores.dtype == np.float32
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(scores, np.take_along_axis(dense, order, axis=1))


@pytest.mark.parametrize(("n", "m"), [(3, 3), (0, 3), (3, 0), (0, 0)])
def test_nothing_that_belongs_together_is_one_line(n, m):
    with pytest.raises(UserError, match="none belong together"):
        retrieve(np.ones((n, 2)), np.ones((m, 2)), np.arange(n), np.arange(100, 100 + m))


def test_embeddings_that_are_not_finite_stop_the_evaluation():
    broken = np.array([[1, 0], [np.nan, 0]], np.float32)
    for images, texts in ((broken, np.eye(2)), (np.eye(2), broken)):
        with pytest.raises(RunFailure, match="not finite"):
            retrieve(images, texts, np.arange(2), np.arange(2), block=16)
