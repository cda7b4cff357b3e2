"""S-CLIP (arXiv 2305.14095): a few images with captions, many without, and keywords that say what they may show.

`configs/sclip.py` runs on the embedded corpus as `alive` does, `:photos` on real photos, each with one caption in ten.
`mode=soft` and `mode=hard` assign captions otherwise than by optimal transport ("ot"); `mode=supervised` is the
baseline: the same pairs in as many steps, and nothing else.
"""

from ml_collections import ConfigDict

from agriclip_jax import config as configs

MODES = ("ot", "soft", "hard", "supervised")


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; `arg` is such as "photos,mode=hard"."""
    chosen = configs.words(arg, "sclip", variant=("", "photos"), mode=MODES)
    variant, mode = chosen["variant"], chosen["mode"]
    config = configs.beside(__file__, "alive", variant)
    config.recipe = "_".join(filter(None, ["sclip", variant, mode if mode != "ot" else ""]))
    config.objectives = ConfigDict({"contrastive" if mode == "supervised" else "sclip": 1.0}, type_safe=False)
    # Drawn with `label_seed`: the first so many of one order, so that 5 % lie within 10 %.
    config.data.update(label_ratio=0.1, label_seed=0, unpaired_batch=0 if mode == "supervised" else config.batch_size)
    if mode != "supervised":
        # A fresh model's guesses mean nothing; for a trained one (config.init.model) the paper has 1.0 throughout.
        ramp = ("linear", 0.0, 1.0, 1.0)
        # Keywords: "classes", "yake:N" (phrases of the captions) or "file:PATH" (one a line).
        given = {"assignment": mode, "keywords": "classes", "caption_weight": ramp, "keyword_weight": ramp}
        config.sclip = ConfigDict(given, type_safe=False)
    config.views["global"].count = 1
    config.views.local.count = 0
    return config
