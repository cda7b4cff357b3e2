"""What can be fitted on a frozen model? k nearest neighbours, a linear probe, and few images of each class.

  python tools/probe.py --ckpt=runs/alive --tasks=alive/,photos.zip

Fitted on the train split of each task, tuned on its val split, measured on its test split.
"""

from agriclip_jax import commands
from agriclip_jax.errors import exit_on_user_error


def main() -> int:
    return commands.measure_tasks(__doc__, ["knn", "linear", "few_shot"], split=False)


if __name__ == "__main__":
    exit_on_user_error(main)
