"""The `contrastive` objective: captions and images that belong together meet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.losses import contrastive as losses
from agriclip_jax.objectives.base import IMAGE, TEXT, Parameters, Want, embedded_pairs

# What other pairs of a batch must share to be right too.
IDENTITIES = {
    "class": frozenset({"caption_id", "class_id"}),
    "caption": frozenset({"caption_id"}),
    "none": frozenset(),
}


@dataclass(frozen=True)
class Contrastive:
    """Multi-positive InfoNCE (`losses.contrastive.info_nce`: CLIP, arXiv 2103.00020, with the targets of SupCon).

    Between every global view and the caption drawn for its image, mean over the views.

    Attributes:
      needs: the identities by which others of the batch are right too: of captions and of classes; without any, plain
        InfoNCE as CLIP has it.
    """

    image: Network
    text: Network
    needs: frozenset[str] = frozenset({"caption_id", "class_id"})
    wants: tuple[Want, ...] = (IMAGE, TEXT)
    networks: Mapping[str, Network] = field(default_factory=dict)
    teacher: frozenset[str] = frozenset()

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        images, texts, scale = embedded_pairs(self.image, self.text, features, params)
        itself = jnp.arange(len(texts), dtype=jnp.uint32)[:, None]
        positive = losses.positives(*(batch[name] for name in sorted(self.needs)), itself)
        loss = jnp.mean(jax.vmap(losses.info_nce, (1, None, None, None))(images, texts, scale, positive))
        return loss, {"logit_scale": scale, "positives": jnp.mean(jnp.sum(positive, axis=1))}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Contrastive:
    """The objective of `config.contrastive`."""
    return Contrastive(towers["image"], towers["text"], IDENTITIES[config.contrastive.positives])
