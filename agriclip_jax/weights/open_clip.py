"""CLIP as OpenAI and open_clip name it: two image towers of its own and those of timm, with a text tower apart or not.

Images and texts are named independently of one another, so most families here are of one tower.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from agriclip_jax.encoders import resnet
from agriclip_jax.errors import UserError
from agriclip_jax.weights import clip, names, resnets, siglip, timm
from agriclip_jax.weights.family import Family, Settings, Shapes, Tower, joined, square, stack, within
from agriclip_jax.weights.names import Row, blocks, dense, norm, patch


def _blocks(layer: str) -> list[Row]:
    scales = [Row((f"blocks/scale{i}",), (f"{layer}ls_{i}.gamma",), optional=True) for i in (1, 2)]
    return scales + blocks(
        layer,
        norms=("ln_1", "ln_2"),
        attention=[
            Row(("blocks/attention/qkv/kernel",), (f"{layer}attn.in_proj_weight",), "dense"),
            Row(("blocks/attention/qkv/bias",), (f"{layer}attn.in_proj_bias",)),
            *dense("blocks/attention/out", f"{layer}attn.out_proj"),
        ],
        mlp=("mlp.c_fc", "mlp.c_proj"),
    )


_POOL = "visual.attnpool."
VIT = (
    *patch("visual.conv1"),
    Row(("cls", "positions"), ("visual.class_embedding", "visual.positional_embedding"), "class_and_positions"),
    Row(("norm_pre/scale", "norm_pre/bias"), ("visual.ln_pre.weight", "visual.ln_pre.bias"), optional=True),
    *_blocks("visual.transformer.resblocks.{}."),
    *norm("norm", "visual.ln_post"),
    Row(("projection/kernel",), ("visual.proj",)),
)
RESNET = (
    *resnets.rows("visual.", stem=3),
    Row(("head/positions",), (f"{_POOL}positional_embedding",)),
    *(row for x in ("query", "key", "value") for row in dense(f"head/{x}", f"{_POOL}{x[0]}_proj")),
    *dense("projection", f"{_POOL}c_proj"),
)
_WORDS = (
    Row(("tokens",), ("token_embedding.weight",)),
    Row(("positions",), ("positional_embedding",)),
    *_blocks("transformer.resblocks.{}."),
    *norm("norm", "ln_final"),
)
TEXT = (*_WORDS, Row(("projection/kernel",), ("text_projection",)))
TEXT_OF_SIGLIP = (*_WORDS, *dense("projection", "text_projection"))
SCALE = tuple(Row((name,), (name,), optional=True) for name in ("logit_scale", "logit_bias"))

# What a text tower pools: theirs to ours.
TRUNK_POOLS = {"cls": "token", "attention": "map", "mean": "avg"}  # ours: timm's
TEXT_POOLS = {"argmax": "end", "eos": "end", "last": "last"}


# What a configuration says of SigLIP's text towers; one without any is taken to be such when its projection has a bias.
SIGLIP_TEXT_CFG = {
    "pool_type": "last",
    "no_causal_mask": True,
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
}


def _said(quick_gelu: bool, part: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says of a stack."""
    tanh = (part.get("act_kwargs") or {}).get("approximate") == "tanh"
    return {
        "activation": "quick_gelu" if quick_gelu else "gelu_tanh" if tanh else "gelu",
        "norm_eps": (part.get("norm_kwargs") or {}).get("eps", 1e-5),
    }


def _vit(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
    vision = settings.get("vision_cfg", {})
    if (pool := vision.get("pool_type", "tok")) != "tok":
        raise UserError(f"its image tower pools by {pool!r}; of those with a class token only 'tok' has a place here")
    places, width = shapes["visual.positional_embedding"]
    heads = width // vision["head_width"] if "head_width" in vision else 0
    # OpenAI's own files, which come without a configuration, need quick GELU.
    stacked = stack(shapes, VIT, heads=heads, **_said(settings.get("quick_gelu", True), vision))
    _, embed_dim = shapes["visual.proj"]
    image = clip.image_tower(stacked, shapes["visual.conv1.weight"], places, embed_dim)
    return {"image": dataclasses.replace(image, pre_norm="visual.ln_pre.weight" in shapes)}


def _resnet(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
    places, features = shapes[f"{_POOL}positional_embedding"]
    embed_dim, _ = shapes[f"{_POOL}c_proj.weight"]
    width, _, _, _ = shapes["visual.conv3.weight"]
    heads = features // settings.get("vision_cfg", {}).get("head_width", 64)
    size = resnet.STRIDE * square(places - 1)
    return {"image": resnet.ResNetConfig(resnets.stages(shapes, "visual."), width, heads, size, embed_dim)}


def _text(rows: tuple[Row, ...]) -> Callable[[Shapes, Settings], dict[str, Tower]]:
    """What configures a text tower."""
    biased = rows is TEXT_OF_SIGLIP

    def configure(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        words = settings.get("text_cfg", {}) if settings or not biased else SIGLIP_TEXT_CFG
        pool, causal = words.get("pool_type", "argmax"), not words.get("no_causal_mask", False)
        if pool not in TEXT_POOLS or not (causal or pool == "last"):
            unmasked = "" if causal else " without a causal mask"
            raise UserError(f"its text tower pools by {pool!r}{unmasked}, for which there is no place here")
        said = _said(settings.get("quick_gelu", not biased), words)
        stacked = stack(shapes, rows, heads=words.get("heads", 0), widths={1152: 72}, **said)
        embed_dim = shapes["text_projection.weight"][0] if biased else shapes["text_projection"][1]
        build = siglip.text_tower if pool == "last" else clip.text_tower
        length, _ = shapes["positional_embedding"]
        tower = build(stacked, shapes["token_embedding.weight"], length, embed_dim)
        end = words.get("eos_id", 2) if pool == "eos" else tower.end_id
        return {"text": dataclasses.replace(tower, causal=causal, end_id=end, projection_bias=biased)}

    return configure


def _trunk(family: Family) -> Family:
    """An image tower of timm's, with a linear head on it or without."""
    inner = within("visual.trunk.", family._replace(ignored=resnets.COUNTERS))
    kernel, bias = names.optional(dense("projection", "visual.head.proj"))

    def configure(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        vision = settings.get("vision_cfg", {})
        said = {"architecture": vision.get("timm_model_name"), "image_size": vision.get("image_size", 224)}
        image = inner.configure(shapes, said)["image"]
        pool = TRUNK_POOLS[image.pool]
        if vision and (theirs := vision.get("timm_pool", "avg")) != pool:
            raise UserError(f"its image tower pools by {theirs!r}; such a trunk has a place here only with {pool!r}")
        embed_dim, *_ = shapes.get(kernel.theirs[0], (0,))
        projected = {"embed_dim": embed_dim, "projection_bias": bias.theirs[0] in shapes}
        return {"image": dataclasses.replace(image, **projected)}

    return inner._replace(towers={"image": (*inner.towers["image"], kernel, bias)}, configure=configure)


def _families() -> dict[str, Family]:
    vit = Family(("visual.class_embedding",), {"image": VIT}, (), "", _vit)
    cnn = Family(("visual.layer1.0.conv1.weight",), {"image": RESNET}, (), resnets.COUNTERS, _resnet)
    text = Family(("text_projection", "token_embedding.weight"), {"text": TEXT}, SCALE, "attn_mask", _text(TEXT))
    of_siglip = Family(
        ("text_projection.weight", "token_embedding.weight"),
        {"text": TEXT_OF_SIGLIP},
        SCALE,
        "attn_mask",
        _text(TEXT_OF_SIGLIP),
    )
    apart = {
        f"{name} apart (open_clip)": within("text.", family)._replace(scale=SCALE)
        for name, family in (("text", text), ("siglip text", of_siglip))
    }
    trunks = {
        f"{name.split(' (')[0]} trunk (open_clip)": _trunk(family)
        for name, family in (timm.FAMILIES | resnets.FAMILIES).items()
        if "meta)" not in name
    }
    return {
        "clip (openai, open_clip)": joined(vit, text),
        "clip resnet (openai, open_clip)": joined(cnn, text),
        "clip image (open_clip)": vit,
        "clip resnet image (open_clip)": cnn,
        **trunks,
        "text (open_clip)": text,
        "siglip text (open_clip)": of_siglip,
        **apart,
    }


FAMILIES = _families()
