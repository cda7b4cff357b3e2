"""The originals run in `.venv-parity` (`make parity`); where there is no torch, every test here skips and says so.

`make parity-table` also writes what they saw into docs/weights.md.
"""

from pathlib import Path

import numpy as np
import originals
import pytest
from oracles import torch_and_vision

PAGE = Path(__file__).parents[2] / "docs" / "weights.md"
BEGIN, END = "<!-- parity: begin -->", "<!-- parity: end -->"
SAID = f"""\
The largest |difference| of a feature from the original's that any test saw: both in float32 on a CPU, on random photos
and on captions, from files that the original wrote with random weights at small width. Embeddings have length 1, all
other features are of order 1, and a difference above {originals.TOLERANCE} fails the test. Smaller ones come from the
order of additions, so their digits are those of one run and change from machine to machine. open_clip's own towers take
another grid only when weights are loaded, for which its `resize_pos_embed` makes the positions. Models that were
exported are compared with what they were exported from. `make parity-table` runs the originals and writes this table
anew; `tests/test_weights_page.py` sees that no family lacks its rows.
"""


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help=f"write what was seen into docs/{PAGE.name}")


def pytest_sessionfinish(session, exitstatus):
    """Writes the table when all tests passed; what fails has no row."""
    if not session.config.getoption("--write-table"):
        return
    if exitstatus:
        pytest.exit(f"{PAGE.name} stays as it was: some tests did not pass", returncode=exitstatus)
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{SAID}\n{originals.table()}\n{END}{after}", encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def torch():
    """torch, beside which timm, transformers and open_clip import; skips without it."""
    pytest.importorskip("torch", reason="the originals need torch: run `make parity`")
    return torch_and_vision()


@pytest.fixture(scope="session")
def images():
    """uint8 [3, 32, 32, 3]: a grid of 4 x 4 patches of 8 pixels."""
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)


@pytest.fixture(scope="session")
def grids(images):
    """The same, and uint8 [3, 24, 56, 3], whose grid has fewer rows and more columns; by what features are called."""
    others = np.random.default_rng(1).integers(0, 256, (3, 24, 56, 3), np.uint8)
    return dict(zip(originals.GRIDS, (images, others), strict=True))


@pytest.fixture(scope="session")
def cells():
    """The same for a ResNet, whose cells are of 32 pixels: uint8 [3, 64, 64, 3] and [3, 96, 160, 3]."""
    rng, sizes = np.random.default_rng(0), ((64, 64), (96, 160))
    return {
        grid: rng.integers(0, 256, (3, *size, 3), np.uint8) for grid, size in zip(originals.GRIDS, sizes, strict=True)
    }
