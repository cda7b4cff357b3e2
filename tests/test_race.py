"""A race: equal budgets, records that it goes on from, and tables that say what the records say."""

import json
import os
import runpy
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny
from colour_model import folder, photos
from scipy import stats

from agriclip_jax import race
from agriclip_jax.comparison import race_plots, race_tables, results, standings
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate import statistics

RECIPE = "configs/alive.py"


def record(recipe, seed, answers, budget="8steps", **more):
    """`answers`: task -> (group, who is right)."""
    tasks = {
        name: {"group": group, "domain": "crop", "chance": 0.5, "images": len(right)}
        | {"photos": name, "right": standings.packed(right)}
        for name, (group, right) in answers.items()
    }
    spent = {"steps": 8, "images": 128, "accelerator_seconds": 4.0, "devices": ["cpu"], "given": {}}
    head = {
        "recipe": recipe,
        "seed": seed,
        "budget": budget,
        "suite": "s",
        "setting": "cpu",
        "code": "x",
        "key": "k",
        "settings": "k",
    }
    return {**head, **spent, "parameters": {"all": 9, "trained": 9}, "tasks": tasks, **more}


def answers(share, seed):
    rng = np.random.default_rng([seed, int(share * 1000)])
    return {f"{g}{i}": (g, rng.random(40 + i) < share) for g in ("in domain", "downstream") for i in range(4)}


RACE = [
    record(name, seed, answers(share, seed), budget)
    for budget, shares in {
        "8steps": {"contrastive": 0.5, "joint": 0.75},
        "4s": {"contrastive": 0.5, "joint": 0.6},
    }.items()
    for name, share in shares.items()
    for seed in (0, 1, 2)
]


def test_who_was_right_survives_packing():
    for count in (1, 7, 8, 9, 100):
        right = np.random.default_rng(count).random(count) < 0.5
        np.testing.assert_array_equal(standings.right({"images": count, "right": standings.packed(right)}), right)


def test_a_standing_is_the_mean_of_tasks_and_seeds_with_the_seeds_interval_and_the_paired_gain():
    rows = standings.standings([r for r in RACE if r["budget"] == "8steps"], "contrastive", "group")["in domain"]
    means = [
        np.mean([right.mean() for name, (group, right) in answers(0.75, seed).items() if group == "in domain"])
        for seed in (0, 1, 2)
    ]
    row = next(row for row in rows if row.recipe == "joint")
    assert row.mean == pytest.approx(np.mean(means)) and len(row.tasks) == 4
    half = stats.t.ppf(0.975, 2) * np.std(means, ddof=1) / np.sqrt(3)
    assert row.interval == pytest.approx((row.mean - half, row.mean + half))
    baseline = next(row for row in rows if row.recipe == "contrastive")
    assert row.gain.difference == pytest.approx(row.mean - baseline.mean) and baseline.gain is None
    assert row.gain.p_value < 0.001 and row.gain.interval[0] > 0


def test_a_gain_is_judged_by_other_photos_and_by_other_seeds():
    """Every photo of a run shifts with its seed, so many photos alone say nothing of a recipe trained anew."""
    shares = {"contrastive": (0.5, 0.6, 0.5), "joint": (0.7, 0.6, 0.6)}
    found = [record(name, seed, answers(share, seed)) for name, of in shares.items() for seed, share in enumerate(of)]
    for rows in standings.standings(found, "contrastive", "group").values():
        baseline, joint = rows
        wanted = stats.ttest_rel(joint.means, baseline.means)
        assert joint.trained_anew.p_value == pytest.approx(wanted.pvalue) and joint.gain.p_value < 0.05
        assert joint.trained_anew.interval == pytest.approx(wanted.confidence_interval())
        assert joint.trained_anew.difference == pytest.approx(joint.gain.difference) and baseline.trained_anew is None
    alike = statistics.paired_gain_of_seeds([0.1, 0.1])
    assert (alike.interval, alike.p_value) == ((0.1, 0.1), 0.0)
    assert statistics.paired_gain_of_seeds([0.0, 0.0]).p_value == 1.0
    alone = standings.standings(found[::3], "contrastive", "group")["in domain"][1]
    assert alone.gain and alone.trained_anew is None and race_tables._cells(alone)[-2:] == ["", ""]


def test_one_seeds_gain_is_that_of_the_test_for_two_runs():
    rng = np.random.default_rng(0)
    pairs = [(rng.random(60) < 0.5, rng.random(60) < 0.6) for _ in range(5)]
    wanted = statistics.paired_mean_difference(pairs)
    found = statistics.paired_mean_gain([b.astype(float) - a for a, b in pairs])
    assert found.difference == pytest.approx(wanted.difference)
    assert found.interval == pytest.approx(wanted.interval, abs=0.02) and found.p_value == pytest.approx(
        wanted.p_value, abs=0.02
    )


def test_seeds_that_answer_alike_are_no_more_evidence_than_one():
    rng = np.random.default_rng(1)
    gain = (rng.random(80) < 0.6).astype(float) - (rng.random(80) < 0.5)
    same = statistics.paired_mean_gain([np.mean([gain] * 3, axis=0)])
    assert same == statistics.paired_mean_gain([gain])


def test_tables_give_each_budget_apart_and_the_smaller_gain_last():
    made = {table.title: table for table in race_tables.tables(standings.by_budget(RACE, "contrastive", "group"))}
    assert list(made)[-1].startswith("The smaller gain")
    row = made["The smaller gain: in domain"].rows[0]
    gains = [float(cell) for cell in row[1:3]]
    assert row[0] == "joint" and float(row[3]) == min(gains) and gains[0] < gains[1]
    assert made["8steps: what was spent"].rows[1] == ["joint", "8", "128", "4", "cpu"]


def test_a_smaller_gain_needs_one_by_steps_and_one_by_seconds_and_no_other():
    longer = [record("contrastive", 0, answers(0.5, 0), "16steps"), record("lit", 0, answers(0.6, 0), "16steps")]
    raced = standings.by_budget([*RACE, *longer], "contrastive", "group")
    (row,) = {table.title: table for table in race_tables.tables(raced)}["The smaller gain: in domain"].rows
    assert row[0] == "joint" and row[3] == "" and row[4] == row[1]  # by seconds, by steps, by more steps, the smaller


def test_of_steps_alone_there_is_no_smaller_gain_and_fewer_come_first():
    told = [record(name, 0, answers(0.5, 0), budget) for budget in ("16steps", "8steps") for name in ("a", "b")]
    titles = [table.title for table in race_tables.tables(standings.by_budget(told, "a", "group"))]
    assert titles[0].startswith("8steps") and not any(title.startswith("The smaller") for title in titles)


def test_each_task_has_a_row_and_marked_ones_a_star_and_a_mean_without_them():
    raced = standings.by_budget(RACE[:6], "contrastive", "group")
    table = race_tables.tables(raced, marked=["downstream1"])[-1]
    assert (table.title, table.heads) == ("8steps: each task", ("task", "chance", "contrastive", "joint"))
    rows = {row[0]: row[1:] for row in table.rows}
    assert len(rows) == 11 and "mean of in domain without *" not in rows and rows["in domain0"][0] == "50.0"
    of = {name: np.mean([answers(0.75, seed)[name][1].mean() for seed in (0, 1, 2)]) for name in answers(0.75, 0)}
    assert rows["downstream1 *"][2] == f"{100 * of['downstream1']:.1f}"
    others = [of[f"downstream{place}"] for place in (0, 2, 3)]
    assert rows["mean of downstream without *"][2] == f"{100 * np.mean(others):.1f}"
    assert race_tables.tables(raced)[-1].title != table.title
    with pytest.raises(UserError, match=r"--mark=downstrm1: no task that all .*did you mean .downstream1"):
        race_tables.tables(raced, marked=["downstream0", "downstrm1"])


def test_changes_are_shares_of_those_of_a_whole_with_what_each_trained():
    cheap = [record("lora", seed, answers(0.6, seed), parameters={"all": 9, "trained": 1_200}) for seed in (0, 1)]
    raced = standings.by_budget([*RACE[:6], *cheap], "contrastive", "group")
    made = {table.title: table for table in race_tables.tables(raced, "joint")}
    table = made["8steps: change as a share of joint's"]
    assert table.heads == ("recipe", "parameters trained", "downstream", "in domain")
    gains = {row.recipe: row.gain.difference for row in raced[0].groups["downstream"] if row.gain}
    assert table.rows[0] == ["joint", "9", "100 %", "100 %"]
    assert table.rows[1][:2] == ["lora", "1,200"]
    assert table.rows[1][2] == f"{100 * gains['lora'] / gains['joint']:.0f} %"
    apart = standings.by_budget([*RACE, *cheap], "contrastive", "group")  # where it has no gain there are no shares
    assert sum("a share of lora's" in made.title for made in race_tables.tables(apart, "lora")) == 1
    with pytest.raises(UserError, match=r"--share_of=full: no record has a gain of it in every group"):
        race_tables.tables(raced, "full")


def test_a_recipe_that_trained_nothing_has_no_count_and_a_budget_without_the_baseline_is_left_out(tmp_path):
    fitted = record("three_stage", 0, answers(0.6, 0), parameters={"all": None, "trained": None})
    (raced,) = standings.by_budget(
        [*RACE[:6], fitted, record("joint", 0, answers(0.6, 0), "9s")], "contrastive", "group"
    )
    shares = {table.title: table for table in race_tables.tables([raced], "joint")}[
        "8steps: change as a share of joint's"
    ]
    assert ["three_stage", ""] in [row[:2] for row in shares.rows]
    said = results.report([*RACE[:6], record("joint", 0, answers(0.6, 0), "9s")], tmp_path, "contrastive")
    assert "Left out, for contrastive did not run there: 9s." in said
    with pytest.raises(UserError, match=r"no record is of the baseline 'full'"):
        standings.by_budget(RACE, "full", "group")


@pytest.mark.parametrize("kill, number", [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)])
def test_a_stopped_race_lets_the_run_in_it_save(tmp_path, kill, number):
    """Ctrl-C reaches both; SIGTERM the race alone."""
    run = """import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
try:
    pathlib.Path(sys.argv[1], "begun").touch(); time.sleep(60)
except (KeyboardInterrupt, SystemExit):
    time.sleep(1); pathlib.Path(sys.argv[1], "saved").touch()"""
    race_ = "import signal, sys, pathlib as p; from agriclip_jax import race; at = p.Path(sys.argv[1]); "
    race_ += "signal.signal(signal.SIGINT, signal.default_int_handler); race.Race(at / 's', "  # as in the foreground
    race_ += "race.budget('1s'), at, at, 'cpu', False, print)._command('-c', sys.argv[2], sys.argv[1])"
    process = subprocess.Popen([sys.executable, "-c", race_, tmp_path, run], start_new_session=True, stderr=-3)
    while not (tmp_path / "begun").is_file():
        assert process.poll() is None
    kill(process.pid, number)
    assert process.wait(timeout=60) and (tmp_path / "saved").is_file()


def test_records_of_other_settings_are_refused_and_tasks_of_other_photos_left_out():
    with pytest.raises(UserError, match="the records of joint are of different settings"):
        standings.by_budget([*RACE, record("joint", 3, answers(0.7, 3), settings="other")], "contrastive", "group")
    older = [r | ({"settings": "old"} if (r["recipe"], r["budget"]) == ("joint", "4s") else {}) for r in RACE]
    with pytest.raises(UserError, match="the records of joint are of different settings"):
        standings.by_budget(older, "contrastive", "group")
    shared = record("contrastive", 0, answers(0.5, 0), given={"a.b": "1", "c": "2"})
    varied = record("contrastive+a.b=0", 0, answers(0.5, 0), given={"a.b": "0", "c": "2"})
    assert standings.by_budget([shared, varied], "contrastive", "group")  # a recipe may set one of the keys anew
    larger = [r | ({"given": {"batch_size": "256"}} if r["recipe"] == "joint" else {}) for r in RACE]
    with pytest.raises(UserError, match="of batch_size contrastive had none and joint had 256; race one of them again"):
        standings.by_budget(larger, "contrastive", "group")
    tasks = {k: v | ({"photos": "x"} if k == "in domain1" else {}) for k, v in RACE[0]["tasks"].items()}
    with pytest.raises(UserError, match=r"no task is of the same photos in all records"):
        none = {k: v | {"photos": "x"} for k, v in RACE[0]["tasks"].items()}
        standings.standings([RACE[0] | {"tasks": none}, *RACE[1:6]], "contrastive", "group")
    found = standings.standings([RACE[0] | {"tasks": tasks}, *RACE[1:6]], "contrastive", "group")
    assert [len(found[group][0].tasks) for group in ("in domain", "downstream")] == [3, 4]


def test_seconds_of_another_device_are_refused():
    other = [r | {"devices": ["NVIDIA H200"]} if (r["recipe"], r["seed"]) == ("joint", 2) else r for r in RACE]
    assert standings.by_budget([r for r in other if r["budget"] == "8steps"], "contrastive", "group")
    with pytest.raises(UserError, match=r"the records of 4s are of NVIDIA H200 and of cpu, and seconds of one are not"):
        standings.by_budget(other, "contrastive", "group")


def test_a_record_of_other_things_is_never_written_over(tmp_path):
    (tmp_path / "s.yaml").write_text("tasks: [embedded]\n", encoding="utf-8")
    one = race.Race(tmp_path / "s.yaml", race.budget("8steps"), tmp_path, tmp_path, "cpu", False, print)
    entry = race.Entry("contrastive", "cpu", {})
    put(tmp_path, record("contrastive", 0, answers(0.5, 0)))
    for going in (lambda: one.run(entry, 0), lambda: one.all([entry], [0])):
        with pytest.raises(UserError, match=r"s.cpu.contrastive.8steps.seed0.json is of other keys, data or another"):
            going()
    assert json.loads(one.file(entry, 0).read_text(encoding="utf-8"))["key"] == "k"


def test_a_training_that_was_stopped_leaves_no_record(tmp_path, monkeypatch):
    (tmp_path / "s.yaml").write_text("tasks: [embedded]\n", encoding="utf-8")
    monkeypatch.setattr(race.Race, "_command", lambda self, *arguments: None)  # which then has written no report
    one = race.Race(tmp_path / "s.yaml", race.budget("8steps"), tmp_path, tmp_path, "cpu", False, print)
    with pytest.raises(RunFailure, match="was stopped; give the same command again"):
        one.run(race.Entry("contrastive", "cpu", {}), 0)
    assert not list(tmp_path.glob("*.json"))


def test_a_task_that_a_run_lacks_counts_for_none():
    few = RACE[0] | {"tasks": {k: v for k, v in RACE[0]["tasks"].items() if k != "in domain0"}}
    assert len(standings.standings([few, *RACE[1:6]], "contrastive", "group")["in domain"][0].tasks) == 3


def test_the_page_and_the_plots_say_it_too(tmp_path):
    put(tmp_path, *RACE)
    found = standings.read(tmp_path, suite="s", setting="cpu", names=["contrastive", "joint"])
    assert len(found) == len(RACE)
    text = results.report(found, tmp_path / "out", "contrastive")
    assert text == (tmp_path / "out" / "table.md").read_text(encoding="utf-8") and "| joint | 3 |" in text
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "http" not in page.split("<main>")[1].replace("http://www.w3.org", "")
    assert (tmp_path / "out" / "plot-4s.svg").is_file()


def put(folder, *records):
    for r in records:
        (folder / f"s.cpu.{r['recipe']}.{r['budget']}.seed{r['seed']}.json").write_text(json.dumps(r), encoding="utf-8")


def test_a_baseline_that_was_raced_before_is_in_the_table(tmp_path, monkeypatch, capsys):
    put(tmp_path, *RACE)
    flags = ["--suite=s.yaml", f"--records={tmp_path}", f"--out={tmp_path / 'out'}", "--recipes=joint", "--only_table"]
    code, said = tiny.call(monkeypatch, capsys, "compare.py", *flags)
    assert code == 0 and "| contrastive | 3 |" in said.out and "| joint | 3 |" in said.out, said.err


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("steps"),
        lambda r: r.update(seed="1"),
        lambda r: r.update(budget="long"),
        lambda r: r.update(tasks=[]),
        lambda r: r.update(parameters={}),
        lambda r: r["tasks"]["in domain0"].update(right="zz"),
        lambda r: r["tasks"]["in domain0"].update(right="00"),
        lambda r: r["tasks"]["in domain0"].pop("photos"),
        lambda r: r["tasks"].update({"in domain0": None}),
    ],
)
def test_a_damaged_record_is_named(tmp_path, damage):
    one = json.loads(json.dumps(RACE[0]))
    damage(one)
    (tmp_path / "s.cpu.x.json").write_text(json.dumps(one), encoding="utf-8")
    with pytest.raises(UserError, match=r"s\.cpu\.x\.json is damaged .*; remove it, and its run is made anew"):
        standings.read(tmp_path, suite="s", setting="cpu")


def test_a_record_that_was_cut_off_is_to_be_made_anew_not_its_folder(tmp_path):
    (tmp_path / "s.cpu.x.json").write_text(json.dumps(RACE[0])[:400], encoding="utf-8")
    with pytest.raises(UserError, match=r"s\.cpu\.x\.json is damaged .*; remove it, and its run is made anew"):
        standings.read(tmp_path, suite="s", setting="cpu")


def test_the_marked_sections_of_a_page_are_written_from_the_records_beside_it_and_nothing_else_is(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "results").mkdir()
    put(tmp_path / "results", *RACE)
    page = tmp_path / "page.md"
    marker = "<!-- race: --suite=s --budgets=8steps --plot=first contrastive joint -->"
    page.write_text(f"# Results\n\n{marker}\nold\n<!-- race: end -->\n\nThe rest.\n", encoding="utf-8")
    for _ in range(2):
        assert tiny.call(monkeypatch, capsys, "compare.py", f"--page={page}")[0] == 0
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# Results\n\n{marker}\n\nMean top-1") and "old" not in text
        assert text.endswith("\n\n<!-- race: end -->\n\nThe rest.\n") and "| joint | 3 |" in text and "4s" not in text
        assert "![plot of first, 8steps](results/first-plot-8steps.svg)" in text
    assert "<svg" in (tmp_path / "results" / "first-plot-8steps.svg").read_text(encoding="utf-8")
    page.write_text("<!-- race: --suite=s -->\n<!-- race: end -->\n", encoding="utf-8")
    assert tiny.call(monkeypatch, capsys, "compare.py", f"--page={page}")[0] == 0
    listed = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(("| joint", "| contr"))]
    scores = [float(line.split("|")[6]) for line in listed]
    assert len(listed) == len(RACE) and scores == sorted(scores, reverse=True)
    for asked in ("contrastive joint jiont", "--budgets=8steps,9steps contrastive"):
        page.write_text(f"<!-- race: --suite=s {asked} -->\n<!-- race: end -->\n", encoding="utf-8")
        code, said = tiny.call(monkeypatch, capsys, "compare.py", f"--page={page}")
        missing = "jiont" if "jiont" in asked else "9steps"
        assert (
            code == 2 and f"{asked}': {tmp_path / 'results'} holds no record of {missing} for the suite s" in said.err
        )
    put(tmp_path / "results", record("joint", 0, answers(0.5, 0), "7s"))
    page.write_text("<!-- race: --suite=s --budgets=8steps,7s contrastive joint -->\n<!-- race: end -->\n")
    code, said = tiny.call(monkeypatch, capsys, "compare.py", f"--page={page}")
    assert code == 2 and "at 7s no record is of contrastive, the first recipe of its marker" in said.err
    for whole in ("Nothing.", f"{marker}\nno end", f"{marker}\n{marker}\n<!-- race: end -->\n"):
        page.write_text(whole, encoding="utf-8")
        code, said = tiny.call(monkeypatch, capsys, "compare.py", f"--page={page}")
        assert code == 2 and "a section to fill stands between one of each" in said.err
        assert page.read_text(encoding="utf-8") == whole
    page.write_text("<!-- race: --plot=p -->\n<!-- race: end -->\n", encoding="utf-8")
    code, said = tiny.call(monkeypatch, capsys, "compare.py", f"--page={page}")
    assert code == 2 and "the marker 'race: --plot=p' is not understood" in said.err


def test_the_page_of_results_says_what_its_records_say():
    page = race.ROOT / "docs" / "results.md"
    text, plots = results.fill(page)
    assert text == page.read_text(encoding="utf-8"), "run: python tools/compare.py --page=docs/results.md"
    assert plots and all(file.is_file() for file in plots)


def test_recipes_that_vary_in_a_key_make_a_curve(tmp_path):
    vary = [
        record(f"sclip+data.label_ratio={x}", seed, answers(0.5 + x / 4, seed), given={"data.label_ratio": str(x)})
        for x in (0.1, 0.5, 1.0)
        for seed in (0, 1)
    ]
    results.report([*RACE[:3], *vary], tmp_path, "contrastive", along="data.label_ratio")
    svg = (tmp_path / "curve-8steps.svg").read_text(encoding="utf-8")
    assert "data.label" in svg or "label" in svg
    results.report([*RACE, *vary], tmp_path / "more", "contrastive", along="data.label_ratio")
    drawn = sorted(file.name for file in (tmp_path / "more").glob("*.svg"))
    assert drawn == ["curve-8steps.svg", "plot-4s.svg", "plot-8steps.svg"]  # in 4 s nothing varies
    with pytest.raises(UserError, match=r"--curve=seed: fewer than two values of it"):
        results.report([*RACE[:3], *vary], tmp_path, "contrastive", along="seed")


def test_nothing_of_a_key_is_a_point_of_its_curve_too():
    def marks(values):
        of = {f"sclip+a.b={x}": {"given": {"a.b": x}} for x in values}
        found = [record(name, seed, answers(0.5, seed), **given) for name, given in of.items() for seed in (0, 1)]
        raced = standings.by_budget([*RACE[:3], *found], "contrastive", "group")
        return race_plots.plots(raced, "contrastive", "a.b")["8steps"]["curve"].count("<use")

    assert marks(["0", "0.5"]) == marks(["1", "0.5"])  # as many points, and figures at the axis


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipes=contrastive", "--budget=4000"], "--budget=4000: give steps or seconds"),
        (["--recipes=contrastive", "--budget=0steps"], "--budget=0steps"),
        (["--recipes=contrastive,contrastive", "--budget=8steps"], "--recipes: contrastive is named twice"),
        (["--recipes=contrastive", "--budget=8steps", "--seeds=a"], "--seeds=a: give whole numbers"),
        (["--recipes=contrastiv", "--budget=8steps"], "configs/race.py has no 'contrastiv'"),
        (["--recipes=contrastive+sede=1", "--budget=8steps"], "unknown key"),
        (["--recipes=contrastive+seed", "--budget=8steps"], "'seed' is not KEY=VALUE"),
        (["--budget=8steps"], "name --recipes"),
        (["--recipes=joint", "--budget=8steps"], "contrastive is what others are compared with, and is neither raced"),
        (
            ["--recipes=joint", "--budget=8steps", "--records=there"],
            "contrastive.8steps.seed0.json is of other keys, data or another suite than contrastive has here",
        ),
        (
            ["--recipes=contrastive", "--budget=9steps", "--records=there"],
            "contrastive.8steps.seed0.json is of other keys, data or another suite than contrastive has here",
        ),
        (["--recipes=contrastive", "--budget=8steps", "--share_of=full"], "full is what others are compared with"),
        (
            ["--recipes=contrastive", "--budget=8steps", "--suite=knn.yaml"],
            "the suite knn.yaml does not ask 'zeroshot'",
        ),
        (
            ["--recipes=contrastive", "--budget=8steps", "--config.seed=7"],
            "config.seed is the race's own; give --seeds",
        ),
        (
            ["--recipes=joint+stages.clip.total_steps=7", "--budget=8steps"],
            "config.stages.clip.total_steps is the race's own; give --budget",
        ),
        (
            ["--recipes=contrastive", "--budget=8steps", "--suite=nowhere.yaml"],
            "the suite nowhere.yaml, task 1: nowhere: no such file or folder",
        ),
        (
            ["--recipes=contrastive,contrastive@teacher", "--budget=8steps"],
            "contrastive@teacher: contrastive trains no teacher; leave out @teacher",
        ),
        (
            ["--recipes=contrastive,three_stage@teacher", "--budget=8steps"],
            "three_stage@teacher: three_stage trains no teacher",
        ),
        (["--recipes=contrastive", "--budget=8steps", "--mark=cows"], "--mark=cows:"),
        (["--suite=one.yaml", "--recipes=contrastive", "--budget=8steps", "--mark=cow"], "no such task that can be"),
        (
            ["--recipes=contrastive,joint+batch_size=8", "--budget=8steps", "--curve=batch_size"],
            "--curve=batch_size: fewer than two values of it",
        ),
        (
            ["--recipes=contrastive,joint", "--budget=8steps", "--curve=batch_size", "--config.batch_size=8"],
            "--curve=batch_size: fewer than two values of it",
        ),
        (["--recipes=contrastive,setting=gpu", "--budget=8steps"], "'setting=gpu' is no recipe; a key of one is NAME"),
        (["--recipes=contrastive", "--budget=8steps", "--out=knn.yaml"], "knn.yaml"),
        (["--recipes=contrastive", "--budget=8steps", "--records=knn.yaml"], "knn.yaml"),
        (["--only_table"], "holds no record of any recipe for the suite"),
        (["--only_table", "--records=there", "--recipes=contrastive,nonsense"], "there holds no record of nonsense"),
        (["--only_table", "--records=there", "--budget=9steps"], "there holds no record of 9steps"),
        (
            ["--only_table", "--records=there", "--recipes=joint", "--budget=8steps"],
            "there holds no record of joint at 8steps",
        ),
        (["--only_table", "--basline=joint"], "--basline=joint: nothing is trained for a table"),
    ],
)
def test_a_race_that_cannot_be_run_is_one_line_before_anything_is_trained(
    tmp_path, capsys, monkeypatch, flags, message
):
    arguments = [f"--suite={race.ROOT / 'configs/suites/embedded.yaml'}", f"--out={tmp_path / 'out'}", *flags]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nowhere.yaml").write_text("tasks: [nowhere]\n", encoding="utf-8")
    folder(tmp_path / "cow", {"cow": photos("red", 1)})
    (tmp_path / "one.yaml").write_text("tasks: [{photos: cow}]\n", encoding="utf-8")  # of one class
    (tmp_path / "there").mkdir()
    one = json.dumps(RACE[0])
    (tmp_path / "there" / "embedded.cpu.contrastive.8steps.seed0.json").write_text(one, encoding="utf-8")
    (tmp_path / "knn.yaml").write_text("tasks: [embedded]\nmeasures: [knn]\n", encoding="utf-8")
    code, said = tiny.call(monkeypatch, capsys, "compare.py", *arguments)
    assert code == 2 and message in said.err and len(said.err.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "runs").exists()


def test_every_recipe_of_the_race_is_whole_in_both_settings():
    names = runpy.run_path("configs/race.py")["NAMES"]
    for name in names:
        for setting in ("cpu", "gpu"):
            plan = race.Entry(name, setting, {}).plan
            assert plan and all(stage.config.recipe == f"race_{stage.name or name}" for stage in plan)
    assert len(set(names)) == len(names) >= 20


@pytest.mark.parametrize("setting", ["cpu", "gpu"])
def test_a_model_that_stays_unadapted_learns_nothing_in_either_setting(setting):
    rates = {n: race.Entry(n, setting, {}).plan[-1].config.optimizer.learning_rate for n in ("unadapted", "full")}
    assert rates == {"unadapted": 0.0, "full": 1e-3}


def test_stages_that_recipes_have_alike_are_trained_once(tmp_path, monkeypatch):
    (tmp_path / "s.yaml").write_text("tasks: [embedded]\n", encoding="utf-8")
    one = race.Race(tmp_path / "s.yaml", race.budget("100steps"), tmp_path, tmp_path, "cpu", False, print)
    kept = {}
    for name in ("full", "lora", "three_stage", "lit"):
        entry = race.Entry(name, "cpu", {})
        kept[name] = one._shared(entry, one._steps(entry), 0)
    assert kept["full"] == kept["lora"] and list(kept["full"]) == ["general"]
    assert kept["lit"]["distill"] == kept["three_stage"]["distill"] and "align" not in kept["three_stage"]
    other = race.Entry("lora", "cpu", {})
    assert one._shared(other, one._steps(other), 1) != kept["lora"]
    assert one._shared(other, {"general": 51, "adapt": 50}, 0) != kept["lora"]


def test_seconds_become_steps_by_the_speed_of_a_short_run_and_stages_share_them(tmp_path, monkeypatch):
    entry = race.Entry("three_stage", "cpu", {})
    assert entry.training == ["clip", "distill"]
    one = race.Race(tmp_path / "s.yaml", race.budget("100steps"), tmp_path, tmp_path, "cpu", False, print)
    assert one._steps(entry) == {"clip": 50, "distill": 50}
    assert entry.keys({"clip": 50}) == {"stages.clip.total_steps": "50"}

    rates = {"clip": 1280.0, "distill": 128.0}

    def short(self, *arguments):
        workdir = next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2]
        for stage, rate in rates.items():
            rows = [{"step": i, "images_per_s": 1.0 if i < 3 else rate} for i in range(1, 10)]
            folder = race.Path(workdir) / stage
            folder.mkdir(parents=True)
            (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

        (race.Path(workdir) / "align").mkdir(exist_ok=True)
        (race.Path(workdir) / "align" / "aligner.json").write_text('{"seconds": 10}')

    monkeypatch.setattr(race.Race, "_command", short)
    one = race.Race(tmp_path / "s.yaml", race.budget("60s"), tmp_path, tmp_path, "cpu", False, print)
    assert one._steps(entry) == {"clip": 250, "distill": 25}
    rates = {"": 256.0}  # of images with captions and without: 128 of each in a step
    assert one._steps(race.Entry("sclip", "cpu", {})) == {"": 50}


def test_seconds_that_a_pass_beside_training_uses_up_are_refused(tmp_path, monkeypatch):
    def short(self, *arguments):
        workdir = race.Path(next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2])
        for stage in ("clip", "distill", "align"):
            (workdir / stage).mkdir(parents=True)
            (workdir / stage / "metrics.jsonl").write_text('{"step": 9, "images_per_s": 100.0}', encoding="utf-8")
        (workdir / "align" / "aligner.json").write_text('{"seconds": 10}', encoding="utf-8")

    monkeypatch.setattr(race.Race, "_command", short)
    one = race.Race(tmp_path / "s.yaml", race.budget("11s"), tmp_path, tmp_path, "cpu", False, print)
    with pytest.raises(UserError, match=r"--budget=11s: three_stage takes 10 s beside training, which leaves no step"):
        one._steps(race.Entry("three_stage", "cpu", {}))


@pytest.mark.parametrize("written", ["weights.safetensors", "run/checkpoints/4/params/d"])
def test_a_record_is_of_the_weights_that_its_recipe_starts_from(tmp_path, written):
    (tmp_path / "s.yaml").write_text("tasks: [embedded]\n", encoding="utf-8")
    one = race.Race(tmp_path / "s.yaml", race.budget("8steps"), tmp_path, tmp_path, "cpu", False, print)
    given = {"init.model": str(tmp_path / written.partition("/")[0])}
    keys = []
    for content in ("one", "one", "other"):
        (tmp_path / written).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / written).write_text(content, encoding="utf-8")
        (tmp_path / "run" / "report.html").parent.mkdir(exist_ok=True)
        (tmp_path / "run" / "report.html").write_text(f"seen {len(keys)} times", encoding="utf-8")
        keys.append(one._key(race.Entry("contrastive", "cpu", given), 0))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.slow
def test_a_race_is_run_stopped_gone_on_with_and_told(tmp_path, corpus, monkeypatch, capsys):
    suite = tmp_path / "small.yaml"
    suite.write_text(f"tasks: [{{photos: {corpus}, split: val}}]\nmeasures: [zeroshot]\n", encoding="utf-8")
    given = tiny.SMALL | {"data.path": str(corpus), "log_every": "1"}
    shared = [f"--config.{k}={v}" for k, v in given.items() if k != "total_steps"]
    names = f"{RECIPE}+objectives.distill=0.0,{RECIPE},{RECIPE}@teacher"
    flags = [f"--suite={suite}", f"--out={tmp_path / 'race'}", f"--baseline={RECIPE}+objectives.distill=0.0"]
    raced = [*flags, f"--recipes={names}", "--seeds=0", "--budget=6steps", *shared]
    code, said = tiny.call(monkeypatch, capsys, "compare.py", *raced)
    assert code == 0, said.err
    files = sorted((tmp_path / "race" / "records").glob("*.json"))
    assert len(files) == 3 and not list((tmp_path / "race" / "runs").glob("*"))
    assert all(file.stat().st_size < 8_000 for file in files)
    one = json.loads(files[0].read_text())
    assert (one["steps"], one["images"]) == (6, 96) and one["accelerator_seconds"] > 0
    made = {file: file.stat().st_mtime_ns for file in files}
    files[0].unlink()
    code, said = tiny.call(monkeypatch, capsys, "compare.py", *raced)
    assert code == 0 and sum(file.stat().st_mtime_ns != at for file, at in made.items()) == 1
    code, told = tiny.call(monkeypatch, capsys, "compare.py", *flags, "--only_table")
    assert code == 0 and "| gain |" in told.out
