"""Runs against each other, fairly: means over what all were asked alike, and differences with their chance.

A mean is over the tasks that every run answered on the same photos; a difference is of the same images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from agriclip_jax.evaluate import records, statistics
from agriclip_jax.evaluate.records import Record, Run
from agriclip_jax.evaluate.statistics import Difference, Interval

Share = tuple[float, Interval | None]


class Row(NamedTuple):
    """A task, and what each run has of a measure of it.

    Attributes:
      task: its name.
      found: of each run its record, None where it was not scored.
      notes: of each run why it is not compared with the first one's; "" where it is.
    """

    task: str
    found: tuple[Record | None, ...]
    notes: tuple[str, ...]

    @property
    def first(self) -> Record | None:
        """The first record there is."""
        return next((record for record in self.found if record), None)

    @property
    def is_shared(self) -> bool:
        """Whether it counts in means: every run that has the group at all answered, on the same photos."""
        return not any(self.notes)


def rows(runs: Sequence[Run], measure: str, group: str) -> list[Row]:
    """The tasks of a group; a task is of the group that it has in the first run that has it.

    A run without any score in the group is left out of the question whether a task is shared.
    """
    group_of = {name: record["group"] for run in reversed(runs) for name, record in run.of(measure).items()}
    names = dict.fromkeys(name for run in runs for name in run.of(measure) if group_of[name] == group)
    scored = [run.scored(measure) for run in runs]
    takes_part = [any(name in of_run for name in names) for of_run in scored]
    table = []
    for name in names:
        found = tuple(of_run.get(name) for of_run in scored)
        notes = tuple(
            _note(run.of(measure).get(name), next(filter(None, found), None), group) if takes else ""
            for run, takes in zip(runs, takes_part, strict=True)
        )
        table.append(Row(name, found, notes))
    return table


def _note(record: Record | None, first: Record | None, group: str) -> str:
    if record is None:
        return "not measured"
    if "not_scored" in record:
        return f"not scored: {record['not_scored']}"
    if record["group"] != group:
        return f"{record['group']} for this run"
    parts = ("class_keys", "split", "labels", "sources")
    same = record["photos"]["fingerprint"] == first["photos"]["fingerprint"]
    return "" if same and all(record.get(part) == first.get(part) for part in parts) else "other photos"


def means(table: Sequence[Row], share: Callable[[Record], Share | None]) -> tuple[list[Share | None], int]:
    """The mean of each run over the shared tasks that have such a share for every run, and how many these are.

    Args:
      table: as from `rows`; an empty one has the mean of no run.
      share: takes a record; None where it has no such share.

    Returns:
      (None for a run that takes no part in the group, and for every run where no task is shared; tasks).
    """
    columns = []
    for row in (row for row in table if row.is_shared):
        column = [record and share(record) for record in row.found]
        if row.first and all(value for record, value in zip(row.found, column, strict=True) if record):
            columns.append(column)
    if not columns:
        return [None] * len(table[0].found if table else ()), 0
    return [_mean(values) for values in zip(*columns, strict=True)], len(columns)


def _mean(values: Sequence[Share | None]) -> Share | None:
    if None in values:
        return None
    shares, intervals = zip(*values, strict=True)
    return (float(np.mean(shares)), None) if None in intervals else statistics.mean_of_shares(shares, intervals)


def top1(record: Record) -> Share:
    """Of zero-shot classification or a linear probe."""
    return record["metrics"]["acc1"], tuple(record["interval"])


def knn(record: Record) -> Share:
    """Of 20 neighbours."""
    (found,) = (each for each in record["results"] if each["k"] == 20)
    return found["top1"], tuple(found["interval"])


def few_shot(method: str, shots: int) -> Callable[[Record], Share | None]:
    """Of a few-shot classifier; None where it was not tried."""

    def share(record: Record) -> Share | None:
        found = [each for each in record["results"] if (each["method"], each["shots"]) == (method, shots)]
        return (found[0]["top1"], found[0]["interval"] and tuple(found[0]["interval"])) if found else None

    return share


def open_set(record: Record) -> Share | None:
    """AUROC by the largest cosine."""
    return (record["open_set"]["cosine"], None) if record.get("open_set") else None


def corrupted(record: Record) -> Share:
    """Mean over all corruptions and strengths."""
    return record["metrics"]["acc1_corrupted"], None


def right(record: Record) -> np.ndarray:
    """bool [n]: which images a run answers rightly."""
    return np.array(record["labels"]) == np.array(record["predicted"])


# What a table of measures has: title -> measure, and which share of a record.
COLUMNS: dict[str, tuple[str, Callable[[Record], Share | None]]] = {
    "zero-shot": ("zeroshot", top1),
    "20-NN": ("knn", knn),
    "linear probe": ("linear", top1),
    "16-shot, ridge": ("few_shot", few_shot("ridge", 16)),
    "16-shot, centroid": ("few_shot", few_shot("centroid", 16)),
    "zero-shot, corrupted": ("robustness", corrupted),
    "open set, AUROC": ("zeroshot", open_set),
}


@dataclass(frozen=True)
class Change:
    """A run against the first on a task, or on a group's shared tasks.

    Attributes:
      name: of the task, or of the mean.
      gained: images that only this run has right.
      lost: images that only the first has right.
      found: the difference.
      adjusted: its p-value as one of all tasks' (Holm); None of a mean.
    """

    name: str
    gained: int
    lost: int
    found: Difference
    adjusted: float | None


def changes(runs: Sequence[Run], run: int) -> dict[str, list[Change]]:
    """Of each group the paired differences of a run to the first, the mean's last; groups without any are left out."""
    of_groups: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    for group in records.groups(runs):
        of_groups[group] = [
            (row.task, right(row.found[0]), right(row.found[1]))
            for row in rows([runs[0], runs[run]], "zeroshot", group)
            if all(row.found) and row.is_shared
        ]
    pairs = [pair for group in of_groups.values() for pair in group]
    differences = [statistics.paired_difference(a, b) for _, a, b in pairs]
    adjusted = statistics.holm([found.p_value for found in differences])
    tested = iter(zip(differences, adjusted, strict=True))
    told = {}
    for group, members in of_groups.items():
        counts = [(name, int((b & ~a).sum()), int((a & ~b).sum())) for name, a, b in members]
        told[group] = [Change(*count, *next(tested)) for count in counts]
        if members:
            whole = statistics.paired_mean_difference([(a, b) for _, a, b in members])
            gained, lost = (sum(count[i] for count in counts) for i in (1, 2))
            told[group].append(Change(f"mean of {len(members)}", gained, lost, whole, None))
    return {group: found for group, found in told.items() if found}


class Moved(NamedTuple):
    """A class of which another run has more or fewer images right than the first.

    Attributes:
      clearness: McNemar's z, (gained - lost) / sqrt(gained + lost).
      name: of the class.
      task: of which it is a class.
      before: images that the first run has right.
      after: images that the other has right.
      images: of the class.
    """

    clearness: float
    name: str
    task: str
    before: int
    after: int
    images: int


def moved(runs: Sequence[Run], run: int) -> list[Moved]:
    """The classes that gained or lost from the first run to another, on shared tasks, the clearest gains first."""
    found = []
    for group in records.groups(runs):
        for row in rows([runs[0], runs[run]], "zeroshot", group):
            if all(row.found) and row.is_shared:
                first, other = row.found
                labels, names, was, now = np.array(first["labels"]), first["class_names"], right(first), right(other)
                count, before, after, differ = (
                    np.bincount(labels[kept], minlength=len(names)) for kept in (labels >= 0, was, now, was != now)
                )
                clearness = (after - before) / np.sqrt(np.maximum(differ, 1))
                found += [
                    Moved(float(clearness[k]), names[k], row.task, int(before[k]), int(after[k]), int(count[k]))
                    for k in np.flatnonzero(before != after)
                ]
    return sorted(found, key=lambda each: -each.clearness)
