"""AgriCLIP as published: three stages, one command (arXiv 2410.01407).

`clip`: contrastive learning; `distill`: DINO from the images alone; `align`: the DINO teacher's features are mapped
into the image space of `clip` in closed form. What `align` leaves, in a folder beside the others, is a model like any
other: DINO's image tower with the aligner as its projection, and `clip`'s text tower.

`configs/agriclip.py[:VARIANT,stage=STAGE]`: the variants of `configs/alive.py`; one stage alone is a run of its own.
`--config.stages.STAGE.KEY=VALUE` sets a key of one of them, `--config.align.fit=sgd` the paper's fit.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs

STAGES = ("clip", "distill", "align")


def get_config(words: str = "") -> ConfigDict:
    """The recipe of a stage, or of `clip` with the names of all."""
    chosen = configs.words(words, "agriclip", variant=("", "photos", "s16", "b16"), stage=("all", *STAGES))
    variant, stage = chosen["variant"], chosen["stage"]
    config = configs.beside(__file__, "alive", variant)
    name = "_".join(filter(None, ["agriclip", variant]))
    config.recipe = name if stage == "all" else f"{name}/{stage}"  # by default a stage's folder is where `all` has it
    if stage == "all":
        config.stages = STAGES
    elif stage == "distill":
        multi_crop = configs.beside(__file__, "alive", "" if variant == "photos" else variant)
        config.views, config.distill = multi_crop.views, multi_crop.distill
        config.objectives = ConfigDict({"distill": 1.0}, type_safe=False)
        config.optimizer.freeze = ("text/.*", "logit_scale", "image/projection/.*")
    else:
        config.objectives = ConfigDict({"contrastive": 1.0}, type_safe=False)
        config.views["local"].count = 0
    if stage == "align":
        config.stage = "align"
        config.init = ConfigDict({"image": "stage:distill", "teacher": True, "text": "stage:clip"})
        config.optimizer.freeze = ("(image|text)/.*",)  # nothing is trained: the checkpoint holds no optimiser's state
    return config
