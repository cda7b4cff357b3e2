"""The report: one file that needs nothing else, says what was measured, and cannot be broken by a class name."""

import json
import re

import numpy as np
import pytest
from colour_model import ColourModel, folder, photos
from html_page import Page

from agriclip_jax import page, report
from agriclip_jax.comparison import training
from agriclip_jax.data import splits
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import zeroshot
from agriclip_jax.evaluate.tasks import load_tasks

EVIL = "<script>alert('x')</script> & \"co\""


@pytest.fixture
def tasks(tmp_path):
    folder(tmp_path / "fruit", {"red": photos("red", 6), "green": photos("red", 2) + photos("green", 3)})
    folder(tmp_path / "sky", {"blue": [*photos("blue", 2), b"broken"]})
    folder(tmp_path / "evil", {"a": photos("blue", 3), "b": photos("yellow", 3)})
    record = {"name": "evil", "classes": {"a": f"blue {EVIL}", "b": "yellow"}, "templates": ["{}"]}
    (tmp_path / "evil" / "dataset.json").write_text(json.dumps(record), encoding="utf-8")
    return load_tasks(
        f"{tmp_path / 'fruit'},{tmp_path / 'sky'},{tmp_path / 'evil'}", seen={"evil": splits.SHARES}, split="all"
    )


@pytest.fixture
def workdir(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps({"recipe": "colours", "batch_size": 64, "seed": 3, "note": EVIL}))
    (workdir / "environment.json").write_text(json.dumps({"devices": ["cpu"], "device_count": 8}))
    rows = [
        {"step": s, "time": 1e9 + s, "loss": 9 / s, "loss/contrastive": 5 / s, "lr": 1e-3, "images_per_s": 32.0}
        for s in range(1, 101)
    ]
    rows[50]["loss"] = float("nan")
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 101, "lo')
    scores = [{"step": s, "time": 1e9, "score": s / 200, "fruit": 0.5} for s in (50, 100)]
    (workdir / "evaluations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    return workdir


@pytest.fixture
def html(workdir, tasks):
    model = ColourModel(workdir)
    path = report.write_report(workdir, model, zeroshot.evaluate(model, tasks))
    assert path == workdir / "report.html"
    return path.read_text(encoding="utf-8")


def test_it_is_one_file_that_fetches_nothing(html):
    page = Page(html)
    assert not page.open, "every element is closed"
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/")), f"<{tag} {name}={value[:60]}>"
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert "url(" not in html and "@import" not in html and "http" not in re.sub(r"base64,[^\"]+", "", html)


def test_class_names_and_settings_are_shown_and_never_run(html):
    page = Page(html)
    assert not page.all("script")
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert page.text.count(EVIL) >= 3, "in the confusion, in a caption, in the configuration"


def test_it_says_what_run_it_is(html):
    text = Page(html).text
    for fact in ("colours", "step 7, student", "3 min 20 s", "8 × cpu", "16 px", "0.1.0+test"):
        assert fact in text
    # 100 steps of 64 images at 32 images/s


def test_the_table_has_each_task_with_its_interval_and_the_groups_apart(html):
    text = Page(html).text
    assert "81.8" in text and "52.3 – 94.9" in text, "fruit: 9 of 11"
    assert "in-domain" in text and "downstream" in text and text.count("mean of 1") == 2
    assert "sky: not scored, one class only" in text and "sky: 1 unreadable, left out, such as sky/blue/002.jpg" in text


def test_curves_say_their_first_and_last_values_and_leave_out_what_is_no_number(html):
    labels = [each["aria-label"] for each in Page(html).all("svg")]
    assert "loss: 9 at step 1, 0.09 at step 100" in labels
    assert "loss/contrastive: 5 at step 1, 0.05 at step 100" in labels
    assert "learning rate: 0.001 at step 1, 0.001 at step 100" in labels
    assert "validation: mean top-1: 0.25 at step 50, 0.5 at step 100" in labels
    numbers = [point for each in Page(html).all("polyline") for point in each["points"].replace(",", " ").split()]
    assert np.isfinite(np.array(numbers, float)).all()


def test_confusions_name_the_worst_mistakes(html):
    assert "2 of 5 “green” seen as “red”" in Page(html).text


def test_photos_show_nearest_captions_right_and_wrong(html):
    page = Page(html)
    kinds = [each.get("class") for each in page.all("li")]
    assert kinds.count("right") >= 8 and 1 <= kinds.count("wrong") <= 2
    assert "✓" in page.text and "✗" in page.text, "not by colour alone"


def test_attention_is_laid_over_photos_for_the_mean_and_each_head(html):
    alts = [each["alt"] for each in Page(html).all("img")]
    assert sum(alt.startswith("mean attention over ") for alt in alts) == 6
    assert sum(alt.startswith("attention of head 3 over ") for alt in alts) == 6


def test_it_can_be_heard_and_used_with_a_keyboard(html):
    page = Page(html)
    assert page.all("html")[0]["lang"] == "en" and page.all("title") and page.all("main")
    headings = [tag for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == "h1" and headings.count("h1") == 1 and headings.count("h2") == 6
    assert all(each.get("alt") and each["width"] and each["height"] for each in page.all("img"))
    assert all(each.get("aria-label") and each.get("role") == "img" for each in page.all("svg"))
    assert all(each.get("scope") in ("row", "col", "rowgroup") for each in page.all("th"))
    ids = {each["id"] for _, each in page.elements if "id" in each}
    assert {each["href"][1:] for each in page.all("a")} == ids
    scrolling = [each for each in page.all("div") if "wide" in each.get("class", "")]
    assert scrolling and all(each["tabindex"] == "0" and each["aria-label"] for each in scrolling)


def test_attention_overlay_is_brightest_where_the_map_is():
    attention = np.zeros((4, 4))
    attention[0, 3] = 1
    view = np.full((16, 16, 3), 90, np.uint8)
    pixels = np.asarray(page.overlay(view, attention, side=64), float).mean(axis=2)
    assert pixels[:16, 48:].mean() > 1.5 * pixels[32:, :32].mean()
    flat = page.overlay(view, np.ones((4, 4)), side=64)
    assert np.asarray(flat).std(axis=(0, 1)).max() == 0, "an even map divides by nothing"


def test_a_run_without_logs_or_scores_still_has_a_page(tmp_path):
    page = Page(report.write_report(tmp_path, ColourModel(), []).read_text(encoding="utf-8"))
    assert not page.open and len(page.all("h1")) == 1 and not page.all("h2")


def test_thousands_of_steps_and_many_classes_stay_readable(tmp_path):
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 20_001):
            file.write(json.dumps({"step": step, "loss": 1.0}) + "\n")
    colours = ("red", "green", "blue", "yellow")
    path = folder(tmp_path / "many", {f"{c} {n}": photos(c, 1) for c in colours for n in range(9)})
    model = ColourModel()
    results = zeroshot.evaluate(model, load_tasks(str(path)))
    html = report.write_report(tmp_path, model, results, out=tmp_path / "x" / "r.html").read_text(encoding="utf-8")
    (curve, *_) = Page(html).all("polyline")
    assert len(curve["points"].split()) <= training.CURVE_POINTS
    assert "What is confused with what" not in html, "36 classes make no readable picture"
    assert len(html) < 1_000_000


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match=r"could not write .*taken"):
        report.write_report(tmp_path, ColourModel(), [], out=tmp_path / "taken" / "r.html")
