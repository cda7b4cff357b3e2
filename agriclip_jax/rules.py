"""One engine of rules: a regular expression on parameter paths, and an effect."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import jax

from agriclip_jax.errors import UserError


class Rule(NamedTuple):
    """A row of a rules table.

    Attributes:
      pattern: regular expression that must match a whole path such as "image/blocks/mlp/up/kernel".
      effect: what holds for those parameters; its meaning is the table's.
      optional: may match nothing (rows of house tables that serve several models).
    """

    pattern: str
    effect: Any
    optional: bool = False


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as one level, the keys of each leaf joined by "/"."""
    flat = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        flat |= flatten(value, f"{path}/") if isinstance(value, Mapping) else {path: value}
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def path_of(key_path: Sequence[Any]) -> str:
    """The "a/b/c" form of a `jax.tree_util` key path."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def layer_axes(path: str) -> int:
    """How many axes in front of a parameter's own are of layers: 1 in the stacked blocks of a tower or of its head."""
    return int(re.search(r"/(head_)?blocks/", path) is not None)


def match(table: Sequence[Rule], paths: Iterable[str], default: Any, name: str = "rules") -> dict[str, Any]:
    """The effect on each path: that of the first rule that matches it, else `default`.

    Raises:
      UserError: for a rule that is no regular expression, or that matches nothing and is not optional; near misses
        are named.
    """
    paths = list(paths)
    effects = dict.fromkeys(paths, default)
    undecided = set(paths)
    for rule in table:
        try:
            pattern = re.compile(rule.pattern)
        except re.error as error:
            raise UserError(f"{name}: {rule.pattern!r} is not a regular expression ({error})") from None
        matched = {p for p in paths if pattern.fullmatch(p)}
        if not matched and not rule.optional:
            near = get_close_matches(rule.pattern, paths, n=3, cutoff=0.0)
            raise UserError(f"{name}: {rule.pattern!r} matches no parameter; near ones: {', '.join(near)}")
        for path in matched & undecided:
            effects[path] = rule.effect
        undecided -= matched
    return effects
