"""The training state and the one step that moves it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from agriclip_jax import rules
from agriclip_jax.data import feature_store
from agriclip_jax.encoders import Network
from agriclip_jax.encoders.vit import ImageFeatures
from agriclip_jax.objectives import IMAGE, Objective, Parameters, Want
from agriclip_jax.optim import Optimizer
from agriclip_jax.schedules import Schedule


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything a step reads and writes; a pytree of arrays.

    Attributes:
      step: int32 [], updates made.
      params: nested dictionary of float32 arrays: "image", "text", "logit_scale", and the objectives' own.
      opt_state: the optimiser's.
      teacher: moving average of some of `params`' top-level entries.
      aux: objective name -> its own state.
      key: uint32 [...], data of the PRNG key of the run; never advanced, folded with the step.
      healthy: bool [], false from the first non-finite loss or gradient on; that step and all after change nothing.
    """

    step: jax.Array
    params: dict[str, Any]
    opt_state: Any
    teacher: dict[str, Any]
    aux: dict[str, Any]
    key: jax.Array
    healthy: jax.Array


@dataclass(frozen=True)
class Learner:
    """What a recipe optimises and how; holds no arrays.

    Attributes:
      towers: "image" and "text".
      objectives: by name.
      weights: objective name -> schedule of its weight.
      optimizer: moves the parameters.
      momentum: schedule of the teacher's momentum.
      effective: the parameters as the towers, the teacher and the objectives see them, of those that are moved.
    """

    towers: Mapping[str, Network]
    objectives: Mapping[str, Objective]
    weights: Mapping[str, Schedule]
    optimizer: Optimizer
    momentum: Schedule
    effective: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: params

    def init(self, params: dict[str, Any], key: jax.Array) -> State:
        """The state at step 0 for fresh or imported parameters."""
        names = frozenset().union(*(o.teacher for o in self.objectives.values()))
        seen = self.effective(params)
        return State(
            step=jnp.int32(0),
            params=params,
            opt_state=self.optimizer.init(params),
            teacher={name: jax.tree.map(jnp.copy, seen[name]) for name in sorted(names)},
            aux={name: objective.init_aux(seen) for name, objective in self.objectives.items()},
            key=jax.random.key_data(key),
            healthy=jnp.bool_(True),
        )

    def trains(self, tower: str) -> bool:
        """Whether any parameter of a tower moves, its projection apart."""
        rates = {path.removeprefix("lora/"): rate for path, rate in self.optimizer.multipliers.items() if rate}
        return any(path.startswith(f"{tower}/") and path.split("/")[1] != "projection" for path in rates)

    def losses(
        self, params: dict[str, Any], state: State, batch: Mapping[str, jax.Array]
    ) -> dict[str, tuple[jax.Array, dict[str, jax.Array], dict[str, jax.Array]]]:
        """Each objective's unweighted loss, scalars to log and next own state; each distinct feature computed once."""
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        wants = sorted(frozenset().union(*(o.wants for o in self.objectives.values())))
        both = Parameters(self.effective(params), jax.lax.stop_gradient(state.teacher))
        features = {
            want: feature(self.towers, want, both, batch, jax.random.fold_in(key, i)) for i, want in enumerate(wants)
        }
        return {
            name: objective(features, both, state.aux[name], batch, state.step, jax.random.fold_in(key, len(wants) + i))
            for i, (name, objective) in enumerate(self.objectives.items())
        }

    def step(self, state: State, batch: Mapping[str, jax.Array]) -> tuple[State, dict[str, jax.Array]]:
        """One update of everything.

        Args:
          state: donated by the caller.
          batch: global arrays; every leading axis is the global batch, or its unpaired rows.

        Returns:
          the next state, and scalars: "loss", "loss/<objective>", "lr", "grad_norm", "healthy" and the objectives' own.
        """
        trainable, frozen = self.optimizer.split(state.params)

        def total(trainable: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
            results = self.losses(rules.unflatten(trainable | frozen), state, batch)
            loss = sum(self.weights[name](state.step) * result[0] for name, result in results.items())
            return loss, results

        (loss, results), grads = jax.value_and_grad(total, has_aux=True)(trainable)
        grad_norm = optax.tree.norm(grads)
        healthy = state.healthy & jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        trainable, opt_state = self.optimizer.update(grads, state.opt_state, trainable, state.step)
        params = rules.unflatten(trainable | frozen)
        momentum, seen = self.momentum(state.step), self.effective(params)
        moved = State(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            teacher=jax.tree.map(
                lambda t, s: momentum * t + (1 - momentum) * s, state.teacher, {n: seen[n] for n in state.teacher}
            ),
            aux={name: result[2] for name, result in results.items()},
            key=state.key,
            healthy=healthy,
        )
        kept = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), moved, replace(state, healthy=healthy))
        metrics = {"loss": loss, "grad_norm": grad_norm, "lr": self.optimizer.learning_rate(state.step)}
        metrics |= {f"loss/{name}": result[0] for name, result in results.items()}
        for _, scalars, _ in results.values():
            metrics |= scalars
        if state.teacher:
            metrics["teacher_momentum"] = momentum
        return kept, metrics | {"healthy": healthy}

    def culprits(self, state: State, batch: Mapping[str, jax.Array]) -> list[str]:
        """Names of the objectives whose loss or gradient is not finite on `batch`; slow, for the error message."""
        trainable, frozen = self.optimizer.split(state.params)
        bad = []
        for name in self.objectives:

            def loss(trainable: dict[str, jax.Array], name: str = name) -> jax.Array:
                return self.losses(rules.unflatten(trainable | frozen), state, batch)[name][0]

            value, grads = jax.jit(jax.value_and_grad(loss))(trainable)
            if not (jnp.isfinite(value) and jnp.isfinite(optax.tree.norm(grads))):
                bad.append(name)
        return bad


def feature(
    towers: Mapping[str, Network], want: Want, params: Parameters, batch: Mapping[str, jax.Array], key: jax.Array
) -> Any:
    """One wanted feature: image features with leading axes [batch, views], or text features [batch, width].

    Pooled image features that came with the batch (of a frozen tower, computed once) are taken from there. The teacher
    sees no token dropping and no stochastic depth.
    """
    tree = getattr(params, want.who)[want.tower]
    key = None if want.who == "teacher" else key
    if want.tower == "text":
        return towers["text"](tree, batch[want.field], key=key)
    if want == IMAGE and feature_store.FIELD in batch:
        return ImageFeatures(batch[feature_store.FIELD], patches=None)
    images = batch[want.field]
    mask = {"mask": batch["mask"].reshape(-1, batch["mask"].shape[-1])} if want.masked else {}
    views = towers["image"](tree, images.reshape(-1, *images.shape[2:]), key=key, **mask)
    return jax.tree.map(lambda x: x.reshape(*images.shape[:2], *x.shape[1:]), views)


def init_params(
    towers: Mapping[str, Network], objectives: Mapping[str, Objective], logit_scale: jax.Array, key: jax.Array
) -> dict[str, Any]:
    """Fresh parameters of the towers and of the objectives' own networks."""
    networks = dict(towers) | {n: net for o in objectives.values() for n, net in o.networks.items()}
    keys = jax.random.split(key, len(networks))
    params = {name: networks[name].init(k) for name, k in zip(sorted(networks), keys, strict=True)}
    return params | {"logit_scale": logit_scale}


def batch_fields(objectives: Mapping[str, Objective]) -> frozenset[str]:
    """The batch fields that the objectives read, directly or through the features they want."""
    fields = frozenset().union(*(o.needs for o in objectives.values()))
    wants: list[Want] = [want for o in objectives.values() for want in o.wants]
    fields |= {"mask"} if any(want.masked for want in wants) else frozenset()
    return fields | {want.field for want in wants}
