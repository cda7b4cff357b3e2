"""What a configuration may say: checked once at start, against what exists, before anything compiles."""

import ast
import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from ml_collections import ConfigDict

from agriclip_jax.data.records import CAPTION_KINDS, NAME
from agriclip_jax.data.views import FILTERS, RESIZES
from agriclip_jax.encoders import TOWERS
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import read_record
from agriclip_jax.peft import METHODS
from agriclip_jax.rules import flatten

STAGES = ("train", "align")
FITS = ("ridge", "sgd")
POSITIVES = ("class", "caption", "none")
NUMBER = (int, float)
SCHEDULE = (int, float, tuple, list)
CENTRINGS = ("centre", "sinkhorn")
FREE = object()  # any keys below: the registry of objectives checks them

_VIEW = {
    "count": int,
    "size": int,
    "scale": tuple,
    "ratio": tuple,
    "flip": NUMBER,
    "jitter": tuple,
    "jitter_prob": NUMBER,
    "grayscale": NUMBER,
    "blur": tuple,
    "sigma": tuple,
    "solarise": tuple,
}
_TOWER = {
    "size": str,
    "width": int,
    "depth": int,
    "heads": int,
    "mlp": int,
    "activation": str,
    "norm_eps": NUMBER,
    "layer_scale": NUMBER,
    "drop_path": NUMBER,
    "unroll": int,
    "pool": str,
}
SCHEMA: dict[str, Any] = {
    "recipe": str,
    "stages": (tuple, list),
    "stage": str,
    "align": {"fit": str},
    "seed": int,
    "total_steps": int,
    "batch_size": int,
    "image_size": int,
    "mesh": str,
    "eval_every": int,
    "log_every": int,
    "checkpoint": {"every": int, "keep": int},
    "data": {
        "path": str,
        "caption_kinds": (tuple, list),
        "captions_per_image": int,
        "threads": int,
        "workers": int,
        "frozen_features": bool,
        "domains": (tuple, list),
        "label_ratio": NUMBER,
        "label_seed": int,
        "unpaired_batch": int,
        "replay": {"path": str, "domains": (tuple, list), "share": NUMBER},
    },
    "objectives": FREE,
    "views": {"global": _VIEW, "local": _VIEW},
    "init": {"model": str, "image": str, "text": str, "teacher": bool, "aligner": str, "aligner_variance": NUMBER},
    "peft": {
        "method": str,
        "towers": (tuple, list),
        "also": (tuple, list),
        "rank": int,
        "alpha": NUMBER,
        "targets": (tuple, list),
        "bottleneck": int,
        "length": int,
    },
    "image": _TOWER
    | {
        "layers": (tuple, list),
        "stem": str,
        "patch": int,
        "head_blocks": int,
        "registers": int,
        "token_keep": NUMBER,
        "pre_norm": bool,
        "patch_bias": bool,
        "rotary_base": NUMBER,
        "antialias": bool,
        "resize": str,
        "crop_share": NUMBER,
        "filter": str,
        "projection": bool,
        "projection_bias": bool,
        "mean": (tuple, list),
        "std": (tuple, list),
    },
    "text": _TOWER
    | {"context_length": int, "tokenizer": str, "vocab_size": int, "causal": bool, "projection_bias": bool},
    "embed_dim": int,
    "temperature": NUMBER,
    "logit_bias": bool,
    "logit_bias_init": NUMBER,
    "dtype": str,
    "remat": str,
    "distill": {
        "hidden": int,
        "bottleneck": int,
        "prototypes": int,
        "student_temperature": NUMBER,
        "teacher_temperature": SCHEDULE,
        "centre_momentum": NUMBER,
        "centring": str,
        "momentum": SCHEDULE,
    },
    "ibot": {"shared_head": bool},
    "gram": {"start": NUMBER, "every": NUMBER, "refreshes": int, "size": int},
    "classify": {"classes": (tuple, list)},
    "contrastive": {"positives": str},
    "sclip": {
        "assignment": str,
        "compare": str,
        "caption_weight": SCHEDULE,
        "keyword_weight": SCHEDULE,
        "detached": bool,
        "linear": bool,
        "keywords": str,
        "phrases": (tuple, list),
    },
    "optimizer": {
        "learning_rate": NUMBER,
        "warmup": NUMBER,
        "end": NUMBER,
        "b1": NUMBER,
        "b2": NUMBER,
        "eps": NUMBER,
        "weight_decay": SCHEDULE,
        "clip_norm": NUMBER,
        "muon": (tuple, list),
        "freeze": (tuple, list),
        "lr_rules": (tuple, list),
        "weight_decay_rules": (tuple, list),
    },
}

# What a recipe may leave out: what weights of others set, where 0 and () keep the size's own, and what few recipes use.
UNSAID: dict[str, Any] = {
    "stage": "train",  # what the run does: a key of `STAGES`
    "align/fit": "ridge",  # how the aligner is fitted: ridge, in closed form, or the paper's sgd
    "stages": (),  # names of the runs, one after the other, that the recipe is made of
    "data/frozen_features": False,  # of a frozen image tower: computed once of each photo, kept, and trained on
    "data/captions_per_image": 0,  # of each kind, always the same of an image; 0: all
    "contrastive/positives": "class",  # which other pairs of a batch are right too: "class", "caption", or "none"
    "classify/classes": (),  # (name, dataset, domain) of each that the data has: the run sets it and keeps it
    "data/domains": (),  # of the training examples: "crop", "weed", ...; () for all
    "data/label_ratio": 1.0,  # share of them whose captions are used; the others are unpaired
    "data/label_seed": 0,  # decides which
    "data/unpaired_batch": 0,  # rows of unpaired examples beside the batch_size paired ones
    "data/replay/path": "",  # another ALive folder, mixed in against forgetting; "": what data.domains leaves out
    "data/replay/domains": (),
    "data/replay/share": 0.0,  # of the rows with captions
    "init/model": "",  # a file, a folder or hf:owner/name that both towers start from
    "init/image": "",  # likewise one tower
    "init/text": "",
    "init/teacher": False,  # of a run, whether its image tower is the student's moving average
    "init/aligner": "",  # AgriCLIP's: projects an image tower without a head into another model's space
    "init/aligner_variance": 0.0,  # of the features it was fitted on, to correct its bias by; 0: as released
    "peft/method": "none",  # what is trained on top of init.model, which else stays as it is: see peft.METHODS
    "peft/towers": TOWERS,  # that it is trained in
    "peft/also": (),  # patterns on parameter paths that train beside it
    "peft/rank": 8,  # of LoRA's matrices, UniPELT's too; LoRA's product counts alpha / rank times
    "peft/alpha": 16.0,
    "peft/targets": ("(image|text)/blocks/attention/qkv/kernel",),  # patterns: the kernels that LoRA adds to
    "peft/bottleneck": 64,  # of adapters
    "peft/length": 10,  # of a prefix, or of prompts, in each block
    "image/mlp": 0,
    "image/norm_eps": 1e-6,
    "image/head_blocks": 0,  # further blocks behind a tower, which train where it is locked (dino.txt)
    "image/layers": (),  # blocks of each stage; given, the tower is a ResNet
    "image/stem": "clip",
    "image/patch_bias": True,
    "image/rotary_base": 0.0,
    "image/antialias": True,
    "image/projection": True,  # False: features are embeddings, and embed_dim is their width
    "image/projection_bias": False,
    "image/resize": "crop",  # how evaluation prepares photos: see data.views.EvalView
    "image/crop_share": 1.0,
    "image/filter": "bicubic",
    "image/mean": (),
    "image/std": (),
    "text/mlp": 0,
    "text/norm_eps": 1e-6,
    "text/projection_bias": False,
    "distill/centring": "centre",  # of the teacher's logits: by DINO's moving centre, or "sinkhorn" as in DINOv2
    "ibot/shared_head": False,  # whether patches go through the head of distill
    "gram/start": 0.5,  # of the run, where the teacher becomes the anchor; until then the objective is 0
    "gram/every": 0.1,  # of the run, after which it becomes the anchor anew ...
    "gram/refreshes": 3,  # ... so many times
    "gram/size": 0,  # pixels to which the anchor's views are enlarged; 0: as they are
    "logit_bias": False,  # added to every logit, as the objective siglip has it
    "logit_bias_init": -10.0,  # where a fresh one starts
    "sclip/assignment": "ot",  # or "soft", "hard": how unpaired images get captions
    "sclip/compare": "images",  # or "texts": what they are compared with
    "sclip/caption_weight": 1.0,
    "sclip/keyword_weight": 1.0,
    "sclip/detached": True,
    "sclip/linear": False,
    "sclip/keywords": "classes",  # or "yake:N", "file:PATH"
    "sclip/phrases": (),  # what `keywords` was found to be: the run sets it and keeps it
}

# Where and how a run goes, not what it computes: free to differ when a run is continued.
WHERE = (
    "mesh",
    "eval_every",
    "log_every",
    "checkpoint/every",
    "checkpoint/keep",
    "data/path",
    "data/replay/path",
    "data/threads",
    "data/workers",
    "remat",
    "image/unroll",
    "text/unroll",
)

# Keys that may be schedules, such as ("cosine", 1.0, 0.0): there the bounds hold for where they start and end.
SCHEDULES = (
    "distill/teacher_temperature",
    "distill/momentum",
    "optimizer/weight_decay",
    "sclip/caption_weight",
    "sclip/keyword_weight",
)

# What a value must be, whether it is, and of which keys; of a tuple or list, each number in it.
BOUNDS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "at least 1",
        lambda v: v >= 1,
        "total_steps batch_size image_size log_every checkpoint/keep embed_dim image/patch views/global/count "
        "distill/hidden distill/bottleneck distill/prototypes text/vocab_size peft/rank "
        "peft/bottleneck peft/length",
    ),
    (
        "at least 0",
        lambda v: v >= 0,
        "seed eval_every checkpoint/every data/threads data/workers data/label_seed data/unpaired_batch "
        "data/captions_per_image "
        "sclip/caption_weight sclip/keyword_weight views/global/size views/local/count "
        "views/local/size image/width image/depth image/heads image/registers image/layer_scale image/unroll "
        "image/head_blocks init/aligner_variance image/mlp image/rotary_base "
        "text/mlp text/width text/depth text/heads text/layer_scale text/unroll "
        "optimizer/learning_rate optimizer/weight_decay optimizer/eps optimizer/clip_norm "
        "views/global/jitter views/local/jitter gram/refreshes gram/size",
    ),
    (
        "at most 2,147,483,647",
        lambda v: v < 1 << 31,
        "total_steps eval_every checkpoint/every",
    ),
    ("at most 16,384", lambda v: v <= 16_384, "image_size"),
    (
        "at most 1,048,576",
        lambda v: v <= 1 << 20,
        "batch_size data/unpaired_batch "
        "embed_dim image/width image/depth image/heads image/mlp image/head_blocks image/registers text/width "
        "text/depth text/heads text/mlp text/context_length distill/hidden distill/bottleneck distill/prototypes "
        "peft/rank peft/bottleneck peft/length",
    ),
    ("from 0.25 to 1", lambda v: 0.25 <= v <= 1, "image/crop_share"),
    ("at most 4,294,967,295", lambda v: v < 1 << 32, "seed data/label_seed"),
    ("at least 2, a start and an end", lambda v: v >= 2, "text/context_length"),
    (
        "at least 0 and below 1",
        lambda v: 0 <= v < 1,
        "image/drop_path text/drop_path optimizer/b1 optimizer/b2 optimizer/warmup data/replay/share",
    ),
    (
        "from 0 to 1",
        lambda v: 0 <= v <= 1,
        "distill/centre_momentum distill/momentum gram/start optimizer/end image/mean "
        "views/global/flip views/global/jitter_prob views/global/grayscale "
        "views/global/blur views/global/solarise views/local/flip views/local/jitter_prob views/local/grayscale "
        "views/local/blur views/local/solarise",
    ),
    (
        "above 0 and at most 1",
        lambda v: 0 < v <= 1,
        "gram/every image/norm_eps image/std image/token_keep text/norm_eps views/global/scale views/local/scale "
        "data/label_ratio",
    ),
    (
        "above 0",
        lambda v: v > 0,
        "peft/alpha image/layers temperature distill/student_temperature distill/teacher_temperature "
        "views/global/ratio views/global/sigma views/local/ratio views/local/sigma",
    ),
)


def overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Dotted key -> text of command-line arguments, every one of the form `--config.KEY=VALUE`.

    Raises:
      UserError: for any other argument.
    """
    found = {}
    for argument in arguments:
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            raise UserError(f"unknown argument {argument!r}; keys of the recipe are set as --config.KEY=VALUE")
        found[key] = value
    return found


def load(spec: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """The configuration of a recipe file, with values from the command line.

    Args:
      spec: "configs/alive.py" or "configs/alive.py:ARG": a Python file with `get_config(arg) -> ConfigDict`.
      overrides: dotted key -> text, read as a value of the key's present type ("3", "0.5", "('cosine', 1, 0)", "a/b").

    Raises:
      UserError: for a missing file, a file without `get_config`, an unknown key or a value of another type.
    """
    path, _, arg = spec.partition(":")
    config = _of_file(Path(path), arg)
    complete(config)
    for key, text in (overrides or {}).items():
        _override(config, key, text)
    check(config)
    if not (config.init.model or config.init.image):  # else the size of a patch is yet to be read
        check_views(config)
    return config


def beside(file: str, name: str, arg: str = "") -> ConfigDict:
    """What the recipe `name` in the folder of a recipe's `file` returns, complete, for that recipe to go on from."""
    config = _of_file(Path(file).with_name(f"{name}.py"), arg)
    complete(config)
    return config


def words(text: str, recipe: str, **known: Sequence[str]) -> dict[str, str]:
    """A recipe's argument, such as "photos,stage=clip", as a dictionary; a bare word is the `variant`.

    Args:
      text: words with commas between them.
      recipe: its name, for the error.
      known: of each key the values there are; the first one holds where the key is left out.

    Raises:
      UserError: a key or value that is unknown, or given twice.
    """
    chosen: dict[str, str] = {}
    for word in filter(None, text.split(",")):
        key, equals, value = word.partition("=")
        key, value = (key, value) if equals else ("variant", key)
        if key in chosen and key in known:
            raise UserError(f"--config: configs/{recipe}.py: {key} is given twice, as {chosen[key]!r} and as {value!r}")
        if value not in known.get(key, ()):
            choices = [v if k == "variant" else f"{k}={v}" for k, values in known.items() for v in values if v]
            raise UserError(f"--config: configs/{recipe}.py has no {word!r}{near_misses(word, choices)}")
        chosen[key] = value
    return {key: values[0] for key, values in known.items()} | chosen


class Stage(NamedTuple):
    """One of the runs that a recipe asks for.

    Attributes:
      name: of its folder in the workdir; empty for the only one, whose folder that is.
      config: checked.
      explicit: dotted keys that were set by hand.
    """

    name: str
    config: ConfigDict
    explicit: frozenset[str]


def stages(spec: str, overrides: Mapping[str, str]) -> list[Stage]:
    """The runs of a recipe in their order: one for each name in `config.stages`, else itself.

    A recipe with stages gives that of one for the word "stage=NAME" in its argument. What is set by hand holds in all
    of them, or in one as `--config.stages.NAME.KEY=VALUE`.

    Raises:
      UserError: as `load` does.
    """
    names = load(spec).stages
    if wrong := [key for key in overrides if key == "stages" or (key.startswith("stages.") and key.count(".") < 2)]:
        raise UserError(
            f"config.{wrong[0]}: a recipe says itself of which stages it is; run one by the word stage=NAME, or set "
            "a key of one by --config.stages.NAME.KEY=VALUE"
        )
    if not names:
        return [Stage("", load(spec, overrides), frozenset(overrides))]
    path, _, arg = spec.partition(":")
    of_one = {key: key.split(".", 2) for key in overrides if key.startswith("stages.") and key.count(".") > 1}
    if wrong := [parts[1] for parts in of_one.values() if parts[1] not in names]:
        raise UserError(f"--config.stages.{wrong[0]}: there is no such stage{near_misses(wrong[0], names)}")
    plan = []
    for name in names:
        given = {key: text for key, text in overrides.items() if key not in of_one}
        given |= {parts[2]: overrides[key] for key, parts in of_one.items() if parts[1] == name}
        try:
            config = load(f"{path}:{','.join(filter(None, [arg, f'stage={name}']))}", given)
        except UserError as error:
            told = str(error)
            for key, parts in of_one.items():
                told = told.replace(f"config.{parts[2]}:", f"config.{key}:") if parts[1] == name else told
            raise UserError(told) from None
        plan.append(Stage(name, config, frozenset(given)))
    return plan


def read(workdir: Path) -> ConfigDict:
    """The configuration that a run keeps, complete.

    Raises:
      UserError: its config.json is missing or damaged.
    """
    config = ConfigDict(read_record(workdir / "config.json", "image", "text", "checkpoint"))
    complete(config)
    return config


def complete(config: ConfigDict) -> None:
    """Adds the keys of `UNSAID` that a recipe, or the record of a run from before they existed, leaves out."""
    with config.unlocked():
        for path, value in UNSAID.items():
            *groups, name = path.split("/")
            node = config
            for group in groups:
                if isinstance(node, ConfigDict) and group not in node:
                    node[group] = ConfigDict(type_safe=False)
                node = node[group] if isinstance(node, ConfigDict) else None
            if isinstance(node, ConfigDict) and name not in node:  # what else it may be, `check` tells
                node[name] = value


def get(config: ConfigDict, key: str) -> Any:
    """The value of a dotted key."""
    return functools.reduce(lambda node, name: node[name], key.split("."), config)


def assign(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets dotted keys, whatever the types they had."""
    for key, value in values.items():
        group, _, name = key.rpartition(".")
        node = get(config, group) if group else config
        with node.unlocked(), node.ignore_type():
            node[name] = value


def images_per_step(config: ConfigDict) -> int:
    """How many images a step sees, with captions and without."""
    return config.batch_size + config.data.unpaired_batch


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal but for lists in place of tuples, as JSON has them."""
    return _plain(one) == _plain(other)


def _of_file(file: Path, arg: str) -> ConfigDict:
    """What the `get_config` of a recipe returns."""
    if not file.is_file():
        raise UserError(f"--config: there is no file {file}; the recipes are in configs/")
    module_spec = importlib.util.spec_from_file_location(f"agriclip_recipe_{file.stem}", file)
    if module_spec is None or module_spec.loader is None:
        raise UserError(f"--config: {file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        config = module.get_config(arg)
    except UserError:
        raise
    except Exception as error:  # the recipe is the user's own code: whatever it raises is theirs to read, in one line
        raise UserError(f"--config: {file} could not be read: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config: get_config of {file} must return an ml_collections.ConfigDict")
    return config


def _override(config: ConfigDict, key: str, text: str) -> None:
    *parents, leaf = key.split(".")
    node = config
    for name in parents:
        if name not in node or not isinstance(node[name], ConfigDict):
            raise UserError(f"--config.{key}: unknown key{near_misses(key, _dotted(config))}")
        node = node[name]
    if parents == ["objectives"] and leaf not in node:
        assign(config, {key: 0.0})  # a recipe need not name it; the registry of objectives knows which there are
    if leaf not in node or isinstance(node[leaf], ConfigDict):
        raise UserError(f"--config.{key}: unknown key{near_misses(key, _dotted(config))}")
    old = node[leaf]
    value: Any = text
    if not isinstance(old, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise UserError(f"--config.{key}: {text!r} is not a {type(old).__name__}") from None
        if isinstance(old, float) and type(value) is int:
            value = float(value)
    assign(config, {key: value})


def _dotted(config: ConfigDict) -> list[str]:
    return [path.replace("/", ".") for path in flatten(config.to_dict())]


def check(config: ConfigDict) -> None:
    """Raises `UserError` for an unknown or missing key (near ones are named), a wrong type or an impossible value."""
    _check_keys(config.to_dict(), SCHEMA, "config")
    flat = flatten(config.to_dict())
    for path, value in flat.items():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, float) and not math.isfinite(part):
                raise UserError(f"config.{path.replace('/', '.')}: {part} is not finite")
    for words, holds, paths in BOUNDS:
        for path in paths.split():
            value = flat[path]
            if path in SCHEDULES and isinstance(value, tuple | list):
                value = [part for part in value[1:3] if isinstance(part, NUMBER)]  # its form is checked elsewhere
            for part in value if isinstance(value, tuple | list) else (value,):
                if not isinstance(part, NUMBER) or not holds(part):
                    raise UserError(f"config.{path.replace('/', '.')}: {part!r} is not {words}")
    for path in ("optimizer/muon", "optimizer/freeze", "peft/targets", "peft/also"):
        if wrong := [part for part in flat[path] if not isinstance(part, str)]:
            raise UserError(f"config.{path.replace('/', '.')}: {wrong[0]!r} is not a pattern on parameter paths")
    if flat.get("objectives/distill") and flat["views/global/count"] + flat["views/local/count"] < 2:
        raise UserError("config.objectives.distill compares views: give config.views.global.count 2, or local views")
    if flat.get("objectives/contrastive") and flat["batch_size"] < 2:
        raise UserError(
            "config.objectives.contrastive tells examples of a batch apart: give config.batch_size at least 2"
        )
    kinds = (*CAPTION_KINDS, NAME)
    for kind in flat["data/caption_kinds"] or ("",):
        if kind not in kinds:
            raise UserError(f"config.data.caption_kinds: unknown {kind!r}{near_misses(str(kind), kinds)}")
    names = {
        "stage": STAGES,
        "align/fit": FITS,
        "image/resize": RESIZES,
        "image/filter": FILTERS,
        "distill/centring": CENTRINGS,
        "contrastive/positives": POSITIVES,
        "peft/method": METHODS,
    }
    for path, known in names.items():
        if flat[path] not in known:
            raise UserError(f"config.{path.replace('/', '.')}: unknown {flat[path]!r}; known: {', '.join(known)}")
    for path in ("image/mean", "image/std"):
        if flat[path] and len(flat[path]) != 3:
            raise UserError(f"config.{path.replace('/', '.')}: {flat[path]!r} is not one of red, of green and of blue")
    if not flat["peft/towers"] or any(tower not in TOWERS for tower in flat["peft/towers"]):
        raise UserError(f"config.peft.towers: {flat['peft/towers']!r} are not among {', '.join(TOWERS)}")
    if flat["dtype"] not in ("float32", "bfloat16"):
        raise UserError(f"config.dtype: unknown {flat['dtype']!r}; known: bfloat16, float32")
    if flat["data/path"] and not Path(flat["data/path"]).is_dir():
        raise UserError(
            f"config.data.path: there is no folder {flat['data/path']}; make one with tools/build_alive.py, "
            "or leave it empty for the embedded corpus"
        )
    if flat["data/replay/path"] and not Path(flat["data/replay/path"]).is_dir():
        raise UserError(f"config.data.replay.path: there is no folder {flat['data/replay/path']}")


def check_views(config: ConfigDict) -> None:
    """Raises `UserError` for an image or view that the image tower cannot cut into patches."""
    side, what = (32, "a ResNet's") if config.image.layers else (config.image.patch, "config.image.patch")
    sizes = {"gram.size": config.gram.size}
    for view in ("global", "local"):
        options = config.views[view]
        if options.count:
            sizes[f"views.{view}.size" if options.size else "image_size"] = options.size or config.image_size
    for key, size in sizes.items():
        if size % side:
            raise UserError(
                f"config.{key}: {size} is not a multiple of {what} {side}; "
                f"use {max(size // side, 1) * side}, or another patch"
            )


def _check_keys(values: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if name not in schema:
            raise UserError(f"{where}.{name}: unknown key{near_misses(name, schema)}")
        wanted = schema[name]
        if wanted is FREE:
            continue
        if isinstance(wanted, Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"{where}.{name}: {value!r} should be a group of {', '.join(wanted)}")
            _check_keys(value, wanted, f"{where}.{name}")
        elif not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            names = " or ".join(t.__name__ for t in (wanted if isinstance(wanted, tuple) else (wanted,)))
            raise UserError(f"{where}.{name}: {value!r} is a {type(value).__name__}, not a {names}")
    if missing := [name for name in schema if name not in values]:
        raise UserError(f"{where}.{missing[0]}: missing; see configs/alive.py for what it means")


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration (nested, JSON-able) decides the mathematics, by path, but for what is as in `UNSAID`."""
    return {
        path: _plain(value)
        for path, value in sorted(flatten(config).items())
        if path not in WHERE and not (path in UNSAID and same(value, UNSAID[path]))
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each key that changes the mathematics and differs between two configurations (nested, JSON-able).

    What a recipe is called does not.
    """
    a, b = flatten(old), flatten(new)
    return [
        f"{path.replace('/', '.')} was {a.get(path)!r}, is now {b.get(path)!r}"
        for path in sorted(a.keys() | b.keys())
        if path not in (*WHERE, "recipe") and not same(a.get(path), b.get(path))
    ]


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, tuple | list) else value


logging.set_verbosity(logging.ERROR)
