"""A checkpoint of others as our towers: its family found, its names checked, its parameters read row by row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agriclip_jax import rules
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_record
from agriclip_jax.weights import names
from agriclip_jax.weights.containers import Container, open_weights
from agriclip_jax.weights.families import FAMILIES, Tower, recognise

MOST_SETTINGS = 16 << 20  # bytes of a configuration file


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model of others, of which nothing was read yet but names and shapes.

    Attributes:
      path: where it lies.
      family: a key of `families.FAMILIES`.
      towers: "image" and "text", where it has them: the configuration of each.
      container: its arrays.
    """

    path: Path
    family: str
    towers: Mapping[str, Tower]
    container: Container

    def leaves(self, tower: str) -> Iterator[tuple[str, np.ndarray]]:
        """Paths and float32 arrays of a tower's parameters, one row of its name map in memory at a time.

        Raises:
          UserError: an array cannot be read.
        """
        return names.read(FAMILIES[self.family].towers[tower], self._arrays)

    def params(self, tower: str) -> dict[str, Any]:
        """A tower's parameters, all of them in memory."""
        return rules.unflatten(dict(self.leaves(tower)))

    def scale(self) -> dict[str, np.ndarray]:
        """`logit_scale`, float32 [], and `logit_bias` where the family has one; empty for an image tower alone."""
        return dict(names.read(FAMILIES[self.family].scale, self._arrays))

    @property
    def _arrays(self) -> dict[str, Any]:
        return {name: tensor.read for name, tensor in self.container.tensors.items()}


def open_model(path: Path | str) -> Foreign:
    """Opens a file, or a folder as transformers and open_clip write it.

    Raises:
      UserError: it cannot be read, is of no known family, or its arrays are not those of its family.
    """
    path = Path(path)
    container = _without_wrapping(open_weights(path))
    shapes = {name: tensor.shape for name, tensor in container.tensors.items()}
    family = recognise(shapes, str(path))
    rows = [row for tower in FAMILIES[family].towers.values() for row in tower]
    names.check([*rows, *FAMILIES[family].scale], shapes, FAMILIES[family].ignored, str(path))
    try:
        towers = FAMILIES[family].configure(shapes, _settings(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path}: its configuration and its arrays do not fit together ({error!r:.120})") from error
    return Foreign(path, family, towers, container)


def _without_wrapping(container: Container) -> Container:
    """The same arrays without what training programs put before their names."""
    tensors = container.tensors
    for prefix in ("state_dict.", "model.", "teacher.", "module.", "backbone."):
        if any(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return Container(container.format, tensors, container.values)


def _settings(path: Path) -> Mapping[str, Any]:
    """What config.json or open_clip_config.json in a folder says of the model; empty where there is neither."""
    for name, key in (("open_clip_config.json", "model_cfg"), ("config.json", "")):
        file = path / name
        if file.is_file():
            if file.stat().st_size > MOST_SETTINGS:
                raise UserError(f"{file} is larger than {MOST_SETTINGS >> 20} MiB; that is no configuration")
            said = read_record(file, *([key] if key else []))
            return {"quick_gelu": False, **said[key]} if key else said
    return {}
