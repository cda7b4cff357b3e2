"""A model that is exported comes back bit for bit, or is refused by the part that a format has no place for."""

import dataclasses
import functools
import json
import types

import numpy as np
import pytest
import yaml
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import call

from agriclip_jax import encoders, inference, rules
from agriclip_jax.data import tokenizers
from agriclip_jax.data.records import Alive
from agriclip_jax.data.views import EvalView
from agriclip_jax.encoders import layers, resnet, text, vit
from agriclip_jax.errors import UserError
from agriclip_jax.weights import containers, exporting, importing, model_card, own, timm_names
from agriclip_jax.weights.families import FAMILIES

TOWERS = {
    vit.ViTConfig: encoders.image_tower,
    resnet.ResNetConfig: encoders.resnet_tower,
    text.TextConfig: encoders.text_tower,
}


@functools.cache
def network(config):
    return TOWERS[type(config)](config)


STACK = layers.BlockConfig(width=64, depth=2, heads=1, mlp=96)
IMAGE = vit.ViTConfig(STACK, patch=8, image_size=16, embed_dim=24, pre_norm=True, patch_bias=False)
TEXT = text.TextConfig(STACK, vocab_size=520, context_length=12, end_id=519, embed_dim=24)
SIGLIP_IMAGE = dataclasses.replace(IMAGE, embed_dim=0, pool="attention", pre_norm=False, patch_bias=True)
SIGLIP = {"embed_dim": 64, "causal": False, "pool": "last", "projection_bias": True}
SIGLIP_TEXT = dataclasses.replace(TEXT, **SIGLIP)
SCALED = dataclasses.replace(STACK, layer_scale=0.1)
RESNET = resnet.ResNetConfig((1, 2, 1, 1), width=8, heads=4, image_size=64, embed_dim=24)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(["a healthy leaf", "a leaf with rust", "a dairy cow"], 520)


@pytest.fixture(scope="module")
def model(tokenizer):
    """What makes a model of two configurations, with random parameters."""

    def made(image=IMAGE, words=TEXT, **more):
        rng = np.random.default_rng(0)
        towers = {"image": network(image), "text": network(words)}
        params = {
            tower: rules.unflatten(
                {
                    path: rng.standard_normal(leaf.shape).astype(np.float32)
                    for path, leaf in rules.flatten(nnx.to_pure_dict(network.shapes)).items()
                }
            )
            for tower, network in towers.items()
        }
        scales = {name: np.float32(value) for name, value in ({"logit_scale": 2.5} | more).items()}
        return types.SimpleNamespace(towers=towers, params=params | scales, tokenizer=tokenizer, view=EvalView(16))

    return made


def said(line):
    assert "\n" not in line


def comes_back(model, out, *, also_towers=True):
    """Reads an exported folder, and sees that every parameter is the same, bit for bit."""
    foreign = importing.open_model(out)
    for tower, network in model.towers.items():
        wanted = rules.flatten(model.params[tower])
        found = dict(foreign.leaves(tower))
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[path], wanted[path]) for path in wanted)
        if also_towers:
            assert foreign.towers[tower] == network.config
    for name, value in foreign.scale().items():
        assert value == model.params.get(name, 0)
    return foreign


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (IMAGE, TEXT),
        (dataclasses.replace(IMAGE, blocks=SCALED, registers=3, projection_bias=True, patch_bias=True), TEXT),
        (dataclasses.replace(IMAGE, rotary_base=100.0, pool="mean", mean=(0.5, 0.4, 0.3)), TEXT),
        (dataclasses.replace(IMAGE, blocks=dataclasses.replace(STACK, activation="swiglu")), TEXT),
        (SIGLIP_IMAGE, SIGLIP_TEXT),
        (RESNET, TEXT),
        (dataclasses.replace(RESNET, stem="plain", pool="mean", embed_dim=0), TEXT),
    ],
)
def test_any_towers_come_back_from_safetensors_with_their_configurations(tmp_path, model, image, words):
    there = model(image, words, logit_bias=-3.0)
    exporting.write_safetensors(there, tmp_path, said)
    assert comes_back(there, tmp_path).family == "agriclip_jax"
    assert tokenizers.Tokenizer.load(tmp_path).fingerprint == there.tokenizer.fingerprint


def test_every_parameter_of_every_family_has_a_name_of_its_own():
    for family in FAMILIES.values():
        for tower, rows in family.towers.items():
            ours = {path for row in FAMILIES["agriclip_jax"].towers[tower] for path in row.ours}
            assert ours >= {path for row in rows for path in row.ours}


def test_own_weights_without_their_config_are_one_line(tmp_path, model):
    exporting.write_safetensors(model(), tmp_path, said)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json .* is missing"):
        importing.open_model(tmp_path)


def test_a_description_of_towers_is_read_back():
    towers = {"image": RESNET, "text": SIGLIP_TEXT}
    assert own.configure({}, json.loads(json.dumps(own.describe(towers)))) == towers


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
def test_a_clip_comes_back_from_transformers_form(tmp_path, model, activation):
    stack = dataclasses.replace(STACK, activation=activation, norm_eps=1e-4)
    there = model(dataclasses.replace(IMAGE, blocks=stack), dataclasses.replace(TEXT, blocks=stack))
    exporting.write_hf(there, tmp_path, said)
    foreign = comes_back(there, tmp_path, also_towers=False)
    assert foreign.family == "clip (transformers)"
    assert foreign.towers["text"] == there.towers["text"].config
    assert foreign.towers["image"].blocks == stack


def test_a_siglip_comes_back_from_transformers_form(tmp_path, model):
    stack = dataclasses.replace(STACK, heads=2, activation="gelu_tanh")
    there = model(
        dataclasses.replace(SIGLIP_IMAGE, blocks=stack),
        dataclasses.replace(SIGLIP_TEXT, blocks=stack),
        logit_bias=-9.0,
    )
    exporting.write_hf(there, tmp_path, said)
    assert comes_back(there, tmp_path, also_towers=False).family == "siglip (transformers)"


@pytest.mark.parametrize("image", [IMAGE, dataclasses.replace(IMAGE, blocks=SCALED, pre_norm=False), RESNET])
@pytest.mark.parametrize("words", [TEXT, dataclasses.replace(TEXT, blocks=SCALED, projection_bias=True, pool="last")])
def test_open_clips_own_towers_come_back(tmp_path, model, image, words):
    there = model(image, words)
    exporting.write_open_clip(there, tmp_path, said)
    comes_back(there, tmp_path, also_towers=False)


@pytest.mark.parametrize(
    ("image", "words", "name"),
    [
        ({"projection_bias": True}, {}, "vit_small_patch16_224"),
        ({"projection_bias": True, "registers": 4, "blocks": SCALED}, {}, "vit_small_patch14_reg4_dinov2"),
        ({"projection_bias": True, "blocks": SCALED}, {}, "vit_small_patch14_dinov2"),
        ({"pool": "attention", "embed_dim": 0}, SIGLIP, "vit_base_patch32_siglip_256"),
    ],
)
def test_towers_with_a_name_in_timm_come_back_from_open_clips_form(tmp_path, model, monkeypatch, image, words, name):
    monkeypatch.setattr(timm_names, "find", lambda config: name)  # which stands for a tower of full size
    there = model(
        dataclasses.replace(IMAGE, **{"pre_norm": False, "patch_bias": True} | image),
        dataclasses.replace(TEXT, **words),
    )
    exporting.write_open_clip(there, tmp_path, said)
    comes_back(there, tmp_path, also_towers=False)


@pytest.mark.parametrize("write", [exporting.write_hf, exporting.write_open_clip])
def test_a_bias_of_the_patches_goes_into_their_places(tmp_path, model, write):
    there = model(dataclasses.replace(IMAGE, patch_bias=True))
    write(there, tmp_path, said)
    foreign = importing.open_model(tmp_path)
    plain = network(IMAGE)
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    ours = there.towers["image"](there.params["image"], images)
    theirs = plain(foreign.params("image"), images)
    np.testing.assert_allclose(ours.pooled, theirs.pooled, atol=1e-4)
    np.testing.assert_allclose(ours.patches, theirs.patches, atol=1e-4)


@pytest.mark.parametrize(
    ("target", "image", "words", "more", "part", "other"),
    [
        ("hf", {"registers": 2}, {}, {}, "registers", "safetensors"),
        ("hf", {"blocks": SCALED}, {}, {}, "LayerScale", "open_clip"),
        ("hf", {"projection_bias": True}, {}, {}, "a bias of the image projection", "safetensors"),
        ("hf", {"pre_norm": False}, {}, {}, "without a layer norm before its blocks", "open_clip"),
        ("hf", {"pool": "mean"}, {}, {}, "mean pooling", "safetensors"),
        ("hf", {"rotary_base": 100.0}, {}, {}, "rotary positions", "safetensors"),
        ("hf", {"embed_dim": 0}, {}, {}, "without projection", "safetensors"),
        ("hf", {"pool": "attention", "pre_norm": False}, {}, {}, "projection after attention pooling", "safetensors"),
        ("hf", {}, {"causal": False}, {}, "not causal", "safetensors"),
        ("hf", {}, {"pool": "last"}, {}, "pooled by 'last'", "open_clip"),
        ("hf", {}, {"projection_bias": True}, {}, "a bias of the text projection", "open_clip"),
        ("hf", {}, {}, {"logit_bias": 1.0}, "a bias of the logits", "open_clip"),
        ("open_clip", {"rotary_base": 100.0}, {}, {}, "rotary positions", "safetensors"),
        ("open_clip", {"registers": 2}, {}, {}, "width 64, depth 2, 1 heads, gelu, patch 8 at 16", "safetensors"),
        ("open_clip", {}, {"pool": "mean"}, {}, "pooled by 'mean'", "safetensors"),
        ("open_clip", {}, {"causal": False}, {}, "pooled by 'end' that is not causal", "safetensors"),
        (
            "open_clip",
            {"blocks": dataclasses.replace(STACK, activation="quick_gelu")},
            {},
            {},
            "quick_gelu in one tower alone",
            "hf",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(tmp_path, model, target, image, words, more, part, other):
    there = model(dataclasses.replace(IMAGE, **image), dataclasses.replace(TEXT, **words), **more)
    write = {"hf": exporting.write_hf, "open_clip": exporting.write_open_clip}[target]
    with pytest.raises(UserError, match=part) as told:
        write(there, tmp_path, said)
    assert str(told.value).endswith(f"--format={other} has") and "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("vit_small_patch16_224", "S", {"patch": 16, "image_size": 224, "projection_bias": True}),
        ("vit_base_patch14_reg4_dinov2", "B", {"patch": 14, "image_size": 518, "registers": 4, "layer_scale": 1.0}),
        (
            "vit_so400m_patch16_siglip_256",
            "So400m",
            {"patch": 16, "image_size": 256, "pool": "attention", "activation": "gelu_tanh"},
        ),
        ("", "So400m", {"patch": 16, "image_size": 256, "pool": "attention"}),
        ("", "B", {"patch": 14, "image_size": 224, "registers": 4, "layer_scale": 1.0}),
        ("", "B", {"patch": 16, "image_size": 224, "pre_norm": True}),
    ],
)
def test_a_tower_of_timms_is_known_by_its_parts(name, size, options):
    options = dict(options)
    stack = {key: options.pop(key) for key in ("layer_scale", "activation") if key in options}
    assert timm_names.find(vit.ViTConfig(encoders.block_config(size, **stack), **options)) == name


@settings(deadline=None, max_examples=25)
@given(shape=st.lists(st.integers(0, 5), max_size=4), order=st.randoms(use_true_random=False), step=st.integers(1, 2))
def test_arrays_are_saved_by_value_whatever_their_memory_order(tmp_path_factory, shape, order, step):
    axes = list(range(len(shape)))
    order.shuffle(axes)
    array = (
        np.random.default_rng(0).standard_normal(shape).astype(np.float32).transpose(axes)[::step]
        if shape
        else (np.asarray(np.float32(3)))
    )
    path = tmp_path_factory.mktemp("saved") / "arrays.safetensors"
    exporting.save(path, lambda: [("first", np.ones(3, np.float32)), ("second", array)])
    read = containers.open_weights(path).tensors
    np.testing.assert_array_equal(read["second"].read(), array)
    assert read["second"].shape == array.shape
    np.testing.assert_array_equal(read["first"].read(), np.ones(3, np.float32))


def test_a_run_is_exported_with_a_card_that_says_what_is_known(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "there"
    arguments = ("export.py", f"--ckpt={run / 'workdir'}", "--format=hf", f"--out={out}")
    status, printed = call(monkeypatch, capsys, *arguments, "--license=apache-2.0")
    assert status == 0, printed.err
    assert "CLIPModel" in printed.out and str(out) in printed.out
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "LICENSE.md"} <= {
        path.name for path in out.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    card = (out / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "apache-2.0" and front["library_name"] == "transformers"
    assert "CLIPModel.from_pretrained" in card
    assert "Unknown: the run has no record of scores" in card
    assert "agriclip_jax has not trained it" in card and "## Data\n\nUnknown" in card
    foreign = importing.open_model(out)
    assert foreign.family == "clip (transformers)" and foreign.towers["image"].image_size == 16

    status, printed = call(monkeypatch, capsys, *arguments)
    assert status == 2 and "not an empty folder" in printed.err


def test_a_card_names_what_a_run_started_from_and_does_not_license_its_data(run, tmp_path):
    model = inference.load(run / "workdir")
    model.config.init.image, model.config.init.text = "/home/me/dino.pth", "hf:farm/cows@v1"
    (tmp_path / "README.md").write_text("In three lines.", encoding="utf-8")
    model_card.write(model, tmp_path, target="hf", licence="cc-by-4.0", command="python tools/export.py")
    card, licence = ((tmp_path / name).read_text(encoding="utf-8") for name in ("README.md", "LICENSE.md"))
    assert yaml.safe_load(card.split("---")[1])["base_model"] == ["farm/cows"]
    assert "They started from dino.pth, hf:farm/cows@v1, whose licence and training data are not on record" in licence
    assert "data that are not on record here" in card and "/home/me/dino.pth" not in card.partition("<details>")[0]


def test_a_card_counts_images_and_licences_and_shows_scores(run, tmp_path):
    workdir, out = tmp_path / "workdir", tmp_path / "out"
    workdir.mkdir()
    out.mkdir()
    (out / "README.md").write_text("# Loading\n\nIn three lines.\n", encoding="utf-8")
    records = {
        "data.json": {"path": str(run / "alive"), "fingerprint": Alive.open(run / "alive").fingerprint},
        "zeroshot.json": {
            "checkpoint": {"step": 8, "use": "student"},
            "interval": "Wilson, 95 %",
            "means": [],
            "results": [
                {
                    "dataset": "apples",
                    "group": "in-domain",
                    "metrics": {"acc1": 0.625},
                    "interval": [0.5, 0.75],
                    "chance": 0.5,
                    "images": 8,
                },
                {"dataset": "pears", "not_scored": "it has no test split"},
            ],
        },
    }
    for name, record in records.items():
        (workdir / name).write_text(json.dumps(record), encoding="utf-8")
    trained = dataclasses.replace(inference.load(run / "workdir"), workdir=workdir, step=8)
    said = {"target": "open_clip", "licence": "", "command": "python tools/export.py"}
    model_card.write(trained, out, **said)
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "## How to load it\n\nIn three lines." in card
    assert "| apples | in-domain | 62.5 % | 50.0 to 75.0 | 50.0 | 8 |" in card
    assert "| apples | other |" in card and "none stated" in card
    assert yaml.safe_load(card.split("---")[1])["license"] == "unknown"
    assert "none stated: 30 images" in (out / "LICENSE.md").read_text(encoding="utf-8")

    model_card.write(dataclasses.replace(trained, step=7), out, **said)
    assert "what the run scored is another checkpoint, step 8" in (out / "README.md").read_text(encoding="utf-8")
    (workdir / "data.json").unlink()
    model_card.write(trained, out, **said)
    assert "Where the images come from is unknown here" in (out / "README.md").read_text(encoding="utf-8")
    (workdir / "zeroshot.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"zeroshot.json is damaged"):
        model_card.write(trained, out, **said)


@pytest.mark.parametrize(
    ("flag", "words"), [("--format=hv", "did you mean 'hf'"), ("--format=pickle", "known: hf, onnx")]
)
def test_an_unknown_format_is_one_line(run, tmp_path, monkeypatch, capsys, flag, words):
    status, printed = call(
        monkeypatch, capsys, "export.py", f"--ckpt={run / 'workdir'}", flag, f"--out={tmp_path / 'x'}"
    )
    assert status == 2 and words in printed.err and printed.err.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_a_refused_export_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exporting, "_FAULTS", {"hf": lambda parts: ["a part"]})
    arguments = (f"--ckpt={run / 'workdir'}", "--format=hf", f"--out={tmp_path / 'x'}")
    status, printed = call(monkeypatch, capsys, "export.py", *arguments)
    assert status == 2 and "no place for a part; --format=safetensors has" in printed.err
    assert not list(tmp_path.iterdir())
