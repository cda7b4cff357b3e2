"""The sigmoid loss (SigLIP, arXiv 2303.15343) in place of the softmax: `configs/alive.py` with `siglip` alone.

`configs/siglip.py` runs on a laptop in minutes, `:photos` on ten thousand real photos there in half an hour, `:b16` on
accelerators.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is "" (laptop), "photos" or "b16"."""
    variant = configs.words(arg, "siglip", variant=("", "photos", "b16"))["variant"]
    config = configs.beside(__file__, "alive", variant)
    config.recipe = config.recipe.replace("alive", "siglip")
    config.objectives = ConfigDict({"siglip": 1.0}, type_safe=False)
    config.temperature, config.logit_bias = 0.1, True
    config.views["local"].count = 0
    return config
