"""How runs were trained: their learning curves, one over the other, and the settings in which they differ."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from agriclip_jax import page
from agriclip_jax.comparison import parts
from agriclip_jax.evaluate import records
from agriclip_jax.evaluate.records import Run

CURVE_POINTS = 400  # of a curve; a longer run is averaged in bins
SETTINGS, LONG = 100, 200  # that differ, and letters of a value

CURVES = {
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "logit_scale": "logit scale",
    "images_per_s": "images per second",
    "input_wait": "share of time waiting for input",
}


def curves(workdirs: Mapping[str, Path]) -> str:
    """The learning curves of runs, one over the other, as far as their logs are there.

    Args:
      workdirs: name -> folder with metrics.jsonl and evaluations.jsonl; the only run's name may be "".
    """
    training = [records.log(folder / "metrics.jsonl") for folder in workdirs.values()]
    validation = [records.log(folder / "evaluations.jsonl") for folder in workdirs.values()]
    keys = {key for log in training for row in log for key, value in row.items() if _is_number(value)}
    charts = [
        _curve(CURVES.get(key, key.replace("_", " ")), list(workdirs), training, key)
        for key in sorted(keys - {"step", "time"}, key=_place)
    ]
    charts.append(_curve("validation: mean top-1", list(workdirs), validation, "score"))
    if not any(charts):
        return ""
    last = "" if len(workdirs) > 1 else " The number is the last value."
    return (
        "<p>Along the bottom: training steps. Pale: as measured; dark: smoothed, where there are enough points."
        f'{last}</p>{page.legend(list(workdirs))}<div class="charts">{"".join(charts)}</div>'
    )


def _place(key: str) -> tuple[int, str]:
    """Where a curve stands: the loss, its parts, then the rest in the order of `CURVES`."""
    order = ["loss", "loss/", *CURVES]
    part = "loss/" if key.startswith("loss/") else key
    return (order.index(part) if part in order else len(order), key)


def _curve(title: str, names: Sequence[str], logs: Sequence[Sequence[dict]], key: str) -> str:
    """A chart of a key of logs; nothing where no log has two points."""
    pale, clear, said, note = [], [], [], ""
    for colour, (name, log) in enumerate(zip(names, logs, strict=True), 1):
        found = [(row["step"], row[key]) for row in log if _is_number(row.get(key)) and math.isfinite(row[key])]
        if len(found) < 2:
            continue
        steps, values = np.array(found, np.float64).T
        told = f"{values[0]:.4g} at step {steps[0]:.0f}, {values[-1]:.4g} at step {steps[-1]:.0f}"
        said.append(f"{name} {told}".strip())
        note = f"{values[-1]:.4g}" if len(names) == 1 else ""
        size = math.ceil(len(steps) / CURVE_POINTS)
        steps, values = (np.array([v[i : i + size].mean() for i in range(0, len(v), size)]) for v in (steps, values))
        if len(values) > page.FEW_POINTS:
            pale.append(page.Line(colour, steps, values, pale=True))
            values = _smooth(values)
        clear.append(page.Line(colour, steps, values))
    return page.lines(title, note, pale + clear, f"{title}: {'; '.join(said)}") if clear else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred mean, narrower at the ends."""
    half = max(1, len(values) // 40)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def settings(runs: Sequence[Run], names: Sequence[str]) -> str:
    """In which settings the configurations of runs differ."""
    configs = [dict(_flat(records.settings(run.workdir / "config.json"))) for run in runs]
    keys = sorted({key for config in configs for key in config})
    differ = [key for key in keys if len({config.get(key) for config in configs}) > 1]
    if len(runs) < 2 or not keys:
        return ""
    lines = []
    for key in differ[:SETTINGS]:
        cells = "".join(f'<td class="text">{escape(config.get(key, "–")[:LONG])}</td>' for config in configs)
        lines.append(parts.row(escape(key), cells))
    more = f", of which {SETTINGS} are shown" if len(differ) > SETTINGS else ""
    return f"<p>{parts.many(len(differ), 'setting')} of config.json with different values{more}.</p>" + parts.table(
        "Settings that differ",
        parts.head("setting", *map(escape, names)),
        [parts.body(lines)],
    )


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", json.dumps(value, ensure_ascii=False)
