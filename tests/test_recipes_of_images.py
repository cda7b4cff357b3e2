"""The recipes siglip, dinov2 and tips: what they are made of, and a run of each from end to end."""

import contextlib
import io
import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from agriclip_jax import config as configs
from agriclip_jax import inference, initial
from agriclip_jax import main as command
from agriclip_jax import mesh as meshes
from agriclip_jax.errors import UserError
from agriclip_jax.weights import importing
from agriclip_jax.weights.exporting import write_safetensors

OBJECTIVES = {
    "siglip": {"siglip"},
    "dinov2": {"distill", "ibot", "koleo"},
    "dinov2:gram=on": {"distill", "ibot", "koleo", "gram"},
    "tips": {"contrastive", "distill", "ibot"},
}


def recipe(name, **overrides):
    """The file of a recipe, and the miniature's keys for it."""
    file, _, words = name.partition(":")
    small = {key: value for key, value in tiny.SMALL.items() if not key.startswith("objectives")}
    return f"configs/{file}.py:{words}", small | {k.replace("__", "."): str(v) for k, v in overrides.items()}


def train(name, workdir, corpus):
    file, keys = recipe(name, data__path=corpus, checkpoint__every=2, total_steps=4, log_every=1)
    return command.run([f"--config={file}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())])


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory, corpus):
    """The workdir of a run of dinov2 with Gram anchoring, and what it said."""
    workdir, said = tmp_path_factory.mktemp("runs") / "dinov2", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert train("dinov2:gram=on", workdir, corpus) == 0
    return workdir, said.getvalue()


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("variant", ["", "photos", "b16"])
def test_every_variant_has_the_objectives_of_its_paper(name, variant):
    file, _, words = name.partition(":")
    config = configs.load(f"configs/{file}.py:{','.join(filter(None, [variant, words]))}")
    assert {key for key, weight in config.objectives.items() if weight} == OBJECTIVES[name]
    assert config.recipe == "_".join(filter(None, [file, variant, "gram" if words else ""]))
    learner, _ = tiny.learner(config)
    assert set(learner.objectives) == OBJECTIVES[name]


def test_a_variant_that_there_is_not_is_one_line():
    with pytest.raises(UserError, match=r"configs/dinov2.py has no 'gram=maybe'; did you mean 'gram=on'"):
        configs.load("configs/dinov2.py:photos,gram=maybe")


def test_tips_makes_steps_of_three_objectives_that_share_what_they_see():
    file, keys = recipe("tips")
    learner, init = tiny.learner(configs.load(file, keys))
    views = {want for objective in learner.objectives.values() for want in objective.wants}
    assert len(views) == 5  # whole, masked and local views of the student, the teacher's, and captions
    state, step = jax.jit(init)(jax.random.key(0)), jax.jit(learner.step)
    batch = tiny.batch()
    batch |= {name: batch[name][:, :1] for name in ("image/global", "mask")}
    for _ in range(3):
        state, scalars = step(state, batch)
    assert state.step == 3 and {name for name in scalars if "/" in name} == {f"loss/{n}" for n in OBJECTIVES["tips"]}


def test_siglip_starts_at_its_bias_moves_it_and_scores_by_names(corpus, tmp_path):
    workdir = tmp_path / "run"
    assert train("siglip", workdir, corpus) == 0
    biases = [row["logit_bias"] for row in metrics(workdir)]
    assert biases[0] == -10 and biases[-1] != -10
    assert metrics(workdir)[0]["logit_scale"] == pytest.approx(10, rel=1e-4)
    assert json.loads((workdir / "zeroshot.json").read_text(encoding="utf-8"))["results"]
    model = inference.load(workdir)
    assert float(model.params["logit_bias"]) != -10
    assert model.embed_texts(["a leaf"]).shape == (1, 16)


def test_a_run_from_images_alone_prints_no_table_and_says_where_its_worth_is_told(dinov2, corpus, capsys):
    workdir, said = dinov2
    assert "no objective reads texts, so there is nothing to score by names; tools/probe.py" in said
    assert "top-1" not in said
    assert not json.loads((workdir / "zeroshot.json").read_text(encoding="utf-8"))["results"]
    assert not (workdir / "evaluations.jsonl").exists() and (workdir / "report.html").is_file()
    assert train("dinov2:gram=on", workdir, corpus) == 0
    assert "is finished (4 steps)" in capsys.readouterr().out


def test_its_text_tower_stays_as_it_was_and_all_else_learns(dinov2):
    workdir, _ = dinov2
    before, after = (inference.load(workdir, step=step).params for step in (2, 4))
    jax.tree.map(np.testing.assert_array_equal, before["text"], after["text"])
    for path in ("image/mask", "image/cls", "ibot_head/prototypes", "dino_head/prototypes"):
        top, leaf = path.split("/")
        assert np.any(before[top][leaf] != after[top][leaf]), path
    rows = metrics(workdir)
    assert [row["loss/gram"] > 0 for row in rows] == [False, False, True, True]
    assert all(0 < row["masked"] <= 0.25 for row in rows)


def test_a_stopped_run_goes_on_to_the_same_bits(dinov2, corpus, tmp_path):
    """The masks are drawn with the views, and the anchor, taken at step 2, is part of the state."""
    part = shutil.copytree(dinov2[0], tmp_path / "part")
    shutil.rmtree(part / "checkpoints" / "4")
    (part / "report.html").unlink()
    assert train("dinov2:gram=on", part, corpus) == 0
    one, other = (jax.device_get(inference.load(workdir).params) for workdir in (dinov2[0], part))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_tower_trained_on_masks_leaves_without_its_token_and_starts_runs_with_and_without(dinov2, tmp_path):
    model = inference.load(dinov2[0])
    assert "mask" in model.params["image"]
    write_safetensors(model, tmp_path, lambda line: None)
    foreign = importing.open_model(tmp_path)
    assert not foreign.towers["image"].mask_token and "mask" not in dict(foreign.leaves("image"))
    for name, source, given in (("tips", tmp_path, False), ("tips", dinov2[0], True), ("siglip", dinov2[0], False)):
        file, keys = recipe(name, init__image=source, embed_dim=32)
        config = configs.load(file, {k: v for k, v in keys.items() if not k.startswith("image.")})
        found = initial.sources(config)
        initial.adopt(config, found)
        _, init = tiny.learner(config)
        shapes = jax.eval_shape(init, jax.random.key(0))
        arrays = initial.parameters(found, shapes.params, meshes.state_sharding(meshes.make("auto"), shapes).params)
        assert ("image/mask" in arrays) == given and ("mask" in shapes.params["image"]) == (name == "tips")


def test_a_bias_of_the_recipe_stays_where_a_model_without_one_comes_in(run):
    file, keys = recipe("siglip", init__model=run / "workdir")
    config = configs.load(file, keys)
    initial.adopt(config, initial.sources(config))
    assert config.logit_bias and config.temperature == pytest.approx(0.07, rel=1e-4)
