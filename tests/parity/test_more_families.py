"""Files of big_vision, timm, open_clip and AgriCLIP, read by our name maps, give the original's features and logits."""

import functools
import json
import re

import numpy as np
import originals
import pytest
from test_resnet_parity import made as made_resnet
from test_weight_families import (
    SQUARE,
    VISION,
    WORDS,
    agrees_with_open_clip,
    agrees_with_timm,
    captions,
    check_both,
    imported,
    seen,
)

from agriclip_jax import encoders
from agriclip_jax.errors import UserError
from agriclip_jax.weights import importing

pytestmark = pytest.mark.parity

SIZES = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32, "patch_size": 8}
CLIP_WORDS = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": 2}
SIGLIP_WORDS = CLIP_WORDS | {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}


@pytest.fixture(scope="module")
def timm(torch):
    return pytest.importorskip("timm")


@pytest.fixture(scope="module")
def open_clip(torch):
    return pytest.importorskip("open_clip")


@pytest.fixture
def small_timm(timm, monkeypatch):
    """timm's models at the width of a test, for what asks it for them by name."""
    sizes = {name: value for name, value in SIZES.items() if name != "img_size"} | {"dynamic_img_size": True}
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, **sizes, img_size=32))


# ---- big_vision ------------------------------------------------------------------------------------------------------


def as_big_vision(weights, heads, scanned):
    """SigLIP's arrays by their names in transformers, as big_vision names and shapes them.

    The inverse of transformers' conversion script, with the pooling head, which that script leaves to its reader.
    """
    arrays = {}

    def dense(ours, theirs):
        arrays[f"{ours}/kernel"], arrays[f"{ours}/bias"] = weights[f"{theirs}.weight"].T, weights[f"{theirs}.bias"]

    def norm(ours, theirs):
        arrays[f"{ours}/scale"], arrays[f"{ours}/bias"] = weights[f"{theirs}.weight"], weights[f"{theirs}.bias"]

    def attend(ours, kernels, biases, out):
        for name, kernel, bias in zip(("query", "key", "value"), kernels, biases, strict=True):
            arrays[f"{ours}/{name}/kernel"] = kernel.T.reshape(len(kernel), heads, -1)
            arrays[f"{ours}/{name}/bias"] = bias.reshape(heads, -1)
        kernel = weights[f"{out}.weight"].T
        arrays[f"{ours}/out/kernel"] = kernel.reshape(heads, -1, kernel.shape[-1])
        arrays[f"{ours}/out/bias"] = weights[f"{out}.bias"]

    for tower, stack, model in (("img", "Transformer", "vision_model"), ("txt", "Encoder_0", "text_model")):
        for i in range(2):
            ours, theirs = f"{tower}/{stack}/encoderblock_{i}", f"{model}.encoder.layers.{i}"
            parts = [[weights[f"{theirs}.self_attn.{x}_proj.{y}"] for x in "qkv"] for y in ("weight", "bias")]
            attend(f"{ours}/MultiHeadDotProductAttention_0", *parts, f"{theirs}.self_attn.out_proj")
            for j in (0, 1):
                norm(f"{ours}/LayerNorm_{j}", f"{theirs}.layer_norm{j + 1}")
                dense(f"{ours}/MlpBlock_0/Dense_{j}", f"{theirs}.mlp.fc{j + 1}")
    norm("img/Transformer/encoder_norm", "vision_model.post_layernorm")
    norm("txt/Encoder_0/encoder_norm", "text_model.final_layer_norm")
    arrays["img/embedding/kernel"] = weights["vision_model.embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)
    arrays["img/embedding/bias"] = weights["vision_model.embeddings.patch_embedding.bias"]
    arrays["img/pos_embedding"] = weights["vision_model.embeddings.position_embedding.weight"][None]
    arrays["txt/pos_embedding"] = weights["text_model.embeddings.position_embedding.weight"][None]
    arrays["txt/Embed_0/embedding"] = weights["text_model.embeddings.token_embedding.weight"]
    dense("txt/head", "text_model.head")
    head = "vision_model.head"
    arrays["img/MAPHead_0/probe"] = weights[f"{head}.probe"]
    parts = [np.split(weights[f"{head}.attention.in_proj_{y}"], 3) for y in ("weight", "bias")]
    attend("img/MAPHead_0/MultiHeadDotProductAttention_0", *parts, f"{head}.attention.out_proj")
    norm("img/MAPHead_0/LayerNorm_0", f"{head}.layernorm")
    for j in (0, 1):
        dense(f"img/MAPHead_0/MlpBlock_0/Dense_{j}", f"{head}.mlp.fc{j + 1}")
    arrays["t"], arrays["b"] = weights["logit_scale"], weights["logit_bias"]
    if scanned:
        layers = sorted(name for name in arrays if "encoderblock_0/" in name)
        for name in layers:
            each = [arrays.pop(name.replace("encoderblock_0/", f"encoderblock_{i}/")) for i in range(2)]
            arrays[name.replace("encoderblock_0/", "encoderblock/")] = np.stack(each)
    return arrays


@pytest.fixture(scope="module")
def siglip(torch):
    """Transformers' model, and its arrays as big_vision has them, by whether the stack is scanned."""
    transformers = pytest.importorskip("transformers")
    words = WORDS | {"bos_token_id": 97, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.SiglipConfig(vision_config=VISION, text_config=words)
    theirs = originals.made(transformers.SiglipModel, config)
    weights = originals.Weights(theirs.state_dict())
    arrays = {scanned: as_big_vision(weights, 4, scanned) for scanned in (False, True)}
    assert {name for name in weights.unread if "position_ids" not in name} == set()
    return theirs, arrays


@pytest.mark.parametrize(("scanned", "prefix"), [(False, "params/"), (True, "params/"), (True, "")])
def test_siglip_of_big_vision(torch, siglip, images, tmp_path, scanned, prefix):
    theirs, arrays = siglip
    np.savez(tmp_path / "siglip.npz", **{prefix + name: array for name, array in arrays[scanned].items()})
    name, networks, params = imported(tmp_path / "siglip.npz")
    assert name == "siglip (big_vision)" and networks["image"].config.blocks.heads == 4
    tokens = np.random.default_rng(1).integers(2, 97, (3, 12))
    with torch.no_grad():
        found = theirs(torch.tensor(tokens), originals.pixels(images, networks["image"].config))
    wanted = found.image_embeds, found.text_embeds, found.logits_per_image
    check_both(networks, params, images, tokens, *wanted, of=(name, "transformers under big_vision's names", ""))


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("prefix", ["params/img/", ""])
def test_an_image_tower_of_big_vision_that_timm_reads_too(timm, torch, siglip, grids, tmp_path, prefix, scanned):
    (_, every), path = siglip, tmp_path / "siglip.npz"
    arrays = {prefix + name[4:]: array for name, array in every[scanned].items() if name.startswith("img/")}
    others = {f"params/{name}": array for name, array in every[scanned].items() if not name.startswith("img/")}
    np.savez(path, **arrays, **(others if prefix else {}))
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 2, "img_size": 32, "patch_size": 8}
    options = {"num_classes": 0, "act_layer": "gelu_tanh", "dynamic_img_size": True}
    theirs = timm.create_model("vit_base_patch16_siglip_224", **sizes, **options).eval()
    theirs.load_pretrained(str(path))
    name, networks, params = imported(path)
    assert name == ("siglip (big_vision)" if prefix else "vit (big_vision)")
    pools_agree_with_timm(torch, theirs, networks, params, grids, name, "timm, which reads the same file")


def pools_agree_with_timm(torch, theirs, networks, params, grids, name, original="timm"):
    for grid, images in grids.items():
        pixels = originals.pixels(images, networks["image"].config)
        with torch.no_grad():
            patches, pooled = theirs.forward_features(pixels), theirs(pixels)
        found, found_patches, _ = seen(networks["image"], params["image"], images)
        originals.agree(found, pooled, of=(name, original, f"image feature{grid}"))
        originals.agree(found_patches, patches, of=(name, original, f"image patches{grid}"))


def test_a_tower_of_augreg_that_timm_reads_too(timm, torch, grids, tmp_path):
    rng = np.random.default_rng(0)
    patch = {"embedding/kernel": (8, 8, 3, 64), "embedding/bias": (64,)}
    places = {"cls": (1, 1, 64), "Transformer/posembed_input/pos_embedding": (1, 17, 64)}
    shapes = patch | places | {"head/kernel": (64, 10), "head/bias": (10,)}
    norms = ["Transformer/encoder_norm"]
    for i in range(2):
        block = f"Transformer/encoderblock_{i}"
        attention, mlp = f"{block}/MultiHeadDotProductAttention_1", f"{block}/MlpBlock_3"
        norms += [f"{block}/LayerNorm_0", f"{block}/LayerNorm_2"]
        for x in ("query", "key", "value"):
            shapes |= {f"{attention}/{x}/kernel": (64, 2, 32), f"{attention}/{x}/bias": (2, 32)}
        shapes |= {f"{attention}/out/kernel": (2, 32, 64), f"{attention}/out/bias": (64,)}
        shapes |= {f"{mlp}/Dense_0/kernel": (64, 256), f"{mlp}/Dense_0/bias": (256,)}
        shapes |= {f"{mlp}/Dense_1/kernel": (256, 64), f"{mlp}/Dense_1/bias": (64,)}
    shapes |= {f"{norm}/{x}": (64,) for norm in norms for x in ("scale", "bias")}
    arrays = {name: np.float32(0.15 * rng.standard_normal(shape)) for name, shape in shapes.items()}
    arrays |= {name: 1 + array for name, array in arrays.items() if name.endswith("/scale")}
    np.savez(tmp_path / "vit.npz", **arrays)
    sizes = SIZES | {"num_heads": 2, "act_layer": "gelu_tanh", "dynamic_img_size": True}
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0, **sizes).eval()
    theirs.load_pretrained(str(tmp_path / "vit.npz"))
    name, networks, params = imported(tmp_path / "vit.npz")
    assert name == "vit (augreg)" and networks["image"].config.blocks.heads == 2
    agrees_with_timm(torch, theirs, networks, params, grids, name, "timm, which reads the same file")


# ---- timm ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("vit_small_patch14_reg4_dinov2", "dinov2 with registers (timm)"),
        ("vit_giant_patch14_reg4_dinov2", "dinov2 with registers (timm)"),
        ("vit_giant_patch14_dinov2", "dinov2 (meta, timm)"),
        ("vit_small_patch16_dinov3", "dinov3 (timm)"),
        ("vit_small_patch16_dinov3_qkvb", "dinov3 qkvb (timm)"),
        ("vit_small_plus_patch16_dinov3", "dinov3 gated (timm)"),
        ("vit_small_plus_patch16_dinov3_qkvb", "dinov3 gated qkvb (timm)"),
    ],
)
def test_towers_of_timm_with_registers(timm, torch, grids, tmp_path, architecture, family):
    ratio = {"mlp_ratio": 4} if "giant" in architecture else {}  # whose own gives no even width here
    theirs = originals.made(timm.create_model, architecture, num_classes=0, dynamic_img_size=True, **SIZES, **ratio)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    name, networks, params = imported(tmp_path / "model.pth")
    assert name == family and networks["image"].config.registers == theirs.num_prefix_tokens - 1
    agrees_with_timm(torch, theirs, networks, params, grids, name)


def test_metas_gated_dinov2_under_its_own_names(timm, torch, grids, tmp_path):
    options = {"num_classes": 0, "mlp_ratio": 4, "dynamic_img_size": True}
    theirs = originals.made(timm.create_model, "vit_giant_patch14_dinov2", **SIZES, **options)
    names = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}  # which timm's reader turns around
    arrays = {re.sub(r"mlp\.fc\d", lambda m: names[m[0]], name): x for name, x in theirs.state_dict().items()}
    torch.save(arrays | {"mask_token": torch.zeros(1, 64)}, tmp_path / "model.pth")
    name, networks, params = imported(tmp_path / "model.pth")
    assert name == "dinov2 gated (meta)"
    agrees_with_timm(torch, theirs, networks, params, grids, name, "timm under Meta's names")


@pytest.mark.parametrize("architecture", ["vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256"])
def test_siglips_image_tower_of_timm_in_a_folder(timm, torch, grids, tmp_path, architecture):
    from safetensors.torch import save_file

    theirs = originals.made(timm.create_model, architecture, dynamic_img_size=True, **SIZES)
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    colours = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    said = {"architecture": architecture, "pretrained_cfg": colours}
    (tmp_path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    name, networks, params = imported(tmp_path)
    assert name == "siglip (timm)" and networks["image"].config.mean == (0.1, 0.2, 0.3)
    pools_agree_with_timm(torch, theirs, networks, params, grids, name)


# ---- open_clip -------------------------------------------------------------------------------------------------------


def in_folder(open_clip, torch, config, folder, *, custom=False, weights="safetensors", make=originals.made, **colours):
    """A model of open_clip in a folder that its own functions wrote, with the configuration that makes it."""
    from open_clip.push_to_hf_hub import save_config_for_hf
    from safetensors.torch import save_file

    made = {name: value for name, value in config.items() if name != "custom_text"}
    theirs = make(open_clip.CustomTextCLIP if custom else open_clip.CLIP, **made)
    theirs.visual.image_mean, theirs.visual.image_std = colours.get("mean"), colours.get("std")
    save_config_for_hf(theirs, folder / "open_clip_config.json", model_config=config)
    if weights == "safetensors":
        save_file(theirs.state_dict(), folder / "open_clip_model.safetensors")
    else:
        torch.save(theirs.state_dict(), folder / "open_clip_pytorch_model.bin")
    return theirs


WIDE = {"image_size": 32, "patch_size": 8, "layers": 2}


@pytest.mark.parametrize(
    ("vision", "heads", "weights"),
    [
        ({"width": 160, "head_width": 80, "mlp_ratio": 4.3637}, 2, "safetensors"),
        ({"width": 104, "head_width": 26, "mlp_ratio": 4.9231}, 4, "bin"),
        ({"width": 128}, 2, "safetensors"),
        ({"width": 128, "no_ln_pre": True}, 2, "bin"),
    ],
)
def test_heads_and_mlp_are_what_open_clips_configuration_says(
    open_clip, torch, grids, tmp_path, vision, heads, weights
):
    config = {"embed_dim": 24, "vision_cfg": WIDE | vision, "text_cfg": CLIP_WORDS | {"heads": 4}}
    colours = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    theirs = in_folder(open_clip, torch, config, tmp_path, weights=weights, **colours)
    name, networks, params = imported(tmp_path)
    image, words = networks["image"].config, networks["text"].config
    assert name == "clip (openai, open_clip)" and (image.mean, image.std) == tuple(colours.values())
    assert (image.blocks.heads, words.blocks.heads, image.blocks.activation) == (heads, 4, "gelu")
    agrees_with_open_clip(torch, theirs, networks, params, grids, captions(), name)


@pytest.mark.parametrize(
    ("width", "head_width", "ratio", "words"),
    [(1280, 80, 4.0, 1024), (1408, 88, 4.3637, 1024), (1664, 104, 4.9231, 1280)],
    ids=["H", "g", "bigG"],
)
def test_without_a_configuration_heads_are_those_of_the_size(
    open_clip, torch, tmp_path, width, head_width, ratio, words
):
    vision = WIDE | {"layers": 1, "width": width, "head_width": head_width, "mlp_ratio": ratio}
    text = CLIP_WORDS | {"layers": 1, "width": words, "heads": words // 64}
    theirs = open_clip.CLIP(24, vision, text, quick_gelu=True)
    torch.save(theirs.state_dict(), tmp_path / "epoch.pt")
    towers = importing.open_model(tmp_path / "epoch.pt").towers
    found = {name: tower.blocks for name, tower in towers.items()}
    assert (found["image"].heads, found["image"].mlp) == (16, int(width * ratio))
    assert found["text"].heads == words // 64


@pytest.mark.parametrize("words", [1152, 768])
def test_without_a_configuration_a_projection_with_a_bias_is_siglips(open_clip, small_timm, torch, tmp_path, words):
    trunk = {
        "image_size": 32,
        "timm_model_name": "vit_base_patch16_siglip_224",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    text = SIGLIP_WORDS | {"layers": 1, "width": words}
    torch.save(open_clip.CustomTextCLIP(64, trunk, text).state_dict(), tmp_path / "model.bin")
    tower = importing.open_model(tmp_path / "model.bin").towers["text"]
    assert (tower.pool, tower.causal, tower.blocks.heads) == ("last", False, {1152: 16, 768: 12}[words])
    assert (tower.blocks.activation, tower.blocks.norm_eps) == ("gelu_tanh", 1e-6)


@pytest.mark.parametrize("words", [{}, {"pool_type": "eos", "eos_id": 98}, {"pool_type": "last"}])
def test_a_text_tower_apart(open_clip, torch, grids, tmp_path, words):
    config = {"embed_dim": 24, "custom_text": True, "vision_cfg": WIDE | {"width": 128}, "text_cfg": CLIP_WORDS | words}
    theirs = in_folder(open_clip, torch, config, tmp_path, custom=True)
    name, networks, params = imported(tmp_path)
    assert name == "clip image (open_clip) + text apart (open_clip)"
    agrees_with_open_clip(torch, theirs, networks, params, grids, captions(), name)


def test_siglips_text_tower_that_is_not_apart(open_clip, torch, grids, tmp_path):
    config = {"embed_dim": 24, "vision_cfg": WIDE | {"width": 128}, "text_cfg": SIGLIP_WORDS}
    theirs = in_folder(open_clip, torch, config, tmp_path)
    name, networks, params = imported(tmp_path)
    assert name == "clip image (open_clip) + siglip text (open_clip)"
    agrees_with_open_clip(torch, theirs, networks, params, grids, captions(), name)


def test_clips_resnet_beside_a_text_tower_apart(open_clip, torch, cells, tmp_path):
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 64}
    config = {"embed_dim": 24, "custom_text": True, "vision_cfg": vision, "text_cfg": CLIP_WORDS}
    make = functools.partial(made_resnet, torch)
    theirs = in_folder(open_clip, torch, config, tmp_path, custom=True, make=make)
    name, networks, params = imported(tmp_path)
    assert name == "clip resnet image (open_clip) + text apart (open_clip)"
    agrees_with_open_clip(torch, theirs, networks, params, cells, captions(), name, patch=32)


def test_a_resnet_of_timm_as_a_trunk(open_clip, timm, torch, cells, tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "create_model", functools.partial(timm.create_model, layers=(1, 1, 2, 1)))
    trunk = {"image_size": 64, "timm_model_name": "resnet50", "timm_pool": "avg", "timm_proj": "linear"}
    config = {"embed_dim": 24, "vision_cfg": trunk, "text_cfg": CLIP_WORDS}
    theirs = in_folder(open_clip, torch, config, tmp_path, make=functools.partial(made_resnet, torch))
    name, networks, params = imported(tmp_path)
    assert name == "resnet trunk (open_clip) + text (open_clip)"
    agrees_with_open_clip(torch, theirs, networks, params, cells, captions(), name, patch=32)


@pytest.mark.parametrize(
    ("architecture", "act"),
    [
        ("vit_base_patch16_siglip_224", {}),
        ("vit_base_patch32_siglip_256", {"act_kwargs": {"approximate": "tanh"}}),
    ],
)
def test_siglip_on_a_trunk_of_timm(open_clip, small_timm, torch, grids, tmp_path, architecture, act):
    trunk = {"image_size": 32, "timm_model_name": architecture, "timm_pool": "map", "timm_proj": "none"}
    config = {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "vision_cfg": trunk}
    config["text_cfg"] = SIGLIP_WORDS | act
    half = (0.5, 0.5, 0.5)
    theirs = in_folder(open_clip, torch, config, tmp_path, custom=True, mean=half, std=half)
    name, networks, params = imported(tmp_path)
    assert name == "siglip trunk (open_clip) + siglip text apart (open_clip)"
    agrees_with_open_clip(torch, theirs, networks, params, grids, captions(), name)


@pytest.mark.parametrize(
    ("architecture", "family", "bias", "custom"),
    [
        ("vit_small_patch16_224.dino", "dino", True, True),
        ("vit_small_patch16_224.dino", "dino", False, False),
        ("vit_small_patch14_dinov2", "dinov2", True, False),
        ("vit_small_patch14_reg4_dinov2", "dinov2 with registers", False, True),
        ("vit_small_patch16_dinov3", "dinov3", True, True),
        ("vit_small_patch16_dinov3_qkvb", "dinov3 qkvb", False, False),
        ("vit_small_plus_patch16_dinov3", "dinov3 gated", True, False),
        ("vit_small_plus_patch16_dinov3_qkvb", "dinov3 gated qkvb", False, True),
    ],
)
def test_self_distilled_trunks_of_timm(
    open_clip, small_timm, torch, grids, tmp_path, architecture, family, bias, custom
):
    trunk = {"image_size": 32, "timm_model_name": architecture, "timm_pool": "token", "timm_proj": "linear"}
    config = {"embed_dim": 24, "vision_cfg": trunk | {"timm_proj_bias": bias}, "text_cfg": CLIP_WORDS}
    theirs = in_folder(open_clip, torch, config, tmp_path, custom=custom)
    name, networks, params = imported(tmp_path)
    assert name == f"{family} trunk (open_clip) + text{' apart' if custom else ''} (open_clip)"
    assert networks["image"].config.projection_bias == bias
    agrees_with_open_clip(torch, theirs, networks, params, grids, captions(), name)


@pytest.mark.parametrize(
    ("vision", "text", "words"),
    [
        ({"timm_model_name": "vit_small_patch14_dinov2"}, {}, "pools by 'avg'.*only with 'token'"),
        ({"width": 64, "layers": 2, "patch_size": 8, "pool_type": "avg"}, {}, "image tower pools by 'avg'"),
        ({"width": 64, "layers": 2, "patch_size": 8}, {"pool_type": "first"}, "text tower pools by 'first'"),
        ({"width": 64, "layers": 2, "patch_size": 8}, {"no_causal_mask": True}, "'argmax' without a causal mask"),
    ],
)
def test_a_pool_that_no_tower_has_is_refused(open_clip, small_timm, torch, tmp_path, vision, text, words):
    config = {"embed_dim": 24, "vision_cfg": {"image_size": 32} | vision, "text_cfg": CLIP_WORDS | text}
    in_folder(open_clip, torch, config, tmp_path)
    with pytest.raises(UserError, match=words):
        importing.open_model(tmp_path)


# ---- preprocessing and AgriCLIP --------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_what_transformers_preprocessing_says_of_colours_holds(torch, tmp_path, whole):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, **SQUARE)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    processor = transformers.BitImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    processor.save_pretrained(tmp_path)
    if whole:  # as a processor of several parts saves it
        said = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
        (tmp_path / "preprocessor_config.json").unlink()
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": said}), encoding="utf-8")
    image = importing.open_model(tmp_path).towers["image"]
    assert (image.mean, image.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_agriclips_release_with_its_bias_and_with_the_right_one(torch, cells, tmp_path):
    models = pytest.importorskip("torchvision.models.resnet")
    theirs = made_resnet(torch, models.ResNet, models.Bottleneck, [1, 1, 1, 1])
    torch.save(theirs.state_dict(), tmp_path / "dino.pth")
    rng = np.random.default_rng(0)
    features = np.abs(rng.standard_normal((50, 2048)) * 0.3)
    weight, offset = np.float32(0.05 * rng.standard_normal((16, 2048))), np.float32(rng.standard_normal(16))
    targets = features @ weight.T + offset
    # Between the scaled sides the fit is exact with these; then the release's last step.
    c1, c2 = (np.sqrt(4.5 / side.var()) for side in (features, targets))
    fitted_weight, fitted_bias = weight * c2 / c1, offset * c2
    kernel, bias = np.float32(fitted_weight * c1 / c2), np.float32(fitted_bias * c1 / c2)
    torch.save({"b": torch.tensor(bias), "W": torch.tensor(kernel)}, tmp_path / "aligner.pth")

    resnet = importing.open_model(tmp_path / "dino.pth")
    released = importing.with_aligner(resnet, tmp_path / "aligner.pth")
    projection = released.params("image")["projection"]
    np.testing.assert_array_equal(projection["kernel"], kernel.T)
    np.testing.assert_array_equal(projection["bias"], bias)

    right = importing.with_aligner(resnet, tmp_path / "aligner.pth", variance=features.var()).params("image")[
        "projection"
    ]
    np.testing.assert_allclose(right["bias"] * c1, bias, rtol=1e-5)
    np.testing.assert_allclose(features @ right["kernel"] + right["bias"], targets, atol=1e-4)
    assert np.abs(features @ kernel.T + bias - targets).max() > 0.5

    image = released.towers["image"]
    network, params = encoders.tower(image), released.params("image")
    theirs.fc = torch.nn.Identity()
    for grid, photos in cells.items():
        with torch.no_grad():
            aligned = theirs(originals.pixels(photos, image)) @ torch.tensor(kernel).T + torch.tensor(bias)
        wanted = torch.nn.functional.normalize(aligned, dim=-1)
        _, _, found = seen(network, params, photos)
        row = "AgriCLIP's release (agriclip)", "torchvision with W and b", f"image embedding{grid}"
        originals.agree(found, wanted, least_spread=0.05, of=row)
