"""What a run writes while it goes: rows, events, and one line that says how far it is."""

import json
import resource
import time

import pytest

from agriclip_jax.errors import RunFailure
from agriclip_jax.logs import Log
from agriclip_jax.train import Meter

ROW = {"loss": 2.34567, "loss/contrastive": 2.0, "images_per_s": 181.4}


class Terminal:
    """Standard output as a terminal sees it."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def test_the_progress_line_says_step_loss_speed_and_time_left(tmp_path, capsys):
    log = Log(tmp_path, total_steps=500)
    log.row(20, ROW, seconds_left=3725.0)
    log.close()
    assert capsys.readouterr().out == "step  20/500  loss 2.3457  contrastive 2.0000  181 images/s  1:02:05 left\n"


def test_a_log_file_gets_a_line_now_and_then_and_always_the_last(tmp_path, capsys):
    log = Log(tmp_path, total_steps=4)
    for step in (1, 2, 3, 4):
        log.row(step, ROW, seconds_left=60.0)
    log.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/4", "step 4/4"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_terminal_gets_one_line_that_is_written_over(tmp_path, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    log = Log(tmp_path, total_steps=2)
    for step in (1, 2):
        log.row(step, ROW, seconds_left=5.0)
    log.close()
    assert screen.text.count("\n") == 1 and screen.text.count("\r") == 2 and "0:05 left" in screen.text


def test_continuing_drops_the_rows_that_will_be_made_again_and_a_row_cut_short(tmp_path):
    log = Log(tmp_path, total_steps=9)
    for step in (1, 2, 3):
        log.row(step, ROW, seconds_left=1.0)
        log.evaluation(step, {"score": 0.5})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    Log(tmp_path, total_steps=9, start=2).close()
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["score"] == pytest.approx(0.5)


@pytest.mark.parametrize("room", [0, 500, 1500])
def test_a_full_disk_is_one_line_whichever_file_meets_it_first(tmp_path, room):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(RunFailure, match=r"cannot write .*free space there and run the same command again"):
            log = Log(tmp_path, total_steps=999)
            for step in range(1, 999):
                log.row(step, ROW, seconds_left=1.0)
        if room:
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_events_hold_every_value(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    log = Log(tmp_path, total_steps=2)
    log.row(1, ROW, seconds_left=1.0)
    log.evaluation(1, {"score": 0.5, "note": "text"})
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, values = file.read_bytes(), {}  # before the end of the run: it can be watched
    while data:
        length = int.from_bytes(data[:8], "little")
        for value in Event.FromString(data[12 : 12 + length]).summary.value:
            values[value.tag] = value.simple_value
        data = data[16 + length :]
    log.close()
    assert values == pytest.approx(ROW | {"validation/score": 0.5})


def test_waiting_for_input_counts_in_the_row_of_the_time_it_falls_in(tmp_path):
    log = Log(tmp_path, total_steps=2)
    meter = Meter(log, 2, 1, 0, 16)
    with meter.waiting():  # a batch read ahead: its step ends one row later
        time.sleep(0.05)
    for step in (1, 2):
        meter.add(step, {"loss": 1.0})
    log.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert 0.5 < first["input_wait"] <= 1 and second["input_wait"] == 0


def test_other_processes_write_nothing(tmp_path, capsys):
    log = Log(tmp_path, total_steps=1, write=False)
    log.row(1, ROW, seconds_left=0.0)
    log.evaluation(1, {"score": 1.0})
    log.close()
    assert not any(tmp_path.iterdir()) and capsys.readouterr().out == ""
