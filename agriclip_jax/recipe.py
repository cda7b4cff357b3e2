"""From a configuration to the things it names: towers, objectives, optimiser, views."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from agriclip_jax import config as configs
from agriclip_jax import encoders, objectives, optim, peft, rules
from agriclip_jax.data import feature_store, keywords, pipeline, selection
from agriclip_jax.data.parallel import cores
from agriclip_jax.data.pipeline import TrainBatches
from agriclip_jax.data.records import Alive, named_classes
from agriclip_jax.data.selection import Selection
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.data.views import EvalView, ViewSpec
from agriclip_jax.encoders import Network, resnet, text, vit
from agriclip_jax.errors import UserError
from agriclip_jax.objectives import IMAGE
from agriclip_jax.schedules import schedule
from agriclip_jax.state import Learner, State, batch_fields, init_params

# At the top of a tree of parameters, what a model is of; the rest serves its training.
OF_A_MODEL = ("image", "text", "logit_scale", "logit_bias")


def towers(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Network]:
    """The image and the text tower; numbers left at 0 keep the size's own value.

    Raises:
      UserError: for names and sizes that do not exist or do not fit together.
    """
    image = image_tower(config)
    # A tower that was trained elsewhere may have rows to spare; a fresh one has a row for each id.
    rows = config.text.vocab_size if config.init.model or config.init.text else tokenizer.vocab_size
    words = text.TextConfig(
        _blocks(config, "text"),
        vocab_size=rows,
        context_length=config.text.context_length,
        end_id=tokenizer.end_id,
        embed_dim=image.embed_dim or image.features,
        causal=config.text.causal,
        pool=config.text.pool,
        projection_bias=config.text.projection_bias,
    )
    return {"image": encoders.tower(image), "text": encoders.tower(words)}


def image_tower(config: ConfigDict) -> vit.ViTConfig | resnet.ResNetConfig:
    """What the image tower is; raises as `towers` does."""
    return _resnet(config) if config.image.layers else _vit(config)


def _vit(config: ConfigDict) -> vit.ViTConfig:
    options = config.image
    return vit.ViTConfig(
        _blocks(config, "image"),
        patch=options.patch,
        head_blocks=options.head_blocks,
        registers=options.registers,
        token_keep=options.token_keep,
        pre_norm=options.pre_norm,
        patch_bias=options.patch_bias,
        rotary_base=options.rotary_base,
        antialias=options.antialias,
        mask_token=objectives.is_chosen(config, "ibot"),
        **_of_any_image_tower(config),
    )


def _resnet(config: ConfigDict) -> resnet.ResNetConfig:
    options = config.image
    if peft.added(config.peft) and "image" in config.peft.towers:
        raise UserError(
            f"config.peft.method={config.peft.method} adds to a transformer's blocks, and the image tower is a ResNet; "
            "give config.peft.towers as ('text',), or another method"
        )
    return resnet.ResNetConfig(
        tuple(options.layers),
        width=options.width,
        heads=options.heads,
        stem=options.stem,
        dtype=config.dtype,
        unroll=options.unroll,
        **_of_any_image_tower(config),
    )


def _blocks(config: ConfigDict, tower: str) -> encoders.layers.BlockConfig:
    options = config[tower]
    sizes = {name: options[name] for name in ("width", "depth", "heads", "mlp") if options[name]}
    return encoders.block_config(
        options.size,
        activation=options.activation,
        norm_eps=options.norm_eps,
        layer_scale=options.layer_scale,
        drop_path=options.drop_path,
        unroll=options.unroll,
        dtype=config.dtype,
        remat=config.remat,
        **(peft.added(config.peft) if tower in config.peft.towers else {}),
        **sizes,
    )


def _of_any_image_tower(config: ConfigDict) -> dict[str, Any]:
    options = config.image
    return {
        "image_size": config.image_size,
        "embed_dim": config.embed_dim if options.projection else 0,
        "projection_bias": options.projection_bias,
        "pool": options.pool,
        **{name: tuple(options[name]) for name in ("mean", "std") if options[name]},
    }


def options_of(tower: vit.ViTConfig | resnet.ResNetConfig | text.TextConfig) -> dict[str, Any]:
    """What makes `towers` build a tower like this one: keys and values of `config.image` or `config.text`.

    How it is trained (its resolution, stochastic depth, remat) is the recipe's own.
    """
    options = {"pool": tower.pool, "projection_bias": tower.projection_bias}
    if not isinstance(tower, resnet.ResNetConfig):
        blocks = tower.blocks
        names = ("width", "depth", "heads", "mlp", "activation", "norm_eps", "layer_scale")
        sizes = (size for size, numbers in vit.SIZES.items() if numbers == dataclasses.astuple(blocks)[:4])
        options |= {name: getattr(blocks, name) for name in names} | {"size": next(sizes, "")}
    if isinstance(tower, text.TextConfig):
        return options | {"vocab_size": tower.vocab_size, "causal": tower.causal}
    options |= {"projection": bool(tower.embed_dim), "mean": tower.mean, "std": tower.std}
    if isinstance(tower, resnet.ResNetConfig):
        names = ("layers", "width", "heads", "stem")
        return options | {name: getattr(tower, name) for name in names} | {"patch": resnet.STRIDE}
    names = ("patch", "head_blocks", "registers", "pre_norm", "patch_bias", "rotary_base", "antialias")
    return options | {name: getattr(tower, name) for name in names} | {"layers": ()}


def views(config: ConfigDict) -> dict[str, ViewSpec]:
    """The views of a config by name, those with a count of 0 left out; a size of 0 is `config.image_size`.

    Raises:
      UserError: the ranges of one make no crop.
    """
    found = {}
    for name, spec in config.views.items():
        if spec.count:
            try:
                found[name] = ViewSpec(**{**spec, "size": spec.size or config.image_size})
            except UserError as error:
                raise UserError(f"config.views.{name}: {error}") from None
    return found


def eval_view(config: ConfigDict) -> EvalView:
    """How evaluation prepares photos."""
    options = config.image
    return EvalView(config.image_size, options.resize, options.crop_share, options.filter)


def replayed(config: ConfigDict, alive: Alive) -> Alive | None:
    """Where the examples to replay come from, if any are."""
    options = config.data.replay
    return None if not options.share else Alive.open(options.path) if options.path else alive


def select(config: ConfigDict, alive: Alive, general: Alive | None) -> Selection:
    """The training examples that `config.data` chooses of its own folder and of the one to replay, if any."""
    options = config.data
    return selection.select(
        alive,
        "train",
        domains=options.domains,
        label_ratio=options.label_ratio,
        label_seed=options.label_seed,
        general=general,
        general_domains=options.replay.domains,
    )


SETTLED = ("classify.classes", "sclip.phrases")  # what `settle` sets


def settle(config: ConfigDict, alive: Alive, general: Alive | None, chosen: Selection) -> list[str]:
    """Sets what objectives take from the data: `config.classify.classes`, and `config.sclip.phrases` by its `keywords`.

    Args:
      config: changed in place; what is set already stays.
      alive: what the run is trained on.
      general: what it replays.
      chosen: of both, as `select` gave it.

    Returns:
      what a user should know, line by line.

    Raises:
      UserError: no such keywords, or no caption has any.
    """
    if config.objectives.get("classify") and not config.classify.classes:
        folders = ((alive, config.data.domains), (general, config.data.replay.domains))
        named = (each for folder, domains in folders if folder for each in named_classes(folder.datasets, domains))
        configs.assign(config, {"classify.classes": tuple(dict.fromkeys(named))})
    options = config.sclip
    if not (config.objectives.get("sclip") and options.keyword_weight) or options.phrases:
        return []
    names = keywords.of_classes(alive.datasets, config.data.domains)
    captions = pipeline.captions(chosen.paired, config.data.caption_kinds, config.data.captions_per_image)
    phrases, notes = keywords.choose(options.keywords, captions, names)
    configs.assign(config, {"sclip.phrases": phrases})
    return notes


def fields(config: ConfigDict, learner: Learner) -> frozenset[str]:
    """The batch fields that a learner reads; of a frozen image tower its features in the place of the images."""
    needs = batch_fields(learner.objectives)
    return needs - {IMAGE.field} | {feature_store.FIELD} if config.data.frozen_features else needs


def batches(
    config: ConfigDict,
    chosen: Selection,
    tokenizer: Tokenizer,
    learner: Learner,
    known: Sequence[np.ndarray] | None = None,
) -> TrainBatches:
    """This process's training batches with just the fields that the learner's objectives read.

    Args:
      known: pooled features of the paired examples, where the image tower is frozen: they take the images' place.
    """
    return pipeline.train_batches(
        chosen,
        tokenizer=tokenizer,
        context_length=config.text.context_length,
        views=views(config),
        needs=fields(config, learner),
        features=known,
        caption_kinds=config.data.caption_kinds,
        captions_per_image=config.data.captions_per_image,
        patch=config.image.patch,
        batch_size=config.batch_size,
        seed=config.seed,
        threads=config.data.threads or cores(),
        workers=min(config.data.workers, cores()),
        keywords=tuple(config.sclip.phrases),
        unpaired_batch=config.data.unpaired_batch,
        replay_share=config.data.replay.share,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _check_frozen(config: ConfigDict, learner: Learner) -> None:
    """Raises `UserError` where features of the image tower, computed once, would not do."""
    why = "config.data.frozen_features: features that are computed once"
    if learner.trains("image"):
        raise UserError(f"{why} need a frozen image tower; set config.optimizer.freeze to ('image/.*',)")
    for name, objective in learner.objectives.items():
        others = any(want != IMAGE for want in objective.wants if want.tower == "image")
        if others or any(field.startswith("image/") for field in objective.needs):
            raise UserError(f"{why} do not serve the objective {name!r}, which wants other features of the images too")
    if config.data.replay.share:
        raise UserError(f"{why} are of the examples of config.data.path alone; set config.data.replay.share to 0")
    if config.views["global"].count != 1:
        raise UserError(f"{why} are of one view; set config.views.global.count to 1")


def learner(config: ConfigDict, tokenizer: Tokenizer) -> tuple[Learner, Callable[..., State]]:
    """What is optimised, and the function that makes its state at step 0.

    That function takes a PRNG key and, where weights of others are to take the place of fresh ones, a dictionary of
    them by path, such as "image/patch/kernel".

    Raises:
      UserError: for an unknown objective, a bad schedule or a rule that matches nothing.
    """
    both = towers(config, tokenizer)
    chosen = objectives.build(config, both, tokenizer)

    def fresh(key: jax.Array) -> dict[str, Any]:
        params = init_params(both, chosen, encoders.logit_scale(config.temperature), key)
        params |= {"logit_bias": jnp.float32(config.logit_bias_init)} if config.logit_bias else {}
        return params | peft.fresh(config.peft, params, jax.random.fold_in(key, len(params)))

    total = config.total_steps
    shapes = jax.eval_shape(fresh, jax.random.key(0))
    result = Learner(
        towers=both,
        objectives=chosen,
        weights={name: schedule(config.objectives[name], total, f"config.objectives.{name}") for name in chosen},
        optimizer=optim.build(config, shapes, peft.resting(config.peft, rules.flatten(shapes))),
        momentum=schedule(config.distill.momentum, total, "config.distill.momentum"),
        effective=functools.partial(peft.effective, scale=config.peft.alpha / config.peft.rank),
    )

    if config.data.frozen_features:
        _check_frozen(config, result)

    def init(key: jax.Array, given: Mapping[str, jax.Array] | None = None) -> State:
        params_key, run_key = jax.random.split(key)
        params = fresh(params_key)
        return result.init(rules.unflatten(rules.flatten(params) | (given or {})) if given else params, run_key)

    return result, init
