"""The recipes of the race in tools/compare.py, each tuned alike on validation splits: `NAME[,setting=cpu|gpu]`.

All share towers, images, captions, augmentations of the global view and optimiser with `contrastive`, the standard
adaptation of CLIP; what differs stands below.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs

NAMES = ("contrastive", "joint", "three_stage")
STAGES = ("clip", "distill", "align")


def get_config(words: str = "") -> ConfigDict:
    """The recipe of a name."""
    chosen = configs.words(words, "race", variant=NAMES, setting=("cpu", "gpu"), stage=("all", *STAGES))
    name, stage = chosen["variant"], chosen["stage"]
    if name == "three_stage":
        config = configs.beside(__file__, "agriclip", f"photos,stage={stage}")
    else:
        config = configs.beside(__file__, "alive", "photos")
    config.recipe = f"race_{name}"
    if chosen["setting"] == "gpu":
        config.data.workers, config.image.unroll, config.text.unroll = 16, 1, 1
    if name == "joint":
        multi_crop = configs.beside(__file__, "alive")
        config.views["local"], config.distill = multi_crop.views["local"], multi_crop.distill
        config.views["global"].count = 2
        config.objectives.distill = 1.0
    return config
