"""From a configuration to the things it names: towers, objectives, optimiser, views."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from agriclip_jax import encoders, objectives, optim
from agriclip_jax.data import pipeline
from agriclip_jax.data.parallel import cores
from agriclip_jax.data.pipeline import TrainBatches
from agriclip_jax.data.records import Alive
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.data.views import ViewSpec
from agriclip_jax.encoders import Network, text, vit
from agriclip_jax.schedules import schedule
from agriclip_jax.state import Learner, State, batch_fields, init_params


def towers(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, Network]:
    """The image and the text tower; `width`, `depth` and `heads` left at 0 keep the size's own value.

    Raises:
      UserError: for names and sizes that do not exist or do not fit together.
    """

    def blocks(options: ConfigDict) -> encoders.layers.BlockConfig:
        sizes = {name: options[name] for name in ("width", "depth", "heads") if options[name]}
        return encoders.block_config(
            options.size,
            activation=options.activation,
            layer_scale=options.layer_scale,
            drop_path=options.drop_path,
            unroll=options.unroll,
            dtype=config.dtype,
            remat=config.remat,
            **sizes,
        )

    image = vit.ViTConfig(
        blocks(config.image),
        patch=config.image.patch,
        image_size=config.image_size,
        embed_dim=config.embed_dim,
        pool=config.image.pool,
        registers=config.image.registers,
        token_keep=config.image.token_keep,
        pre_norm=config.image.pre_norm,
    )
    words = text.TextConfig(
        blocks(config.text),
        vocab_size=tokenizer.vocab_size,
        context_length=config.text.context_length,
        end_id=tokenizer.end_id,
        embed_dim=config.embed_dim,
        causal=config.text.causal,
        pool=config.text.pool,
    )
    return {"image": encoders.image_tower(image), "text": encoders.text_tower(words)}


def views(config: ConfigDict) -> dict[str, ViewSpec]:
    """The views of a config by name, those with a count of 0 left out; a size of 0 is `config.image_size`."""
    return {
        name: ViewSpec(**{**spec, "size": spec.size or config.image_size})
        for name, spec in config.views.items()
        if spec.count
    }


def batches(config: ConfigDict, alive: Alive, tokenizer: Tokenizer, learner: Learner) -> TrainBatches:
    """This process's training batches with just the fields that the learner's objectives read."""
    return pipeline.train_batches(
        alive,
        "train",
        tokenizer=tokenizer,
        context_length=config.text.context_length,
        views=views(config),
        needs=batch_fields(learner.objectives),
        caption_kinds=config.data.caption_kinds,
        batch_size=config.batch_size,
        seed=config.seed,
        threads=config.data.threads or cores(),
        workers=min(config.data.workers, cores()),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def learner(config: ConfigDict, towers: Mapping[str, Network]) -> tuple[Learner, Callable[[jax.Array], State]]:
    """What is optimised, and the function of a PRNG key that makes its state at step 0.

    Raises:
      UserError: for an unknown objective, a bad schedule or a rule that matches nothing.
    """
    chosen = objectives.build(config, towers)

    def fresh(key: jax.Array) -> dict[str, Any]:
        return init_params(towers, chosen, encoders.logit_scale(config.temperature), key)

    total = config.total_steps
    result = Learner(
        towers=towers,
        objectives=chosen,
        weights={name: schedule(config.objectives[name], total, f"config.objectives.{name}") for name in chosen},
        optimizer=optim.build(config, jax.eval_shape(fresh, jax.random.key(0))),
        momentum=schedule(config.distill.momentum, total, "config.distill.momentum"),
    )

    def init(key: jax.Array) -> State:
        params_key, run_key = jax.random.split(key)
        return result.init(fresh(params_key), run_key)

    return result, init
