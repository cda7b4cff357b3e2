"""ALive records to batches: shuffled, repeated, augmented on all cores, the same for any number of processes."""

import functools
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from agriclip_jax.data import masks
from agriclip_jax.data.captions import class_identity, normalise_caption
from agriclip_jax.data.feature_store import FeatureStore
from agriclip_jax.data.parallel import end_with_parent
from agriclip_jax.data.records import Alive
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.data.views import ViewSpec, crops, decode
from agriclip_jax.errors import UserError, near_misses

FEATURES = "features/global"
_IMAGE = "image/"
_MOST_AHEAD = 4 << 30  # bytes of batches made ahead


class TrainBatches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator whose position is that after the last batch it gave, whatever was read ahead.

    A position taken in one process restores the iterators of any number of processes.
    """

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __next__(self) -> dict[str, np.ndarray]:
        return {name: np.array(rows) for name, rows in next(self._iterator).items()}  # not a worker's shared memory

    def get_state(self) -> dict[str, Any]:
        """The position, fit for JSON."""
        return self._iterator.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `get_state` gave; what follows is the same to the bit.

        Raises:
          UserError: it is no such position.
        """
        try:
            self._iterator.set_state(state)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the saved position in the data is damaged ({error!r}); remove that folder") from error

    def close(self) -> None:
        """Ends the threads or workers."""
        self._iterator.close()


def train_batches(
    alive: Alive,
    split: str,
    *,
    tokenizer: Tokenizer,
    context_length: int,
    views: Mapping[str, ViewSpec],
    needs: frozenset[str],
    features: FeatureStore | None = None,
    caption_kinds: Sequence[str],
    batch_size: int,
    seed: int,
    threads: int,
    patch: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """This process's rows of an endless row of batches, every example once an epoch in an order drawn anew.

    A row depends on `seed`, on its place in the row of examples and on `views` only: the batches of all processes
    together, one after another, are the same for any number of processes, workers and threads. Batches run across the
    ends of epochs, so a split may be smaller than a batch: then an image comes several times in one, each time in other
    views.

    Args:
      alive: the records.
      split: which of its splits.
      tokenizer: of the captions.
      context_length: ids a caption.
      views: by name ("global", "local"); a view draws the same crops whichever views follow it.
      needs: the fields to make, of: "image/<view>" uint8 [b, count, size, size, 3]; "tokens" int32 [b, context_length]
        of a caption drawn from the example's; "caption_id" uint32 [b, 2], the 64-bit hash of that caption, normalised;
        "class_id" uint32 [b, 2], that of what the class is across datasets; "features/global" float32 [b, 1, width] of
        `features`; "mask" bool [b, count, patches], which patches of the global views are hidden (`masks.draw`), drawn
        after all else. The others cost nothing.
      features: of each example of the split, by its place.
      caption_kinds: of which captions are drawn: a kind first, each that the example has as often as the others, then
        one of its captions; an example with none of them may draw any of its captions.
      batch_size: rows over all processes.
      seed: decides order, captions and views; 0 to 2**32 - 1.
      threads: that make batches ahead, each a whole one; 0 makes each when it is asked for.
      patch: side of the patches that masks hide, in pixels; 0: nothing is masked.
      workers: processes that do so instead, for threads wait for Python's lock; they take seconds to start. 0: none.
      process_index: which process this is.
      process_count: of how many.

    Raises:
      UserError: no such split; a batch that the processes do not divide; a field nothing can make. Later, from the
        iterator: an unreadable image, by its source path.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size {batch_size} cannot be divided among {process_count} processes")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is not between 0 and 2**32 - 1")
    source = alive.source(split)
    make_row = _Rows(source, tokenizer, context_length, views, needs, caption_kinds, features, patch)
    # Grain gets the indices and not the source: it would walk every field of every example for its statistics.
    rows = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat().random_map(make_row)
    rows = _ProcessMajor(rows, batch_size, process_count)
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read flags of absl, which a program need not have
    row_bytes = sum(spec.count * spec.size**2 * 3 for name, spec in views.items() if _IMAGE + name in needs)
    batch_bytes = max(batch_size // process_count * row_bytes, 1)
    most = max(2, _MOST_AHEAD // batch_bytes)
    if workers := min(workers, _shared_memory() // 4 // batch_bytes):  # each makes one batch while the one before waits
        read, work = grain.ReadOptions(0, 0), grain.MultiprocessingOptions(workers, per_worker_buffer_size=1)
    else:
        read, work = grain.ReadOptions(threads, min(threads + 1, most) if threads else 0), None
    return TrainBatches(
        grain.experimental.ElasticIterator(
            rows,
            batch_size,
            grain.sharding.ShardOptions(shard_index=process_index, shard_count=process_count),
            read_options=read,
            multiprocessing_options=work,
        )
    )


def _shared_memory() -> int:
    """Bytes through which workers may hand batches over; a container often has few, and more would end them."""
    return shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else _MOST_AHEAD


class _ProcessMajor(grain.MapDataset):
    """Grain deals the rows of a batch out in turn; in this order each process so gets a block of them.

    The global batch, process after process, then has the same order for any number of processes, and with it
    whatever is drawn for each row on the devices.
    """

    def __init__(self, rows: grain.MapDataset, batch_size: int, process_count: int):
        super().__init__(rows)
        self._batch_size, self._process_count = batch_size, process_count

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self._batch_size)
        place, process = divmod(row, self._process_count)
        block = self._batch_size // self._process_count
        return self._parent[batch * self._batch_size + process * block + place]


class _Rows:
    """The function from an index and a generator to a row of the batch."""

    def __init__(
        self,
        source: Sequence[Mapping[str, Any]],
        tokenizer: Tokenizer,
        context_length: int,
        views: Mapping[str, ViewSpec],
        needs: frozenset[str],
        caption_kinds: Sequence[str],
        features: FeatureStore | None,
        patch: int,
    ):
        possible = {_IMAGE + name for name in views} | {"tokens", "caption_id", "class_id"}
        possible |= {FEATURES} if features is not None else set()
        possible |= {"mask"} if patch and "global" in views else set()
        for field in sorted(needs - possible):
            raise UserError(f"an objective needs {field}, which the pipeline cannot make{near_misses(field, possible)}")
        self.source, self.tokenizer, self.context_length, self.needs = source, tokenizer, context_length, needs
        self.caption_kinds, self.features = caption_kinds, features
        self.views = {_IMAGE + name: spec for name, spec in views.items() if _IMAGE + name in needs}
        self.masks = (views["global"].count, views["global"].size // patch) if "mask" in needs else None
        self.side = max((spec.source_side for spec in self.views.values()), default=0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        end_with_parent()  # it arrives in a worker, which Grain would leave alive when its program is killed

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        example = self.source[index]
        groups = _by_kind(example, self.caption_kinds)
        group = groups[rng.integers(len(groups))] if len(groups) > 1 else groups[0]
        caption = group[rng.integers(len(group))]
        row = {}
        if self.views:
            try:
                image = decode(example["image"], self.side)
            except UserError as error:
                raise UserError(f"{example['source']}: {error}; build the ALive folder again without it") from error
            row = {field: crops(image, rng, spec) for field, spec in self.views.items()}
        if FEATURES in self.needs:
            row[FEATURES] = self.features[index][None]
        if "tokens" in self.needs:
            row["tokens"] = self.tokenizer.encode([caption], self.context_length)[0]
        if "caption_id" in self.needs:
            row["caption_id"] = _caption_id(caption)
        if "class_id" in self.needs:
            # An image without a label is a class of its own.
            name = example["class_name"]
            row["class_id"] = _class_id(name, example["dataset"]) if name else _hash(example["source"])
        if self.masks:  # the last to draw, so that whatever else is drawn is the same with masks and without
            row["mask"] = masks.draw(rng, *self.masks)
        return row


@functools.lru_cache(1 << 16)
def _caption_id(caption: str) -> np.ndarray:
    return _hash(normalise_caption(caption))


@functools.lru_cache(1 << 16)
def _class_id(class_name: str, dataset: str) -> np.ndarray:
    return _hash(class_identity(class_name, dataset))


def _hash(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), "<u4")


def _by_kind(example: Mapping[str, Any], kinds: Sequence[str]) -> list[list[str]]:
    """The captions that training may draw, by kind."""
    named = list(zip(example["captions"], example["caption_kinds"], strict=True))
    groups = [[caption for caption, kind in named if kind == wanted] for wanted in kinds]
    return list(filter(None, groups)) or [example["captions"]]


def captions(alive: Alive, split: str, kinds: Sequence[str]) -> list[str]:
    """The distinct captions of a split that training may draw, in the order in which they come first."""
    drawn = (group for example in alive.source(split) for group in _by_kind(example, kinds))
    return list(dict.fromkeys(caption for group in drawn for caption in group))
