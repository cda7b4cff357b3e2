"""Plots of a race: where its recipes stand, and curves along what they vary in."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from agriclip_jax.comparison.standings import Raced, Record, Standing, heading
from agriclip_jax.errors import UserError

NO_CURVE = "--curve={0}: fewer than two values of it; name recipes as NAME+{0}=VALUE"
TICKS = 6  # numbers along a curve that are all written at its axis


def plots(raced: Sequence[Raced], baseline: str, along: str, whole: str = "") -> dict[str, dict[str, str]]:
    """Budget -> "plot", and "curve" where `along` is given and recipes vary in it -> SVG; arguments as of
    `results.report`.

    Where gains are shares of `whole`'s, the baseline is what the others began with, and is no point of a curve.

    Raises:
      UserError: at no budget recipes vary in `along`, or a value of it is no number.
    """
    drawn: dict[str, dict[str, str]] = {}
    for each, found, groups in raced:
        drawn[each] = {"plot": dots(groups, baseline)}
        places = _places([r for r in found if not (whole and r["recipe"] == baseline)], along) if along else {}
        if len(set(places.values())) > 1:
            drawn[each]["curve"] = curves(groups, places, along, baseline)
    if along and not any("curve" in of for of in drawn.values()):
        raise UserError(NO_CURVE.format(along))
    return drawn


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
        scale = "log" if min(places.values()) > 0 else "linear"
        axes.set(xlabel="parameters trained" if along == "trained" else along, ylabel="mean top-1, %", xscale=scale)
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
        axes.set_title(heading(name, rows[0]), fontsize=10)

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
    return places
