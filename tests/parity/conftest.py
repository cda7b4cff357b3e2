"""The originals run in `.venv-parity` (`make parity`); where there is no torch, every test here skips and says so."""

import numpy as np
import pytest
from oracles import torch_and_vision


@pytest.fixture(scope="session", autouse=True)
def torch():
    """torch, beside which timm, transformers and open_clip import; skips without it."""
    pytest.importorskip("torch", reason="the originals need torch: run `make parity`")
    return torch_and_vision()


@pytest.fixture(scope="session")
def images():
    """uint8 [3, 32, 32, 3]: a grid of 4 x 4 patches of 8 pixels."""
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
