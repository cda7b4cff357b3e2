"""What can be fitted on a frozen model? k nearest neighbours, a linear probe, and few images of each class.

  python tools/probe.py --ckpt=runs/alive --tasks=alive/,photos.zip

Fitted on the train split of each task, tuned on its val split, measured on its test split.
"""

import argparse

from agriclip_jax import commands
from agriclip_jax.errors import exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands.add_checkpoint(parser, several=True)
    commands.add_tasks(parser, required=True)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    asked = commands.suite_of(arguments, ["knn", "linear", "few_shot"])
    commands.measure(asked, arguments.ckpt, arguments.step, arguments.use)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
