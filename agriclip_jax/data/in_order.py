"""Every photo once, in order and as evaluation sees it: for what is computed of a corpus instead of trained on it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from agriclip_jax.data.parallel import batched, parallel_map
from agriclip_jax.data.views import EvalView, decode, eval_view
from agriclip_jax.errors import UserError

WEIGHT = "weight"


def batches(
    source: Sequence[Mapping[str, Any]],
    views: Mapping[str, EvalView],
    batch_size: int,
    *,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of each global batch, decoded once for all views in other processes.

    Args:
      source: examples, such as `Alive.source(split)`.
      views: name -> how the photo is prepared; each becomes a field.
      batch_size: rows over all processes, which divide it.
      start: the first example that is wanted.
      process_index: which process this is.
      process_count: of how many.

    Yields:
      {name: uint8 [rows, size, size, 3], "weight": float32 [rows]}: 0 for the rows that fill up the last batch, all of
      which repeat a photo of it.

    Raises:
      UserError: a photo is unreadable; it is named.
    """
    rows = batch_size // process_count
    mine = [range(i, i + rows) for i in (b + process_index * rows for b in range(start, len(source), batch_size))]
    wanted = [min(index, len(source) - 1) for block in mine for index in block]
    photos = ((source[index]["image"], source[index]["source"]) for index in wanted)
    seen = batched(parallel_map(partial(_prepare, views=dict(views)), photos), rows)
    for block, prepared in zip(mine, seen, strict=True):
        fields = {name: np.stack([photo[name] for photo in prepared]) for name in views}
        yield fields | {WEIGHT: np.array([index < len(source) for index in block], np.float32)}


def _prepare(photo: tuple[bytes, str], views: Mapping[str, EvalView]) -> dict[str, np.ndarray]:
    data, source = photo
    try:
        image = decode(data)
    except UserError as error:
        raise UserError(f"{source}: {error}; build the ALive folder again without it") from error
    return {name: eval_view(image, view) for name, view in views.items()}
