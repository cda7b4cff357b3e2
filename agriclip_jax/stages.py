"""A recipe's stages, each a run in a folder of its own: training, or a closed-form fit beside the loop."""

import contextlib
import copy
import dataclasses
import fcntl
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from agriclip_jax import aligner, frozen, inference, initial, mesh, peft, recipe, report, rules
from agriclip_jax import config as configs
from agriclip_jax.checkpoint import Checkpoints, abstract_state
from agriclip_jax.data import corpus, in_order, pipeline, selection, tokenizers
from agriclip_jax.data.records import Alive
from agriclip_jax.data.selection import Examples, Selection
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate import tasks, zeroshot
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.files import new_folder, read_record, write_json, write_whole
from agriclip_jax.inference import Model
from agriclip_jax.initial import Source
from agriclip_jax.logs import Log
from agriclip_jax.state import Learner
from agriclip_jax.train import Every, fit
from agriclip_jax.version import code_version

# What says which run a workdir holds, in the order in which it is written: the last one makes it a run.
IDENTITY = ("tokenizer.json", "config.json", "environment.json", "classes.json", "data.json")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "Pillow")


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
    sharding = mesh.batch_sharding(devices, config.batch_size)
    mesh.batch_sharding(devices, config.data.unpaired_batch, "data.unpaired_batch")
    initial.check_general(config)
    if not config.data.path:
        say("data: the embedded corpus (drawn by the project; config.data.path names another ALive folder)", flush=True)
    alive = Alive.open(config.data.path or corpus.ensure())
    general = recipe.replayed(config, alive)
    folder, sources = workdir / "checkpoints", {}
    begun = is_run(workdir) and any(step.name.isdecimal() for step in folder.glob("*"))
    if begun:
        initial.recall(config, configs.read(workdir), explicit)
    else:
        sources = initial.sources(config, workdir.parent)
        for note in initial.adopt(config, sources, explicit) if sources else ():
            say(note)
    classes, data = what_was_seen(alive, general)
    if is_finished(workdir, config, data, extend=extend, say=say):
        return True
    chosen = recipe.select(config, alive, general)
    for note in recipe.settle_keywords(config, alive, chosen):
        say(note)
    tokenizer = run_tokenizer(workdir, config, sources, chosen, say)
    learner, init = recipe.learner(config, tokenizer)
    if not begun and "image" not in sources and not learner.trains("image"):
        raise UserError(
            "config.optimizer.freeze locks an image tower that is fresh; name the weights it has as config.init.image"
        )
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    shardings = mesh.state_sharding(devices, shapes)
    start, position, record, counts = 0, None, {}, count(learner, shapes.params)
    without = peft.resting(config.peft, rules.flatten(shapes.params))
    if begun:
        general_model = initial.general(workdir, config, shapes.params, shardings.params) if without else {}
        checkpoints = Checkpoints(folder, latest=config.checkpoint.keep, without=without)
        start = checkpoints.latest()
        state, position = checkpoints.restore(start, abstract_state(shapes, shardings), general_model)
        say(f"continuing {workdir} from step {start}: {describe(shapes.params, devices)}", flush=True)
    else:
        imported = initial.parameters(sources, shapes.params, shardings.params)
        if fresh := initial.fresh(sources, shapes.params, imported):
            say(f"fresh: {', '.join(fresh)}")
        if config.peft.method != "none":
            record = {"method": config.peft.method, **counts, **initial.record(config, sources)}
        sources.clear()  # a run of ours is a model on the devices
        state = jax.jit(init, out_shardings=shardings, donate_argnums=1)(key, imported)
        say(f"new run in {workdir}: {describe(shapes.params, devices)}", flush=True)
    if config.peft.method != "none":
        trained, parameters = counts.values()
        say(f"{config.peft.method}: {trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})")
    known = None
    if config.data.frozen_features:
        tower = frozen.Frozen(learner.towers["image"], state.params["image"], recipe.eval_view(config))
        kept = frozen.remembered(tower, alive, "train", config.batch_size, devices, say)
        known = Examples(kept, chosen.paired.places)
    batches = recipe.batches(config, chosen, tokenizer, learner, known)
    try:
        if position is not None:
            batches.set_state(position)
    except UserError as error:
        raise UserError(f"{folder / str(start)}: {error}") from error
    mesh.together("everyone has read the workdir")
    if first:
        held.enter_context(claimed(workdir))
        if record:
            write_json(workdir / initial.RECORD, record)
        prepare_workdir(workdir, config, tokenizer, classes, data, counts)
        if not begun:
            write_overview(workdir, state.params)
    mesh.together("the workdir is written")
    if not begun:
        checkpoints = Checkpoints(folder, latest=config.checkpoint.keep, without=without)

    params = learner.effective(state.params)
    model = inference.Model(config, dict(learner.towers), params, tokenizer, devices, workdir, start)
    by_names = knows_texts(config, learner)
    validation = tasks.from_alive(alive, "val") if by_names and "val" in alive.splits else []

    def validate(state: Any) -> tuple[float, dict[str, Any]]:
        return score(model.at(learner.effective(state.params), int(state.step)), validation)

    try:
        log = Log(workdir, total_steps=config.total_steps, start=start, write=first)
        with contextlib.closing(log):
            ended = fit(
                learner,
                state,
                shardings,
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
    classes, data = what_was_seen(alive)
    if is_run(workdir):
        initial.recall(config, configs.read(workdir), explicit)
        if is_finished(workdir, config, data, extend=False, say=say):
            return True
    sources = initial.sources(config, workdir.parent)
    if set(sources) != {"image", "text"} or "image" not in sources["text"].towers:
        raise UserError(
            "an aligner joins two models: name the one whose image tower is aligned as config.init.image, and the one "
            "whose image space it is aligned to, and whose text tower is taken, as config.init.text"
        )
    for note in initial.adopt(config, sources, explicit):
        say(note)
    configs.assign(config, "image.projection_bias", True)
    is_finished(workdir, config, data, extend=False, say=say)
    splits = [split for split in ("train", "val") if split in alive.splits]
    photos = {split: selection.select(alive, split, domains=config.data.domains).paired for split in splits}
    tokenizer = run_tokenizer(workdir, config, sources, Selection(photos["train"]), say)
    learner, init = recipe.learner(config, tokenizer)
    ours, theirs = (frozen.image_tower(sources[tower], devices) for tower in ("image", "text"))
    ours = ours._replace(view=ours.view._replace(size=config.image_size))

    def pairs(split: str, tenth: bool | None) -> Iterator[tuple[jax.Array, jax.Array, jax.Array]]:
        towers = {"x": (ours, "pooled"), "y": (theirs, "projected")}
        for batch in frozen.look(towers, photos[split], config.batch_size, devices):
            weights = batch[in_order.WEIGHT]
            if tenth is not None:
                weights = weights * ((jnp.arange(len(weights)) % 10 == 0) == tenth)
            yield batch["x"], batch["y"], weights

    began = time.perf_counter()
    say(f"aligning the features of {len(photos['train']):,} photos", flush=True)
    fitting, holding = (("train", None), ("val", None)) if "val" in photos else (("train", False), ("train", True))
    held_out = aligner.moments(pairs(*holding))
    if config.align.fit == "sgd":
        fitted = aligner.sgd(*_collected(pairs(*fitting)), seed=config.seed)
        found = {"fit": "sgd", "r2": aligner.r2(fitted, held_out)}
    else:
        fit = aligner.ridge(aligner.moments(pairs(*fitting)), held_out)
        fitted, found = fit.affine, {"fit": "ridge", "r2": fit.r2, "strength": fit.strength, "tried": fit.tried}
    found["seconds"] = time.perf_counter() - began
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    shardings = mesh.state_sharding(devices, shapes)
    whole = NamedSharding(devices, PartitionSpec())
    given = initial.parameters(sources, shapes.params, shardings.params) | {
        path: jax.device_put(array.astype(np.float32), whole)
        for path, array in {
            "image/projection/kernel": fitted.kernel,
            "image/projection/bias": fitted.bias,
            **{name: array for name, array in sources["text"].scale().items() if name in shapes.params},
        }.items()
    }
    state = jax.jit(init, out_shardings=shardings, donate_argnums=1)(key, given)
    model = inference.Model(config, dict(learner.towers), state.params, tokenizer, devices, workdir, 0)
    if validation := tasks.from_alive(alive, "val") if "val" in alive.splits else []:
        before = frozen.model(sources["text"], config, tokenizer, devices)
        found |= {"zeroshot": score(model, validation)[0], "zeroshot_before": score(before, validation)[0]}
    say(_aligned(found))
    if first:
        held.enter_context(claimed(workdir))
        prepare_workdir(workdir, config, tokenizer, classes, data)
        write_json(workdir / "aligner.json", found)
        write_overview(workdir, state.params)
    mesh.together("the workdir is written")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(state, {}, score=found.get("zeroshot"))
    checkpoints.close()
    finish(model, alive, workdir, say, first)
    return True


def _collected(pairs: Iterator[tuple[jax.Array, jax.Array, jax.Array]]) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a weight above 0, on the host."""
    kept = [(x[w > 0], y[w > 0]) for x, y, w in (map(np.asarray, mesh.gathered(batch)) for batch in pairs)]
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


@contextlib.contextmanager
def claimed(workdir: Path) -> Iterator[None]:
    """Keeps a second run out of a workdir while this one lasts.

    Raises:
      UserError: another run is at work there, or it cannot be made.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"cannot write to {workdir} ({error.strerror}); give another --workdir") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{workdir} is in use by another run; wait for its end, or give another --workdir") from None
    except OSError:
        pass  # some network file systems know no locks
    try:
        yield
    finally:
        os.close(descriptor)


def is_run(workdir: Path) -> bool:
    """Whether `workdir` holds a run; what a first start left that was killed while it wrote `IDENTITY` is none."""
    return (workdir / IDENTITY[-1]).is_file()


def is_finished(workdir: Path, config: ConfigDict, data: Mapping[str, Any], *, extend: bool, say: Any) -> bool:
    """Whether `workdir` holds this very run, finished; false when it is new or may continue.

    Args:
      workdir: of the run.
      config: that it should have.
      data: that it should have seen, as of `what_was_seen`.
      extend, say: as of `run` and `print`.

    Raises:
      UserError: when it is another run: the keys that differ are named.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"{workdir} is a file; give another --workdir")
    if not is_run(workdir):
        begun = (*IDENTITY, initial.RECORD)
        if workdir.is_dir() and any(p.name.removesuffix(".partial") not in begun for p in workdir.iterdir()):
            raise UserError(f"{workdir} is not empty and is no run; give another --workdir")
        return False
    old, seen = configs.read(workdir), read_record(workdir / "data.json", "fingerprint")
    before, now = old.total_steps, config.total_steps
    differing = configs.differences(old.to_dict() | {"total_steps": now}, config.to_dict())
    if seen["fingerprint"] != data["fingerprint"]:
        differing.append("the content of data.path")
    if seen.get("replay") != data.get("replay"):
        differing.append("the content of data.replay.path")
    if differing:
        raise UserError(
            f"{workdir} holds another run: {'; '.join(differing)}; set them back, or give another --workdir"
        )
    if now < before:
        raise UserError(
            f"{workdir} is a run of {before} steps; config.total_steps={now} is fewer: give another --workdir"
        )
    if now > before and not extend:
        raise UserError(
            f"{workdir} is a run of {before} steps; to go on to {now}, add --extend (every schedule is then that of "
            f"{now} steps: the learning rate rises again)"
        )
    if now > before:
        say(f"extending from {before} to {now} steps: the schedules are now those of {now} steps")
    elif (workdir / "zeroshot.json").is_file() and (workdir / "report.html").is_file():
        say(f"{workdir} is finished ({before} steps); its report: {workdir / 'report.html'}")
        if config.stage == "train":
            say(f"to train longer: the same command with --config.total_steps={2 * before} --extend")
        return True
    return False


def prepare_workdir(
    workdir: Path,
    config: ConfigDict,
    tokenizer: Tokenizer,
    classes: Sequence[Mapping[str, str]],
    data: Mapping[str, Any],
    counts: Mapping[str, int] | None = None,
) -> None:
    """Writes what says which run this is: tokenizer, config, environment, classes, data; each whole or not at all.

    `counts`, how many parameters there are and how many are trained, stand in the environment.
    """
    environment = {
        "code": code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": sorted({d.device_kind for d in jax.devices()}),
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        **(counts or {}),
    }
    try:
        for name in ("zeroshot.json", "report.html"):
            (workdir / name).unlink(missing_ok=True)
        if not is_run(workdir):
            tokenizer.save(workdir / "tokenizer.json")
        for name, content in zip(IDENTITY[1:], (config.to_dict(), environment, classes, data), strict=True):
            write_whole(workdir / name, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {workdir} ({error.strerror}); give another --workdir") from None


def write_run(
    out: Path | str,
    config: ConfigDict,
    tokenizer: Tokenizer,
    params: Mapping[str, jax.Array],
    *,
    step: int = 0,
    classes: Sequence[Mapping[str, str]] = (),
) -> str:
    """Writes parameters as the workdir of a run that trains nothing, which every tool takes.

    Args:
      out: a folder that is not there yet, or empty.
      config: of the run; what it would optimise is changed in place.
      tokenizer: of its text tower.
      params: arrays by path; those that are left out are fresh. They are donated.
      step: updates that were made.
      classes: that were seen in training, as in classes.json.

    Returns:
      a line about the model.

    Raises:
      UserError: the folder cannot be written.
    """
    at_rest = {"objectives": ConfigDict({"contrastive": 1.0}), "views.local.count": 0, "optimizer.lr_rules": ()}
    # A checkpoint then holds no optimiser's state, and whatever lies in the towers.
    at_rest |= {"optimizer.muon": (), "optimizer.weight_decay_rules": (), "optimizer.freeze": ("(image|text)/.*",)}
    for key, value in at_rest.items():
        configs.assign(config, key, value)
    _, init = recipe.learner(config, tokenizer)
    devices, key = mesh.make("auto"), jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    made = jax.jit(init, out_shardings=mesh.state_sharding(devices, shapes), donate_argnums=1)(key, params)
    state = dataclasses.replace(made, step=made.step + step)
    with new_folder(out) as workdir:
        prepare_workdir(workdir, config, tokenizer, classes, {"fingerprint": "", "path": "", "splits": {}})
        write_overview(workdir, state.params)
        checkpoints = Checkpoints(workdir / "checkpoints")
        checkpoints.save(state, {})
        checkpoints.close()
    return describe(shapes.params, devices)


def write_model(model: Model, out: Path | str) -> str:
    """Writes a model as the workdir of a run that needs no general one (`config.peft`); else as `write_run`.

    What is left of the method is in its towers: nothing of LoRA, biases and whole towers, the parameters of others.
    """
    config = copy.deepcopy(model.config)
    adds = bool(peft.added(config.peft))
    config.peft.method = config.peft.method if adds else "none"
    configs.assign(config, "peft.also", ("(image|text)/.*",) if adds else ())
    flat = rules.flatten({name: tree for name, tree in model.params.items() if name in recipe.OF_A_MODEL})
    params = {path: jnp.copy(leaf) for path, leaf in flat.items()}  # which `write_run` uses up
    classes = tasks.known_classes(model.workdir)
    return write_run(out, config, model.tokenizer, params, step=model.step, classes=classes)


def what_was_seen(alive: Alive, general: Alive | None = None) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The classes and the data of a run, as its workdir keeps them; `general` is what it replays."""
    classes = [
        {"dataset": slug, "domain": record.domain, "class_key": key, "class_name": name}
        for slug, record in alive.datasets.items()
        for key, name in record.classes.items()
    ]
    data = {"fingerprint": alive.fingerprint, "path": str(alive.path), "splits": alive.splits}
    return classes, data | ({"replay": general.fingerprint} if general else {})


def run_tokenizer(
    workdir: Path, config: ConfigDict, sources: Mapping[str, Source], chosen: Selection, say: Any
) -> Tokenizer:
    """The tokenizer that the run keeps; at first the file it names, its source's, or a BPE of its captions."""
    if is_run(workdir):
        return tokenizers.Tokenizer.load(workdir / "tokenizer.json")
    if config.text.tokenizer and not Path(config.text.tokenizer).exists():
        raise UserError(f"config.text.tokenizer: there is no file {config.text.tokenizer}")
    captions = pipeline.captions(chosen.captioned(), config.data.caption_kinds)
    length = config.text.context_length
    if "text" in sources:
        tokenizer = initial.tokenizer(sources["text"], config.text.tokenizer)
    elif config.text.tokenizer:
        tokenizer = tokenizers.Tokenizer.load(config.text.tokenizer)
    else:
        tokenizer = tokenizers.train(captions, config.text.vocab_size)
    if cut := tokenizer.truncated(captions, length):
        say(f"captions: {cut} of {len(captions)} are longer than config.text.context_length={length} and are cut")
    return tokenizer


def describe(params: Any, devices: Any) -> str:
    """ "12.3 M parameters on 8 x TPU v5e (data=8)"."""
    count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
    kinds = sorted({d.device_kind for d in devices.devices.flat})
    axes = ", ".join(f"{axis}={size}" for axis, size in devices.shape.items() if size > 1) or "one device"
    return f"{count / 1e6:.1f} M parameters on {devices.size} x {'/'.join(kinds)} ({axes})"


def count(learner: Learner, params: Any) -> dict[str, int]:
    """How many numbers are `trained`, and how many `parameters` there are."""
    of = lambda tree: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))  # noqa: E731
    return {"trained": of(learner.optimizer.split(params)[0]), "parameters": of(params)}


def write_overview(workdir: Path, params: Any) -> None:
    """`parameters.txt`: name, shape, size, dtype and sharding of each parameter."""
    from clu import parameter_overview

    text = parameter_overview.get_parameter_overview(params, include_stats="sharding")
    (workdir / "parameters.txt").write_text(text + "\n", encoding="utf-8")


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
