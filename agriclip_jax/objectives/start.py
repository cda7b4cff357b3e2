"""The `l2_to_start` objective: towers stay near where they started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from agriclip_jax import peft, rules
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import TOWERS, Network
from agriclip_jax.objectives.base import Parameters, Want
from agriclip_jax.rules import Rule


@dataclass(frozen=True)
class L2ToStart:
    """`L = 1/2 ||theta - theta_0||^2` over the parameters of both towers (L2-SP, arXiv 1802.01483, equation 2).

    The weight is the paper's alpha; weight decay, which pulls to zero, is best left out beside it.

    What never moves adds nothing, and no copy of it is kept.

    Attributes:
      frozen: patterns of `config.optimizer.freeze`.
      peft: `config.peft`.
    """

    frozen: tuple[str, ...]
    peft: Any
    needs: frozenset[str] = frozenset()
    wants: tuple[Want, ...] = ()
    networks: Mapping[str, Network] = field(default_factory=dict)
    teacher: frozenset[str] = frozenset()

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        flat = rules.flatten(params)  # all of it, for patterns of `peft.also` may be of the rest
        table = [Rule(pattern, True, optional=True) for pattern in self.frozen]
        rests = rules.match(table, flat, False, "config.optimizer.freeze")
        still = peft.unmoved(self.peft, flat)
        moves = {path: leaf for path, leaf in flat.items() if not (rests[path] or path in still)}
        return rules.unflatten({path: jnp.copy(leaf) for path, leaf in moves.items() if path.split("/")[0] in TOWERS})

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        now = rules.flatten(params.student)
        moved = {path: now[path] - start for path, start in rules.flatten(aux).items()}
        return 0.5 * optax.tree.norm(moved, squared=True), {}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> L2ToStart:
    """The objective of a config; it has no options of its own."""
    return L2ToStart(tuple(config.optimizer.freeze), config.peft)
