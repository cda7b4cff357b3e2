"""What the records of a race say: tables with intervals and tests against a baseline, and plots."""

import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agriclip_jax import page
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import statistics
from agriclip_jax.evaluate.statistics import Difference, Interval
from agriclip_jax.files import read_record, write_whole

Record = Mapping[str, Any]
ABOUT = (
    "Mean top-1 in % over tasks and seeds, with the 95 % interval of other seeds (Student's t). A gain is over {} with "
    "the same seeds. Beside it stand the 95 % interval and p-value of other photos of the same tasks, asked of these "
    "very models (sign-flip test), and of other seeds, the recipes trained anew (paired t-test)."
)
# What a record holds, and of which kind it is.
HOLDS = (
    *((name, str) for name in ("recipe", "budget", "settings")),
    *((name, int) for name in ("seed", "steps", "images")),
    ("accelerator_seconds", int | float),
    ("devices", list),
    *((name, dict) for name in ("given", "parameters", "tasks")),
)
BUDGET = r"([1-9]\d{0,8})(steps|s)"  # of each run: a number and its unit
NO_CURVE = "--curve={0}: fewer than two values of it; name recipes as NAME+{0}=VALUE"
TICKS = 6  # numbers along a curve that are all written at its axis
JUDGED = ("of other photos", "p", "of other seeds", "p")


class Standing(NamedTuple):
    """A recipe in a group of tasks.

    Attributes:
      recipe: its name.
      seeds: those that it ran.
      tasks: those of the group that every run of the table answered.
      means: over these, the top-1 of each seed.
      mean: of these.
      interval: of that mean, from the seeds; None of one seed.
      gain: over the baseline, of the seeds that both ran, as other photos would show it; None of the baseline itself.
      trained_anew: the same gain as other seeds would show it; None where both ran fewer than two.
    """

    recipe: str
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    means: tuple[float, ...]
    mean: float
    interval: Interval | None
    gain: Difference | None
    trained_anew: Difference | None


class Raced(NamedTuple):
    """What was raced at one budget: its records, and how each recipe stands in each group of tasks."""

    budget: str
    records: Sequence[Record]
    groups: Mapping[str, Sequence[Standing]]


class Table(NamedTuple):
    """A table of texts."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


def packed(right: np.ndarray) -> str:
    """Who was right, bool [images], as a text."""
    return np.packbits(right).tobytes().hex()


def right(task: Mapping[str, Any]) -> np.ndarray:
    """bool [images]: which photos of a task a record has right."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(task["right"]), np.uint8))
    return bits[: task["images"]].astype(bool)


def read(
    folder: Path, *, suite: str, setting: str, names: Sequence[str] = (), budgets: Sequence[str] = ()
) -> list[Record]:
    """The records of a suite and setting, in the order of `names` (all of them without names), of some budgets or all.

    Raises:
      UserError: there is none, or one is damaged.
    """
    files = sorted(folder.glob(f"{suite}.{setting}.*.json"))
    found = [_record(file) for file in files]
    found = [record for record in found if not names or record["recipe"] in names]
    found = [record for record in found if not budgets or record["budget"] in budgets]
    if not found:
        raise UserError(f"{folder} holds no record of the suite {suite} and the setting {setting}")
    order = {name: place for place, name in enumerate(names)}
    return sorted(found, key=lambda r: (order.get(r["recipe"], 0), r["recipe"], r["seed"]))


def _record(file: Path) -> Record:
    record = read_record(file, *(name for name, _ in HOLDS))
    try:
        if wrong := [name for name, kind in HOLDS if not isinstance(record[name], kind)]:
            raise ValueError(f"{wrong[0]} is {record[wrong[0]]!r}")
        if not re.fullmatch(BUDGET, record["budget"]):
            raise ValueError(f"budget is {record['budget']!r}")
        for name, task in record["tasks"].items():
            if len(right(task)) != task["images"] or not {"photos", "chance", "group", "domain"} <= task.keys():
                raise ValueError(f"what it says of {name} is not whole")
        _ = record["parameters"]["trained"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); remove it, and its run is made anew") from None
    return record


def standings(found: Iterable[Record], baseline: str, by: str) -> dict[str, list[Standing]]:
    """Group of tasks -> how each recipe stands there.

    Args:
      found: records of one suite, setting and budget.
      baseline: the recipe that the others are compared with.
      by: what of a task makes a group: "group" or "domain".

    Raises:
      UserError: the baseline did not run, a recipe ran with several settings, or no task is shared by all.
    """
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    settings: dict[str, str] = {}
    for record in found:
        if settings.setdefault(record["recipe"], record["settings"]) != record["settings"]:
            raise UserError(
                f"the records of {record['recipe']} are of different settings, data or suites; race it again with all "
                "its seeds, or remove the old ones"
            )
        runs.setdefault(record["recipe"], {})[record["seed"]] = record["tasks"]
    asked = [{(name, task["photos"]) for name, task in tasks.items()} for of in runs.values() for tasks in of.values()]
    shared = sorted(name for name, _ in set.intersection(*asked))  # of the same photos
    if not shared:
        raise UserError("no task is of the same photos in all records; race the older recipes again")
    group = {task: next(iter(runs[baseline].values()))[task][by] for task in shared}
    return {
        name: [_standing(recipe, runs, baseline, [task for task in shared if group[task] == name]) for recipe in runs]
        for name in dict.fromkeys(group.values())
    }


def _standing(recipe: str, runs: Mapping[str, Any], baseline: str, tasks: Sequence[str]) -> Standing:
    own, other = runs[recipe], runs[baseline]
    means = tuple(float(np.mean([right(own[seed][task]).mean() for task in tasks])) for seed in sorted(own))
    mean, low, high = statistics.mean_interval(means)
    both = sorted(own.keys() & other.keys()) if recipe != baseline else []
    gained = lambda seed, task: right(own[seed][task]).astype(float) - right(other[seed][task])  # noqa: E731
    gains = {task: np.array([gained(seed, task) for seed in both]) for task in tasks}
    photos, seeds = None, None
    if both:
        photos = statistics.paired_mean_gain([of.mean(axis=0) for of in gains.values()])
    if len(both) > 1:
        seeds = statistics.paired_gain_of_seeds(np.mean([of.mean(axis=1) for of in gains.values()], axis=0))
    interval = None if low is None else (low, high)
    return Standing(recipe, tuple(sorted(own)), tuple(tasks), means, mean, interval, photos, seeds)


def by_budget(found: Sequence[Record], baseline: str, by: str) -> list[Raced]:
    """Each budget at which the baseline ran, the smallest number first; arguments and error as of `standings`."""
    budgets = {record["budget"] for record in found if record["recipe"] == baseline}
    if not budgets:
        raise UserError(f"no record is of the baseline {baseline!r}; race it too, or name another by --baseline")
    of = {each: [r for r in found if r["budget"] == each] for each in sorted(budgets, key=_amount)}
    return [Raced(each, records, standings(records, baseline, by)) for each, records in of.items()]


def tables(raced: Sequence[Raced], whole: str = "", marked: Sequence[str] | None = None) -> list[Table]:
    """Of each budget what was spent and how the recipes stand; of steps and seconds together the smaller gain too.

    Args:
      raced: as from `by_budget`.
      whole: a recipe whose gain is the measure of the others', such as "full" fine-tuning: a table says their shares.
      marked: tasks that get a star in a table of each task, such as those that share concepts with what was trained
        on; None for no such table.

    Raises:
      UserError: `whole` has no gain, or a marked task is none of theirs.
    """
    made = []
    for each, found, groups in raced:
        made.append(_spent(each, found))
        for name, rows in groups.items():
            heads = (f"{name}, {len(rows[0].tasks)} tasks", "seeds", "top-1", "gain", *JUDGED)
            made.append(Table(f"{each}: {name}", heads, [_cells(row) for row in rows]))
        if whole:
            made.append(_shares(each, found, groups, whole))
        if marked is not None:
            made.append(_each_task(each, found, groups, marked))
    gains: dict[str, dict[str, dict[str, float]]] = {}
    for each, _, groups in raced:
        for name, rows in groups.items():
            for row in filter(lambda row: row.gain, rows):
                gains.setdefault(name, {}).setdefault(row.recipe, {})[each] = row.gain.difference
    budgets = [each.budget for each in raced]
    units = {_amount(each)[1] for each in budgets}
    for name, recipes in gains.items() if len(units) > 1 else ():
        rows = [
            [recipe, *(_points(seen[each]) for each in budgets), _points(min(seen.values()))]
            for recipe, seen in recipes.items()
            if len(seen) == len(budgets)
        ]
        made.append(Table(f"The smaller gain: {name}", (name, *budgets, "smaller"), rows))
    return made


def _amount(budget: str) -> tuple[int, str]:
    """The number and the unit of a budget."""
    number, unit = re.fullmatch(BUDGET, budget).groups()
    return int(number), unit


def _spent(each: str, found: Sequence[Record]) -> Table:
    rows = []
    for recipe in dict.fromkeys(record["recipe"] for record in found):
        runs = [record for record in found if record["recipe"] == recipe]
        spent = [np.mean([run[name] for run in runs]) for name in ("steps", "images", "accelerator_seconds")]
        devices = ", ".join(sorted({device for run in runs for device in run["devices"]}))
        rows.append([recipe, *(f"{number:,.0f}" for number in spent), devices])
    return Table(f"{each}: what was spent", ("recipe", "steps", "images", "accelerator-seconds", "on"), rows)


def _shares(each: str, found: Sequence[Record], groups: Mapping[str, Sequence[Standing]], whole: str) -> Table:
    trained = {record["recipe"]: record["parameters"]["trained"] for record in found}
    gains = {name: {row.recipe: row.gain.difference for row in rows if row.gain} for name, rows in groups.items()}
    if missing := [name for name, of in gains.items() if not of.get(whole)]:
        raise UserError(f"--share_of={whole}: no record at {each} has a gain of it in {missing[0]!r}; race it too")
    shares = {name: {recipe: gain / of[whole] for recipe, gain in of.items()} for name, of in gains.items()}
    rows = [
        [
            recipe,
            f"{trained[recipe]:,}" if trained[recipe] else "",
            *(f"{100 * of[recipe]:.0f} %" for of in shares.values()),
        ]
        for recipe in next(iter(shares.values()))
    ]
    heads = ("recipe", "parameters trained", *groups)
    return Table(f"{each}: change as a share of {whole}'s", heads, rows)


def _each_task(
    each: str, found: Sequence[Record], groups: Mapping[str, Sequence[Standing]], marked: Sequence[str]
) -> Table:
    """Top-1 of each recipe, over its seeds, in each task and the means of the groups, with and without marked ones."""
    answered = {name: rows[0].tasks for name, rows in groups.items()}
    if missing := set(marked).difference(*answered.values()):
        raise UserError(f"--mark={min(missing)}: no task at {each} that all answered has this name")
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


def write(
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
      found: as from `read`.
      out: the folder.
      baseline: a recipe.
      by: "group" or "domain": the tasks that make a mean together.
      along: a key that recipes vary in, or "trained" for how many parameters were: a curve is drawn too.
      whole: as of `tables`.
      marked: as of `tables`, whose table of each task is always there.

    Raises:
      UserError: the baseline or `whole` has no record, a marked task is none of theirs, fewer than two recipes vary, or
        a file cannot be written.
    """
    raced, about = by_budget(found, baseline, by), ABOUT.format(baseline)
    made = tables(raced, whole, marked)
    if apart := sorted({record["budget"] for record in found} - {each.budget for each in raced}):
        about += f" Left out, for {baseline} did not run there: {', '.join(apart)}."
    text = "\n\n".join([about, *map(markdown, made)]) + "\n"
    write_whole(out / "table.md", text)
    sections = []
    for each, drawn in plots(raced, baseline, along, whole).items():
        for name, svg in drawn.items():
            write_whole(out / f"{name}-{each}.svg", svg)
        pictures = "".join(f'<div class="picture">{svg[svg.index("<svg") :]}</div>' for svg in drawn.values())
        sections.append((each, pictures + "".join(_html(t) for t in made if t.title.startswith(f"{each}:"))))
    smaller = "".join(_html(table) for table in made if table.title.startswith("The smaller"))
    if smaller:
        sections.append(("The smaller gain", smaller))
    header = f"<p>{escape(about)}</p>"
    write_whole(out / "report.html", page.render("Recipes raced", "race", header, sections, STYLE))
    return text


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


def plots(raced: Sequence[Raced], baseline: str, along: str, whole: str = "") -> dict[str, dict[str, str]]:
    """Budget -> "plot", and "curve" where `along` is given -> SVG; arguments as of `write`.

    Where gains are shares of `whole`'s, the baseline is what the others began with, and is no point of a curve.
    """
    drawn: dict[str, dict[str, str]] = {}
    for each, found, groups in raced:
        drawn[each] = {"plot": dots(groups, baseline)}
        if along:
            places = _places([r for r in found if not (whole and r["recipe"] == baseline)], along)
            drawn[each]["curve"] = curves(groups, places, along, baseline)
    return drawn


def _html(table: Table) -> str:
    def line(tag: str, texts: Sequence[str]) -> str:
        cells = (f"<{tag}{' class=n' if place else ''}>{escape(text)}</{tag}>" for place, text in enumerate(texts))
        return f"<tr>{''.join(cells)}</tr>"

    rows = "".join(line("td", row) for row in table.rows)
    whole = f'<table class="rows"><thead>{line("th", table.heads)}</thead><tbody>{rows}</tbody></table>'
    return f"<h3>{escape(table.title)}</h3>{page.scrolling(table.title, whole)}"


def dots(stands: Mapping[str, Sequence[Standing]], baseline: str) -> str:
    """An SVG: a panel for each group of tasks, in it a row for each recipe: its seeds, and their mean."""
    axes_of, finish = _panels(stands, height=0.9 + 0.34 * max(map(len, stands.values())), sharey=True)
    for axes, rows in zip(axes_of, stands.values(), strict=True):
        for place, row in enumerate(rows):
            axes.plot(100 * np.array(row.means), [place] * len(row.means), "o", ms=4, alpha=0.5, color="tab:green")
            axes.plot([100 * row.mean], [place], "|", ms=14, mew=2, color="tab:green")
        axes.axvline(100 * next(row.mean for row in rows if row.recipe == baseline), ls=":", lw=1, color="grey")
        axes.set(xlabel="mean top-1, %", ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [row.recipe for row in rows])
    return finish()


def curves(stands: Mapping[str, Sequence[Standing]], places: Mapping[str, float], along: str, baseline: str) -> str:
    """An SVG: a panel for each group of tasks, in it a line for each recipe along a number; bars span the seeds.

    Args:
      stands: group -> standings.
      places: recipe -> its number; those without one are left out. Names that differ in keys alone are one line.
      along: what the number is.
      baseline: a recipe; where it has no number it is a dotted line.
    """
    axes_of, finish = _panels(stands, height=3.2)
    for axes, rows in zip(axes_of, stands.values(), strict=True):
        lines: dict[str, list[Standing]] = {}
        for row in rows:
            if row.recipe == baseline and baseline not in places:
                axes.axhline(100 * row.mean, ls=":", lw=1, color="grey", label=baseline)
            if row.recipe in places:
                lines.setdefault(row.recipe.split("+")[0], []).append(row)
        for label, line in lines.items():
            line.sort(key=lambda row: places[row.recipe])
            ends = [[100 * abs(row.mean - end(row.means)) for row in line] for end in (min, max)]
            x, y = [places[row.recipe] for row in line], [100 * row.mean for row in line]
            axes.errorbar(x, y, ends, marker="o", ms=4, capsize=3, label=label)
        axes.set(xlabel="parameters trained" if along == "trained" else along, ylabel="mean top-1, %", xscale="log")
        if len(numbers := sorted(set(places.values()))) <= TICKS:
            axes.set_xticks(numbers, [f"{number:,.0f}" if number >= 1000 else f"{number:g}" for number in numbers])
            axes.minorticks_off()
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)  # hides no point
    return finish()


def _panels(stands: Mapping[str, Sequence[Standing]], height: float, **options: Any) -> tuple[Any, Callable[[], str]]:
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(stands), height), layout="constrained")
    panels = figure.subplots(1, len(stands), squeeze=False, **options)[0]
    for axes, (name, rows) in zip(panels, stands.items(), strict=True):
        axes.set_title(f"{name}, {len(rows[0].tasks)} tasks", fontsize=10)

    def finish() -> str:
        data = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "race"}):  # the same plot is the same bytes
            figure.savefig(data, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
        return data.getvalue().decode("utf-8")

    return panels, finish


def _places(found: Sequence[Record], along: str) -> dict[str, float]:
    """Recipe -> the number it has of a key."""
    places = {}
    for record in found:
        value = record["parameters"]["trained"] if along == "trained" else record["given"].get(along)
        if value is not None:
            try:
                places[record["recipe"]] = float(value)
            except ValueError:
                raise UserError(f"--curve={along}: {value!r} of {record['recipe']} is no number") from None
    if len(set(places.values())) < 2:
        raise UserError(NO_CURVE.format(along))
    return places


STYLE = ".picture{overflow-x:auto;background:#fff;padding:.5rem}.picture svg{max-width:100%;height:auto}"
