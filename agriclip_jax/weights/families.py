"""The families of public towers: what tells each, its name map, and the configuration that its arrays ask for."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from agriclip_jax import encoders
from agriclip_jax.encoders import resnet, text, vit
from agriclip_jax.errors import UserError
from agriclip_jax.weights.names import Row, blocks, dense, norm, patch

Tower = vit.ViTConfig | resnet.ResNetConfig | text.TextConfig
Shapes = Mapping[str, tuple[int, ...]]  # of the arrays in a file, by name
Settings = Mapping[str, Any]  # what a configuration file beside it says; empty without one

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}  # of OpenCLIP's H, g and bigG; 64 of every other tower


class Family(NamedTuple):
    """One naming of one kind of model.

    Attributes:
      told_by: names that a file of this family has; no other family's file has all of them.
      towers: "image" and "text", where it has them: the rows of each, paths within the tower.
      scale: the row of `logit_scale`, where it has one.
      ignored: regular expression of whole names that need no row.
      configure: shapes and settings to the configuration of each tower.
    """

    told_by: tuple[str, ...]
    towers: Mapping[str, tuple[Row, ...]]
    scale: tuple[Row, ...]
    ignored: str
    configure: Callable[[Shapes, Settings], dict[str, Tower]]


def recognise(names: Collection[str], where: str) -> str:
    """The key in `FAMILIES` of a file with arrays of these names.

    Raises:
      UserError: they are of no family.
    """
    for name, family in FAMILIES.items():
        if all(told in names for told in family.told_by):
            return name
    some = ", ".join(sorted(names)[:3])
    raise UserError(f"{where} is of no known family (its arrays are {some}, ...); known: {', '.join(FAMILIES)}")


# ---- name maps -------------------------------------------------------------------------------------------------------


def _attention(*qkv: str, out: str) -> list[Row]:
    return [*dense("blocks/attention/qkv", *qkv), *dense("blocks/attention/out", out)]


def _transformers_blocks(prefix: str) -> list[Row]:
    layer = f"{prefix}.encoder.layers.{{}}."
    return blocks(
        layer,
        norms=("layer_norm1", "layer_norm2"),
        attention=_attention(*(f"{layer}self_attn.{x}_proj" for x in "qkv"), out=f"{layer}self_attn.out_proj"),
        mlp=("mlp.fc1", "mlp.fc2"),
    )


def _openai_blocks(layer: str) -> list[Row]:
    return blocks(
        layer,
        norms=("ln_1", "ln_2"),
        attention=[
            Row(("blocks/attention/qkv/kernel",), (f"{layer}attn.in_proj_weight",), "dense"),
            Row(("blocks/attention/qkv/bias",), (f"{layer}attn.in_proj_bias",)),
            *dense("blocks/attention/out", f"{layer}attn.out_proj"),
        ],
        mlp=("mlp.c_fc", "mlp.c_proj"),
    )


CLIP_IN_TRANSFORMERS = {
    "image": (
        *patch("vision_model.embeddings.patch_embedding"),
        Row(
            ("cls", "positions"),
            ("vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"),
            "class_and_positions",
        ),
        *norm("norm_pre", "vision_model.pre_layrnorm"),
        *_transformers_blocks("vision_model"),
        *norm("norm", "vision_model.post_layernorm"),
        *dense("projection", "visual_projection", bias=False),
    ),
    "text": (
        Row(("tokens",), ("text_model.embeddings.token_embedding.weight",)),
        Row(("positions",), ("text_model.embeddings.position_embedding.weight",)),
        *_transformers_blocks("text_model"),
        *norm("norm", "text_model.final_layer_norm"),
        *dense("projection", "text_projection", bias=False),
    ),
}

CLIP_OF_OPENAI = {
    "image": (
        *patch("visual.conv1"),
        Row(("cls", "positions"), ("visual.class_embedding", "visual.positional_embedding"), "class_and_positions"),
        *norm("norm_pre", "visual.ln_pre"),
        *_openai_blocks("visual.transformer.resblocks.{}."),
        *norm("norm", "visual.ln_post"),
        Row(("projection/kernel",), ("visual.proj",)),
    ),
    "text": (
        Row(("tokens",), ("token_embedding.weight",)),
        Row(("positions",), ("positional_embedding",)),
        *_openai_blocks("transformer.resblocks.{}."),
        *norm("norm", "ln_final"),
        Row(("projection/kernel",), ("text_projection",)),
    ),
}

_POOL = "vision_model.head."
SIGLIP_IN_TRANSFORMERS = {
    "image": (
        *patch("vision_model.embeddings.patch_embedding"),
        Row(("positions",), ("vision_model.embeddings.position_embedding.weight",)),
        *_transformers_blocks("vision_model"),
        *norm("norm", "vision_model.post_layernorm"),
        Row(("head/probe",), (f"{_POOL}probe",), "batch_of_one"),
        Row(
            ("head/query/kernel", "head/key_value/kernel"), (f"{_POOL}attention.in_proj_weight",), "query_and_key_value"
        ),
        Row(("head/query/bias", "head/key_value/bias"), (f"{_POOL}attention.in_proj_bias",), "query_and_key_value"),
        *dense("head/out", f"{_POOL}attention.out_proj"),
        *norm("head/norm", f"{_POOL}layernorm"),
        *dense("head/mlp/up", f"{_POOL}mlp.fc1"),
        *dense("head/mlp/down", f"{_POOL}mlp.fc2"),
    ),
    "text": (
        Row(("tokens",), ("text_model.embeddings.token_embedding.weight",)),
        Row(("positions",), ("text_model.embeddings.position_embedding.weight",)),
        *_transformers_blocks("text_model"),
        *norm("norm", "text_model.final_layer_norm"),
        *dense("projection", "text_model.head"),
    ),
}


def _dino_in_transformers(mlp: tuple[str, str], norms: tuple[str, str], scales: bool) -> dict[str, tuple[Row, ...]]:
    layer = "encoder.layer.{}."
    attention = _attention(
        *(f"{layer}attention.attention.{x}" for x in ("query", "key", "value")), out=f"{layer}attention.output.dense"
    )
    places = ("embeddings.cls_token", "embeddings.position_embeddings")
    return {
        "image": (
            *patch("embeddings.patch_embeddings.projection"),
            Row(("cls", "positions"), places, "class_and_positions_of_one"),
            Row(("registers",), ("embeddings.register_tokens",), "batch_of_one", optional=True),
            *blocks(layer, norms=norms, attention=attention, mlp=mlp),
            *(Row((f"blocks/scale{i}",), (f"{layer}layer_scale{i}.lambda1",)) for i in (1, 2) if scales),
            *norm("norm", "layernorm"),
        )
    }


def _dino_of_meta(mlp: tuple[str, str], scales: bool) -> dict[str, tuple[Row, ...]]:
    """Names of DINO's and DINOv2's own files, which are timm's too."""
    layer = "blocks.{}."
    return {
        "image": (
            *patch("patch_embed.proj"),
            Row(("cls", "positions"), ("cls_token", "pos_embed"), "class_and_positions_of_one"),
            Row(("registers",), ("register_tokens",), "batch_of_one", optional=True),
            *blocks(
                layer,
                norms=("norm1", "norm2"),
                attention=_attention(f"{layer}attn.qkv", out=f"{layer}attn.proj"),
                mlp=mlp,
            ),
            *(Row((f"blocks/scale{i}",), (f"{layer}ls{i}.gamma",)) for i in (1, 2) if scales),
            *norm("norm", "norm"),
        )
    }


def _dinov3_in_transformers(mlp: tuple[str | tuple[str, ...], str]) -> dict[str, tuple[Row, ...]]:
    layer = "layer.{}."
    attention = [
        Row(("blocks/attention/qkv/kernel",), tuple(f"{layer}attention.{x}_proj.weight" for x in "qkv"), "dense"),
        Row(("blocks/attention/qkv/bias",), tuple(f"{layer}attention.{x}_proj.bias" for x in "qv"), "query_and_value"),
        *dense("blocks/attention/out", f"{layer}attention.o_proj"),
    ]
    return {
        "image": (
            *patch("embeddings.patch_embeddings"),
            Row(("cls",), ("embeddings.cls_token",), "batch_of_one"),
            Row(("registers",), ("embeddings.register_tokens",), "batch_of_one"),
            *blocks(layer, norms=("norm1", "norm2"), attention=attention, mlp=mlp),
            *(Row((f"blocks/scale{i}",), (f"{layer}layer_scale{i}.lambda1",)) for i in (1, 2)),
            *norm("norm", "norm"),
        )
    }


def _resnet(prefix: str, stem: int) -> tuple[Row, ...]:
    """The stem of so many convolutions, and four stages, each a first block and others like one another."""

    def normed(ours: str, conv: str, norm: str, optional: bool = False) -> list[Row]:
        parts = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        return [
            Row((f"{ours}/conv/kernel",), (f"{conv}.weight",), "convolution", optional),
            *(Row((f"{ours}/norm/{a}",), (f"{norm}.{b}",), optional=optional) for a, b in parts.items()),
        ]

    rows = [row for i in range(stem) for row in normed(f"stem/{i}", f"{prefix}conv{i + 1}", f"{prefix}bn{i + 1}")]
    for stage in range(4):
        ours, theirs = f"stages/{stage}", f"{prefix}layer{stage + 1}"
        for i, part in enumerate(("reduce", "spatial", "expand"), 1):
            rows += normed(f"{ours}/first/{part}", f"{theirs}.0.conv{i}", f"{theirs}.0.bn{i}")
            rows += normed(f"{ours}/blocks/{part}", f"{theirs}.{{1}}.conv{i}", f"{theirs}.{{1}}.bn{i}", optional=True)
        rows += normed(f"{ours}/first/shortcut", f"{theirs}.0.downsample.0", f"{theirs}.0.downsample.1")
    return tuple(rows)


_ATTENTION_POOL = "visual.attnpool."
CLIP_RESNET = {
    "image": (
        *_resnet("visual.", stem=3),
        Row(("head/positions",), (f"{_ATTENTION_POOL}positional_embedding",)),
        *(row for x in ("query", "key", "value") for row in dense(f"head/{x}", f"{_ATTENTION_POOL}{x[0]}_proj")),
        *dense("projection", f"{_ATTENTION_POOL}c_proj"),
    ),
    "text": CLIP_OF_OPENAI["text"],
}
RESNET = {"image": _resnet("", stem=1)}


# ---- configurations --------------------------------------------------------------------------------------------------

ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def _stack(shapes: Shapes, rows: tuple[Row, ...], **said: Any) -> encoders.layers.BlockConfig:
    """The stack that the arrays of a tower make."""
    qkv = next(row for row in rows if row.ours[0] == "blocks/attention/qkv/kernel")
    down = next(row for row in rows if row.ours[0] == "blocks/mlp/down/kernel")
    depth = sum(qkv.theirs[0].replace("{}", str(i)) in shapes for i in range(len(shapes)))
    width, mlp = shapes[down.theirs[0].replace("{}", "0")]
    scaled = any(row.ours[0] == "blocks/scale1" for row in rows)
    said.setdefault("heads", width // HEAD_WIDTHS.get(width, 64))
    return encoders.layers.BlockConfig(width, depth, mlp=mlp, layer_scale=1.0 if scaled else 0.0, **said)


def _said(settings: Settings, heads: int, activation: str, eps: float) -> dict[str, Any]:
    """What a transformers configuration says of a stack; a saved one leaves out what is its class's default."""
    name = settings.get("hidden_act", activation)
    if name not in ACTIVATIONS:
        raise UserError(f"its activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    heads = settings.get("num_attention_heads", heads)
    return {"heads": heads, "activation": ACTIVATIONS[name], "norm_eps": settings.get("layer_norm_eps", eps)}


def _grid(places: int) -> int:
    grid = math.isqrt(places)
    if grid * grid != places:
        raise UserError(f"its {places} position embeddings are no square grid")
    return grid


def _clip_in_transformers(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    embed_dim, _ = shapes["visual_projection.weight"]
    vision, words = settings.get("vision_config", {}), settings.get("text_config", {})
    return {
        "image": _clip_image(
            _stack(shapes, CLIP_IN_TRANSFORMERS["image"], **_said(vision, 12, "quick_gelu", 1e-5)),
            shapes["vision_model.embeddings.patch_embedding.weight"],
            shapes["vision_model.embeddings.position_embedding.weight"],
            embed_dim,
        ),
        "text": _clip_text(
            _stack(shapes, CLIP_IN_TRANSFORMERS["text"], **_said(words, 8, "quick_gelu", 1e-5)),
            shapes["text_model.embeddings.token_embedding.weight"],
            shapes["text_model.embeddings.position_embedding.weight"],
            embed_dim,
        ),
    }


def _clip_of_openai(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    _, embed_dim = shapes["text_projection"]
    said = {"activation": _openai_activation(settings), "norm_eps": 1e-5}
    return {
        "image": _clip_image(
            _stack(shapes, CLIP_OF_OPENAI["image"], **said),
            shapes["visual.conv1.weight"],
            shapes["visual.positional_embedding"],
            embed_dim,
        ),
        "text": _clip_text(
            _stack(shapes, CLIP_OF_OPENAI["text"], **said),
            shapes["token_embedding.weight"],
            shapes["positional_embedding"],
            embed_dim,
        ),
    }


def _stages(shapes: Shapes, prefix: str) -> tuple[int, ...]:
    """Blocks of each stage of a ResNet."""
    return tuple(sum(f"{prefix}layer{n}.{i}.conv1.weight" in shapes for i in range(len(shapes))) for n in (1, 2, 3, 4))


def _clip_resnet(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    places, features = shapes[f"{_ATTENTION_POOL}positional_embedding"]
    embed_dim, _ = shapes[f"{_ATTENTION_POOL}c_proj.weight"]
    image = resnet.ResNetConfig(
        _stages(shapes, "visual."),
        width=shapes["visual.conv3.weight"][0],
        heads=features // 64,
        image_size=resnet.STRIDE * _grid(places - 1),
        embed_dim=embed_dim,
    )
    stack = _stack(shapes, CLIP_RESNET["text"], activation=_openai_activation(settings), norm_eps=1e-5)
    tokens, length = shapes["token_embedding.weight"], shapes["positional_embedding"]
    return {"image": image, "text": _clip_text(stack, tokens, length, embed_dim)}


def _torchvision_resnet(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    width, _, _, _ = shapes["conv1.weight"]
    plain = resnet.CONFIGS["ResNet50"]
    return {"image": dataclasses.replace(plain, layers=_stages(shapes, ""), width=width)}


def _openai_activation(settings: Settings) -> str:
    return "quick_gelu" if settings.get("quick_gelu", True) else "gelu"


def _clip_image(stack: Any, patch: tuple[int, ...], places: tuple[int, ...], embed_dim: int) -> vit.ViTConfig:
    side = patch[-1]
    size = side * _grid(places[0] - 1)
    return vit.ViTConfig(stack, side, size, embed_dim=embed_dim, pre_norm=True, patch_bias=False)


def _clip_text(stack: Any, tokens: tuple[int, ...], places: tuple[int, ...], embed_dim: int) -> text.TextConfig:
    # The end is the greatest id of CLIP's vocabulary; older configurations of transformers say another.
    return text.TextConfig(stack, tokens[0], places[0], end_id=tokens[0] - 1, embed_dim=embed_dim)


def _siglip_in_transformers(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    _, _, _, side = shapes["vision_model.embeddings.patch_embedding.weight"]
    places, _ = shapes["vision_model.embeddings.position_embedding.weight"]
    vocabulary, _ = shapes["text_model.embeddings.token_embedding.weight"]
    length, _ = shapes["text_model.embeddings.position_embedding.weight"]
    embed_dim, _ = shapes["text_model.head.weight"]
    vision, words = settings.get("vision_config", {}), settings.get("text_config", {})
    said = ("gelu_pytorch_tanh", 1e-6)
    return {
        "image": vit.ViTConfig(
            _stack(shapes, SIGLIP_IN_TRANSFORMERS["image"], **_said(vision, 12, *said)),
            patch=side,
            image_size=side * _grid(places),
            embed_dim=0,
            pool="attention",
            **HALF,
        ),
        "text": text.TextConfig(
            _stack(shapes, SIGLIP_IN_TRANSFORMERS["text"], **_said(words, 12, *said)),
            vocabulary,
            length,
            end_id=1,
            embed_dim=embed_dim,
            causal=False,
            pool="last",
            projection_bias=True,
        ),
    }


def _dino(
    rows: Mapping[str, tuple[Row, ...]],
    *,
    gated: bool = False,
    heads: int = 0,
    eps: float = 1e-6,
    rotary_base: float = 0.0,
) -> Callable[[Shapes, Settings], dict[str, Tower]]:
    """What configures a self-distilled image tower.

    Args:
      rows: its name map.
      gated: whether its MLP is SwiGLU.
      heads: what transformers' configuration leaves out when it is that; 0 where there is no configuration.
      eps: likewise, of the layer norms.
      rotary_base: as in `vit.ViTConfig`.
    """
    named = {row.ours[0]: row.theirs for row in rows["image"]}

    def configure(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        said = _said(settings, heads, "gelu", eps)
        if not heads:
            del said["heads"]
        if gated:
            said["activation"] = "swiglu"
        _, _, _, side = shapes[named["patch/kernel"][0]]
        registers = shapes.get(named["registers"][0], (1, 0))[1]
        size = settings.get("image_size", 224) if rotary_base else side * _grid(shapes[named["cls"][1]][1] - 1)
        stack = _stack(shapes, rows["image"], **said)
        config = vit.ViTConfig(stack, side, size, embed_dim=0, registers=registers, rotary_base=rotary_base, **IMAGENET)
        return {"image": config}

    return configure


def _silu_gated(rows: Mapping[str, tuple[Row, ...]]) -> Callable[[Shapes, Settings], dict[str, Any]]:
    """What configures a DINOv3 whose gate is SiLU; transformers' may be any other."""
    configure = _dino(rows, gated=True, heads=6, eps=1e-5, rotary_base=100.0)

    def checked(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        if (gate := settings.get("hidden_act", "gelu")) != "silu":
            raise UserError(f"its MLP is gated by {gate!r}, which no tower here is; of gates there is 'silu'")
        return configure(shapes, {**settings, "hidden_act": "gelu"})

    return checked


def _families() -> dict[str, Family]:
    fc, swiglu = ("mlp.fc1", "mlp.fc2"), ("mlp.weights_in", "mlp.weights_out")
    vit_names = _dino_in_transformers(
        ("intermediate.dense", "output.dense"), ("layernorm_before", "layernorm_after"), False
    )
    dinov2, dinov2_g = (_dino_in_transformers(mlp, ("norm1", "norm2"), True) for mlp in (fc, swiglu))
    meta, meta_v2, meta_g = (
        _dino_of_meta(fc, False),
        _dino_of_meta(fc, True),
        _dino_of_meta(("mlp.w12", "mlp.w3"), True),
    )
    dinov3 = _dinov3_in_transformers(("mlp.up_proj", "mlp.down_proj"))
    dinov3_gated = _dinov3_in_transformers((("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"))
    scale = (Row(("logit_scale",), ("logit_scale",)),)
    layer, head = "encoder.layer.0.", r"(pooler|classifier|head|fc)\..*|.*mask_token"
    counters = r".*num_batches_tracked"
    return {
        "clip (transformers)": Family(
            ("vision_model.pre_layrnorm.weight", "visual_projection.weight"),
            CLIP_IN_TRANSFORMERS,
            scale,
            r".*position_ids",
            _clip_in_transformers,
        ),
        "clip (openai, open_clip)": Family(
            ("visual.class_embedding", "text_projection"), CLIP_OF_OPENAI, scale, "attn_mask", _clip_of_openai
        ),
        "clip resnet (openai, open_clip)": Family(
            ("visual.layer1.0.conv1.weight", "text_projection"),
            CLIP_RESNET,
            scale,
            f"attn_mask|{counters}",
            _clip_resnet,
        ),
        "resnet (torchvision)": Family(
            ("layer1.0.conv1.weight", "conv1.weight"), RESNET, (), f"fc\\..*|{counters}", _torchvision_resnet
        ),
        "siglip (transformers)": Family(
            ("vision_model.head.probe", "text_model.head.weight"),
            SIGLIP_IN_TRANSFORMERS,
            (
                Row(("logit_scale",), ("logit_scale",), "batch_of_one"),
                Row(("logit_bias",), ("logit_bias",), "batch_of_one"),
            ),
            r".*position_ids",
            _siglip_in_transformers,
        ),
        "dino (transformers)": Family(
            (f"{layer}intermediate.dense.weight",), vit_names, (), head, _dino(vit_names, heads=12, eps=1e-12)
        ),
        "dinov2 (transformers)": Family(
            (f"{layer}layer_scale1.lambda1", f"{layer}mlp.fc1.weight"),
            dinov2,
            (),
            head,
            _dino(dinov2, heads=12),
        ),
        "dinov2 gated (transformers)": Family(
            (f"{layer}mlp.weights_in.weight",), dinov2_g, (), head, _dino(dinov2_g, gated=True, heads=12)
        ),
        "dinov3 gated (transformers)": Family(
            ("layer.0.mlp.gate_proj.weight",),
            dinov3_gated,
            (),
            head,
            _silu_gated(dinov3_gated),
        ),
        "dinov3 (transformers)": Family(
            ("layer.0.mlp.up_proj.weight", "layer.0.attention.o_proj.weight"),
            dinov3,
            (),
            head,
            _dino(dinov3, heads=6, eps=1e-5, rotary_base=100.0),
        ),
        "dinov2 gated (meta, timm)": Family(
            ("blocks.0.mlp.w12.weight", "pos_embed"), meta_g, (), head, _dino(meta_g, gated=True)
        ),
        "dinov2 (meta, timm)": Family(("blocks.0.ls1.gamma", "pos_embed"), meta_v2, (), head, _dino(meta_v2)),
        "dino (meta, timm)": Family(("blocks.0.attn.qkv.weight", "pos_embed"), meta, (), head, _dino(meta)),
    }


FAMILIES = _families()
