"""How good is a model at photos it was never fitted to? A table, and a JSON file with everything behind it.

  python tools/zeroshot.py --ckpt=runs/alive --tasks=embedded
  python tools/zeroshot.py --ckpt=runs/alive --tasks=alive/,photos.zip,folder/ --out=table.json

A task is a folder with one folder for each class, a .zip or .tar of one, a folder of such archives, or an ALive folder
(one task for each dataset in it). Class names come from --meta or a dataset.json, else from the folder names.
"""

import argparse
import re
import sys
from pathlib import Path

from agriclip_jax.errors import exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, metavar="WORKDIR", help="the run's folder")
    parser.add_argument(
        "--step", metavar="N|best", help="checkpoint to take, `best` by its validation score (default: the newest)"
    )
    parser.add_argument("--use", default="student", help="student or teacher (default: %(default)s)")
    parser.add_argument("--tasks", required=True, metavar="PATH[,PATH...]", help="photos, or 'embedded'")
    parser.add_argument(
        "--split",
        help="train, val, test or all (default: test of an ALive folder or a dataset the run was trained on, else all)",
    )
    parser.add_argument("--template", action="append", default=[], metavar="'a photo of {}'", help="may be repeated")
    parser.add_argument(
        "--out", metavar="FILE.json", help="where the results go (default: zeroshot-TASKS.json in WORKDIR)"
    )
    parser.add_argument("--meta", metavar="FILE", help="JSON list of records: name, domain, classes, templates")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    from rich.console import Console
    from rich.progress import Progress

    from agriclip_jax import inference
    from agriclip_jax.evaluate import tasks, zeroshot
    from agriclip_jax.files import check_file

    model = inference.load(arguments.ckpt, step=arguments.step, use=arguments.use)
    out = arguments.out or default_out(arguments.ckpt, arguments.tasks)
    check_file(out)
    asked = tasks.load_tasks(
        arguments.tasks,
        split=arguments.split,
        templates=arguments.template,
        meta=arguments.meta,
        seen={known["dataset"] for known in tasks.known_classes(arguments.ckpt)},
        say=lambda line: print(f"note: {line}", file=sys.stderr),
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        images = bar.add_task("images", total=sum(task.count for task in asked))
        results = zeroshot.evaluate(model, asked, progress=lambda done: bar.advance(images, done))
    print(f"{model.workdir}, step {model.step}, {model.use}; shares in %")
    zeroshot.show(results)
    zeroshot.write(results, out, model)
    print(f"wrote {out}")
    return 0


def default_out(workdir: str, tasks: str) -> Path:
    """A file in the workdir, named after the folders and archives that were asked."""
    names = "-".join(Path(part.strip()).name.split(".")[0] for part in tasks.split(",") if part.strip())
    return Path(workdir) / f"zeroshot-{re.sub(r'[^A-Za-z0-9_-]+', '_', names)[:80]}.json"


if __name__ == "__main__":
    exit_on_user_error(main)
