"""A recipe small enough to compile in a second, and random batches for it."""

import os
import runpy
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from agriclip_jax import config as configs
from agriclip_jax import recipe
from agriclip_jax.data import masks

RECIPE = "configs/alive.py"
TOOLS = Path(__file__).parent.parent / "tools"
SMALL = {
    "total_steps": "8",
    "batch_size": "16",
    "image_size": "16",
    "image.patch": "8",
    "image.width": "32",
    "image.depth": "2",
    "image.heads": "2",
    "image.unroll": "1",
    "text.width": "32",
    "text.depth": "1",
    "text.heads": "2",
    "text.context_length": "12",
    "text.vocab_size": "600",
    "embed_dim": "16",
    "objectives.distill": "1.0",
    "views.local.size": "8",
    "distill.hidden": "32",
    "distill.bottleneck": "16",
    "distill.prototypes": "64",
    "optimizer.learning_rate": "0.01",
}


def config(**overrides):
    """The laptop recipe in miniature; keys with "__" for dots."""
    return configs.load(RECIPE, SMALL | {k.replace("__", "."): str(v) for k, v in overrides.items()})


class Vocabulary(NamedTuple):
    """What the text tower asks of a tokenizer."""

    vocab_size: int = 300
    end_id: int = 299


def learner(config, tokenizer=None):
    """The learner of a miniature, and the function of a key that makes its state."""
    return recipe.learner(config, tokenizer or Vocabulary())


def batch(size=16, seed=0, classes=6):
    """Rows of every field that objectives read."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 299, (size, 12)).astype(np.int32)
    tokens[:, 7:] = 299
    labels = rng.integers(0, classes, size).astype(np.uint32)
    return {
        "image/global": rng.integers(0, 256, (size, 2, 16, 16, 3), np.uint8),
        "image/local": rng.integers(0, 256, (size, 2, 8, 8, 3), np.uint8),
        "tokens": tokens,
        "caption_id": np.stack([np.arange(size, dtype=np.uint32)] * 2, 1),
        "class_id": np.stack([labels, labels + 9], 1),
        "mask": np.stack([masks.draw(rng, 2, 2) for _ in range(size)]),
    }


def call(monkeypatch, capsys, tool, *arguments):
    """The exit status of a tool, and what it printed."""
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    return ended.value.code, capsys.readouterr()


def is_running(process: int) -> bool:
    """Whether a process of this number runs; one that ended and was not waited for does not."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(") ")[2][0] != "Z"


def have_ended(processes):
    """Whether processes of these numbers end within ten seconds."""
    for _ in range(100):
        if not any(map(is_running, processes)):
            return True
        time.sleep(0.1)
    return False


class Evil:
    """What makes a pickle run a command, which leaves a file at `path`."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)
