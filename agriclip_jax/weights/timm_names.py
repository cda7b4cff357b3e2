"""Image towers that timm has a name for: open_clip takes them by it alone, so that their sizes cannot be chosen."""

from agriclip_jax.encoders import resnet, vit
from agriclip_jax.weights import timm
from agriclip_jax.weights.families import FAMILIES, Tower
from agriclip_jax.weights.names import Row

_RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}  # by blocks of each stage
_SIZES = {
    "tiny": vit.SIZES["Ti"],
    "small": vit.SIZES["S"],
    "base": vit.SIZES["B"],
    "large": vit.SIZES["L"],
    "so400m": vit.SIZES["So400m"],
    "huge": vit.SIZES["H"],
    "giant": vit.SIZES["g"],
    "gigantic": vit.SIZES["bigG"],
    "giantopt": (1536, 40, 16, 6144),
}
# Name of size and patch, and the sides of images, pixels.
_PLAIN = {
    "tiny_patch16": (224, 384),
    "small_patch8": (224,),
    "small_patch16": (224, 384),
    "small_patch32": (224, 384),
    "base_patch8": (224,),
    "base_patch16": (224, 384),
    "base_patch32": (224, 384),
    "large_patch14": (224,),
    "large_patch16": (224, 384),
    "large_patch32": (224, 384),
    "huge_patch14": (224,),
    "giant_patch14": (224,),
    "gigantic_patch14": (224,),
}
_SIGLIP = {
    "gelu": {"base_patch16": (224, 256, 384, 512), "large_patch16": (256, 384), "so400m_patch14": (224, 378, 384)},
    "gelu_tanh": {
        "base_patch32": (256,),
        "large_patch16": (512,),
        "so400m_patch16": (256, 384, 512),
        "giantopt_patch16": (256, 384),
    },
}
_DINOV2 = {
    "small": (vit.SIZES["S"], "gelu"),
    "base": (vit.SIZES["B"], "gelu"),
    "large": (vit.SIZES["L"], "gelu"),
    "giant": ((1536, 40, 24, 4096), "swiglu"),
}
_DINOV2_PIXELS = 518


def _vits() -> dict[tuple, str]:
    """Names by (width, depth, heads, mlp), patch, pixels, pool, activation, whether there is LayerScale, registers."""

    def split(name: str) -> tuple[tuple[int, int, int, int], int]:
        size, patch = name.split("_patch")
        return _SIZES[size], int(patch)

    found = {
        (*split(name), side, "cls", "gelu", False, 0): f"vit_{name}_{side}"
        for name, sides in _PLAIN.items()
        for side in sides
    }
    found |= {
        (*split(name), side, "attention", activation, False, 0): f"vit_{name}_siglip_{side}"
        for activation, towers in _SIGLIP.items()
        for name, sides in towers.items()
        for side in sides
    }
    return found | {
        (size, 14, _DINOV2_PIXELS, "cls", activation, True, registers): f"vit_{name}_patch14_{word}dinov2"
        for name, (size, activation) in _DINOV2.items()
        for registers, word in ((0, ""), (4, "reg4_"))
    }


VITS = _vits()


def find(image: Tower) -> str:
    """The name of a tower without its projection; empty where timm has none."""
    if isinstance(image, resnet.ResNetConfig):
        is_plain = (image.stem, image.pool, image.width) == ("plain", "mean", 64)
        return _RESNETS.get(tuple(image.layers), "") if is_plain else ""
    blocks = image.blocks
    if image.pre_norm or image.rotary_base or image.head_blocks or blocks.norm_eps != 1e-6:
        return ""
    size, has_scale = (blocks.width, blocks.depth, blocks.heads, blocks.mlp), bool(blocks.layer_scale)
    key = (size, image.patch, image.image_size, image.pool, blocks.activation, has_scale, image.registers)
    return VITS.get(key, "")


def rows(image: Tower) -> tuple[Row, ...]:
    """The name map of a tower that `find` has a name for, within timm."""
    if isinstance(image, resnet.ResNetConfig):
        return FAMILIES["resnet (torchvision)"].towers["image"]
    if image.pool == "attention":
        family = "siglip (timm)"
    elif image.registers:
        family = "dinov2 with registers (timm)"
    else:
        family = "dinov2 (meta, timm)" if image.blocks.layer_scale else "dino (meta, timm)"
    return timm.FAMILIES[family].towers["image"]


def size(image: vit.ViTConfig) -> str:
    """What a name would have to say, in words."""
    blocks = image.blocks
    stack = f"width {blocks.width}, depth {blocks.depth}, {blocks.heads} heads, {blocks.activation}"
    return f"{stack}, patch {image.patch} at {image.image_size} pixels"
