"""The `koleo` objective: image features spread over the sphere."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.losses import geometry
from agriclip_jax.objectives.base import Parameters, Want, student_globals


@dataclass(frozen=True)
class Koleo:
    """KoLeo on the student's pooled features of each global view apart, summed (DINOv2, arXiv 2304.07193)."""

    wants: tuple[Want]
    needs: frozenset[str] = frozenset()
    networks: Mapping[str, Network] = field(default_factory=dict)
    teacher: frozenset[str] = frozenset()

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        return jnp.sum(jax.vmap(geometry.koleo, 1)(features[self.wants[0]].pooled)), {}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Koleo:
    """The objective of a config; it has no options of its own."""
    return Koleo((student_globals(config),))
