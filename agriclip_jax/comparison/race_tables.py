"""Tables of a race: what was spent, how its recipes stand, and what was tried."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from agriclip_jax import page
from agriclip_jax.comparison.standings import Raced, Record, Standing, amount, heading, right
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.evaluate.statistics import Interval

ABOUT = (
    "Mean top-1 in % over tasks and seeds, with the 95 % interval of other seeds (Student's t). A gain is over {} with "
    "the same seeds. Beside it stand the 95 % interval and p-value of other photos of the same tasks, asked of these "
    "very models (sign-flip test), and of other seeds, the recipes trained anew (paired t-test)."
)
JUDGED = ("of other photos", "p", "of other seeds", "p")


class Table(NamedTuple):
    """A table of texts."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables(raced: Sequence[Raced], whole: str = "", marked: Sequence[str] | None = None) -> list[Table]:
    """Of each budget what was spent and how the recipes stand; of steps and seconds together the smaller gain too.

    Args:
      raced: as from `standings.by_budget`.
      whole: a recipe whose gain is the measure of the others', such as "full" fine-tuning: a table says their shares,
        of each budget at which it has one.
      marked: tasks that get a star in a table of each task, such as those that share concepts with what was trained
        on; None for no such table.

    Raises:
      UserError: `whole` has a gain at no budget, or a marked task is none of theirs.
    """
    names = sorted({task for each in raced for rows in each.groups.values() for task in rows[0].tasks})
    if unknown := [name for name in marked or () if name not in names]:
        raise UserError(f"--mark={unknown[0]}: no task that all answered has this name{near_misses(unknown[0], names)}")
    gained = {
        each: {name: {row.recipe: row.gain.difference for row in rows if row.gain} for name, rows in groups.items()}
        for each, _, groups in raced
    }
    measured = [each for each, of in gained.items() if whole and all(gains.get(whole) for gains in of.values())]
    if whole and not measured:
        raise UserError(f"--share_of={whole}: no record has a gain of it in every group of tasks; race it too")
    made = []
    for each, found, groups in raced:
        made.append(_spent(each, found))
        for name, rows in groups.items():
            heads = (heading(name, rows[0]), "seeds", "top-1", "gain", *JUDGED)
            made.append(Table(f"{each}: {name}", heads, [_cells(row) for row in rows]))
        if each in measured:
            made.append(_shares(each, found, gained[each], whole))
        if marked is not None:
            made.append(_each_task(each, found, groups, marked))
    for name in dict.fromkeys(name for of in gained.values() for name in of):
        if rows := _smaller({each: of[name] for each, of in gained.items() if name in of}):
            made.append(Table(f"The smaller gain: {name}", (name, *gained, "smaller"), rows))
    return made


def _smaller(gained: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Budget -> recipe -> gain as rows, of the recipes that have one by steps and one by seconds."""
    rows = []
    for recipe in dict.fromkeys(recipe for of in gained.values() for recipe in of):
        seen = {each: of[recipe] for each, of in gained.items() if recipe in of}
        if len({amount(each)[1] for each in seen}) > 1:
            cells = (_points(seen[each]) if each in seen else "" for each in gained)
            rows.append([recipe, *cells, _points(min(seen.values()))])
    return rows


def _spent(each: str, found: Sequence[Record]) -> Table:
    rows = []
    for recipe in dict.fromkeys(record["recipe"] for record in found):
        runs = [record for record in found if record["recipe"] == recipe]
        spent = [np.mean([run[name] for run in runs]) for name in ("steps", "images", "accelerator_seconds")]
        devices = ", ".join(sorted({device for run in runs for device in run["devices"]}))
        rows.append([recipe, *(f"{number:,.0f}" for number in spent), devices])
    return Table(f"{each}: what was spent", ("recipe", "steps", "images", "accelerator-seconds", "on"), rows)


def _shares(each: str, found: Sequence[Record], gains: Mapping[str, Mapping[str, float]], whole: str) -> Table:
    """Of the gains in each group of tasks."""
    trained = {record["recipe"]: record["parameters"]["trained"] for record in found}
    shares = {name: {recipe: gain / of[whole] for recipe, gain in of.items()} for name, of in gains.items()}
    rows = [
        [
            recipe,
            f"{trained[recipe]:,}" if trained[recipe] else "",
            *(f"{100 * of[recipe]:.0f} %" for of in shares.values()),
        ]
        for recipe in next(iter(shares.values()))
    ]
    heads = ("recipe", "parameters trained", *gains)
    return Table(f"{each}: change as a share of {whole}'s", heads, rows)


def _each_task(
    each: str, found: Sequence[Record], groups: Mapping[str, Sequence[Standing]], marked: Sequence[str]
) -> Table:
    """Top-1 of each recipe, over its seeds, in each task and the means of the groups, with and without marked ones."""
    answered = {name: rows[0].tasks for name, rows in groups.items()}
    recipes = {record["recipe"]: [r["tasks"] for r in found if r["recipe"] == record["recipe"]] for record in found}

    def row(label: str, names: Sequence[str]) -> list[str]:
        chance = np.mean([found[0]["tasks"][name]["chance"] for name in names])
        tops = [np.mean([right(run[name]).mean() for run in runs for name in names]) for runs in recipes.values()]
        return [label, *(f"{100 * share:.1f}" for share in (chance, *tops))]

    rows = []
    for group, names in answered.items():
        plain = [name for name in names if name not in marked]
        rows += [row(f"{name} *" if name in marked else name, [name]) for name in names]
        rows.append(row(f"mean of {group}", names))
        if 0 < len(plain) < len(names):
            rows.append(row(f"mean of {group} without *", plain))
    return Table(f"{each}: each task", ("task", "chance", *recipes), rows)


def _cells(row: Standing) -> list[str]:
    def ends(interval: Interval | None) -> str:
        return f"[{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""

    judged = [
        cell
        for g in (row.gain, row.trained_anew)
        for cell in ((ends(g.interval), f"{g.p_value:.2g}") if g else ("", ""))
    ]
    mean = f"{100 * row.mean:.1f} {ends(row.interval)}".rstrip()
    return [row.recipe, str(len(row.seeds)), mean, _points(row.gain.difference) if row.gain else "", *judged]


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def trials(found: Sequence[Record]) -> Table:
    """Each record by itself, best first: what was tried on the way to a recipe, whatever it could use."""
    groups = list(dict.fromkeys(task["group"] for record in found for task in record["tasks"].values()))
    rows = []
    for record in found:
        of = {group: [] for group in groups}
        for task in record["tasks"].values():
            of[task["group"]].append(right(task).mean())
        said = [record["recipe"], record["budget"], str(record["seed"])]
        spent = [f"{record[name]:,.0f}" for name in ("images", "accelerator_seconds")]
        rows.append([*said, *spent, *(f"{100 * np.mean(means):.1f}" for means in of.values())])
    rows.sort(key=lambda row: -float(row[5]))
    return Table("Trials", ("recipe", "budget", "seed", "images", "accelerator-seconds", *groups), rows)


def markdown(table: Table, level: int = 3) -> str:
    """A table in Markdown, under a heading of some level."""
    rule = "---".join("|" * (len(table.heads) + 1))
    lines = [f"| {' | '.join(row)} |" for row in table.rows]
    return "\n".join([f"{'#' * level} {table.title}", "", f"| {' | '.join(table.heads)} |", rule, *lines])


def html(table: Table) -> str:
    """A table in HTML, under its title."""

    def line(tag: str, texts: Sequence[str]) -> str:
        cells = (f"<{tag}{' class=n' if place else ''}>{escape(text)}</{tag}>" for place, text in enumerate(texts))
        return f"<tr>{''.join(cells)}</tr>"

    rows = "".join(line("td", row) for row in table.rows)
    whole = f'<table class="rows"><thead>{line("th", table.heads)}</thead><tbody>{rows}</tbody></table>'
    return f"<h3>{escape(table.title)}</h3>{page.scrolling(table.title, whole)}"
