"""Measures of classification: against scikit-learn and float64 NumPy, at their edges, and in bounded memory."""

import math
from itertools import pairwise

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp
from sklearn import metrics as sk

from agriclip_jax.evaluate import measures, statistics

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 40)
class_counts = st.integers(1, 8)


def on_a_grid(rng, count, classes, width=3):
    """Embeddings whose products are exact in float32, so that ties are ties, and labels."""
    images, names = (rng.integers(-2, 3, (n, width)).astype(np.float32) / 4 for n in (count, classes))
    return images, names, rng.integers(0, classes, count)


def on_the_sphere(rng, count, classes, width=8):
    images, names = (rng.standard_normal((n, width)) for n in (count, classes))
    images, names = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, names))
    return images.astype(np.float32), names.astype(np.float32), rng.integers(0, classes, count)


def softmax(logits):
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


def cosines_of(images, names):
    return images.astype(np.float64) @ names.T.astype(np.float64)


def said(labels, predicted, classes):
    """Answers of which only the predictions matter."""
    labels, predicted = np.array(labels), np.array(predicted)
    unused = np.zeros(len(labels))
    return measures.Answers(classes, labels, predicted, (labels != predicted) * 1, unused)


@settings(max_examples=60, deadline=None)
@given(counts, class_counts, st.sampled_from([0.0, 1.0, 30.0]), seeds)
def test_answers_equal_those_of_the_whole_matrix_also_with_ties(count, classes, scale, seed):
    images, names, labels = on_a_grid(np.random.default_rng(seed), count, classes)
    found, cosines = measures.classify(images, names, labels, scale), cosines_of(images, names)
    orders = [sorted(range(classes), key=lambda c, row=row: (-row[c], c)) for row in cosines.tolist()]
    assert found.classes == classes
    assert found.predicted.tolist() == [order[0] for order in orders]
    assert found.rank.tolist() == [order.index(label) for order, label in zip(orders, labels, strict=True)]
    assert found.right.tolist() == (found.rank == 0).tolist()
    expected = softmax(scale * cosines)
    np.testing.assert_allclose(found.confidence, expected.max(axis=1), rtol=1e-5)


def test_each_image_may_have_its_own_scale():
    images, names, labels = on_the_sphere(np.random.default_rng(0), 5, 4)
    found = measures.classify(images, names, labels, np.array([0.0, 1, 2, 3, 40]))
    for i, scale in enumerate((0.0, 1, 2, 3, 40)):
        alone = measures.classify(images[i : i + 1], names, labels[i : i + 1], scale)
        assert found.confidence[i] == pytest.approx(alone.confidence[0], rel=1e-6)


@pytest.mark.parametrize("classes", [3, 5, 6, 20])
def test_scores_equal_those_of_scikit_learn(classes):
    images, names, labels = on_the_sphere(np.random.default_rng(classes), 300, classes)
    images = images + names[labels] / 2
    answers, cosines = measures.classify(images, names, labels, 20.0), cosines_of(images, names)
    found = measures.score(answers)
    predicted, every = cosines.argmax(axis=1), np.arange(classes)
    assert found.images == 300 and found.chance == 1 / classes
    assert found.top1 == pytest.approx(sk.accuracy_score(labels, predicted))
    top5 = sk.top_k_accuracy_score(labels, cosines, k=5, labels=every) if classes > 5 else None
    assert found.top5 == (pytest.approx(top5) if top5 else None)
    assert found.mean_per_class == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert found.macro_f1 == pytest.approx(sk.f1_score(labels, predicted, average="macro"))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
@settings(max_examples=60, deadline=None)
@given(counts, class_counts, class_counts, seeds)
def test_means_over_classes_leave_out_the_empty_ones_as_scikit_learn_does(count, true, predicted, seed):
    rng = np.random.default_rng(seed)
    labels, answers = rng.integers(0, true, count), rng.integers(0, predicted, count)
    found = measures.score(said(labels, answers, 9))
    assert found.mean_per_class == pytest.approx(sk.balanced_accuracy_score(labels, answers))
    assert found.macro_f1 == pytest.approx(sk.f1_score(labels, answers, average="macro"))
    for name, (low, high) in found.bootstrap.items():
        assert 0 <= low <= getattr(found, name) <= high <= 1
    assert found.interval[0] <= found.top1 <= found.interval[1]


@pytest.mark.parametrize(
    ("labels", "predicted", "expected"),
    [
        ([0], [0], (1, 1, 1)),  # one image
        ([0], [1], (0, 0, 0)),
        ([2, 2, 2], [2, 2, 2], (1, 1, 1)),  # one class has images
        ([0, 1, 2], [1, 2, 0], (0, 0, 0)),  # all wrong
        ([0] * 9 + [1], [0] * 10, (0.9, 0.5, 9 / 19)),  # a rare class weighs as much as a common one
    ],
)
def test_scores_at_their_edges(labels, predicted, expected):
    found = measures.score(said(labels, predicted, 3))
    assert (found.top1, found.mean_per_class, found.macro_f1) == pytest.approx(expected)


def test_bootstrap_intervals_cover_the_truth_about_95_times_in_100():
    rng, hit = np.random.default_rng(0), np.array([0.9, 0.6, 0.3])
    says = np.array([[0.9, 0.1, 0], [0.2, 0.6, 0.2], [0, 0.7, 0.3]])
    f1 = 2 * hit / (1 + says.sum(axis=0))
    truth = {"top1": hit.mean(), "mean_per_class": hit.mean(), "macro_f1": f1.mean()}
    covered = dict.fromkeys(truth, 0)
    for _ in range(120):
        labels = rng.integers(0, 3, 150)
        predicted = (rng.random((150, 1)) > says.cumsum(axis=1)[labels]).sum(axis=1)
        intervals = measures.score(said(labels, predicted, 3)).bootstrap
        for name, share in truth.items():
            covered[name] += intervals[name][0] <= share <= intervals[name][1]
    assert all(0.89 < hits / 120 < 0.995 for hits in covered.values()), covered


def test_the_interval_of_a_mean_over_classes_also_holds_where_many_have_one_image():
    # Drawn again, a class of one image is missed in 37 of 100 draws, and the mean leans to the larger classes.
    rng, covered = np.random.default_rng(0), 0
    labels = np.concatenate([np.arange(60), np.repeat(np.arange(60, 100), 9)])
    chance_of_hit = np.where(labels < 60, 0.1, 0.7)
    for _ in range(60):
        predicted = np.where(rng.random(len(labels)) < chance_of_hit, labels, 100)
        low, high = measures.score(said(labels, predicted, 101)).bootstrap["mean_per_class"]
        covered += low <= 0.6 * 0.1 + 0.4 * 0.7 <= high
    assert covered >= 54


def test_the_same_seed_gives_the_same_intervals_and_another_gives_others():
    rng = np.random.default_rng(0)
    answers = said(rng.integers(0, 5, 99), rng.integers(0, 5, 99), 5)
    assert measures.score(answers) == measures.score(answers) != measures.score(answers, seed=1)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (1, 1, 0.2065493, 1.0)],
)
def test_wilson_interval_equals_published_values(hits, count, low, high):
    # R: prop.test(hits, count, correct = FALSE)$conf.int
    assert statistics.wilson(hits, count) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_the_wilson_interval_covers_the_truth_about_95_times_in_100():
    draws = np.random.default_rng(0).binomial(200, 0.3, 4000)
    covered = np.mean([low <= 0.3 <= high for low, high in (statistics.wilson(int(hits), 200) for hits in draws)])
    assert 0.94 < covered < 0.96


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=40, deadline=None)
@given(counts, class_counts, seeds)
def test_the_confusion_and_its_largest_cells_equal_scikit_learns(count, classes, seed):
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, (2, count))
    cells = statistics.confusion(labels, predicted, classes)
    np.testing.assert_array_equal(cells, sk.confusion_matrix(labels, predicted, labels=np.arange(classes)))
    assert cells.dtype == np.int64
    mistakes = [(t, p, int(n)) for (t, p), n in np.ndenumerate(cells) if t != p and n]
    mistakes.sort(key=lambda mistake: (-mistake[2], mistake[:2]))
    assert statistics.confused_pairs(labels, predicted, 3) == mistakes[:3]


def test_the_largest_mistakes_of_very_many_classes_need_no_matrix_of_them():
    labels, predicted = np.array([10**9, 10**9, 5, 7]), np.array([3, 3, 10**9, 7])
    assert statistics.confused_pairs(labels, predicted, 9) == [(10**9, 3, 2), (5, 10**9, 1)]


def expected_calibration_error(confidence, right):
    edges, error = np.linspace(0, 1, 16), 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def best_scale(cosines, labels):
    def loss(log_scale):
        return sk.log_loss(labels, softmax(math.exp(log_scale) * cosines), labels=np.arange(cosines.shape[1]))

    return math.exp(minimize_scalar(loss, bounds=np.log(measures.SCALES), method="bounded", options={"xatol": 1e-9}).x)


def betting(rng, count, classes, scale):
    """A task whose classes are drawn by the softmax at `scale`, which is therefore the honest one."""
    images, names, _ = on_the_sphere(rng, count, classes)
    odds = softmax(scale * cosines_of(images, names)).cumsum(axis=1)
    return images, names, np.minimum((rng.random((count, 1)) > odds).sum(axis=1), classes - 1)


def calibrated(images, names, labels, scale, seed=0):
    return measures.calibration(measures.classify(images, names, labels, scale), images, names, seed)


def test_calibration_equals_float64_and_each_half_is_read_at_the_scale_of_the_other():
    images, names, labels = betting(np.random.default_rng(0), 400, 6, 5.0)
    found, cosines = calibrated(images, names, labels, 20.0, seed=3), cosines_of(images, names)
    right = cosines.argmax(axis=1) == labels
    assert found.error == pytest.approx(expected_calibration_error(softmax(20 * cosines).max(axis=1), right), abs=1e-5)
    assert found.logit_scale == pytest.approx(best_scale(cosines, labels), rel=1e-3)
    order = np.random.default_rng(3).permutation(400)
    confidence = np.empty(400)
    for half, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        confidence[half] = softmax(best_scale(cosines[other], labels[other]) * cosines[half]).max(axis=1)
    assert found.fitted_error == pytest.approx(expected_calibration_error(confidence, right), abs=2e-3)


def test_fitting_finds_the_honest_scale_and_the_bins_lie_on_the_diagonal():
    images, names, labels = betting(np.random.default_rng(1), 4000, 5, 8.0)
    found = calibrated(images, names, labels, 80.0)
    assert found.logit_scale == pytest.approx(8, rel=0.1)
    assert found.error > 0.15 > 0.04 > found.fitted_error
    honest = calibrated(images, names, labels, 8.0)
    assert all(abs(b.confidence - b.accuracy) < 0.1 for b in honest.bins if b.count > 200)
    assert sum(b.count for b in honest.bins) == 4000
    assert [b.confidence for b in honest.bins] == sorted(b.confidence for b in honest.bins)


def test_the_bins_are_fifteen_equal_ones_of_the_confidence():
    images, names, labels = on_the_sphere(np.random.default_rng(2), 3000, 40)
    found = calibrated(images, names, labels, 3.0)
    confidence = measures.classify(images, names, labels, 3.0).confidence
    counted, _ = np.histogram(confidence, np.linspace(0, 1, 16))
    assert counted[:3].all()
    assert [b.count for b in found.bins] == counted[counted > 0].tolist()
    assert [int(15 * b.confidence) for b in found.bins] == np.flatnonzero(counted).tolist()


def test_a_scale_is_fitted_on_a_bounded_number_of_images(monkeypatch):
    images, names, labels = betting(np.random.default_rng(1), 300, 5, 8.0)
    monkeypatch.setattr(measures, "BLOCK_IMAGES", 50)
    found = calibrated(images, names, labels, 8.0, seed=4)
    some = np.random.default_rng(4).permutation(300)[:50]
    assert found.logit_scale == pytest.approx(best_scale(cosines_of(images[some], names), labels[some]), rel=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_calibration_of_all_right_and_of_all_wrong_is_finite_and_bounded(count):
    names = np.eye(3, dtype=np.float32)
    labels = np.arange(count) % 3
    right, wrong = (calibrated(names[shown], names, labels, 10.0) for shown in (labels, (labels + 1) % 3))
    low, high = measures.SCALES
    assert right.logit_scale <= high and right.error < 1e-3
    assert low <= wrong.logit_scale < 1.01 * low and wrong.error > 0.99
    if count == 1:
        assert right.fitted_error is wrong.fitted_error is None
    else:
        assert right.fitted_error == pytest.approx(0, abs=1e-6)
        assert wrong.fitted_error == pytest.approx(1 / 3, abs=0.01)


def test_calibration_of_a_model_that_says_the_same_of_everything_claims_no_confidence():
    same = np.ones((6, 1), np.float32)
    found = calibrated(same, same[:3], np.arange(6) % 3, 100.0)
    assert found.error == pytest.approx(0, abs=1e-6) and len(found.bins) == 1
    assert found.logit_scale < 1.01 * measures.SCALES[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(1, 5), seeds)
def test_auroc_equals_that_of_scikit_learn_also_with_ties(count, levels, seed):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, levels, count) / 8, rng.permutation(np.arange(count) < rng.integers(1, count))
    assert measures.auroc(scores, positive) == pytest.approx(sk.roc_auc_score(positive, scores))


@pytest.mark.parametrize("folds", [2, 4, 6])
@pytest.mark.parametrize("scale", [0.0, 3.0, 300.0])
def test_open_set_equals_leaving_out_one_fold_of_classes_after_another(scale, folds):
    images, names, labels = on_the_sphere(np.random.default_rng(0), 120, 6)
    images, expected = images + names[labels], []
    deal = np.random.default_rng(7).permutation(6)
    for held_out in (deal[start::folds] for start in range(folds)):
        cosines = np.delete(cosines_of(images, names), held_out, axis=1)
        behind = scale * np.sort(cosines - cosines.max(axis=1, keepdims=True), axis=1)[:, :-1]
        scores = cosines.max(axis=1), -logsumexp(behind, axis=1)  # orders as the probability does, without its rounding
        expected.append([sk.roc_auc_score(~np.isin(labels, held_out), score) for score in scores])
    found = measures.open_set(images, names, labels, scale, folds=folds, seed=7)
    assert (found.cosine, found.probability) == pytest.approx(tuple(np.mean(expected, axis=0)), abs=1e-3)
    assert found.folds == folds


def test_open_set_knows_strangers_of_a_model_that_knows_its_classes_and_guesses_for_one_that_does_not():
    names = np.eye(8, dtype=np.float32)
    labels = np.repeat(np.arange(8), 5)
    assert measures.open_set(names[labels], names, labels, 20.0).cosine == 1
    same = measures.open_set(np.ones_like(names)[labels], names, labels, 20.0, folds=4)
    assert (same.cosine, same.probability) == (0.5, 0.5)


def test_open_set_needs_three_classes_with_images_and_every_fold_has_some():
    images, names, _ = on_the_sphere(np.random.default_rng(0), 30, 40)
    assert measures.open_set(images, names, np.arange(30) % 2, 10.0) is None
    for seed in range(20):
        found = measures.open_set(images, names, 12 * (np.arange(30) % 3), 10.0, seed=seed)
        assert found.folds == 3 and 0 <= found.cosine <= 1 and 0 <= found.probability <= 1


@settings(max_examples=40, deadline=None)
@given(counts, st.integers(1, 7), st.integers(1, 4), seeds)
def test_rolling_up_equals_summing_probabilities(count, classes, groups, seed):
    rng = np.random.default_rng(seed)
    images, names, labels = on_the_sphere(rng, count, classes)
    group = rng.choice([2, 5, 7, 11][:groups], classes)
    found, cosines = measures.roll_up(images, names, labels, 9.0, group), cosines_of(images, names)
    kinds = np.unique(group)
    sums = np.stack([softmax(9 * cosines)[:, group == kind].sum(axis=1) for kind in kinds], axis=1)
    true, summed, nearest = group[labels], kinds[sums.argmax(axis=1)], group[cosines.argmax(axis=1)]
    assert (found.groups, found.chance) == (len(kinds), 1 / len(kinds))
    assert found.nearest_chance == pytest.approx((true[:, None] == group[None]).mean())
    assert found.top1 == pytest.approx((summed == true).mean())
    assert found.nearest_top1 == pytest.approx((nearest == true).mean())
    for answers, share in ((summed, found.mean_per_group), (nearest, found.nearest_mean_per_group)):
        assert share == pytest.approx(np.mean([(answers == kind)[true == kind].mean() for kind in set(true)]))


def test_two_likely_species_of_a_genus_outweigh_one_that_is_a_little_likelier():
    names = np.float32([[0.9, 0], [0.9, 0], [1, 0]])
    found = measures.roll_up(np.float32([[1, 0]]), names, np.array([0]), 1.0, [0, 0, 1])
    assert (found.top1, found.nearest_top1) == (1, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), seeds)
def test_blocks_of_any_size_give_the_same(block, count, seed):
    images, names, labels = on_a_grid(np.random.default_rng(seed), count, 6)

    def everything():
        answers = measures.classify(images, names, labels, 4.0)
        arrays = answers.predicted, answers.rank, answers.confidence
        open_set = measures.open_set(images, names, labels, 4.0)
        rolled_up = measures.roll_up(images, names, labels, 4.0, [0, 1, 2, 3, 4, 4])
        return np.stack(arrays), open_set and open_set.cosine, rolled_up.nearest_top1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "BLOCK_IMAGES", block)
        in_blocks = everything()
    for found, expected in zip(in_blocks, everything(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6) if expected is not None else None


def test_ten_thousand_classes_are_compared_in_blocks_of_bounded_memory():
    rng, classes = np.random.default_rng(0), 10_000
    images, names, labels = on_the_sphere(rng, 2000, classes, width=16)
    answers = measures.classify(names[labels], names, labels, 50.0)
    assert answers.right.mean() > 0.999
    assert measures.score(answers).chance == 1e-4
    rows = measures._block_images(names)
    assert rows < 2000 and rows * classes <= measures.BLOCK
    block, scales = images[:rows], np.ones(rows, np.float32)
    integers, groups = labels[:rows].astype(np.int32), np.arange(classes, dtype=np.int32) % 500
    for lowered in (
        measures._answer.lower(names, block, integers, scales),
        measures._fit_scale.lower(names, block, integers),
        measures._within_folds.lower(names, block, np.ones((5, 2000), bool), 50.0),
        measures._groups_of.lower(names, block, groups, 500, 50.0),
    ):
        assert lowered.compile().memory_analysis().temp_size_in_bytes < 5 * 4 * measures.BLOCK


def test_products_keep_all_bits_of_float32():
    names, block = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)
    assert "HIGHEST" in str(jax.make_jaxpr(measures._cosines)(names, block))


def table(gained, lost, both, neither):
    """The right answers of A and of B, by how many only B has, only A, both, neither."""
    a = np.repeat([False, True, True, False], [gained, lost, both, neither])
    b = np.repeat([True, False, True, False], [gained, lost, both, neither])
    return a, b


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.integers(1, 30))
def test_a_paired_difference_is_mcnemars_test_and_turns_its_sign_with_the_models(gained, lost, both, neither):
    a, b = table(gained, lost, both, neither)
    found, turned = statistics.paired_difference(a, b), statistics.paired_difference(b, a)
    assert found.difference == pytest.approx(b.mean() - a.mean())
    low, high = found.interval
    assert -1 <= low <= found.difference <= high <= 1 and low < high
    assert turned.interval == pytest.approx((-high, -low)) and turned.p_value == found.p_value
    fewer, flips = min(gained, lost), gained + lost
    exact = 2 * sum(math.comb(flips, i) for i in range(fewer + 1)) / 2**flips
    assert found.p_value == pytest.approx(min(1, exact))


def test_the_interval_of_a_paired_difference_is_agresti_and_mins():
    # Agresti & Min (2005): Wald's with half an image more in each cell, here 86 and 150 of 1600 that differ.
    low, high = statistics.paired_difference(*table(86, 150, 794, 570)).interval
    centre, changed = (86.5 - 150.5) / 1602, (86.5 + 150.5) / 1602
    half = stats.norm.ppf(0.975) * math.sqrt((changed - centre**2) / 1602)
    assert (low, high) == pytest.approx((centre - half, centre + half))
    assert statistics.paired_difference(*table(0, 0, 3, 0)).interval[1] > 0.2  # three images prove little


def test_paired_intervals_cover_the_truth_and_the_p_value_of_no_difference_is_rarely_small():
    rng, covered, mean_covered, small = np.random.default_rng(0), 0, 0, 0
    for _ in range(200):
        pairs = []
        for count in (40, 80, 300):
            cells = rng.multinomial(count, [0.2, 0.1, 0.5, 0.2])
            pairs.append(table(*cells))
        low, high = statistics.paired_difference(*pairs[1]).interval
        covered += low <= 0.1 <= high
        low, high = statistics.paired_mean_difference(pairs).interval
        mean_covered += low <= 0.1 <= high
        even = [table(*rng.multinomial(count, [0.1, 0.1, 0.6, 0.2])) for count in (40, 80, 300)]
        small += statistics.paired_mean_difference(even).p_value <= 0.05
    assert 0.9 < covered / 200 <= 1 and 0.9 < mean_covered / 200 <= 1
    assert small / 200 < 0.1


def test_the_mean_difference_weighs_tasks_equally_and_for_one_task_is_the_paired_difference():
    small, large = table(3, 0, 4, 3), table(10, 40, 400, 50)
    mean = statistics.paired_mean_difference([small, large])
    assert mean.difference == pytest.approx((0.3 - 30 / 500) / 2)
    assert mean.interval[0] < mean.difference < mean.interval[1]
    for pair in (small, large, table(12, 5, 10, 10)):
        one, alone = statistics.paired_mean_difference([pair]), statistics.paired_difference(*pair)
        assert one.difference == pytest.approx(alone.difference)
        assert one.p_value == pytest.approx(alone.p_value, abs=0.02)
    assert statistics.paired_mean_difference([large]).interval == pytest.approx(
        statistics.paired_difference(*large).interval, abs=0.005
    )


def test_models_that_never_differ_have_a_p_value_of_one():
    never = table(0, 0, 2, 3)
    for found in (statistics.paired_difference(*never), statistics.paired_mean_difference([never])):
        assert (found.difference, found.p_value) == (0, 1)


def test_a_gain_in_every_task_is_unlikely_to_be_chance():
    assert statistics.paired_mean_difference([table(9, 1, 20, 20)] * 5).p_value == 1e-4  # the least it can say


def test_the_interval_of_a_mean_over_seeds_is_students():
    values = [0.61, 0.64, 0.58, 0.65, 0.62]
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert statistics.mean_interval(values) == pytest.approx((0.62, *expected))
    assert statistics.mean_interval([0.4]) == (0.4, None, None)
    assert statistics.mean_interval([0.4, 0.4]) == pytest.approx((0.4, 0.4, 0.4))
    assert statistics.mean_interval([0.1, 0.4])[1:] == (0.0, 1.0), "no share is below 0 or above 1"
