"""A model of others as a workdir, which every tool takes.

  python tools/import_weights.py --from=hf:openai/clip-vit-base-patch16 --out=runs/clip-b16
  python tools/import_weights.py --image=dinov2_vitb14.pth --text=clip/ --out=runs/dinov2-clip
  python tools/import_weights.py --image=dino_resnet50.pth --aligner=aligner.pth --text=clip.pt --out=runs/agriclip
  python tools/zeroshot.py --ckpt=runs/clip-b16 --tasks=photos/

--config.KEY=VALUE sets a key of the recipe, such as --config.image.activation=gelu where a file says none; --from is
short for --config.init.model, --image, --text and --aligner likewise.

A file, a folder as transformers or open_clip write it, or a repository of the Hugging Face hub; docs/weights.md names
the models. Heads that join towers of two models are fresh; an image tower alone gets a small text tower that is.
"""

import argparse
from pathlib import Path

from agriclip_jax.errors import UserError, exit_on_user_error

RECIPE = Path(__file__).parent.parent / "configs" / "alive.py"


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--from", dest="model", default="", metavar="SPEC", help="the model")
    parser.add_argument("--image", default="", metavar="SPEC", help="the image tower, where it comes from elsewhere")
    parser.add_argument("--text", default="", metavar="SPEC", help="the text tower, where it comes from elsewhere")
    parser.add_argument("--aligner", default="", metavar="FILE", help="AgriCLIP's, of W and b, for the image tower")
    parser.add_argument(
        "--aligner_variance",
        type=float,
        default=0.0,
        metavar="V",
        help="variance of the image features that it was fitted on, to correct its bias by (default: as released)",
    )
    parser.add_argument("--tokenizer", default="", metavar="FILE", help="where the text tower comes without its own")
    parser.add_argument("--image_size", type=int, metavar="PIXELS", help="side of its images (default: as it was made)")
    parser.add_argument("--out", required=True, metavar="DIR", help="the workdir to make")
    return parser.parse_known_args()


def main() -> int:
    arguments, rest = parse_arguments()
    if not arguments.out:
        raise UserError("--out= is empty; name a folder")
    if not (arguments.model or arguments.image):
        raise UserError("name a model as --from=SPEC, or its towers as --image=SPEC and --text=SPEC")
    from agriclip_jax.files import check_new_folder

    check_new_folder(arguments.out)
    import jax

    from agriclip_jax import config as configs
    from agriclip_jax import initial, mesh, recipe, runs
    from agriclip_jax.data import corpus, pipeline, tokenizers
    from agriclip_jax.data.records import Alive

    given = {"recipe": "imported", "views.local.count": "0", "text.tokenizer": arguments.tokenizer}
    names = ("model", "image", "text", "aligner", "aligner_variance")
    given |= {f"init.{name}": str(getattr(arguments, name)) for name in names}
    explicit = configs.overrides(rest)
    config = configs.load(str(RECIPE), given | explicit)
    found = initial.sources(config)
    if arguments.image_size is None:
        config.image_size = found["image"].towers["image"].image_size
    else:
        config.image_size = arguments.image_size
    if "text" in found:
        config.text.context_length = found["text"].towers["text"].context_length
    for note in initial.adopt(config, found, explicit):
        print(note)
    if "text" in found:
        tokenizer = initial.tokenizer(found["text"], config.text.tokenizer)
    else:
        captions = pipeline.captions(Alive.open(corpus.ensure()).source("train"), config.data.caption_kinds)
        tokenizer = tokenizers.train(captions, config.text.vocab_size)
        print("text tower: fresh, so that names mean nothing to it; train it, or give --text=SPEC")
    _, init = recipe.learner(config, tokenizer)
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = mesh.state_sharding(mesh.make("auto"), shapes)
    arrays = initial.parameters(found, shapes.params, shardings.params)
    if fresh := initial.fresh(found, shapes.params, arrays):
        print(f"fresh: {', '.join(fresh)}")
    print(f"{arguments.out}: {runs.write(arguments.out, config, tokenizer, arrays)}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
