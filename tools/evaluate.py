"""How good are these models? Every measure of a suite of tasks, for each checkpoint, once.

  python tools/evaluate.py --suite=configs/suites/embedded.yaml --ckpt=runs/alive --ckpt=runs/other
  python tools/report.py runs/alive runs/other --out=report/

A suite lists tasks and measures. What is found lies in each run's folder, one JSON for each task and measure; what is
there already is not made again, so the command may be stopped and given again.
"""

import argparse

from agriclip_jax import commands
from agriclip_jax.errors import exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, metavar="FILE.yaml", help="tasks and measures")
    parser.add_argument("--measures", default="", metavar="A,B,...", help="of the suite's these alone (default: all)")
    commands.add_checkpoint(parser, several=True)
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from agriclip_jax.evaluate import suite

    asked = suite.read(arguments.suite, [*filter(None, arguments.measures.split(","))])
    commands.measure(asked, arguments.ckpt, arguments.step, arguments.use)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
