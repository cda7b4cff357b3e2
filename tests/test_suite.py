"""Suites: many tasks, every measure, one record each; done once, continued, and enough to be computed again."""

import dataclasses
import json
import weakref
from pathlib import Path

import pytest
from colour_model import ColourModel, folder, photos
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import call

from agriclip_jax import commands, comparison
from agriclip_jax.data import splits
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import features, measures, probe, records, suite, zeroshot
from agriclip_jax.evaluate.statistics import wilson
from agriclip_jax.evaluate.tasks import Task, load_tasks

COUNTS = {"red": 14, "green": 12, "blue": 12, "yellow": 12}


@pytest.fixture
def asked(tmp_path):
    folder(tmp_path / "fruit", {colour: photos(colour, count) for colour, count in COUNTS.items()})
    folder(tmp_path / "cows", {"red": photos("red", 3)})
    folder(tmp_path / "cars", {"red": photos("blue", 4), "green": photos("green", 4)})
    file = tmp_path / "farm.yaml"
    file.write_text(
        f"tasks:\n  - {tmp_path}/fruit\n  - photos: {tmp_path}/cows\n  - photos: {tmp_path}/cars\n    group: general\n"
    )
    return suite.read(file)


@pytest.fixture
def model(tmp_path):
    return ColourModel(tmp_path / "run")


def made(model, asked, *measures, **options):
    """The records of a suite, of some measures or all."""
    asked = dataclasses.replace(asked, measures=measures or asked.measures)
    return records.read(suite.run(model, asked, suite.load(asked, seen={"fruit": splits.SHARES}), **options))


def test_every_task_has_a_record_of_every_measure_and_every_group_its_own(model, asked):
    labels = []
    run = made(model, asked, done=labels.append)
    assert {name: set(of) for name, of in run.records.items()} == {
        **{name: {"fruit", "cows", "cars"} for name in suite.MEASURES},
        **{name: {"in-domain", "downstream", "general"} for name in ("retrieval", "map")},
    }
    assert len(labels) == 3 * (len(suite.MEASURES) + 2) and "fruit: knn" in labels
    for of in run.records.values():
        for record in of.values():
            assert {"dataset", "task", "language", "metrics", "checkpoint", "code_version", "key"} <= set(record)
            assert (
                record["metrics"] is not None
                or "not_scored" in record
                or record["task"] in ("pictures", "embedding_map")
            )
    assert run.of("zeroshot")["cows"]["not_scored"].startswith("one class only")
    assert run.scored("zeroshot")["fruit"]["metrics"]["acc1"] == 1
    assert run.scored("zeroshot")["cars"]["metrics"]["acc1"] == 0.5 and run.of("zeroshot")["cars"]["group"] == "general"
    assert run.scored("linear")["fruit"]["metrics"]["acc1"] > 0.7


def test_what_is_done_is_not_done_again_and_what_changed_is(model, asked, tmp_path):
    few = ("zeroshot", "linear", "map")
    run = made(model, asked, *few)
    times = {file: file.stat().st_mtime_ns for file in run.folder.glob("*.*.json")}
    model.calls.clear()
    again = made(model, asked, *few)
    assert not model.calls and {file: file.stat().st_mtime_ns for file in again.folder.glob("*.*.json")} == times
    (tmp_path / "fruit" / "red" / "999.jpg").write_bytes(photos("red", 1)[0])
    made(model, asked, *few)
    changed = {file.name for file, time in times.items() if file.stat().st_mtime_ns != time}
    assert "fruit.linear.json" in changed and not any(name.startswith("cars") for name in changed)


def test_a_killed_suite_goes_on_and_ends_in_the_same_records(asked, tmp_path):
    class Mortal(ColourModel):
        left = 3

        def look(self, images):
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return super().look(images)

    with pytest.raises(KeyboardInterrupt):
        made(Mortal(tmp_path / "run"), asked, "zeroshot", "knn", "retrieval")
    spared = Mortal(tmp_path / "run")
    spared.left = -1
    left, whole = (
        made(each, asked, "zeroshot", "knn", "retrieval") for each in (spared, ColourModel(tmp_path / "other"))
    )

    def scores(run):
        return {(m, t): (r.get("metrics"), r.get("predicted")) for m, of in run.records.items() for t, r in of.items()}

    assert scores(left) == scores(whole)


def test_a_record_says_enough_to_compute_its_numbers_again(model, asked):
    run = made(model, asked, "zeroshot", "linear", "knn", "few_shot")
    record = json.loads((run.folder / "fruit.zeroshot.json").read_text(encoding="utf-8"))
    (task,) = load_tasks(record["photos"]["typed"], split=record["split"])
    assert task.fingerprint == record["photos"]["fingerprint"] and list(task.class_keys) == record["class_keys"]
    seen = features.of_task(ColourModel(), task)
    prompts = [
        [template.replace("{}", phrase) for template in record["templates"]] for phrase in record["class_phrases"]
    ]
    classes = zeroshot.class_embeddings(ColourModel(), prompts)
    answers = measures.classify(seen.embeddings, classes, seen.labels, record["logit_scale"])
    again = measures.score(answers)
    assert answers.predicted.tolist() == record["predicted"] and list(seen.sources) == record["sources"]
    assert (again.top1, again.macro_f1) == (record["metrics"]["acc1"], record["metrics"]["macro_f1"])
    assert [list(ends) for ends in again.bootstrap.values()] == list(record["bootstrap"].values())
    assert measures.calibration(answers, seen.embeddings, classes).error == pytest.approx(
        record["calibration"]["error"], abs=1e-12
    )
    linear = json.loads((run.folder / "fruit.linear.json").read_text(encoding="utf-8"))
    train, val, test = (features.of_task(ColourModel(), task.at(split)) for split in ("train", "val", "test"))
    fitted = probe.linear(train.features, train.labels, val.features, val.labels, test.features, test.labels, 4)
    assert fitted.record["l2"] == linear["l2"] and fitted.predicted.tolist() == linear["predicted"]
    assert tuple(linear["sources"]) == test.sources
    given = (train.features, train.labels, test.features, test.labels, 4)
    for name, again in (("knn", probe.knn(*given)), ("few_shot", probe.few_shot(*given))):
        assert json.loads(json.dumps(again["results"])) == run.scored(name)["fruit"]["results"]


def test_retrieval_finds_photos_by_their_class_or_by_their_own_captions(tmp_path, model):
    rows = ["filepath,caption"]
    folder(tmp_path / "pool", {"x": photos("red", 1) + photos("green", 1) + photos("blue", 1)})
    rows += [f"pool/x/{i:03}.jpg,a {colour} thing" for i, colour in enumerate(("red", "green", "blue"))]
    (tmp_path / "own.csv").write_text("\n".join([*rows, "pool/x/000.jpg,something red"]), encoding="utf-8")
    asked = suite.Suite("own", ("retrieval",), ({"photos": str(tmp_path / "own.csv")},))
    (record,) = made(model, asked).of("retrieval").values()
    assert record["metrics"]["mean_recall"] == 1 and record["text_to_image"]["queries"] == 4
    assert record["image_to_text"]["candidates"] == 4 and record["image_to_text"]["queries"] == 3
    shown = record["gallery"][0]
    assert shown["photos"][0]["right"] and (suite.folder(model, asked) / shown["photos"][0]["file"]).is_file()


def test_robustness_falls_with_strength_from_the_clean_score(model, asked):
    record = made(model, asked, "robustness").scored("robustness")["fruit"]
    assert record["metrics"]["acc1_clean"] == 1 and set(record["top1"]) == set(record["strengths"])
    assert record["top1"]["blur"] == [1] * 5, "a mean colour knows no blur"
    assert min(map(min, record["top1"].values())) < 1
    assert record["interval"] == list(wilson(record["images"], record["images"]))
    for kind, shares in record["top1"].items():
        expected = [list(wilson(round(share * record["images"]), record["images"])) for share in shares]
        assert record["intervals"][kind] == expected


def test_lesions_are_pointed_at_only_where_it_is_known_where_they_are():
    embedded, fruit = (
        Task(name, group, "crop", "test", (), (), (), 0, tuple)
        for name, group in (("leaves", "embedded"), ("fruit", "in-domain"))
    )
    asked = suite.Suite("x", ("pointing", "knn"), ())
    files = [file for _, file, _ in suite.records_of(asked, [embedded, fruit])]
    assert files == ["leaves.knn.json", "fruit.knn.json", "embedded.pointing.json"]


def test_pictures_are_kept_small_and_only_where_a_record_names_them(model, asked):
    run = made(model, asked, "pictures")
    named = {
        entry[key]
        for record in run.of("pictures").values()
        for entry in (*record["samples"], *record["mistakes"])
        for key in ("file", "attention")
        if key in entry
    }
    assert named and all((run.folder / file).stat().st_size < 60_000 for file in named)
    mistakes = run.of("pictures")["cars"]["mistakes"]
    assert len(mistakes) == 4 and all(entry["nearest"][0][0] != entry["label"] for entry in mistakes)
    assert run.of("pictures")["cows"]["samples"][0]["nearest"] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no list of tasks"),
        ("tasks: []", "has no list of tasks"),
        ("tasks: [{split: test}]", "task 1: it has no photos"),
        ("tasks: [{photos: x, splits: test}]", "unknown key 'splits'; did you mean 'split'"),
        ("tasks: [x]\nmeasures: [knnn]", "unknown measure 'knnn'; did you mean 'knn'"),
        ("tasks: [x]\nmeasure: [knn]", "unknown key 'measure'"),
        ("tasks: [$NOWHERE/x]", "environment variable NOWHERE is not set"),
        ("tasks: [{photos: x, templates: 3}]", "templates must be a list"),
        ("tasks: [{photos: x, domains: crop}]", "domains must be a list"),
        ("tasks: [", "no valid YAML"),
    ],
)
def test_a_bad_suite_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        suite.read(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{photos: FOLDER/fruut}", "task 2: .*/fruut: no such file or folder; did you mean 'fruit'"),
        ("{photos: FOLDER/fruit, split: tset}", "task 2: split=tset: unknown split; did you mean 'test'"),
        ("{photos: FOLDER/fruit, templates: [a photo]}", "task 2: template='a photo' needs one {}"),
        ("{photos: 'FOLDER/fruit,FOLDER/fruit'}", "task 2: .* asks 'fruit' twice"),
        ("{photos: ','}", "task 2: , names nothing"),
        ("{photos: FOLDER/fruit, domains: [othr]}", "task 2: no task is of the domain 'othr'; did you mean 'other'"),
    ],
)
def test_an_entry_that_cannot_be_loaded_is_told_by_the_suite_and_its_number(tmp_path, asked, entry, message):
    file = tmp_path / "farm.yaml"
    file.write_text(f"tasks:\n  - {tmp_path}/cars\n  - {entry.replace('FOLDER', str(tmp_path))}\n")
    with pytest.raises(UserError, match=f"^the suite {file}, {message}") as error:
        suite.load(suite.read(file), {})
    assert "--" not in str(error.value) and "\n" not in str(error.value)


def test_an_entry_may_ask_the_tasks_of_some_domains_alone(tmp_path, corpus):
    file = tmp_path / "some.yaml"
    entries = "".join(
        f"  - {{photos: {corpus}, domains: [{domain}], group: {domain}s}}\n" for domain in ("fish", "weed")
    )
    file.write_text(f"tasks:\n{entries}", encoding="utf-8")
    found = suite.load(suite.read(file), {})
    assert {(task.domain, task.group) for task in found} == {("fish", "fishs"), ("weed", "weeds")}


def test_of_a_suites_measures_some_may_be_asked_alone(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("tasks: [embedded]\nmeasures: [knn, zeroshot, linear]\n", encoding="utf-8")
    assert suite.read(file).measures == ("knn", "zeroshot", "linear")
    assert suite.read(file, ["linear", "knn"]).measures == ("knn", "linear")
    with pytest.raises(UserError, match=r"some.yaml does not ask 'zero_shot'; did you mean 'zeroshot'"):
        suite.read(file, ["zero_shot"])


def test_two_tasks_of_one_name_are_refused(tmp_path, asked):
    twice = suite.Suite("twice", ("knn",), (asked.entries[0], asked.entries[0]))
    with pytest.raises(UserError, match="asks 'fruit' twice"):
        suite.load(twice, {})


def test_a_damaged_record_is_named_and_made_anew_by_the_suite(model, asked):
    run = made(model, asked, "knn")
    (run.folder / "fruit.knn.json").write_text("{")
    with pytest.raises(UserError, match=r"fruit\.knn\.json is damaged"):
        records.read(run.folder)
    assert made(model, asked, "knn").scored("knn")["fruit"]["metrics"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every record, and the texts of its files."""
    root = tmp_path_factory.mktemp("whole")
    folder(root / "fruit", {colour: photos(colour, 14) for colour in ("red", "green")})
    folder(root / "cows", {"red": photos("red", 3)})
    every = suite.Suite("s", (*suite.MEASURES, "retrieval", "map"), ({"photos": f"{root}/fruit,{root}/cows"},))
    run = made(ColourModel(root / "run"), every)
    return run.folder, {file: file.read_text(encoding="utf-8") for file in sorted(run.folder.glob("*.json"))}


DROPPED = object()


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_record_that_was_damaged_is_one_line_or_does_no_harm(whole, data):
    run, texts = whole
    file = data.draw(st.sampled_from(list(texts)))
    content = here = json.loads(texts[file])
    place = data.draw(st.sampled_from(sorted(here)))
    while isinstance(here[place], dict | list) and here[place] and data.draw(st.booleans()):
        here = here[place]
        place = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
    worse = data.draw(st.sampled_from([DROPPED, "x", None, [], [[]], {}, -1]))
    if worse is DROPPED:
        del here[place]
    else:
        here[place] = worse
    file.write_text(json.dumps(content), encoding="utf-8")
    try:
        for use in (records.show, lambda runs: comparison.write(runs, run.parent / "report")):
            try:
                use([records.read(run)])
            except UserError as error:
                assert "tools/evaluate.py" in str(error) and "\n" not in str(error)
    finally:
        file.write_text(texts[file], encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"metrics": None},
            r"fruit\.linear\.json is damaged \(its metrics is None\); remove it and run tools/evaluate",
        ),
        ({"dataset": ["fruit"]}, r"its dataset is \['fruit'\]"),
        ({"checkpoint": {"step": 7}}, "it has no use"),
        ({"not_scored": 3}, "its not_scored is 3"),
        (None, "there is no record in it"),
    ],
)
def test_a_record_of_another_form_is_named_with_what_is_wrong(whole, change, message):
    run, texts = whole
    file = run / "fruit.linear.json"
    file.write_text(json.dumps(change and json.loads(texts[file]) | change), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        records.read(run)
    file.write_text(texts[file], encoding="utf-8")


def test_a_folder_without_records_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"tools/evaluate\.py"):
        records.read(tmp_path)


def test_photos_that_are_in_train_and_test_are_counted_and_told(tmp_path, model, capsys):
    twice = {colour: photos(colour, 15) * 2 for colour in ("red", "green")}
    folder(tmp_path / "twins", twice)
    run = made(model, suite.Suite("t", ("knn", "linear"), ({"photos": str(tmp_path / "twins")},)))
    record = run.scored("knn")["twins"]
    assert 0 < record["also_in_train"] <= len(record["sources"])
    records.show([run])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"twins: {record['also_in_train']} of {len(record['sources'])} test photos are in the train split" in shown
    assert f"100.0 / {len(record['sources'])}" in shown, "rows come from any measure, with the images it asked"


def test_a_folder_that_is_not_the_task_is_in_no_measure(tmp_path, model):
    path = folder(tmp_path / "fruit", {"red": photos("red", 8), "green": photos("green", 8)})
    run = made(model, suite.Suite("t", (*suite.MEASURES, "retrieval", "map"), ({"photos": f"deep_weeds={path}"},)))
    assert not any(run.scored(measure) for measure in (*suite.MEASURES, "retrieval", "map"))
    assert all("classes are missing" in run.of(measure)["deep_weeds"]["not_scored"] for measure in suite.MEASURES)


def test_the_table_shows_measures_side_by_side_and_group_means(model, asked, capsys):
    records.show([made(model, asked, "zeroshot", "linear", "retrieval")])
    shown = capsys.readouterr().out
    assert "linear" in shown and "mean, in-domain (1)" in shown and "mean, general (1)" in shown
    assert "retrieval, in-domain" in shown and "not scored: cows" in shown


def test_eight_devices_give_the_table_of_one(run, tmp_path):
    from agriclip_jax import inference

    many = inference.load(run / "workdir")
    one = dataclasses.replace(many.alone(), workdir=tmp_path / "one")
    many.workdir = tmp_path / "many"
    assert (many.mesh.size, one.mesh.size) == (8, 1)
    measures_ = ("zeroshot", "knn", "linear", "few_shot", "robustness", "retrieval")
    asked = suite.Suite("x", measures_, ({"photos": str(run / "apples")},))
    tables = [made(model, asked) for model in (many, one)]
    assert many.fingerprint == one.fingerprint
    for measure in measures_:
        a, b = (next(iter(table.scored(measure).values()))["metrics"] for table in tables)
        assert a == pytest.approx(b, abs=5e-4, nan_ok=True), "the last digit of the table"


def test_each_tool_measures_prints_and_keeps_its_records(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.yaml").write_text(f"tasks: [{run / 'apples'}]\nmeasures: [zeroshot, map]\n")
    ckpt, tasks = f"--ckpt={run / 'workdir'}", f"--tasks={run / 'apples'}"
    for tool, arguments, said in (
        ("probe.py", (ckpt, tasks), "16-shot"),
        ("retrieval.py", (ckpt, tasks), "photo to text R@1"),
        ("evaluate.py", (f"--suite={tmp_path / 'x.yaml'}", ckpt), "mean, in-domain (1)"),
    ):
        status, shown = call(monkeypatch, capsys, tool, *arguments)
        assert status == 0 and said in shown.out, shown.err
        kept = Path(shown.out.split("records: ")[1].strip().replace("\n", ""))
        assert kept.parent == run / "workdir" / "evaluations" and records.read(kept).records


def test_what_is_fitted_on_one_split_and_asked_of_another_offers_no_split(run, monkeypatch, capsys):
    asked = (f"--ckpt={run / 'workdir'}", f"--tasks={run / 'appels'}")
    status, shown = call(monkeypatch, capsys, "probe.py", *asked, "--split=val")
    assert status == 2 and "unrecognized arguments: --split=val" in shown.err
    status, shown = call(monkeypatch, capsys, "retrieval.py", *asked, "--split=val")
    assert status == 2 and shown.err.startswith("error: --tasks=") and "did you mean 'apples'" in shown.err


def test_no_two_models_are_held_at_once_and_each_is_known_to_load_before_one_is_measured(
    asked, tmp_path, monkeypatch, capsys
):
    held, measured, run_suite = [], [], suite.run

    def load(workdir, **_):
        if workdir == tmp_path / "gone":
            raise UserError("gone is not the workdir of a run")
        model = ColourModel(workdir)
        held.append(weakref.ref(model))
        assert sum(ref() is not None for ref in held) == 1
        return model

    def counted(model, *rest, **options):
        measured.append(model.workdir)
        return run_suite(model, *rest, **options)

    monkeypatch.setattr("agriclip_jax.inference.load", load)
    monkeypatch.setattr(suite, "run", counted)
    asked = dataclasses.replace(asked, measures=("zeroshot",))
    with pytest.raises(UserError, match="gone is not"):
        commands.measure(asked, [tmp_path / "a", tmp_path / "gone"], None, "student")
    assert not measured
    commands.measure(asked, [tmp_path / "a", tmp_path / "b", tmp_path / "c"], None, "student")
    assert measured == [tmp_path / name for name in "abc"] and "mean, downstream (1)" in capsys.readouterr().out


def test_the_known_tasks_are_listed_with_what_is_not_known(monkeypatch, capsys):
    status, shown = call(monkeypatch, capsys, "zeroshot.py", "--list")
    assert status == 0 and "deep_weeds" in shown.out and "class names" in shown.out


def test_a_folder_asked_by_a_task_file_of_other_classes_ends_with_status_2(run, monkeypatch, capsys):
    ckpt, tasks = f"--ckpt={run / 'workdir'}", f"--tasks=deep_weeds={run / 'apples'}"
    status, shown = call(monkeypatch, capsys, "zeroshot.py", ckpt, tasks)
    assert status == 2 and "classes are missing" in shown.err and "'red_apple'" in shown.err


def test_a_suite_that_is_not_there_is_one_line(run, monkeypatch, capsys):
    status, shown = call(monkeypatch, capsys, "evaluate.py", "--suite=no.yaml", f"--ckpt={run / 'workdir'}")
    assert status == 2 and "no.yaml cannot be read" in shown.err and shown.err.count("\n") == 1


# ---- what must never go unnoticed ------------------------------------------------------------------------------------


def test_photos_of_a_whole_set_are_looked_at_once_for_all_measures(model, asked):
    whole = suite.load(dataclasses.replace(asked, entries=asked.entries[:1]), seen={})
    assert whole[0].split == "all"
    few = dataclasses.replace(asked, measures=("zeroshot", "knn", "linear", "few_shot", "map"))
    run = records.read(suite.run(model, few, whole))
    assert sum(model.calls) == sum(COUNTS.values())
    fitted = run.scored("linear")["fruit"]
    assert fitted["photos"]["split"] == "all" and fitted["split"] == "test"
    (alone,) = (task.at("test") for task in whole)
    assert fitted["sources"] == [photo.source for photo in alone.photos()]


def test_each_text_is_embedded_once_for_all_measures_and_they_are_the_same(asked, tmp_path, monkeypatch):
    class Reader(ColourModel):
        read = ()

        def embed_texts(self, texts, *, normalise=True):
            Reader.read += tuple((text, normalise) for text in texts)
            return super().embed_texts(texts, normalise=normalise)

    run = made(Reader(tmp_path / "run"), asked)
    assert len(Reader.read) == len(set(Reader.read)) > 50
    monkeypatch.setattr(features, "remembering", lambda model: model)
    again = made(Reader(tmp_path / "again" / "run"), asked)
    assert len(Reader.read) > 3 * len(set(Reader.read)), "without the memory they are read again and again"
    for file in run.folder.glob("*.*.json"):
        one, other = (json.loads((each.folder / file.name).read_text(encoding="utf-8")) for each in (run, again))
        assert {**one, "checkpoint": 0, "key": 0} == {**other, "checkpoint": 0, "key": 0}


def test_other_captions_are_other_records(tmp_path, model):
    folder(tmp_path / "pool", {"x": photos("red", 1) + photos("green", 1) + photos("blue", 1)})
    asked = suite.Suite("own", ("retrieval",), ({"photos": str(tmp_path / "own.csv")},))

    def recall(*words):
        rows = [f"pool/x/{i:03}.jpg,a {word} thing" for i, word in enumerate(words)]
        (tmp_path / "own.csv").write_text("\n".join(["filepath,caption", *rows]), encoding="utf-8")
        (record,) = made(model, asked).of("retrieval").values()
        return record["metrics"]["mean_recall"]

    assert recall("red", "green", "blue") == 1 and recall("green", "blue", "red") < 1


@pytest.mark.parametrize(
    "change",
    [
        {"templates": ("a drawing of {}",)},
        {"class_names": ("a", "b", "c", "d")},
        {"own_prompts": (("a",), ("b",), ("c",), ("d",))},
        {"paper_prompts": (("a",), ("b",), ("c",), ("d",))},
        {"ranks": {"genus": ("x", "x", "y", "y")}},
        {"group": "general"},
        {"mismatch": "another folder"},
        {"fingerprint": "other photos"},
    ],
)
def test_whatever_decides_a_record_decides_its_key(model, asked, change):
    task = suite.load(asked, seen={})[0]
    assert suite._key("zeroshot", model, [task]) != suite._key("zeroshot", model, [dataclasses.replace(task, **change)])


def test_a_record_of_another_temperature_is_another(model, asked):
    task = suite.load(asked, seen={})[0]
    before = suite._key("zeroshot", model, [task])
    model.logit_scale = 30.0
    assert suite._key("zeroshot", model, [task]) != before


def test_the_fingerprint_of_a_model_is_of_all_that_decides_its_features(run):
    import jax
    from ml_collections import ConfigDict

    from agriclip_jax import inference
    from agriclip_jax.data import tokenizers

    model = inference.load(run / "workdir")
    again, teacher = inference.load(run / "workdir"), inference.load(run / "workdir", use="teacher")
    assert again.fingerprint == model.fingerprint
    nudged = jax.tree.map(lambda x: x, model.params)
    nudged["image"]["norm"]["scale"] = nudged["image"]["norm"]["scale"].at[0].add(1e-3)
    others = [model.at(nudged, 1), dataclasses.replace(model, tokenizer=tokenizers.train(["a b c"], 520))]
    for key, value in (("dtype", "bfloat16"), ("image_size", 24)):
        config = ConfigDict(model.config.to_dict())
        config[key] = value
        others.append(dataclasses.replace(model, config=config))
    found = {each.fingerprint for each in (model, *others)}
    assert len(found) == 5
    same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), model.params["image"], teacher.params["image"]))
    assert same == (teacher.fingerprint == model.fingerprint)


def test_tasks_that_a_suite_no_longer_asks_are_in_no_table(model, asked):
    made(model, asked, "zeroshot")
    fewer = dataclasses.replace(asked, entries=asked.entries[:1])
    assert set(made(model, fewer, "zeroshot").of("zeroshot")) == {"fruit"}


def test_groups_of_any_name_have_files_of_their_own(asked):
    names = ("in-domain", "downstream", "общие", "通用", "farm a", "farm-a", "Farm a")
    tasks = [Task(f"t{i}", group, "crop", "test", (), (), (), 0, tuple) for i, group in enumerate(names)]
    files = [file for _, file, _ in suite.records_of(dataclasses.replace(asked, measures=("map",)), tasks)]
    assert len(set(files)) == len(names) and files[:2] == ["in_domain.map.json", "downstream.map.json"]
