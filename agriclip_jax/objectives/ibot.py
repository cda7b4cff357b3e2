"""The `ibot` objective: what stands under a mask, told from what stands around it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax.data import masks
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.losses import distill as losses
from agriclip_jax.objectives import distill
from agriclip_jax.objectives.base import Parameters, Want, check_patches
from agriclip_jax.objectives.distill import TEACHER, Teaching

STUDENT = Want("student", "image", "global", masked=True)
HEAD = "ibot_head"


@dataclass(frozen=True)
class Ibot:
    """iBOT (arXiv 2111.07832): the student's masked patches predict what the teacher, who sees them, makes of them.

    Only masked patches go through the head: of each image as many as its views can hide, the rest of weight 0.

    Attributes:
      head: name of the head at the top of the parameter tree.
      most: masked patches of all global views of an image, at most.
      teaching: how the teacher's logits become targets.
      student_temperature: tau_s.
    """

    networks: Mapping[str, Network]
    head: str
    most: int
    teaching: Teaching
    student_temperature: float
    needs: frozenset[str] = frozenset({"mask"})
    wants: tuple[Want, ...] = (STUDENT, TEACHER)

    @property
    def teacher(self) -> frozenset[str]:
        return frozenset({"image", self.head})

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return self.teaching.init_aux()

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        mask = batch["mask"]
        of_an_image = lambda x: x.reshape(len(mask), -1, *x.shape[3:])  # noqa: E731
        weights, chosen = jax.lax.top_k(of_an_image(losses.patch_weights(mask)), self.most)
        student, teacher = (
            self.networks[self.head](
                tree[self.head], jnp.take_along_axis(of_an_image(features[want].patches), chosen[..., None], axis=1)
            )
            for tree, want in ((params.student, STUDENT), (params.teacher, TEACHER))
        )
        targets, aux = self.teaching(teacher, aux, step, where=weights > 0)
        loss = losses.ibot(student, targets, weights, temperature=self.student_temperature)
        return loss, {"masked": jnp.mean(mask, dtype=jnp.float32)}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Ibot:
    """The objective of `config.ibot`, with targets and head as `config.distill` has them.

    Raises:
      UserError: the image tower has no patches to hide, or drops some of them.
    """
    check_patches(config, "ibot", "masks")
    head, teaching = distill.head_and_teaching(config, towers)
    name = distill.HEAD if config.ibot.shared_head else HEAD
    views = config.views["global"]
    return Ibot(
        networks={name: head},
        head=name,
        most=masks.most(views.count, (views.size or config.image_size) // config.image.patch),
        teaching=teaching,
        student_temperature=config.distill.student_temperature,
    )
