"""Photos in class folders -> an ALive folder: captioned, split, ready for training.

  python tools/build_alive.py --source=PHOTOS --out=DIR
  python tools/build_alive.py --source=a.zip --source='more/*.tar.gz' --meta=datasets.json --out=DIR --max_side=512

A source is a folder with one folder for each class, a .zip or .tar(.gz) of one, a quoted glob, or a folder of archives.
Archives are read in place. Names, domain and licence come from --meta, or from a dataset.json in or beside a source.
"""

import argparse
import sys

from agriclip_jax.errors import UserError, exit_on_user_error, near_misses


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", action="append", required=True, metavar="PATH", help="photos; may be repeated")
    parser.add_argument("--out", required=True, metavar="DIR", help="the ALive folder to make")
    parser.add_argument("--meta", metavar="FILE", help="JSON list of records: name, domain, classes, license, source")
    parser.add_argument("--split", default="train:70,val:10,test:20", metavar="SHARES", help="default: %(default)s")
    parser.add_argument(
        "--facts", action="append", default=[], metavar="FILE.yaml", help="what your classes look like; may be repeated"
    )
    parser.add_argument("--max_side", type=int, metavar="N", help="shrink photos to at most N pixels a side")
    parser.add_argument("--overwrite", action="store_true", help="replace DIR when it is an ALive folder")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    from agriclip_jax.data import knowledge, records, sources, splits

    ratios = splits.parse_ratios(arguments.split)
    if arguments.max_side is not None and arguments.max_side < 8:
        raise UserError(f"--max_side={arguments.max_side} is too small; give at least 8 pixels")
    metadata = sources.read_metadata(arguments.meta) if arguments.meta else {}
    facts = knowledge.table(arguments.facts)
    records.check_out(arguments.out, overwrite=arguments.overwrite)
    readers = sources.find(arguments.source)
    with progress_bar() as start:
        survey = sources.survey(readers, metadata=metadata, ratios=ratios, knowledge=facts, progress=start("checking"))
        total = sum(sum(counts.values()) for counts in survey.counts.values())
        writing = start("writing")
        records.write(
            arguments.out,
            survey.splits(),
            name="alive",
            description=f"Photos with captions from {len(survey.datasets)} datasets.",
            datasets=survey.datasets,
            max_side=arguments.max_side,
            overwrite=arguments.overwrite,
            progress=lambda done: writing(done, total),
        )
    report(survey, [reader.slug for reader in readers], metadata)
    print(f"wrote {total} examples to {arguments.out}; train on them with --config.data.path={arguments.out}")


def progress_bar():
    """A bar on stderr; entered, it gives start(label), which gives progress(done since the last call, total)."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress, TimeRemainingColumn

    @contextmanager
    def bars():
        columns = (*Progress.get_default_columns()[:-1], "{task.completed:.0f}/{task.total:.0f}", TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:

            def start(label):
                task = progress.add_task(label, total=0)
                return lambda done, total: progress.update(task, advance=done, total=total)

            yield start

    return bars()


def report(survey, slugs: list[str], metadata: dict) -> None:
    """Prints the table, and on stderr what was skipped or guessed."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("dataset", "domain"):
        table.add_column(column)
    for column in ("classes", "train", "val", "test", "skipped"):
        table.add_column(column, justify="right")
    skipped = {slug: sum(p.source.startswith(f"{slug}/") for p in survey.problems) for slug in survey.datasets}
    for slug, record in survey.datasets.items():
        counts = [survey.counts[slug].get(split, 0) for split in ("train", "val", "test")]
        table.add_row(slug, record.domain, *map(str, (len(record.classes), *counts, skipped[slug])))
    Console().print(table)
    if metadata and not set(slugs) & set(metadata):
        print(f"note: --meta names none of the sources{near_misses(slugs[0], metadata)}", file=sys.stderr)
    for note in survey.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in survey.problems:
        print(f"skipped: {problem.source}: {problem.reason}", file=sys.stderr)
    if unknown := survey.unknown():
        classes = sum(len(record.classes) for record in survey.datasets.values())
        print(
            f"note: {len(unknown)} of {classes} classes have no fact to make knowledge captions of; say what they look "
            f"like with --facts=FILE.yaml: {'; '.join(unknown)}",
            file=sys.stderr,
        )
    if survey.ignored:
        print(f"note: left aside, being no photos: {survey.ignored} files", file=sys.stderr)


if __name__ == "__main__":
    exit_on_user_error(main)
