"""How recipes stand in a race, by its records: means, intervals and tests against a baseline."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import statistics
from agriclip_jax.evaluate.statistics import Difference, Interval
from agriclip_jax.files import read_record

Record = Mapping[str, Any]
# What a record holds, and of which kind it is.
HOLDS = (
    *((name, str) for name in ("recipe", "budget", "settings")),
    *((name, int) for name in ("seed", "steps", "images")),
    ("accelerator_seconds", int | float),
    ("devices", list),
    *((name, dict) for name in ("given", "parameters", "tasks")),
)
TEACHER = "@teacher"  # behind the name of a recipe whose moving average is measured
ANEW = "remove it, and its run is made anew"
BUDGET = r"([1-9]\d{0,8})(steps|s)"  # of each run: a number and its unit


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
      UserError: there is none, or none of one of the names or budgets; or one is damaged.
    """
    files = sorted(folder.glob(f"{suite}.{setting}.*.json"))
    found = [read_one(file) for file in files]
    found = [record for record in found if not names or record["recipe"] in names]
    found = [record for record in found if not budgets or record["budget"] in budgets]
    there = {record[of] for record in found for of in ("recipe", "budget")}
    if missing := [each for each in (*names, *budgets) if each not in there] or ([] if found else ["any recipe"]):
        at = f" at {', '.join(budgets)}" if budgets and missing[0] not in budgets else ""
        raise UserError(f"{folder} holds no record of {missing[0]}{at} for the suite {suite}, setting {setting}")
    order = {name: place for place, name in enumerate(names)}
    return sorted(found, key=lambda r: (order.get(r["recipe"], 0), r["recipe"], r["seed"]))


def read_one(file: Path) -> Record:
    """A record, checked; raises UserError where it is damaged."""
    record = read_record(file, remedy=ANEW)
    try:
        if missing := [name for name, _ in HOLDS if name not in record]:
            raise ValueError(f"it has no {missing[0]}")
        if wrong := [name for name, kind in HOLDS if not isinstance(record[name], kind)]:
            raise ValueError(f"{wrong[0]} is {record[wrong[0]]!r}")
        if not re.fullmatch(BUDGET, record["budget"]):
            raise ValueError(f"budget is {record['budget']!r}")
        for name, task in record["tasks"].items():
            if len(right(task)) != task["images"] or not {"photos", "chance", "group", "domain"} <= task.keys():
                raise ValueError(f"what it says of {name} is not whole")
        _ = record["parameters"]["trained"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}); {ANEW}") from None
    return record


def standings(found: Iterable[Record], baseline: str, by: str) -> dict[str, list[Standing]]:
    """Group of tasks -> how each recipe stands there.

    Args:
      found: records of one suite, setting and budget.
      baseline: the recipe that the others are compared with.
      by: what of a task makes a group: "group" or "domain".

    Raises:
      UserError: no task is shared by all.
    """
    runs: dict[str, dict[int, Mapping[str, Any]]] = {}
    for record in found:
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
    """Each budget at which the baseline ran, the smallest number first; arguments as of `standings`.

    Raises:
      UserError: as `standings` does; the baseline did not run, or the records are not of one race: a recipe ran with
        several settings, keys that all were to share differ, or seconds of one budget are of several kinds of device.
    """
    settings: dict[str, str] = {}
    for record in found:
        if settings.setdefault(record["recipe"], record["settings"]) != record["settings"]:
            raise UserError(
                f"the records of {record['recipe']} are of different settings, data or suites; race it again with all "
                "its seeds, or remove the old ones"
            )
        if apart := _apart(found[0], record):
            had = [f"{one['recipe']} had {one['given'].get(apart[0], 'none')}" for one in (found[0], record)]
            raise UserError(
                f"recipes of a race share the keys that are set for all, but of {apart[0]} {' and '.join(had)}; race "
                "one of them again, or name others"
            )
    budgets = {record["budget"] for record in found if record["recipe"] == baseline}
    if not budgets:
        raise UserError(f"no record is of the baseline {baseline!r}; race it too, or name another by --baseline")
    of = {each: [r for r in found if r["budget"] == each] for each in sorted(budgets, key=amount)}
    for each, records in of.items():
        on = sorted({", ".join(record["devices"]) for record in records})
        if amount(each)[1] == "s" and len(on) > 1:
            raise UserError(
                f"the records of {each} are of {' and of '.join(on)}, and seconds of one are not those of another; "
                "race all recipes on one of them"
            )
    return [Raced(each, records, standings(records, baseline, by)) for each, records in of.items()]


def own_keys(recipe: str) -> dict[str, str]:
    """The keys that a recipe's name sets, behind its plus signs; raises UserError for a word that is no KEY=VALUE."""
    pairs = [word.partition("=") for word in recipe.removesuffix(TEACHER).split("+")[1:]]
    if wrong := [key for key, equals, _ in pairs if not equals]:
        raise UserError(f"{recipe}: {wrong[0]!r} is not KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _apart(one: Record, other: Record) -> list[str]:
    """Keys that neither recipe sets by its name, and that were set for all in one race and not so in the other."""
    own = own_keys(one["recipe"]).keys() | own_keys(other["recipe"]).keys()
    keys = one["given"].keys() | other["given"].keys()
    return sorted(key for key in keys - own if one["given"].get(key) != other["given"].get(key))


def heading(group: str, row: Standing) -> str:
    """ "in-domain, 24 tasks"."""
    return f"{group}, {len(row.tasks)} task{'s' if len(row.tasks) != 1 else ''}"


def amount(budget: str) -> tuple[int, str]:
    """The number and the unit of a budget."""
    number, unit = re.fullmatch(BUDGET, budget).groups()
    return int(number), unit
