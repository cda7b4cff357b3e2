"""Captions and self-distillation in one run: TIPS (arXiv 2410.16512), with ALive's captions.

Contrastive learning on a global view, distillation of its local views, iBOT on the same view masked. The paper also
has synthetic captions with a class token of their own, which this recipe has not. `configs/tips.py` runs on a laptop in
minutes, `:photos` on ten thousand real photos there in hours, `:b16` on accelerators.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is "" (laptop), "photos" or "b16"."""
    variant = configs.words(arg, "tips", variant=("", "photos", "b16"))["variant"]
    config = configs.beside(__file__, "alive", variant)
    config.recipe = config.recipe.replace("alive", "tips")
    heavy = variant == "b16"
    weights = {"contrastive": 1.0, "distill": 1.0 if heavy else 0.2, "ibot": 2.0 if heavy else 0.4}
    config.objectives = ConfigDict(weights, type_safe=False)
    config.views["global"].count = 1
    config.views["local"].count = 6 if heavy else 2
    config.distill.centring = "sinkhorn"  # by a centre, the patches came to agree within 120 steps
    config.optimizer.lr_rules = (("(dino|ibot)_head/prototypes", ("switch", 0.0, 1.0, 0.02)),)
    if not heavy:  # six patches along a side, for a mask to hide some and leave some
        config.image.patch, config.views["local"].size = config.image_size // 6, config.image_size // 2
    return config
