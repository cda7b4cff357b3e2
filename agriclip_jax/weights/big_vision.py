"""Checkpoints of big_vision (*.npz): SigLIP's two towers, and Vision Transformers alone, those of AugReg among them.

Flax keeps matrices [in, out] as we do, those of attention apart by heads: queries, keys and values [in, heads, width],
the output [heads, width, out]. A scanned stack is one array for all its layers.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping

from agriclip_jax.encoders import vit
from agriclip_jax.weights import siglip
from agriclip_jax.weights.containers import Tensor
from agriclip_jax.weights.family import HALF, Family, Settings, Shapes, Tower, square, stack, stripped
from agriclip_jax.weights.names import Row, optional, within

Rows = tuple[Row, ...]

MOST_LAYERS = 1000

_SCANNED = re.compile(r"(.*/)?encoderblock/.*")
_BY_HEADS = re.compile(r"(.*)MultiHeadDotProductAttention_\d/(query|key|value|out)/(kernel|bias)")


def plain(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The same arrays as matrices [in, out], layer by layer; those of other checkpoints stay as they are.

    Returns:
      The arrays by name, and how many heads each stack has, by such names as "img/Transformer/heads".
    """
    found: dict[str, Tensor] = {}
    heads: dict[str, int] = {}
    for whole, stacked in tensors.items():
        for name, tensor in _unrolled(whole, stacked):
            part, shape = _BY_HEADS.fullmatch(name), tensor.shape
            if part and part[2] == "out" and len(shape) == 3:
                tensor = _shaped(tensor, (shape[0] * shape[1], shape[2]))
            elif part and part[2] != "out" and len(shape) == (3 if part[3] == "kernel" else 2):
                heads[part[1].split("encoderblock")[0] + "heads"] = shape[-2]
                tensor = _shaped(tensor, (*shape[:-2], shape[-2] * shape[-1]))
            found[name] = tensor
    return found, heads


def _unrolled(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if not (_SCANNED.fullmatch(name) and tensor.shape and 0 < tensor.shape[0] <= MOST_LAYERS):
        yield name, tensor
        return
    for i in range(tensor.shape[0]):
        layer = Tensor(tensor.shape[1:], tensor.dtype, lambda i=i: tensor.read()[i])
        yield name.replace("encoderblock/", f"encoderblock_{i}/"), layer


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return Tensor(shape, tensor.dtype, lambda: tensor.read().reshape(shape))


def _dense(ours: str, *theirs: str) -> list[Row]:
    return [Row((f"{ours}/{x}",), tuple(f"{name}/{x}" for name in theirs), "side_by_side") for x in ("kernel", "bias")]


def _norm(ours: str, theirs: str) -> list[Row]:
    return [Row((f"{ours}/{x}",), (f"{theirs}/{x}",)) for x in ("scale", "bias")]


def _encoder(theirs: str, attention: int = 0, norm: int = 1, mlp: int = 0) -> list[Row]:
    """A stack and the norm after it; the numbers are those of a block's second, third and fourth module."""
    layer = f"{theirs}/encoderblock_{{}}/"
    heads, dense = f"{layer}MultiHeadDotProductAttention_{attention}", f"{layer}MlpBlock_{mlp}/Dense_"
    return [
        *_norm("blocks/norm1", f"{layer}LayerNorm_0"),
        *_dense("blocks/attention/qkv", *(f"{heads}/{x}" for x in ("query", "key", "value"))),
        *_dense("blocks/attention/out", f"{heads}/out"),
        *_norm("blocks/norm2", f"{layer}LayerNorm_{norm}"),
        *_dense("blocks/mlp/up", f"{dense}0"),
        *_dense("blocks/mlp/down", f"{dense}1"),
        *_norm("norm", f"{theirs}/encoder_norm"),
    ]


_PATCH = (
    Row(("patch/kernel",), ("embedding/kernel",), "patch_innermost_width"),
    Row(("patch/bias",), ("embedding/bias",)),
)
_MAP = "MAPHead_0/MultiHeadDotProductAttention_0"
IMAGE = (
    *_PATCH,
    Row(("positions",), ("pos_embedding",), "batch_of_one"),
    Row(("cls",), ("cls",), "batch_of_one", optional=True),
    *_encoder("Transformer"),
    *optional(
        [
            Row(("head/probe",), ("MAPHead_0/probe",), "batch_of_one"),
            *_dense("head/query", f"{_MAP}/query"),
            *_dense("head/key_value", f"{_MAP}/key", f"{_MAP}/value"),
            *_dense("head/out", f"{_MAP}/out"),
            *_norm("head/norm", "MAPHead_0/LayerNorm_0"),
            *_dense("head/mlp/up", "MAPHead_0/MlpBlock_0/Dense_0"),
            *_dense("head/mlp/down", "MAPHead_0/MlpBlock_0/Dense_1"),
        ]
    ),
)
AUGREG = (
    *_PATCH,
    Row(("cls", "positions"), ("cls", "Transformer/posembed_input/pos_embedding"), "class_and_positions_of_one"),
    *_encoder("Transformer", attention=1, norm=2, mlp=3),
)
PROJECTION = tuple(optional(_dense("projection", "head")))
TEXT = (
    Row(("tokens",), ("Embed_0/embedding",)),
    Row(("positions",), ("pos_embedding",), "batch_of_one"),
    *_encoder("Encoder_0"),
    *_dense("projection", "head"),
)


def _image(shapes: Shapes, settings: Settings, rows: Rows = IMAGE) -> vit.ViTConfig:
    side, _, _, _ = shapes["embedding/kernel"]
    pool = "attention" if "MAPHead_0/probe" in shapes else "cls" if "cls" in shapes else "mean"
    stacked = stack(shapes, rows, heads=settings["Transformer/heads"], activation="gelu_tanh")
    if rows is AUGREG:
        _, places, _ = shapes["Transformer/posembed_input/pos_embedding"]
        places -= 1
    else:
        _, places, _ = shapes["pos_embedding"]
    return vit.ViTConfig(stacked, side, side * square(places), 0, pool=pool, **HALF)


def _two_towers(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
    image, words = (stripped(prefix, shapes) for prefix in ("img/", "txt/"))
    tower = _image(image, stripped("img/", settings))
    embed_dim = image["head/kernel"][1] if "head/kernel" in image else 0
    stacked = stack(words, TEXT, heads=settings["txt/Encoder_0/heads"], activation="gelu_tanh")
    _, length, _ = words["pos_embedding"]
    return {
        "image": dataclasses.replace(tower, embed_dim=embed_dim, projection_bias=bool(embed_dim)),
        "text": siglip.text_tower(stacked, words["Embed_0/embedding"], length, words["head/kernel"][1]),
    }


def _families() -> dict[str, Family]:
    two = {"image": within("img/", (*IMAGE, *PROJECTION)), "text": within("txt/", TEXT)}
    scale = (Row(("logit_scale",), ("t",), "batch_of_one"), Row(("logit_bias",), ("b",), "batch_of_one", optional=True))
    classifier = r"(head|pre_logits)/.*"
    stem, last = "embedding/kernel", "Transformer/encoder_norm/scale"
    old_places = "Transformer/posembed_input/pos_embedding"
    return {
        "siglip (big_vision)": Family((f"img/{stem}", "txt/Embed_0/embedding"), two, scale, "", _two_towers),
        "vit (big_vision)": Family(
            (stem, last, "pos_embedding"), {"image": IMAGE}, (), classifier, lambda *said: {"image": _image(*said)}
        ),
        "vit (augreg)": Family(
            (stem, last, old_places), {"image": AUGREG}, (), classifier, lambda *said: {"image": _image(*said, AUGREG)}
        ),
    }


FAMILIES = _families()
