"""What a run writes while it goes: metrics.jsonl, TensorBoard events and the progress line."""

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agriclip_jax.errors import RunFailure
from agriclip_jax.files import write_whole


class Log:
    """Rows of scalars by step. Only the first process writes; the others keep the same interface and write nothing."""

    def __init__(self, workdir: Path, *, total_steps: int, start: int = 0, write: bool = True):
        """Continues a workdir's files from step `start`: rows of later steps, which will be made again, are dropped."""
        self.total_steps, self._write = total_steps, write
        self._workdir, self._last_shown, self._open_line = workdir, 0.0, False
        if not write:
            return
        # Not `SummaryWriter`: its queue blocks for ever once its thread has met a full disk.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        for name in ("metrics.jsonl", "evaluations.jsonl"):
            _keep_rows(workdir / name, start)
        events = workdir / "tensorboard" / "events"
        with _full_disk_told(events):
            events.parent.mkdir(exist_ok=True)
            self._events = EventsWriter(str(events))
            self._events.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def row(self, step: int, scalars: Mapping[str, float], seconds_left: float) -> None:
        """One row of `metrics.jsonl` and of the events, and the progress line."""
        if not self._write:
            return
        row = {"step": step, "time": round(time.time(), 3)} | {k: _rounded(v) for k, v in scalars.items()}
        self._append("metrics.jsonl", row)
        self._add_events(step, scalars)
        self._show(step, scalars, seconds_left)

    def evaluation(self, step: int, scores: Mapping[str, Any]) -> None:
        """One row of `evaluations.jsonl`."""
        if not self._write:
            return
        self._append("evaluations.jsonl", {"step": step, "time": round(time.time(), 3), **scores})
        self._add_events(step, {f"validation/{n}": v for n, v in scores.items() if isinstance(v, int | float)})

    def close(self) -> None:
        if self._write:
            with contextlib.suppress(OSError):  # a full disk was told by the row that met it
                self._events.close()
            if self._open_line:
                print(flush=True)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        path = self._workdir / name
        with _full_disk_told(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _add_events(self, step: int, scalars: Mapping[str, float]) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with _full_disk_told(self._workdir / "tensorboard"):
            for name, value in scalars.items():
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            self._events.flush()

    def _show(self, step: int, scalars: Mapping[str, float], seconds_left: float) -> None:
        terminal = sys.stdout.isatty()
        now = time.monotonic()
        if step < self.total_steps and now - self._last_shown < (0.2 if terminal else 10.0):
            return
        self._last_shown = now
        width = len(str(self.total_steps))
        parts = [f"step {step:{width}}/{self.total_steps}", f"loss {scalars['loss']:.4f}"]
        parts += [f"{k.removeprefix('loss/')} {v:.4f}" for k, v in scalars.items() if k.startswith("loss/")]
        parts += [f"{scalars['images_per_s']:.0f} images/s", f"{_clock(seconds_left)} left"]
        line = "  ".join(parts)
        print(f"\r{line}\x1b[K" if terminal else line, end="" if terminal else "\n", flush=True)
        self._open_line = terminal


@contextlib.contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailure(
            f"cannot write {path} ({error.strerror}); free space there and run the same command again"
        ) from None


def _keep_rows(path: Path, last: int) -> None:
    """Drops rows after step `last`, and what is no row, such as one that was cut in writing."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= last:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):  # cut off, or no row at all
            continue
    write_whole(path, "".join(kept))


def _rounded(value: float) -> float:
    return float(f"{float(value):.7g}")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
