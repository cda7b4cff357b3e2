"""What the tools share: the flags that name a checkpoint and tasks, progress on the screen, a suite from end to end."""

import argparse
import contextlib
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agriclip_jax.evaluate.suite import Suite


def add_checkpoint(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Adds --ckpt, --step and --use: one run, or several with the same step and tower."""
    more = {"action": "append", "help": "a run's folder; may be repeated"} if several else {"help": "the run's folder"}
    parser.add_argument("--ckpt", required=True, metavar="WORKDIR", **more)
    parser.add_argument(
        "--step", metavar="N|best", help="checkpoint to take, `best` by its validation score (default: the newest)"
    )
    parser.add_argument("--use", default="student", help="student or teacher (default: %(default)s)")


def add_tasks(parser: argparse.ArgumentParser, *, split: bool = True) -> None:
    """Adds --tasks, --template, --meta and, where all is asked of one split, --split."""
    parser.add_argument(
        "--tasks",
        required=True,
        metavar="PATH[,PATH...]",
        help="photos, or 'embedded'; NAME=PATH asks them by a task file",
    )
    if split:
        parser.add_argument(
            "--split",
            help="train, val, test or all (default: test of an ALive folder or a dataset the run was trained on; of a "
            "CLIP_benchmark folder its task file's, or test; else all)",
        )
    parser.add_argument("--template", action="append", default=[], metavar="'a photo of {}'", help="may be repeated")
    parser.add_argument("--meta", metavar="FILE", help="JSON list of records: name, domain, classes, templates")


def file_stem(tasks: str) -> str:
    """A file name made of the folders and archives that were asked."""
    names = "-".join(Path(part.strip()).name.split(".")[0] for part in tasks.split(",") if part.strip())
    return re.sub(r"[^A-Za-z0-9_-]+", "_", names)[:80]


@contextlib.contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal; gives the function that moves it on by a number."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        moved = bar.add_task(description, total=total)
        yield lambda count: bar.advance(moved, count)


def note(line: str) -> None:
    """Says something that a user should know, beside the output."""
    print(f"note: {line}", file=sys.stderr)


def suite_of(arguments: argparse.Namespace, measures: Sequence[str]) -> "Suite":
    """The suite of the tasks that the flags of `add_tasks` name."""
    from agriclip_jax.evaluate.suite import Suite

    named = {"photos": arguments.tasks, "meta": arguments.meta, "split": getattr(arguments, "split", None)}
    entry = {key: value for key, value in named.items() if value} | {"templates": arguments.template}
    # Other folders of the same names are other questions.
    asked = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()[:6]
    return Suite(f"{file_stem(arguments.tasks)}-{'-'.join(measures)}-{asked}", tuple(measures), (entry,))


def measure_tasks(description: str, measures: Sequence[str], *, split: bool = True) -> int:
    """A whole command: the tasks of its flags by some measures, for one run or several.

    Args:
      description: of the command, for --help.
      measures: from those of a suite.
      split: whether it offers --split.

    Returns:
      The exit status.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_checkpoint(parser, several=True)
    add_tasks(parser, split=split)
    arguments = parser.parse_args()
    measure(suite_of(arguments, measures), arguments.ckpt, arguments.step, arguments.use)
    return 0


def measure(asked: "Suite", workdirs: Sequence[str], step: str | None, use: str) -> None:
    """Measures runs by a suite, shows how far it is, and prints the tables.

    Raises:
      UserError: a run, a task or the place of a record is not as it must be.
    """
    from rich.console import Console
    from rich.progress import Progress

    from agriclip_jax import inference
    from agriclip_jax.evaluate import records, suite, tasks
    from agriclip_jax.files import check_file

    console, load_tasks = Console(stderr=True), cache(lambda seen: suite.load(asked, dict(seen), note))

    def load(workdir: str) -> inference.Model:
        model = inference.load(workdir, step=step, use=use)
        check_file(suite.folder(model, asked) / "any.json")
        return model

    def measured(workdir: str) -> Path:
        model = load(workdir)
        loaded = load_tasks(frozenset(tasks.seen_datasets(tasks.known_classes(workdir)).items()))
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            made = bar.add_task(str(workdir), total=len(suite.records_of(asked, loaded)))
            looked = bar.add_task("photos", total=None)
            return suite.run(
                model,
                asked,
                loaded,
                done=lambda label: bar.update(made, advance=1, description=label),
                progress=lambda count: bar.advance(looked, count),
            )

    for workdir in workdirs[1:]:
        load(workdir)  # only to learn now, not after hours of work on others, that it can be; one is held at a time
    folders = [measured(workdir) for workdir in workdirs]
    records.show([records.read(folder) for folder in folders])
    for folder in folders:
        print(f"records: {folder}")
