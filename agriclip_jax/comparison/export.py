"""Tables for other programs: CSV, Markdown, and the files that CLIP_benchmark writes."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from agriclip_jax.comparison import parts
from agriclip_jax.evaluate import records
from agriclip_jax.evaluate.comparing import COLUMNS, Share, means, rows, top1
from agriclip_jax.evaluate.records import Record, Run, percent

CSV = ("run", "step", "use", "group", "task", "measure", "metric", "value", "low", "high", "not_scored")
BENCHMARK = ("dataset", "model", "pretrained", "task", "language", "metrics")


def as_csv(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Every number with its interval, one a row; shares in [0, 1]."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV)
    for run, name in zip(runs, names, strict=True):
        for measure, of_measure in run.records.items():
            for task, record in of_measure.items():
                said = (name, run.checkpoint["step"], run.checkpoint["use"], record["group"], task, measure)
                if "not_scored" in record:
                    table.writerow((*said, "", "", "", "", record["not_scored"]))
                for metric, value, (low, high) in _figures(measure, record):
                    table.writerow((*said, metric, value, low, high, ""))
    return text.getvalue()


def _figures(measure: str, record: Record) -> Iterator[tuple[str, float, Sequence[Any]]]:
    """(metric, value, interval) of a record; ends are "" where there is none."""
    none = ("", "")
    if "not_scored" in record:
        return
    intervals = {"acc1": record.get("interval"), **record.get("bootstrap", {})}
    intervals["mean_per_class_recall"] = intervals.get("mean_per_class")
    for metric, value in (record["metrics"] or {}).items():
        if value is not None and measure not in ("knn", "few_shot"):
            yield metric, value, intervals.get(metric) or none
    if measure == "knn":
        yield from ((f"acc1_k{each['k']}", each["top1"], each["interval"]) for each in record["results"])
    elif measure == "few_shot":
        for each in record["results"]:
            yield f"acc1_{each['method']}_{each['shots']}", each["top1"], each["interval"] or none
    elif measure == "robustness":
        for kind, shares in record["top1"].items():
            yield from ((f"acc1_{kind}_{strength}", share, none) for strength, share in enumerate(shares, 1))
    elif measure == "zeroshot":
        yield "chance", record["chance"], none
        for each in record.get("by_prompts", ()):
            yield f"acc1, {each['prompts']}, {each['order']}", each["top1"], each["interval"]
        calibration = record.get("calibration") or {}
        for metric in ("error", "fitted_error"):
            if calibration.get(metric) is not None:
                yield f"calibration_{metric}", calibration[metric], none
        for metric in ("cosine", "probability"):
            if record.get("open_set"):
                yield f"open_set_auroc_{metric}", record["open_set"][metric], none
        for rank, found in record.get("ranks", {}).items():
            yield from ((f"{rank}_{metric}", found[metric], none) for metric in ("chance", "top1", "mean_per_group"))


def markdown(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Zero-shot top-1 of every task and the means of every measure, in % with 95 % intervals."""

    def cell(share: Share | None) -> str:
        if not share:
            return "–"
        return percent(share[0]) + (f" [{percent(share[1][0])}, {percent(share[1][1])}]" if share[1] else "")

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    plain = [_md(name) for name in names]
    blocks = ["Top-1 in % with 95 % intervals. A mean is over the tasks that every run answered on the same photos."]
    for group in records.groups(runs):
        table = rows(runs, "zeroshot", group)
        lines = [line(["task", *plain, "chance"]), line(["---"] * (len(runs) + 2))]
        for row in table:
            shares = [cell(record and top1(record)) for record in row.found]
            lines.append(line([_md(row.task), *shares, percent(row.first["chance"]) if row.first else ""]))
        found, count = means(table, top1)
        if count:
            lines.append(line([f"**mean of {count}**", *(f"**{cell(share)}**" for share in found), ""]))
        if table:
            blocks += [f"## {_md(group)}: zero-shot", "\n".join(lines)]
        lines = [line(["mean", *plain]), line(["---"] * (len(runs) + 1))]
        for title, (measure, share) in COLUMNS.items():
            found, count = means(rows(runs, measure, group), share)
            if count:
                lines.append(line([f"{title}, {parts.many(count, 'task')}", *map(cell, found)]))
        if len(lines) > 2:
            blocks += [f"## {_md(group)}: every measure", "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def _md(text: str) -> str:
    """A text in one line of Markdown, with nothing in it that Markdown or HTML would read."""
    text = re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", " ".join(text.split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def clip_benchmark(runs: Sequence[Run], names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file name, record) as CLIP_benchmark writes them: its keys, and its names of metrics."""
    for run, name in zip(runs, names, strict=True):
        pretrained = f"step {run.checkpoint['step']}, {run.checkpoint['use']}"
        for measure, prefix in (("zeroshot", ""), ("linear", "lp_"), ("retrieval", "")):
            for dataset, record in run.scored(measure).items():
                metrics = {f"{prefix}{metric}": value for metric, value in record["metrics"].items()}
                said = (dataset, name, pretrained, record["task"], record["language"], metrics)
                file = re.sub(r"[^\w.-]+", "_", f"{name}_{dataset}_{record['task']}")
                yield file, dict(zip(BENCHMARK, said, strict=True))
