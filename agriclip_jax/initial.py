"""What a run starts from instead of fresh weights: towers of others, adopted into its configuration and its state."""

import copy
import dataclasses
import hashlib
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agriclip_jax import config as configs
from agriclip_jax import inference, peft, recipe, rules
from agriclip_jax.data import tokenizers
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.encoders import TOWERS, vit
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_record
from agriclip_jax.weights import beside, hub, importing
from agriclip_jax.weights.families import Tower

STAGE = "stage:"
RECORD = "peft.json"  # in the workdir of a run of `config.peft`: its general model, and how much of it is trained

# What no array shows. Where no file says it either it is assumed; set by hand, it is what was set.
ASSUMED = (
    *(f"{tower}.{name}" for tower in TOWERS for name in ("activation", "norm_eps", "heads")),
    *(f"image.{name}" for name in ("mean", "std", "resize", "crop_share", "filter")),
)
# Parts of a tower that may be made anew, or left behind.
REPLACEABLE = ("projection", "mask", "head_blocks", "head_norm")
MOST = ("text.vocab_size",)  # of which a recipe says the most there may be, and a source how many there are
RECIPES_OWN = ("drop_path", "token_keep", "unroll", "tokenizer")  # of a tower's keys; the others its source decides


class Source(Protocol):
    """A trained model whose towers may be taken, such as `importing.Foreign`.

    Attributes:
      path: where it lies.
      family: what kind of model it is.
      towers: "image" and "text", where it has them.
      preparation: "resize", "crop_share" and "filter" of `data.views.EvalView`.
      is_described: whether it came with a configuration; else what no array shows is assumed.
    """

    path: Path
    family: str
    towers: Mapping[str, Tower]
    preparation: Mapping[str, Any]
    is_described: bool

    def leaves(self, tower: str) -> Iterator[tuple[str, np.ndarray]]:
        """Paths and float32 arrays of a tower's parameters, one after the other; raises UserError where it cannot."""

    def scale(self) -> Mapping[str, np.ndarray]:
        """`logit_scale`, and `logit_bias` where it has one, float32 []; empty where it has one tower alone."""


class Run:
    """A run of ours as a source: its newest checkpoint."""

    family = "a run of agriclip_jax"
    is_described = True

    def __init__(self, path: Path, use: str = "student"):
        """Raises `UserError` when it holds no checkpoint, no plain towers, or no image tower to `use`.

        Args:
          path: its workdir.
          use: whose image tower, "student" or "teacher".
        """
        self.path = path
        self._model = inference.load(path, use=use)
        if peft.added(options := self._model.config.peft):
            raise UserError(
                f"{path} has parameters of config.peft.method={options.method} in its towers, which no other run can "
                "begin with; give the model that it began with"
            )
        self.towers = {tower: self._model.towers[tower].config for tower in TOWERS}
        image = self._model.config.image
        self.preparation = {name: image[name] for name in ("resize", "crop_share", "filter")}

    def leaves(self, tower: str) -> Iterator[tuple[str, np.ndarray]]:
        for path, array in rules.flatten(self._model.params[tower]).items():
            yield path, np.asarray(array)

    def scale(self) -> Mapping[str, np.ndarray]:
        params = self._model.params
        return {name: np.asarray(params[name]) for name in ("logit_scale", "logit_bias") if name in params}


def check_general(config: ConfigDict) -> None:
    """Raises `UserError` when `config.peft` has no general model to train on top of, or the towers have several."""
    method, others = config.peft.method, [name for name in ("image", "text", "aligner") if config.init[name]]
    if method != "none" and not config.init.model:
        raise UserError(f"config.peft.method={method} trains on top of a general model; name it by config.init.model")
    if method != "none" and others:
        raise UserError(
            f"config.init.{others[0]}: config.peft.method={method} trains on top of config.init.model alone; make one "
            "run of several towers by tools/import_weights.py"
        )


def sources(config: ConfigDict, stages: Path | None = None) -> dict[str, Source]:
    """Where the towers that `config.init` names come from, by tower; of foreign arrays nothing is read yet.

    Args:
      config: its `init` names files, folders, `hf:owner/name`, or `stage:NAME`.
      stages: folder of the runs that a recipe is made of, of which NAME is one.

    Raises:
      UserError: a file cannot be read, or has not the tower that is asked of it.
    """
    specs = {tower: config.init[tower] or config.init.model for tower in TOWERS}
    if config.init.teacher and not specs["image"]:
        raise UserError("config.init.teacher: name the run whose teacher it is by config.init.image")
    uses = {specs["image"]: "teacher"} if config.init.teacher else {}
    named = dict.fromkeys(filter(None, specs.values()))
    opened = {spec: _open(spec, uses.get(spec, "student"), stages) for spec in named}
    for tower, spec in specs.items():
        if spec and tower not in opened[spec].towers:
            had = next(iter(opened[spec].towers))
            raise UserError(
                f"config.init: {spec} ({opened[spec].family}) has no {tower} tower; give it as config.init.{had}"
            )
    found = {tower: opened[spec] for tower, spec in specs.items() if spec}
    if config.init.aligner:
        if not isinstance(found.get("image"), importing.Foreign):
            raise UserError(f"config.init.aligner={config.init.aligner}: name the tower it was fitted to as init.image")
        variance = config.init.aligner_variance or None
        found["image"] = importing.with_aligner(found["image"], hub.local(config.init.aligner), variance)
    return found


def _open(spec: str, use: str, stages: Path | None) -> Source:
    if spec.startswith(STAGE):
        path = stages / spec.removeprefix(STAGE) if stages else Path()
        if not (path / "report.html").is_file():
            raise UserError(
                f"config.init: {spec} is a stage of this recipe that has not been run to its end here; run the recipe "
                "whole, or name a run in its place"
            )
    else:
        path = hub.local(spec)
    if (path / "checkpoints").is_dir():
        return Run(path, use)
    if use == "teacher":
        raise UserError(f"config.init.teacher: {spec} is no run of agriclip_jax, so it has no teacher; leave it out")
    return importing.open_model(path)


def adopt(config: ConfigDict, found: Mapping[str, Source], explicit: Collection[str] = ()) -> list[str]:
    """Sets the keys of a configuration that its sources decide: what their towers are, and the space they share.

    The space is that of the text tower's head, else of the image tower's, else the recipe's; a head of another width
    is made anew. With `config.image.projection` off it is that of the image features (LiT, arXiv 2111.07991).

    Args:
      config: changed in place.
      found: what `sources` gave.
      explicit: dotted keys that the user set by hand.

    Returns:
      what a user should know, line by line.

    Raises:
      UserError: a key set by hand contradicts the arrays, or the recipe's images do not suit the patches.
    """
    towers = {tower: _read_by(config, source.towers[tower]) for tower, source in found.items()}
    image, text = (towers.get(tower) for tower in TOWERS)
    both = _of_both(found)
    embed_dim, projected = config.embed_dim, config.image.projection
    if projected:
        embed_dim = next((tower.embed_dim for tower in (text, image) if tower and tower.embed_dim), embed_dim)
        projected = not (both and not image.embed_dim)  # SigLIP's features are its embeddings
    elif image:
        embed_dim = image.features
    has_bias = config.logit_bias or bool(both and "logit_bias" in both.scale())
    decided: dict[str, Any] = {"embed_dim": embed_dim, "logit_bias": has_bias}
    if both:
        decided["temperature"] = float(np.exp(-both.scale()["logit_scale"].astype(np.float64)))
    for tower, its in towers.items():
        options = recipe.options_of(its)
        if its.embed_dim != embed_dim:
            options["projection_bias"] = config[tower].projection_bias
        decided |= {f"{tower}.{name}": value for name, value in options.items()}
    if image:
        decided["image.projection"] = projected
        decided |= {f"image.{name}": value for name, value in found["image"].preparation.items()}
    if text:
        short = config.text.context_length if text.pool != "last" else math.inf
        decided["text.context_length"] = min(text.context_length, short)
    notes = list(_notes(config, found, decided))
    for key, value in decided.items():
        given = configs.get(config, key)
        if key not in explicit or configs.same(given, value) or (key in MOST and given > value):
            configs.assign(config, {key: value})
        elif key in ASSUMED:
            notes.append(f"config.{key}: {given}, set by hand, in place of {value}")
        else:
            raise UserError(f"config.{key}={given} contradicts config.init, which has {value!r}; leave it out")
    configs.check(config)
    configs.check_views(config)
    return notes


def _read_by(config: ConfigDict, tower: Tower) -> Tower:
    """A source's tower with what a recipe reads it by: a head of blocks, the mean patch beside the class token."""
    if not isinstance(tower, vit.ViTConfig):
        return tower
    pool = "cls_mean" if (tower.pool, config.image.pool) == ("cls", "cls_mean") else tower.pool
    return dataclasses.replace(tower, pool=pool, head_blocks=tower.head_blocks or config.image.head_blocks)


def _notes(config: ConfigDict, found: Mapping[str, Source], decided: Mapping[str, Any]) -> Iterator[str]:
    for tower, source in found.items():
        yield f"{tower} tower: {source.path} ({source.family})"
        assumed = [f"{key} {decided[key]}" for key in ASSUMED if key.startswith(tower) and key in decided]
        if not source.is_described:
            yield f"assumed, for no configuration lies beside it: {', '.join(assumed)}"
    image, text = (found[tower].towers[tower] if tower in found else None for tower in TOWERS)
    if image and image.image_size != config.image_size and not getattr(image, "rotary_base", 0):
        side = image.image_size // image.grid
        yield (
            f"image positions: interpolated from {image.grid} x {image.grid} ({image.image_size} pixels) to "
            f"{config.image_size // side} x {config.image_size // side} (config.image_size {config.image_size})"
        )
    length = decided.get("text.context_length")
    if text and text.context_length != length:
        yield f"text positions: the first {length} of {text.context_length}"


def recall(config: ConfigDict, then: ConfigDict, explicit: Collection[str] = ()) -> None:
    """Sets the keys that sources decide as they were when a run began, so that it needs none of them.

    Args:
      config: changed in place.
      then: the configuration that the run keeps.
      explicit: dotted keys that the user set by hand; they stay, for the difference to be seen.
    """
    towers = [tower for tower in TOWERS if then.init.model or then.init[tower]]
    keys = [f"{tower}.{name}" for tower in towers for name in then[tower] if name not in RECIPES_OWN]
    of_both = then.init.model or then.init.image == then.init.text
    shared = ["embed_dim", "logit_bias", *(["temperature"] if of_both else [])]
    for key in [*shared, *keys] if towers else ():
        had = configs.get(then, key)
        if key not in explicit or (key in MOST and configs.get(config, key) > had):
            configs.assign(config, {key: had})
    configs.check_views(config)


def begins_with_stages(config: ConfigDict) -> bool:
    """Whether a run begins with one that came before it in its recipe."""
    return any(str(spec).startswith(STAGE) for spec in config.init.values())


def tokenizer(source: Source, path: str = "") -> Tokenizer:
    """The tokenizer of a source of a text tower.

    Args:
      source: of the text tower.
      path: the tokenizer's own, where the source comes without one.

    Raises:
      UserError: there is none (AGRICLIP_BPE may name CLIP's), or it is another tower's.
    """
    folder = beside.folder_of(source.path)
    if not path and folder and any((folder / name).is_file() for name in tokenizers.FILES):
        path = str(folder)
    if not (path or os.environ.get(tokenizers.ENVIRONMENT)):
        raise UserError(
            f"{source.path} comes without its tokenizer; name it by config.text.tokenizer, or CLIP's own "
            f"(bpe_simple_vocab_16e6.txt.gz) by ${tokenizers.ENVIRONMENT}"
        )
    found = Tokenizer.load(path)
    tower = source.towers["text"]
    if found.vocab_size > tower.vocab_size or found.end_id != tower.end_id:
        raise UserError(
            f"the tokenizer (of {found.vocab_size} ids, {found.end_id} ends a text) is not that of {source.path} "
            f"({tower.vocab_size} ids, {tower.end_id}); name its own by config.text.tokenizer"
        )
    return found


def parameters(
    found: Mapping[str, Source], shapes: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The sources' parameters by path, each on its devices; the host holds one row of a name map at a time.

    Args:
      found: what `sources` gave.
      shapes: of the tree of parameters of a recipe that `adopt`ed them.
      shardings: likewise.

    Returns:
      those that take the place of fresh ones; a head of another width is left out.

    Raises:
      UserError: a file cannot be read, lacks a parameter, or has one of another shape.
    """
    wanted, places = rules.flatten(shapes), rules.flatten(shardings)
    given: dict[str, jax.Array] = {}
    seen = {}

    def place(path: str, array: np.ndarray, source: Source) -> None:
        if not np.isfinite(array).all():
            raise UserError(f"{source.path}: {path} holds numbers that are not finite; fetch it anew")
        given[path] = jax.make_array_from_callback(array.shape, places[path], lambda index: array[index])

    for tower, source in found.items():
        for name, array in source.leaves(tower):
            path = f"{tower}/{name}"
            seen[path] = array.shape
            if path in wanted:
                array = _resampled(path, array, source.towers[tower], wanted[path].shape)
                if array.shape == wanted[path].shape:
                    place(path, array, source)
    unfit = [*fresh(found, shapes, given), *sorted(seen.keys() - wanted)]
    if unfit := [path for path in unfit if path.split("/")[1] not in REPLACEABLE]:
        path, here = unfit[0], wanted.get(unfit[0])
        raise UserError(
            f"{found[path.split('/')[0]].path}: {len(unfit)} parameters do not fit, first {path} "
            f"({seen.get(path, 'absent')} there, {here.shape if here else 'absent'} here)"
        )
    if both := _of_both(found):
        for path, array in both.scale().items():
            place(path, array, both)
    return given


def general(
    workdir: Path, config: ConfigDict, shapes: Mapping[str, Any], shardings: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The parameters by path that a run of `config.peft` leaves out of its checkpoints: those it began with.

    Args:
      workdir: of the run.
      config: that it keeps.
      shapes: of its tree of parameters.
      shardings: likewise.

    Raises:
      UserError: the general model is gone, or no longer what it was.
    """
    record = read_record(workdir / RECORD, "model", "fingerprint")
    config = copy.deepcopy(config)
    configs.assign(config, {"init.model": record["model"]})
    try:
        found = sources(config)
        given = parameters(found, shapes, shardings)
        unchanged = fingerprint(found) == record["fingerprint"]
    except UserError as error:
        raise UserError(f"{workdir} keeps only what it trained, on top of {record['model']}: {error}") from error
    if not unchanged:
        raise UserError(
            f"{workdir} keeps only what it trained, and {record['model']} holds other weights than it was trained on; "
            f"put them back, or name their place as 'model' in {workdir / RECORD}"
        )
    return given


def record(config: ConfigDict, found: Mapping[str, Source]) -> dict[str, str]:
    """What `general` finds the general model by: where it lies, whatever the current folder is, and its fingerprint."""
    spec = config.init.model
    place = spec if spec.startswith(hub.PREFIX) else str(next(iter(found.values())).path.expanduser().absolute())
    return {"model": place, "fingerprint": fingerprint(found)}


def fingerprint(found: Mapping[str, Source]) -> str:
    """Of the sources' parameters as they lie there, whatever shapes a recipe wants of them."""
    lines = []
    for tower, source in found.items():
        for path, array in source.leaves(tower):
            content = hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data).hexdigest()
            lines.append(f"{tower}/{path} {array.shape} {content}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def fresh(found: Mapping[str, Source], shapes: Mapping[str, Any], given: Collection[str]) -> list[str]:
    """Paths of the imported towers' own parameters that no source gave: heads of another width."""
    own = (path for path in rules.flatten(shapes) if path.split("/")[0] in found and not peft.is_added(path))
    return [path for path in own if path not in given]


def _of_both(found: Mapping[str, Source]) -> Source | None:
    """The source of both towers, if they have one."""
    image, text = (found.get(tower) for tower in TOWERS)
    return image if image is text else None


def _resampled(path: str, array: np.ndarray, tower: Tower, shape: tuple[int, ...]) -> np.ndarray:
    """Positions of the length or grid that is wanted; other arrays as they are."""
    if path == "text/positions":
        return array[: shape[0]]
    if array.shape == shape or path not in ("image/positions", "image/head/positions"):
        return array
    before = len(array) - tower.grid**2  # a ResNet's pool has a place for its mean cell
    side = math.isqrt(shape[0] - before)
    antialias = getattr(tower, "antialias", True)
    cells = vit.interpolate_positions(jnp.asarray(array[before:]), tower.grid, side, side, antialias)
    return np.concatenate([array[:before], np.asarray(cells)])
