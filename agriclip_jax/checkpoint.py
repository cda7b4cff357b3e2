"""Checkpoints: the training state and the position of the data, saved and restored together. The one file on Orbax."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from agriclip_jax import rules
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.state import State

SCORE = "validation"
REST = ("step", "opt_state", "aux", "key", "healthy")

# What a full disk makes Orbax raise, it also logs with a traceback; asyncio does so for every further array, and
# TensorStore reports others to Orbax's event loop after that is closed. One line of ours says it all.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def _report_unraisable(unraisable: Any, report: Callable[[Any], Any] = sys.unraisablehook) -> None:
    if str(unraisable.exc_value) != "Event loop is closed":
        report(unraisable)


sys.unraisablehook = _report_unraisable


class Checkpoints:
    """The checkpoints of one run.

    Each holds the items `params`, `teacher` (if the run has one), `rest` (optimiser, objectives' state, key) and `data`
    (the iterator's position after the last batch that the state consumed). Saving is asynchronous and atomic.
    """

    def __init__(self, folder: str | Path, *, latest: int = 2, without: Collection[str] = ()):
        """Opens or creates a folder that keeps the `latest` newest checkpoints and the best scored one.

        Args:
          without: paths of parameters that `params` leaves out, for they never change and lie elsewhere.

        Raises:
          UserError: when the folder cannot be made.
        """
        policy = keep.AnyPreservationPolicy(
            [
                keep.LatestN(latest),
                keep.BestN(get_metric_fn=lambda m: m[SCORE], n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        self.folder, self._without = Path(folder).absolute(), frozenset(without)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # Orbax stores metrics only when it is told how to rank them, although the policy decides what is kept.
            options = ocp.CheckpointManagerOptions(preservation_policy=policy, best_fn=lambda m: m[SCORE])
            handlers = {name: ocp.StandardCheckpointHandler() for name in ("params", "teacher", "rest")}
            self._manager = ocp.CheckpointManager(
                self.folder, options=options, item_handlers=handlers | {"data": ocp.JsonCheckpointHandler()}
            )
        except OSError as error:
            raise UserError(
                f"cannot write checkpoints to {folder}: {error.strerror or error}; free space or give another --workdir"
            ) from None
        except ValueError as error:
            raise UserError(
                f"one of the checkpoints in {folder} has damaged metrics ({_reason(error)}); remove its folder"
            ) from error

    def save(self, state: State, position: Mapping[str, Any], *, score: float | None = None) -> None:
        """Starts saving; returns when the arrays are copied. `score`: of the validation split, higher is better.

        Raises:
          RunFailure: when an earlier save failed (a full disk): the older checkpoints stay.
        """
        items = {"params": self._kept(state.params), "rest": _rest(state)} | (
            {"teacher": state.teacher} if state.teacher else {}
        )
        args = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        try:
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(data=ocp.args.JsonSave(dict(position)), **args),
                metrics=None if score is None else {SCORE: score},
                force=True,
            )
        except (OSError, ValueError) as error:
            raise RunFailure(_failed(self.folder, error)) from error

    def wait(self) -> None:
        """Returns when everything is on disk; raises `RunFailure` when it could not be written."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except (OSError, ValueError) as error:
            raise RunFailure(_failed(self.folder, error)) from error

    def close(self) -> None:
        """Waits for the last save and releases the threads."""
        self.wait()
        self._manager.close()

    def latest(self) -> int | None:
        """The newest step, `None` when there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All steps, in order."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the highest validation score, `None` when none was scored."""
        scored = {s: m for s in self.steps() if (m := self._manager.metrics(s)) and SCORE in m}
        return max(scored, key=lambda s: scored[s][SCORE], default=None)

    def reached_preemption(self, step: int) -> bool:
        """Whether the platform asked this job of several processes to stop; the same answer on all of them."""
        return self._manager.reached_preemption(step)

    def restore(
        self, step: int, abstract: State, elsewhere: Mapping[str, jax.Array] = MappingProxyType({})
    ) -> tuple[State, dict[str, Any]]:
        """The state and the data position of a step, on the shardings of `abstract`, whatever wrote it.

        Args:
          abstract: a state of `jax.ShapeDtypeStruct` with shardings.
          elsewhere: parameters by path, with those that checkpoints are `without`.

        Raises:
          UserError: when the checkpoint holds other parameters than `abstract`; they are named.
        """
        trees = {"params": self._kept(abstract.params), "rest": _rest(abstract)}
        trees |= {"teacher": abstract.teacher} if abstract.teacher else {}
        items = self._restore(step, trees, data=ocp.args.JsonRestore())
        leaves = rules.flatten(items["rest"])
        rest = {
            name: jax.tree_util.tree_map_with_path(
                lambda path, _, name=name: leaves["/".join(filter(None, [name, rules.path_of(path)]))],
                getattr(abstract, name),
            )
            for name in REST
        }
        state = dataclasses.replace(
            abstract,
            params=self._whole(items["params"], elsewhere),
            teacher=items["teacher"] if abstract.teacher else {},
            **rest,
        )
        return state, items["data"]

    def restore_item(
        self, step: int, name: str, abstract: Any, elsewhere: Mapping[str, jax.Array] = MappingProxyType({})
    ) -> Any:
        """One item of a step (`params` or `teacher`) as `restore` gives it; `abstract`: its shapes and shardings."""
        if name != "params":
            return self._restore(step, {name: abstract})[name]
        return self._whole(self._restore(step, {name: self._kept(abstract)})[name], elsewhere)

    def _kept(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return rules.unflatten({p: v for p, v in rules.flatten(params).items() if p not in self._without})

    def _whole(self, params: Mapping[str, Any], elsewhere: Mapping[str, jax.Array]) -> dict[str, Any]:
        return rules.unflatten(rules.flatten(params) | {path: elsewhere[path] for path in self._without})

    def _restore(self, step: int, trees: Mapping[str, Any], **more: Any) -> Any:
        try:
            metadata = self._manager.item_metadata(step)
            items = {name: metadata[name] for name in trees}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(self._damaged(step, error)) from error
        for name, tree in trees.items():
            saved = items[name]
            if saved is None:
                raise UserError(f"the checkpoint of step {step} in {self.folder} holds no {name!r}")
            shapes = {rules.path_of(p): tuple(v.shape) for p, v in jax.tree_util.tree_leaves_with_path(saved)}
            wanted = {rules.path_of(p): tuple(v.shape) for p, v in jax.tree_util.tree_leaves_with_path(tree)}
            if differing := sorted(p for p in shapes.keys() | wanted.keys() if shapes.get(p) != wanted.get(p)):
                path = differing[0]
                raise UserError(
                    f"the checkpoint of step {step} in {self.folder} is of another model: {len(differing)} parameters "
                    f"of {name!r} differ, first {path} ({shapes.get(path, 'absent')} there, "
                    f"{wanted.get(path, 'absent')} here)"
                )
        args = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args, **more))
        except Exception as error:  # of a missing chunk Orbax tells by a bare Exception
            raise UserError(self._damaged(step, error)) from error

    def _damaged(self, step: int, error: Exception) -> str:
        return (
            f"the checkpoint {self.folder / str(step)} is damaged ({_reason(error)}); remove that folder, and the same "
            "command continues from the one before"
        )


def _rest(state: State) -> dict[str, Any]:
    """The remaining fields as nested dictionaries, so that a checkpoint's layout depends on no class."""
    fields = {name: getattr(state, name) for name in REST}
    return rules.unflatten({rules.path_of(p): v for p, v in jax.tree_util.tree_leaves_with_path(fields)})


def _failed(folder: Path, error: Exception) -> str:
    return (
        f"a checkpoint could not be written to {folder} ({_reason(error)}); free space there and run the same command "
        "again"
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def abstract_state(shapes: State, shardings: State) -> State:
    """A target for `Checkpoints.restore` from shapes and shardings of the same structure."""
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(np.shape(s), s.dtype, sharding=d), shapes, shardings)
