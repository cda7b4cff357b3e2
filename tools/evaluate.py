"""How good are these models? Every measure of a suite of tasks, for each checkpoint, once.

  python tools/evaluate.py --suite=configs/suites/embedded.yaml --ckpt=runs/alive --ckpt=runs/other
  python tools/report.py runs/alive runs/other --out=report/

A suite lists tasks and measures. What is found lies in each run's folder, one JSON for each task and measure; what is
there already is not made again, so the command may be stopped and given again.
"""

import argparse
import sys

from agriclip_jax.errors import exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", required=True, metavar="FILE.yaml", help="tasks and measures")
    parser.add_argument("--ckpt", required=True, action="append", metavar="WORKDIR", help="a run; may be repeated")
    parser.add_argument("--step", metavar="N|best", help="checkpoint to take of each run (default: the newest)")
    parser.add_argument("--use", default="student", help="student or teacher (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from rich.console import Console
    from rich.progress import Progress

    from agriclip_jax import inference
    from agriclip_jax.evaluate import records, suite, tasks
    from agriclip_jax.files import check_file

    asked = suite.read(arguments.suite)
    models = [inference.load(workdir, step=arguments.step, use=arguments.use) for workdir in arguments.ckpt]
    for model in models:
        check_file(suite.folder(model, asked) / "any.json")
    notes = dict.fromkeys(())
    console = Console(stderr=True)
    folders = []
    for model in models:
        seen = {known["dataset"] for known in tasks.known_classes(model.workdir)}
        loaded = suite.load(asked, seen, lambda line: notes.setdefault(line))
        total = len(suite.records_of(asked, loaded))
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            made = bar.add_task(str(model.workdir), total=total)
            looked = bar.add_task("photos", total=None)

            def done(label: str, bar=bar, made=made, name=str(model.workdir)) -> None:
                bar.update(made, advance=1, description=f"{name}  {label}")

            folders.append(
                suite.run(model, asked, loaded, done=done, progress=lambda n, bar=bar, t=looked: bar.advance(t, n))
            )
        print(f"{model.workdir}, step {model.step}, {model.use}: {total} records in {folders[-1]}")
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    records.show([records.read(folder) for folder in folders])
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
