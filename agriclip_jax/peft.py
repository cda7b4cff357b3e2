"""Small parameters on a frozen general model: what a method trains, and LoRA as an operation on trees.

A method leaves the towers of `config.init.model` as they are but for the parameters that its pattern matches. LoRA's
matrices lie at the top of the tree, and towers see their product added; what other methods learn beside the frozen
parameters lies in the blocks themselves (`encoders.layers`).
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from agriclip_jax import rules
from agriclip_jax.encoders import TOWERS
from agriclip_jax.errors import UserError
from agriclip_jax.rules import Rule

LORA = "lora"  # at the top of the tree of parameters

# What methods add to the blocks of a tower: `encoders.layers.Block`.
ADDED = r"blocks/((adapter|adapter1|adapter2)/.*|prompts|attention/(prefix|(lora_a|lora_b|gates)/.*))"

# Method -> pattern, below a tower, of what it trains there; all that is no tower's trains with any of them.
METHODS: dict[str, str] = {
    "none": ".*",  # no general model: an ordinary run
    "full": ".*",
    "lora": "(?!)",  # nothing: its matrices lie at the top
    "bias": "(.*/)?bias",  # BitFit, arXiv 2106.10199
    "pfeiffer": ADDED,  # arXiv 2005.00247
    "houlsby": ADDED,  # arXiv 1902.00751
    "prefix": ADDED,  # arXiv 2101.00190
    "unipelt": ADDED,  # arXiv 2110.07577
    "prompts": ADDED,  # VPT-Deep, arXiv 2203.12119
}


def added(options: Any) -> dict[str, Any]:
    """Fields of `BlockConfig` by which the method of `config.peft` adds to blocks; none for plain towers."""
    return {
        "pfeiffer": {"pfeiffer": options.bottleneck},
        "houlsby": {"houlsby": options.bottleneck},
        "prefix": {"prefix": options.length},
        "unipelt": {"pfeiffer": options.bottleneck, "prefix": options.length, "lora": options.rank, "gated": True},
        "prompts": {"prompts": options.length},
    }.get(options.method, {})


def is_added(path: str) -> bool:
    """Whether a parameter is one that a method added to the blocks of a tower."""
    return re.fullmatch(f"({'|'.join(TOWERS)})/{ADDED}", path) is not None


def resting(options: Any, paths: Iterable[str]) -> frozenset[str]:
    """Paths of the parameters that stay as the general model has them; checkpoints leave them out.

    Args:
      options: `config.peft`.
      paths: of the whole tree.

    Raises:
      UserError: a pattern of `config.peft.also`, or the method's own, matches nothing.
    """
    if options.method == "none":
        return frozenset()
    own = Rule(f"({'|'.join(options.towers)})/{METHODS[options.method]}", False, optional=options.method == LORA)
    table = [*(Rule(pattern, False) for pattern in options.also), own, Rule(f"({'|'.join(TOWERS)})/.*", True)]
    effects = rules.match(table, paths, False, "config.peft")
    return frozenset(path for path, rests in effects.items() if rests)


def fresh(options: Any, params: Mapping[str, Any], key: jax.Array) -> dict[str, Any]:
    """LoRA's matrices at step 0 (arXiv 2106.09685, section 4.1), to be put at the top of the tree.

    Args:
      options: `config.peft`: its patterns `targets` choose kernels of its `towers`.
      params: nested tree of arrays, or of their shapes.
      key: of A's numbers.

    Returns:
      {"lora": tree} with, in the place of each kernel [..., inputs, outputs], float32 `a` [..., inputs, rank], normal
      with a variance of 1 / inputs, and `b` [..., rank, outputs], which is 0; empty for another method.

    Raises:
      UserError: a pattern matches nothing, or what is no matrix.
    """
    if options.method != LORA:
        return {}
    flat = rules.flatten(params)
    targets = _targets(options, flat)
    if not targets:
        raise UserError("config.peft.targets: it is empty; name kernels, such as '.*/attention/qkv/kernel'")
    made = {}
    for path, each in zip(targets, jax.random.split(key, len(targets)), strict=True):
        shape = tuple(flat[path].shape)
        if len(shape) - rules.layer_axes(path) != 2:
            raise UserError(f"config.peft.targets: {path} {shape} is no matrix; LoRA is for matrices only")
        *stacked, inputs, outputs = shape
        made[f"{path}/a"] = jax.random.normal(each, (*stacked, inputs, options.rank)) / inputs**0.5
        made[f"{path}/b"] = jnp.zeros((*stacked, options.rank, outputs))
    return {LORA: rules.unflatten(made)}


def unmoved(options: Any, paths: Iterable[str]) -> frozenset[str]:
    """Paths of the parameters that towers see as the general model has them: those that rest and LoRA adds nothing to.

    Args and error as of `resting`.
    """
    paths = [*paths]
    targets = _targets(options, paths) if options.method == LORA else ()
    return resting(options, paths) - {*targets}


def _targets(options: Any, paths: Iterable[str]) -> list[str]:
    """The kernels that LoRA adds to."""
    of_towers = [path for path in paths if path.split("/")[0] in options.towers]
    table = [Rule(pattern, True) for pattern in options.targets]
    return [path for path, chosen in rules.match(table, of_towers, False, "config.peft.targets").items() if chosen]


def effective(params: dict[str, Any], scale: float) -> dict[str, Any]:
    """The tree that towers and objectives see: W + scale A B in the place of each W that LoRA targets.

    Args:
      params: with or without a "lora".
      scale: alpha / rank.

    Returns:
      a plain tree without "lora"; all arrays but the targets are those of `params`.
    """
    if LORA not in params:
        return params
    flat = rules.flatten({name: tree for name, tree in params.items() if name != LORA})
    small = rules.flatten(params[LORA])
    for path in (path.removesuffix("/a") for path in small if path.endswith("/a")):
        flat[path] += scale * jnp.matmul(small[f"{path}/a"], small[f"{path}/b"], precision="highest")
    return rules.unflatten(flat)
