"""The folder of a run: what it holds, what says which run it is, and who may write to it."""

import contextlib
import copy
import dataclasses
import fcntl
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from agriclip_jax import config as configs
from agriclip_jax import initial, mesh, peft, recipe, rules
from agriclip_jax.checkpoint import Checkpoints
from agriclip_jax.data import pipeline, tokenizers
from agriclip_jax.data.records import Alive
from agriclip_jax.data.selection import Selection
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import tasks
from agriclip_jax.files import new_folder, read_record, write_whole
from agriclip_jax.inference import Model
from agriclip_jax.initial import Source
from agriclip_jax.state import Learner
from agriclip_jax.version import code_version

# What says which run a workdir holds, in the order in which it is written: the last one makes it a run.
IDENTITY = ("tokenizer.json", "config.json", "environment.json", "classes.json", "data.json")
FEATURES = "features.json"  # what the features of a locked tower took
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy", "Pillow")


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
        begun = (*IDENTITY, initial.RECORD, FEATURES)
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
    if seen.get("began_with", data.get("began_with")) != data.get("began_with"):
        raise UserError(
            f"{workdir} began with stages that have changed since; remove it, and it is trained on them anew"
        )
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


def prepare(
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
        tokenizer.save(workdir / "tokenizer.json")
        for name, content in zip(IDENTITY[1:], (config.to_dict(), environment, classes, data), strict=True):
            write_whole(workdir / name, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"cannot write to {workdir} ({error.strerror}); give another --workdir") from None


def write(
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
    configs.assign(config, at_rest)
    _, init = recipe.learner(config, tokenizer)
    devices, key = mesh.make("auto"), jax.random.key(config.seed)
    shapes = jax.eval_shape(init, key)
    made = jax.jit(init, out_shardings=mesh.state_sharding(devices, shapes), donate_argnums=1)(key, params)
    state = dataclasses.replace(made, step=made.step + step)
    with new_folder(out) as workdir:
        prepare(workdir, config, tokenizer, classes, {"fingerprint": "", "path": "", "splits": {}})
        write_overview(workdir, state.params)
        checkpoints = Checkpoints(workdir / "checkpoints")
        checkpoints.save(state, {})
        checkpoints.close()
    return describe(shapes.params, devices)


def write_model(model: Model, out: Path | str) -> str:
    """Writes a model as the workdir of a run that needs no general one (`config.peft`); else as `write`.

    What is left of the method is in its towers: nothing of LoRA, biases and whole towers, the parameters of others.
    """
    config = copy.deepcopy(model.config)
    adds = bool(peft.added(config.peft))
    config.peft.method = config.peft.method if adds else "none"
    configs.assign(config, {"peft.also": ("(image|text)/.*",) if adds else ()})
    flat = rules.flatten({name: tree for name, tree in model.params.items() if name in recipe.OF_A_MODEL})
    flat.pop("image/mask", None)  # of training by iBOT
    params = {path: jnp.copy(leaf) for path, leaf in flat.items()}  # which `write` uses up
    classes = tasks.known_classes(model.workdir)
    return write(out, config, model.tokenizer, params, step=model.step, classes=classes)


def what_was_seen(
    config: ConfigDict, alive: Alive, general: Alive | None, sources: Mapping[str, Source]
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """The classes that a run has seen and its data, as its workdir keeps them.

    Args:
      config: its `data` names the domains that are seen.
      alive: what it is trained on.
      general: what it replays.
      sources: what it starts from; of runs it has their classes too. Of stages their weights are part of the data.
    """
    options = config.data
    classes = [
        {"dataset": slug, "domain": record.domain, "class_key": key, "class_name": name, "shares": record.shares}
        for folder, domains in ((alive, options.domains), (general, options.replay.domains))
        for slug, record in (folder.datasets.items() if folder else ())
        if not domains or record.domain in domains
        for key, name in record.classes.items()
    ]
    for source in sources.values():
        classes += tasks.known_classes(source.path)
    classes = list({(each["dataset"], each["class_key"]): each for each in classes}.values())
    data = {"fingerprint": alive.fingerprint, "path": str(alive.path), "splits": alive.splits}
    data |= {"replay": general.fingerprint} if general else {}
    if config.stage == "train" and initial.begins_with_stages(config):
        data["began_with"] = initial.fingerprint(sources)
    return classes, data


def tokenizer_of(
    workdir: Path, config: ConfigDict, sources: Mapping[str, Source], chosen: Selection, say: Any
) -> Tokenizer:
    """The tokenizer that the run keeps; at first the file it names, its source's, or a BPE of its captions."""
    if is_run(workdir):
        return tokenizers.Tokenizer.load(workdir / "tokenizer.json")
    if config.text.tokenizer and not Path(config.text.tokenizer).exists():
        raise UserError(f"config.text.tokenizer: there is no file {config.text.tokenizer}")
    options = config.data
    captions = pipeline.captions(chosen.captioned(), options.caption_kinds, options.captions_per_image)
    length = config.text.context_length
    if "text" in sources:
        tokenizer = initial.tokenizer(sources["text"], config.text.tokenizer)
    elif config.text.tokenizer:
        tokenizer = tokenizers.Tokenizer.load(config.text.tokenizer)
    else:
        try:
            tokenizer = tokenizers.train(captions, config.text.vocab_size)
        except UserError as error:
            raise UserError(f"config.text.vocab_size: {error}") from None
    if cut := tokenizer.truncated(captions, length):
        say(f"captions: {cut} of {len(captions)} are longer than config.text.context_length={length} and are cut")
    return tokenizer


def describe(params: Any, devices: Any) -> str:
    """ "12.3 M parameters on 8 x TPU v5e (data=8)"."""
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
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
