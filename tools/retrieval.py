"""Does a model find the photo of a text, and the text of a photo? Recall among the first 1, 5 and 10, both ways.

  python tools/retrieval.py --ckpt=runs/alive --tasks=alive/,photos.zip,table.csv

Photos with captions of their own are found by them, others by the prompts of their class. All tasks of a group
(in-domain, downstream) are searched together.
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
    asked = commands.suite_of(arguments, ["retrieval"])
    commands.measure(asked, arguments.ckpt, arguments.step, arguments.use)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
