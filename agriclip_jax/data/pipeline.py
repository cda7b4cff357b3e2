"""ALive records to batches: shuffled, repeated, augmented on all cores, the same for any number of processes."""

import functools
import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from agriclip_jax.data import feature_store, masks
from agriclip_jax.data.captions import class_identity, class_phrase, normalise_caption, without_article
from agriclip_jax.data.keywords import Keywords
from agriclip_jax.data.parallel import end_with_parent
from agriclip_jax.data.records import NAME
from agriclip_jax.data.selection import Selection
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.data.views import ViewSpec, crops, decode
from agriclip_jax.errors import UserError, near_misses

_IMAGE = "image/"
_UNPAIRED = "unpaired/"  # before the fields of the stream of examples whose captions are not used
_MOST_AHEAD = 4 << 30  # bytes of batches made ahead


class TrainBatches(Iterator[dict[str, np.ndarray]]):
    """An endless iterator whose position is that after the last batch it gave, whatever was read ahead.

    A position taken in one process restores the iterators of any number of processes.
    """

    def __init__(self, paired: Any, unpaired: Any = None):
        self._paired, self._unpaired = paired, unpaired

    def __next__(self) -> dict[str, np.ndarray]:
        batch = dict(next(self._paired))
        if self._unpaired is not None:
            batch |= {_UNPAIRED + name: rows for name, rows in next(self._unpaired).items()}
        return {name: np.array(rows) for name, rows in batch.items()}  # not a worker's shared memory

    def get_state(self) -> dict[str, Any]:
        """The position, fit for JSON."""
        position = self._paired.get_state()
        return position if self._unpaired is None else {"paired": position, "unpaired": self._unpaired.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position that `get_state` gave; what follows is the same to the bit.

        Raises:
          UserError: it is no such position.
        """
        try:
            self._paired.set_state(state if self._unpaired is None else state["paired"])
            if self._unpaired is not None:
                self._unpaired.set_state(state["unpaired"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the saved position in the data is damaged ({error!r}); remove that folder") from error

    def close(self) -> None:
        """Ends the threads or workers."""
        self._paired.close()
        if self._unpaired is not None:
            self._unpaired.close()


def train_batches(
    chosen: Selection,
    *,
    tokenizer: Tokenizer,
    context_length: int,
    views: Mapping[str, ViewSpec],
    needs: frozenset[str],
    features: Sequence[np.ndarray] | None = None,
    caption_kinds: Sequence[str],
    captions_per_image: int = 0,
    batch_size: int,
    seed: int,
    threads: int,
    patch: int = 0,
    workers: int = 0,
    keywords: Sequence[str] = (),
    unpaired_batch: int = 0,
    replay_share: float = 0.0,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainBatches:
    """This process's rows of an endless row of batches, every example once an epoch in an order drawn anew.

    A row depends on `seed`, on its place in the row of examples and on `views` only: the batches of all processes
    together, one after another, are the same for any number of processes, workers and threads. Batches run across the
    ends of epochs, so a split may be smaller than a batch: then an image comes several times in one, each time in other
    views. Paired, unpaired and general examples each have epochs of their own.

    Args:
      chosen: the examples.
      tokenizer: of the captions.
      context_length: ids a caption.
      views: by name ("global", "local"); a view draws the same crops whichever views follow it.
      needs: the fields to make, of: "image/<view>" uint8 [b, count, size, size, 3]; "tokens" int32 [b, context_length]
        of a caption drawn from the example's; "caption_id" uint32 [b, 2], the 64-bit hash of that caption, normalised;
        "class_id" uint32 [b, 2], that of what the class is across datasets; "mentions" bool [b, keywords], which
        keywords that caption has; "mask" bool [b, count, patches], which patches of the global views are hidden
        (`masks.draw`), drawn after all else; "features/global" float32 [b, 1, width] of `features`;
        "unpaired/image/<view>" uint8 [u, count, size, size, 3]. The others cost nothing.
      features: of each paired example, by its place among them.
      caption_kinds: of which captions are drawn: a kind first, each that the example has as often as the others, then
        one of its captions; an example with none of them may draw any of its captions. The kind "name" is what its
        class is called, alone.
      captions_per_image: at most so many of each kind, always the same of an image; 0 for all.
      batch_size: rows with captions, over all processes.
      seed: decides order, captions and views; 0 to 2**32 - 1.
      threads: that make batches ahead, each a whole one; 0 makes each when it is asked for.
      patch: side of the patches that masks hide, in pixels; 0: nothing is masked.
      workers: processes that do so instead, for threads wait for Python's lock; they take seconds to start. 0: none.
      keywords: that captions may have.
      unpaired_batch: rows without captions beside those with, over all processes; 0 when nothing needs them.
      replay_share: of the rows with captions, those of general examples: at even distances, so that every batch has
        its part.
      process_index: which process this is.
      process_count: of how many.

    Raises:
      UserError: a batch that the processes do not divide; a field nothing can make; unpaired rows that nothing needs,
        or that are needed and not there. Later, from the iterator: an unreadable image, by its source path.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(f"batch_size {batch_size} cannot be divided among {process_count} processes")
    if unpaired_batch % process_count:
        raise UserError(f"unpaired_batch {unpaired_batch} cannot be divided among {process_count} processes")
    if not 0 <= seed < 2**32:
        raise UserError(f"seed {seed} is not between 0 and 2**32 - 1")
    possible = {_IMAGE + name for name in views} | {"tokens", "caption_id", "class_id", "mentions"}
    possible |= {_UNPAIRED + _IMAGE + name for name in views}
    possible |= {feature_store.FIELD} if features is not None else set()
    possible |= {"mask"} if patch and "global" in views else set()
    for field in sorted(needs - possible):
        raise UserError(f"an objective needs {field}, which the pipeline cannot make{near_misses(field, possible)}")
    unpaired_needs = frozenset(field.removeprefix(_UNPAIRED) for field in needs if field.startswith(_UNPAIRED))
    _check_unpaired(chosen, unpaired_batch, unpaired_needs)
    if workers and not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read flags of absl, which a program need not have

    def rows(examples: Sequence[Mapping[str, Any]], needs: frozenset[str], seed: int) -> grain.MapDataset:
        make_row = _Rows(
            examples,
            tokenizer,
            context_length,
            views,
            needs,
            caption_kinds,
            captions_per_image,
            keywords,
            features,
            patch,
        )
        # Grain gets the indices and not the source: it would walk every field of every example for its statistics.
        return grain.MapDataset.range(len(examples)).seed(seed).shuffle().repeat().random_map(make_row)

    def stream(rows: grain.MapDataset, count: int, needs: frozenset[str]) -> Any:
        row_bytes = sum(spec.count * spec.size**2 * 3 for name, spec in views.items() if _IMAGE + name in needs)
        batch_bytes = max(count // process_count * row_bytes, 1)
        share = count / (batch_size + unpaired_batch)  # of what makes batches, and of the memory for them
        most = max(2, int(share * _MOST_AHEAD) // batch_bytes)
        # Each worker makes one batch while the one before waits.
        hands = min(_share(workers, share), int(share * _shared_memory()) // 4 // batch_bytes)
        if hands:
            read, work = grain.ReadOptions(0, 0), grain.MultiprocessingOptions(hands, per_worker_buffer_size=1)
        else:
            hands = _share(threads, share)
            read, work = grain.ReadOptions(hands, min(hands + 1, most) if hands else 0), None
        return grain.experimental.ElasticIterator(
            _ProcessMajor(rows, count, process_count),
            count,
            grain.sharding.ShardOptions(shard_index=process_index, shard_count=process_count),
            read_options=read,
            multiprocessing_options=work,
        )

    paired_needs = frozenset(field for field in needs if not field.startswith(_UNPAIRED))
    paired = rows(chosen.paired, paired_needs, seed)
    if replay_share:
        general = rows(chosen.general, paired_needs, _seed_of("general", seed))
        paired = grain.MapDataset.mix([paired, general], [1 - replay_share, replay_share])
    paired = stream(paired, batch_size, paired_needs)
    if not unpaired_batch:
        return TrainBatches(paired)
    unpaired = rows(chosen.unpaired, unpaired_needs, _seed_of("unpaired", seed))
    return TrainBatches(paired, stream(unpaired, unpaired_batch, unpaired_needs))


def _check_unpaired(chosen: Selection, unpaired_batch: int, needs: frozenset[str]) -> None:
    """Raises `UserError` where unpaired rows are asked for and not needed, needed and not asked for, or not there."""
    if needs and not unpaired_batch:
        raise UserError(
            "config.data.unpaired_batch=0, and an objective learns from images without captions; give it rows of them "
            "(S-CLIP: as many as config.batch_size)"
        )
    if unpaired_batch and not needs:
        raise UserError(
            f"config.data.unpaired_batch={unpaired_batch}, and no objective learns from images without captions; set "
            "it to 0, or give config.objectives.sclip a weight"
        )
    if needs and not len(chosen.unpaired):
        raise UserError(
            "no training image is without captions, and an objective learns from such; lower config.data.label_ratio, "
            "or train on pairs alone: config.objectives of contrastive, config.data.unpaired_batch=0"
        )


def _share(count: int, share: float) -> int:
    """A stream's share of threads or workers, one at least where there are any."""
    return max(1, round(share * count)) if count else 0


def _seed_of(stream: str, seed: int) -> int:
    """A seed of its own for a stream beside that of the paired examples."""
    return int(_hash(f"{stream} {seed}")[0])


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
        most: int,
        keywords: Sequence[str],
        features: Sequence[np.ndarray] | None,
        patch: int,
    ):
        self.source, self.tokenizer, self.context_length, self.needs = source, tokenizer, context_length, needs
        self.caption_kinds, self.most = caption_kinds, most
        self.keywords, self.features = Keywords(keywords), features
        self.views = {_IMAGE + name: spec for name, spec in views.items() if _IMAGE + name in needs}
        self.masks = (views["global"].count, views["global"].size // patch) if "mask" in needs else None
        self.side = max((spec.source_side for spec in self.views.values()), default=0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        end_with_parent()  # it arrives in a worker, which Grain would leave alive when its program is killed

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        example = self.source[index]
        groups = _by_kind(example, self.caption_kinds, self.most)
        group = groups[rng.integers(len(groups))] if len(groups) > 1 else groups[0]
        caption = group[rng.integers(len(group))]
        row = {}
        if self.views:
            try:
                image = decode(example["image"], self.side)
            except UserError as error:
                raise UserError(f"{example['source']}: {error}; build the ALive folder again without it") from error
            row = {field: crops(image, rng, spec) for field, spec in self.views.items()}
        if feature_store.FIELD in self.needs:
            row[feature_store.FIELD] = self.features[index][None]
        if "tokens" in self.needs:
            row["tokens"] = self.tokenizer.encode([caption], self.context_length)[0]
        if "caption_id" in self.needs:
            row["caption_id"] = _caption_id(caption)
        if "mentions" in self.needs:
            row["mentions"] = self.keywords.mentioned(caption)
        if "class_id" in self.needs:
            # An image without a label is a class of its own.
            name = example["class_name"]
            row["class_id"] = class_id(name, example["dataset"]) if name else _hash(example["source"])
        if self.masks:  # the last to draw, so that whatever else is drawn is the same with masks and without
            row["mask"] = masks.draw(rng, *self.masks)
        return row


@functools.lru_cache(1 << 16)
def _caption_id(caption: str) -> np.ndarray:
    return _hash(normalise_caption(caption))


@functools.lru_cache(1 << 16)
def class_id(class_name: str, dataset: str) -> np.ndarray:
    """The hash uint32 [2] of what a class is across datasets."""
    return _hash(class_identity(class_name, dataset))


def _hash(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), "<u4")


def _by_kind(example: Mapping[str, Any], kinds: Sequence[str], most: int) -> list[list[str]]:
    """The captions that training may draw, by kind; of each at most `most` (0: all), which ones the source decides."""
    named = list(zip(example["captions"], example["caption_kinds"], strict=True))
    groups = [[caption for caption, kind in named if kind == wanted] for wanted in kinds]
    if NAME in kinds and example["class_name"]:
        phrase = class_phrase(example["class_name"], example["dataset"], example["domain"])
        groups.append([without_article(phrase)])
    groups = list(filter(None, groups)) or [example["captions"]]
    if most:
        first = int(_hash(example["source"])[0])
        groups = [[group[(first + i) % len(group)] for i in range(min(most, len(group)))] for group in groups]
    return groups


def captions(examples: Iterable[Mapping[str, Any]], kinds: Sequence[str], most: int = 0) -> list[str]:
    """The distinct captions of examples that training may draw, in the order in which they come first."""
    drawn = (group for example in examples for group in _by_kind(example, kinds, most))
    return list(dict.fromkeys(caption for group in drawn for caption in group))
