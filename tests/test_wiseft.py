"""Models between a general one and one adapted from it: their weights, their scores, and one written as a run."""

import copy
import json
import shutil

import jax
import numpy as np
import pytest
from html_page import Page
from tiny import call

from agriclip_jax import inference, rules, runs
from agriclip_jax.data import splits
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import tasks, wiseft, zeroshot


@pytest.fixture(scope="module")
def general(run):
    return inference.load(run / "workdir")


@pytest.fixture(scope="module")
def adapted(general, tmp_path_factory):
    """A run whose every weight lies elsewhere than the general one's."""
    rng = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), general.params)
    runs.write_model(general.at(moved, 7), out := tmp_path_factory.mktemp("adapted") / "run")
    return inference.load(out)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_every_weight_and_the_temperature_are_mixed_as_the_paper_says(general, adapted, alpha):
    mixed = rules.flatten(wiseft.interpolate(general, adapted, alpha).params)
    ends = [rules.flatten(model.params) for model in (general, adapted)]
    assert mixed.keys() == ends[1].keys() and "logit_scale" in mixed
    for path, leaf in mixed.items():
        zero, one = (np.asarray(flat[path], np.float64) for flat in ends)
        np.testing.assert_allclose(leaf, (1 - alpha) * zero + alpha * one, rtol=1e-6, atol=1e-7)


def test_the_ends_are_the_two_models_at_the_bit(general, adapted):
    assert wiseft.interpolate(general, adapted, 0.0).fingerprint == general.fingerprint
    assert wiseft.interpolate(general, adapted, 1.0).fingerprint == adapted.fingerprint


def test_the_tool_draws_the_curve_and_writes_the_model_that_was_chosen(
    run, general, adapted, tmp_path, monkeypatch, capsys
):
    models = ("--from", run / "workdir", "--to", adapted.workdir)
    asked = ("--domain", run / "apples", "--general", run / "alive", "--alphas", "1,0,0.5", "--out", tmp_path / "curve")
    chosen = ("--choose", "0.5", "--write", tmp_path / "mixed")
    status, said = call(monkeypatch, capsys, "wiseft.py", *models, *asked, *chosen)
    assert status == 0 and "alpha 0 is the general model" in said.out

    record = json.loads((tmp_path / "curve" / "wiseft.json").read_text(encoding="utf-8"))
    assert [point["alpha"] for point in record["points"]] == [0.0, 0.5, 1.0]
    assert record["from"]["workdir"] == str(run / "workdir") and record["to"]["step"] == 7
    for alpha, point in zip((0.0, 0.5, 1.0), record["points"], strict=True):
        model = wiseft.interpolate(general, adapted, alpha)
        for kind, spec in (("domain", run / "apples"), ("general", run / "alive")):
            (result,) = zeroshot.evaluate(model, tasks.load_tasks(str(spec), seen={"apples": splits.SHARES}))
            assert point[kind]["top1"] == result.metrics.top1
            assert point[kind]["interval"] == pytest.approx(result.metrics.interval)
    assert (tmp_path / "mixed" / "classes.json").read_text() == (adapted.workdir / "classes.json").read_text()
    half = wiseft.interpolate(general, adapted, 0.5)
    assert inference.load(tmp_path / "mixed").fingerprint == half.fingerprint

    html = (tmp_path / "curve" / "wiseft.html").read_text(encoding="utf-8")
    assert not Page(html).open
    assert "top-1 by alpha" in html and html.count("<svg") >= 2 and "apples" in html


def test_the_curve_may_be_of_a_suite(run, adapted, tmp_path, monkeypatch, capsys):
    models = ("--from", run / "workdir", "--to", adapted.workdir, "--alphas", "0,1")
    places = {"domain": run / "apples", "general": shutil.copytree(run / "apples", tmp_path / "fruit")}
    entries = [{"photos": str(place), "group": kind, "split": "test"} for kind, place in places.items()]
    for name, count in (("both", 2), ("one", 1)):
        said = {"tasks": entries[:count], "measures": ["zeroshot"]}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(said), encoding="utf-8")
    kinds = [part for kind, place in places.items() for part in (f"--{kind}", place)]
    points = []
    for place, asked in (("suite", ("--suite", tmp_path / "both.yaml")), ("kinds", (*kinds, "--split", "test"))):
        status, said = call(monkeypatch, capsys, "wiseft.py", *models, *asked, "--out", tmp_path / place)
        assert status == 0, said.err
        points.append(json.loads((tmp_path / place / "wiseft.json").read_text(encoding="utf-8"))["points"])
    assert points[0] == points[1]
    asked = ("--suite", tmp_path / "one.yaml", "--out", tmp_path / "none")
    status, said = call(monkeypatch, capsys, "wiseft.py", *models, *asked)
    assert status == 2 and "one.yaml has no task with `group: general`; a curve needs both groups" in said.err
    nowhere = ("--domain", places["domain"], "--general", tmp_path / "nowhere", "--out", tmp_path / "none")
    status, said = call(monkeypatch, capsys, "wiseft.py", *models, *nowhere)
    assert status == 2 and f"--general={tmp_path / 'nowhere'}: no such file or folder" in said.err


def test_models_of_other_towers_or_texts_are_one_line(general, adapted):
    def changed(**given):
        other = general.at(general.params, 0)
        for name, value in given.items():
            setattr(other, name, value)
        return other

    shorter = jax.tree.map(lambda x: x, adapted.params)
    shorter["text"]["positions"] = shorter["text"]["positions"][:4]
    with pytest.raises(UserError, match=r"cannot be mixed: text/positions is \(12, 32\) in the one, \(4, 32\) in the"):
        wiseft.interpolate(general, changed(params=shorter), 0.5)
    swapped = {"image": general.towers["text"], "text": general.towers["text"]}
    with pytest.raises(UserError, match=r"cannot be mixed: image\.\w+ is .* in the one, .* in the other; give a run"):
        wiseft.interpolate(general, changed(towers=swapped), 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--domain", "a"), "a curve needs --domain=TASKS, --general=TASKS and --out=DIR, or --suite=FILE.yaml and"),
        (("--domain", "a", "--general", "b"), "a curve needs --domain=TASKS, --general=TASKS and --out=DIR"),
        (("--suite", "a"), "a curve needs"),
        (("--suite", "a", "--out", "new", "--split", "val"), "--suite says the tasks and their splits itself"),
        (("--suite", "void.yaml", "--out", "new"), "void.yaml"),
        (("--choose", "0.5"), "a model is written by --choose=ALPHA and --write=DIR together"),
        ((), "give --domain, --general and --out for a curve, or --choose and --write for a model"),
        (("--choose", "1.5", "--write", "new"), "an alpha of 1.5 is not from 0 to 1"),
        (("--alphas", "0,half", "--choose", "1", "--write", "new"), "--alphas=0,half: these are no numbers"),
        (("--choose", "1", "--write", "README.md"), "README.md is there already"),
        (("--domain", "void", "--general", "void", "--out", "new"), "void"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, adapted, arguments, message, monkeypatch, capsys):
    models = ("--from", run / "workdir", "--to", adapted.workdir)
    status, said = call(monkeypatch, capsys, "wiseft.py", *models, *arguments)
    assert status == 2 and message in said.err and said.err.strip().count("\n") == 0


def test_the_bias_of_a_sigmoid_loss_is_mixed_and_written_too(general, tmp_path):
    def of(bias):
        model = general.at(general.params | {"logit_bias": jax.numpy.float32(bias)}, 0)
        model.config = copy.deepcopy(general.config)
        model.config.logit_bias = True
        return model

    half = wiseft.interpolate(of(-10.0), of(-4.0), 0.5)
    runs.write_model(half, tmp_path / "mixed")
    written = inference.load(tmp_path / "mixed")
    assert float(written.params["logit_bias"]) == -7.0 and written.fingerprint == half.fingerprint
