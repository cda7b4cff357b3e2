"""LiT: the image tower is locked, the text tower learns to read it (arXiv 2111.07991; on iNaturalist: 2302.10281).

Features of the locked tower are computed once, kept, and trained on, so a step costs the text tower only. Captions are
of the class and of its taxonomy. The tower is any that there is:

  python -m agriclip_jax.main --config=configs/lit.py:b16 --config.init.image=dinov2/ --config.data.path=data/mine

`configs/lit.py[:VARIANT]`: the variants of `configs/alive.py`. `head=blocks` is dino.txt (arXiv 2412.16334): two blocks
on top of the locked tower learn too, and its class token and mean patch are read side by side.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is such as "photos,head=blocks", and `config.init.image` is left to say."""
    chosen = configs.words(arg, "lit", variant=("", "photos", "s16", "b16"), head=("none", "blocks"))
    config = configs.beside(__file__, "alive", chosen["variant"])
    config.recipe = config.recipe.replace("alive", "lit")
    config.objectives = ConfigDict({"contrastive": 1.0, "distill": 0.0}, type_safe=False)
    config.views["global"].count, config.views["local"].count = 1, 0
    config.data.frozen_features = True
    config.data.caption_kinds = ("template", "taxonomy")
    config.image.projection = False  # texts are mapped into the space of the image features as it is
    config.optimizer.update(learning_rate=1e-3, warmup=0.03, weight_decay=1e-4, freeze=("image/.*",))
    if chosen["head"] == "blocks":
        config.recipe += "_head"
        config.data.frozen_features = False
        config.image.update(head_blocks=2, pool="cls_mean", projection=True)
        config.optimizer.freeze = ("image/(?!head_|projection).*",)
        if config.optimizer.muon:
            config.optimizer.muon += ("image/head_blocks/.*/kernel",)
    return config
