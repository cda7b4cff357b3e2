"""A run that starts from weights of others is theirs at step 0, keeps what they are, and needs their files no more."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import RECIPE, SMALL, batch, call

from agriclip_jax import config as configs
from agriclip_jax import encoders, inference, initial, main, mesh, recipe, rules
from agriclip_jax.data import tokenizers
from agriclip_jax.encoders import layers, resnet, text, vit
from agriclip_jax.errors import UserError
from agriclip_jax.weights import hub, names
from agriclip_jax.weights.families import FAMILIES

BLOCKS = layers.BlockConfig(width=64, depth=2, heads=1, mlp=96, activation="quick_gelu", norm_eps=1e-5)
IMAGE = vit.ViTConfig(BLOCKS, patch=8, image_size=32, embed_dim=24, pre_norm=True, patch_bias=False)
DINO = vit.ViTConfig(BLOCKS, patch=8, image_size=32, embed_dim=0)
CAPTIONS = ["a photo of a healthy tomato leaf", "a cow with a white face", "a fresh sea bream on ice"]
TOKENIZER = tokenizers.train(CAPTIONS, 600)
TEXT = text.TextConfig(BLOCKS, TOKENIZER.vocab_size, 24, end_id=TOKENIZER.end_id, embed_dim=24)


def random(network, seed):
    """Parameters of a network, all of them random."""
    leaves, tree = jax.tree.flatten(network.init(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [rng.normal(0, 0.1, leaf.shape).astype(np.float32) for leaf in leaves])


def save(path, family, params, **scale):
    """An npz file in the names of a family."""
    rows = FAMILIES[family].towers
    arrays = {k: v for t in params for k, v in names.write(rows[t], rules.flatten(params[t]))}
    np.savez(path, **arrays, **scale)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of random weights in OpenAI's names, its tokenizer beside it, and its parameters."""
    folder = tmp_path_factory.mktemp("clip")
    params = {"image": random(encoders.image_tower(IMAGE), 0), "text": random(encoders.text_tower(TEXT), 1)}
    TOKENIZER.save(folder / "tokenizer.json")
    save(
        folder / "clip.npz", "clip (openai, open_clip)", params, logit_scale=np.float32(4.77)
    )  # SigLIP's, above CLIP's
    return folder, params


def recipe_for(clip, **overrides):
    """The miniature recipe, started from the CLIP."""
    folder, _ = clip
    given = {"init.model": str(folder / "clip.npz"), "text.tokenizer": str(folder / "tokenizer.json")}
    shape = ("image.width", "image.depth", "image.heads", "image.patch", "embed_dim", "image.unroll")
    plain = {
        k: v for k, v in SMALL.items() if k not in shape and not k.startswith(("text.w", "text.d", "text.h", "text.v"))
    }
    return plain | given | {k.replace("__", "."): str(v) for k, v in overrides.items()}


def arguments(overrides, workdir, *more):
    return ["--config=" + RECIPE, f"--workdir={workdir}", *more, *(f"--config.{k}={v}" for k, v in overrides.items())]


@pytest.fixture(scope="module")
def started(clip, corpus, tmp_path_factory):
    """The workdir of a run that started from a copy of the CLIP, gone since, and made two steps that change nothing."""
    folder = tmp_path_factory.mktemp("run")
    model = shutil.copy(clip[0] / "clip.npz", folder)
    still = recipe_for(clip, init__model=model, data__path=corpus, total_steps=2, optimizer__learning_rate=0.0)
    still |= {"image_size": "32"}
    assert main.run(arguments(still, folder / "run")) == 0
    Path(model).unlink()
    return folder / "run", still


def test_a_run_starts_as_the_model_it_was_given(clip, started):
    _, params = clip
    model = inference.load(started[0])
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    image, words = encoders.image_tower(IMAGE), encoders.text_tower(TEXT)
    wanted = image(params["image"], image(params["image"], images).pooled, method="embed")
    np.testing.assert_allclose(model.embed_images(images), wanted, atol=2e-6)
    tokens = TOKENIZER.encode(CAPTIONS, 24)
    wanted = words(params["text"], words(params["text"], tokens), method="embed")
    np.testing.assert_allclose(model.embed_texts(CAPTIONS), wanted, atol=2e-6)
    assert model.logit_scale == pytest.approx(np.exp(4.77))


def test_what_the_file_decides_is_kept_in_the_runs_configuration(started):
    kept = json.loads((started[0] / "config.json").read_text())
    assert (kept["image"]["width"], kept["image"]["mlp"], kept["image"]["patch"], kept["embed_dim"]) == (64, 96, 8, 24)
    assert kept["image"]["activation"] == "quick_gelu" and kept["image"]["patch_bias"] is False


def test_the_teacher_starts_as_the_student(clip, started):
    _, params = clip
    teacher = inference.load(started[0], use="teacher")
    # Two steps of a student that stands still: equal but for rounding.
    np.testing.assert_allclose(
        teacher.params["image"]["patch"]["kernel"], params["image"]["patch"]["kernel"], atol=1e-7
    )


def test_a_run_goes_on_without_the_file_it_started_from(started, capsys):
    workdir, still = started
    assert not Path(still["init.model"]).exists()
    assert main.run(arguments(still | {"total_steps": "3"}, workdir, "--extend")) == 0
    assert "continuing" in capsys.readouterr().out


def test_another_file_is_another_run(clip, started, tmp_path):
    folder, _ = clip
    workdir, still = started
    other = shutil.copy(folder / "clip.npz", tmp_path / "other.npz")
    with pytest.raises(UserError, match=r"holds another run: init.model was .*clip.npz', is now .*other.npz'; set"):
        main.run(arguments(still | {"init.model": str(other)}, workdir))


def adopted(overrides, explicit=()):
    config = configs.load(RECIPE, overrides)
    found = initial.sources(config)
    return config, found, initial.adopt(config, found, explicit)


def given(config, found):
    """The parameters that a recipe takes from its sources, and those it makes anew."""
    _, init = recipe.learner(config, TOKENIZER)
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = mesh.state_sharding(mesh.make("auto"), shapes)
    given = initial.parameters(found, shapes.params, shardings.params)
    return given, initial.fresh(found, shapes.params, given)


def test_another_resolution_interpolates_the_positions_and_says_so(clip):
    config, found, notes = adopted(recipe_for(clip, image_size=16))
    assert "image positions: interpolated from 4 x 4 (32 pixels) to 2 x 2 (config.image_size 16)" in notes
    arrays, _ = given(config, found)
    _, params = clip
    wanted = vit.interpolate_positions(params["image"]["positions"], 4, 2, 2)
    np.testing.assert_allclose(arrays["image/positions"], wanted, atol=1e-6)


def test_a_shorter_context_takes_the_first_positions_and_says_so(clip):
    config, found, notes = adopted(recipe_for(clip, text__context_length=9))
    assert "text positions: the first 9 of 24" in notes
    arrays, fresh = given(config, found)
    np.testing.assert_array_equal(arrays["text/positions"], clip[1]["text"]["positions"][:9])
    assert fresh == []


def test_a_longer_context_than_the_files_is_cut_to_it(clip):
    config, _, _ = adopted(recipe_for(clip, text__context_length=99))
    assert config.text.context_length == 24


def test_what_no_array_shows_is_assumed_aloud_and_may_be_set_by_hand(clip):
    config, _, notes = adopted(recipe_for(clip))
    assert any("assumed, for no configuration lies beside it: image.activation quick_gelu" in note for note in notes)
    config, _, notes = adopted(recipe_for(clip, image__activation="gelu"), explicit=["image.activation"])
    assert config.image.activation == "gelu" and config.text.activation == "quick_gelu"
    assert "config.image.activation: gelu, set by hand, in place of quick_gelu" in notes


@pytest.mark.parametrize("key,value", [("image.width", "128"), ("embed_dim", "512"), ("text.context_length", "77")])
def test_a_key_set_by_hand_that_contradicts_the_file_is_refused(clip, key, value):
    with pytest.raises(UserError, match=rf"config.{key}={value} contradicts config.init, which has \d+"):
        adopted(recipe_for(clip) | {key: value}, explicit=[key])


def test_images_that_do_not_suit_the_patches_of_the_file_are_refused(clip):
    with pytest.raises(
        UserError, match=r"config.views.local.size: 12 is not a multiple of config.image.patch 8; use 8"
    ):
        adopted(recipe_for(clip, views__local__size=12))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A DINO of random weights in Meta's names."""
    params = {"image": random(encoders.image_tower(DINO), 2)}
    return save(tmp_path_factory.mktemp("dino") / "dino.npz", "dino (meta, timm)", params), params


def test_towers_of_two_models_meet_through_a_new_head(clip, dino):
    folder, _ = clip
    both = recipe_for(clip, init__model="", init__image=dino[0], init__text=folder / "clip.npz")
    config, found, _ = adopted(both)
    arrays, fresh = given(config, found)
    assert fresh == ["image/projection/kernel"] and config.embed_dim == 24
    assert "logit_scale" not in arrays
    np.testing.assert_array_equal(
        arrays["image/blocks/mlp/up/kernel"], dino[1]["image"]["blocks"]["mlp"]["up"]["kernel"]
    )


def test_a_locked_tower_without_a_head_makes_its_features_the_shared_space(clip, dino):
    folder, _ = clip
    lit = recipe_for(clip, init__model="", init__image=dino[0], init__text=folder / "clip.npz", image__projection=False)
    config, found, _ = adopted(lit, explicit=["image.projection"])
    _, fresh = given(config, found)
    assert config.embed_dim == 64 and fresh == ["text/projection/kernel"]


def test_an_image_tower_alone_leaves_the_text_tower_to_the_recipe(clip, dino):
    config, found, _ = adopted(recipe_for(clip, init__model="", init__image=dino[0], text__width=32))
    assert (config.text.width, config.image.width, config.embed_dim) == (32, 64, 128)
    _, fresh = given(config, found)
    assert fresh == ["image/projection/kernel"]


def test_a_resnet_is_taken_with_its_statistics_which_no_step_moves(clip, tmp_path):
    tower = resnet.ResNetConfig(
        (1, 2, 1, 1),
        width=8,
        heads=8,
        image_size=32,
        embed_dim=0,
        stem="plain",
        pool="mean",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    params = {"image": random(encoders.resnet_tower(tower), 3)}
    for path, leaf in rules.flatten(params["image"]).items():
        if path.endswith("norm/var"):
            leaf[...] = np.abs(leaf) + 0.5
    file = save(tmp_path / "resnet.npz", "resnet (torchvision)", params)
    own = recipe_for(
        clip, init__model="", init__image=file, image_size=32, text__width=32, text__heads=2, text__depth=1
    )
    own |= {"objectives.distill": "0.0", "views.local.count": "0", "image.unroll": "0"}
    config, found, _ = adopted(own)
    learner, init = recipe.learner(config, TOKENIZER)
    shapes = jax.eval_shape(init, jax.random.key(0))
    arrays = initial.parameters(found, shapes.params, mesh.state_sharding(mesh.make("auto"), shapes).params)
    state = init(jax.random.key(0), arrays)
    rows = batch(6) | {"image/global": np.random.default_rng(0).integers(0, 256, (6, 2, 32, 32, 3), np.uint8)}
    rows["tokens"] = TOKENIZER.encode(CAPTIONS * 2, 12)
    step = jax.jit(learner.step)
    for _ in range(2):  # the first learning rate of a warm-up is 0
        state, _ = step(state, rows)
    before, after = rules.flatten(params["image"]), rules.flatten(jax.device_get(state.params["image"]))
    moved = {path for path in before if not np.array_equal(before[path], after[path])}
    assert set(before) - moved == {path for path in before if path.endswith(("norm/mean", "norm/var"))}


def test_a_run_of_ours_is_a_source_too(started):
    workdir, still = started
    config, found, notes = adopted(still | {"init.model": str(workdir)})
    assert f"image tower: {workdir} (a run of agriclip_jax)" in notes
    arrays, fresh = given(config, found)
    kept = inference.load(workdir).params
    np.testing.assert_array_equal(arrays["text/tokens"], kept["text"]["tokens"])
    assert fresh == [] and "logit_scale" in arrays


def test_a_model_without_a_text_tower_is_to_be_named_as_an_image_tower(clip, dino):
    with pytest.raises(
        UserError,
        match=r"config.init: .*dino.npz \(dino \(meta, timm\)\) has no text tower; give it as config.init.image",
    ):
        initial.sources(configs.load(RECIPE, recipe_for(clip, init__model=dino[0])))


def test_weights_that_cannot_be_read_leave_nothing(clip, corpus, tmp_path):
    folder, _ = clip
    with np.load(folder / "clip.npz") as arrays:
        np.savez_compressed(tmp_path / "bad.npz", **arrays)
    damaged = bytearray((tmp_path / "bad.npz").read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 64] = bytes(64)
    (tmp_path / "bad.npz").write_bytes(damaged)
    with pytest.raises(UserError, match=r"bad.npz"):
        main.run(arguments(recipe_for(clip, data__path=corpus, init__model=tmp_path / "bad.npz"), tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_file_without_its_tokenizer_asks_for_one(clip, corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("AGRICLIP_BPE", raising=False)
    bare = recipe_for(clip, data__path=corpus) | {"text.tokenizer": ""}
    with pytest.raises(UserError, match=r"clip.npz comes without its tokenizer; name it by config.text.tokenizer"):
        main.run(arguments(bare, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_of_another_vocabulary_is_refused(clip, corpus, tmp_path):
    tokenizers.train(["many other words, more than before"], 560).save(tmp_path / "t.json")
    other = recipe_for(clip, data__path=corpus) | {"text.tokenizer": str(tmp_path / "t.json")}
    with pytest.raises(UserError, match=r"the tokenizer \(of \d+ ids, \d+ ends a text\) is not that of .*clip.npz"):
        main.run(arguments(other, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("spec", ["nowhere.pt", "hf:clip", "hf:../x/y"])
def test_a_specification_of_nothing_is_one_line(spec):
    with pytest.raises(UserError, match=r"there is no nowhere.pt; give a file|a repository is named hf:OWNER/NAME"):
        hub.local(spec)


def test_an_imported_model_is_a_workdir_that_tools_take(clip, tmp_path, monkeypatch, capsys):
    folder, params = clip
    made = ("--from", folder / "clip.npz", "--tokenizer", folder / "tokenizer.json", "--out", tmp_path / "run")
    status, said = call(monkeypatch, capsys, "import_weights.py", *made)
    assert status == 0 and "M parameters" in said.out
    model = inference.load(tmp_path / "run")
    assert model.image_size == 32 and model.config.text.context_length == 24
    for tower in ("image", "text"):
        jax.tree.map(np.testing.assert_array_equal, model.params[tower], params[tower])


def test_an_image_tower_alone_gets_a_fresh_text_tower_and_says_so(dino, tmp_path, monkeypatch, capsys):
    status, said = call(monkeypatch, capsys, "import_weights.py", "--image", dino[0], "--out", tmp_path / "run")
    assert status == 0 and "text tower: fresh, so that names mean nothing to it" in said.out
    assert "fresh: image/projection/kernel" in said.out
    kept = inference.load(tmp_path / "run").params["image"]["blocks"]
    jax.tree.map(np.testing.assert_array_equal, kept, dino[1]["image"]["blocks"])


def test_an_aligner_projects_its_tower_into_the_texts_space(clip, dino, tmp_path):
    folder, _ = clip
    w, b = np.random.default_rng(4).normal(size=(24, 64)).astype(np.float32), np.ones(24, np.float32)
    np.savez(tmp_path / "aligner.npz", W=w, b=b)
    aligned = recipe_for(clip, init__model="", init__image=dino[0], init__text=folder / "clip.npz")
    config, found, _ = adopted(aligned | {"init.aligner": str(tmp_path / "aligner.npz")})
    arrays, fresh = given(config, found)
    assert fresh == [] and config.image.projection_bias
    np.testing.assert_array_equal(arrays["image/projection/kernel"], w.T)
    np.testing.assert_array_equal(arrays["image/projection/bias"], b)


def test_an_aligner_without_its_tower_is_refused(clip):
    with pytest.raises(UserError, match=r"config.init.aligner=a.pth: name the tower it was fitted to as init.image"):
        initial.sources(configs.load(RECIPE, SMALL | {"init.aligner": "a.pth"}))


@pytest.mark.parametrize(
    "arguments,message",
    [
        ((), "name a model as --from=SPEC"),
        (("--from", "nowhere.pt"), "there is no nowhere.pt"),
        (("--from", "nowhere.pt", "--out", "README.md"), "README.md is there already, and not an empty folder"),
    ],
)
def test_an_import_of_nothing_is_one_line(arguments, message, tmp_path, monkeypatch, capsys):
    status, said = call(monkeypatch, capsys, "import_weights.py", "--out", tmp_path / "run", *arguments)
    assert status == 2 and message in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_temperature_is_the_files_and_one_set_by_hand_is_refused(clip):
    config, _, _ = adopted(recipe_for(clip))
    assert config.temperature == pytest.approx(np.exp(-4.77))
    with pytest.raises(
        UserError, match=r"config.temperature=0.5 contradicts config.init, which has 0.008\d+; leave it out"
    ):
        adopted(recipe_for(clip, temperature=0.5), explicit=["temperature"])


def test_numbers_that_are_not_finite_are_named(clip, tmp_path):
    with np.load(clip[0] / "clip.npz") as arrays:
        content = dict(arrays)
    content["ln_final.bias"][3] = np.nan
    np.savez(tmp_path / "nan.npz", **content)
    config, found, _ = adopted(recipe_for(clip, init__model=tmp_path / "nan.npz"))
    with pytest.raises(UserError, match=r"nan.npz: text/norm/bias holds numbers that are not finite; fetch it anew"):
        given(config, found)
