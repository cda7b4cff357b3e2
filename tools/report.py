"""How do these runs compare? One page, a table and CLIP_benchmark's files, of what tools/evaluate.py measured.

  python tools/report.py runs/alive runs/other --out=report/
  python tools/report.py runs/alive/evaluations/embedded-2900-student --out=report/

Each RUN is a run's folder, whose newest evaluation is taken, or a folder in its evaluations/. The others are compared
with the first. Neither a model nor photos are needed.
"""

import argparse

from agriclip_jax.errors import exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a folder in its evaluations/")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write into")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from agriclip_jax import comparison
    from agriclip_jax.evaluate import records
    from agriclip_jax.files import check_file

    check_file(f"{arguments.out}/report.html")
    print(comparison.write([records.read(run) for run in arguments.runs], arguments.out))
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
