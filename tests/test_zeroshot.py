"""Zero-shot scores: against plain counting, at their edges, and as they are written down."""

import json
import math

import numpy as np
import pytest
from colour_model import ColourModel, folder, photos

from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate import measures, statistics, zeroshot
from agriclip_jax.evaluate.tasks import Photo, Task, load_tasks


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts():
    found = zeroshot.class_embeddings(ColourModel(), [["a red one", "a blue one"], ["a green one"]])
    raw = ColourModel().embed_texts(["red", "blue", "green"], normalise=False).astype(np.float64)
    red, blue, green = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    mean = (red + blue) / 2
    np.testing.assert_allclose(found, [mean / np.linalg.norm(mean), green / np.linalg.norm(green)], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-12)


def test_a_longer_embedding_weighs_more_where_the_mean_comes_first():
    red, blue = ColourModel().embed_texts(["red", "blue"], normalise=False).astype(np.float64)
    (found,) = zeroshot.class_embeddings(ColourModel(), [["a red one", "a blue one"]], "mean-then-normalise")
    np.testing.assert_allclose(found, (red + blue) / np.linalg.norm(red + blue), atol=1e-7)
    (first,) = zeroshot.class_embeddings(ColourModel(), [["a red one", "a blue one"]], "normalise-then-mean")
    assert np.abs(found - first).max() > 1e-3


def test_wrong_answers_are_seen_as_wrong(tmp_path):
    path = folder(tmp_path / "fruit", {"red_apple": photos("green", 3), "green_apple": photos("green", 1)})
    (result,) = zeroshot.evaluate(ColourModel(), load_tasks(str(path)))
    assert result.task.class_keys == ("green_apple", "red_apple")
    assert statistics.confusion(result.answers.labels, result.answers.predicted, 2).tolist() == [[1, 0], [3, 0]]
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
    assert "one class" in results[1].reason and "no image with a label in split" in results[2].reason
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
        embeddings, labels = rng.standard_normal((count, 2)), rng.integers(0, 2, count)
        results.append(zeroshot.Result(task, measures.score(measures.classify(embeddings, np.eye(2), labels, 1.0))))
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
    assert set(scored["metrics"]) == {"acc1", "acc5", "mean_per_class_recall", "macro_f1"}
    assert (scored["dataset"], scored["split"], scored["group"]) == ("fruit", "all", "downstream")
    assert left_out["metrics"] is None and "one class" in left_out["not_scored"]
    labels, predicted = np.array(scored["labels"]), np.array(scored["predicted"])
    confusion = statistics.confusion(labels, predicted, len(scored["class_names"]))
    assert scored["images_per_class"] == confusion.sum(axis=1).tolist() and scored["images"] == 14
    assert scored["metrics"]["acc1"] == confusion.trace() / confusion.sum() == 12 / 14
    assert scored["interval"] == list(statistics.wilson(int(confusion.trace()), 14))
    assert scored["chance"] == 1 / len(scored["class_names"])
    assert [entry["source"] for entry in scored["unreadable"]] == ["fruit/pink/000.jpg"]
    assert file["means"][0]["top1"] == scored["metrics"]["acc1"]
    assert all("{}" in template for template in scored["templates"])


def test_a_row_of_numbers_is_a_line_and_odd_class_names_stay_themselves(tmp_path):
    odd = 'a "[\\n1,  2]" of\nred'
    task = in_memory("t", [odd, "green"], [Photo(photos("red", 1)[0], 0, "1")])
    zeroshot.write(zeroshot.evaluate(ColourModel(), [task]), tmp_path / "x.json", ColourModel())
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text)["results"][0]["class_names"] == [odd, "green"]
    assert '"images_per_class": [1, 0]' in text


def test_a_result_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"could not write .*taken"):
        zeroshot.write([], tmp_path / "taken" / "x.json", ColourModel())


def test_no_prompts_are_classified_twice(tmp_path, monkeypatch):
    path = folder(tmp_path / "fruit", {colour: photos(colour, 3) for colour in ("red", "green", "blue")})
    scales, classify = [], measures.classify

    def counted(*asked):
        scales.append(np.ndim(asked[3]))
        return classify(*asked)

    monkeypatch.setattr(measures, "classify", counted)
    (result,) = zeroshot.evaluate(ColourModel(), load_tasks(str(path)), detailed=True)
    assert scales.count(0) == len(result.details["by_prompts"]) > 2 and scales.count(1) == 1, "and at fitted scales"
    assert result.details["by_prompts"][0]["top1"] == result.metrics.top1


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
