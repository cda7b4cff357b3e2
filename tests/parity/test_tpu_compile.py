"""The step compiled by the TPU's own compiler for chips that are not here: how it is sharded, and what it needs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.parity
pytest.importorskip("libtpu")
ROOT = Path(__file__).parents[2]


# Loops compile in half of the time.
SMALL = ("--config.image.unroll=1", "--config.text.unroll=1", "--config.objectives.distill=0")


def compiled(topology, *keys):
    command = [sys.executable, "tools/bench.py", "compile", f"--topology={topology}", *keys]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_a_step_on_all_axes_of_a_mesh_compiles_and_its_memory_and_collectives_are_told(tmp_path):
    told = compiled("v5e:2x2", *SMALL, "--config.mesh=data=1,fsdp=2,tensor=2", f"--out={tmp_path / 'four.json'}")
    assert told.returncode == 0, told.stderr
    figures = json.loads((tmp_path / "four.json").read_text())
    assert figures["chips"] == "4 x TPU v5 lite" and figures["images on a chip"] == 16
    held = figures["state and batch, GiB/chip"] + figures["temporary memory, GiB/chip"]
    assert 0 < figures["share of its memory"] == pytest.approx(held / 16)
    assert figures["images/s at the peak"] == pytest.approx(4 * 197e3 / figures["GFLOP/image"])
    assert all(kind in figures["collectives, a loop's once"] for kind in ("all-gather", "all-reduce"))
    assert told.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["v5e:7x5"], 2, "--topology=v5e:7x5: "),
        (["v5e:2x2", *SMALL, "--config.batch_size=262144"], 1, "v5e:2x2: Ran out of memory on HBM"),
        (["v5e:2x2", "--config.batch_size=30"], 2, "config.batch_size 30 is not divisible by data * fsdp = 4"),
        (["v5e:4x4", "--config.mesh=tensor=16"], 2, "tensor=16 spans processes"),
    ],
)
def test_what_a_topology_cannot_hold_or_is_not_is_one_line(arguments, status, message):
    told = compiled(*arguments)
    assert told.returncode == status and message in told.stderr and told.stderr.count("\n") == 1, told.stderr
