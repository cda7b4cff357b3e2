"""The recipes of the race in tools/compare.py; `main` takes one as `configs/race.py:NAME[,setting=cpu|gpu]`.

All share towers, images and batch with `contrastive`, the standard adaptation of CLIP, and those from scratch its
optimiser and captions (but for LiT's own decay and warm-up); what else differs stands below. A name of several stages
divides its budget among those that train. The setting `cpu` is for two cores (64 pixels), tuned on validation splits as
docs/results.md says; `gpu` is for one accelerator (72 pixels) and has the untuned keys of each recipe's `:photos`.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs

# Which photos the general model of `ADAPTED` knows, and which it is adapted to.
GENERAL, DOMAIN = ("fruit", "insect", "other"), ("crop", "weed", "livestock", "fish")

# Methods of adapting a general model: a method of config.peft and what is done against forgetting. Nothing is learned
# where it stays `unadapted`.
ADAPTED = {
    "unadapted": "bias",
    **{method: method for method in ("full", "lora", "bias", "pfeiffer", "houlsby", "prefix", "unipelt", "prompts")},
    "full_replay": "full",
    "full_l2": "full",
}

# Their learning rates on a general model from scratch: the best of three on the domain's validation splits; what is
# done against forgetting has that of `full`.
RATES = {
    **dict.fromkeys(("full", "full_replay", "full_l2"), 1e-3),
    "lora": 1e-2,
    "bias": 1e-2,
    "pfeiffer": 1e-2,
    "houlsby": 1e-2,
    "prefix": 1e-3,
    "unipelt": 1e-2,
    "prompts": 1e-2,
    "unadapted": 0.0,
}

# Keys that differ from the standard adaptation's: the best of ours, of which `ours` sees half of the patches (FLIP,
# arXiv 2212.00794) and so more images in the same time, and `fine` a quarter of four times as many, which takes the
# same time; `ours` with DINO beside; captions and positives.
OURS = {"image.pool": "mean", "image.pre_norm": False, "image.token_keep": 0.5}
VARIED = {
    "ours": OURS,
    "ours_joint": OURS,
    "fine": {"image.pool": "mean", "image.pre_norm": False, "image.token_keep": 0.25, "image.patch": 6},
    "names": {"data.caption_kinds": ("name",)},
    "knowledge": {"data.caption_kinds": ("template", "knowledge"), "text.context_length": 36},
    "one_caption": {"data.captions_per_image": 1},
    "plain": {"contrastive.positives": "none"},
}

# What two cores change for a recipe alone: of 10 % of the captions keywords alone taught most, and the cheapest DINO
# there is has a student that predicts the teacher's whole from a part, of which that of `ours_joint` sees more.
ON_CPU = {
    "fine": {"image.patch": 8},
    "supervised": {"optimizer.learning_rate": 1e-3},
    "sclip": {"sclip.caption_weight": 0.0},
    "joint": {"views.global.count": 1, "views.local.count": 1, "objectives.distill": 0.2},
    "ours_joint": {
        "views.global.count": 1,
        "views.local.count": 1,
        "views.local.size": 48,
        "objectives.distill": 0.5,
    },
}

STAGES = {
    "three_stage": ("clip", "distill", "align"),
    "lit": ("distill", "lit"),
    "lit_head": ("distill", "lit"),
    **dict.fromkeys(ADAPTED, ("general", "adapt")),
}
NAMES = ("contrastive", "joint", "siglip", "tips", "supervised", "sclip", "general", *VARIED, *STAGES)


def get_config(words: str = "") -> ConfigDict:
    """The recipe of a name, or of one of its stages."""
    known = ("all", *dict.fromkeys(stage for stages in STAGES.values() for stage in stages))
    chosen = configs.words(words, "race", variant=NAMES, setting=("cpu", "gpu"), stage=known)
    name, stage = chosen["variant"], chosen["stage"]
    config = _recipe(name, stage)
    config.recipe = f"race_{name if stage == 'all' else stage}"  # recipes that have a stage alike share its run
    config.stages = STAGES.get(name, ()) if stage == "all" else ()
    if chosen["setting"] == "gpu":
        config.data.workers, config.image.unroll, config.text.unroll = 16, 1, 1
    else:  # 16 patches: a third of the time of 36; a step of Muon costs as much as 64 images
        config.image_size, config.image.patch, config.views["local"].size = 64, 16, 32
        config.batch_size, config.data.unpaired_batch = 128, 2 * config.data.unpaired_batch
        config.optimizer.learning_rate = 2e-3
        configs.assign(config, ON_CPU.get(name, {}))
    if stage == "adapt":
        config.optimizer.learning_rate = RATES[name]
    return config


def _recipe(name: str, stage: str) -> ConfigDict:
    """A recipe without its name; of several stages the first, unless one is named."""
    of = lambda recipe, words="photos": configs.beside(__file__, recipe, words)  # noqa: E731
    if name == "three_stage":
        return of("agriclip", f"photos,stage={'clip' if stage == 'all' else stage}")
    if name in ("lit", "lit_head"):
        if stage != "lit":
            return of("agriclip", "photos,stage=distill")
        config = of("lit", f"photos,head={'blocks' if name == 'lit_head' else 'none'}")
        config.init = ConfigDict({"image": "stage:distill", "teacher": True})
        return config
    if name in ("siglip", "tips"):
        return of(name)
    if name in ("supervised", "sclip"):
        return of("sclip", f"photos,mode={'supervised' if name == 'supervised' else 'ot'}")
    if name in ADAPTED and stage == "adapt":
        config = of("peft", f"photos,method={ADAPTED[name]}")
        config.init = ConfigDict({"model": "stage:general"})
        config.data.domains = DOMAIN
        if name == "full_replay":
            config.data.replay = ConfigDict({"share": 0.25})
        if name == "full_l2":
            config.objectives.l2_to_start = 0.01
        return config
    config = of("alive")
    if name == "general" or name in ADAPTED:
        config.data.domains = GENERAL
    if name in ("joint", "ours_joint"):
        multi_crop = of("alive", "")
        config.views["local"], config.distill = multi_crop.views["local"], multi_crop.distill
        config.views["global"].count = 2
        config.objectives.distill = 1.0
    configs.assign(config, VARIED.get(name, {}))
    return config
