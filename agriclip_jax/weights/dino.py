"""Self-distilled image towers: DINO, DINOv2 and DINOv3 of transformers (arXiv 2104.14294, 2304.07193, 2508.10104)."""

from collections.abc import Callable

from agriclip_jax.encoders import vit
from agriclip_jax.errors import UserError
from agriclip_jax.weights.family import (
    IMAGENET,
    Family,
    Settings,
    Shapes,
    Tower,
    attention,
    said_in_transformers,
    square,
    stack,
)
from agriclip_jax.weights.names import Row, blocks, dense, norm, patch

# Of classifiers and heads that were trained on top, and of masked patches.
IGNORED = r"(pooler|classifier|head|fc)\..*|.*mask_token"

Rows = tuple[Row, ...]


def _rows(mlp: tuple[str, str], norms: tuple[str, str], scales: bool) -> Rows:
    layer = "encoder.layer.{}."
    places = ("embeddings.cls_token", "embeddings.position_embeddings")
    qkv = (f"{layer}attention.attention.{x}" for x in ("query", "key", "value"))
    return (
        *patch("embeddings.patch_embeddings.projection"),
        Row(("cls", "positions"), places, "class_and_positions_of_one"),
        Row(("registers",), ("embeddings.register_tokens",), "batch_of_one", optional=True),
        *blocks(layer, norms=norms, attention=attention(*qkv, out=f"{layer}attention.output.dense"), mlp=mlp),
        *(Row((f"blocks/scale{i}",), (f"{layer}layer_scale{i}.lambda1",)) for i in (1, 2) if scales),
        *norm("norm", "layernorm"),
    )


def _rows_of_v3(mlp: tuple[str | tuple[str, ...], str], bias: bool = True) -> Rows:
    """Queries and values have a bias in all models but the largest."""
    layer = "layer.{}."
    ours = "blocks/attention/qkv/kernel", "blocks/attention/qkv/bias"
    kernels = tuple(f"{layer}attention.{x}_proj.weight" for x in "qkv")
    projections = [Row(ours, kernels, "without_bias")]
    if bias:
        biases = tuple(f"{layer}attention.{x}_proj.bias" for x in "qv")
        projections = [Row(ours[:1], kernels, "dense"), Row(ours[1:], biases, "query_and_value")]
    projections += dense("blocks/attention/out", f"{layer}attention.o_proj")
    return (
        *patch("embeddings.patch_embeddings"),
        Row(("cls",), ("embeddings.cls_token",), "batch_of_one"),
        Row(("registers",), ("embeddings.register_tokens",), "batch_of_one"),
        *blocks(layer, norms=("norm1", "norm2"), attention=projections, mlp=mlp),
        *(Row((f"blocks/scale{i}",), (f"{layer}layer_scale{i}.lambda1",)) for i in (1, 2)),
        *norm("norm", "norm"),
    )


def _configure(
    rows: Rows, *, heads: int, eps: float = 1e-6, gated: bool = False, rotary_base: float = 0.0
) -> Callable[[Shapes, Settings], dict[str, Tower]]:
    """What configures a tower.

    Args:
      rows: its name map.
      heads, eps: what transformers' configuration leaves out when it is that.
      gated: whether its MLP is SwiGLU.
      rotary_base: as in `vit.ViTConfig`.
    """
    theirs = {row.ours[0]: row.theirs for row in rows}
    with_places = not rotary_base

    def configure(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        said = said_in_transformers(settings, heads if settings else 0, "gelu", eps) | (
            {"activation": "swiglu"} if gated else {}
        )
        _, _, _, side = shapes[theirs["patch/kernel"][0]]
        _, registers, _ = shapes.get(theirs["registers"][0], (1, 0, 0))
        if with_places:
            _, places, _ = shapes[theirs["cls"][1]]
        size = side * square(places - 1) if with_places else settings.get("image_size", 224)
        config = vit.ViTConfig(
            stack(shapes, rows, **said),
            side,
            size,
            embed_dim=0,
            registers=registers,
            rotary_base=rotary_base,
            antialias=registers > 0,  # transformers' DINOv2 with registers does, that without and DINO do not
            **IMAGENET,
        )
        return {"image": config}

    return configure


def _silu_gated(rows: Rows) -> Callable[[Shapes, Settings], dict[str, Tower]]:
    """What configures a DINOv3 whose gate is SiLU; transformers' may be any other."""
    configure = _configure(rows, heads=6, eps=1e-5, gated=True, rotary_base=100.0)

    def checked(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
        if (gate := settings.get("hidden_act", "gelu")) != "silu":
            raise UserError(f"its MLP is gated by {gate!r}, which no tower here is; of gates there is 'silu'")
        return configure(shapes, {**settings, "hidden_act": "gelu"})

    return checked


def _families() -> dict[str, Family]:
    norms = ("norm1", "norm2")
    dino = _rows(("intermediate.dense", "output.dense"), ("layernorm_before", "layernorm_after"), scales=False)
    v2 = _rows(("mlp.fc1", "mlp.fc2"), norms, scales=True)
    v2_gated = _rows(("mlp.weights_in", "mlp.weights_out"), norms, scales=True)
    v3 = _rows_of_v3(("mlp.up_proj", "mlp.down_proj"))
    gate = (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
    v3_gated, v3_unbiased = (_rows_of_v3(gate, bias) for bias in (True, False))
    v2_layer, v3_layer = "encoder.layer.0.", "layer.0."
    found = {
        "dino": (dino, _configure(dino, heads=12, eps=1e-12), f"{v2_layer}intermediate.dense.weight"),
        "dinov2": (v2, _configure(v2, heads=12), f"{v2_layer}layer_scale1.lambda1", f"{v2_layer}mlp.fc1.weight"),
        "dinov2 gated": (v2_gated, _configure(v2_gated, heads=12, gated=True), f"{v2_layer}mlp.weights_in.weight"),
        "dinov3 gated": (
            v3_gated,
            _silu_gated(v3_gated),
            f"{v3_layer}mlp.gate_proj.weight",
            f"{v3_layer}attention.q_proj.bias",
        ),
        "dinov3 gated without bias": (v3_unbiased, _silu_gated(v3_unbiased), f"{v3_layer}mlp.gate_proj.weight"),
        "dinov3": (
            v3,
            _configure(v3, heads=6, eps=1e-5, rotary_base=100.0),
            f"{v3_layer}mlp.up_proj.weight",
            f"{v3_layer}attention.o_proj.weight",
        ),
    }
    return {
        f"{name} (transformers)": Family(told_by, {"image": rows}, (), IGNORED, configure)
        for name, (rows, configure, *told_by) in found.items()
    }


FAMILIES = _families()
