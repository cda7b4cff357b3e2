"""The loop. It names no objective, encoder or dataset."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from agriclip_jax.checkpoint import Checkpoints
from agriclip_jax.errors import RunFailure
from agriclip_jax.logs import Log
from agriclip_jax.state import Learner, State


class Batches(Protocol):
    """An endless iterator of this process's rows whose position can be saved."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch handed out, JSON-able."""


@dataclass(frozen=True)
class Every:
    """How often, in steps: rows of metrics (1 or more), evaluations and checkpoints (0: at the end only)."""

    log: int
    evaluation: int
    checkpoint: int


@dataclass(frozen=True)
class Ended:
    """How a run ended; `stopped`: it was asked to stop, which it may be after its last step too."""

    state: State
    stopped: bool


def fit(
    learner: Learner,
    state: State,
    shardings: State,
    batches: Batches,
    place: Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]],
    *,
    total_steps: int,
    every: Every,
    checkpoints: Checkpoints,
    log: Log,
    workdir: Path,
    images: int,
    evaluate: Callable[[State], tuple[float, Mapping[str, Any]]] | None = None,
) -> Ended:
    """Trains from `state.step` to `total_steps`, or until asked to stop (SIGTERM, Ctrl-C).

    Device work runs ahead of the host by one step: while step k runs, batch k + 1 is read and placed, then the metrics
    of step k - 1 are read. A step that is not finite changes nothing (see `State.healthy`), so nothing bad is saved.

    Args:
      learner: what is optimised.
      state: where to start; donated.
      shardings: of the state.
      batches: positioned after the batch that `state` last consumed.
      place: this process's rows -> global arrays on the mesh.
      total_steps: where to end.
      every: cadence of rows, evaluations and checkpoints; the last step always has all three.
      checkpoints: where states go, each with the position of the batch that its step consumed.
      log: rows and the progress line.
      workdir: where a batch goes that made the loss non-finite.
      images: that a step sees, over all processes.
      evaluate: a state -> its validation score, higher is better, and a row for `evaluations.jsonl`.

    Raises:
      RunFailure: for a non-finite loss or gradient: the step, the objective and the saved batch are named.
    """
    step_function = jax.jit(learner.step, donate_argnums=0, out_shardings=(shardings, None))
    start = step = int(state.step)
    meter = Meter(log, total_steps, every.log, step, images)
    stop = False
    ahead = read(batches, place, meter) if step < total_steps else None
    pending = None
    with stop_requests(checkpoints) as stop_requested:
        while step < total_steps and not stop:
            batch, position = ahead
            state, metrics = step_function(state, batch)
            step += 1
            if step < total_steps:
                ahead = read(batches, place, meter)
            if pending:
                meter.add(*_checked(learner, state, workdir, *pending))
            pending = (step, metrics, batch)
            stop = stop_requested(step)
            evaluating = evaluate is not None and (
                step == total_steps or (every.evaluation and step % every.evaluation == 0)
            )
            saving = stop or evaluating or step == total_steps or (every.checkpoint and step % every.checkpoint == 0)
            if saving:
                meter.add(*_checked(learner, state, workdir, *pending))
                pending = None
                score = None
                if evaluating:
                    with meter.paused():
                        score, row = evaluate(state)
                    log.evaluation(step, {"score": score, **row})
                checkpoints.save(state, position, score=score)
        if step > start:
            checkpoints.wait()
            stop = stop or stop_requested(step)
    return Ended(state, stop)


def read(
    batches: Batches, place: Callable[[Mapping[str, np.ndarray]], dict[str, jax.Array]], meter: "Meter"
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The next batch on the devices, and the position after it."""
    with meter.waiting():
        rows = next(batches)
    return place(rows), batches.get_state()


def _checked(
    learner: Learner,
    state: State,
    workdir: Path,
    step: int,
    metrics: Any,
    batch: Mapping[str, jax.Array],
) -> tuple[int, dict[str, float]]:
    """The metrics of a finished step on the host; `state` is then as it was before the first non-finite step."""
    scalars = {name: float(value) for name, value in jax.device_get(metrics).items()}
    if not scalars.pop("healthy"):
        names = learner.culprits(replace(state, healthy=jax.numpy.bool_(True)), batch)
        file = workdir / f"nonfinite-step{step}-process{jax.process_index()}.npz"
        local = {
            name: np.concatenate([np.asarray(s.data) for s in value.addressable_shards if s.replica_id == 0])
            for name, value in batch.items()
        }
        try:
            np.savez(file, **local)
            where = f"is in {file}"
        except OSError as error:
            where = f"could not be saved ({error.strerror})"
        raise RunFailure(
            f"step {step}: the loss or gradient of {' and '.join(names) or 'the weighted sum'} is not finite; the "
            f"batch {where}, the checkpoints before this step are whole; lower config.optimizer.learning_rate in "
            "another --workdir, or look at the batch"
        )
    return step, scalars


class Meter:
    """Counts images and seconds between rows, and writes a row every `every` steps and at the last step."""

    def __init__(self, log: Log, total_steps: int, every: int, start: int, images_per_step: int):
        self._log, self._total, self._every, self._per_step = log, total_steps, every, images_per_step
        self._began = self._since = time.perf_counter()
        self._start, self._images, self._waited = start, 0, 0.0

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes the metrics of one step."""
        self._images += self._per_step
        if step % self._every and step != self._total:
            return
        now = time.perf_counter()
        speed = {"images_per_s": self._images / (now - self._since), "input_wait": self._waited / (now - self._since)}
        left = (now - self._began) / (step - self._start) * (self._total - step)
        self._log.row(step, {**scalars, **speed}, left)
        self._since, self._images, self._waited = now, 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for input, in the row of the time it falls in."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the speeds."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began
        self._began += time.perf_counter() - began


@contextlib.contextmanager
def stop_requests(checkpoints: Checkpoints) -> Iterator[Callable[[int], bool]]:
    """Turns SIGTERM and Ctrl-C into a question the loop asks after each step; a second Ctrl-C ends at once.

    Several processes must stop at the same step: there SIGTERM is left to `jax.distributed`, whose notice reaches all
    of them for the same step, and Ctrl-C is passed on as SIGTERM.
    """
    asked = []

    def ask(number: int, frame: Any) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = [signal.SIGINT] if jax.process_count() > 1 else [signal.SIGINT, signal.SIGTERM]
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield checkpoints.reached_preemption if jax.process_count() > 1 else lambda step: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
