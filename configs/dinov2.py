"""An image tower from images alone: DINOv2 (arXiv 2304.07193), DINOv3's Gram anchoring (arXiv 2508.10104) if wanted.

Distillation and iBOT with Sinkhorn targets and heads of their own, KoLeo. `configs/dinov2.py` runs on a laptop in
minutes, `:photos` on ten thousand real photos there in hours, `:b16` on accelerators; `,gram=on` adds Gram
anchoring to any (`:b16,gram=on`). The text tower stays untrained: what the features are worth, tools/probe.py tells; a
text tower is fitted to them by a run with `init.image`.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is "" (laptop), "photos" or "b16", and "gram=on" after a comma."""
    words = configs.words(arg, "dinov2", variant=("", "photos", "b16"), gram=("off", "on"))
    variant = words["variant"]
    config = configs.beside(__file__, "alive", variant)
    config.recipe = config.recipe.replace("alive", "dinov2")
    gram = 0.0
    if words["gram"] == "on":
        gram, config.recipe = 2.0, f"{config.recipe}_gram"
    config.objectives = ConfigDict({"distill": 1.0, "ibot": 1.0, "koleo": 0.1, "gram": gram}, type_safe=False)
    config.image.update(projection=False, layer_scale=1e-5 if variant == "b16" else 0.0)
    config.views["global"].update(count=2, scale=(0.32, 1.0))
    config.views["local"].update(count=8 if variant == "b16" else 2, scale=(0.05, 0.32))
    config.distill.update(centring="sinkhorn", teacher_temperature=("linear", 0.04, 0.07, 0.3))
    config.optimizer.update(
        freeze=("text/.*", "logit_scale"),
        lr_rules=(
            ("(dino|ibot)_head/prototypes", ("switch", 0.0, 1.0, 0.02)),
            ("image/patch/.*", 0.2),
        ),
    )
    if variant == "b16":
        config.distill.momentum = ("cosine", 0.992, 1.0)
        config.image.drop_path, config.optimizer.clip_norm = 0.3, 3.0
    else:  # six patches along a side, for a mask to hide some and leave some
        config.image.patch, config.views["local"].size = config.image_size // 6, config.image_size // 2
    return config
