"""A file that the original implementation saved, read by our name maps, gives the original's features and logits."""

import json

import jax
import numpy as np
import originals
import pytest
from flax import nnx

from agriclip_jax import encoders, rules
from agriclip_jax.errors import UserError
from agriclip_jax.weights import families, importing, names

pytestmark = pytest.mark.parity

DEPTH = 2
BLOCKS = {"hidden_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
SQUARE = {"image_size": 32, "patch_size": 8}
VISION = BLOCKS | SQUARE | {"intermediate_size": 96}
WORDS = BLOCKS | {"intermediate_size": 96, "vocab_size": 99, "max_position_embeddings": 12}


def imported(path):
    """Family, networks and parameters of a file or folder; what was read is written and read again on the way."""
    model = importing.open_model(path)
    networks, params = {}, {}
    for tower, config in model.towers.items():
        networks[tower] = encoders.tower(config)
        params[tower] = model.params(tower)
        wanted = jax.tree.map(np.shape, nnx.to_pure_dict(networks[tower].shapes))
        assert jax.tree.map(np.shape, params[tower]) == wanted
        rows, flat = model.tables[tower], rules.flatten(params[tower])
        written = dict(names.write(rows, flat))
        assert all(array.shape == model.container.tensors[name].shape for name, array in written.items())
        again = dict(names.read(rows, {name: (lambda array=array: array) for name, array in written.items()}))
        assert again.keys() == flat.keys() and all(np.array_equal(again[path], flat[path]) for path in flat)
    return model.family, networks, params | model.scale()


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers")


def saved(model, folder):
    model.save_pretrained(folder)
    return imported(folder)


def check_image(networks, params, images, wanted_pooled, wanted_patches=None):
    found = jax.jit(networks["image"])(params["image"], images)
    originals.agree(found.pooled, wanted_pooled)
    if wanted_patches is not None:
        originals.agree(found.patches, wanted_patches)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_of_transformers(transformers, torch, images, tmp_path, activation):
    act = {"hidden_act": activation}
    config = transformers.CLIPConfig(
        vision_config=VISION | act,
        text_config=WORDS | act | {"bos_token_id": 97, "eos_token_id": 98},
        projection_dim=24,
        logit_scale_init_value=2.0,
    )
    theirs = originals.made(transformers.CLIPModel, config)
    name, networks, params = saved(theirs, tmp_path)
    assert name == "clip (transformers)"
    tokens = np.random.default_rng(1).integers(1, 97, (3, 12))
    tokens[0, 4:] = tokens[1, 8:] = tokens[2, 11:] = 98
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens), originals.pixels(images, networks["image"].config))
    pooled = networks["image"](params["image"], images).pooled
    z = networks["image"](params["image"], pooled, method="embed")
    t = networks["text"](params["text"], networks["text"](params["text"], tokens), method="embed")
    originals.agree(z, wanted.image_embeds, least_spread=0.1)
    originals.agree(t, wanted.text_embeds, least_spread=0.1)
    originals.agree(np.exp(params["logit_scale"]) * z @ t.T, wanted.logits_per_image)


def test_siglip_of_transformers(transformers, torch, images, tmp_path):
    words = WORDS | {"bos_token_id": 97, "eos_token_id": 1, "pad_token_id": 1}
    theirs = originals.made(
        transformers.SiglipModel, transformers.SiglipConfig(vision_config=VISION, text_config=words)
    )
    name, networks, params = saved(theirs, tmp_path)
    assert name == "siglip (transformers)"
    tokens = np.random.default_rng(1).integers(2, 97, (3, 12))
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens), originals.pixels(images, networks["image"].config))
    z = networks["image"](params["image"], networks["image"](params["image"], images).pooled, method="embed")
    t = networks["text"](params["text"], networks["text"](params["text"], tokens), method="embed")
    originals.agree(z, wanted.image_embeds, least_spread=0.1)
    originals.agree(np.exp(params["logit_scale"]) * z @ t.T + params["logit_bias"], wanted.logits_per_image, 0.1)


@pytest.mark.parametrize(
    ("kind", "options", "family"),
    [
        ("ViT", {"intermediate_size": 192, "layer_norm_eps": 1e-6}, "dino (transformers)"),
        ("Dinov2", {"layerscale_value": 0.5}, "dinov2 (transformers)"),
        ("Dinov2", {"layerscale_value": 0.5, "use_swiglu_ffn": True}, "dinov2 gated (transformers)"),
        ("Dinov2WithRegisters", {"layerscale_value": 0.5, "num_register_tokens": 3}, "dinov2 (transformers)"),
        ("DINOv3ViT", {"intermediate_size": 96, "num_register_tokens": 3}, "dinov3 (transformers)"),
        (
            "DINOv3ViT",
            {"intermediate_size": 96, "num_register_tokens": 3, "use_gated_mlp": True, "hidden_act": "silu"},
            "dinov3 gated (transformers)",
        ),
    ],
)
def test_self_distilled_towers_of_transformers(transformers, torch, images, tmp_path, kind, options, family):
    config = getattr(transformers, f"{kind}Config")(**BLOCKS, **SQUARE, **options)
    theirs = originals.made(getattr(transformers, f"{kind}Model"), config)
    name, networks, params = saved(theirs, tmp_path)
    assert name == family
    with torch.no_grad():
        wanted = theirs(originals.pixels(images, networks["image"].config)).last_hidden_state
    check_image(networks, params, images, wanted[:, 0], wanted[:, -16:])


def test_a_gate_that_is_no_silu_is_refused(transformers, torch, tmp_path):
    config = transformers.DINOv3ViTConfig(**BLOCKS, **SQUARE, intermediate_size=96, use_gated_mlp=True)
    with pytest.raises(UserError, match="gated by 'gelu'"):
        saved(transformers.DINOv3ViTModel(config), tmp_path)


@pytest.mark.parametrize("name", ["vit_small_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m"])
def test_self_distilled_towers_of_timm(torch, images, tmp_path, name):
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": 64, "depth": DEPTH, "num_heads": 1, "img_size": 32, "patch_size": 8}
    theirs = originals.made(timm.create_model, name, num_classes=0, **sizes)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    _, networks, params = imported(tmp_path / "model.pth")
    with torch.no_grad():
        wanted = theirs.forward_features(originals.pixels(images, networks["image"].config))
    check_image(networks, params, images, wanted[:, 0], wanted[:, 1:])


@pytest.mark.parametrize(("kind", "quick_gelu"), [("folder", True), ("folder", False), ("file", True)])
def test_clip_of_open_clip(torch, images, tmp_path, kind, quick_gelu):
    from safetensors.torch import save_file

    open_clip = pytest.importorskip("open_clip")
    theirs = originals.made(
        open_clip.CLIP,
        24,
        {"image_size": 32, "patch_size": 8, "width": 128, "layers": DEPTH, "head_width": 64},
        {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": DEPTH},
        quick_gelu=quick_gelu,
    )
    if kind == "folder":
        settings = {"model_cfg": {"embed_dim": 24, "quick_gelu": quick_gelu}, "preprocess_cfg": {}}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
        save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
        path = tmp_path
    else:
        path = tmp_path / "model.pt"
        torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}, "epoch": 3}, path)
    name, networks, params = imported(path)
    assert name == "clip (openai, open_clip)"
    tokens = np.random.default_rng(1).integers(1, 97, (3, 12))
    tokens[0, 4:] = tokens[1, 8:] = 0
    tokens[0, 4] = tokens[1, 8] = tokens[2, 11] = 98
    with torch.no_grad():
        pixels = originals.pixels(images, networks["image"].config)
        z, t, scale = theirs(pixels, torch.tensor(tokens))[:3]
    ours = networks["image"](params["image"], networks["image"](params["image"], images).pooled, method="embed")
    words = networks["text"](params["text"], networks["text"](params["text"], tokens), method="embed")
    originals.agree(ours, z, least_spread=0.1)
    originals.agree(words, t, least_spread=0.1)
    originals.agree(np.exp(params["logit_scale"]) * ours @ words.T, scale * z @ t.T)


@pytest.mark.parametrize("layers", [[2, 1, 3, 2], [1, 1, 1, 1]])
def test_clips_resnet_of_open_clip(torch, images, tmp_path, layers):
    open_clip = pytest.importorskip("open_clip")
    theirs = originals.made(
        open_clip.CLIP,
        24,
        {"image_size": 64, "layers": layers, "width": 16, "head_width": 64},
        {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": DEPTH},
        quick_gelu=True,
    )
    torch.save(theirs.state_dict(), tmp_path / "RN.pt")
    name, networks, params = imported(tmp_path / "RN.pt")
    assert name == "clip resnet (openai, open_clip)"
    photos = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with torch.no_grad():
        z = theirs.encode_image(originals.pixels(photos, networks["image"].config), normalize=True)
    pooled = networks["image"](params["image"], photos).pooled
    originals.agree(networks["image"](params["image"], pooled, method="embed"), z, least_spread=0.1)


def test_dinos_resnet_of_torchvision(torch, tmp_path):
    models = pytest.importorskip("torchvision.models.resnet")
    theirs = originals.made(models.ResNet, models.Bottleneck, [1, 2, 1, 1])
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    name, networks, params = imported(tmp_path / "resnet.pth")
    assert name == "resnet (torchvision)" and networks["image"].config.layers == (1, 2, 1, 1)
    assert params["image"]["stem"]["0"]["norm"]["var"].shape == (64,)


def test_openais_archive_of_torchscript_with_half_precision(torch, images, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    sizes = {"image_size": 32, "patch_size": 8, "width": 128, "layers": DEPTH, "head_width": 64}
    words = {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": DEPTH}
    theirs = originals.made(open_clip.CLIP, 24, sizes, words, quick_gelu=True).half().float()  # as their files round
    half = {name: value.half() for name, value in theirs.state_dict().items()}

    class Named(torch.nn.Module):
        """The parameters by their names, in modules as an archive has them."""

        def __init__(self, tensors):
            super().__init__()
            deeper = {}
            for name, value in tensors.items():
                first, _, rest = name.partition(".")
                if rest:
                    deeper.setdefault(first, {})[rest] = value
                else:
                    self.register_parameter(first, torch.nn.Parameter(value, requires_grad=False))
            for first, inner in deeper.items():
                self.add_module(first, Named(inner))

        def forward(self, x):
            return x

    torch.jit.save(torch.jit.trace(Named(half), torch.zeros(1)), tmp_path / "ViT.pt")
    name, networks, params = imported(tmp_path / "ViT.pt")
    assert name == "clip (openai, open_clip)"
    with torch.no_grad():
        z = theirs.encode_image(originals.pixels(images, networks["image"].config), normalize=True)
    pooled = networks["image"](params["image"], images).pooled
    originals.agree(networks["image"](params["image"], pooled, method="embed"), z, least_spread=0.1)


FULL = {
    "clip-b16": ("CLIP", {"vision_config": {"patch_size": 16}}),
    "clip-l14": (
        "CLIP",
        {
            "vision_config": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "patch_size": 14,
            },
            "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            "projection_dim": 768,
        },
    ),
    "siglip2-so400m14": (
        "Siglip",
        {
            "vision_config": {
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "patch_size": 14,
                "image_size": 224,
            },
            "text_config": {
                "vocab_size": 256_000,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
            },
        },
    ),
}


@pytest.mark.parametrize("name", FULL)
def test_full_sizes_match_name_by_name_and_shape_by_shape(transformers, torch, name):
    kind, options = FULL[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    with torch.device("meta"):
        theirs = getattr(transformers, f"{kind}Model")(config)
    theirs_names = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    _, family = families.recognise(theirs_names, name)
    rows = [row for tower in family.towers.values() for row in tower]
    used = names.check([*rows, *family.scale], theirs_names, family.ignored, name)
    wanted = {row.theirs[0]: theirs_names[row.theirs[0]] for row in family.scale}
    for tower, made in family.configure(theirs_names, json.loads(config.to_json_string())).items():
        leaves = rules.flatten(nnx.to_pure_dict(encoders.tower(made).shapes))
        wanted |= names.shapes(family.towers[tower], {path: leaf.shape for path, leaf in leaves.items()})
    assert wanted == {name: theirs_names[name] for name in used}


def test_dinov2_giant_at_its_full_width(transformers, torch, tmp_path):
    # Two of its 40 layers: transformers gives the names of its files only to what it saves.
    sizes = {
        "hidden_size": 1536,
        "num_hidden_layers": 2,
        "num_attention_heads": 24,
        "image_size": 518,
        "patch_size": 14,
    }
    theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, use_swiglu_ffn=True))
    name, networks, _ = saved(theirs, tmp_path)
    assert name == "dinov2 gated (transformers)"
    assert networks["image"].config.blocks.mlp == 4096 and networks["image"].config.image_size == 518
