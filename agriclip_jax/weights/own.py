"""Our own naming of a model's arrays: the paths of the parameter tree, with the towers told by a config.json beside."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from agriclip_jax.encoders import layers, resnet, text, vit
from agriclip_jax.errors import UserError
from agriclip_jax.weights.names import Row

TOLD_BY = ("text/tokens", "logit_scale")
KINDS = {"vit": vit.ViTConfig, "resnet": resnet.ResNetConfig, "text": text.TextConfig}


def rows(tables: Iterable[Mapping[str, Iterable[Row]]]) -> dict[str, tuple[Row, ...]]:
    """The rows of "image" and "text": every parameter that any of the tables has, under its own name."""
    paths: dict[str, dict[str, None]] = {"image": {}, "text": {}}
    for table in tables:
        for tower, of_tower in table.items():
            paths[tower] |= dict.fromkeys(path for row in of_tower for path in row.ours)
    return {
        tower: tuple(Row((path,), (f"{tower}/{path}",), optional=True) for path in found)
        for tower, found in paths.items()
    }


def describe(towers: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json: kind and configuration of each tower; the inverse of `configure`."""
    kinds = {config: kind for kind, config in KINDS.items()}
    return {
        "model_type": "agriclip_jax",
        "towers": {
            name: {"kind": kinds[type(config)], **dataclasses.asdict(config)} for name, config in towers.items()
        },
    }


def configure(shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The towers that a config.json describes; the shapes of the arrays are not needed.

    Raises:
      UserError: it describes none.
    """
    if not isinstance(settings.get("towers"), dict):
        raise UserError("the config.json that was written beside it is missing, or describes no towers; fetch both")

    def tower(kind: str, blocks: Mapping[str, Any] | None = None, **said: Any) -> Any:
        said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
        return KINDS[kind](**said) if blocks is None else KINDS[kind](layers.BlockConfig(**blocks), **said)

    return {name: tower(**said) for name, said in settings["towers"].items()}
