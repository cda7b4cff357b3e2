"""The `siglip` objective: every image is asked of every caption whether they belong together."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError
from agriclip_jax.losses import contrastive as losses
from agriclip_jax.objectives.base import IMAGE, TEXT, Parameters, Want, embedded_pairs


@dataclass(frozen=True)
class Siglip:
    """The sigmoid loss (arXiv 2303.15343) of every global view and the caption drawn for its image, mean over views.

    Images of one caption or one class are each other's positives, as in `contrastive`; the paper has one for each.
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
        bias = params.student["logit_bias"]
        positive = losses.positives(batch["caption_id"], batch["class_id"])
        loss = jnp.mean(jax.vmap(losses.sigmoid, (1, None, None, None, None))(images, texts, scale, bias, positive))
        metrics = {"logit_scale": scale, "logit_bias": bias, "positives": jnp.mean(jnp.sum(positive, axis=1))}
        return loss, metrics, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Siglip:
    """The objective of a config; raises `UserError` where the logits have no bias."""
    if not config.logit_bias:
        raise UserError("config.objectives.siglip: the sigmoid loss needs a bias; set config.logit_bias=True")
    return Siglip(towers["image"], towers["text"])
