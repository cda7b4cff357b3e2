"""The `l2_to_start` objective: towers stay near where they started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import TOWERS, Network
from agriclip_jax.objectives.base import Parameters, Want


@dataclass(frozen=True)
class L2ToStart:
    """`L = 1/2 ||theta - theta_0||^2` over the parameters of both towers (L2-SP, arXiv 1802.01483, equation 2).

    What is frozen adds nothing. The weight is the paper's alpha; weight decay, which pulls to zero, is best left out
    beside it.
    """

    needs: frozenset[str] = frozenset()
    wants: tuple[Want, ...] = ()
    networks: Mapping[str, Network] = field(default_factory=dict)
    teacher: frozenset[str] = frozenset()

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {tower: jax.tree.map(jnp.copy, params[tower]) for tower in TOWERS}

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        moved = jax.tree.map(jnp.subtract, {tower: params.student[tower] for tower in TOWERS}, aux)
        return 0.5 * optax.tree.norm(moved, squared=True), {}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> L2ToStart:
    """The objective of a config; it has no options of its own."""
    return L2ToStart()
