"""A file that the original implementation saved, read by our name maps, gives the original's features and logits."""

import copy
import functools
import json
import types

import jax
import numpy as np
import originals
import pytest
from flax import nnx
from test_resnet_parity import made as made_resnet

from agriclip_jax import encoders, rules
from agriclip_jax.errors import UserError
from agriclip_jax.weights import importing, names

pytestmark = pytest.mark.parity

DEPTH = 2
BLOCKS = {"hidden_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
SQUARE = {"image_size": 32, "patch_size": 8}
VISION = BLOCKS | SQUARE | {"intermediate_size": 96}
WITHOUT_BIAS = {"query_bias": False, "value_bias": False, "hidden_act": "silu"}  # DINOv3's largest
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


@functools.partial(jax.jit, static_argnums=0)
def seen(network, params, images):
    """Pooled feature, patches and embedding of images."""
    found = network(params, images)
    return found.pooled, found.patches, network(params, found.pooled, method="embed")


@functools.partial(jax.jit, static_argnums=0)
def said(network, params, tokens):
    """Embedding of texts."""
    return network(params, network(params, tokens), method="embed")


def check_image(networks, params, images, wanted_pooled, wanted_patches, of):
    """Args: of: family, original and grid."""
    family, original, grid = of
    pooled, patches, _ = seen(networks["image"], params["image"], images)
    originals.agree(pooled, wanted_pooled, of=(family, original, f"image feature{grid}"))
    originals.agree(patches, wanted_patches, of=(family, original, f"image patches{grid}"))


def check_both(networks, params, images, tokens, z, t, logits, of, least_spread=0.1):
    """Args: z, t, logits: the original's; of: family, original and grid."""
    family, original, grid = of
    _, _, images = seen(networks["image"], params["image"], images)
    words = said(networks["text"], params["text"], tokens)
    ours = np.exp(params["logit_scale"]) * images @ words.T + params.get("logit_bias", 0.0)
    originals.agree(images, z, least_spread, of=(family, original, f"image embedding{grid}"))
    originals.agree(words, t, least_spread, of=None if grid else (family, original, "text embedding"))
    originals.agree(ours, logits, least_spread, of=(family, original, f"logits{grid}"))


def number_of_patches(images, patch=8):
    return images.shape[1] // patch * (images.shape[2] // patch)


def for_grid(torch, theirs, rows, columns):
    """A CLIP of open_clip for another grid, whose positions are what open_clip makes of them when it loads weights."""
    from open_clip.model import resize_pos_embed

    theirs = copy.deepcopy(theirs)
    part, name = getattr(theirs.visual, "attnpool", theirs.visual), "visual.positional_embedding"
    state = {name: part.positional_embedding.detach()}
    resize_pos_embed(state, types.SimpleNamespace(visual=types.SimpleNamespace(grid_size=(rows, columns))))
    part.positional_embedding = torch.nn.Parameter(state[name])
    return theirs


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_of_transformers(transformers, torch, grids, tmp_path, activation):
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
    agrees_with_transformers(torch, theirs, networks, params, grids, tokens, name)


def agrees_with_transformers(torch, theirs, networks, params, grids, tokens, name):
    for grid, images in grids.items():
        pixels = originals.pixels(images, networks["image"].config)
        with torch.no_grad():
            found = theirs(torch.tensor(tokens), pixels, interpolate_pos_encoding=True)
        wanted = found.image_embeds, found.text_embeds, found.logits_per_image
        check_both(networks, params, images, tokens, *wanted, of=(name, "transformers", grid))


def test_siglip_of_transformers(transformers, torch, grids, tmp_path):
    words = WORDS | {"bos_token_id": 97, "eos_token_id": 1, "pad_token_id": 1}
    theirs = originals.made(
        transformers.SiglipModel, transformers.SiglipConfig(vision_config=VISION, text_config=words)
    )
    name, networks, params = saved(theirs, tmp_path)
    assert name == "siglip (transformers)"
    tokens = np.random.default_rng(1).integers(2, 97, (3, 12))
    agrees_with_transformers(torch, theirs, networks, params, grids, tokens, name)


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
        (
            "DINOv3ViT",
            {"intermediate_size": 96, "num_register_tokens": 3, "use_gated_mlp": True} | WITHOUT_BIAS,
            "dinov3 gated without bias (transformers)",
        ),
    ],
)
def test_self_distilled_towers_of_transformers(transformers, torch, grids, tmp_path, kind, options, family):
    config = getattr(transformers, f"{kind}Config")(**BLOCKS, **SQUARE, **options)
    theirs = originals.made(getattr(transformers, f"{kind}Model"), config)
    name, networks, params = saved(theirs, tmp_path)
    assert name == family
    asked = {"interpolate_pos_encoding": True} if kind == "ViT" else {}  # the others do it unasked
    for grid, images in grids.items():
        with torch.no_grad():
            wanted = theirs(originals.pixels(images, networks["image"].config), **asked).last_hidden_state
        patches = wanted[:, -number_of_patches(images) :]
        check_image(networks, params, images, wanted[:, 0], patches, of=(name, "transformers", grid))


def test_a_gate_that_is_no_silu_is_refused(transformers, torch, tmp_path):
    config = transformers.DINOv3ViTConfig(**BLOCKS, **SQUARE, intermediate_size=96, use_gated_mlp=True)
    with pytest.raises(UserError, match="gated by 'gelu'"):
        saved(transformers.DINOv3ViTModel(config), tmp_path)


@pytest.mark.parametrize("name", ["vit_small_patch16_224.dino", "vit_small_patch14_dinov2.lvd142m"])
def test_self_distilled_towers_of_timm(torch, grids, tmp_path, name):
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": 64, "depth": DEPTH, "num_heads": 1, "img_size": 32, "patch_size": 8}
    theirs = originals.made(timm.create_model, name, num_classes=0, dynamic_img_size=True, **sizes)
    torch.save(theirs.state_dict(), tmp_path / "model.pth")
    family, networks, params = imported(tmp_path / "model.pth")
    agrees_with_timm(torch, theirs, networks, params, grids, family)


def agrees_with_timm(torch, theirs, networks, params, grids, family, original="timm"):
    """Args: theirs: made with `dynamic_img_size`."""
    for grid, images in grids.items():
        with torch.no_grad():
            wanted = theirs.forward_features(originals.pixels(images, networks["image"].config))
        patches = wanted[:, theirs.num_prefix_tokens :]
        check_image(networks, params, images, wanted[:, 0], patches, of=(family, original, grid))


@pytest.mark.parametrize(("kind", "quick_gelu"), [("folder", True), ("folder", False), ("file", True)])
def test_clip_of_open_clip(torch, grids, tmp_path, kind, quick_gelu):
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
    agrees_with_open_clip(torch, theirs, networks, params, grids, captions(), name)


def agrees_with_open_clip(torch, theirs, networks, params, grids, tokens, name, said="", patch=8):
    """Args: said: of the original, after its library's name."""
    config, resizes = networks["image"].config, not hasattr(theirs.visual, "trunk")
    for grid, images in grids.items():
        rows, columns = (side // patch for side in images.shape[1:3])
        theirs_here = for_grid(torch, theirs, rows, columns) if grid and resizes else theirs
        pixels = originals.pixels(images, config)
        with torch.no_grad():
            z = theirs_here.encode_image(pixels, normalize=True)
            t = theirs_here.encode_text(torch.tensor(tokens), normalize=True)
            logits, _ = theirs_here.get_logits(pixels, torch.tensor(tokens))
        how = f"open_clip{said}{' (resize_pos_embed)' if grid and resizes else ''}"
        check_both(networks, params, images, tokens, z, t, logits, of=(name, how, grid), least_spread=0.05)


def captions():
    """int64 [3, 12]: ids that end at 98, the greatest, with padding after it."""
    ids = np.random.default_rng(1).integers(1, 97, (3, 12))
    ids[0, 4:] = ids[1, 8:] = 0
    ids[0, 4] = ids[1, 8] = ids[2, 11] = 98
    return ids


@pytest.mark.parametrize("layers", [[2, 1, 3, 2], [1, 1, 1, 1]])
def test_clips_resnet_of_open_clip(torch, cells, tmp_path, layers):
    open_clip = pytest.importorskip("open_clip")
    theirs = made_resnet(
        torch,
        open_clip.CLIP,
        24,
        {"image_size": 64, "layers": layers, "width": 16, "head_width": 64},
        {"context_length": 12, "vocab_size": 99, "width": 64, "heads": 1, "layers": DEPTH},
        quick_gelu=True,
    )
    torch.save(theirs.state_dict(), tmp_path / "RN.pt")
    name, networks, params = imported(tmp_path / "RN.pt")
    assert name == "clip resnet (openai, open_clip)"
    agrees_with_open_clip(torch, theirs, networks, params, cells, captions(), name, patch=32)


def test_dinos_resnet_of_torchvision(torch, cells, tmp_path):
    models = pytest.importorskip("torchvision.models.resnet")
    theirs = made_resnet(torch, models.ResNet, models.Bottleneck, [1, 2, 1, 1])
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    name, networks, params = imported(tmp_path / "resnet.pth")
    assert name == "resnet (torchvision)" and networks["image"].config.layers == (1, 2, 1, 1)
    whole = torch.nn.Sequential(*list(theirs.children())[:-2]).eval()
    for grid, images in cells.items():
        with torch.no_grad():
            wanted = whole(originals.pixels(images, networks["image"].config)).flatten(2).transpose(1, 2)
        check_image(networks, params, images, wanted.mean(1), wanted, of=(name, "torchvision", grid))


def test_openais_archive_of_torchscript_with_half_precision(torch, grids, tmp_path):
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
    said = " in a TorchScript archive as OpenAI's"
    agrees_with_open_clip(torch, theirs, networks, params, grids, captions(), name, said)
