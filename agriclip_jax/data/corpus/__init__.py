"""The embedded corpus: pictures of leaves, fruit, weeds, livestock, poultry, fish and insects, drawn from a seed.

Nothing is downloaded. Classes differ by shape or pattern, colours are shared between them, and one dataset holds
combinations of crop and symptom that neither train nor val ever shows together.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from agriclip_jax.data import captions, records
from agriclip_jax.data.corpus.catalogue import (
    KINDS,
    UNSEEN,
    Kind,
    contact_sheet,
    datasets,
    example,
    lesions,
    picture,
)
from agriclip_jax.errors import UserError
from agriclip_jax.files import cache

__all__ = [
    "COUNT",
    "KINDS",
    "UNSEEN",
    "Kind",
    "build",
    "contact_sheet",
    "datasets",
    "ensure",
    "example",
    "lesions",
    "picture",
]

COUNT = {"train": 55, "val": 6, "test": 12}  # examples of a class


def build(
    out: Path | str,
    *,
    seed: int = 0,
    size: int = 64,
    count: Mapping[str, int] = COUNT,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Draws the corpus into a new ALive folder.

    Args:
      out: the folder to make.
      seed: of everything random.
      size: side of the pictures in pixels.
      count: split -> examples of each class that has examples in it.
      overwrite: replace a finished ALive folder.
      progress: called with the number of examples written since the last call.

    Raises:
      UserError: `out` is taken or cannot be written.
    """

    def examples(split: str) -> Iterator[records.Example]:
        for index in range(count[split]):
            for kind in KINDS:
                if split in kind.splits:
                    yield example(kind, split, index, seed=seed, size=size)

    records.write(
        Path(out),
        {split: lambda split=split: examples(split) for split in count},
        name="alive",
        description="Pictures of crops, fruit, weeds, livestock, poultry, fish and insects, drawn by agriclip_jax.",
        datasets=datasets(),
        overwrite=overwrite,
        progress=progress,
    )


def ensure(
    cache_root: Path | str | None = None,
    *,
    seed: int = 0,
    size: int = 64,
    count: Mapping[str, int] = COUNT,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """The folder of the corpus with these settings, drawn first if it is not there.

    Its name carries a digest of the settings and of the drawing's own source, so a changed drawing is a new folder. Of
    several processes that ask at once, one draws and the others wait for it.

    Args:
      cache_root: where such folders are kept; None means $AGRICLIP_CACHE, or else ~/.cache/agriclip_jax.
      seed: see `build`, as the rest.

    Raises:
      UserError: the place cannot be written.
    """
    root = Path(cache_root or cache()).expanduser()
    out = root / f"corpus-{size}px-seed{seed}-{_digest(seed, size, count)}"
    if _whole(out):
        return out
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / f".{out.name}.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot keep the embedded corpus in {root} ({error.strerror}); set AGRICLIP_CACHE") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(out):
            build(out, seed=seed, size=size, count=count, overwrite=True, progress=progress)
    return out


def _whole(folder: Path) -> bool:
    try:
        records.Alive.open(folder)
    except UserError:
        return False
    return True


def _digest(seed: int, size: int, count: Mapping[str, int]) -> str:
    """Of the settings and of every source file that decides what the folder holds."""
    digest = hashlib.sha256(json.dumps([seed, size, dict(count)]).encode())
    sources = [*sorted(Path(__file__).parent.glob("*.py")), Path(captions.__file__), Path(records.__file__)]
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
