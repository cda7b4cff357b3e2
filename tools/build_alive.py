"""Photos -> an ALive folder: checked, captioned, split, ready for training, with a card that tells what is in it.

  python tools/build_alive.py --source=PHOTOS --out=DIR
  python tools/build_alive.py --source=a.zip --source='more/*.tar.gz' --meta=datasets.json --out=DIR --max_side=512
  python tools/build_alive.py --source=csv:pairs.csv?image=photo --keywords=crop --duplicates=near --against=TEST \\
    --out=DIR
  python tools/build_alive.py --inspect=DIR

A source is KIND:LOCATION?key=value&key=value; the kind is guessed where it can be: folder, zip, tar (a folder for each
class), csv, tsv, huggingface (metadata.csv, .jsonl, .parquet), parquet (with the images), webdataset, img2dataset,
tfds (a name or a folder), inaturalist, alive (a finished folder). Archives are read in place. Names, domain and licence
come from --meta, from a dataset.json in or beside a source, or from the datasets known by name (--list).
"""

import argparse
import os
import shlex
import sys

from agriclip_jax.errors import UserError, exit_on_user_error, near_misses, one_line

DUPLICATES = ("keep", "exact", "near")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--source", action="append", default=[], metavar="SOURCE", help="photos; may be repeated")
    add("--out", metavar="DIR", help="the ALive folder to make")
    add("--list", action="store_true", help="show the datasets known by name")
    add("--inspect", metavar="DIR", help="tell in short what an ALive folder holds")
    add("--meta", metavar="FILE", help="JSON list of records: name, domain, classes, license, source")
    add("--split", default="train:70,val:10,test:20", metavar="SHARES", help="default: %(default)s")
    add("--facts", action="append", default=[], metavar="FILE.yaml", help="what your classes look like; repeatable")
    add("--max_side", type=int, metavar="N", help="shrink photos to at most N pixels a side")
    add("--overwrite", action="store_true", help="replace DIR when it is an ALive folder")
    stages = parser.add_argument_group("curation")
    add = stages.add_argument
    add("--keywords", metavar="DOMAIN,...|FILE.yaml", help="keep what its captions name as of these domains")
    add(
        "--duplicates",
        choices=DUPLICATES,
        default="keep",
        help="drop exact ones, or near ones too; default: %(default)s",
    )
    add("--against", action="append", default=[], metavar="SOURCE", help="drop what is also in here; repeatable")
    add("--ckpt", metavar="WORKDIR", help="a trained model, for the next two and for --describer")
    add("--min_agreement", type=float, metavar="COS", help="drop what is less similar to its captions")
    add("--max_deviation", type=float, metavar="N", help="drop what is more robust standard deviations off its domain")
    models = parser.add_argument_group("captions by a language model, at any OpenAI-compatible address")
    add = models.add_argument
    add("--rewriter", metavar="URL", help="says the captions of classes in other words")
    add("--describer", metavar="URL", help="captions photos that have neither class nor caption")
    add("--model", metavar="NAME", help="of both; the key, if any, is in OPENAI_API_KEY")
    add("--rewrites", type=int, default=4, metavar="N", help="captions for each class; default: %(default)s")
    add("--candidates", type=int, default=4, metavar="N", help="captions to choose from for each photo; default: 4")
    add("--cache", metavar="DIR", help="where answers are kept, so that a rerun asks nothing twice")
    beam = parser.add_argument_group("Apache Beam")
    beam.add_argument(
        "--runner", metavar="NAME", help="DirectRunner, FlinkRunner, SparkRunner, ...; its options follow"
    )
    return parser.parse_known_args()


def main() -> None:
    arguments, rest = parse_arguments()
    if rest and not arguments.runner:
        raise UserError(f"unknown argument {rest[0]}; see --help")
    if arguments.list:
        list_datasets()
    elif arguments.inspect:
        from agriclip_jax.data import card

        print("\n".join(map(one_line, card.summary(arguments.inspect).splitlines())))
    else:
        build(arguments, rest)


def list_datasets() -> None:
    """Prints the datasets known by name."""
    from rich.console import Console
    from rich.table import Table

    from agriclip_jax.data import catalogue

    table = Table()
    for column in ("name", "domain", "classes", "images", "licence", "where"):
        justify = "right" if column in ("classes", "images") else "left"
        table.add_column(column, justify=justify, no_wrap=column in ("name", "domain"), overflow="fold")
    for named in catalogue.shipped():
        images = f"{named.images:,}" if named.images else "unknown"
        classes = str(len(named.classes) or "unlisted")
        table.add_row(named.name, named.domain, classes, images, named.license or "unknown", named.where)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def build(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Builds the folder and prints what was done."""
    check(arguments)
    from agriclip_jax.data import build, curation, distribute, knowledge, records, sources, splits
    from agriclip_jax.version import code_version

    metadata = sources.read_metadata(arguments.meta) if arguments.meta else {}
    records.check_out(arguments.out, overwrite=arguments.overwrite)
    found = sources.find(arguments.source)
    plan = build.Plan(
        metadata=metadata,
        ratios=splits.parse_ratios(arguments.split),
        knowledge=knowledge.table(arguments.facts),
        max_side=arguments.max_side,
        against=sources.find(arguments.against, flag="--against"),
        keywords=curation.keywords(arguments.keywords) if arguments.keywords else None,
        duplicates=arguments.duplicates,
        judge=judge(arguments),
        min_agreement=arguments.min_agreement,
        max_deviation=arguments.max_deviation,
        describer=endpoint(arguments, "describer"),
        candidates=arguments.candidates,
        rewriter=endpoint(arguments, "rewriter"),
        rewrites=arguments.rewrites,
        beam=distribute.options(arguments.runner, rest) if arguments.runner else None,
        command=shlex.join(["python", os.path.join("tools", os.path.basename(sys.argv[0])), *sys.argv[1:]]),
        version=code_version(),
    )
    with progress_bar() as start:
        built = build.build(arguments.out, found, plan, overwrite=arguments.overwrite, progress=start)
    report(built, plan)
    total = built.funnel[-1].left
    print(f"wrote {total} examples to {arguments.out}; train on them with --config.data.path={arguments.out}")
    print(f"what is in it: {os.path.join(arguments.out, 'card.html')}")


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for what the arguments alone show to be wrong."""
    for name in ("source", "out"):
        if not getattr(arguments, name):
            raise UserError(f"--{name} is missing; see --help")
    for name, least in (("max_side", 8), ("rewrites", 1), ("candidates", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name}={value} is too small; give at least {least}")
    if not arguments.ckpt and (arguments.min_agreement is not None or arguments.max_deviation is not None):
        raise UserError("--min_agreement and --max_deviation need a trained model; name its workdir with --ckpt")
    if (arguments.rewriter or arguments.describer) and not arguments.model:
        raise UserError("--rewriter and --describer need the name of the model; give --model")


def judge(arguments: argparse.Namespace):
    """The trained model, where something asks it."""
    if not arguments.ckpt or (arguments.min_agreement, arguments.max_deviation, arguments.describer) == (None,) * 3:
        return None
    from agriclip_jax import inference

    return inference.load(arguments.ckpt)


def endpoint(arguments: argparse.Namespace, flag: str):
    """The endpoint that a flag names, if it does."""
    url = getattr(arguments, flag)
    if not url:
        return None
    from pathlib import Path

    from agriclip_jax.data.endpoint import Endpoint

    default = Path(os.environ.get("AGRICLIP_CACHE") or "~/.cache/agriclip_jax").expanduser() / "answers"
    return Endpoint(url, arguments.model, cache=Path(arguments.cache) if arguments.cache else default)


def progress_bar():
    """A bar on stderr; entered, it gives start(label), which gives progress(done since the last call, total)."""
    from contextlib import contextmanager

    # While it loads, TFDS replaces Python's import, and a thread that imports just then, as the bar's may, fails.
    import tensorflow_datasets  # noqa: F401
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


def report(built, plan) -> None:
    """Prints the tables, and on stderr what was skipped, found or guessed."""
    from itertools import islice

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from agriclip_jax.data.survey import UNREADABLE

    survey, datasets, counts = built.survey, built.survey.datasets, built.survey.counts
    skipped = survey.skipped(UNREADABLE)
    table = Table()
    for column in ("dataset", "domain"):
        table.add_column(column)
    for column in ("classes", "train", "val", "test", "skipped"):
        table.add_column(column, justify="right")
    for slug, record in datasets.items():
        splits = [counts[slug].get(split, 0) for split in ("train", "val", "test")]
        classes = sum(map(bool, record.classes))
        named = (escape(one_line(text)) for text in (slug, record.domain))
        table.add_row(*named, *map(str, (classes, *splits, skipped.get(slug, 0))))
    Console().print(table)
    funnel = Table()
    for column in ("stage", "dropped", "left"):
        funnel.add_column(column, justify="left" if column == "stage" else "right")
    for stage in built.funnel:
        funnel.add_row(stage.name, str(stage.dropped or ""), str(stage.left))
    Console().print(funnel)
    say = lambda line: print(one_line(line[:20_000]), file=sys.stderr)  # noqa: E731
    slugs = [part.source.slug for part in survey.parts if part.ours]
    if plan.metadata and not set(slugs) & set(plan.metadata):
        say(f"note: --meta names none of the sources{near_misses(slugs[0], plan.metadata)}")
    for note in survey.notes:
        say(f"note: {note}")
    for problem in islice(survey.dropped(UNREADABLE), 50):
        say(f"skipped: {problem.source}: {problem.reason}")
    if (more := sum(skipped.values()) - 50) > 0:
        say(f"skipped: {more} more; all are listed in dropped.csv")
    twins = built.twins
    if plan.duplicates != "near" and (twins["exact"] or twins["near"]):
        say(
            f"note: {twins['exact']} exact and {twins['near']} near duplicates found, {twins['across_splits']} of them "
            "in another split than their twin; --duplicates=near drops all of them"
        )
    if twins["noise"]:
        say(f"note: {twins['noise']} pictures stand under two class names; the card shows some")
    if unknown := survey.unknown():
        classes = sum(bool(key) for record in datasets.values() for key in record.classes)
        say(
            f"note: {len(unknown)} of {classes} classes have no fact to make knowledge captions of; say what they look "
            f"like with --facts=FILE.yaml: {'; '.join(unknown[:300])}{'; ...' * (len(unknown) > 300)}"
        )
    for line in built.endpoints:
        say(f"note: {line}")
    if built.rejects:
        say("note: written captions not taken: " + ", ".join(f"{n} {why}" for why, n in built.rejects.most_common()))
    if survey.ignored:
        say(f"note: left aside, being no photos: {survey.ignored} files")


if __name__ == "__main__":
    exit_on_user_error(main)
