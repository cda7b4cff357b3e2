"""Zero-shot scores: against plain counting, at their edges, and as they are written down."""

import json
import math

import numpy as np
import pytest
from colour_model import ColourModel, folder, photos
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate import zeroshot
from agriclip_jax.evaluate.tasks import Photo, Task, load_tasks


def counted(scores, labels):
    """Top-1, top-5, mean per class and confusion by plain Python counting; of equal scores the first class wins."""
    classes, hits, hits5 = len(scores[0]), 0, 0
    confusion = [[0] * classes for _ in range(classes)]
    for row, label in zip(scores, labels, strict=True):
        order = sorted(range(classes), key=lambda c: (-row[c], c))
        confusion[label][order[0]] += 1
        hits += order[0] == label
        hits5 += label in order[:5]
    recalls = [confusion[c][c] / sum(confusion[c]) for c in range(classes) if sum(confusion[c])]
    return hits / len(labels), hits5 / len(labels), sum(recalls) / len(recalls), confusion


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(2, 9), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_metrics_equal_plain_counting_also_with_ties_and_empty_classes(count, classes, levels, seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, levels + 1, (count, classes)) / 2, rng.integers(0, classes, count)
    found = zeroshot.score(scores, labels)
    top1, top5, per_class, confusion = counted(scores.tolist(), labels.tolist())
    assert found.top1 == pytest.approx(top1, abs=1e-12)
    assert found.top5 == (pytest.approx(top5, abs=1e-12) if classes > 5 else None)
    assert found.mean_per_class == pytest.approx(per_class, abs=1e-12)
    np.testing.assert_array_equal(found.confusion, confusion)
    assert found.chance == 1 / classes and found.images == count
    assert np.isnan(found.recall).sum() == classes - len(set(labels.tolist()))


def test_a_model_that_says_the_same_of_everything_scores_one_class():
    found = zeroshot.score(np.zeros((6, 3)), np.array([0, 0, 1, 1, 2, 2]))
    assert found.top1 == found.mean_per_class == pytest.approx(1 / 3)
    assert found.confusion[:, 0].tolist() == [2, 2, 2]


def test_mean_per_class_gives_rare_classes_the_weight_of_common_ones():
    scores = np.eye(2)[[0] * 9 + [0]]  # says class 0 always; nine of ten are class 0
    found = zeroshot.score(scores, np.array([0] * 9 + [1]))
    assert (found.top1, found.mean_per_class) == (0.9, 0.5)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.4901625, 0.9433178), (0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (1, 1, 0.2065493, 1.0)],
)
def test_wilson_interval_equals_published_values(hits, count, low, high):
    # R: prop.test(hits, count, correct = FALSE)$conf.int
    assert zeroshot.wilson(hits, count) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))


def test_the_interval_covers_the_truth_about_95_times_in_100():
    draws = np.random.default_rng(0).binomial(200, 0.3, 4000)
    covered = np.mean([low <= 0.3 <= high for low, high in (zeroshot.wilson(int(hits), 200) for hits in draws)])
    assert 0.94 < covered < 0.96


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts():
    found = zeroshot.class_embeddings(ColourModel(), [["a red one", "a blue one"], ["a green one"]])
    red, blue, green = ColourModel().embed_texts(["red", "blue", "green"]).astype(np.float64)
    mean = (red + blue) / 2
    np.testing.assert_allclose(found, [mean / np.linalg.norm(mean), green / np.linalg.norm(green)], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)


def test_the_last_short_batch_counts(tmp_path):
    path = folder(tmp_path / "fruit", {"red_apple": photos("red", 4), "green_apple": photos("green", 5)})
    one_by_one, at_once = ColourModel(), ColourModel()
    (few,) = zeroshot.evaluate(one_by_one, load_tasks(str(path)), batch_size=4)
    (all_,) = zeroshot.evaluate(at_once, load_tasks(str(path)), batch_size=100)
    assert one_by_one.calls == [4, 4, 1] and at_once.calls == [9]
    assert few.metrics.images == 9 and few.metrics.top1 == 1
    np.testing.assert_array_equal(few.metrics.confusion, all_.metrics.confusion)


def test_wrong_answers_are_seen_as_wrong(tmp_path):
    path = folder(tmp_path / "fruit", {"red_apple": photos("green", 3), "green_apple": photos("green", 1)})
    (result,) = zeroshot.evaluate(ColourModel(), load_tasks(str(path)))
    assert result.task.class_keys == ("green_apple", "red_apple")
    assert result.metrics.confusion.tolist() == [[1, 0], [3, 0]]
    assert (result.metrics.top1, result.metrics.mean_per_class) == (0.25, 0.5)


def test_an_unreadable_image_is_named_and_left_out_of_every_number(tmp_path):
    cut = photos("red", 1)[0][:200]
    path = folder(tmp_path / "fruit", {"red": [*photos("red", 3), cut], "green": photos("green", 2)})
    (result,) = zeroshot.evaluate(ColourModel(), load_tasks(str(path)))
    assert result.metrics.images == 5 and result.metrics.top1 == 1
    assert [source for source, _ in result.unreadable] == ["fruit/red/003.jpg"]


def in_memory(name, classes, found, group="downstream"):
    keys = tuple(classes)
    return Task(name, group, "other", "all", keys, keys, ("{}",), len(found), lambda: iter(found))


def test_an_image_that_breaks_only_when_it_is_read_is_named_too():
    found = [Photo(photos("red", 1)[0], 0, "a/red/1.jpg"), Photo(b"no photo", 1, "a/green/1.jpg")]
    (result,) = zeroshot.evaluate(ColourModel(), [in_memory("a", ["red", "green"], found)])
    assert result.metrics.images == 1
    ((source, why),) = result.unreadable
    assert source == "a/green/1.jpg" and "not an image" in why


def test_what_cannot_be_scored_says_why_and_leaves_every_mean():
    red, green = photos("red", 1)[0], photos("green", 1)[0]
    tasks = [
        in_memory("fine", ["red", "green"], [Photo(red, 0, "1"), Photo(green, 1, "2")]),
        in_memory("one class", ["red"], [Photo(red, 0, "1")]),
        in_memory("empty", ["red", "green"], []),
        in_memory("broken", ["red", "green"], [Photo(b"", 0, "1")]),
        in_memory("elsewhere", ["red", "green", "blue"], [Photo(red, 1, "1")], group="in-domain"),
    ]
    results = zeroshot.evaluate(ColourModel(), tasks)
    assert [bool(result.metrics) for result in results] == [True, False, False, False, True]
    assert "one class" in results[1].reason and "no image in split" in results[2].reason
    assert results[3].reason == "no readable image"
    means = zeroshot.means(results)
    assert [(m.group, m.tasks, m.top1, m.chance) for m in means] == [
        ("downstream", 1, 1.0, 0.5),
        ("in-domain", 1, 0.0, pytest.approx(1 / 3)),
    ]


def test_a_mean_weighs_tasks_equally_and_its_interval_is_narrower_than_theirs():
    rng = np.random.default_rng(0)
    task = in_memory("t", ["red", "green"], [])
    results = []
    for count in (50, 500):
        scores, labels = rng.random((count, 2)), rng.integers(0, 2, count)
        results.append(zeroshot.Result(task, zeroshot.score(scores, labels)))
    (mean,) = zeroshot.means(results)
    assert mean.top1 == pytest.approx((results[0].metrics.top1 + results[1].metrics.top1) / 2)
    widths = [high - low for low, high in (result.metrics.interval for result in results)]
    low, high = mean.interval
    assert low < mean.top1 < high and high - low < max(widths)
    assert high - low == pytest.approx(math.hypot(*widths) / 2, rel=0.02)


def test_embeddings_that_are_not_finite_stop_the_evaluation():
    class Damaged(ColourModel):
        def embed_images(self, images):
            return super().embed_images(images) * np.nan

    with pytest.raises(RunFailure, match="image embeddings that are not finite"):
        zeroshot.evaluate(Damaged(), [in_memory("a", ["red", "green"], [Photo(photos("red", 1)[0], 0, "1")])])


def test_a_result_file_says_enough_to_compute_every_number_again(tmp_path):
    classes = {colour: photos(colour, 3) for colour in ("red", "green", "blue", "yellow")}
    path = folder(tmp_path / "fruit", classes | {"purple": photos("blue", 2), "pink": [b"broken"]})
    one = folder(tmp_path / "one", {"red": photos("red", 1)})
    model = ColourModel(tmp_path / "run")
    results = zeroshot.evaluate(model, load_tasks(f"{path},{one}"))
    out = tmp_path / "new" / "zeroshot.json"
    zeroshot.write(results, out, model)
    file = json.loads(out.read_text(encoding="utf-8"))
    assert file["checkpoint"] == {"workdir": str(tmp_path / "run"), "step": 7, "use": "student"}
    assert file["code_version"] == "0.1.0+test"
    scored, left_out = file["results"]
    assert {"dataset", "model", "pretrained", "task", "language", "metrics"} <= set(scored)  # CLIP_benchmark's
    assert set(scored["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
    assert (scored["dataset"], scored["split"], scored["group"]) == ("fruit", "all", "downstream")
    assert left_out["metrics"] is None and "one class" in left_out["not_scored"]
    confusion = np.array(scored["confusion"])
    assert scored["images_per_class"] == confusion.sum(axis=1).tolist() and scored["images"] == 14
    assert scored["metrics"]["acc1"] == confusion.trace() / confusion.sum() == 12 / 14
    assert scored["interval"] == list(zeroshot.wilson(int(confusion.trace()), 14))
    assert scored["chance"] == 1 / len(scored["class_names"])
    assert [entry["source"] for entry in scored["unreadable"]] == ["fruit/pink/000.jpg"]
    assert file["means"][0]["top1"] == scored["metrics"]["acc1"]
    assert all("{}" in template for template in scored["templates"])


def test_a_row_of_the_confusion_is_a_line_and_odd_class_names_stay_themselves(tmp_path):
    odd = 'a "[\\n1,  2]" of\nred'
    task = in_memory("t", [odd, "green"], [Photo(photos("red", 1)[0], 0, "1")])
    zeroshot.write(zeroshot.evaluate(ColourModel(), [task]), tmp_path / "x.json", ColourModel())
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text)["results"][0]["class_names"] == [odd, "green"]
    assert "[1, 0]" in text


def test_a_result_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"could not write .*taken"):
        zeroshot.write([], tmp_path / "taken" / "x.json", ColourModel())


def test_the_table_names_groups_means_chance_and_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    red, green = photos("red", 1)[0], photos("green", 1)[0]
    tasks = [
        in_memory("apples [odd]", ["red", "green"], [Photo(red, 0, "1"), Photo(green, 1, "2")]),
        in_memory("horses", ["red"], [Photo(red, 0, "1")], group="in-domain"),
    ]
    zeroshot.show(zeroshot.evaluate(ColourModel(), tasks))
    shown = capsys.readouterr().out
    assert "apples [odd]" in shown and "100.0" in shown and "50.0" in shown and "34.2 – 100.0" in shown
    assert "mean, downstream (1)" in shown and "not scored: horses, one class only" in shown
    assert "in-domain (" not in shown
