"""A recipe small enough to compile in a second, and random batches for it."""

import jax
import numpy as np

from agriclip_jax import config as configs
from agriclip_jax import encoders, objectives, optim
from agriclip_jax.encoders import text, vit
from agriclip_jax.state import Learner, init_params

RECIPE = "configs/alive.py"
SMALL = {
    "total_steps": "8",
    "batch_size": "16",
    "image_size": "16",
    "image.width": "32",
    "image.depth": "2",
    "image.heads": "2",
    "image.unroll": "1",
    "text.width": "32",
    "text.depth": "1",
    "text.heads": "2",
    "text.context_length": "12",
    "text.vocab_size": "600",
    "embed_dim": "16",
    "objectives.distill": "1.0",
    "views.local.size": "8",
    "distill.hidden": "32",
    "distill.bottleneck": "16",
    "distill.prototypes": "64",
    "optimizer.learning_rate": "0.01",
}


def config(**overrides):
    """The laptop recipe in miniature; keys with "__" for dots."""
    return configs.load(RECIPE, SMALL | {k.replace("__", "."): str(v) for k, v in overrides.items()})


def learner(config):
    """`recipe.learner` for towers with a vocabulary of 300 ids, the last one ending a caption."""
    sizes = {"width": 32, "heads": 2}
    towers = {
        "image": encoders.image_tower(
            vit.ViTConfig(encoders.block_config("Ti", depth=2, **sizes), 8, 16, embed_dim=16, pool="mean")
        ),
        "text": encoders.text_tower(
            text.TextConfig(encoders.block_config("Ti", depth=1, **sizes), 300, 12, 299, embed_dim=16)
        ),
    }
    chosen = objectives.build(config, towers)

    def fresh(key):
        return init_params(towers, chosen, encoders.logit_scale(config.temperature), key)

    result = Learner(
        towers=towers,
        objectives=chosen,
        weights={name: optim.schedule(config.objectives[name], config.total_steps) for name in chosen},
        optimizer=optim.build(config, jax.eval_shape(fresh, jax.random.key(0))),
        momentum=optim.schedule(config.distill.momentum, config.total_steps),
    )
    return result, lambda key: result.init(fresh(key), key)


def batch(size=16, seed=0, classes=6):
    """Rows of every field that the two objectives read."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 299, (size, 12)).astype(np.int32)
    tokens[:, 7:] = 299
    labels = rng.integers(0, classes, size).astype(np.uint32)
    return {
        "image/global": rng.integers(0, 256, (size, 2, 16, 16, 3), np.uint8),
        "image/local": rng.integers(0, 256, (size, 2, 8, 8, 3), np.uint8),
        "tokens": tokens,
        "caption_id": np.stack([np.arange(size, dtype=np.uint32)] * 2, 1),
        "class_id": np.stack([labels, labels + 9], 1),
    }
