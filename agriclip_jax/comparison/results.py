"""A Markdown page whose tables and plots come from the records of races beside it."""

import argparse
import re
import shlex
from pathlib import Path
from typing import NoReturn

from agriclip_jax.comparison import standings
from agriclip_jax.errors import UserError
from agriclip_jax.files import write_whole

SECTION = re.compile(r"<!-- race: (?P<asked>.*?) -->\n.*?<!-- race: end -->", re.DOTALL)
LEVEL = 4  # of a table's heading: sections of the page have the third
RECORDS = "results"  # the folder beside the page, of records and plots


def fill(page: Path) -> tuple[str, dict[Path, str]]:
    """The text of a page with each marked section made anew, and its plots by the files they belong in.

    A section begins with `<!-- race: --suite=race --budgets=300s,4000steps --plot=headline contrastive joint -->`: the
    options are those of `_asked`, then come the recipes, the baseline first; without any, each record of the suite is
    listed by itself. It ends with `<!-- race: end -->`.

    Raises:
      UserError: the page cannot be read, a marker cannot be understood, or its records are not there.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page} cannot be read ({error.strerror})") from None
    drawn: dict[Path, str] = {}

    def section(found: re.Match[str]) -> str:
        asked = _asked(page, found["asked"])
        budgets = asked.budgets.split(",") if asked.budgets else ()
        records = standings.read(
            page.parent / RECORDS, suite=asked.suite, setting=asked.setting, names=asked.recipes, budgets=budgets
        )
        if not asked.recipes:
            parts = [standings.markdown(standings.trials(records), LEVEL)]
        else:
            baseline = asked.recipes[0]
            raced = standings.by_budget(records, baseline, asked.by)
            parts = [standings.ABOUT.format(baseline)]
            for budget, plots in standings.plots(raced, baseline, asked.along, asked.share_of).items():
                for kind, svg in plots.items():
                    file = Path(RECORDS) / f"{asked.plot}-{kind}-{budget}.svg"
                    drawn[page.parent / file] = svg
                    parts.append(f"![{kind} of {asked.plot}, {budget}]({file})")
            parts += [standings.markdown(table, LEVEL) for table in standings.tables(raced, asked.share_of, asked.mark)]
        body = "\n\n".join(parts)
        return f"<!-- race: {found['asked']} -->\n\n{body}\n\n<!-- race: end -->"

    return SECTION.sub(section, text), drawn


def write(page: Path) -> None:
    """Writes a page that `fill` made anew, and its plots."""
    text, drawn = fill(page)
    for file, content in {**drawn, page: text}.items():
        write_whole(file, content)


class _Marker(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _asked(page: Path, marker: str) -> argparse.Namespace:
    parser = _Marker(add_help=False, allow_abbrev=False)
    parser.add_argument("--suite", required=True)
    parser.add_argument("--setting", default="cpu")
    parser.add_argument("--budgets", default="")
    parser.add_argument("--by", default="group", choices=("group", "domain"))
    parser.add_argument("--along", default="")
    parser.add_argument("--share_of", default="")
    parser.add_argument("--mark", default=None, type=lambda names: [*filter(None, names.split(","))])
    parser.add_argument("--plot", default="race")
    parser.add_argument("recipes", nargs="*")
    try:
        return parser.parse_args(shlex.split(marker))
    except ValueError as error:
        raise UserError(f"{page}: the marker 'race: {marker}' is not understood ({error})") from None
