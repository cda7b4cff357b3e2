"""Small parameters on a frozen general model: what is trained, what is kept on disk, and what towers see."""

import json
import re
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from agriclip_jax import config as configs
from agriclip_jax import inference, peft, recipe, rules, runs
from agriclip_jax import main as command
from agriclip_jax import mesh as meshes
from agriclip_jax.checkpoint import Checkpoints
from agriclip_jax.errors import UserError

QKV = "image/blocks/attention/qkv/kernel"
UP = "text/blocks/mlp/up/kernel"


def options(**given):
    """`config.peft` of LoRA on both towers."""
    chosen = {"method": "lora", "towers": ("image", "text"), "also": (), "rank": 3, "alpha": 6.0, "targets": (".*",)}
    return ConfigDict(chosen | given)


def learner(**peft):
    """The learner of a miniature without distillation, and its state at step 0."""
    made, init = tiny.learner(
        tiny.config(**{"objectives__distill": 0, **{f"peft__{key}": value for key, value in peft.items()}})
    )
    return made, jax.jit(init)(jax.random.key(0))


def random(tree, seed=0):
    """A tree of random arrays of the same shapes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), jnp.float32), tree)


# ---- LoRA as an operation on trees ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=5)
@given(
    st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), st.integers(1, 5), st.floats(0.1, 32), st.integers(0, 99)
)
def test_towers_see_the_frozen_matrix_plus_alpha_over_rank_times_the_product(depth, inputs, outputs, rank, alpha, seed):
    params = {"image": {"blocks": {"mlp": {"kernel": np.zeros((depth, inputs, outputs), np.float32)}}}}
    chosen = options(rank=rank, alpha=alpha)
    params = random(params | peft.fresh(chosen, params, jax.random.key(0)), seed)
    seen = peft.effective(params, chosen.alpha / chosen.rank)
    w, small = params["image"]["blocks"]["mlp"]["kernel"], params["lora"]["image"]["blocks"]["mlp"]["kernel"]
    w, a, b = (np.asarray(x, np.float64) for x in (w, small["a"], small["b"]))
    wanted = np.stack([w[i] + alpha / rank * a[i] @ b[i] for i in range(depth)])
    assert set(seen) == {"image"}
    np.testing.assert_allclose(seen["image"]["blocks"]["mlp"]["kernel"], wanted, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_the_small_matrices_is_that_of_the_sum_by_the_chain_rule():
    """d/dA f(W + s A B) = s G B^T and d/dB = s A^T G, where G is the gradient at the sum; float64 oracle."""
    rng = np.random.default_rng(0)
    w, a, b, weights = (rng.normal(size=s) for s in ((5, 4), (5, 2), (2, 4), (5, 4)))
    tree = {"text": {"kernel": w}, "lora": {"text": {"kernel": {"a": a, "b": b}}}}
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    def loss(tree):
        return jnp.sum(weights * jnp.sin(peft.effective(tree, 0.5)["text"]["kernel"]))

    got = jax.grad(loss)(tree)["lora"]["text"]["kernel"]
    slope = weights * np.cos(w + 0.5 * a @ b)
    np.testing.assert_allclose(got["a"], 0.5 * slope @ b.T, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(got["b"], 0.5 * a.T @ slope, rtol=2e-5, atol=1e-6)


def test_the_first_of_the_small_matrices_is_normal_with_a_variance_of_one_over_its_inputs_and_the_second_is_zero():
    shapes = {"image": {"kernel": jax.ShapeDtypeStruct((400, 30), jnp.float32)}}
    made = peft.fresh(options(rank=100), shapes, jax.random.key(1))["lora"]["image"]["kernel"]
    assert np.var(made["a"]) == pytest.approx(1 / 400, rel=0.03) and not np.any(made["b"])


def test_another_key_gives_each_target_other_numbers():
    shapes = {"image": {name: jax.ShapeDtypeStruct((4, 4), jnp.float32) for name in ("one", "two")}}
    made = peft.fresh(options(), shapes, jax.random.key(1))["lora"]["image"]
    assert np.all(made["one"]["a"] != made["two"]["a"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("image/blocks/attention/qvk/kernel",), "matches no parameter; near ones: image/blocks/attention/qkv/kernel"),
        (("image/norm/scale",), r"config.peft.targets: image/norm/scale \(32,\) is no matrix"),
        (("image/blocks/norm1/scale",), r"image/blocks/norm1/scale \(2, 32\) is no matrix; LoRA is for matrices only"),
        ((), "config.peft.targets: it is empty; name kernels"),
    ],
)
def test_a_target_that_is_none_is_refused_in_one_line(targets, message):
    with pytest.raises(UserError, match=message):
        learner(method="lora", targets=targets)


def test_the_blocks_of_a_head_can_be_targets_too():
    config = tiny.config(
        image__head_blocks=2, peft__method="lora", peft__targets=("image/(head_)?blocks/mlp/up/kernel",)
    )
    _, init = tiny.learner(config)
    lora = jax.eval_shape(init, jax.random.key(0)).params["lora"]["image"]
    assert lora["head_blocks"]["mlp"]["up"]["kernel"]["a"].shape == (2, 32, 8)


# ---- what is trained -----------------------------------------------------------------------------------------------


def trained(learner, state):
    return set(learner.optimizer.split(state.params)[0])


def test_lora_trains_its_matrices_and_the_temperature_alone_and_the_optimiser_holds_state_for_no_other():
    made, state = learner(method="lora")
    wanted = {f"lora/{tower}/blocks/attention/qkv/kernel/{which}" for tower in ("image", "text") for which in "ab"}
    assert trained(made, state) == wanted | {"logit_scale"}
    assert set(state.opt_state[1].mu) == wanted | {"logit_scale"}


def test_bias_trains_every_bias_and_no_scale():
    made, state = learner(method="bias")
    biases = {p for p in rules.flatten(state.params) if p.endswith("/bias")}
    assert trained(made, state) == biases | {"logit_scale"} and "image/blocks/norm1/bias" in biases


def test_full_trains_everything_and_of_one_tower_only_that():
    made, state = learner(method="full")
    assert trained(made, state) == set(rules.flatten(state.params))
    made, state = learner(method="full", towers=("text",))
    assert trained(made, state) == {p for p in rules.flatten(state.params) if not p.startswith("image/")}


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("pfeiffer", "adapter/down adapter/norm adapter/up"),
        ("houlsby", "adapter1/down adapter1/up adapter2/down adapter2/up"),
        ("prefix", "attention/prefix"),
        ("prompts", "prompts"),
        (
            "unipelt",
            "adapter/down adapter/gate adapter/norm adapter/up attention/gates attention/lora_a attention/lora_b "
            "attention/prefix",
        ),
    ],
)
def test_what_a_method_adds_to_the_blocks_is_what_it_trains(method, parts):
    made, state = learner(method=method)
    layers = {re.sub("/(kernel|bias|scale)$", "", path) for path in trained(made, state)}
    wanted = {f"{tower}/blocks/{part}" for tower in ("image", "text") for part in parts.split()}
    assert layers == wanted | {"logit_scale"}
    made, state = learner(method=method, towers=("text",))
    assert not [path for path in rules.flatten(state.params) if path.startswith("image/") and peft.is_added(path)]


def test_a_resnet_has_no_blocks_to_add_to():
    resnet = {
        "image__layers": (1, 1, 1, 1),
        "image__width": 8,
        "image__heads": 2,
        "image_size": 32,
        "objectives__distill": 0,
    }
    with pytest.raises(
        UserError, match=r"peft.method=pfeiffer adds to a transformer's blocks, and the image tower is a R"
    ):
        tiny.learner(tiny.config(**resnet, views__local__count=0, peft__method="pfeiffer"))


def test_also_trains_what_it_matches_beside_the_method():
    made, state = learner(method="bias", towers=("image",), also=(".*/projection/kernel",))
    assert {"image/projection/kernel", "text/projection/kernel", "image/norm/bias"} <= trained(made, state)
    assert "text/norm/bias" not in trained(made, state)
    with pytest.raises(UserError, match=r"config.peft: 'image/heads' matches no parameter; near ones: "):
        learner(method="bias", also=("image/heads",))


def test_no_method_leaves_the_recipe_and_its_numbers_as_they_are():
    made, state = learner()
    assert peft.resting(options(method="none"), rules.flatten(state.params)) == frozenset()
    assert made.effective(state.params) is state.params and "lora" not in state.params


def test_steps_move_what_is_trained_and_leave_the_rest_at_the_bit():
    made, state = learner(method="lora")
    step, moved = jax.jit(made.step), state
    for _ in range(3):  # the first learning rate of a warm-up is 0, and so are the gradients of A while B is
        moved, _ = step(moved, tiny.batch())
    before, after = rules.flatten(state.params), rules.flatten(moved.params)
    assert {path for path in before if not np.array_equal(before[path], after[path])} == trained(made, state)


def test_lora_changes_nothing_at_step_0():
    made, state = learner(method="lora")
    plain, fresh = learner()
    with_lora, without = (
        m.losses(s.params, s, tiny.batch())["contrastive"][0] for m, s in ((made, state), (plain, fresh))
    )
    assert float(with_lora) == float(without)


def test_the_teacher_follows_the_towers_as_they_are_seen():
    made, init = tiny.learner(tiny.config(peft__method="lora", distill__momentum=0.75))
    state = jax.jit(init)(jax.random.key(0))
    params = state.params | {"lora": random(state.params["lora"])}
    state = replace(state, params=params)
    moved, _ = jax.jit(made.step)(state, tiny.batch())
    seen = rules.flatten(made.effective(moved.params))[QKV]
    assert np.any(seen != params["image"]["blocks"]["attention"]["qkv"]["kernel"])
    np.testing.assert_allclose(
        rules.flatten(moved.teacher)[QKV], 0.75 * rules.flatten(state.teacher)[QKV] + 0.25 * seen, atol=1e-6
    )


def test_a_sharded_mesh_gives_the_losses_of_one_device():
    config = tiny.config(objectives__distill=0, views__local__count=0, peft__method="lora", image__depth=1)
    histories = []
    for spec in ("data=2,fsdp=2,tensor=2", None):
        made, init = tiny.learner(config)
        if spec:
            mesh = meshes.make(spec)
            shardings = meshes.state_sharding(mesh, jax.eval_shape(init, jax.random.key(0)))
            state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
            place = lambda rows, mesh=mesh: meshes.place_batch(rows, meshes.batch_sharding(mesh, 16))  # noqa: E731
        else:
            state, place = jax.jit(init)(jax.random.key(0)), lambda rows: rows
        step, losses = jax.jit(made.step), []
        for i in range(3):
            state, metrics = step(state, place(tiny.batch(seed=i)))
            losses += [float(metrics["loss"]), float(metrics["grad_norm"])]
        histories.append(losses)
    np.testing.assert_allclose(*histories, rtol=1e-4)


# ---- runs ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def general(run, tmp_path_factory):
    """A folder with a copy of the small run, to be moved and changed."""
    return shutil.copytree(run, tmp_path_factory.mktemp("general") / "all")


def arguments(general, workdir, **overrides):
    size = ("image_size", "views.local.size", "total_steps", "batch_size", "optimizer.learning_rate")
    keys = {key: tiny.SMALL[key] for key in size} | {"objectives.distill": "0", "views.local.count": "0"}
    keys |= {"data.path": str(general / "alive"), "init.model": str(general / "workdir"), "text.context_length": "12"}
    keys |= {"image.unroll": "1", "checkpoint.every": "3", "checkpoint.keep": "9", "peft.method": "lora"}
    keys |= {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return [f"--config={tiny.RECIPE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]


@pytest.fixture(scope="module")
def adapted(general, tmp_path_factory):
    """The workdir of a run that trained LoRA on top of the small run, and what it said."""
    workdir = tmp_path_factory.mktemp("adapted") / "lora"
    assert command.run(arguments(general, workdir)) == 0
    return workdir


def images(count=3):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def bytes_of(folder):
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_a_checkpoint_holds_what_is_trained_and_is_as_small(general, adapted):
    saved = Checkpoints(adapted / "checkpoints")._manager.item_metadata(8)["params"]
    paths = {rules.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(saved)}
    assert paths == {"logit_scale"} | {
        f"lora/{tower}/blocks/attention/qkv/kernel/{which}" for tower in ("image", "text") for which in "ab"
    }
    whole = bytes_of(general / "workdir" / "checkpoints" / "0" / "params")
    assert bytes_of(adapted / "checkpoints" / "8" / "params") < whole / 4


def test_how_much_is_trained_is_kept_in_the_run(general, adapted):
    record = json.loads((adapted / "peft.json").read_text(encoding="utf-8"))
    small = 2 * (32 * 8 + 8 * 96) + (32 * 8 + 8 * 96) + 1
    assert (record["method"], record["trained"]) == ("lora", small)
    whole = inference.load(general / "workdir").params
    towers = jax.tree.leaves([whole["image"], whole["text"]])
    assert record["parameters"] == small + sum(leaf.size for leaf in towers)


def test_the_model_of_such_a_run_is_its_general_one_plus_what_was_trained(general, adapted):
    before, after = inference.load(general / "workdir"), inference.load(adapted)
    assert set(after.params) == {"image", "text", "logit_scale"}
    changed = {
        path
        for path, leaf in rules.flatten(after.params).items()
        if not np.array_equal(leaf, rules.flatten(before.params)[path])
    }
    assert changed == {QKV, QKV.replace("image", "text"), "logit_scale"}
    assert not np.allclose(before.embed_images(images()), after.embed_images(images()), atol=1e-3)


def test_a_stopped_run_continues_to_the_same_bits(general, adapted, tmp_path):
    workdir = shutil.copytree(adapted, tmp_path / "run")
    for step in (6, 8):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    for file in ("zeroshot.json", "report.html"):
        (workdir / file).unlink()
    assert command.run(arguments(general, workdir)) == 0
    a, b = (inference.load(folder) for folder in (adapted, workdir))
    assert a.step == b.step == 8 and a.fingerprint == b.fingerprint


def test_a_general_model_that_is_gone_or_another_is_one_line(general, adapted, run, tmp_path):
    moved = general / "workdir"
    away = moved.rename(general / "away")
    try:
        with pytest.raises(UserError, match=rf"{adapted} keeps only what it trained, on top of {moved}: there is no"):
            inference.load(adapted)
        with pytest.raises(UserError, match=r"keeps only what it trained, on top of"):
            command.run([*arguments(general, adapted, total_steps=9), "--extend"])
        config = json.loads((away / "config.json").read_text(encoding="utf-8"))
        shutil.copytree(away, moved)
        _, init = recipe.learner(ConfigDict(config), inference.load(moved).tokenizer)
        checkpoints = Checkpoints(moved / "checkpoints")
        checkpoints.save(replace(jax.jit(init)(jax.random.key(5)), step=jnp.int32(1)), {})
        checkpoints.close()
        with pytest.raises(UserError, match=rf"{moved} holds other weights than it was trained on; put them back"):
            inference.load(adapted)
        record = json.loads((adapted / "peft.json").read_text(encoding="utf-8"))
        (adapted / "peft.json").write_text(json.dumps(record | {"model": str(away)}), encoding="utf-8")
        assert inference.load(adapted).step == 8
        (adapted / "peft.json").write_text(json.dumps(record), encoding="utf-8")
    finally:
        shutil.rmtree(moved, ignore_errors=True)
        away.rename(moved)


def test_a_mask_token_that_no_one_trained_is_trained_beside_lora_when_it_is_asked_for(general, tmp_path):
    """iBOT's mask is fresh where the general model has none: locked it would stay what it starts as."""
    masked = {"objectives__distill": 1.0, "objectives__ibot": 1.0, "views__local__count": 1}
    masked |= {f"distill__{name}": tiny.SMALL[f"distill.{name}"] for name in ("hidden", "bottleneck", "prototypes")}
    with pytest.raises(UserError, match=r"would leave image/mask at random, .* train it by config.peft.also"):
        command.run(arguments(general, tmp_path / "locked", **masked))
    masked |= {"peft__also": "('image/mask',)"}
    assert command.run(arguments(general, tmp_path / "run", total_steps=2, **masked)) == 0
    assert command.run([*arguments(general, tmp_path / "run", total_steps=3, **masked), "--extend"]) == 0
    params = rules.flatten(inference.load(tmp_path / "run").params)
    assert np.abs(params["image/mask"]).max() > 0
    before = rules.flatten(inference.load(general / "workdir").params)
    np.testing.assert_array_equal(params["image/patch/kernel"], before["image/patch/kernel"])


def test_a_full_run_keeps_everything_and_needs_its_general_model_no_more(general, tmp_path):
    away = shutil.copytree(general, tmp_path / "general")
    assert command.run(arguments(away, tmp_path / "run", peft__method="full", total_steps=1)) == 0
    shutil.rmtree(away / "workdir")
    assert inference.load(tmp_path / "run").step == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"init__model": "", "image__patch": 8},
            "peft.method=lora trains on top of a general model; name it by config.init.model",
        ),
        (
            {"init__text": "clip.pt"},
            "config.init.text: config.peft.method=lora trains on top of config.init.model",
        ),
        ({"peft__method": "lore"}, "config.peft.method: unknown 'lore'; known: none, full, lora, bias, pfeiffer"),
        ({"peft__towers": "('images',)"}, r"config.peft.towers: \('images',\) are not among image, text"),
        ({"peft__rank": 0}, "config.peft.rank: 0 is not at least 1"),
        ({"peft__targets": "('nothing',)"}, "config.peft.targets: 'nothing' matches no parameter; near ones"),
        ({"peft__targets": "(3,)"}, "config.peft.targets: 3 is not a pattern on parameter paths"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_written(general, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        command.run(arguments(general, tmp_path / "run", **overrides))
    assert not (tmp_path / "run").exists()


# ---- merged --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(adapted, tmp_path_factory):
    """The workdir that tools/merge.py made of the adapted run."""
    out = tmp_path_factory.mktemp("merged") / "run"
    runs.write_model(inference.load(adapted), out)
    return out


def test_a_merged_run_has_plain_towers_and_the_embeddings_of_its_own(adapted, merged):
    before, after = inference.load(adapted), inference.load(merged)
    np.testing.assert_allclose(after.embed_images(images()), before.embed_images(images()), atol=1e-5)
    np.testing.assert_allclose(after.embed_texts(["an apple"]), before.embed_texts(["an apple"]), atol=1e-5)
    assert after.logit_scale == before.logit_scale and after.step == 8
    assert (merged / "classes.json").read_text() == (adapted / "classes.json").read_text()
    saved = Checkpoints(merged / "checkpoints")._manager.item_metadata(8)["params"]
    assert set(saved) == {"image", "text", "logit_scale"} and not (merged / "peft.json").exists()


def test_merging_by_the_tool_and_exporting_needs_the_general_model_no_more(
    general, adapted, tmp_path, monkeypatch, capsys
):
    status, said = tiny.call(monkeypatch, capsys, "merge.py", "--ckpt", adapted, "--out", tmp_path / "run")
    assert status == 0 and "0.1 M parameters" in said.out
    away = (general / "workdir").rename(general / "away")
    try:
        exported = ("export.py", "--ckpt", tmp_path / "run", "--format", "safetensors", "--out", tmp_path / "out")
        assert tiny.call(monkeypatch, capsys, *exported)[0] == 0
    finally:
        away.rename(general / "workdir")
    written = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(written[QKV], rules.flatten(inference.load(adapted).params)[QKV])
    again = ("merge.py", "--ckpt", tmp_path / "run", "--out", tmp_path / "again")
    status, said = tiny.call(monkeypatch, capsys, *again)
    assert status == 2 and "is whole already: config.peft.method is none" in said.err


def test_a_merged_run_starts_another_one_which_says_how_much_it_trains(merged, general, tmp_path, capsys):
    """LoRA upon LoRA."""
    assert command.run(arguments(general, tmp_path / "run", init__model=merged)) == 0
    record = json.loads((tmp_path / "run" / "peft.json").read_text(encoding="utf-8"))
    trained, parameters = record["trained"], record["parameters"]
    said = f"lora: {trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})"
    assert said in capsys.readouterr().out
    np.testing.assert_array_equal(
        rules.flatten(inference.load(tmp_path / "run").params)[UP], rules.flatten(inference.load(merged).params)[UP]
    )


# ---- methods in the blocks -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def united(general, tmp_path_factory):
    """The workdir of a run by UniPELT, from the recipe, on top of the small run."""
    workdir = tmp_path_factory.mktemp("united") / "run"
    own = [part for part in arguments(general, workdir, total_steps=2) if "peft.method" not in part]
    assert command.run(["--config=configs/peft.py:method=unipelt", *own[1:], "--config.peft.bottleneck=4"]) == 0
    return workdir


def test_a_run_of_what_is_added_to_blocks_keeps_that_alone(general, united):
    saved = Checkpoints(united / "checkpoints")._manager.item_metadata(2)["params"]
    paths = {rules.path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(saved)}
    assert paths == {p for p in rules.flatten(inference.load(united).params) if peft.is_added(p)} | {"logit_scale"}
    before, after = (rules.flatten(inference.load(w).params) for w in (general / "workdir", united))
    assert all(np.array_equal(after[path], before[path]) for path in set(after) - paths)


def test_merged_it_is_whole_with_what_was_added(general, united, tmp_path, monkeypatch, capsys):
    status, _ = tiny.call(monkeypatch, capsys, "merge.py", "--ckpt", united, "--out", tmp_path / "run")
    assert status == 0
    before = inference.load(united)
    away = (general / "workdir").rename(general / "away")
    try:
        after = inference.load(tmp_path / "run")
        np.testing.assert_allclose(after.embed_images(images()), before.embed_images(images()), atol=1e-5)
        np.testing.assert_allclose(after.embed_texts(["an apple"]), before.embed_texts(["an apple"]), atol=1e-5)
    finally:
        away.rename(general / "workdir")
    for chosen in ("hf", "safetensors"):
        exported = ("export.py", "--ckpt", tmp_path / "run", "--format", chosen, "--out", tmp_path / chosen)
        status, said = tiny.call(monkeypatch, capsys, *exported)
        assert status == 2 and "a file of weights has no place for 26 parameters that config.peft added" in said.err
        assert said.err.count("\n") == 1 and not (tmp_path / chosen).exists()
    with pytest.raises(
        UserError, match=r"has parameters of config.peft.method=unipelt in its towers, which no other run"
    ):
        command.run(arguments(general, tmp_path / "other", init__model=tmp_path / "run"))


@pytest.mark.parametrize("method", ["", "method=prompts", "photos,method=full", "b16,method=houlsby"])
def test_the_recipe_has_every_method_on_every_variant_and_asks_for_a_general_model(method, tmp_path):
    config = configs.load(f"configs/peft.py:{method}")
    assert config.peft.method == (method.rpartition("method=")[2] or "lora") and not config.objectives.distill
    assert tuple(config.peft.towers) == (("image",) if "prompts" in method else ("image", "text"))
    with pytest.raises(UserError, match=r"trains on top of a general model; name it by config.init.model"):
        command.run([f"--config=configs/peft.py:{method}", f"--workdir={tmp_path / 'run'}"])
    with pytest.raises(UserError, match=r"configs/peft.py has no 'method=lor'; did you mean 'method=lora'"):
        configs.load("configs/peft.py:method=lor")


TWO_STAGES = """
from ml_collections import ConfigDict
from agriclip_jax import config as configs

def get_config(text):
    stage = configs.words(text, "two", stage=("all", "general", "adapt"))["stage"]
    config = configs.beside(__file__, "peft" if stage == "adapt" else "alive", "")
    config.recipe, config.stages = "two", ("general", "adapt") if stage == "all" else ()
    config.objectives = ConfigDict({"contrastive": 1.0}, type_safe=False)
    if stage == "adapt":
        config.init = ConfigDict({"model": "stage:general"})
    return config
"""


def test_a_general_model_may_be_a_stage_that_came_before(general, tmp_path):
    for name in ("alive.py", "peft.py"):
        shutil.copy(f"configs/{name}", tmp_path)
    (tmp_path / "two.py").write_text(TWO_STAGES, encoding="utf-8")
    sizes = {k: v for k, v in tiny.SMALL.items() if not k.startswith(("objectives", "image.", "text.", "embed"))}
    keys = sizes | {
        "data.path": str(general / "alive"),
        "image_size": "48",
        "total_steps": "2",
        "views.local.size": "24",
    }
    given = [f"--config={tmp_path / 'two.py'}", f"--workdir={tmp_path / 'run'}"]
    given += [f"--config.{key}={value}" for key, value in keys.items()]
    assert command.run(given) == 0
    assert inference.load(tmp_path / "run" / "adapt").step == 2
    assert (tmp_path / "run" / "adapt" / "peft.json").is_file()
    assert command.run(given) == 0  # finished, and says so
    longer = [*given, "--config.stages.general.total_steps=3", "--extend"]
    with pytest.raises(UserError, match=r"adapt began with stages that have changed since; remove it"):
        command.run(longer)
    shutil.rmtree(tmp_path / "run" / "adapt")
    assert command.run(longer) == 0
