"""What moves the parameters: AdamW, and Muon for the matrices that are named; rules and projections."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from ml_collections import ConfigDict

from agriclip_jax import rules
from agriclip_jax.encoders import MAX_LOGIT_SCALE
from agriclip_jax.errors import UserError
from agriclip_jax.rules import Rule
from agriclip_jax.schedules import Schedule, schedule, warmup_cosine

# Gains, biases and the temperature are not pulled to zero.
WEIGHT_DECAY = (Rule(r"(.*/)?(bias|scale|scale1|scale2|logit_scale|logit_bias)", 0.0, optional=True),)

# The statistics of batch norms are no weights, whatever a recipe's rules say.
STATISTICS = (Rule(r".*/norm/(mean|var)", None, optional=True),)

# Root mean square of Muon's updates: that of AdamW's, so that both take one learning rate (arXiv 2502.16982, eq. 4).
MUON_RMS = 0.2

# After each update: parameter name at the top of the tree, and the projection of its new value, given the old one.
# A temperature that was imported lower than CLIP's bound (SigLIP's) may stay where it is.
PROJECTIONS = {"logit_scale": lambda new, old: jnp.clip(new, 0.0, jnp.maximum(MAX_LOGIT_SCALE, old))}


@dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv 1711.05101) or Muon with global-norm clipping; learning rate and weight decay vary by path and step.

    Attributes:
      learning_rate: schedule.
      multipliers: path -> schedule of the learning-rate multiplier, `None` for frozen; the frozen have no state.
      decays: path -> schedule of the weight decay.
    """

    learning_rate: Schedule
    multipliers: Mapping[str, Schedule | None]
    decays: Mapping[str, Schedule]
    transform: optax.GradientTransformation

    def split(self, params: dict[str, Any]) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """The flat trainable and the flat frozen parameters of a nested tree."""
        flat = rules.flatten(params)
        trainable = {p: v for p, v in flat.items() if self.multipliers[p] is not None}
        return trainable, {p: v for p, v in flat.items() if self.multipliers[p] is None}

    def init(self, params: dict[str, Any]) -> Any:
        """The optimiser's state for a nested tree of parameters."""
        return self.transform.init(self.split(params)[0])

    def update(
        self, grads: dict[str, jax.Array], opt_state: Any, trainable: dict[str, jax.Array], step: jax.Array
    ) -> tuple[dict[str, jax.Array], Any]:
        """New flat trainable parameters and optimiser state from flat gradients."""
        lr = self.learning_rate(step)
        multiplier = {path: self.multipliers[path](step) for path in trainable}
        # A parameter at rest gathers no moments either.
        grads = {path: g * (multiplier[path] != 0) for path, g in grads.items()}
        moved, opt_state = self.transform.update(grads, opt_state, trainable)
        new = {
            path: p - lr * multiplier[path] * (moved[path] + self.decays[path](step) * p)
            for path, p in trainable.items()
        }
        return new | {
            path: PROJECTIONS[path](new[path], trainable[path]) for path in PROJECTIONS.keys() & new
        }, opt_state


def build(config: ConfigDict, shapes: dict[str, Any], resting: Collection[str] = ()) -> Optimizer:
    """The optimiser of `config.optimizer` for a tree of parameters (or of their shapes); paths in `resting` are frozen.

    `freeze` is a list of patterns; `lr_rules` and `weight_decay_rules` are lists of (pattern, multiplier or schedule)
    tried before the house tables, the first match winning. `muon` is a list of patterns: those matrices move by Muon.

    Raises:
      UserError: for a rule that matches nothing, a bad schedule, a vector given to Muon, or when nothing is left to
        train.
    """
    options, total = config.optimizer, config.total_steps
    paths = rules.flatten(shapes)
    frozen = [*STATISTICS, *(Rule(pattern, None) for pattern in options.freeze)]
    lr_table = frozen + _rules(options.lr_rules, "config.optimizer.lr_rules")
    effects = rules.match(lr_table, paths, 1.0, "config.optimizer.freeze/lr_rules")
    multipliers = {
        path: None if effect is None or path in resting else schedule(effect, total, "config.optimizer.lr_rules")
        for path, effect in effects.items()
    }
    if not any(multipliers.values()):
        raise UserError("config.optimizer.freeze: it freezes every parameter; nothing is left to train")
    decay_table = _rules(options.weight_decay_rules, "config.optimizer.weight_decay_rules") + list(WEIGHT_DECAY)
    default = schedule(options.weight_decay, total, "config.optimizer.weight_decay")
    decays = {
        path: default if effect is None else schedule(effect, total, "config.optimizer.weight_decay_rules")
        for path, effect in rules.match(decay_table, paths, None, "config.optimizer.weight_decay_rules").items()
    }
    by_muon = rules.match([Rule(pattern, True) for pattern in options.muon], paths, False, "config.optimizer.muon")
    axes = {path: len(leaf.shape) - rules.layer_axes(path) for path, leaf in paths.items()}
    if vectors := [path for path, chosen in by_muon.items() if chosen and axes[path] < 2]:
        raise UserError(f"config.optimizer.muon: {vectors[0]} is no matrix; Muon moves matrices only")
    adam = optax.scale_by_adam(b1=options.b1, b2=options.b2, eps=options.eps)
    transform = optax.chain(
        optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else optax.identity(),
        optax.partition(
            {"muon": muon(), "adam": adam}, lambda tree: {path: "muon" if by_muon[path] else "adam" for path in tree}
        )
        if options.muon
        else adam,
    )
    lr = warmup_cosine(options.learning_rate, options.warmup, options.end, total)
    return Optimizer(lr, multipliers, decays, transform)


def muon() -> optax.GradientTransformation:
    """Momentum with its singular values set to 1 (Muon: K. Jordan 2024, "Muon: an optimizer for hidden layers").

    The last two axes of a parameter are its matrix; those before them stack matrices that are moved one by one. Updates
    have a root mean square of `MUON_RMS` whatever their shape (arXiv 2502.16982, equation 4).
    """
    last_two = lambda x: optax.contrib.MuonDimensionNumbers(x.ndim - 2, x.ndim - 1)  # noqa: E731
    return optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=lambda tree: jax.tree.map(last_two, tree)),
        optax.stateless_with_tree_map(lambda update, _: update * MUON_RMS * max(update.shape[-2:]) ** 0.5),
    )


def _rules(rows: Sequence[Any], where: str) -> list[Rule]:
    for row in rows:
        if not (isinstance(row, tuple | list) and 2 <= len(row) <= 3 and isinstance(row[0], str)):
            raise UserError(
                f"{where}: {row!r} is no rule; give (pattern, value) or (pattern, value, may match nothing)"
            )
    return [Rule(*row) for row in rows]
