"""Pixels or tokens to features: pure functions of (parameters, inputs, key).

A tower is a Flax NNX module used as a parameter container. `Network` splits it once; from then on everything is
`network(params, inputs)` on plain nested dictionaries of arrays.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from agriclip_jax.encoders import layers, resnet, text, vit
from agriclip_jax.encoders.dino_head import DinoHead
from agriclip_jax.errors import UserError, near_misses

__all__ = [
    "TOWERS",
    "DinoHead",
    "Network",
    "block_config",
    "image_tower",
    "logit_scale",
    "resnet_tower",
    "text_tower",
    "tower",
]

TOWERS = ("image", "text")  # of a model, and at the top of its parameters
MAX_LOGIT_SCALE = 4.605170185988092  # ln 100 (CLIP, arXiv 2103.00020 section 2.5)


class Network:
    """The structure of a module, without its parameters.

    `network(params, *args)` calls it, `network(params, *args, method="embed")` calls a method of it; both are pure.
    """

    def __init__(self, build: Any):
        """Args: build: `rngs -> nnx.Module`."""
        self._build = build
        self.graph, self.shapes = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Fresh parameters: a nested dictionary of float32 arrays."""
        return nnx.to_pure_dict(nnx.state(self._build(nnx.Rngs(params=key))))

    def __call__(self, params: dict[str, Any], *args: Any, method: str = "__call__", **kwargs: Any) -> Any:
        return getattr(nnx.merge(self.graph, params), method)(*args, **kwargs)

    @property
    def config(self) -> Any:
        """The module's own configuration dataclass."""
        return nnx.merge(self.graph, self.shapes).config


def block_config(size: str, **overrides: Any) -> layers.BlockConfig:
    """The stack of a named size (a key of `vit.SIZES`), with fields of `BlockConfig` replaced.

    Args:
      size: empty where `width`, `depth`, `heads` and `mlp` are all given.
      overrides: fields of `BlockConfig`; a width without an mlp makes that four times as wide.

    Raises:
      UserError: for an unknown size, activation or remat policy, or heads that do not divide the width.
    """
    if "width" in overrides and "mlp" not in overrides:
        overrides["mlp"] = 4 * overrides["width"]
    given = {"width", "depth", "heads", "mlp"} <= overrides.keys()
    if size not in vit.SIZES and (size or not given):
        raise UserError(f"unknown tower size {size!r}{near_misses(size, vit.SIZES)}")
    config = dataclasses.replace(layers.BlockConfig(*vit.SIZES.get(size, (0, 0, 0, 0))), **overrides)
    for value, known in ((config.activation, layers.ACTIVATIONS), (config.remat, layers.REMAT_POLICIES)):
        if value not in known:
            raise UserError(f"unknown name {value!r} in a tower's blocks{near_misses(value, known)}")
    if config.width % config.heads:
        raise UserError(f"a tower of width {config.width} cannot have {config.heads} heads: heads must divide width")
    return config


def image_tower(config: vit.ViTConfig) -> Network:
    """The image tower; raises `UserError` for an unknown pool or a size that the patch does not divide."""
    if config.pool not in vit.POOLS:
        raise UserError(f"unknown image pool {config.pool!r}{near_misses(config.pool, vit.POOLS)}")
    if config.blocks.width % 4:
        raise UserError(f"an image tower's width must be a multiple of 4, not {config.blocks.width}")
    if config.image_size % config.patch:
        raise UserError(f"image_size {config.image_size} is not a multiple of the patch {config.patch}")
    return Network(lambda rngs: vit.ViT(config, rngs))


def resnet_tower(config: resnet.ResNetConfig) -> Network:
    """The ResNet image tower; raises `UserError` for an unknown stem or pool, or sizes that do not fit together."""
    for what, value, known in (("stem", config.stem, resnet.STEMS), ("pool", config.pool, resnet.POOLS)):
        if value not in known:
            raise UserError(f"unknown ResNet {what} {value!r}{near_misses(value, known)}")
    if len(config.layers) != 4 or min(config.layers) < 1:
        raise UserError(f"a ResNet has four stages of at least one block each, not {config.layers}")
    if config.width % 2:
        raise UserError(f"a ResNet's width must be even, not {config.width}")
    if config.pool == "attention" and config.features % config.heads:
        raise UserError(f"{config.heads} heads do not divide the {config.features} features of a ResNet's pool")
    if config.image_size % resnet.STRIDE:
        raise UserError(f"image_size {config.image_size} is not a multiple of {resnet.STRIDE}, the side of a cell")
    return Network(lambda rngs: resnet.ResNet(config, rngs))


def text_tower(config: text.TextConfig) -> Network:
    """The text tower; raises `UserError` for an unknown pool."""
    if config.pool not in text.POOLS:
        raise UserError(f"unknown text pool {config.pool!r}{near_misses(config.pool, text.POOLS)}")
    return Network(lambda rngs: text.TextTransformer(config, rngs))


def tower(config: vit.ViTConfig | resnet.ResNetConfig | text.TextConfig) -> Network:
    """The tower of a configuration, of whichever kind that is; raises `UserError` as its builder does."""
    builders = {vit.ViTConfig: image_tower, resnet.ResNetConfig: resnet_tower, text.TextConfig: text_tower}
    return builders[type(config)](config)


def logit_scale(temperature: float) -> jax.Array:
    """The parameter float32 []: log of the inverse temperature."""
    return -jnp.log(jnp.float32(temperature))
