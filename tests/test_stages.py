"""AgriCLIP's three stages: one command, an ordinary model at the end, resumed at any point."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image

from agriclip_jax import inference, runs
from agriclip_jax import main as command
from agriclip_jax.data.records import Alive
from agriclip_jax.data.views import load_view
from agriclip_jax.errors import UserError

RECIPE = "configs/agriclip.py"
# The recipe's own objectives, steps enough for towers that differ, and more ids than the captions have merges for.
SMALL = {k: v for k, v in tiny.SMALL.items() if not k.startswith("objectives")}
SMALL |= {"checkpoint.every": "4", "text.vocab_size": "20000"}


def arguments(workdir, data, *, recipe=RECIPE, **given):
    keys = SMALL | {"data.path": str(data)} | {k.replace("__", "."): str(v) for k, v in given.items()}
    return [f"--config={recipe}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]


def explained(aligned, clip, corpus):
    """R2 on the validation photos, each model seeing them its own way: of projected features, by float64."""
    source, found = Alive.open(corpus).source("val"), []
    for model in (aligned, clip):
        images = np.stack([load_view(source[i]["image"], model.view) for i in range(len(source))])
        tower, params = model.towers["image"], model.params["image"]
        found.append(np.asarray(tower(params, tower(params, images).pooled, method="project"), np.float64))
    predicted, target = found
    return 1 - np.sum((target - predicted) ** 2) / np.sum((target - target.mean(0)) ** 2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus):
    workdir = tmp_path_factory.mktemp("agriclip") / "run"
    assert command.run(arguments(workdir, corpus)) == 0
    return workdir


def test_what_the_stages_leave_is_a_model_like_any_other(finished, corpus):
    assert sorted(p.name for p in finished.iterdir()) == ["align", "clip", "distill"]
    aligned, clip = inference.load(finished / "align"), inference.load(finished / "clip")
    teacher = inference.load(finished / "distill", use="teacher")
    texts = ["a leaf with rust", "a cow"]
    np.testing.assert_array_equal(aligned.embed_texts(texts), clip.embed_texts(texts))
    assert aligned.logit_scale == pytest.approx(clip.logit_scale)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    np.testing.assert_allclose(aligned.look(images)[0], teacher.look(images)[0], atol=1e-5)
    for name in ("zeroshot.json", "report.html", "aligner.json", "parameters.txt", "tokenizer.json"):
        assert (finished / "align" / name).is_file()


def test_what_was_fitted_is_counted_as_trained(finished):
    counted = json.loads((finished / "align" / "environment.json").read_text())
    params = inference.load(finished / "align").params
    assert counted["trained"] == sum(leaf.size for leaf in jax.tree.leaves(params["image"]["projection"]))
    assert counted["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_run_of_its_own_is_no_place_for_its_stages(finished, corpus):
    with pytest.raises(UserError, match=r"clip holds a run; a recipe of stages makes a folder of each"):
        command.run(arguments(finished / "clip", corpus))


def test_tools_take_it_like_any_other_run(finished, corpus, tmp_path, monkeypatch, capsys):
    photo = tmp_path / "photo.png"
    Image.new("RGB", (20, 16), "green").save(photo)
    asked = {
        "zeroshot.py": ("--tasks", corpus, "--split", "val"),
        "predict.py": ("--cls", "cow,leaf", photo),
        "export.py": ("--format", "safetensors", "--out", tmp_path / "weights"),
    }
    for tool, flags in asked.items():
        status, said = tiny.call(monkeypatch, capsys, tool, "--ckpt", finished / "align", *flags)
        assert status == 0, said.err


def test_without_a_workdir_a_stage_alone_is_found_where_all_of_them_are(
    finished, corpus, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished, tmp_path / "runs" / "agriclip")
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).parent.parent / RECIPE
    for words, count in (("", 3), (":stage=align", 1)):
        given = [a for a in arguments("", corpus, recipe=f"{recipe}{words}") if not a.startswith("--workdir")]
        assert command.run(given) == 0
        assert capsys.readouterr().out.count("is finished") == count


def test_the_aligner_explains_the_image_space_of_the_first_stage_as_it_says(finished, corpus):
    aligned, clip = inference.load(finished / "align"), inference.load(finished / "clip")
    found = json.loads((finished / "align" / "aligner.json").read_text())
    r2 = explained(aligned, clip, corpus)
    assert found["r2"] == pytest.approx(r2, abs=1e-4) and r2 > 0.1
    assert {"strength", "tried", "zeroshot", "zeroshot_before"} <= found.keys()


def test_it_is_fitted_to_the_tower_and_the_preparation_that_its_model_has(finished, corpus, tmp_path, capsys):
    """What is set by hand in place of what no array shows decides the fit too."""
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "align")
    by_hand = {"stages__align__image__activation": "quick_gelu", "stages__align__image__crop_share": 0.5}
    assert command.run(arguments(workdir, corpus, **by_hand)) == 0
    said = capsys.readouterr().out
    assert "config.image.activation: quick_gelu, set by hand" in said and "validation top-1" in said
    aligned, clip = inference.load(workdir / "align"), inference.load(workdir / "clip")
    assert aligned.config.image.crop_share == 0.5 and clip.config.image.crop_share == 1.0
    r2 = json.loads((workdir / "align" / "aligner.json").read_text())["r2"]
    assert r2 == pytest.approx(explained(aligned, clip, corpus), abs=1e-4)


def test_a_head_that_no_aligner_fits_is_one_line(finished, corpus, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "align")
    with pytest.raises(UserError, match=r"an aligner fits no image/head_blocks/.*; set config.image.head_blocks to 0"):
        command.run(arguments(workdir, corpus, stages__align__image__head_blocks=1))
    assert not (workdir / "align").exists()


def test_a_finished_recipe_does_nothing_and_a_stopped_one_goes_on_where_it_was(finished, corpus, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert command.run(arguments(finished, corpus)) == 0
    assert capsys.readouterr().out.count("is finished") == 3
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    workdir = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(workdir / "align")
    shutil.rmtree(workdir / "distill" / "checkpoints" / "8")
    (workdir / "distill" / "report.html").unlink()
    assert command.run(arguments(workdir, corpus)) == 0
    assert "continuing" in capsys.readouterr().out
    one, other = (inference.load(path / "align").params for path in (finished, workdir))
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_recipe_that_is_extended_is_aligned_anew_and_a_stopped_fit_is_made_again(finished, corpus, tmp_path, capsys):
    workdir = shutil.copytree(finished, tmp_path / "run")
    assert command.run([*arguments(workdir, corpus, stages__clip__total_steps=9), "--extend"]) == 0
    said = capsys.readouterr().out
    assert "extending from 8 to 9 steps" in said and "aligner (ridge)" in said
    texts = [inference.load(path).embed_texts(["a cow"]) for path in (workdir / "align", workdir / "clip")]
    np.testing.assert_array_equal(*texts)
    (workdir / "align" / "report.html").unlink()
    assert command.run(arguments(workdir, corpus, stages__clip__total_steps=9)) == 0
    assert (workdir / "align" / "report.html").is_file()


def test_another_model_in_the_place_of_the_one_it_was_aligned_to_is_aligned_to_anew(finished, corpus, tmp_path):
    clip, place = inference.load(finished / "clip"), tmp_path / "clip"
    runs.write_model(clip, place)
    keys = {"recipe": f"{RECIPE}:stage=align", "init__image": finished / "distill", "init__text": place}
    one = arguments(tmp_path / "run", corpus, **keys)
    assert command.run(one) == 0
    before = inference.load(tmp_path / "run").params["image"]["projection"]

    turned = {**clip.params["image"], "projection": jax.tree.map(jnp.negative, clip.params["image"]["projection"])}
    shutil.rmtree(place)
    runs.write_model(dataclasses.replace(clip, params={**clip.params, "image": turned}), place)
    file = place / "tokenizer.json"  # as many ids, of other texts
    said = json.loads(file.read_text())
    ids = said["model"]["vocab"]
    ids["a"], ids["o"] = ids["o"], ids["a"]
    file.write_text(json.dumps(said))
    assert command.run(one) == 0
    after = inference.load(tmp_path / "run")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, -b, atol=1e-5), after.params["image"]["projection"], before)
    assert after.tokenizer.fingerprint == inference.load(place).tokenizer.fingerprint != clip.tokenizer.fingerprint


def test_towers_that_see_photos_of_two_sizes_are_aligned_each_by_its_own(finished, corpus, tmp_path):
    places = {"init__image": finished / "distill", "init__text": finished / "clip"}
    one = arguments(tmp_path / "run", corpus, recipe=f"{RECIPE}:stage=align", image_size=32, **places)
    assert command.run(one) == 0
    aligned, clip = inference.load(tmp_path / "run"), inference.load(finished / "clip")
    r2 = json.loads((tmp_path / "run" / "aligner.json").read_text())["r2"]
    assert r2 == pytest.approx(explained(aligned, clip, corpus), abs=1e-4)


def test_the_authors_fit_is_a_mode_of_the_same_stage(finished, corpus, tmp_path, capsys):
    one = arguments(
        tmp_path / "sgd",
        corpus,
        recipe=f"{RECIPE}:stage=align",
        align__fit="sgd",
        init__image=finished / "distill",
        init__text=finished / "clip",
    )
    assert command.run(one) == 0
    assert "aligner (sgd): held-out R2" in capsys.readouterr().out
    sgd, ridge = (json.loads((p / "aligner.json").read_text()) for p in (tmp_path / "sgd", finished / "align"))
    assert sgd["fit"] == "sgd" and sgd["r2"] != ridge["r2"] and "strength" not in sgd


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"config.init: stage:(distill|clip) is a stage of this recipe that has not been run to its end here"),
        ({"init__image": "", "init__teacher": "False", "init__text": "{clip}"}, r"an aligner joins two models"),
        ({"init__image": "{clip}", "init__text": "{clip}"}, r"{clip} has no teacher"),
        (
            {"init__image": "{distill}", "init__text": "{clip}", "peft__method": "lora"},
            r"an aligner is fitted, not trained",
        ),
        ({"align__fit": "lasso"}, r"config.align.fit: unknown 'lasso'; known: ridge, sgd"),
        (
            {"init__image": "{distill}", "init__text": "{clip}", "image__width": "512"},
            r"config.image.width=512 contradicts",
        ),
    ],
)
def test_what_cannot_be_aligned_is_one_line_and_leaves_nothing(finished, corpus, tmp_path, given, message):
    places = {"clip": str(finished / "clip"), "distill": str(finished / "distill")}
    given = {k: v.format(**places) for k, v in given.items()}
    with pytest.raises(UserError, match=message.format(**places)):
        command.run(arguments(tmp_path / "run", corpus, recipe=f"{RECIPE}:stage=align", **given))
    assert not (tmp_path / "run").exists()


def test_fewer_photos_than_features_are_one_line(finished, corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(SMALL, "image.width", "512")
    wide = arguments(tmp_path / "wide", corpus, recipe=f"{RECIPE}:stage=distill", total_steps=1)
    assert command.run(wide) == 0
    monkeypatch.delitem(SMALL, "image.width")
    places = {"init__image": tmp_path / "wide", "init__text": finished / "clip"}
    with pytest.raises(UserError, match=r"an aligner of 512 features cannot be fitted on \d+ photos"):
        command.run(arguments(tmp_path / "run", corpus, recipe=f"{RECIPE}:stage=align", **places))


def test_a_recipe_whose_last_stage_has_too_few_photos_is_one_line_before_its_first(corpus, tmp_path):
    with pytest.raises(UserError, match=r"an aligner of 512 features cannot be fitted on \d+ photos"):
        command.run(arguments(tmp_path / "run", corpus, stages__distill__image__width=512))
    assert not (tmp_path / "run").exists()


def test_every_stage_of_every_variant_is_a_whole_recipe():
    from agriclip_jax import config as configs

    for variant in ("", "photos", "s16", "b16"):
        plan = configs.stages(f"{RECIPE}:{variant}", {})
        assert [stage.name for stage in plan] == ["clip", "distill", "align"]
        assert [dict(stage.config.objectives) for stage in plan[:2]] == [{"contrastive": 1.0}, {"distill": 1.0}]
        assert plan[1].config.views["local"].count >= 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stages__align__init__image": "runs/nope"}, r"stage align: .*runs/nope"),
        ({"stages__distill__objectives__distill": 0}, r"stage distill: config.objectives: every weight is 0"),
        ({"stages__distill__optimizer__freeze": "('nothing',)"}, r"stage distill: .*'nothing' matches no parameter"),
        ({"stages__distill__data__domains": "('corp',)"}, r"stage distill: .*no domain 'corp'"),
    ],
)
def test_what_would_end_a_later_stage_is_one_line_before_the_first(corpus, tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        command.run(arguments(tmp_path / "run", corpus, **given))
    assert not (tmp_path / "run").exists()
