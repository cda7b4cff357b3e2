"""What one step optimises. Adding an objective is one file beside these and one line in `OBJECTIVES`."""

from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.objectives import classify, contrastive, distill, gram, ibot, koleo, sclip, siglip, start
from agriclip_jax.objectives.base import IMAGE, Objective, Parameters, Want, is_chosen

__all__ = ["IMAGE", "OBJECTIVES", "Objective", "Parameters", "Want", "build", "has_teacher", "is_chosen"]

OBJECTIVES: dict[str, Callable[[ConfigDict, Mapping[str, Network], Tokenizer], Objective]] = {
    "classify": classify.build,
    "contrastive": contrastive.build,
    "distill": distill.build,
    "gram": gram.build,
    "ibot": ibot.build,
    "koleo": koleo.build,
    "l2_to_start": start.build,
    "sclip": sclip.build,
    "siglip": siglip.build,
}
WITH_TEACHER = ("distill", "gram", "ibot")


def has_teacher(config: ConfigDict) -> bool:
    """Whether an objective that a configuration gives a weight reads a moving average."""
    return any(is_chosen(config, name) for name in WITH_TEACHER)


def build(config: ConfigDict, towers: Mapping[str, Network], tokenizer: Tokenizer) -> dict[str, Objective]:
    """The objectives with a weight other than 0 in `config.objectives`, by name.

    Raises:
      UserError: for a name that no objective has, when every weight is 0, or when none looks at photos.
    """
    chosen = {}
    for name, weight in config.objectives.items():
        if name not in OBJECTIVES:
            raise UserError(f"config.objectives: unknown objective {name!r}{near_misses(name, OBJECTIVES)}")
        if isinstance(weight, int | float) and weight < 0:
            raise UserError(f"config.objectives.{name}: {weight} is not at least 0")
        if is_chosen(config, name):
            chosen[name] = OBJECTIVES[name](config, towers, tokenizer)
    if not chosen:
        raise UserError("config.objectives: every weight is 0; give at least one objective a weight")
    if not any(objective.wants for objective in chosen.values()):
        raise UserError(f"config.objectives: {', '.join(chosen)} looks at no photo; give another one a weight too")
    return chosen
