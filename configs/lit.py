"""LiT: the image tower is locked, the text tower learns to read it (arXiv 2111.07991; on iNaturalist: 2302.10281).

Features of the locked tower are computed once, kept, and trained on, so a step costs the text tower only. Captions are
of the class and of its taxonomy. The tower is any that there is:

  python -m agriclip_jax.main --config=configs/lit.py:b16 --config.init.image=dinov2/ --config.data.path=data/mine

`configs/lit.py[:VARIANT]`: the variants of `configs/alive.py`.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; `config.init.image` is left to say."""
    config = configs.beside(__file__, "alive", variant)
    config.recipe = config.recipe.replace("alive", "lit")
    config.objectives = ConfigDict({"contrastive": 1.0, "distill": 0.0}, type_safe=False)
    config.views["global"].count, config.views["local"].count = 1, 0
    config.data.frozen_features = True
    config.data.caption_kinds = ("template", "taxonomy")
    config.image.projection = False  # texts are mapped into the space of the image features as it is
    config.optimizer.update(learning_rate=1e-3, warmup=0.03, weight_decay=1e-4, muon=(), freeze=("image/.*",))
    return config
