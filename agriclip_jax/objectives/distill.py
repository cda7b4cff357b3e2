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
from agriclip_jax.objectives.base import Parameters, Want
from agriclip_jax.schedules import Schedule, schedule

GLOBAL, LOCAL = Want("student", "image", "global"), Want("student", "image", "local")
TEACHER = Want("teacher", "image", "global")
HEAD = "dino_head"


@dataclass(frozen=True)
class Distill:
    """DINO v1 (arXiv 2104.14294): the student's view of a part predicts the teacher's view of the whole.

    Attributes:
      student_temperature: tau_s.
      teacher_temperature: schedule of tau_t.
      centre_momentum: m of the centre.
    """

    networks: Mapping[str, Network]
    wants: tuple[Want, ...]
    prototypes: int
    student_temperature: float
    teacher_temperature: Schedule
    centre_momentum: float
    needs: frozenset[str] = frozenset()
    teacher: frozenset[str] = frozenset({"image", HEAD})

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {"centre": jnp.zeros(self.prototypes)}

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        head = self.networks[HEAD]
        views = [features[want].pooled for want in self.wants if want.who == "student"]
        student = head(params.student[HEAD], jnp.concatenate(views, axis=1))
        teacher = head(params.teacher[HEAD], features[TEACHER].pooled)
        temperature = self.teacher_temperature(step)
        targets = losses.centred_targets(teacher, aux["centre"], temperature)
        loss = losses.dino(student, targets, temperature=self.student_temperature)
        entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(targets), axis=-1))
        aux = {"centre": losses.update_centre(aux["centre"], teacher, self.centre_momentum)}
        return loss, {"teacher_entropy": entropy, "teacher_temperature": temperature}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Distill:
    """The objective of `config.distill`, for towers of any width; without local views it compares the global ones."""
    options = config.distill
    width = towers["image"].config.features
    head = Network(
        lambda rngs: DinoHead(
            width, hidden=options.hidden, bottleneck=options.bottleneck, prototypes=options.prototypes, rngs=rngs
        )
    )
    return Distill(
        networks={HEAD: head},
        wants=(GLOBAL, *((LOCAL,) if config.views.local.count else ()), TEACHER),
        prototypes=options.prototypes,
        student_temperature=options.student_temperature,
        teacher_temperature=schedule(
            options.teacher_temperature, config.total_steps, "config.distill.teacher_temperature"
        ),
        centre_momentum=options.centre_momentum,
    )
