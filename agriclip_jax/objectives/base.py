"""What an objective is: one weighted term of the loss."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError


class Want(NamedTuple):
    """A feature an objective asks for; each distinct one is computed once a step.

    Attributes:
      who: "student" or "teacher".
      tower: "image" or "text".
      view: the view for images ("global", "local"); "" for texts.
      masked: whether the patches of the batch's "mask" (bool [batch, views, patches]) are hidden from it.
      stream: "" for the examples with captions, "unpaired" for those without.
    """

    who: str
    tower: str
    view: str = ""
    masked: bool = False
    stream: str = ""

    @property
    def field(self) -> str:
        """The batch field that it is computed from."""
        name = f"image/{self.view}" if self.tower == "image" else "tokens"
        return f"{self.stream}/{name}" if self.stream else name


# Pairs of an image and a caption, as every contrastive objective reads them.
IMAGE, TEXT = Want("student", "image", "global"), Want("student", "text")


def is_chosen(config: ConfigDict, name: str) -> bool:
    """Whether the objective `name` has a weight other than 0."""
    return config.objectives.get(name, 0) != 0


def check_patches(config: ConfigDict, name: str, does: str) -> None:
    """Raises `UserError` where the image tower lacks or drops patches, which the objective `name` "masks" (`does`)."""
    if config.image.layers:
        raise UserError(
            f"config.objectives.{name}: it {does} patches, and a ResNet has none; take a transformer, or give it "
            "weight 0"
        )
    if config.image.token_keep < 1:
        raise UserError(
            f"config.image.token_keep={config.image.token_keep} drops patches that config.objectives.{name} {does}; "
            "set it to 1.0"
        )


def student_globals(config: ConfigDict) -> Want:
    """The global views as the student sees them in self-distillation: masked where `ibot` is chosen, as in DINOv2.

    So all of it shares one forward pass.
    """
    return Want("student", "image", "global", masked=is_chosen(config, "ibot"))


class Parameters(NamedTuple):
    """The parameters an objective may use: the student's tree, and the teacher's (no gradient flows into it)."""

    student: dict[str, Any]
    teacher: dict[str, Any]


def embedded_pairs(
    image: Network, text: Network, features: Mapping[Want, Any], params: Parameters
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What contrastive losses compare: embeddings of `IMAGE` [batch, views, dim], of `TEXT` [batch, dim], the scale."""
    student = params.student
    images = image(student["image"], features[IMAGE].pooled, method="embed")
    return images, text(student["text"], features[TEXT], method="embed"), jnp.exp(student["logit_scale"])


class Objective(Protocol):
    """A small frozen object; everything that changes is in `params` and `aux`.

    Attributes:
      needs: batch fields it reads beyond what its wanted features imply.
      wants: features it reads. An image feature is `ImageFeatures` with leading axes [batch, views]; a text feature is
        [batch, width].
      networks: its own parameters, by the name they get at the top of the parameter tree.
      teacher: names at the top of the parameter tree whose moving average it reads.
    """

    needs: frozenset[str]
    wants: tuple[Want, ...]
    networks: Mapping[str, Network]
    teacher: frozenset[str]

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Its own state at step 0, made from the parameters there: a centre, a queue, a copy of a tower.

        A nested dictionary of arrays. Parameters are to be copied (`jnp.copy`), for the state is donated; they lie as
        the parameters do, anything else is whole on every device.
        """

    def __call__(
        self,
        features: Mapping[Want, Any],
        params: Parameters,
        aux: dict[str, Any],
        batch: Mapping[str, jax.Array],
        step: jax.Array,
        key: jax.Array,
    ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
        """Returns the unweighted loss float32 [], scalars to log, and the next `aux`."""
