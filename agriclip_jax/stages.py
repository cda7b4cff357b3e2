"""A recipe's stages, each a run in a folder of its own: training, or a closed-form fit beside the loop."""

import contextlib
import copy
import dataclasses
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from agriclip_jax import aligner, frozen, inference, initial, mesh, peft, recipe, report, rules, runs
from agriclip_jax import config as configs
from agriclip_jax.checkpoint import Checkpoints, abstract_state
from agriclip_jax.data import corpus, in_order, selection, tokenizers
from agriclip_jax.data.pipeline import TrainBatches
from agriclip_jax.data.records import Alive
from agriclip_jax.data.selection import Examples
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate import tasks, zeroshot
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.files import read_record, write_json
from agriclip_jax.inference import Model
from agriclip_jax.logs import Log
from agriclip_jax.state import Learner, State
from agriclip_jax.train import Every, fit


def run(config: ConfigDict, workdir: Path, *, explicit: Collection[str], extend: bool, command: str) -> bool:
    """Runs the stage that a configuration describes, or goes on where it stopped.

    Args:
      config: checked; completed here by what its sources decide.
      workdir: of the run.
      explicit: dotted keys that the user set by hand.
      extend: whether a finished run may go on to a larger `total_steps`.
      command: what starts it again, shown to the user.

    Returns:
      False when it was asked to stop before its end.

    Raises:
      UserError: for bad input or configuration, before anything is written.
      RunFailure: when a run that began cannot go on.
    """
    with contextlib.ExitStack() as held:
        if config.stage == "align":
            return align(config, workdir, explicit, held)
        return train(config, workdir, explicit, extend, command, held)


def check(plan: Sequence[configs.Stage], workdir: Path) -> None:
    """Raises `UserError` for what would end a recipe's later stages after those before them were trained for hours."""
    by_name = {f"{initial.STAGE}{stage.name}": stage.config for stage in plan}
    for stage in plan[1:]:
        if runs.is_run(workdir / stage.name):
            continue  # it has begun, and no longer needs all that it began with
        try:
            _check_later(copy.deepcopy(stage.config), stage.explicit, by_name)
        except UserError as error:
            raise UserError(f"stage {stage.name}: {error}") from error


def _check_later(config: ConfigDict, explicit: Collection[str], by_name: Mapping[str, ConfigDict]) -> None:
    """What a stage asks of its data, of weights from outside its recipe, and of its own parameters by their names."""
    alive = Alive.open(config.data.path or corpus.ensure())
    general = recipe.replayed(config, alive)
    recipe.settle(config, alive, general, recipe.select(config, alive, general))
    initial.check_general(config)
    outside = copy.deepcopy(config)
    if before := [f"init.{name}" for name, spec in config.init.items() if str(spec).startswith(initial.STAGE)]:
        configs.assign(outside, {**dict.fromkeys(before, ""), "init.teacher": False})
    found = initial.sources(outside)
    if found and not before:
        initial.adopt(config, found, explicit)
    _, init = recipe.learner(config, tokenizers.train((), config.text.vocab_size))
    jax.eval_shape(init, jax.random.key(0))
    tower = by_name.get(config.init.image)
    fresh = tower and not (tower.init.model or tower.init.image)  # else its sources say how wide it is
    if config.stage == "align" and config.align.fit == "ridge" and fresh:
        fitting, _ = _to_fit_and_to_judge(config, alive)
        aligner.check_count(len(fitting), recipe.image_tower(tower).features)


def train(
    config: ConfigDict,
    workdir: Path,
    explicit: Collection[str],
    extend: bool,
    command: str,
    held: contextlib.ExitStack,
) -> bool:
    """Trains a recipe; arguments and result as of `run`, and what is `held` until its end."""
    first = jax.process_index() == 0
    say = print if first else lambda *_, **__: None
    devices = mesh.make(config.mesh)
    mesh.batch_sharding(devices, config.batch_size)
    mesh.batch_sharding(devices, config.data.unpaired_batch, "data.unpaired_batch")
    initial.check_general(config)
    if not config.data.path:
        say("data: the embedded corpus (drawn by the project; config.data.path names another ALive folder)", flush=True)
    alive = Alive.open(config.data.path or corpus.ensure())
    general = recipe.replayed(config, alive)
    sources: dict[str, initial.Source] = {}
    there = configs.read(workdir) if runs.is_run(workdir) else None
    begun = there and any(step.name.isdecimal() for step in (workdir / "checkpoints").glob("*"))
    settled = [key for key in recipe.SETTLED if key not in explicit] if there else ()
    configs.assign(config, {key: configs.get(there, key) for key in settled})
    if begun:
        initial.recall(config, there, explicit)
    if not begun or initial.begins_with_stages(config):
        sources = initial.sources(config, workdir.parent)
    for note in initial.adopt(config, sources, explicit) if sources and not begun else ():
        say(note)
    classes, data = runs.what_was_seen(config, alive, general, sources)
    if begun:
        classes = tasks.known_classes(workdir)  # what its sources had seen too
        sources.clear()  # a run of ours is a model on the devices
    if runs.is_finished(workdir, config, data, extend=extend, say=say):
        return True
    chosen = recipe.select(config, alive, general)
    for note in recipe.settle(config, alive, general, chosen):
        say(note)
    tokenizer = runs.tokenizer_of(workdir, config, sources, chosen, say)
    learner, init = recipe.learner(config, tokenizer)
    if not begun and "image" not in sources and not learner.trains("image"):
        raise UserError(
            "config.optimizer.freeze locks an image tower that is fresh; name the weights it has as config.init.image"
        )
    making = _Making(config, learner, init, devices)
    counts, records = runs.count(learner, making.shapes.params), {}
    if config.peft.method != "none":
        trained, parameters = counts.values()
        say(f"{config.peft.method}: {trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})")
        if not begun:
            records[initial.RECORD] = {"method": config.peft.method, **counts, **initial.record(config, sources)}
    what, position, checkpoints = runs.describe(making.shapes.params, devices), None, None
    if begun:
        checkpoints = making.checkpoints(workdir)
        state, position = making.go_on(workdir, checkpoints)
        begins = f"continuing {workdir} from step {int(state.step)}"
    else:
        state = making.begin(sources, say)
        begins = f"new run in {workdir}"
    known, start = None, int(state.step)
    if config.data.frozen_features:
        tower = frozen.Frozen(learner.towers["image"], state.params["image"], recipe.eval_view(config))
        kept, seconds = frozen.remembered(tower, alive, "train", config.batch_size, devices, say)
        known = Examples(kept, chosen.paired.places)
        if not begun:
            records[runs.FEATURES] = {"seconds": seconds}
    batches = recipe.batches(config, chosen, tokenizer, learner, known)
    try:
        if position is not None:
            batches.set_state(position)
    except UserError as error:
        raise UserError(f"{workdir / 'checkpoints' / str(start)}: {error}") from error
    say(f"{begins}: {what}", flush=True)
    mesh.together("everyone has read the workdir")
    if first:
        held.enter_context(runs.claimed(workdir))
        for name, record in records.items():
            write_json(workdir / name, record)
        runs.prepare(workdir, config, tokenizer, classes, data, counts)
        if not begun:
            runs.write_overview(workdir, state.params)
    mesh.together("the workdir is written")

    params = learner.effective(state.params)
    model = inference.Model(config, dict(learner.towers), params, tokenizer, devices, workdir, start)
    checkpoints = checkpoints or making.checkpoints(workdir)
    return _to_the_end(making, model, state, batches, checkpoints, alive, command, say)


@dataclass(frozen=True)
class _Making:
    """What the state of a training run is made from, whether it begins or goes on."""

    config: ConfigDict
    learner: Learner
    init: Callable[..., State]
    devices: Mesh

    @cached_property
    def shapes(self) -> State:
        """Of the state."""
        return jax.eval_shape(self.init, jax.random.key(self.config.seed))

    @cached_property
    def shardings(self) -> State:
        """Of the state."""
        return mesh.state_sharding(self.devices, self.shapes)

    @cached_property
    def without(self) -> frozenset[str]:
        """Paths of the parameters that checkpoints leave out: those of the model under what `config.peft` trains."""
        return peft.resting(self.config.peft, rules.flatten(self.shapes.params))

    def checkpoints(self, workdir: Path) -> Checkpoints:
        """Of the run in a workdir."""
        return Checkpoints(workdir / "checkpoints", latest=self.config.checkpoint.keep, without=self.without)

    def begin(self, sources: dict[str, initial.Source], say: Any) -> State:
        """The state at step 0: fresh, but for what `sources` have, which are dropped.

        Raises:
          UserError: a source cannot be read, or something would stay as random as it starts.
        """
        imported = initial.parameters(sources, self.shapes.params, self.shardings.params)
        fresh, method = initial.fresh(sources, self.shapes.params, imported), self.config.peft.method
        if fresh:
            say(f"fresh: {', '.join(fresh)}")
        if lost := sorted(self.without & set(fresh)):
            raise UserError(
                f"config.peft.method={method} would leave {lost[0]} at random, for config.init.model has none that "
                "fits; train it by config.peft.also"
            )
        if lost := [path for path in fresh if self.learner.optimizer.multipliers[path] is None]:
            raise UserError(
                f"config.optimizer.freeze would leave {lost[0]} at random, for nothing that config.init names has one "
                "that fits; let its patterns leave that out"
            )
        sources.clear()  # a run of ours is a model on the devices
        return self.with_parameters(imported)

    def with_parameters(self, given: Mapping[str, jax.Array]) -> State:
        """The state at step 0 with parameters by path, which are donated, and fresh others."""
        make = jax.jit(self.init, out_shardings=self.shardings, donate_argnums=1)
        return make(jax.random.key(self.config.seed), given)

    def go_on(self, workdir: Path, checkpoints: Checkpoints) -> tuple[State, dict[str, Any]]:
        """The state of the latest checkpoint, and the position in the data.

        Raises:
          UserError: it cannot be read, or the model that it lies on has changed.
        """
        below = {}
        if self.without:
            below = initial.general(workdir, self.config, self.shapes.params, self.shardings.params)
        return checkpoints.restore(checkpoints.latest(), abstract_state(self.shapes, self.shardings), below)


def _to_the_end(
    making: _Making,
    model: Model,
    state: State,
    batches: TrainBatches,
    checkpoints: Checkpoints,
    alive: Alive,
    command: str,
    say: Any,
) -> bool:
    """Makes the steps that are left, then the table and the report; returns as `run` does, and raises `RunFailure`."""
    config, learner, workdir, first = making.config, making.learner, model.workdir, jax.process_index() == 0
    sharding = mesh.batch_sharding(making.devices, config.batch_size)
    by_names = knows_texts(config, learner)
    validation = tasks.from_alive(alive, "val") if by_names and "val" in alive.splits else []

    def validate(state: Any) -> tuple[float, dict[str, Any]]:
        return score(model.at(learner.effective(state.params), int(state.step)), validation)

    try:
        log = Log(workdir, total_steps=config.total_steps, start=model.step, write=first)
        with contextlib.closing(log):
            ended = fit(
                learner,
                state,
                making.shardings,
                batches,
                lambda rows: mesh.place_batch(rows, sharding),
                total_steps=config.total_steps,
                every=Every(config.log_every, config.eval_every, config.checkpoint.every),
                checkpoints=checkpoints,
                log=log,
                workdir=workdir,
                images=configs.images_per_step(config),
                evaluate=validate if validation else None,
            )
        step, stopped = int(ended.state.step), ended.stopped
        checkpoints.close()
        if not stopped:
            try:
                last = model.at(learner.effective(ended.state.params), step)
                finish(last, alive if by_names else None, workdir, say, first)
            except KeyboardInterrupt:
                stopped = True
        if stopped:
            say(f"stopped; step {step} is saved in {workdir / 'checkpoints'}. To continue:\n  {command}")
        return not stopped
    except UserError as error:
        with contextlib.suppress(RunFailure):
            checkpoints.wait()  # one on its way is finished first
        raise RunFailure(str(error)) from error  # whatever it was: the run had begun


def align(config: ConfigDict, workdir: Path, explicit: Collection[str], held: contextlib.ExitStack) -> bool:
    """Joins the image tower of one model to the text tower of another by an aligner; arguments and result as of `run`.

    The aligner maps the features of the first to the image features of the second, before their length is taken off,
    over the training photos as evaluation sees them. The ridge's strength is chosen on the validation split, or on
    every tenth photo where there is none. What results is a run of no steps, whose image tower projects by the aligner.

    Raises:
      UserError: as `run` does; a model is missing, or has not the towers that it needs.
    """
    first = jax.process_index() == 0
    say = print if first else lambda *_, **__: None
    devices = mesh.make(config.mesh)
    alive = Alive.open(config.data.path or corpus.ensure())
    if config.peft.method != "none":
        raise UserError(f"config.peft.method={config.peft.method}: an aligner is fitted, not trained; set it to none")
    sources = initial.sources(config, workdir.parent)
    if set(sources) != {"image", "text"} or "image" not in sources["text"].towers:
        raise UserError(
            "an aligner joins two models: name the one whose image tower is aligned as config.init.image, and the one "
            "whose image space it is aligned to, and whose text tower is taken, as config.init.text"
        )
    for note in initial.adopt(config, sources, explicit):
        say(note)
    configs.assign(config, {"image.projection": True, "image.projection_bias": True})
    # Of the model of the texts the image tower too: its space is what is fitted.
    record, target = workdir / "aligner.json", {"image": sources["text"]}
    fitted_on = f"{initial.fingerprint(sources)} {initial.fingerprint(target)}"
    if runs.is_run(workdir):  # it makes no steps, so that more of them change nothing
        config.total_steps = configs.read(workdir).total_steps
    classes, data = runs.what_was_seen(config, alive, None, sources)
    moved = not record.is_file() or read_record(record, "fitted_on")["fitted_on"] != fitted_on
    tell = (lambda *_: None) if moved else say
    if runs.is_finished(workdir, config, data, extend=False, say=tell) and not moved:
        return True
    fitting, holding = _to_fit_and_to_judge(config, alive)
    tokenizer = initial.tokenizer(sources["text"], config.text.tokenizer)
    learner, init = recipe.learner(config, tokenizer)
    making = _Making(config, learner, init, devices)
    given = initial.parameters(sources, making.shapes.params, making.shardings.params)
    projection = ("image/projection/kernel", "image/projection/bias")
    if fresh := sorted(set(initial.fresh(sources, making.shapes.params, given)) - {*projection}):
        raise UserError(f"an aligner fits no {fresh[0]}, which would stay at random; set config.image.head_blocks to 0")
    if config.align.fit == "ridge":
        aligner.check_count(len(fitting), learner.towers["image"].config.features)
    given |= jax.device_put({n: v for n, v in sources["text"].scale().items() if n in making.shapes.params})
    state = making.with_parameters({path: leaf for path, leaf in given.items() if path not in projection})
    ours = frozen.Frozen(learner.towers["image"], state.params["image"], recipe.eval_view(config))
    theirs = frozen.image_tower(sources["text"], devices)

    say(f"aligning the features of {len(fitting):,} photos", flush=True)
    fitted, found = _fit_aligner(config, ours, theirs, fitting, holding, devices)
    found |= {"fitted_on": fitted_on}
    flat, places = rules.flatten(state.params), rules.flatten(making.shardings.params)
    for path, array in zip(projection, fitted, strict=True):
        flat[path] = jax.device_put(array.astype(np.float32), places[path])
    state = dataclasses.replace(state, params=rules.unflatten(flat))
    model = inference.Model(config, dict(learner.towers), state.params, tokenizer, devices, workdir, 0)
    if validation := tasks.from_alive(alive, "val") if "val" in alive.splits else []:
        before = frozen.model(sources["text"], config, tokenizer, devices)
        found |= {"zeroshot": score(model, validation)[0], "zeroshot_before": score(before, validation)[0]}
    say(_aligned(found))
    if first:
        held.enter_context(runs.claimed(workdir))
        counts = runs.count(learner, state.params) | {"trained": sum(array.size for array in fitted)}
        runs.prepare(workdir, config, tokenizer, classes, data, counts)
        write_json(record, found)
        runs.write_overview(workdir, state.params)
    mesh.together("the workdir is written")
    if first:
        shutil.rmtree(workdir / "checkpoints", ignore_errors=True)  # of a fit that was stopped before its report
    mesh.together("the checkpoint can be written")
    try:
        checkpoints = Checkpoints(workdir / "checkpoints")
        checkpoints.save(state, {}, score=found.get("zeroshot"))
        checkpoints.close()
        finish(model, alive, workdir, say, first)
    except UserError as error:
        raise RunFailure(str(error)) from error  # whatever it was: the run had begun
    return True


def _fit_aligner(
    config: ConfigDict,
    ours: frozen.Frozen,
    theirs: frozen.Frozen,
    fitting: Examples,
    holding: Examples,
    devices: Mesh,
) -> tuple[aligner.Affine, dict[str, Any]]:
    """The affine map from the features of one tower to those of another, and what a record says of it."""
    began = time.perf_counter()

    def pairs(photos: Examples) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        towers = {"x": (ours, "pooled"), "y": (theirs, "projected")}
        for batch in frozen.look(towers, photos, config.batch_size, devices):
            yield batch["x"], batch["y"], batch[in_order.WEIGHT]

    held_out = aligner.moments(pairs(holding))
    if config.align.fit == "sgd":
        fitted = aligner.sgd(*_collected(mesh.gathered(batch, devices) for batch in pairs(fitting)), seed=config.seed)
        found = {"fit": "sgd", "r2": aligner.r2(fitted, held_out)}
    else:
        fit = aligner.ridge(aligner.moments(pairs(fitting)), held_out)
        fitted, found = fit.affine, {"fit": "ridge", "r2": fit.r2, "strength": fit.strength, "tried": fit.tried}
    return fitted, found | {"seconds": time.perf_counter() - began}


def _to_fit_and_to_judge(config: ConfigDict, alive: Alive) -> tuple[Sequence[Any], Sequence[Any]]:
    """The photos that an aligner is fitted on, and those held out: of the validation split, else every tenth."""
    fitting = selection.select(alive, "train", domains=config.data.domains).paired
    try:
        holding = selection.select(alive, "val", domains=config.data.domains).paired
    except UserError:  # no such split, or nothing of these domains in it
        holding = ()
    if len(holding) < 2:  # one photo has no variance to explain
        tenth = np.arange(len(fitting)) % 10 == 0
        fitting, holding = (Examples(fitting, np.flatnonzero(rows)) for rows in (~tenth, tenth))
    return fitting, holding


def _collected(pairs: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a weight above 0."""
    kept = [(x[weights > 0], y[weights > 0]) for x, y, weights in pairs]
    return tuple(np.concatenate(column) for column in zip(*kept, strict=True))


def _aligned(found: Mapping[str, Any]) -> str:
    """What a user wants to know of a fit, in one line."""
    parts = [f"held-out R2 {found['r2']:.3f}"]
    if "strength" in found:
        parts.append(f"ridge strength {found['strength']:.2g} of the mean variance")
    if "zeroshot" in found:
        gain = 100 * (found["zeroshot"] - found["zeroshot_before"])
        parts.append(f"validation top-1 {100 * found['zeroshot']:.1f} ({gain:+.1f} over the model it is aligned to)")
    return f"aligner ({found['fit']}): {', '.join(parts)}"


def score(model: Model, tasks: Sequence[Task]) -> tuple[float, dict[str, Any]]:
    """Mean zero-shot top-1 over tasks, and each task's."""
    top1 = {r.task.name: r.metrics.top1 for r in zeroshot.evaluate(model, tasks) if r.metrics}
    return sum(top1.values()) / max(len(top1), 1), top1


def knows_texts(config: ConfigDict, learner: Learner) -> bool:
    """Whether the text tower is trained here or was before; else every score by names would be chance."""
    learns = any(want.tower == "text" for objective in learner.objectives.values() for want in objective.wants)
    return learns or bool(config.init.model or config.init.text)


def finish(model: Model, alive: Alive | None, workdir: Path, say: Any, first: bool) -> None:
    """The zero-shot table of the test split, printed and written, and the report; without `alive`, no table."""
    asked = tasks.from_alive(alive, "test" if "test" in alive.splits else "train") if alive else []
    results = zeroshot.evaluate(model, asked)
    model = model.alone()
    if first:
        zeroshot.write(results, workdir / "zeroshot.json", model)
        if results:
            zeroshot.show(results)
        else:
            why = "no image has a label" if alive else "no objective reads texts"
            say(f"{why}, so there is nothing to score by names; tools/probe.py says what the features are worth")
        say(f"report: {report.write_report(workdir, model, results)}")
    mesh.together("the report is written")
