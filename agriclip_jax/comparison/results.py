"""What records of races say, written: a folder with a table, plots and a page, or marked sections of a page."""

import argparse
import re
import shlex
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NoReturn

from agriclip_jax import page as pages
from agriclip_jax.comparison import race_plots, race_tables, standings
from agriclip_jax.comparison.standings import Record
from agriclip_jax.errors import UserError
from agriclip_jax.files import write_whole

SECTION = re.compile(r"<!-- race: (?P<asked>.*?) -->\n.*?<!-- race: end -->", re.DOTALL)
LEVEL = 4  # of a table's heading: sections of the page have the third
RECORDS = "results"  # the folder beside the page, of records and plots
STYLE = ".picture{overflow-x:auto;background:#fff;padding:.5rem}.picture svg{max-width:100%;height:auto}"


def fill(page: Path) -> tuple[str, dict[Path, str]]:
    """The text of a page with each marked section made anew, and its plots by the files they belong in.

    A section begins with `<!-- race: --suite=race --budgets=300s,4000steps --plot=headline contrastive joint -->`: the
    options are those of `_asked`, then come the recipes, the baseline first; without any, each record of the suite is
    listed by itself. It ends with `<!-- race: end -->`.

    Raises:
      UserError: the page cannot be read or has no section, a marker has no end or cannot be understood, or its records
        are not there.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{page} cannot be read ({error.strerror})") from None
    openings, ends = re.findall(r"<!-- race: (?!end -->)", text), text.count("<!-- race: end -->")
    if not len(SECTION.findall(text)) == len(openings) == ends > 0:
        raise UserError(
            f"{page} has {len(openings)} markers '<!-- race: ... -->' and {ends} '<!-- race: end -->'; a section to "
            "fill stands between one of each, on lines of their own"
        )
    drawn: dict[Path, str] = {}

    def section(found: re.Match[str]) -> str:
        asked = _asked(page, found["asked"])
        budgets = asked.budgets.split(",") if asked.budgets else ()
        of = {"suite": asked.suite, "setting": asked.setting, "names": asked.recipes, "budgets": budgets}
        try:
            records = standings.read(page.parent / RECORDS, **of)
        except UserError as error:
            raise UserError(f"{page}: the marker 'race: {found['asked']}': {error}") from None
        if not asked.recipes:
            parts = [race_tables.markdown(race_tables.trials(records), LEVEL)]
        else:
            baseline = asked.recipes[0]
            raced = standings.by_budget(records, baseline, asked.by)
            if missing := [each for each in budgets if each not in {one.budget for one in raced}]:
                raise UserError(f"{page}: at {missing[0]} no record is of {baseline}, the first recipe of its marker")
            parts = [race_tables.ABOUT.format(baseline)]
            for budget, plots in race_plots.plots(raced, baseline, asked.along, asked.share_of).items():
                for kind, svg in plots.items():
                    file = Path(RECORDS) / f"{asked.plot}-{kind}-{budget}.svg"
                    drawn[page.parent / file] = svg
                    parts.append(f"![{kind} of {asked.plot}, {budget}]({file})")
            tables = race_tables.tables(raced, asked.share_of, asked.mark)
            parts += [race_tables.markdown(table, LEVEL) for table in tables]
        body = "\n\n".join(parts)
        return f"<!-- race: {found['asked']} -->\n\n{body}\n\n<!-- race: end -->"

    return SECTION.sub(section, text), drawn


def write(page: Path) -> None:
    """Writes a page that `fill` made anew, and its plots."""
    text, drawn = fill(page)
    for file, content in {**drawn, page: text}.items():
        write_whole(file, content)


def report(
    found: Sequence[Record],
    out: Path,
    baseline: str,
    *,
    by: str = "group",
    along: str = "",
    whole: str = "",
    marked: Sequence[str] = (),
) -> str:
    """Writes table.md, plots of each budget and report.html; gives the table.

    Args:
      found: as from `standings.read`.
      out: the folder.
      baseline: a recipe.
      by: "group" or "domain": the tasks that make a mean together.
      along: a key that recipes vary in, or "trained" for how many parameters were: a curve is drawn too.
      whole: as of `race_tables.tables`.
      marked: as of `race_tables.tables`, whose table of each task is always there.

    Raises:
      UserError: the baseline or `whole` has no record, a marked task is none of theirs, fewer than two recipes vary, or
        a file cannot be written.
    """
    raced, about = standings.by_budget(found, baseline, by), race_tables.ABOUT.format(baseline)
    made = race_tables.tables(raced, whole, marked)
    if apart := sorted({record["budget"] for record in found} - {each.budget for each in raced}):
        about += f" Left out, for {baseline} did not run there: {', '.join(apart)}."
    text = "\n\n".join([about, *map(race_tables.markdown, made)]) + "\n"
    write_whole(out / "table.md", text)
    sections = []
    for each, drawn in race_plots.plots(raced, baseline, along, whole).items():
        for name, svg in drawn.items():
            write_whole(out / f"{name}-{each}.svg", svg)
        pictures = "".join(f'<div class="picture">{svg[svg.index("<svg") :]}</div>' for svg in drawn.values())
        sections.append((each, pictures + "".join(race_tables.html(t) for t in made if t.title.startswith(f"{each}:"))))
    smaller = "".join(race_tables.html(table) for table in made if table.title.startswith("The smaller"))
    if smaller:
        sections.append(("The smaller gain", smaller))
    header = f"<p>{escape(about)}</p>"
    write_whole(out / "report.html", pages.render("Recipes raced", "race", header, sections, STYLE))
    return text


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
