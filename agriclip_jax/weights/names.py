"""Name maps: which arrays of a foreign checkpoint are which of our parameters, in tables that are read both ways.

A row names some of ours, some of theirs, and how one becomes the other. torch keeps matrices [out, in], we [in, out]; a
name with {} stands for every layer of a stack, whose parameters are ours along one leading axis; with {1} for all but
the first.
"""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from agriclip_jax.errors import UserError, near_misses

Arrays = Sequence[np.ndarray]

_LAYER = re.compile(r"\{(\d?)\}")


class Row(NamedTuple):
    """Some parameters and the arrays they are made of.

    Attributes:
      ours: paths within a tower, such as "blocks/mlp/up/kernel".
      theirs: names of arrays; with {} those of each layer, with {1} of all but the first.
      how: a key of `HOW`.
      optional: a model may have neither side of it: a bias, registers.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    how: str = "same"
    optional: bool = False


class How(NamedTuple):
    """Both directions of a row, for one layer where there are several.

    Attributes:
      read: theirs to ours.
      write: ours and the number of theirs, to theirs.
    """

    read: Callable[[Arrays], Arrays]
    write: Callable[[Arrays, int], Arrays]


def _patch(arrays: Arrays) -> Arrays:
    (kernel,) = arrays
    return [kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))]


def _patches(arrays: Arrays, count: int) -> Arrays:
    (kernel,) = arrays
    side = math.isqrt(len(kernel) // 3)
    return [kernel.reshape(side, side, 3, -1)]


def _convolution(arrays: Arrays, count: int) -> Arrays:
    return [_patches(arrays, count)[0].transpose(3, 2, 0, 1)]


def _class_and_positions(arrays: Arrays) -> Arrays:
    cls, positions = arrays
    positions = positions.reshape(-1, positions.shape[-1])
    return [cls.reshape(1, -1) + positions[:1], positions[1:]]


def _with_class_place(arrays: Arrays, count: int) -> Arrays:
    cls, positions = arrays
    return [cls[0], np.concatenate([np.zeros_like(cls), positions])]


def _query_and_key_value(arrays: Arrays) -> Arrays:
    query, key, value = np.split(arrays[0], 3)
    return [query.T, np.concatenate([key, value]).T]


def _without_bias(arrays: Arrays, count: int) -> Arrays:
    kernel, bias = arrays
    if np.any(bias):
        raise UserError("a tower whose queries, keys and values have a bias cannot be named as one that has none")
    return np.split(kernel.T, count)


HOW = {
    "same": How(list, lambda a, n: a),
    # A vector is its own transpose, so biases go the same way.
    "dense": How(lambda a: [np.concatenate(a).T], lambda a, n: np.split(a[0].T, n)),
    "side_by_side": How(lambda a: [np.concatenate(a, axis=-1)], lambda a, n: np.split(a[0], n, axis=-1)),
    "without_bias": How(lambda a: [np.concatenate(a).T, np.zeros(sum(map(len, a)), a[0].dtype)], _without_bias),
    "query_and_value": How(
        lambda a: [np.concatenate([a[0], np.zeros_like(a[0]), a[1]])], lambda a, n: np.split(a[0], 3)[::2]
    ),
    "query_and_key_value": How(_query_and_key_value, lambda a, n: [np.concatenate([a[0].T, a[1].T])]),
    "batch_of_one": How(lambda a: [a[0][0]], lambda a, n: [a[0][None]]),
    "patch": How(_patch, _convolution),
    "patch_innermost_width": How(lambda a: [a[0].reshape(-1, a[0].shape[-1])], _patches),
    "convolution": How(lambda a: [a[0].transpose(2, 3, 1, 0)], lambda a, n: [a[0].transpose(3, 2, 0, 1)]),
    # Theirs adds a place to the class token, at row 0; ours keeps the sum.
    "class_and_positions": How(_class_and_positions, _with_class_place),
    "class_and_positions_of_one": How(
        _class_and_positions, lambda a, n: [x[None] for x in (a[0], _with_class_place(a, n)[1])]
    ),
}


def read(rows: Iterable[Row], arrays: Mapping[str, Callable[[], np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters one after the other, float32 and contiguous, so that no more than one row is held at a time.

    Args:
      rows: a table that `check` found no fault with.
      arrays: what gives each of theirs.
    """
    for row in rows:
        if row.optional and not _present(row, arrays):
            continue
        layers = [
            HOW[row.how].read([np.asarray(arrays[name](), np.float32) for name in names])
            for names in _layers(row, _there(row, arrays))
        ]
        for i, path in enumerate(row.ours):
            found = np.stack([layer[i] for layer in layers]) if _stacked(row) else layers[0][i]
            yield path, np.asarray(found, order="C")


def write(rows: Iterable[Row], params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Their arrays one after the other, contiguous; the inverse of `read`.

    Args:
      rows: a table.
      params: ours, by path.
    """
    for name, array in _written(rows, params):
        yield name, np.asarray(array, order="C")


def shapes(rows: Iterable[Row], ours: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Their names and shapes, of parameters of our shapes; no parameter is held."""
    params = {path: np.broadcast_to(np.zeros((), np.uint8), shape) for path, shape in ours.items()}
    return {name: array.shape for name, array in _written(rows, params)}


def _written(rows: Iterable[Row], params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for row in rows:
        if row.optional and row.ours[0] not in params:
            continue
        ours = [np.asarray(params[path]) for path in row.ours]
        layers = zip(*ours, strict=True) if _stacked(row) else [ours]
        for names, layer in zip(_layers(row, len(ours[0]) if _stacked(row) else 1), layers, strict=True):
            yield from zip(names, HOW[row.how].write(layer, len(names)), strict=True)


def check(rows: Iterable[Row], names: Collection[str], ignored: str, where: str) -> set[str]:
    """Sees that a table and the names in a file agree.

    Args:
      rows: a table.
      names: in the file.
      ignored: regular expression of whole names that need no row.
      where: the file, for the error.

    Returns:
      The names that the table takes up.

    Raises:
      UserError: names are missing in the file, or are not in the table.
    """
    rows = list(rows)
    wanted = {
        name
        for row in rows
        if not row.optional or _present(row, names)
        for layer in _layers(row, _there(row, names))
        for name in layer
    }
    missing = sorted(wanted - set(names))
    extra = sorted(name for name in set(names) - wanted if not re.fullmatch(ignored, name))
    if missing:
        near = near_misses(missing[0], extra) if extra else ""
        raise UserError(f"{where} lacks {_some(missing)}{near}; it is damaged, or of another family")
    if extra:
        raise UserError(f"{where} has {_some(extra)}, for which this family has no place")
    return wanted


def depth(name: str, names: Collection[str]) -> int:
    """How many layers a file has of a stack.

    Args:
      name: of an array of it, with {}.
      names: in the file; an array of any name counts its layer, so that one that another layer lacks is missed.
    """
    place = _LAYER.search(name)
    before, after = name[: place.start()], name[place.end()]
    found = (re.match(f"{re.escape(before)}(\\d{{1,4}}){re.escape(after)}", other) for other in names)
    return max((1 + int(match[1]) for match in found if match), default=0)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more arrays" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _stacked(row: Row) -> bool:
    return bool(_LAYER.search(row.theirs[0]))


def _first(row: Row) -> int:
    """The layer that a stack begins with."""
    return int(_LAYER.search(row.theirs[0])[1] or 0) if _stacked(row) else 0


def _layers(row: Row, depth: int) -> list[list[str]]:
    return [[_LAYER.sub(str(i), name) for name in row.theirs] for i in range(_first(row), _first(row) + depth)]


def _there(row: Row, names: Collection[str]) -> int:
    """How many layers of a row to look for; at least one, so that a row of which nothing is there is missed."""
    return max(1, depth(row.theirs[0], names) - _first(row)) if _stacked(row) else 1


def _present(row: Row, names: Collection[str]) -> bool:
    return _layers(row, 1)[0][0] in names


# ---- tables ----------------------------------------------------------------------------------------------------------


def within(prefix: str, rows: Iterable[Row]) -> tuple[Row, ...]:
    """The same table of arrays whose names begin with a prefix."""
    return tuple(row._replace(theirs=tuple(prefix + name for name in row.theirs)) for row in rows)


def optional(rows: Iterable[Row]) -> list[Row]:
    """The same rows for models that may be without them."""
    return [row._replace(optional=True) for row in rows]


def dense(ours: str, *theirs: str, bias: bool = True) -> list[Row]:
    """A dense layer, or several side by side."""
    rows = [Row((f"{ours}/kernel",), tuple(f"{name}.weight" for name in theirs), "dense")]
    biases = tuple(f"{name}.bias" for name in theirs)
    return rows + ([Row((f"{ours}/bias",), biases, "dense", optional=True)] if bias else [])


def norm(ours: str, theirs: str) -> list[Row]:
    """A layer norm."""
    return [Row((f"{ours}/scale",), (f"{theirs}.weight",)), Row((f"{ours}/bias",), (f"{theirs}.bias",))]


def patch(theirs: str) -> list[Row]:
    """The patch embedding, a convolution [width, 3, side, side]: ours is a dense layer, colours innermost."""
    bias = Row(("patch/bias",), (f"{theirs}.bias",), optional=True)
    return [Row(("patch/kernel",), (f"{theirs}.weight",), "patch"), bias]


def blocks(
    layer: str, *, norms: tuple[str, str], attention: list[Row], mlp: tuple[str | tuple[str, ...], str]
) -> list[Row]:
    """A stack whose layers' names begin with `layer`.

    Args:
      layer: such as "encoder.layers.{}.".
      norms: names of the two layer norms within it.
      attention: rows of the projections.
      mlp: names of the first (or of gate and value) and of the second dense layer.
    """
    up = (mlp[0],) if isinstance(mlp[0], str) else mlp[0]
    return [
        *norm("blocks/norm1", layer + norms[0]),
        *attention,
        *norm("blocks/norm2", layer + norms[1]),
        *dense("blocks/mlp/up", *(layer + name for name in up)),
        *dense("blocks/mlp/down", layer + mlp[1]),
    ]
