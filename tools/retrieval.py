"""Does a model find the photo of a text, and the text of a photo? Recall among the first 1, 5 and 10, both ways.

  python tools/retrieval.py --ckpt=runs/alive --tasks=alive/,photos.zip,table.csv

Photos with captions of their own are found by them, others by the prompts of their class. All tasks of a group
(in-domain, downstream) are searched together.
"""

from agriclip_jax import commands
from agriclip_jax.errors import exit_on_user_error


def main() -> int:
    return commands.measure_tasks(__doc__, ["retrieval"])


if __name__ == "__main__":
    exit_on_user_error(main)
