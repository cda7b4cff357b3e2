"""What a family of public towers is, and what its arrays' shapes and a configuration beside them say of a tower."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from agriclip_jax.encoders import layers, resnet, text, vit
from agriclip_jax.errors import UserError
from agriclip_jax.weights import names
from agriclip_jax.weights.names import Row

Tower = vit.ViTConfig | resnet.ResNetConfig | text.TextConfig
Shapes = Mapping[str, tuple[int, ...]]  # of the arrays in a file, by name
Settings = Mapping[str, Any]  # what a configuration file beside it says; empty without one

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
# Channels of a head where it is not 64: So400m of SigLIP; H, g and bigG of OpenCLIP, of which timm follows the first.
HEAD_WIDTHS = {1152: 72, 1280: 80, 1408: 88, 1664: 104}


class Family(NamedTuple):
    """One naming of one kind of model: of both its towers, or of one.

    Attributes:
      told_by: names that a file of this family has; no other family's file has all of them.
      towers: "image" and "text", where it has them: the rows of each, paths within the tower.
      scale: the rows of `logit_scale` and `logit_bias`, where it has them.
      ignored: regular expression of whole names that need no row.
      configure: shapes and settings to the configuration of each tower.
    """

    told_by: tuple[str, ...]
    towers: Mapping[str, tuple[Row, ...]]
    scale: tuple[Row, ...]
    ignored: str
    configure: Callable[[Shapes, Settings], dict[str, Tower]]


def joined(first: Family, second: Family) -> Family:
    """The family of a file that holds an image tower of one family and a text tower of another."""
    return Family(
        (*first.told_by, *second.told_by),
        {**first.towers, **second.towers},
        (*first.scale, *second.scale),
        "|".join(filter(None, (first.ignored, second.ignored))),
        lambda shapes, settings: first.configure(shapes, settings) | second.configure(shapes, settings),
    )


def within(prefix: str, family: Family) -> Family:
    """The same family of arrays whose names begin with a prefix."""

    return Family(
        tuple(prefix + name for name in family.told_by),
        {tower: names.within(prefix, rows) for tower, rows in family.towers.items()},
        names.within(prefix, family.scale),
        f"{re.escape(prefix)}(?:{family.ignored})" if family.ignored else "",
        lambda shapes, settings: family.configure(stripped(prefix, shapes), settings),
    )


def stripped(prefix: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """What has names that begin with a prefix, by the rest of them."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def stack(
    shapes: Shapes, rows: tuple[Row, ...], *, widths: Mapping[int, int] = HEAD_WIDTHS, **said: Any
) -> layers.BlockConfig:
    """The stack that the arrays of a tower make.

    Args:
      shapes: of all arrays.
      rows: of the tower.
      widths: channels of a head by channels of the tower, where it is not 64.
      said: further fields of `BlockConfig`; `heads` in place of what `widths` says.

    Raises:
      UserError: heads do not divide the width.
    """
    theirs = {row.ours[0]: row.theirs[0] for row in rows}
    first = {path: shapes.get(name.replace("{}", "0")) for path, name in theirs.items()}
    (width,) = first["blocks/norm1/scale"]
    heads = said.pop("heads", 0) or width // widths.get(width, 64)
    if not (type(heads) is int and heads > 0 and width % heads == 0):
        raise UserError(f"its {heads!r} heads do not divide a tower of width {width}")
    return layers.BlockConfig(
        width,
        names.depth(theirs["blocks/norm1/scale"], shapes),
        heads,
        mlp=math.prod(first["blocks/mlp/down/kernel"]) // width,
        layer_scale=1.0 if first.get("blocks/scale1") else 0.0,
        **said,
    )


def square(places: int) -> int:
    """The side of a square grid of so many places.

    Raises:
      UserError: it is none.
    """
    side = math.isqrt(places)
    if side * side != places:
        raise UserError(f"its {places} position embeddings are no square grid")
    return side


ACTIVATIONS = {"gelu": "gelu", "quick_gelu": "quick_gelu", "gelu_pytorch_tanh": "gelu_tanh"}


def said_in_transformers(settings: Settings, heads: int, activation: str, eps: float) -> dict[str, Any]:
    """What a transformers configuration says of a stack; a saved one leaves out what is its class's default.

    Args:
      settings: of the tower.
      heads, activation, eps: the defaults; 0 heads where there is no configuration, for the width to tell them.

    Raises:
      UserError: of an activation that no tower here has, or of no heads.
    """
    name = settings.get("hidden_act", activation)
    if name not in ACTIVATIONS:
        raise UserError(f"its activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    heads = settings.get("num_attention_heads", heads)
    if "num_attention_heads" in settings and not (type(heads) is int and heads > 0):
        raise UserError(f"its num_attention_heads is {str(heads)[:20]}, no number of heads")
    return {"heads": heads, "activation": ACTIVATIONS[name], "norm_eps": settings.get("layer_norm_eps", eps)}


def attention(*qkv: str, out: str) -> list[Row]:
    """Rows of a block's projections: query, key and value apart or as one, and the output."""
    return [*names.dense("blocks/attention/qkv", *qkv), *names.dense("blocks/attention/out", out)]


def transformers_blocks(prefix: str) -> list[Row]:
    """Rows of a stack as transformers names those of CLIP and SigLIP."""
    layer = f"{prefix}.encoder.layers.{{}}."
    return names.blocks(
        layer,
        norms=("layer_norm1", "layer_norm2"),
        attention=attention(*(f"{layer}self_attn.{x}_proj" for x in "qkv"), out=f"{layer}self_attn.out_proj"),
        mlp=("mlp.fc1", "mlp.fc2"),
    )
