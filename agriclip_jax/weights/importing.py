"""A checkpoint of others as our towers: its family found, its names and shapes checked, its parameters read by row."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from agriclip_jax import encoders, rules
from agriclip_jax.errors import UserError
from agriclip_jax.weights import beside, big_vision, families, names
from agriclip_jax.weights.containers import Container, Tensor, open_weights
from agriclip_jax.weights.family import Tower
from agriclip_jax.weights.names import Row

ALIGNED_VARIANCE = 4.5  # to which AgriCLIP's aligner scales the features of both sides before it is fitted

# What training programs put before the names of a model.
WRAPPING = re.compile(r"(?:(?:state_dict|model|teacher|module|backbone|params|opt|target)[./])*")


@dataclass(frozen=True, eq=False)
class Foreign:
    """A model of others, of which nothing was read yet but names and shapes.

    Attributes:
      path: where it lies.
      family: a key of `families.FAMILIES`, or two joined by " + ".
      towers: "image" and "text", where it has them: the configuration of each.
      tables: the name map of each tower, and of its "scale".
      container: its arrays.
      preparation: how photos are prepared for it: "resize", "crop_share" and "filter" of `data.views.EvalView`.
      is_described: whether a configuration was read; else heads, activation and the like are the family's usual ones.
    """

    path: Path
    family: str
    towers: Mapping[str, Tower]
    tables: Mapping[str, tuple[Row, ...]]
    container: Container
    preparation: Mapping[str, Any]
    is_described: bool

    def leaves(self, tower: str) -> Iterator[tuple[str, np.ndarray]]:
        """Paths and float32 arrays of a tower's parameters, one row of its name map in memory at a time.

        Raises:
          UserError: an array cannot be read.
        """
        return names.read(self.tables[tower], {name: tensor.read for name, tensor in self.container.tensors.items()})

    def params(self, tower: str) -> dict[str, Any]:
        """A tower's parameters, all of them in memory."""
        return rules.unflatten(dict(self.leaves(tower)))

    def scale(self) -> dict[str, np.ndarray]:
        """`logit_scale`, float32 [], and `logit_bias` where the family has one; empty for an image tower alone."""
        return dict(self.leaves("scale"))


def open_model(path: Path | str) -> Foreign:
    """Opens a file, or a folder as transformers and open_clip write it.

    Raises:
      UserError: it cannot be read, is of no known family, or its arrays are not those of its family.
    """
    path = Path(path).expanduser()
    container = open_weights(path)
    models = list(_models(container))
    tensors, heads = next((model for model in models if families.find(model[0])), models[0])
    name, family = families.recognise(tensors, str(path))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    tables = {**family.towers, "scale": family.scale}
    rows = [row for table in tables.values() for row in table]
    used = names.check(rows, shapes, family.ignored, str(path))
    try:
        settings = heads or beside.settings(path, name)
        towers = family.configure(shapes, settings)
        if "image" in towers:
            towers["image"] = dataclasses.replace(towers["image"], **beside.colours(path))
        preparation = beside.preparation(path, name)
        found = {name: shapes[name] for name in used}
        wanted = _wanted(family, towers, found)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{path}: its configuration and its arrays do not fit together ({error!r:.120})") from error
    _compare(found, wanted, path)
    is_described = bool(settings) or container.format == "torchscript"  # as only OpenAI writes it
    container = dataclasses.replace(container, tensors=tensors)
    return Foreign(path, name, towers, tables, container, preparation, is_described)


def with_aligner(model: Foreign, path: Path | str, variance: float | None = None) -> Foreign:
    """A model whose image tower is projected into another's space as AgriCLIP's release does it (arXiv 2410.01407).

    The release fits W [embed_dim, width] and b [embed_dim] to c1 * features and c2 * targets, where for either
    c = sqrt(4.5 / variance). To features as they are that map has the kernel W * c1 / c2 and the bias b / c2, but the
    file holds both times c1 / c2: its bias is c1 times what it should be, and c1 is not in the file.

    Args:
      model: with an image tower that has no projection, such as DINO's ResNet-50.
      path: of the aligner, a checkpoint with "W" and "b".
      variance: of the pooled features of the images it was fitted on, mean(f^2) - mean(f)^2 over all images and
        channels at once, to correct the bias by; `None` keeps it as it was released.

    Raises:
      UserError: the file is no aligner, or not one of this tower.
    """
    aligner, tower = open_weights(path).tensors, model.towers.get("image")
    if tower is None or tower.embed_dim:
        raise UserError(f"{model.path} has no image tower without a projection, which is what an aligner takes")
    shapes = {name: tensor.shape for name, tensor in aligner.items()}
    if shapes.keys() != {"W", "b"} or len(shapes["W"]) != 2 or shapes["b"] != shapes["W"][:1]:
        raise UserError(f"{path} is no aligner, which holds W [embed_dim, width] and b [embed_dim] and nothing else")
    embed_dim, width = shapes["W"]
    if width != tower.features:
        raise UserError(f"{path} aligns features of width {width}; those of {model.path} have {tower.features}")
    if variance is not None and not 0 < variance < math.inf:
        raise UserError(f"the variance of features is a positive number, not {variance}")
    excess = 1.0 if variance is None else math.sqrt(ALIGNED_VARIANCE / variance)
    bias = Tensor(shapes["b"], np.dtype("float32"), lambda: (aligner["b"].read() / excess).astype(np.float32))
    tensors = {**model.container.tensors, "aligner.weight": aligner["W"], "aligner.bias": bias}
    return dataclasses.replace(
        model,
        family=f"{model.family} + aligner (agriclip)",
        towers={**model.towers, "image": dataclasses.replace(tower, embed_dim=embed_dim, projection_bias=True)},
        tables={**model.tables, "image": (*model.tables["image"], *names.dense("projection", "aligner"))},
        container=dataclasses.replace(model.container, tensors=tensors),
    )


def _models(container: Container) -> Iterator[tuple[dict[str, Tensor], dict[str, int]]]:
    """Arrays and heads of each model in a checkpoint, without what is put before their names; the largest first."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in container.tensors.items():
        before = WRAPPING.match(name)[0]
        groups.setdefault(before, {})[name.removeprefix(before)] = tensor
    yield from map(big_vision.plain, sorted(groups.values(), key=len, reverse=True))


def _wanted(
    family: families.Family, towers: Mapping[str, Tower], found: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """The shapes that the arrays of such towers have in a file of a family.

    Raises:
      UserError: of towers that are far larger than the arrays that were found.
    """
    wanted = names.shapes(family.scale, {row.ours[0]: () for row in family.scale if row.theirs[0] in found})
    largest = 2 * sum(map(math.prod, found.values()))
    for tower, config in towers.items():
        leaves = rules.flatten(nnx.to_pure_dict(encoders.tower(config).shapes))
        ours = {path: leaf.shape for path, leaf in leaves.items()}
        # Some rows join arrays even when only shapes are asked for, so a few hostile ones must not ask for much.
        if (size := sum(map(math.prod, ours.values()))) > largest:
            raise UserError(f"its shapes ask for a tower of {size:,} parameters, which it does not hold; fetch it anew")
        wanted |= names.shapes(family.towers[tower], ours)
    return wanted


def _compare(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Sees that the arrays that a name map takes up are those of the towers they ask for.

    Raises:
      UserError: some are of other shapes, missing, or too many; the first are named.
    """
    wrong = [
        f"{name} is {list(found[name]) if name in found else 'absent'}, should be "
        f"{list(wanted[name]) if name in wanted else 'absent'}"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if wrong:
        more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path}: {'; '.join(wrong[:3])}{more}; it is damaged, or of another family")
