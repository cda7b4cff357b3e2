"""A race of recipes: trained at the same budget with several seeds, measured on the same tasks, compared in a table.

  python tools/compare.py --suite=configs/suites/race.yaml --recipes=contrastive,joint,three_stage --seeds=0,1,2 \\
      --budget=4000steps --setting=gpu --out=race/ --config.data.path=data/farm
  python tools/compare.py --suite=configs/suites/race.yaml --out=race/ --only_table
  python tools/compare.py --page=docs/results.md

A recipe is a name in configs/race.py, or FILE.py[:VARIANT]; NAME+KEY=VALUE sets a key of it alone, NAME@teacher
measures the moving average. --config.KEY=VALUE sets a key of all. --budget=900s gives each the steps that fit into so
many seconds of this accelerator; a recipe of several stages divides its budget among them.

Each finished run leaves a small record (--records, OUT/records without it). The command may be stopped and given
again, on any machine that has the records. OUT gets table.md, a plot of each budget, curves with --curve, and a page,
report.html. --page writes the marked tables and plots of a Markdown page anew, from the records in results/ beside it.
"""

import argparse
from pathlib import Path

from agriclip_jax.errors import UserError, exit_on_user_error


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """What was given, and beside it the keys of a configuration."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--suite", default="", metavar="FILE.yaml", help="what every run is asked")
    parser.add_argument("--recipes", default="", metavar="A,B,...", help="what is raced")
    parser.add_argument("--recipe", action="append", default=[], metavar="NAME", help="one more, whatever is in it")
    parser.add_argument("--seeds", default="0", metavar="0,1,2")
    parser.add_argument("--budget", default="", metavar="4000steps|900s", help="what each run may use")
    parser.add_argument(
        "--setting", default="cpu", choices=("cpu", "gpu"), help="sizes of the recipes in configs/race.py"
    )
    parser.add_argument("--out", default="", metavar="DIR", help="runs, table and plots")
    parser.add_argument("--records", default="", metavar="DIR", help="one JSON for each finished run")
    parser.add_argument("--baseline", default="contrastive", metavar="NAME", help="what the others are compared with")
    parser.add_argument("--by", default="group", choices=("group", "domain"), help="which tasks make a mean together")
    parser.add_argument("--curve", default="", metavar="KEY", help="a key along which recipes vary, or 'trained'")
    parser.add_argument("--share_of", default="", metavar="NAME", help="a recipe by whose gain others are measured")
    parser.add_argument("--mark", default="", metavar="A,B,...", help="tasks that get a star in the table of each task")
    parser.add_argument("--keep", action="store_true", help="keep the runs' folders")
    parser.add_argument("--only_table", action="store_true", help="train nothing: the table of all seeds' records")
    parser.add_argument("--page", default="", metavar="FILE.md", help="a page to fill from records, and nothing else")
    arguments, rest = parser.parse_known_args()
    if rest and (arguments.page or arguments.only_table):
        raise UserError(f"{rest[0]}: nothing is trained for a table or a page, so it has no key; see --help")
    return arguments, rest


def main() -> int:
    arguments, rest = parse_arguments()
    if arguments.page:
        from agriclip_jax.comparison import results

        results.write(Path(arguments.page))
        return 0
    if not (arguments.suite and arguments.out):
        raise UserError("name --suite=FILE.yaml and --out=DIR, or a page by --page=FILE.md")
    if not arguments.only_table and not ((arguments.recipes or arguments.recipe) and arguments.budget):
        raise UserError("name --recipes=A,B,... and --budget=4000steps or 900s, or give --only_table")
    from agriclip_jax import config as configs
    from agriclip_jax import race
    from agriclip_jax.comparison import results, standings
    from agriclip_jax.files import check_file

    records = Path(arguments.records or Path(arguments.out) / "records")
    names = [*filter(None, arguments.recipes.split(",")), *arguments.recipe]
    marked = [*filter(None, arguments.mark.split(","))]
    compared = [arguments.baseline, *filter(None, [arguments.share_of])]
    check_file(Path(arguments.out) / "report.html")
    if not arguments.only_table:
        check_file(records / "record.json")
        shared = configs.overrides(rest)
        entries = [race.Entry(name, arguments.setting, shared) for name in names]
        run = race.Race(
            Path(arguments.suite),
            race.budget(arguments.budget),
            Path(arguments.out),
            records,
            arguments.setting,
            arguments.keep,
            lambda line: print(line, flush=True),
        )
        run.all(entries, race.numbers("--seeds", arguments.seeds), compared, marked, arguments.curve)
    told = list(dict.fromkeys([*names, *compared])) if names else ()
    budgets = [arguments.budget] if arguments.only_table and arguments.budget else ()
    suite = Path(arguments.suite).stem
    found = standings.read(records, suite=suite, setting=arguments.setting, names=told, budgets=budgets)
    asked = {"by": arguments.by, "along": arguments.curve, "whole": arguments.share_of, "marked": marked}
    print(results.report(found, Path(arguments.out), arguments.baseline, **asked))
    print(f"report: {Path(arguments.out) / 'report.html'}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
