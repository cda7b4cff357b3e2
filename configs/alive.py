"""AgriCLIP's two losses in one step: contrastive learning and DINO self-distillation on ALive (arXiv 2410.01407).

`configs/alive.py` runs on a laptop in minutes; `:photos` on ten thousand real photos there in half an hour; `:s16` is
a small model for one accelerator, `:b16` the paper's scale.
"""

from ml_collections import ConfigDict

from agriclip_jax.errors import UserError, near_misses

VARIANTS = ("photos", "s16", "b16")


def get_config(variant: str = "") -> ConfigDict:
    """The recipe; `variant` is "" (laptop), "photos", "s16" or "b16"."""
    config = _laptop()
    if variant == "photos":
        _photos(config)
    elif variant == "s16":
        _accelerator(config, size="S", batch_size=1024, total_steps=20_000, prototypes=16_384)
    elif variant == "b16":
        _accelerator(config, size="B", batch_size=4096, total_steps=50_000, prototypes=65_536)
    elif variant:
        raise UserError(f"--config: configs/alive.py has no variant {variant!r}{near_misses(variant, VARIANTS)}")
    return config


def _laptop() -> ConfigDict:
    config = ConfigDict()
    config.recipe = "alive"  # names the default workdir, runs/<recipe>
    config.seed = 0
    config.total_steps = 500
    config.batch_size = 64
    config.image_size = 48
    config.mesh = "auto"  # all devices on `data`; or such as "data=2,fsdp=4,tensor=1"
    config.eval_every = 0  # validation every so many steps; 0: at the end only
    config.log_every = 10
    config.checkpoint = ConfigDict({"every": 100, "keep": 2})
    # "": the embedded corpus; caption kinds: which of an image's captions are drawn; 0 threads: one for each core;
    # workers: processes that make batches instead, but no more than cores, for many threads do the work of two.
    config.data = ConfigDict({"path": "", "caption_kinds": ("template",), "threads": 0, "workers": 0})

    # Each a number, or a schedule such as ("cosine", 1.0, 0.0) or ("linear", 0.0, 1.0, 0.1).
    config.objectives = ConfigDict({"contrastive": 1.0, "distill": 0.2}, type_safe=False)

    config.image = ConfigDict(
        {
            "size": "Ti",
            "width": 128,  # width, depth, heads: 0 keeps the size's own
            "depth": 3,
            "heads": 2,
            "patch": 12,
            "pool": "cls",
            "pre_norm": True,
            "registers": 0,
            "activation": "gelu_tanh",
            "layer_scale": 0.0,
            "drop_path": 0.0,
            "token_keep": 1.0,
            "unroll": 0,  # blocks per scan iteration; 0: all, which is faster on a CPU
        }
    )
    config.text = ConfigDict(
        {
            "size": "Ti",
            "width": 64,
            "depth": 2,
            "heads": 1,
            "activation": "gelu_tanh",
            "layer_scale": 0.0,
            "drop_path": 0.0,
            "pool": "end",
            "causal": True,
            "unroll": 0,
            "context_length": 36,
            "tokenizer": "",  # a CLIP tokenizer.json or merges file; "": a BPE trained on the captions
            "vocab_size": 2048,
        }
    )
    config.embed_dim = 128
    config.temperature = 0.07
    config.dtype = "float32"
    config.remat = "none"

    config.views = ConfigDict(
        {
            "global": {
                "count": 2,
                "size": 0,  # 0: image_size
                "scale": (0.8, 1.0),
                "ratio": (0.75, 4 / 3),
                "flip": 0.5,
                "jitter": (0.3, 0.3, 0.2, 0.05),
                "jitter_prob": 0.3,
                "grayscale": 0.0,
                "blur": (0.0,),
                "sigma": (0.1, 1.0),
                "solarise": (0.0,),
            },
            "local": {
                "count": 2,
                "size": 24,
                "scale": (0.2, 0.5),
                "ratio": (0.75, 4 / 3),
                "flip": 0.5,
                "jitter": (0.3, 0.3, 0.2, 0.05),
                "jitter_prob": 0.8,
                "grayscale": 0.1,
                "blur": (0.2,),
                "sigma": (0.1, 1.0),
                "solarise": (0.0,),
            },
        }
    )
    config.distill = ConfigDict(
        {
            "hidden": 256,
            "bottleneck": 64,
            "prototypes": 1024,
            "student_temperature": 0.1,
            "teacher_temperature": 0.04,
            "centre_momentum": 0.9,
            "momentum": ("cosine", 0.98, 1.0),
        },
        type_safe=False,
    )
    config.optimizer = ConfigDict(
        {
            "learning_rate": 1.2e-3,
            "warmup": 0.25,  # of the run
            "end": 0.0,  # of the peak
            "b1": 0.9,
            "b2": 0.98,
            "eps": 1e-6,
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "muon": (),  # patterns on parameter paths: matrices moved by Muon instead of AdamW
            "freeze": (),  # patterns on parameter paths
            # (pattern, multiplier or schedule, may match nothing): the prototypes rest at first, as in DINO.
            "lr_rules": (("dino_head/prototypes", ("switch", 0.0, 1.0, 0.02), True),),
            "weight_decay_rules": (),
        },
        type_safe=False,
    )
    return config


def _photos(config: ConfigDict) -> None:
    """A larger tower without distillation: on a CPU, twice the images teach more than a second loss on each."""
    config.recipe = "alive_photos"
    config.total_steps, config.image_size = 2900, 72
    config.objectives.distill = 0.0
    config.image.update(width=192, depth=6, heads=3)
    config.text.context_length = 20
    config.views["global"].update(count=1, scale=(0.5, 1.0))
    config.views["local"].count = 0
    config.optimizer.update(learning_rate=1e-3, warmup=0.1, muon=("(image|text)/blocks/.*/kernel",))


def _accelerator(config: ConfigDict, *, size: str, batch_size: int, total_steps: int, prototypes: int) -> None:
    """224-pixel images and patch 16, DINO's multi-crop, bfloat16 compute, CLIP's context."""
    config.recipe = f"alive_{size.lower()}16"
    config.batch_size, config.total_steps, config.image_size = batch_size, total_steps, 224
    config.eval_every, config.log_every, config.checkpoint.every = total_steps // 20, 50, total_steps // 50
    config.objectives.distill = 1.0
    config.data.workers = 64
    config.dtype, config.remat = "bfloat16", "dots_with_no_batch_dims_saveable"
    config.embed_dim = 512
    for tower in (config.image, config.text):
        tower.update(size=size, width=0, depth=0, heads=0, unroll=1, drop_path=0.1)
    config.image.patch = 16
    config.text.update(size="S", drop_path=0.0, context_length=77, vocab_size=16_384)
    jitter = {"jitter": (0.4, 0.4, 0.2, 0.1), "jitter_prob": 0.8, "sigma": (0.1, 2.0), "grayscale": 0.2}
    config.views["global"].update(scale=(0.4, 1.0), blur=(1.0, 0.1), solarise=(0.0, 0.2), **jitter)
    config.views["local"].update(count=8, size=96, scale=(0.05, 0.4), blur=(0.5,), **jitter)
    config.distill.update(
        hidden=2048,
        bottleneck=256,
        prototypes=prototypes,
        teacher_temperature=("linear", 0.04, 0.07, 0.3),
        momentum=("cosine", 0.996, 1.0),
    )
    config.optimizer.update(learning_rate=1e-3, warmup=0.04, weight_decay=("cosine", 0.04, 0.4))
