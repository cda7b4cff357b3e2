"""Vision Transformers as timm names them; Meta's own files of DINO and DINOv2 use the same names."""

import dataclasses
import re
from collections.abc import Callable

from agriclip_jax.encoders import vit
from agriclip_jax.weights import dino, siglip
from agriclip_jax.weights.family import (
    HEAD_WIDTHS,
    IMAGENET,
    Family,
    Settings,
    Shapes,
    Tower,
    attention,
    square,
    stack,
)
from agriclip_jax.weights.names import Row, blocks, dense, norm, patch

Rows = tuple[Row, ...]

# Those of its SigLIP towers that compute the approximation of GELU with which all were trained; others the exact one.
TANH = re.compile(r"vit_(base_patch32_siglip|large_patch16_siglip_512|(so400m|giantopt)_patch16_siglip)_?")

_LAYER = "blocks.{}."
_FC = ("mlp.fc1", "mlp.fc2")
_SCALES = ("ls1.gamma", "ls2.gamma")
_KERNEL, _BIAS = "blocks/attention/qkv/kernel", "blocks/attention/qkv/bias"
_OUT = f"{_LAYER}attn.proj"
_QKV = attention(f"{_LAYER}attn.qkv", out=_OUT)


def _stack(mlp: tuple[str | tuple[str, ...], str] = _FC, scales: tuple[str, ...] = (), qkv: list[Row] = _QKV) -> Rows:
    return (
        *patch("patch_embed.proj"),
        *blocks(_LAYER, norms=("norm1", "norm2"), attention=qkv, mlp=mlp),
        *(Row((f"blocks/scale{i}",), (_LAYER + name,)) for i, name in enumerate(scales, 1)),
        *norm("norm", "norm"),
    )


_CLASS = Row(("cls",), ("cls_token",), "batch_of_one")
_PLACES = Row(("positions",), ("pos_embed",), "batch_of_one")
_CLASS_AND_PLACES = Row(("cls", "positions"), ("cls_token", "pos_embed"), "class_and_positions_of_one")
_REGISTERS = Row(("registers",), ("reg_token",), "batch_of_one")
_REGISTERS_OF_META = Row(("registers",), ("register_tokens",), "batch_of_one", optional=True)
_POOL = (
    Row(("head/probe",), ("attn_pool.latent",), "batch_of_one"),
    *dense("head/query", "attn_pool.q"),
    *dense("head/key_value", "attn_pool.kv"),
    *dense("head/out", "attn_pool.proj"),
    *norm("head/norm", "attn_pool.norm"),
    *dense("head/mlp/up", "attn_pool.mlp.fc1"),
    *dense("head/mlp/down", "attn_pool.mlp.fc2"),
)
SIGLIP = (_PLACES, *_stack(), *_POOL)


def _dinov3(gated: bool, bias: bool) -> Rows:
    """Queries and values have a bias in the models whose names end in "qkvb"; without, timm stores none."""
    qkv = [Row((_KERNEL, _BIAS), (f"{_LAYER}attn.qkv.weight",), "without_bias")]
    if bias:
        biases = (f"{_LAYER}attn.q_bias", f"{_LAYER}attn.v_bias")
        qkv = [Row((_KERNEL,), (f"{_LAYER}attn.qkv.weight",), "dense"), Row((_BIAS,), biases, "query_and_value")]
    mlp = (("mlp.fc1_g", "mlp.fc1_x"), "mlp.fc2") if gated else _FC
    return (_CLASS, _REGISTERS, *_stack(mlp, ("gamma_1", "gamma_2"), [*qkv, *dense("blocks/attention/out", _OUT)]))


def _configure(rows: Rows) -> Callable[[Shapes, Settings], dict[str, Tower]]:
    """What configures DINO and DINOv2; a gate shows in the width of the first layer of the MLP."""
    theirs = {row.ours: row.theirs for row in rows}
    (up,) = theirs["blocks/mlp/up/kernel",]
    (registers,) = theirs.get(("registers",), ("",))

    def configure(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        _, _, _, side = shapes["patch_embed.proj.weight"]
        _, places, _ = shapes["pos_embed"]
        _, count, _ = shapes.get(registers, (1, 0, 0))
        stacked = stack(shapes, rows)
        if shapes[up.replace("{}", "0")][0] == 2 * stacked.mlp:
            stacked = dataclasses.replace(stacked, activation="swiglu")
        size = side * square(places - (_CLASS_AND_PLACES in rows))
        return {"image": vit.ViTConfig(stacked, side, size, 0, registers=count, **IMAGENET)}

    return configure


def _configure_siglip(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
    _, _, _, side = shapes["patch_embed.proj.weight"]
    _, places, _ = shapes["pos_embed"]
    activation = "gelu_tanh" if TANH.match(settings.get("architecture") or "") else "gelu"
    stacked = stack(shapes, SIGLIP, widths=HEAD_WIDTHS | {1536: 96}, activation=activation)
    return {"image": siglip.image_tower(stacked, side, square(places))}


def _configure_dinov3(rows: Rows, gated: bool) -> Callable[[Shapes, Settings], dict[str, Tower]]:
    activation = "swiglu" if gated else "gelu"

    def configure(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        _, _, _, side = shapes["patch_embed.proj.weight"]
        _, count, _ = shapes["reg_token"]
        size = settings.get("image_size", 256)
        stacked = stack(shapes, rows, widths={4096: 128}, activation=activation, norm_eps=1e-5)
        return {"image": vit.ViTConfig(stacked, side, size, 0, registers=count, rotary_base=100.0, **IMAGENET)}

    return configure


def _families() -> dict[str, Family]:
    v1 = (_CLASS_AND_PLACES, *_stack())
    v2 = (_CLASS_AND_PLACES, _REGISTERS_OF_META, *_stack(_FC, _SCALES))
    v2_of_meta = (_CLASS_AND_PLACES, _REGISTERS_OF_META, *_stack(("mlp.w12", "mlp.w3"), _SCALES))
    v2_registers = (_CLASS, _PLACES, _REGISTERS, *_stack(_FC, _SCALES))
    scale = f"blocks.0.{_SCALES[0]}"
    found = {
        "siglip (timm)": (SIGLIP, _configure_siglip, "attn_pool.latent", "pos_embed"),
        "dinov2 with registers (timm)": (v2_registers, _configure(v2_registers), "reg_token", "pos_embed", scale),
        "dinov2 gated (meta)": (v2_of_meta, _configure(v2_of_meta), "blocks.0.mlp.w12.weight", "pos_embed"),
        "dinov2 (meta, timm)": (v2, _configure(v2), scale, "pos_embed"),
        "dino (meta, timm)": (v1, _configure(v1), "blocks.0.attn.qkv.weight", "pos_embed"),
    }
    for bias in (True, False):
        for gated in (True, False):
            rows = _dinov3(gated, bias)
            signs = {"blocks.0.attn.q_bias": bias, "blocks.0.mlp.fc1_g.weight": gated}
            name = f"dinov3{' gated' * gated}{' qkvb' * bias} (timm)"
            told_by = ("blocks.0.gamma_1", "reg_token", *(sign for sign, there in signs.items() if there))
            found[name] = (rows, _configure_dinov3(rows, gated), *told_by)
    return {
        name: Family(tuple(told_by), {"image": rows}, (), dino.IGNORED, configure)
        for name, (rows, configure, *told_by) in found.items()
    }


FAMILIES = _families()
