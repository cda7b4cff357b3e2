"""WiSE-FT (arXiv 2109.01903): models between a general one and one that was adapted to a domain, by their weights."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from agriclip_jax import page, recipe, rules
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import zeroshot
from agriclip_jax.evaluate.statistics import mean_of_shares
from agriclip_jax.evaluate.tasks import Task
from agriclip_jax.evaluate.terminal import screen
from agriclip_jax.evaluate.zeroshot import Result
from agriclip_jax.files import write_json, write_whole

KINDS = ("domain", "general")


@dataclass(frozen=True)
class Point:
    """What one model of the way scores; shares in [0, 1].

    Attributes:
      alpha: share of the adapted model in its weights.
      results: "domain" and "general" -> of each task.
    """

    alpha: float
    results: dict[str, list[Result]]

    def top1(self, kind: str) -> tuple[float, tuple[float, float]]:
        """The mean over the scored tasks of a kind, each with the same weight, and its interval of 95 %."""
        scored = [result.metrics for result in self.results[kind] if result.metrics]
        return mean_of_shares([m.top1 for m in scored], [m.interval for m in scored])


def interpolate(general: Any, adapted: Any, alpha: float) -> Any:
    """The model of weights (1 - alpha) theta_0 + alpha theta_1 (equation 1), the temperature's logarithm among them.

    Args:
      general: an `inference.Model`: theta_0.
      adapted: likewise theta_1.
      alpha: share of the adapted one.

    Raises:
      UserError: they are not two trainings of the same towers.
    """
    for tower, network in general.towers.items():
        one, other = recipe.options_of(network.config), recipe.options_of(adapted.towers[tower].config)
        if differing := sorted(key for key in one.keys() | other.keys() if one.get(key) != other.get(key)):
            key = differing[0]
            raise _unfit(general, adapted, f"{tower}.{key} is {one.get(key)} in the one, {other.get(key)} in the other")
    trees = [{n: tree for n, tree in m.params.items() if n in recipe.OF_A_MODEL} for m in (general, adapted)]
    one, other = ({path: leaf for path, leaf in rules.flatten(t).items() if path != "image/mask"} for t in trees)
    shapes = [{path: leaf.shape for path, leaf in flat.items()} for flat in (one, other)]
    if differing := sorted(path for path in one.keys() | other.keys() if shapes[0].get(path) != shapes[1].get(path)):
        there, here = (of.get(differing[0], "absent") for of in shapes)
        raise _unfit(general, adapted, f"{differing[0]} is {there} in the one, {here} in the other")
    if general.tokenizer.fingerprint != adapted.tokenizer.fingerprint:
        raise _unfit(general, adapted, "their tokenizers differ")
    params = {path: (1 - alpha) * one[path] + alpha * other[path] for path in other}
    masks = {path: leaf for path, leaf in rules.flatten(trees[1]).items() if path == "image/mask"}
    return adapted.at(rules.unflatten(params | masks), adapted.step)


def _unfit(general: Any, adapted: Any, why: str) -> UserError:
    return UserError(
        f"{general.workdir} and {adapted.workdir} cannot be mixed: {why}; give a run and the one it was adapted from"
    )


def curve(
    general: Any,
    adapted: Any,
    alphas: Sequence[float],
    tasks: dict[str, Sequence[Task]],
    progress: Callable[[int], None] = lambda count: None,
) -> list[Point]:
    """Scores the models of some alphas.

    Args:
      general, adapted: as of `interpolate`.
      alphas: from 0 to 1.
      tasks: "domain" and "general" -> at least one task each.
      progress: called with the number of photos done since the last call.

    Raises:
      UserError: the models cannot be mixed, or no task of a kind can be scored.
    """
    for kind in KINDS:
        reasons = [zeroshot.cannot(task) for task in tasks[kind]]
        if all(reasons):
            raise UserError(f"{kind}: no task of it can be scored ({reasons[0] if reasons else 'there is none'})")
    points = []
    for alpha in alphas:
        model = interpolate(general, adapted, alpha)
        points.append(Point(alpha, {kind: zeroshot.evaluate(model, tasks[kind], progress=progress) for kind in KINDS}))
    return points


def show(points: Sequence[Point]) -> None:
    """Prints the table; shares in per cent."""
    console, table = screen()
    for column in ("alpha", "domain", "95 % interval", "general", "95 % interval"):
        table.add_column(column, justify="right", no_wrap=True)
    for point in points:
        table.add_row(f"{point.alpha:g}", *(cell for kind in KINDS for cell in _cells(point, kind)))
    console.print(table)


def _cells(point: Point, kind: str) -> tuple[str, str]:
    share, (low, high) = point.top1(kind)
    return f"{100 * share:.1f}", f"{100 * low:.1f} – {100 * high:.1f}"


def write(points: Sequence[Point], general: Any, adapted: Any, out: Path | str) -> None:
    """Writes wiseft.json, with the scores of each task, and wiseft.html, the curve, into a folder.

    Raises:
      UserError: they cannot be written.
    """
    rows = []
    for point in points:
        row: dict[str, Any] = {"alpha": point.alpha}
        for kind in KINDS:
            share, interval = point.top1(kind)
            tasks = {result.task.name: result.metrics.top1 for result in point.results[kind] if result.metrics}
            row[kind] = {"top1": share, "interval": list(interval), "tasks": tasks}
        rows.append(row)
    models = {
        name: {"workdir": str(model.workdir), "step": int(model.step), "use": model.use}
        for name, model in (("from", general), ("to", adapted))
    }
    write_json(Path(out) / "wiseft.json", {**models, "code_version": adapted.code_version, "points": rows})
    write_whole(Path(out) / "wiseft.html", _page(points, general, adapted))


def _page(points: Sequence[Point], general: Any, adapted: Any) -> str:
    shares = {kind: np.array([100 * point.top1(kind)[0] for point in points]) for kind in KINDS}
    ends = {kind: 100 * np.array([point.top1(kind)[1] for point in points]).T for kind in KINDS}
    alphas = [point.alpha for point in points]
    by_alpha = page.lines(
        "top-1 by alpha",
        "with 95 % intervals",
        [page.Line(colour, alphas, shares[kind], *ends[kind]) for colour, kind in enumerate(KINDS, 1)],
        "; ".join(f"{kind}: {shares[kind][0]:.1f} % to {shares[kind][-1]:.1f} %" for kind in KINDS),
        x_ticks=[(alpha, f"{alpha:g}") for alpha in (0.0, 0.25, 0.5, 0.75, 1.0)],
    )
    low, high = math.floor(shares["general"].min()), math.floor(shares["general"].max()) + 1
    against = page.lines(
        "domain against general, top-1 in %",
        "along the bottom: general",
        [page.Line(1, shares["general"], shares["domain"])],
        "; ".join(f"alpha {p.alpha:g}: {x:.1f}, {y:.1f}" for p, x, y in zip(points, *shares.values(), strict=True)),
        x_ticks=[(at, f"{at:g}") for at in np.linspace(low, high, 3)],
    )
    cells = "".join(
        f'<tr><th scope="row">{point.alpha:g}</th>'
        + "".join(f'<td class="n">{cell}</td>' for kind in KINDS for cell in _cells(point, kind))
        + "</tr>"
        for point in points
    )
    heads = "".join(
        f'<th scope="col" class="n">{head}</th>' for kind in KINDS for head in (f"{kind}, top-1 in %", "95 % interval")
    )
    table = (
        f'<table class="rows"><thead><tr><th scope="col">alpha</th>{heads}</tr></thead><tbody>{cells}</tbody></table>'
    )
    header = page.facts({"general model (alpha 0)": str(general.workdir), "adapted (alpha 1)": str(adapted.workdir)})
    asked = "".join(
        f"<p>{kind}: {escape(', '.join(result.task.name for result in points[0].results[kind]))}</p>" for kind in KINDS
    )
    sections = [
        ("The way", f'{page.legend(KINDS)}<div class="charts">{by_alpha}{against}</div>'),
        ("Scores", page.scrolling("Scores by alpha", table)),
        ("Tasks", asked),
    ]
    return page.render(f"{Path(general.workdir).name} to {Path(adapted.workdir).name}", "WiSE-FT", header, sections)
