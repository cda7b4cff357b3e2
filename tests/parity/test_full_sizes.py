"""Name maps hold for the public models at their full sizes, name by name and shape by shape; no weight is made."""

import json

import pytest
from flax import nnx
from test_weight_families import WITHOUT_BIAS

from agriclip_jax import encoders, rules
from agriclip_jax.weights import families, names

pytestmark = pytest.mark.parity

# Configurations of transformers; those of Meta's DINOv3 are its conversion script's.
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
SO400M = {"hidden_size": 1152, "num_hidden_layers": 27, "num_attention_heads": 16, "intermediate_size": 4304}
GIANT = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24, "use_swiglu_ffn": True}
HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20, "intermediate_size": 5120}
LARGEST = {"hidden_size": 4096, "num_hidden_layers": 40, "num_attention_heads": 32, "intermediate_size": 8192}
L14_TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
V2 = {"image_size": 518, "patch_size": 14}
V3, GATED = {"num_register_tokens": 4}, {"num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu"}
IN_TRANSFORMERS = {
    "CLIP B/32": ("CLIP", {"vision_config": {"patch_size": 32}}),
    "CLIP B/16": ("CLIP", {"vision_config": {"patch_size": 16}}),
    "CLIP L/14": ("CLIP", {"vision_config": LARGE | {"patch_size": 14}, "text_config": L14_TEXT}),
    "CLIP L/14@336": (
        "CLIP",
        {"vision_config": LARGE | {"patch_size": 14, "image_size": 336}, "text_config": L14_TEXT},
    ),
    "SigLIP B/16": ("Siglip", {}),
    "SigLIP 2 So400m/14": (
        "Siglip",
        {"vision_config": SO400M | {"patch_size": 14}, "text_config": SO400M | {"vocab_size": 256_000}},
    ),
    "DINO S/8": ("ViT", SMALL | {"patch_size": 8}),
    "DINO S/16": ("ViT", SMALL),
    "DINO B/8": ("ViT", BASE | {"patch_size": 8}),
    "DINO B/16": ("ViT", BASE),
    "DINOv2 S": ("Dinov2", SMALL | V2),
    "DINOv2 B": ("Dinov2", BASE | V2),
    "DINOv2 L": ("Dinov2", LARGE | V2),
    "DINOv2 g": ("Dinov2", GIANT | V2),
    "DINOv2 S with registers": ("Dinov2WithRegisters", SMALL | V2),
    "DINOv2 B with registers": ("Dinov2WithRegisters", BASE | V2),
    "DINOv2 L with registers": ("Dinov2WithRegisters", LARGE | V2),
    "DINOv2 g with registers": ("Dinov2WithRegisters", GIANT | V2),
    "DINOv3 S": ("DINOv3ViT", SMALL | V3),
    "DINOv3 S+": ("DINOv3ViT", SMALL | GATED),
    "DINOv3 B": ("DINOv3ViT", BASE | V3),
    "DINOv3 L": ("DINOv3ViT", LARGE | V3),
    "DINOv3 H+": ("DINOv3ViT", HUGE | GATED),
    "DINOv3 7B": ("DINOv3ViT", LARGEST | GATED | WITHOUT_BIAS),
}
IN_OPEN_CLIP = (
    "ViT-B-32",
    "ViT-B-16",
    "ViT-L-14",
    "ViT-L-14-336",
    "ViT-H-14",
    "ViT-g-14",
    "ViT-bigG-14",
    "RN50",
    "RN101",
    "RN50x4",
    "ViT-B-16-SigLIP",
    "ViT-SO400M-14-SigLIP2",
)
IN_TIMM = {
    **{f"vit_{size}_patch{side}_224.dino": "dino (meta, timm)" for size in ("small", "base") for side in (8, 16)},
    **{f"vit_{size}_patch14_dinov2": "dinov2 (meta, timm)" for size in ("small", "base", "large", "giant")},
    **{
        f"vit_{size}_patch14_reg4_dinov2": "dinov2 with registers (timm)"
        for size in ("small", "base", "large", "giant")
    },
    **{f"vit_{size}_patch16_dinov3": "dinov3 (timm)" for size in ("small", "base", "large")},
    **{f"vit_{size}_patch16_dinov3_qkvb": "dinov3 qkvb (timm)" for size in ("small", "base", "large")},
    **{f"vit_{size}_patch16_dinov3": "dinov3 gated (timm)" for size in ("small_plus", "huge_plus", "7b")},
    **{f"vit_{size}_patch16_dinov3_qkvb": "dinov3 gated qkvb (timm)" for size in ("small_plus", "huge_plus")},
    "vit_base_patch16_siglip_224": "siglip (timm)",
    "vit_so400m_patch14_siglip_224": "siglip (timm)",
}


def fitting(tensors, settings):
    """Family and towers of an original without weights, after checking them name by name and shape by shape."""
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    key, family = families.recognise(theirs, "it")
    rows = [row for tower in family.towers.values() for row in tower]
    used = names.check([*rows, *family.scale], theirs, family.ignored, "it")
    wanted = {row.theirs[0]: theirs[row.theirs[0]] for row in family.scale if row.theirs[0] in theirs}
    towers = family.configure(theirs, settings)
    for tower, made in towers.items():
        leaves = rules.flatten(nnx.to_pure_dict(encoders.tower(made).shapes))
        wanted |= names.shapes(family.towers[tower], {path: leaf.shape for path, leaf in leaves.items()})
    assert wanted == {name: theirs[name] for name in used}
    return key, towers


def stack_of(config, heads, mlp):
    """Whether a tower has so many heads, and an MLP so wide."""
    return (config.blocks.heads, config.blocks.mlp) == (heads, mlp)


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_full_sizes_of_transformers(torch, name):
    transformers = pytest.importorskip("transformers")
    from transformers.core_model_loading import revert_weight_conversion  # to the names of files

    kind, options = IN_TRANSFORMERS[name]
    config = getattr(transformers, f"{kind}Config")(**options)
    with torch.device("meta"):
        theirs = getattr(transformers, f"{kind}Model")(config)
    settings = json.loads(config.to_json_string())
    _, towers = fitting(revert_weight_conversion(theirs, theirs.state_dict()), settings)
    for tower, part in (("image", "vision_config"), ("text", "text_config")):
        if tower in towers:
            said = getattr(config, part, config)
            mlp = 4096 if "use_swiglu_ffn" in options else said.intermediate_size
            assert stack_of(towers[tower], said.num_attention_heads, mlp)


@pytest.mark.parametrize("name", IN_OPEN_CLIP)
def test_full_sizes_of_open_clip(torch, name):
    open_clip = pytest.importorskip("open_clip")
    config = open_clip.get_model_config(name)
    options = {key: value for key, value in config.items() if key != "custom_text"}
    with torch.device("meta"):
        theirs = (open_clip.CustomTextCLIP if "custom_text" in config else open_clip.CLIP)(**options)
    _, towers = fitting(theirs.state_dict(), {"quick_gelu": False, **config})
    words = (theirs.text if "custom_text" in config else theirs).transformer.resblocks[0]
    assert stack_of(towers["text"], words.attn.num_heads, words.mlp.c_fc.out_features)
    if name.startswith("RN"):
        assert towers["image"].heads == theirs.visual.attnpool.num_heads
    elif "SigLIP" in name:
        block = theirs.visual.trunk.blocks[0]
        assert stack_of(towers["image"], block.attn.num_heads, block.mlp.fc1.out_features)
    else:
        block = theirs.visual.transformer.resblocks[0]
        assert stack_of(towers["image"], block.attn.num_heads, block.mlp.c_fc.out_features)


@pytest.mark.parametrize("name", IN_TIMM)
def test_full_sizes_of_timm(torch, name):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=0)
    family, towers = fitting(theirs.state_dict(), {"architecture": name})
    assert family == IN_TIMM[name]
    block = theirs.blocks[0]
    assert stack_of(towers["image"], block.attn.num_heads, block.mlp.fc2.in_features)
