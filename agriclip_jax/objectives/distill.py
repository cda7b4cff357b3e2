"""The `distill` objective: DINO self-distillation of the image tower."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import DinoHead, Network
from agriclip_jax.losses import distill as losses
from agriclip_jax.objectives.base import Parameters, Want, student_globals
from agriclip_jax.schedules import Schedule, schedule

LOCAL, TEACHER = Want("student", "image", "local"), Want("teacher", "image", "global")
HEAD = "dino_head"


@dataclass(frozen=True)
class Teaching:
    """How the teacher's logits become what the student is to predict; `distill` and `ibot` do it alike.

    Attributes:
      prototypes: how many.
      temperature: schedule of tau_t.
      centring: "centre" (DINO) or "sinkhorn" (DINOv2).
      momentum: m of the centre.
    """

    prototypes: int
    temperature: Schedule
    centring: str
    momentum: float

    def init_aux(self) -> dict[str, jax.Array]:
        """The moving centre, where there is one."""
        return {"centre": jnp.zeros(self.prototypes)} if self.centring == "centre" else {}

    def __call__(
        self, logits: jax.Array, aux: dict[str, jax.Array], step: jax.Array, where: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Targets float32 [batch, n, prototypes] of logits of that shape, and the next centre; `where` as in losses."""
        temperature = self.temperature(step)
        if self.centring == "sinkhorn":
            return losses.sinkhorn_targets(logits, temperature, where=where), aux
        targets = losses.centred_targets(logits, aux["centre"], temperature)
        return targets, {"centre": losses.update_centre(aux["centre"], logits, self.momentum, where)}


@dataclass(frozen=True)
class Distill:
    """DINO (arXiv 2104.14294): the student's view of a part predicts the teacher's view of the whole.

    The student's global views come first in `wants`; where `ibot` is chosen too they are masked, as in DINOv2
    (arXiv 2304.07193).

    Attributes:
      teaching: how the teacher's logits become targets.
      student_temperature: tau_s.
    """

    networks: Mapping[str, Network]
    wants: tuple[Want, ...]
    teaching: Teaching
    student_temperature: float
    needs: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset({"image", HEAD})

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return self.teaching.init_aux()

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        head = self.networks[HEAD]
        views = [features[want].pooled for want in self.wants if want.who == "student"]
        student = head(params.student[HEAD], jnp.concatenate(views, axis=1))
        teacher = head(params.teacher[HEAD], features[TEACHER].pooled)
        targets, aux = self.teaching(teacher, aux, step)
        loss = losses.dino(student, targets, temperature=self.student_temperature)
        entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(targets), axis=-1))
        return loss, {"teacher_entropy": entropy, "teacher_temperature": self.teaching.temperature(step)}, aux


def head_and_teaching(config: ConfigDict, towers: Mapping[str, Network]) -> tuple[Network, Teaching]:
    """The head and the targets of `config.distill`, for towers of any width."""
    options, width = config.distill, towers["image"].config.features
    head = Network(
        lambda rngs: DinoHead(
            width, hidden=options.hidden, bottleneck=options.bottleneck, prototypes=options.prototypes, rngs=rngs
        )
    )
    temperature = schedule(options.teacher_temperature, config.total_steps, "config.distill.teacher_temperature")
    return head, Teaching(options.prototypes, temperature, options.centring, options.centre_momentum)


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Distill:
    """The objective of `config.distill`; without local views it compares the global ones."""
    head, teaching = head_and_teaching(config, towers)
    return Distill(
        networks={HEAD: head},
        wants=(student_globals(config), *((LOCAL,) if config.views.local.count else ()), TEACHER),
        teaching=teaching,
        student_temperature=config.distill.student_temperature,
    )
