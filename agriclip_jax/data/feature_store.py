"""Features of a corpus on disk: computed once by a tower that is not trained, read by index ever after."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from agriclip_jax.errors import UserError
from agriclip_jax.files import write_whole

FIELD = "features/global"  # of a batch, in the place of "image/global"
ROWS = 8192  # of a shard


class FeatureStore:
    """float32 [width] of example `i` of a split as `store[i]`; shards are mapped, not read, and it pickles small."""

    def __init__(self, folder: Path | str):
        """Opens what `fill` has made."""
        self.folder = Path(folder)
        self._shards = [np.load(file, mmap_mode="r") for file in shards(folder)]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def __getitem__(self, index: int) -> np.ndarray:
        shard, row = divmod(range(len(self))[index], ROWS)
        return np.array(self._shards[shard][row])

    def __getstate__(self) -> Path:
        return self.folder

    def __setstate__(self, folder: Path) -> None:
        self.__init__(folder)


def shards(folder: Path | str) -> list[Path]:
    """The shards that are there, in order and without a gap; all but the last are full."""
    found = []
    while (file := Path(folder) / f"{len(found):05}.npy").is_file() and (not found or _rows(found[-1]) == ROWS):
        found.append(file)
    return found


def count(folder: Path | str, width: int) -> int:
    """How many examples have their features, of a width, there.

    Raises:
      UserError: a shard is damaged, or of another width.
    """
    return sum(_rows(file, width) for file in shards(folder))


def full(folder: Path | str) -> int:
    """How many examples have their features in full shards: those after them are to be computed."""
    return sum(ROWS for file in shards(folder) if _rows(file) == ROWS)


def fill(folder: Path | str, blocks: Iterable[np.ndarray], start: int = 0) -> Iterator[int]:
    """Adds rows in shards, each written whole or not at all.

    Args:
      folder: is made.
      blocks: float32 [any, width], of the examples from `start` on.
      start: what `full(folder)` said when the first of them was chosen.

    Yields:
      the number of rows written, shard by shard.

    Raises:
      UserError: the disk is full, or the folder cannot be written.
    """
    index, waiting, rows = start // ROWS, [], 0
    for block in blocks:
        waiting.append(block)
        rows += len(block)
        while rows >= ROWS:
            whole = np.concatenate(waiting)
            yield _write(Path(folder) / f"{index:05}.npy", whole[:ROWS])
            index, waiting, rows = index + 1, [whole[ROWS:]], rows - ROWS
    if rows:
        yield _write(Path(folder) / f"{index:05}.npy", np.concatenate(waiting))


def _write(file: Path, rows: np.ndarray) -> int:
    data = io.BytesIO()
    np.save(data, np.ascontiguousarray(rows, np.float32))
    write_whole(file, data.getvalue())
    return len(rows)


def _rows(file: Path, width: int = 0) -> int:
    try:
        array = np.load(file, mmap_mode="r")
        if array.dtype != np.float32 or array.ndim != 2 or (width and array.shape[1] != width):
            raise ValueError(f"{array.dtype} {array.shape}")
        return len(array)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}); remove it, and its features are computed anew") from None
