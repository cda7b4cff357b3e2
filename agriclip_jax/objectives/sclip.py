"""The `sclip` objective: images without captions learn from those with, and from keywords."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.losses import contrastive, semisupervised
from agriclip_jax.objectives.base import IMAGE, TEXT, Parameters, Want, embedded_pairs
from agriclip_jax.schedules import Schedule, schedule

UNPAIRED = Want("student", "image", "global", stream="unpaired")
COMPARE = ("images", "texts")


@dataclass(frozen=True)
class SClip:
    """S-CLIP (arXiv 2305.14095), mean over the views: `L = pairs + caption_weight captions + keyword_weight keywords`.

    "pairs" is `info_nce_with_unpaired`; the other two are the `pseudo_label_loss` of captions and of keywords. Where
    several captions of a batch are right for one image, as `contrastive` has it, so they are for the unpaired one that
    resembles it: an image that may have caption i may have any that is i's positive.

    Attributes:
      keywords: int32 [keywords, context_length], tokens of each; none when they have no weight.
      caption_weight, keyword_weight: schedules of the weights of the two pseudo-label losses; the paper has 1.
      assignment: a name in `semisupervised.ASSIGNMENTS`.
      compare: an unpaired image with the "images" that have captions, or with their "texts".
      detached: whether no gradient runs through the caption labels.
      linear: the authors' weights of keywords, see `semisupervised.keyword_labels`.
    """

    image: Network
    text: Network
    keywords: np.ndarray
    caption_weight: Schedule
    keyword_weight: Schedule
    assignment: str
    compare: str
    detached: bool
    linear: bool
    needs: frozenset[str]
    wants: tuple[Want, ...] = (IMAGE, TEXT, UNPAIRED)
    networks: Mapping[str, Network] = field(default_factory=dict)
    teacher: frozenset[str] = frozenset()

    def init_aux(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def __call__(self, features: Mapping[Want, Any], params: Parameters, aux, batch, step, key):
        image, text = params.student["image"], params.student["text"]
        images, texts, scale = embedded_pairs(self.image, self.text, features, params)
        unpaired = self.image(image, features[UNPAIRED].pooled, method="embed")
        positive = contrastive.positives(batch["caption_id"], batch["class_id"])
        targets = positive / jnp.sum(positive, axis=1, keepdims=True)
        words = self.text(text, self.text(text, self.keywords), method="embed") if len(self.keywords) else None

        def of_view(images: jax.Array, unpaired: jax.Array) -> dict[str, jax.Array]:
            labels = semisupervised.caption_labels(
                unpaired,
                images if self.compare == "images" else texts,
                scale,
                assignment=self.assignment,
                detached=self.detached,
            )
            spread = jnp.matmul(labels, targets, precision=jax.lax.Precision.HIGHEST)
            terms = {
                "pairs": semisupervised.info_nce_with_unpaired(images, texts, unpaired, scale, positive),
                "captions": semisupervised.pseudo_label_loss(unpaired, texts, scale, spread),
                "confidence": jnp.mean(jnp.max(labels, axis=1)),
            }
            if words is not None:
                shown = semisupervised.keyword_labels(
                    unpaired, words, scale, labels, batch["mentions"], linear=self.linear
                )
                terms["keywords"] = semisupervised.pseudo_label_loss(unpaired, words, scale, shown)
            return terms

        terms = jax.tree.map(jnp.mean, jax.vmap(of_view, (1, 1))(images, unpaired))
        loss = terms["pairs"] + self.caption_weight(step) * terms["captions"]
        loss += self.keyword_weight(step) * terms.get("keywords", 0.0)
        metrics = {f"sclip/{name}": jax.lax.stop_gradient(value) for name, value in terms.items()}
        return loss, {"logit_scale": scale, "positives": jnp.mean(jnp.sum(positive, axis=1)), **metrics}, aux


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> SClip:
    """The objective of `config.sclip`, for the keywords that the run was found to have.

    Raises:
      UserError: an unknown assignment or thing to compare with, or no keywords where they have a weight.
    """
    options = config.sclip
    for name, known in (("assignment", semisupervised.ASSIGNMENTS), ("compare", COMPARE)):
        if options[name] not in known:
            raise UserError(f"config.sclip.{name}: unknown {options[name]!r}{near_misses(options[name], known)}")
    phrases = list(options.phrases) if options.keyword_weight else []
    if options.keyword_weight and not phrases:
        raise UserError("config.sclip.phrases: no keywords; a run finds them by config.sclip.keywords")
    weights = {
        name: schedule(options[name], config.total_steps, f"config.sclip.{name}")
        for name in ("caption_weight", "keyword_weight")
    }
    return SClip(
        image=towers["image"],
        text=towers["text"],
        keywords=tokenizer.encode(phrases, config.text.context_length),
        needs=frozenset({"caption_id", "class_id"} | ({"mentions"} if phrases else set())),
        **weights,
        **{name: options[name] for name in ("assignment", "compare", "detached", "linear")},
    )
