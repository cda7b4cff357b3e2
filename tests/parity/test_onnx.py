"""A model leaves as ONNX: onnxruntime gives our embeddings, and the small variants nearly those."""

import collections
import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from colour_model import photos

from agriclip_jax import encoders, inference, rules
from agriclip_jax.data import views
from agriclip_jax.encoders import layers, resnet, text, vit
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.weights import onnx as exports
from agriclip_jax.weights import standalone
from agriclip_jax.weights.standalone import Tower

pytestmark = pytest.mark.parity
pytest.importorskip("jax2onnx")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SMALL = layers.BlockConfig(width=32, depth=3, heads=2, mlp=64)
IMAGES = {
    "CLIP": vit.ViTConfig(layers.BlockConfig(32, 3, 2, 64, "quick_gelu"), 8, 32, 24, pre_norm=True, patch_bias=False),
    "SigLIP": vit.ViTConfig(layers.BlockConfig(32, 2, 2, 64, "gelu_tanh"), 8, 32, 0, pool="attention"),
    "registers and LayerScale": vit.ViTConfig(
        layers.BlockConfig(32, 2, 2, 64, layer_scale=0.1), 8, 32, 24, projection_bias=True, registers=3
    ),
    "rotary and gated": vit.ViTConfig(
        layers.BlockConfig(32, 2, 2, 64, "swiglu"), 8, 32, 24, pool="mean", rotary_base=100.0
    ),
    "trained in bfloat16": vit.ViTConfig(
        layers.BlockConfig(32, 2, 2, 64, dtype="bfloat16", remat="nothing_saveable", drop_path=0.2, unroll=2), 8, 32, 24
    ),
    "CLIP's ResNet": resnet.ResNetConfig((1, 2, 1, 1), width=8, heads=4, image_size=32, embed_dim=24),
}
TEXTS = {
    "CLIP": text.TextConfig(SMALL, 300, 12, 299, 24),
    "SigLIP": text.TextConfig(SMALL, 300, 12, 1, 24, causal=False, pool="last", projection_bias=True),
    "mean": text.TextConfig(SMALL, 300, 12, 299, 24, causal=False, pool="mean"),
}


def tower(config, seed=0):
    """A tower with random parameters, none of them zero or one."""
    network = encoders.tower(config)
    rng = np.random.default_rng(seed)
    params = {
        path: np.asarray(x) * rng.uniform(0.8, 1.2, x.shape).astype(np.float32)
        + (0.02 * rng.standard_normal(x.shape)).astype(np.float32) * (not path.endswith("norm/var"))
        for path, x in rules.flatten(network.init(jax.random.key(seed))).items()
    }
    is_text = isinstance(config, text.TextConfig)
    row = ((config.context_length,), np.int32) if is_text else ((32, 32, 3), np.uint8)
    return exports.plain(Tower(network, params, jax.ShapeDtypeStruct(*row)))


def rows(config, count):
    rng = np.random.default_rng(count)
    if not isinstance(config, text.TextConfig):
        return rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    tokens = rng.integers(2, 299, (count, 12), np.int32)
    return np.where(np.arange(12) < rng.integers(1, 12, (count, 1)), tokens, config.end_id).astype(np.int32)


def computed(path, given):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["embeddings"], {"rows": given})
    return found


def operators(path):
    model = onnx.load(path)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", exports.OPSET)]
    return collections.Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(c, id=f"image: {n}") for n, c in IMAGES.items()),
        *(pytest.param(c, id=f"text: {n}") for n, c in TEXTS.items()),
    ],
)
def test_every_kind_of_tower_is_computed_alike_for_any_number_of_rows(config, tmp_path):
    converted = tower(config)
    exports.convert(converted, tmp_path / "x.onnx")
    for count in (1, 5):
        given = rows(config, count)
        ours = np.asarray(converted.embed(converted.params, given))
        found = computed(tmp_path / "x.onnx", given)
        assert found.dtype == np.float32 and np.abs(ours - ours[:1]).max() >= 0.01 * (count > 1)
        np.testing.assert_allclose(found, ours, atol=1e-5)
    assert not {"Loop", "Scan", "If"} & operators(tmp_path / "x.onnx").keys(), "layers are unrolled"


def test_matrices_are_stored_apart_for_each_layer(tmp_path):
    exports.convert(tower(IMAGES["CLIP"]), tmp_path / "x.onnx")
    shapes = collections.Counter(tuple(array.dims) for array in onnx.load(tmp_path / "x.onnx").graph.initializer)
    assert shapes[32, 96] == shapes[32, 64] == shapes[64, 32] == 3 and not any(
        shape[0] == 3 for shape in shapes if len(shape) > 1
    )
    assert operators(tmp_path / "x.onnx")["LayerNormalization"] == 8, "in three blocks, before and after them"


def test_small_variants_stay_near_and_of_length_one_however_large_the_features(tmp_path):
    config = IMAGES["CLIP"]
    converted, given = tower(config), rows(config, 5)
    converted.params["projection/kernel"] = 3e3 * converted.params["projection/kernel"]  # lengths beyond 256
    exports.convert(converted, tmp_path / "x.onnx")
    exports.halve(tmp_path / "x.onnx", tmp_path / "half.onnx")
    exports.quantise(tmp_path / "x.onnx", tmp_path / "int8.onnx")
    ours = np.asarray(converted.embed(converted.params, given))
    for name, nearest in (("half", 0.9999), ("int8", 0.99)):
        found = computed(tmp_path / f"{name}.onnx", given)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
        assert nearest < (found * ours).sum(1).min() < 1 - 1e-9
    assert operators(tmp_path / "int8.onnx")["MatMulInteger"] >= 12
    kinds = {array.data_type for array in onnx.load(tmp_path / "half.onnx").graph.initializer if len(array.dims) == 2}
    assert kinds == {onnx.TensorProto.FLOAT16}


@pytest.fixture(scope="module")
def model(run):  # the one of tests/conftest.py
    return inference.load(run / "workdir")


def shares(model):
    """The score of a stand-in for tasks: how many of four colours' photos are nearest to their own."""
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    _, embeddings = model.look(images)
    return {"first": float((embeddings @ model.embed_texts(["red", "green"]).T).argmax(1).mean())}


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out, said = tmp_path_factory.mktemp("onnx"), []
    exports.write(model, out, said.append, shares)
    (out / "photo.jpg").write_bytes(photos("red", 1)[0])
    return out


def test_the_program_of_the_readme_runs_without_jax_and_gives_our_embeddings(model, folder):
    (program,) = [
        part.split("```")[0] for part in (folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    ]
    program = f"""
import sys
sys.modules |= dict.fromkeys(["agriclip_jax", "jax", "flax", "torch"])
{program}
import json
texts = embed("text", tokens(["A red  Apple &amp; more", "", "a green apple " * 20]))
print(json.dumps([embed("image", pixels("photo.jpg")[None]).tolist(), texts.tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images, texts = json.loads(done.stdout.splitlines()[-1])
    view = views.load_view((folder / "photo.jpg").read_bytes(), model.view)[None]
    np.testing.assert_allclose(images, model.embed_images(view), atol=1e-4)
    ours = model.embed_texts(["A red  Apple &amp; more", "", "a green apple " * 20])
    np.testing.assert_allclose(texts, ours, atol=1e-4)


def test_the_record_and_the_table_say_what_each_variant_costs(model, folder):
    record = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
    for variant, suffix in exports.VARIANTS.items():
        said = record["variants"][variant]
        for name in ("image", "text"):
            assert said["bytes"][name] == (folder / f"{name}{suffix}.onnx").stat().st_size
            assert said["milliseconds"][name] > 0 and said["cosine"][name] > 0.98
        assert said["top1"] == shares(exports.load(model, folder, variant))
    whole, half = (record["variants"][variant] for variant in ("fp32", "fp16"))
    assert max(whole["difference"].values()) < 1e-5 < min(half["difference"].values())
    assert whole["bytes"]["text"] > half["bytes"]["text"]
    table = [line for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[1:]] == ["| fp32", "| fp16", "| int8"]
    assert f"{100 * whole['top1']['first']:.2f} %" in table[1]


def test_a_converter_that_computes_something_else_stops_the_export(model, folder, monkeypatch):
    towers = {name: exports.plain(tower) for name, tower in standalone.towers(model).items()}
    moved = towers["text"].params | {"norm/bias": towers["text"].params["norm/bias"] + 0.1}
    with pytest.raises(RunFailure, match="text tower differs from ours"):
        exports.measure(model, towers | {"text": towers["text"]._replace(params=moved)}, folder)


def test_a_tower_beyond_the_format_is_refused_in_one_line(model, tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"the image tower takes .* GiB.*--format=stablehlo"):
        exports.write(model, tmp_path, print)
    assert not list(tmp_path.iterdir())


def test_a_plain_resnet_is_refused_by_the_part_that_has_no_place(model, tmp_path):
    image = encoders.resnet_tower(dataclasses.replace(IMAGES["CLIP's ResNet"], stem="plain", pool="mean"))
    towers, params = model.towers | {"image": image}, model.params | {"image": image.init(jax.random.key(0))}
    with pytest.raises(UserError, match="the max pool of a plain ResNet; --format=stablehlo has"):
        exports.write(dataclasses.replace(model, towers=towers, params=params), tmp_path, print)


def test_a_missing_converter_is_one_line_with_the_command(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(UserError, match="needs jax2onnx; install them: pip install 'jax2onnx"):
        exports.write(model, tmp_path, print)
