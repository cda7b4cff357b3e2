"""A run that keeps only what it trained on top of a general model (config.peft) as one that needs no other.

  python tools/merge.py --ckpt=runs/peft_lora --out=runs/merged
  python tools/export.py --ckpt=runs/merged --format=hf --out=merged-hf

Every tool takes the result. What LoRA, biases or whole towers learned is in plain towers then, which any format of
tools/export.py holds; what other methods learned stays beside the general parameters, in the blocks.
"""

import argparse

from agriclip_jax import commands
from agriclip_jax.errors import UserError, exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands.add_checkpoint(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="the workdir to make")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from agriclip_jax.files import check_new_folder

    check_new_folder(arguments.out)
    from agriclip_jax import inference, runs

    model = inference.load(arguments.ckpt, step=arguments.step, use=arguments.use)
    if model.config.peft.method == "none":
        raise UserError(f"{arguments.ckpt} is whole already: config.peft.method is none")
    print(f"{arguments.out}: {runs.write_model(model, arguments.out)}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
