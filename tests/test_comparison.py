"""The comparison of runs: its numbers are the records', its page needs nothing else, and nothing missing breaks it."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html import escape
from itertools import pairwise

import numpy as np
import pytest
from html_page import Page
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agriclip_jax import comparison, page
from agriclip_jax.comparison import pictures
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import comparing, records, statistics

EVIL = "<script>alert('x')</script> & \"co\""


# ---- runs, as tools/evaluate.py leaves them --------------------------------------------------------------------------


def evaluate(workdir, *, step=7, suite="small"):
    """The folder of a run's records, and a function that writes one."""
    folder = workdir / "evaluations" / f"{suite}-{step}-student"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(json.dumps({"seed": step, "optimizer": {"lr": 1e-3}, "note": EVIL}))

    def write(task, measure, group="in-domain", /, **said):
        head = {"checkpoint": {"workdir": str(workdir), "step": step, "use": "student"}, "key": "k", "image_size": 16}
        record = {**head, "dataset": task, "group": group, "task": measure, "language": "en", "metrics": None, **said}
        (folder / f"{task}.{measure}.json").write_text(json.dumps(record), encoding="utf-8")

    return folder, write


def answers(right, wrong, classes=("rust", "healthy"), photos="p"):
    """A zero-shot record of images of the first class: so many right, then so many taken for the second."""
    count, hits = right + wrong, right
    return {
        "task": "zeroshot_classification",
        "metrics": {"acc1": hits / count, "acc5": None, "mean_per_class_recall": hits / count, "macro_f1": 0.5},
        "interval": list(statistics.wilson(hits, count)),
        "bootstrap": {"mean_per_class": [0.1, 0.9]},
        "images": count,
        "chance": 1 / len(classes),
        "split": "test",
        "photos": {"fingerprint": photos},
        "class_keys": list(classes),
        "class_names": list(classes),
        "sources": [f"{i}.jpg" for i in range(count)],
        "labels": [0] * count,
        "predicted": [0] * right + [1] * wrong,
        "logit_scale": 20.0,
    }


def details(share):
    prompts = {"top1": share, "interval": [share / 2, share]}
    return {
        "by_prompts": [
            {"prompts": "ensemble", "order": "normalise-then-mean", **prompts},
            {"prompts": EVIL, "order": "normalise-then-mean", **prompts, "top1": share / 2},
        ],
        "calibration": {
            "logit_scale": 5.0,
            "error": 0.2,
            "fitted_error": 0.1,
            "bins": [[0.55, 0.4, 10], [0.9, 0.7, 9]],
        },
        "open_set": {"cosine": 0.75, "probability": 0.7, "folds": 2},
        "ranks": {"health": {"groups": 2, "chance": 0.5, "top1": 0.8, "mean_per_group": 0.8, "nearest_top1": 0.7}},
    }


def same_photos(found, *keys):
    return {key: found[key] for key in ("split", "photos", "class_keys", "class_names", *keys)}


def fitted(found, share):
    """k-NN, linear probe, few-shot and robustness of the photos of a zero-shot record."""
    ends = [share - 0.1, share + 0.1]
    yield (
        "knn",
        {**same_photos(found), "metrics": {"acc1_k20": share}, "results": [{"k": 20, "top1": share, "interval": ends}]},
    )
    linear = {"acc1": share, "acc5": None, "mean_per_class_recall": share}
    yield (
        "linear",
        {
            **same_photos(found),
            "task": "linear_probe",
            "metrics": linear,
            "images": 20,
            "top1": share,
            "interval": ends,
        },
    )
    shots = [
        {"method": method, "shots": shots, "top1": share - 0.1 / shots, "interval": ends}
        for method in ("ridge", "centroid")
        for shots in (1, 4, 16)
    ]
    yield "few_shot", {**same_photos(found), "metrics": {}, "results": shots}
    worse = {"blur": [share - 0.05 * i for i in range(5)], "dark": [share / 2] * 5}
    amounts = {"blur": [0.01, 0.02, 0.03, 0.04, 0.05], "dark": [-1, -2, -3, -4, -5]}
    yield (
        "robustness",
        {
            **same_photos(found),
            "metrics": {"acc1_clean": share, "acc1_corrupted": share - 0.2},
            "images": 20,
            "top1": worse,
            "strengths": amounts,
        },
    )


def photo(folder, name, colour="green"):
    Image.new("RGB", (48, 32), colour).save(folder / "pictures" / name)
    return f"pictures/{name}"


def a_picture(folder, classes, source, nearest):
    return {
        "file": photo(folder, f"{source}.jpg"),
        "attention": photo(folder, f"{source}-attention.jpg", "purple"),
        "source": source,
        "label": 0,
        "nearest": nearest,
        "class_names": classes,
    }


def a_run(workdir, *, right, downstream=True, photos="p", step=7):
    """A run with odd class names, a task that may be missing, one that is not scored, and every measure."""
    folder, write = evaluate(workdir, step=step)
    classes = (f"rust {EVIL}", "healthy")
    leaves = answers(right, 20 - right, classes, photos) | details(right / 20)
    write("odd_leaves", "zeroshot", **leaves)
    write("one_class", "zeroshot", **same_photos(leaves), not_scored="one class only (horse)")
    write("old_tasks", "zeroshot", "retention", **answers(right - 2, 4, ("cat", "dog")))
    if downstream:
        write("ants", "zeroshot", "downstream", **answers(9, 1, ("ant", "bee")))
    for measure, said in fitted(leaves, right / 20):
        write("odd_leaves", measure, **said)
    samples = [a_picture(folder, classes, f"a{i}", [[i, 0.9], [1 - i, 0.1]]) for i in (0, 1)]
    pictured = {
        "class_phrases": [f"a leaf with {name}" for name in classes],
        "samples": samples,
        "mistakes": samples[1:],
    }
    write("odd_leaves", "pictures", **same_photos(leaves), **pictured)
    way = {"queries": 20, "candidates": 9, "recall": {"1": 0.5, "5": 0.75, "10": 0.95}, "median_rank": 2.0}
    way["chance"] = {"1": 0.1, "5": 0.2, "10": 0.3}
    hits = [{"file": photo(folder, f"hit{i}.jpg"), "dataset": "odd_leaves", "right": i < 3} for i in range(5)]
    gallery = [{"text": f"a photo of {EVIL}.", "photos": hits}]
    write(
        "in-domain",
        "retrieval",
        image_to_text=way,
        text_to_image=way,
        gallery=gallery,
        task="zeroshot_retrieval",
        metrics={"image_retrieval_recall@1": 0.5},
    )
    rng = np.random.default_rng(0)
    points = {"x": rng.normal(size=40).tolist(), "y": rng.normal(size=40).tolist(), "labels": [0, 1] * 20}
    write("in-domain", "map", class_names={"odd_leaves": list(classes)}, datasets=["odd_leaves"] * 40, **points)
    rows = [{"step": s, "loss": right / s, "lr": 1e-3} for s in range(1, 60)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 61, "lo')
    return workdir


@pytest.fixture
def two(tmp_path):
    """A first run that lacks a task, and a better one."""
    return a_run(tmp_path / "base", right=12, downstream=False), a_run(tmp_path / "better", right=17)


def compare(out, *runs):
    comparison.write([records.read(run) for run in runs], out)
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def html(two, tmp_path):
    return compare(tmp_path / "out", *two)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_it_is_one_file_that_fetches_nothing(html):
    page = Page(html)
    assert not page.open, "every element is closed"
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,")), (tag, name)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.elements}
    assert "url(" not in html and "@import" not in html and "http" not in re.sub(r"base64,[^\"]+", "", html)


def test_texts_of_others_are_shown_and_never_run(html):
    assert "<script>" not in html and Page(html).text.count(EVIL) >= 6


def test_it_can_be_heard_and_used_with_a_keyboard(html):
    page = Page(html)
    ids = [each["id"] for _, each in page.elements if "id" in each]
    assert len(ids) == len(set(ids))
    assert {each["href"][1:] for each in page.all("a") + page.all("use")} <= set(ids)
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1 and headings.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(headings))
    assert all(each.get("alt") and each["width"] and each["height"] for each in page.all("img"))
    drawings = [each for each in page.all("svg") if "aria-hidden" not in each]
    assert drawings and all(each.get("aria-label") and each.get("role") == "img" for each in drawings)
    assert all(each.get("scope") in ("row", "col", "rowgroup") for each in page.all("th"))
    scrolling = [each for each in page.all("div") if "wide" in each.get("class", "")]
    assert len(scrolling) >= len(page.all("table"))
    assert all(each["tabindex"] == "0" and each["aria-label"] for each in scrolling)


def test_every_chart_lies_within_its_picture(html):
    numbers = [float(n) for each in Page(html).all("polyline") for n in re.findall(r"[-\d.]+", each["points"])]
    assert len(numbers) > 200 and min(numbers) >= 0 and max(numbers) <= 360


def test_the_numbers_are_those_of_the_records(html):
    text = Page(html).text
    for run, hits in (("base", 12), ("better", 17)):
        low, high = (f"{100 * end:.1f}" for end in statistics.wilson(hits, 20))
        assert f"{run} {5 * hits:.1f} %, between {low} and {high}" in html, "the bar says what it shows"
        assert f"{5 * hits:.1f}{low} – {high}" in text, "and so does the cell"
    assert "+25.0" in text, "five images of twenty more"
    a, b = np.arange(20) < 12, np.arange(20) < 17
    difference = statistics.paired_difference(a, b)
    low, high = (f"{100 * end:+.1f}".replace("-", "−") for end in difference.interval)
    assert f"{low} to {high}{difference.p_value:.3f}" in text


def test_groups_stand_apart_so_that_forgetting_shows(html):
    text = Page(html).text
    assert text.index("in-domain") < text.index("downstream") < text.index("retention")
    assert "mean zero-shot top-1 of 1 task; chance is 50.0 %" in text


def test_what_is_missing_is_said(html):
    text = Page(html).text
    assert "one_class: not scored: one class only (horse)" in text
    assert "2 of 3" in text and "3 of 4" in text, "tasks scored"


def test_every_photo_is_whole_and_one_that_is_gone_is_a_line(two, tmp_path):
    gone = next((two[0] / "evaluations").rglob("a0.jpg"))
    gone.write_bytes(gone.read_bytes()[:300])
    images = Page(compare(tmp_path / "out", *two)).all("img")
    assert len(images) > 10 and all(int(each["width"]) <= 240 for each in images)
    assert "the photo is missing" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_photo_outside_the_records_is_never_shown(two, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "private.jpg")
    run = records.read(two[0])
    for file in ("../../../private.jpg", str(tmp_path / "private.jpg")):
        assert (run.folder / file).is_file()
        assert pictures._photo(run, file, "x", 99) == '<p class="gone">x: the photo is missing</p>'


def test_one_run_has_a_page_without_differences(two, tmp_path):
    text = Page(compare(tmp_path / "out", two[1])).text
    assert "Difference to" not in text and "Classes that gained" not in text and "85.0" in text


def test_eight_runs_with_many_tasks_keep_the_page_small(tmp_path):
    runs = []
    for i in range(8):
        folder, write = evaluate(tmp_path / f"run{i}", step=i)
        for task in range(33):
            write(f"task_{task}", "zeroshot", **answers(10 + i, 10, photos=f"p{task}"[: 1 + task % 3]))
        runs.append(folder)
    html = compare(tmp_path / "out", *runs)
    assert len(html) < 2_000_000 and Page(html).text.startswith("8 runs compared")


def test_ten_thousand_classes_are_a_list_of_mistakes(tmp_path):
    _, write = evaluate(tmp_path / "run")
    many = tuple(f"species {i}" for i in range(10_000))
    record = answers(3, 2, many) | {"predicted": [0, 0, 0, 9_999, 9_999]}
    write("insects", "zeroshot", **record)
    html = compare(tmp_path / "out", tmp_path / "run")
    assert "2 of 5 “species 0” seen as “species 9999”" in html and len(html) < 60_000


@pytest.mark.skipif(not shutil.which("chromium"), reason="there is no Chromium to show the page")
def test_a_browser_shows_it_without_complaint_also_on_a_phone(html, tmp_path):
    look = (
        f'<iframe width="400" height="900" srcdoc="{escape(html)}"></iframe><script>addEventListener("load",()=>{{'
        "const page=document.querySelector('iframe').contentDocument,photos=[...page.images];"
        "const bad=photos.filter(photo=>!photo.complete||!photo.naturalWidth).length;"
        "const wide=page.documentElement.scrollWidth-400;"
        "document.body.innerHTML=`${photos.length} photos, ${bad} bad, ${wide} too wide`})</script>"
    )
    (tmp_path / "look.html").write_text(f"<meta charset=utf-8><body>{look}", encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom")
    found = subprocess.run(
        ["chromium", *options, f"--user-data-dir={tmp_path}/profile", f"file://{tmp_path}/look.html"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in found.stderr
    photos, bad, wide = map(int, re.search(r"(\d+) photos, (\d+) bad, (-?\d+) too wide", found.stdout).groups())
    assert photos > 10 and bad == 0 and wide <= 0


# ---- what is compared ------------------------------------------------------------------------------------------------


def of_records(tmp_path, *of_runs):
    """Runs of zero-shot records: task -> (group, record) each."""
    runs = []
    for i, tasks in enumerate(of_runs):
        _, write = evaluate(tmp_path / f"run{i}")
        for task, (group, record) in tasks.items():
            write(task, "zeroshot", group, **record)
        runs.append(records.read(tmp_path / f"run{i}"))
    return runs


def test_a_mean_is_over_the_tasks_that_all_answered_on_the_same_photos(tmp_path):
    first = {"a": ("x", answers(2, 2)), "b": ("x", answers(4, 0)), "c": ("x", answers(1, 3)), "d": ("x", answers(1, 1))}
    other = {
        "a": ("x", answers(3, 1)),
        "b": ("x", answers(0, 4, photos="others")),
        "c": ("y", answers(3, 1)),
        "e": ("x", answers(1, 1)),
    }
    table = comparing.rows(of_records(tmp_path, first, other), "zeroshot", "x")
    assert {row.task: row.notes for row in table} == {
        "a": ("", ""),
        "b": ("", "other photos"),
        "c": ("", "y for this run"),
        "d": ("", "not measured"),
        "e": ("not measured", ""),
    }
    (one, two), count = comparing.means(table, comparing.top1)
    assert (one[0], two[0], count) == (0.5, 0.75, 1)
    assert one[1] == pytest.approx(statistics.wilson(2, 4))


def test_a_run_without_a_group_does_not_empty_the_means_of_others(tmp_path):
    runs = of_records(tmp_path, {"a": ("x", answers(1, 1))}, {"b": ("y", answers(1, 1))})
    (one, two), count = comparing.means(comparing.rows(runs, "zeroshot", "x"), comparing.top1)
    assert one[0] == 0.5 and two is None and count == 1


def test_differences_are_of_the_same_images_and_adjusted_over_all_tasks(tmp_path):
    first = {"a": ("x", answers(2, 8)), "b": ("y", answers(5, 5)), "c": ("y", answers(5, 5))}
    other = {"a": ("x", answers(9, 1)), "b": ("y", answers(5, 5)), "c": ("y", answers(5, 5, photos="others"))}
    found = comparing.changes(of_records(tmp_path, first, other), 1)
    assert [(change.name, change.gained, change.lost) for change in found["x"]] == [("a", 7, 0), ("mean of 1", 7, 0)]
    assert [change.name for change in found["y"]] == ["b", "mean of 1"], "c was asked with other photos"
    (a, whole), (b, _) = found["x"], found["y"]
    assert a.found.difference == pytest.approx(whole.found.difference) == 0.7 and a.found.p_value == 2 / 2**7
    assert a.adjusted == 2 * a.found.p_value and b.adjusted == 1 and whole.adjusted is None


def test_the_clearest_gain_stands_first_and_not_the_largest_share_of_a_tiny_class(tmp_path):
    tiny, large = answers(0, 1), answers(20, 30, ("blight", "healthy"))
    other = {"tiny": ("x", answers(1, 0)), "large": ("x", answers(40, 10, ("blight", "healthy")))}
    found = comparing.moved(of_records(tmp_path, {"tiny": ("x", tiny), "large": ("x", large)}, other), 1)
    assert [(each.name, each.before, each.after, each.images) for each in found] == [
        ("blight", 20, 40, 50),
        ("rust", 0, 1, 1),
    ]
    assert found[0].clearness == pytest.approx(20 / np.sqrt(20))


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holms_p_values_are_those_of_its_stepwise_rule(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    largest = 0.0
    for rank, at in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[at]))
        assert statistics.holm(values)[at] == pytest.approx(largest)


def test_runs_of_one_name_are_told_apart(tmp_path):
    for where, step in (("a/run", 1), ("b/run", 2), ("c/run", 2)):
        evaluate(tmp_path / where, step=step)[1]("t", "zeroshot", **answers(1, 1))
    runs = [records.read(tmp_path / where / "run") for where in "abc"]
    assert records.names(runs[:1]) == ["run"]
    assert records.names(runs) == ["run, step 1, student", "run, step 2, student (2)", "run, step 2, student (3)"]


def test_the_newest_evaluation_is_taken_unless_one_is_named(tmp_path):
    old, write = evaluate(tmp_path / "run", step=1)
    write("t", "zeroshot", **answers(1, 1))
    os.utime(next(old.glob("*.json")), (1, 1))
    evaluate(tmp_path / "run", step=2, suite="other")[1]("t", "zeroshot", **answers(2, 0))
    assert (records.read(tmp_path / "run").suite, records.read(old).suite) == ("other", "small")


# ---- tables ----------------------------------------------------------------------------------------------------------


def test_the_csv_has_every_number_with_its_interval(html, tmp_path):
    table = list(csv.DictReader(io.StringIO((tmp_path / "out" / "table.csv").read_text(encoding="utf-8"))))
    key = {(row["run"], row["task"], row["measure"], row["metric"]): row for row in table}
    row = key["better", "odd_leaves", "zeroshot", "acc1"]
    assert (float(row["value"]), float(row["low"]), float(row["high"])) == (0.85, *statistics.wilson(17, 20))
    assert float(key["base", "odd_leaves", "few_shot", "acc1_ridge_4"]["value"]) == 0.6 - 0.1 / 4
    assert float(key["base", "odd_leaves", "robustness", "acc1_dark_5"]["value"]) == 0.3
    assert float(key["base", "odd_leaves", "zeroshot", "calibration_fitted_error"]["value"]) == 0.1
    assert float(key["base", "in-domain", "retrieval", "image_retrieval_recall@1"]["value"]) == 0.5
    assert key["base", "one_class", "zeroshot", ""]["not_scored"] == "one class only (horse)"


def test_the_markdown_table_says_the_same(html, tmp_path):
    text = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    low, high = (f"{100 * end:.1f}" for end in statistics.wilson(17, 20))
    assert f"| odd\\_leaves | 60.0 [38.7, 78.1] | 85.0 [{low}, {high}] | 50.0 |" in text
    assert "| one\\_class | – | – |  |" in text and "| 20-NN, 1 task | 60.0 [50.0, 70.0] | 85.0 [75.0, 95.0] |" in text
    assert "<script>" not in text


def test_clip_benchmarks_files_have_its_keys_and_its_names_of_metrics(html, tmp_path):
    files = {file.stem: json.loads(file.read_text()) for file in (tmp_path / "out" / "clip_benchmark").iterdir()}
    assert {tuple(record) for record in files.values()} == {
        ("dataset", "model", "pretrained", "task", "language", "metrics")
    }
    assert files["better_odd_leaves_linear_probe"]["metrics"]["lp_acc1"] == 0.85
    assert files["better_ants_zeroshot_classification"] == {
        "dataset": "ants",
        "model": "better",
        "pretrained": "step 7, student",
        "task": "zeroshot_classification",
        "language": "en",
        "metrics": {"acc1": 0.9, "acc5": None, "mean_per_class_recall": 0.9, "macro_f1": 0.5},
    }
    assert "base_in-domain_zeroshot_retrieval" in files and not any("one_class" in name for name in files)


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_everything_says_where_and_needs_no_jax(two, tmp_path):
    out = tmp_path / "new" / "out"
    code = (
        f"import runpy, sys; sys.argv = ['report.py', {str(two[0])!r}, {str(two[1])!r}, '--out={out}']\n"
        "try: runpy.run_path('tools/report.py', run_name='__main__')\n"
        "except SystemExit as done: status = done.code\n"
        "sys.exit(status or bool({'jax', 'flax', 'optax', 'tensorflow'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"{out / 'report.html'}\n", "")
    assert {file.name for file in out.iterdir()} == {"report.html", "table.csv", "table.md", "clip_benchmark"}


def test_help_is_instant_and_imports_nothing_heavy():
    code = (
        "import runpy, sys; sys.argv = ['report.py', '--help']\n"
        "try: runpy.run_path('tools/report.py', run_name='__main__')\n"
        "except SystemExit: sys.exit(bool({'numpy', 'scipy', 'matplotlib'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0 and "compared" in found.stdout


def test_errors_are_one_line(two, tmp_path):
    def refused(*runs):
        with pytest.raises(UserError) as error:
            compare(tmp_path / "out", *runs)
        assert "\n" not in str(error.value)
        return str(error.value)

    (tmp_path / "empty").mkdir()
    assert "is no folder" in refused(tmp_path / "none") and "holds no evaluation" in refused(tmp_path / "empty")
    assert "given twice" in refused(two[0], two[0])
    assert f"give 1 to {page.COLOURS}" in refused(*[two[0]] * 9)
    folder, write = evaluate(tmp_path / "damaged")
    record = answers(1, 1)
    write("t", "zeroshot", **{key: value for key, value in record.items() if key != "labels"})
    assert re.search(r"t\.zeroshot\.json is damaged \(it has no labels\)", refused(folder))
    write("t", "zeroshot", **(record | {"labels": [0, 7], "predicted": ["x", None]}))
    assert "a record in" in refused(folder) and "damaged" in refused(folder)
    write("t", "zeroshot", **(record | {"metrics": {"acc1": float("nan")}}))
    assert "a record in" in refused(folder)
    (folder / "t.zeroshot.json").write_text("{")
    assert "t.zeroshot.json is damaged" in refused(folder)
