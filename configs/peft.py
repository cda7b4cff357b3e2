"""A domain model by small parameters on a frozen general model (RS5M's way, arXiv 2306.11300), contrastive alone.

  python -m agriclip_jax.main --config=configs/peft.py --config.init.model=runs/alive
  python -m agriclip_jax.main --config=configs/peft.py:b16,method=pfeiffer --config.init.model=clip-vit-b16/

The general model is a run or weights of others. It is needed again whenever the run goes on or is loaded, for only what
was trained is kept; tools/merge.py makes a run that needs no other, and tools/wiseft.py shows what was forgotten. A
variant of configs/alive.py gives the rest.
"""

from ml_collections import ConfigDict

from agriclip_jax.config import beside, words

METHODS = ("lora", "pfeiffer", "houlsby", "prefix", "unipelt", "bias", "prompts", "full")


def get_config(argument: str = "") -> ConfigDict:
    """The recipe; `argument`: a variant of alive ("photos", "s16", "b16") and "method=NAME", with a comma between."""
    chosen = words(argument, "peft", variant=("", "photos", "s16", "b16"), method=METHODS)
    config, method = beside(__file__, "alive", chosen["variant"]), chosen["method"]
    config.recipe = "_".join(filter(None, ["peft", chosen["variant"], method]))
    config.objectives.distill = 0.0
    config.views["global"].count, config.views["local"].count = 1, 0
    config.peft = ConfigDict({"method": method})
    if method == "prompts":
        config.peft.towers = ("image",)  # they are visual prompts
    # Everything moves by little; small fresh parameters take what fresh towers take.
    config.optimizer.learning_rate = 1e-5 if method == "full" else 1e-3
    config.optimizer.update(warmup=0.1, muon=())
    return config
