"""The `classify` objective: every image is told from every class there is, not from those of its batch alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agriclip_jax.data import captions
from agriclip_jax.data.pipeline import class_id
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError
from agriclip_jax.losses import contrastive as losses
from agriclip_jax.objectives.base import IMAGE, Parameters, Want


@dataclass(frozen=True)
class Classify:
    """`losses.contrastive.classify` of every global view, mean over the views, by one template drawn for each step.

    A batch of photos from many collections has few that are hard to tell apart; all classes of a collection, in every
    step, are what its zero-shot task will ask. The text tower reads them all: its cost is that of as many captions.

    Attributes:
      tokens: int32 [templates, classes, context_length].
      classes: uint32 [classes, 2], the hash of what each is, as "class_id" of a batch has it.
    """

    image: Network
    text: Network
    tokens: np.ndarray
    classes: np.ndarray
    needs: frozenset[str] = frozenset({"class_id"})
    wants: tuple[Want, ...] = (IMAGE,)
    networks: Mapping[str, Network] = field(default_factory=dict)
    teacher: frozenset[str] = frozenset()

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        student = params.student
        images = self.image(student["image"], features[IMAGE].pooled, method="embed")
        drawn = jnp.asarray(self.tokens)[jax.random.randint(key, (), 0, len(self.tokens))]
        texts = self.text(student["text"], self.text(student["text"], drawn), method="embed")
        right = jnp.all(batch["class_id"][:, None] == self.classes, axis=-1)
        scale = jnp.exp(student["logit_scale"])
        loss = jnp.mean(jax.vmap(losses.classify, (1, None, None, None))(images, texts, scale, right))
        return loss, {"logit_scale": scale}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Classify:
    """The objective of the classes that the run was found to have; raises `UserError` without any."""
    distinct: dict[bytes, tuple[str, str, str]] = {}
    for name, dataset, domain in config.classify.classes:
        distinct.setdefault(class_id(name, dataset).tobytes(), (name, dataset, domain))
    if not distinct:
        raise UserError("config.objectives.classify: no example has a class; set its weight to 0")
    texts = [
        [text for text, _ in captions.captions(name, domain, dataset)] for name, dataset, domain in distinct.values()
    ]
    tokens = [
        tokenizer.encode(list(of_template), config.text.context_length) for of_template in zip(*texts, strict=True)
    ]
    classes = np.frombuffer(b"".join(distinct), np.uint32).reshape(-1, 2)
    return Classify(towers["image"], towers["text"], np.stack(tokens), classes)
