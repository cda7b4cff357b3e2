"""Classifiers on frozen features: against scikit-learn and plain float64 loops, at their edges, and reordered."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from agriclip_jax.evaluate import probe
from agriclip_jax.evaluate.statistics import wilson

NONE = np.zeros((0, 6), np.float32), np.zeros(0, np.int64)  # features and labels of no image


def clusters(count, classes=4, width=6, noise=1.0, seed=0, among=None):
    """Features around one centre a class, far from zero and of unequal spread, and labels: all, or some of `among`."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    labels = rng.choice(np.arange(classes) if among is None else among, count)
    features = centres[labels] + noise * rng.normal(size=(count, width))
    return (10 + features * np.logspace(-1, 1, width)).astype(np.float32), labels


def scores_of(classifier, features):
    return np.concatenate(list(classifier.scores(features)))


def unit(features):
    features = features.astype(np.float64)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


# k-NN


def voted(train, train_labels, test, test_labels, classes, k):
    """Top-1, top-5 and mean per class by plain Python; of equal neighbours and of equal classes the first wins."""
    hits, hits5, recalls = 0, 0, {}
    for image, label in zip(unit(test), test_labels, strict=True):
        cosines = unit(train) @ image
        nearest = sorted(range(len(train)), key=lambda i: (-cosines[i], i))[:k]
        votes = {}
        for i in nearest:
            votes[train_labels[i]] = votes.get(train_labels[i], 0) + math.exp(cosines[i] / 0.07)
        order = sorted(votes, key=lambda c: (-votes[c], c))
        hits += order[0] == label
        hits5 += label in order[:5]
        recalls.setdefault(label, []).append(order[0] == label)
    return hits / len(test), hits5 / len(test), np.mean([np.mean(hit) for hit in recalls.values()])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 40), st.integers(1, 20), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_knn_equals_a_plain_loop_also_with_empty_classes_and_a_k_too_large(train_count, count, classes, seed):
    rng = np.random.default_rng(seed)
    train, test = rng.normal(size=(train_count, 6)), rng.normal(size=(count, 6))
    train_labels, labels = rng.integers(0, classes, train_count), rng.integers(0, classes, count)
    train_labels[:2] = 0, 1
    found = probe.knn(train, train_labels, test, labels, classes)
    assert [entry["k"] for entry in found["results"]] == [10, 20, 100, 200]
    for entry in found["results"]:
        top1, top5, per_class = voted(train, train_labels, test, labels, classes, entry["k"])
        assert entry["neighbours"] == min(entry["k"], train_count)
        assert entry["top1"] == pytest.approx(top1, abs=1e-12)
        assert entry["top5"] == (pytest.approx(top5, abs=1e-12) if classes > 5 else None)
        assert entry["mean_per_class"] == pytest.approx(per_class, abs=1e-12)
        assert entry["interval"] == list(wilson(round(top1 * count), count))


def test_knn_equals_scikit_learn_over_many_blocks():
    train, train_labels = clusters(9000, classes=7)
    test, labels = clusters(300, classes=7, seed=1)
    found = probe.knn(train, train_labels, test, labels, 7)
    for entry in found["results"]:
        oracle = KNeighborsClassifier(entry["k"], weights=lambda d: np.exp((1 - d**2 / 2) / 0.07), algorithm="brute")
        oracle.fit(unit(train), train_labels)
        assert entry["top1"] == pytest.approx(oracle.score(unit(test), labels), abs=1.1 / 300)  # a near tie may fall
    assert 0.3 < found["results"][0]["top1"] < 0.95


def test_of_equal_neighbours_those_that_come_first_vote_also_across_blocks():
    train, labels = np.ones((10_000, 6)), np.repeat([1, 0], 5_000)
    cosines, positions = probe._nearest(train, np.ones((3, 6)), 200)
    np.testing.assert_array_equal(positions, np.tile(np.arange(200), (3, 1)))
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    (entry, *_) = probe.knn(train, labels, np.ones((1, 6)), np.array([1]), 2)["results"]
    assert entry["top1"] == 1  # though 5,000 of class 0 are as near


def test_of_equal_votes_the_class_that_comes_first_wins_and_no_vote_is_no_answer():
    train, labels = np.eye(6), np.array([5, 4, 3, 2, 1, 1])
    (entry,) = probe.knn(train, labels, np.ones((5, 6)), np.array([0, 2, 2, 3, 5]), 7, neighbours=(4,))["results"]
    assert (entry["top1"], entry["top5"]) == (0.4, 0.8)  # 2 wins; 0 has no vote; 5, 4, 3, 2 have one each


@pytest.mark.parametrize(("nearer", "hit"), [(0.074, 0), (0.080, 1)])
def test_one_neighbour_outvotes_three_when_nearer_by_more_than_log_3_temperatures(nearer, hit):
    cosines = np.array([0.8, 0.8 - nearer, 0.8 - nearer, 0.8 - nearer])  # and 0.07 * log(3) is 0.0769
    train = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    found = probe.knn(train, np.array([0, 1, 1, 1]), np.array([[1.0, 0.0]]), np.array([0]), 2)
    assert found["results"][0]["top1"] == hit


# Linear probe


def whole(train, train_labels, val, val_labels):
    return np.concatenate([train, val]).astype(np.float64), np.concatenate([train_labels, val_labels])


def regressed(features, labels, l2):
    """scikit-learn's fit of the same objective: (mean, scale, fitted)."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-9] = np.inf
    # Of two classes scikit-learn has one weight vector, the difference of ours: half of our penalty.
    strength = l2 / 2 if len(np.unique(labels)) == 2 else l2
    oracle = LogisticRegression(C=1 / (len(labels) * strength), tol=1e-10, max_iter=20_000)
    return mean, scale, oracle.fit((features - mean) / scale, labels)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_the_linear_probe_equals_scikit_learns_coefficients_and_probabilities(l2, monkeypatch):
    monkeypatch.setattr(probe, "PROBE_L2", (l2,))
    fitted_on = *clusters(1100), *clusters(300, seed=1)
    test, labels = clusters(200, seed=2)
    found = probe.linear(*fitted_on, test, labels, 4)
    assert found.record["converged"] and l2 / 4 < found.record["l2"] < l2 * 4
    mean, scale, oracle = regressed(*whole(*fitted_on), found.record["l2"])
    np.testing.assert_allclose(found.weights * scale[:, None], oracle.coef_.T, atol=1e-3)
    bias = found.bias + mean @ found.weights
    np.testing.assert_allclose(bias - bias.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-3)
    probabilities = oracle.predict_proba((test - mean) / scale)
    np.testing.assert_array_equal(found.predicted, probabilities.argmax(axis=1))
    np.testing.assert_allclose(found.confidence, probabilities.max(axis=1), atol=1e-4)
    assert found.record["top1"] == np.mean(found.predicted == labels)


def test_weights_and_bias_give_the_predictions_and_confidences_again():
    test, labels = clusters(50, seed=2)
    found = probe.linear(*clusters(1100), *clusters(300, seed=1), test, labels, 4)
    odds = np.exp(test.astype(np.float64) @ found.weights + found.bias)
    np.testing.assert_array_equal((test @ found.weights + found.bias).argmax(axis=1), found.predicted)
    np.testing.assert_allclose((odds / odds.sum(axis=1, keepdims=True)).max(axis=1), found.confidence, atol=1e-4)


def test_two_of_four_classes_and_a_constant_channel():
    def of_two(count, seed):
        features, labels = clusters(count, seed=seed, among=[1, 3])
        features = features.astype(np.float64)
        features[:, 2] = 0.1  # whose computed deviation is not exactly 0
        return features, labels

    fitted_on, (test, labels) = (*of_two(1100, 0), *of_two(300, 1)), of_two(100, 2)
    found = probe.linear(*fitted_on, test, labels, 4)
    mean, scale, oracle = regressed(*whole(*fitted_on), found.record["l2"])
    probabilities = oracle.predict_proba((test - mean) / scale)
    np.testing.assert_array_equal(found.predicted, np.array([1, 3])[probabilities.argmax(axis=1)])
    np.testing.assert_allclose(found.confidence, probabilities.max(axis=1), atol=1e-3)
    np.testing.assert_array_equal(found.weights[2], 0)
    np.testing.assert_array_equal(found.weights[:, [0, 2]], 0)
    np.testing.assert_array_equal(np.isneginf(found.bias), [True, False, True, False])
    assert found.record["chance"] == 0.25


def test_separable_data_stay_finite_and_of_equal_accuracies_the_least_cross_entropy_wins():
    test, labels = clusters(100, noise=0.01, seed=2)
    found = probe.linear(*clusters(1100, noise=0.01), *clusters(300, noise=0.01, seed=1), test, labels, 4)
    assert found.record["top1"] == 1 and np.isfinite(found.weights).all() and np.isfinite(found.confidence).all()
    sweep = found.record["sweep"]
    assert sum(entry["accuracy"] == 1 for entry in sweep) > 1, "accuracy alone does not decide"
    best = min(sweep, key=lambda entry: (-entry["accuracy"], entry["cross_entropy"]))
    assert found.record["l2"] == best["l2"]


def test_the_sweep_holds_powers_of_ten_and_the_half_steps_beside_the_best():
    found = probe.linear(*clusters(1100), *clusters(300, seed=1), *clusters(100, seed=2), 4)
    sweep = [entry["l2"] for entry in found.record["sweep"]]
    halves = [l2 for l2 in sweep if l2 not in probe.PROBE_L2]
    assert set(probe.PROBE_L2) < set(sweep) and sweep == sorted(sweep)
    assert halves[1] / halves[0] == pytest.approx(10) and math.sqrt(math.prod(halves)) in map(pytest.approx, sweep)


def test_without_a_validation_split_a_seeded_tenth_is_held_out_and_said():
    train, test = clusters(1300), clusters(100, seed=2)
    found = probe.linear(*train, None, None, *test, 4, seed=3)
    assert found.record["val_held_out_with_seed"] == 3
    assert (found.record["train_images"], found.record["val_images"]) == (1170, 130)
    held = probe.hold_out(train[1], 3)
    kept = np.setdiff1d(np.arange(1300), held)
    given = probe.linear(train[0][kept], train[1][kept], train[0][held], train[1][held], *test, 4)
    assert given.record["val_held_out_with_seed"] is None
    assert given.record["sweep"] == found.record["sweep"] and given.record["top1"] == found.record["top1"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=2, max_size=8), st.integers(0, 2**32 - 1))
def test_what_is_held_out_is_a_tenth_spread_over_the_classes_that_keep_an_image_each(sizes, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    held = probe.hold_out(labels, seed)
    of_class = np.bincount(labels[held], minlength=len(sizes))
    spare = np.maximum(np.array(sizes) - 1, 0)
    assert len(held) == len(set(held.tolist())) == min(max(1, round(len(labels) / 10)), spare.sum())
    assert (of_class <= spare).all()
    if spare.any():
        assert (np.abs(of_class - len(held) * spare / spare.sum()) < 1 + 1e-9).all()
    np.testing.assert_array_equal(held, probe.hold_out(labels, seed))


# Few-shot


@pytest.mark.parametrize(("count", "width"), [(12, 40), (60, 6)], ids=["dual", "primal"])
def test_ridge_equals_scikit_learn_and_its_l2_is_the_one_of_least_leave_one_out_error(count, width):
    chosen = set()
    for seed, noise in enumerate([0.1, 0.5, 1, 2, 4, 8] * 2):
        features, labels = clusters(count, width=width, noise=noise, seed=seed, among=[0, 1, 3])
        classifier, l2 = probe.ridge(features, labels, 5)
        standard = (features - features.mean(axis=0, dtype=np.float64)) / features.std(axis=0, dtype=np.float64)
        targets = np.where(labels[:, None] == [0, 1, 3], 1.0, -1.0)
        oracle = RidgeCV(alphas=[count * grid for grid in probe.RIDGE_L2]).fit(standard, targets)
        assert count * l2 == pytest.approx(oracle.alpha_)
        np.testing.assert_allclose(classifier.weights[:, [0, 1, 3]], oracle.coef_.T, atol=1e-9)
        np.testing.assert_allclose(
            classifier.bias, [*oracle.intercept_[:2], -np.inf, oracle.intercept_[2], -np.inf], atol=1e-9
        )
        expected = oracle.predict(standard)
        np.testing.assert_allclose(scores_of(classifier, features)[:, [0, 1, 3]], expected, atol=1e-5)
        chosen.add(l2)
    assert len(chosen) > 2


def test_ridges_leave_one_out_error_is_what_leaving_out_one_by_one_gives(monkeypatch):
    features, labels = clusters(30, noise=2)
    standard = (features - features.mean(axis=0, dtype=np.float64)) / features.std(axis=0, dtype=np.float64)
    targets = np.where(labels[:, None] == np.arange(4), 1.0, -1.0)
    errors = {}
    for l2 in probe.RIDGE_L2:
        errors[l2] = 0.0
        for i in range(30):
            rest = np.arange(30) != i
            oracle = Ridge(alpha=30 * l2).fit(standard[rest], targets[rest])
            errors[l2] += np.sum((targets[i] - oracle.predict(standard[i : i + 1])) ** 2)
    by_error = sorted(errors, key=errors.get)
    for place in range(len(by_error) - 1):  # the best, the best but one, ...: every error is compared
        monkeypatch.setattr(probe, "RIDGE_L2", tuple(by_error[place:][::-1]))
        assert probe.ridge(features, labels, 4)[1] == by_error[place]


def test_centroid_is_the_nearest_mean_of_centred_normalised_features():
    features, labels = clusters(40, noise=2, among=[0, 2, 3])
    test, _ = clusters(300, noise=2, seed=1)
    classifier, l2 = probe.centroid(features, labels, 5)
    mean = features.mean(axis=0, dtype=np.float64)
    oracle = NearestCentroid().fit(unit(features - mean), labels)
    predicted = scores_of(classifier, test).argmax(axis=1)
    np.testing.assert_array_equal(predicted, oracle.predict(unit(test - mean)))
    assert l2 is None and len(set(predicted.tolist())) == 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=2, max_size=8), st.integers(1, 16), st.integers(0, 2**32 - 1))
def test_a_draw_holds_so_many_different_images_a_class_or_all_and_is_its_seeds(sizes, shots, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    drawn = probe.draw(labels, shots, seed)
    assert len(set(drawn.tolist())) == len(drawn)
    np.testing.assert_array_equal(np.bincount(labels[drawn], minlength=len(sizes)), np.minimum(sizes, shots))
    np.testing.assert_array_equal(drawn, probe.draw(labels, shots, seed))
    assert set(drawn.tolist()) <= set(probe.draw(labels, shots + 1, seed).tolist())


def test_a_draw_takes_every_image_equally_often():
    labels = np.repeat([0, 1], [4, 8])
    times = np.bincount(np.concatenate([probe.draw(labels, 2, seed) for seed in range(2000)]), minlength=12) / 2000
    np.testing.assert_allclose(times, np.repeat([1 / 2, 1 / 4], [4, 8]), atol=0.05)


def test_few_shot_says_means_over_draws_their_interval_and_which_classes_were_short():
    train, train_labels = clusters(200, classes=7, noise=1.5, among=[0, 1, 2, 3])
    train = np.concatenate([train, train[:3] + 1])
    train_labels = np.concatenate([train_labels, [4, 4, 5]])  # and none of class 6
    test, labels = clusters(300, classes=7, noise=1.5, seed=1)
    found = probe.few_shot(train, train_labels, test, labels, 7, draws=4, seed=5)
    assert [(entry["method"], entry["shots"]) for entry in found["results"]] == [
        (method, shots) for shots in (1, 2, 4, 8, 16) for method in ("ridge", "centroid")
    ]
    assert [entry["short_classes"] for entry in found["results"][::2]] == [1, 2, 3, 3, 3]
    entry = found["results"][-1]
    values = []
    drawn = [probe.draw(train_labels, 16, (5, index)) for index in range(4)]
    for rows in drawn:
        classifier, _ = probe.centroid(train[rows], train_labels[rows], 7)
        values.append(np.mean(scores_of(classifier, test).argmax(axis=1) == labels))
    assert entry["values"] == pytest.approx(values) and len(set(values)) > 1
    assert entry["top1"] == pytest.approx(np.mean(values))
    low, high = student.interval(0.95, 3, np.mean(values), np.std(values, ddof=1) / 2)
    assert entry["interval"] == pytest.approx([low, high])
    ridges = [probe.ridge(train[rows], train_labels[rows], 7)[1] for rows in drawn]
    assert (found["results"][-2]["l2"], entry["l2"]) == (ridges, [None] * 4)
    assert found == probe.few_shot(train, train_labels, test, labels, 7, draws=4, seed=5)
    assert found != probe.few_shot(train, train_labels, test, labels, 7, draws=4, seed=6)


def test_one_draw_has_no_interval_and_intervals_are_shares():
    train, test = clusters(200, noise=0.5), clusters(50, noise=0.5, seed=1)
    assert probe.few_shot(*train, *test, 4, shots=(1,), draws=1)["results"][0]["interval"] is None
    for entry in probe.few_shot(*train, *test, 4, draws=2)["results"]:
        low, high = entry["interval"]
        assert 0 <= low <= entry["top1"] <= high <= 1


def test_more_shots_help():
    train, test = clusters(400, noise=1.5), clusters(400, noise=1.5, seed=1)
    for method in ("ridge", "centroid"):
        results = probe.few_shot(*train, *test, 4)["results"]
        one, *_, sixteen = [entry["top1"] for entry in results if entry["method"] == method]
        assert one + 0.05 < sixteen


# All


def test_the_order_of_the_training_images_changes_no_accuracy():
    (train, labels), val, test = clusters(1100, noise=2), clusters(300, noise=2, seed=2), clusters(200, noise=2, seed=1)
    order = np.random.default_rng(0).permutation(1100)

    def asked(train, labels):
        few = probe.few_shot(train, labels, *test, 4, shots=(1100,), draws=1)  # all there are, whatever the draw
        return (
            probe.linear(train, labels, *val, *test, 4),
            probe.knn(train, labels, *test, 4),
            [entry["top1"] for entry in few["results"]],
        )

    (one, *others), (again, *others_again) = asked(train, labels), asked(train[order], labels[order])
    assert others == others_again
    assert (one.record["l2"], one.record["top1"]) == (again.record["l2"], again.record["top1"])
    np.testing.assert_allclose(one.weights, again.weights, atol=1e-3)


@pytest.mark.parametrize(("label", "hit"), [(2, 1), (3, 0)], ids=["class of one image", "empty class"])
def test_one_test_image_is_scored_in_a_class_of_one_image_and_in_one_of_none(label, hit):
    train, labels = clusters(1300, among=[0, 1])
    train[7], labels[7] = 100, 2  # far from all others; class 3 has no image
    asked = train, labels, train[7:8], np.array([label]), 4
    (nearest,) = probe.knn(*asked, neighbours=(1,))["results"]
    found = probe.linear(*asked[:2], None, None, *asked[2:])
    few = probe.few_shot(*asked)["results"]
    assert [nearest["top1"], found.record["top1"], *(entry["top1"] for entry in few)] == [hit] * (2 + len(few))
    assert found.record["converged"]
    assert nearest["images"] == found.record["images"] == 1 and found.predicted.tolist() == [2]


@pytest.mark.parametrize("measure", [probe.knn, probe.few_shot, "linear"])
def test_what_cannot_be_scored_says_why(measure):
    def asked(train, test):
        if measure == "linear":
            found = probe.linear(*train, None, None, *test, 4)
            assert found.weights is found.predicted is None
            return found.record
        return measure(*train, *test, 4)

    assert asked(clusters(20), NONE) == {"reason": "no test image"}
    few = {"reason": "fewer than two classes have training images"}
    assert asked(clusters(20, among=[2]), clusters(5)) == asked(NONE, clusters(5)) == few


def test_a_linear_probe_that_has_nothing_to_choose_l2_on_says_so():
    train, test = clusters(4), clusters(5)
    found = probe.linear(train[0], np.arange(4), None, None, *test, 4)
    assert found.record == {"reason": "no class has a second training image to choose l2 on"}


def test_every_record_is_plain_json():
    train, test = clusters(1300), clusters(20, seed=1)
    for record in (
        probe.knn(*train, *test, 4),
        probe.linear(*train, None, None, *test, 4).record,
        probe.few_shot(*train, *test, 4, draws=2),
    ):
        assert json.loads(json.dumps(record, allow_nan=False)) == record
