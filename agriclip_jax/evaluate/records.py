"""What evaluations left on disk, read back without a model: one run's records, and a table of them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np

from agriclip_jax.errors import UserError
from agriclip_jax.evaluate.terminal import screen
from agriclip_jax.files import read_record

MANIFEST = "suite.json"  # which records are of a suite

Record = Mapping[str, Any]
MAX_BYTES = 1 << 28  # of a record

NUMBER = int | float
# What every record has, what its checkpoint has, and a record of a measure unless it says `not_scored`.
HEAD = {"checkpoint": dict, "dataset": str, "group": str, "task": str}
CHECKPOINT = {"step": int, "use": str}
KINDS = {
    "zeroshot": {
        "metrics": dict,
        "images": int,
        "chance": NUMBER,
        "interval": list,
        "class_names": list,
        "sources": list,
        "labels": list,
        "predicted": list,
    },
    "knn": {"metrics": dict, "results": list},
    "linear": {"metrics": dict, "images": int, "top1": NUMBER, "interval": list},
    "few_shot": {"metrics": dict, "results": list},
    "robustness": {"metrics": dict, "images": int, "top1": dict},
    "pictures": {"class_names": list, "class_phrases": list, "samples": list, "mistakes": list},
    "retrieval": {"metrics": dict, "image_to_text": dict, "text_to_image": dict, "gallery": list},
    "map": {"class_names": dict, "datasets": list, "labels": list, "x": list, "y": list},
}


@dataclass(frozen=True)
class Run:
    """The records of a checkpoint.

    Attributes:
      folder: where they lie.
      workdir: the run's own folder.
      checkpoint: workdir, step, use and fingerprint, as they were at evaluation.
      records: measure -> task or group -> record.
    """

    folder: Path
    workdir: Path
    checkpoint: Mapping[str, Any]
    records: Mapping[str, Mapping[str, Record]]

    @property
    def name(self) -> str:
        """As people tell runs apart: the name of the workdir."""
        return self.workdir.resolve().name

    @property
    def suite(self) -> str:
        """By which it was measured."""
        return self.folder.name.removesuffix(f"-{self.checkpoint['step']}-{self.checkpoint['use']}")

    def of(self, measure: str) -> Mapping[str, Record]:
        """The records of a measure by task or group, also those that say why they were not scored."""
        return self.records.get(measure, {})

    def scored(self, measure: str) -> dict[str, Record]:
        """The records of a measure that have scores."""
        return {name: record for name, record in self.of(measure).items() if "not_scored" not in record}


def read(path: Path | str) -> Run:
    """The records in a folder that a suite made, or those of a run's newest suite when `path` is its workdir.

    Raises:
      UserError: there are none, or one is damaged.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give a run's workdir, or a folder in its evaluations/")
    folder = path
    if (path / "evaluations").is_dir():
        folders = [each for each in (path / "evaluations").iterdir() if any(each.glob("*.*.json"))]
        if folders:
            folder = max(folders, key=lambda each: max(file.stat().st_mtime_ns for file in each.glob("*.*.json")))
    records: dict[str, dict[str, Record]] = {}
    files = sorted(folder.glob("*.*.json"))
    if (folder / MANIFEST).is_file():  # what is there besides is of tasks that the suite no longer asks
        manifest = read_record(folder / MANIFEST)
        _check(folder / MANIFEST, manifest, {"records": list})
        files = [file for file in files if file.name in manifest["records"]]
    for file in files:
        if file.stat().st_size > MAX_BYTES:
            raise UserError(f"{file} is larger than {MAX_BYTES >> 20} MiB, so it is no record; remove it")
        record, measure = read_record(file), file.name.split(".")[-2]
        _check(file, record, HEAD)
        _check(file, record["checkpoint"], CHECKPOINT)
        _check(file, record, {"not_scored": str} if "not_scored" in record else KINDS.get(measure, {}))
        records.setdefault(measure, {})[record["dataset"]] = record
    if not records:
        raise UserError(f"{path} holds no evaluation; make one with tools/evaluate.py --suite=FILE --ckpt={path}")
    checkpoint = next(iter(next(iter(records.values())).values()))["checkpoint"]
    return Run(folder, folder.parent.parent, checkpoint, records)


def _check(file: Path, found: Any, kinds: Mapping[str, type | UnionType]) -> None:
    """Raises UserError when what was read from a file has not these keys, of these kinds."""
    if not isinstance(found, dict):
        fault = "there is no record in it"
    elif missing := [key for key in kinds if key not in found]:
        fault = f"it has no {missing[0]}"
    elif wrong := [key for key, kind in kinds.items() if not isinstance(found[key], kind)]:
        fault = f"its {wrong[0]} is {found[wrong[0]]!r:.40}"
    else:
        return
    raise UserError(f"{file} is damaged ({fault}); remove it and run tools/evaluate.py again")


def names(runs: Sequence[Run]) -> list[str]:
    """What to call the runs: by name, with the checkpoint or at last a number where that is not enough."""
    found = [run.name for run in runs]
    longer = [f"{run.name}, step {run.checkpoint['step']}, {run.checkpoint['use']}" for run in runs]
    found = [long if found.count(name) > 1 else name for name, long in zip(found, longer, strict=True)]
    return [f"{name} ({i})" if found.count(name) > 1 else name for i, name in enumerate(found, 1)]


def log(path: Path) -> list[dict[str, Any]]:
    """The rows of a run's .jsonl log; a last line that a kill cut short is left out, and all where it is missing."""
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def settings(path: Path) -> dict[str, Any]:
    """What a run's config.json or environment.json says; nothing where it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def groups(runs: Iterable[Run]) -> list[str]:
    """The groups of tasks in any of the runs: in-domain, downstream, then others by name."""
    found = {record["group"] for run in runs for of in run.records.values() for record in of.values()}
    return sorted(found, key=lambda group: ({"in-domain": 0, "downstream": 1}.get(group, 2), group))


def top1(record: Record, measure: str) -> float:
    """The headline of a record of a task: of k-NN that of 20 neighbours, of few-shot that of ridge with 16 images."""
    metrics = record["metrics"]
    return metrics[
        {"knn": "acc1_k20", "few_shot": "acc1_ridge_16", "robustness": "acc1_corrupted"}.get(measure, "acc1")
    ]


COLUMNS = {
    "zeroshot": "zero-shot",
    "knn": "20-NN",
    "linear": "linear",
    "few_shot": "16-shot",
    "robustness": "zero-shot, corrupted",
}


def show(runs: Sequence[Run]) -> None:
    """Prints for each run the top-1 of its tasks by every measure, the means of groups, and retrieval; in per cent.

    Raises:
      UserError: a record is damaged.
    """
    for run in runs:
        try:
            _show(run)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            fault = f"a record in {run.folder} is damaged ({error!r:.80})"
            raise UserError(f"{fault}; remove it and run tools/evaluate.py again") from error


def _show(run: Run) -> None:
    from rich.markup import escape

    console, table = screen()
    shown = [measure for measure in COLUMNS if run.scored(measure)]
    table.add_column("task", overflow="fold")
    for column in ("classes", "chance", *(COLUMNS[measure] for measure in shown)):
        table.add_column(column, justify="right")
    for group in groups([run]):
        table.add_section()
        of = {m: {n: r for n, r in run.scored(m).items() if r["group"] == group} for m in shown}
        tasks = list(dict.fromkeys(name for records in of.values() for name in records))
        for name in tasks:
            known = next(records[name] for records in of.values() if name in records)
            cells = [_cell(of[measure].get(name), measure) for measure in shown]
            table.add_row(escape(name), str(len(known["class_names"])), percent(_chance(known)), *cells)
        if tasks:
            counts = [len(of[measure]) for measure in shown]
            found = [percent(mean(run, measure, group)) for measure in shown]
            # A mean over fewer tasks than the others says over how many.
            means = [f"{share} of {n}" if 0 < n < len(tasks) else share for share, n in zip(found, counts, strict=True)]
            table.add_row(f"mean, {escape(group)} ({len(tasks)})", "", "", *means, style="bold")
    what = f"{escape(run.name)}, step {run.checkpoint['step']}, {run.checkpoint['use']}"
    if shown:
        console.print(f"{what}: top-1 in % / images asked; *: some classes have fewer than 16 images to fit on")
        console.print(table)
    for group, record in run.scored("retrieval").items():
        for way, key in (("photo to text", "image_to_text"), ("text to photo", "text_to_image")):
            shares = record[key]["recall"].items()
            said = ", ".join(f"R@{k} {percent(share)} ({percent(record[key]['chance'][k])})" for k, share in shares)
            console.print(f"{what}, retrieval, {escape(group)}: {way} {said}", soft_wrap=True)
        total = f"mean recall {percent(record['metrics']['mean_recall'])}; in brackets, by chance"
        console.print(f"{what}, retrieval, {escape(group)}: {total}", soft_wrap=True)
    for name, record in {**run.scored("few_shot"), **run.scored("knn"), **run.scored("linear")}.items():
        if twins := record["also_in_train"]:
            said = f"{twins} of {len(record['sources'])} test photos are in the train split too"
            console.print(f"{escape(name)}: {said}, so what is fitted looks better than it is", soft_wrap=True)
    reasons: dict[tuple[str, str], list[str]] = {}
    for measure, records in run.records.items():
        for name, record in records.items():
            if "not_scored" in record:
                reasons.setdefault((name, record["not_scored"]), []).append(COLUMNS.get(measure, measure))
    for (name, reason), measures in reasons.items():
        console.print(f"not scored: {escape(name)} ({', '.join(measures)}), {escape(reason)}", soft_wrap=True)


def _cell(record: Record | None, measure: str) -> str:
    """Top-1, and of how many images."""
    if record is None:
        return ""
    short = measure == "few_shot" and any(r["short_classes"] for r in record["results"] if r["shots"] == 16)
    images = record["results"][0]["images"] if measure == "knn" else record["images"]
    return f"{percent(top1(record, measure))}{'*' if short else ''} / {images}"


def _chance(record: Record) -> float:
    return 1 / len(record["class_names"])


def mean(run: Run, measure: str, group: str) -> float | None:
    """The mean headline of the scored tasks of a group, every task with the same weight; None where there is none."""
    found = [top1(record, measure) for record in run.scored(measure).values() if record["group"] == group]
    return float(np.mean(found)) if found else None


def percent(share: float | None) -> str:
    """ "12.3"; empty for None."""
    return "" if share is None else f"{100 * share:.1f}"
