"""The `gram` objective: how patches resemble each other stays as an earlier teacher had it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError
from agriclip_jax.losses import geometry
from agriclip_jax.objectives.base import Parameters, Want, check_patches, student_globals


@dataclass(frozen=True)
class Gram:
    """Gram anchoring (DINOv3, arXiv 2508.10104, section 4) of the patches of the student's global views.

    The anchor is a copy of the teacher's image tower, taken at step `start` and again every so many steps. Until then
    the loss is 0 and costs nothing, so a schedule of its weight need not wait. In the paper the anchor sees the crop at
    twice the resolution; here it sees the student's own pixels enlarged: a finer grid of patches, no finer detail.

    Attributes:
      image: the image tower.
      start: step at which the anchor is first taken.
      every: steps from one anchor to the next.
      refreshes: how many more are taken.
      size: pixels to which the anchor's views are enlarged; 0 leaves them as they are.
    """

    image: Network
    wants: tuple[Want]
    start: int
    every: int
    refreshes: int
    size: int
    needs: frozenset[str] = frozenset({"image/global"})
    networks: Mapping[str, Network] = field(default_factory=dict)
    teacher: frozenset[str] = frozenset({"image"})

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {"image": jax.tree.map(jnp.copy, params["image"])}

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        since = step - self.start
        is_taken = (since >= 0) & (since % self.every == 0) & (since // self.every <= self.refreshes)
        anchor = jax.lax.cond(is_taken, lambda: params.teacher["image"], lambda: aux["image"])
        student = features[self.wants[0]].patches
        loss = jax.lax.cond(
            since >= 0,
            lambda: geometry.gram_anchoring(student, self._patches(anchor, batch["image/global"])),
            lambda: jnp.float32(0),
        )
        return loss, {}, {"image": anchor}

    def _patches(self, anchor: dict[str, Any], images: jax.Array) -> jax.Array:
        """Patches [batch, views, patches, width], on the student's grid, of uint8 [batch, views, side, side, 3]."""
        views = images.reshape(-1, *images.shape[2:])
        if not self.size:
            patches = self.image(anchor, views).patches
            return patches.reshape(*images.shape[:2], *patches.shape[1:])
        large = (len(views), self.size, self.size, 3)
        patches = self.image(anchor, jax.image.resize(views.astype(jnp.float32), large, "cubic")).patches
        fine = round(patches.shape[1] ** 0.5)
        grid = fine * images.shape[2] // self.size
        square = patches.reshape(-1, fine, fine, patches.shape[-1])
        coarse = jax.image.resize(square, (len(views), grid, grid, patches.shape[-1]), "cubic")
        return coarse.reshape(*images.shape[:2], grid * grid, -1)


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> Gram:
    """The objective of `config.gram`.

    Raises:
      UserError: the anchor's views are smaller than the student's, or patches are dropped.
    """
    options, view = config.gram, config.views["global"].size or config.image_size
    if 0 < options.size < view:
        raise UserError(f"config.gram.size: {options.size} is smaller than the global views, {view}; enlarge it, or 0")
    check_patches(config, "gram", "compares")
    return Gram(
        image=towers["image"],
        wants=(student_globals(config),),
        start=round(options.start * config.total_steps),
        every=max(1, round(options.every * config.total_steps)),
        refreshes=options.refreshes,
        size=options.size,
    )
