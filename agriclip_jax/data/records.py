"""ALive on disk: a TFDS dataset in ArrayRecord shards, written atomically and read at random.

The folder that `write` makes holds `dataset_info.json`, `features.json`, the shards, and `alive.json`: what each
dataset in it is (readable without TFDS), the number of examples of each split and the fingerprint of the content.
`tfds.builder_from_directory(folder)` opens it too; TensorFlow is never needed.
"""

import contextlib
import fcntl
import functools
import glob
import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from agriclip_jax.data import splits as splitting
from agriclip_jax.data.parallel import parallel_map
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import check_place, read_record

CAPTION_KINDS = ("template", "knowledge", "taxonomy", "rewritten", "described", "given")
NAME = "name"  # what the class is called, alone: a kind that training makes and no record holds
MAX_PIXELS = 200_000_000  # a larger image is refused before it is decoded
EXAMPLES_PER_SHARD = 2048
VERSION = "1.0.0"  # of the TFDS datasets

# EXIF orientation -> what turns such an image upright (Exif 2.3, tag 274).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow refuses above twice its limit and warns above it: this makes "refuse above MAX_PIXELS" hold everywhere.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# It names no file, and such a photo is used without its EXIF.
warnings.filterwarnings("ignore", message="Corrupt EXIF data", category=UserWarning)


@dataclass(frozen=True)
class Example:
    """One image with its captions and provenance.

    Attributes:
      image: the encoded JPEG, PNG, WEBP, GIF or BMP bytes, as they came.
      captions: at least one.
      caption_kinds: parallel to `captions`, from `CAPTION_KINDS`.
      class_name: as people say it: "coffee leaf with rust"; empty when it has no label, only captions.
      class_key: folder name, unique in its dataset: "coffee_leaf_with_rust"; empty with `class_name`.
      dataset: slug: "coffee_leaf".
      domain: "crop", "fruit", "weed", "insect", "livestock", "fish", "poultry", ..., "other".
      source: path in the source: "coffee_leaf/coffee_leaf_with_rust/12.jpg".
      licence: as far as its source states one.
      boxes: (ymin, xmin, ymax, xmax) in [0, 1] of the upright image: where something was drawn or marked.
      box_names: parallel to `boxes`: "rust".
    """

    image: bytes
    captions: tuple[str, ...]
    caption_kinds: tuple[str, ...]
    class_name: str
    class_key: str
    dataset: str
    domain: str
    source: str
    licence: str = ""
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    box_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetRecord:
    """What is known of one dataset of an ALive folder; stored in `alive.json` under its slug.

    Attributes:
      domain: "crop", ..., "other".
      classes: class_key -> name as people say it; their order is the order of the labels.
      licence: as far as its source states one.
      source: where it came from.
      templates: zero-shot prompts with `{}`; empty means those of its domain.
      taxonomy: class_key -> names by rank, as far as they are known; see `taxonomy.py`.
      shares: by which its photos were split, as `splits.parse_ratios` reads them.
    """

    domain: str
    classes: Mapping[str, str]
    licence: str = ""
    source: str = ""
    templates: tuple[str, ...] = ()
    taxonomy: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    shares: str = splitting.SHARES


def named_classes(datasets: Mapping[str, DatasetRecord], domains: Sequence[str] = ()) -> Iterator[tuple[str, str, str]]:
    """Name, dataset and domain of each class that has a name, of some domains or, without any, of all."""
    for slug, record in datasets.items():
        if record.domain in domains or not domains:
            yield from ((name, slug, record.domain) for name in record.classes.values() if name)


def class_list(datasets: Mapping[str, DatasetRecord]) -> list[str]:
    """The global list of "dataset/class_key" that labels index: datasets in order, classes in order."""
    return [f"{slug}/{key}" for slug, record in datasets.items() for key in record.classes]


def write(
    out: Path | str,
    splits: Mapping[str, Callable[[], Iterable[Example]]],
    *,
    name: str,
    description: str,
    datasets: Mapping[str, DatasetRecord],
    max_side: int | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes an ALive folder, all of it or nothing.

    Examples stream: memory does not grow with their number. They stand in the order in which they come.

    Args:
      out: the folder to make; it itself will hold `dataset_info.json`.
      splits: split name -> function that gives its examples. A split without examples is left out.
      name: of the TFDS dataset, an identifier: "alive".
      description: one paragraph for a human reader.
      datasets: slug -> record, for every dataset that an example names. Labels index `class_list(datasets)`.
      max_side: shrink images whose longer side has more pixels than this; None leaves every byte as it came.
      overwrite: replace `out` when it is an ALive folder; any other non-empty folder is never touched.
      progress: called with the number of examples written since the last call.
      finish: called with the folder when it is whole, before it gets its name; may add files to it.

    Raises:
      UserError: `out` is taken, cannot be written, the disk is full, or there is no example at all.
    """

    def shards(folder: Path) -> tuple[dict[str, int], str]:
        return _write_shards(folder, splits, name, description, datasets, max_side, progress or (lambda count: None))

    put(out, shards, name=name, datasets=datasets, overwrite=overwrite, finish=finish)


def put(
    out: Path | str,
    write_shards: Callable[[Path], tuple[dict[str, int], str]],
    *,
    name: str,
    datasets: Mapping[str, DatasetRecord],
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Makes an ALive folder of shards that something else writes, all of it or nothing.

    The folder is built beside `out` and renamed when it is whole, so a killed build leaves nothing that looks finished;
    what a killed build left is removed by the next one.

    Args:
      out, name, datasets, overwrite, finish: as of `write`.
      write_shards: writes a TFDS dataset of `features` into a folder; gives split -> number of examples, and the
        fingerprint of the content.

    Raises:
      UserError: as `write` does.
    """
    out = Path(os.path.realpath(out))
    check_out(out, overwrite=overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(out) as partial:
            counts, fingerprint = write_shards(partial)
            _check_shards(partial, name, counts)
            about = {
                "name": name,
                "fingerprint": fingerprint,
                "splits": counts,
                "shards": {path.name: path.stat().st_size for path in sorted(partial.glob("*.array_record-*"))},
                "datasets": {slug: asdict(record) for slug, record in datasets.items()},
            }
            text = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
            (partial / "alive.json").write_text(text, encoding="utf-8")
            if finish:
                finish(partial)
            _move_into_place(partial, out, overwrite)
    except OSError as error:
        raise UserError(f"could not write {out}: {error.strerror or error}; nothing was kept") from error


def check_out(out: Path | str, *, overwrite: bool = False) -> None:
    """Raises UserError when `write` would refuse `out`; costs nothing, so ask before long work."""
    out = Path(os.path.realpath(out))
    if out.is_dir() and any(out.iterdir()):
        if not (out / "alive.json").is_file():
            raise UserError(f"{out} is not empty and not an ALive folder; name a new folder")
        if not overwrite:
            raise UserError(f"{out} already holds a finished ALive folder; name a new one, or give --overwrite")
    elif out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a new folder")
    check_place(out)


@contextlib.contextmanager
def _partial_folder(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out`, removed in the end unless it was moved away.

    Its holder is locked while this process lives: that tells a running build from what a killed one left.
    """
    with contextlib.ExitStack() as stack:
        with _locked(out.parent, wait=True):
            for leftover in out.parent.glob(f".{glob.escape(out.name)}.partial-*"):
                with _locked(leftover, wait=False) as abandoned:
                    if abandoned:
                        shutil.rmtree(leftover, ignore_errors=True)
            holder = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
            stack.callback(shutil.rmtree, holder, ignore_errors=True)
            stack.enter_context(_locked(holder, wait=True))
        (holder / "new").mkdir()
        yield holder / "new"


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Whether the lock of `folder` could be had (some network file systems have none); given back at the end."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held = True
        except OSError:
            held = False
        yield held
    finally:
        os.close(descriptor)


def _move_into_place(partial: Path, out: Path, overwrite: bool) -> None:
    old = partial.with_name("old")
    if overwrite and (out / "alive.json").is_file():
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
            raise
        # Another process finished the same build first: as good as ours when the content is equal.
        ours, theirs = partial / "alive.json", out / "alive.json"
        if not theirs.is_file() or read_record(theirs)["fingerprint"] != read_record(ours)["fingerprint"]:
            raise


def features(classes: Sequence[str]):
    """The TFDS features of an ALive dataset with these labels."""
    import tensorflow_datasets as tfds

    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(text()),
            "caption_kinds": tfds.features.Sequence(tfds.features.ClassLabel(names=CAPTION_KINDS)),
            "label": tfds.features.ClassLabel(names=classes),
            "class_name": text(),
            "class_key": text(),
            "dataset": text(),
            "domain": text(),
            "source": text(),
            "licence": text(),
            "boxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
            "box_names": tfds.features.Sequence(text()),
        }
    )


def _write_shards(
    folder: Path,
    splits: Mapping[str, Callable[[], Iterable[Example]]],
    name: str,
    description: str,
    datasets: Mapping[str, DatasetRecord],
    max_side: int | None,
    progress: Callable[[int], None],
) -> tuple[dict[str, int], str]:
    """Writes one split after the other; gives their numbers of examples and the fingerprint."""
    import tensorflow_datasets as tfds

    classes = class_list(datasets)
    labels = {key: label for label, key in enumerate(classes)}
    identity = tfds.core.DatasetIdentity(
        name=name, version=tfds.core.Version(VERSION), data_dir=str(folder), module_name=__name__
    )
    info = tfds.core.DatasetInfo(
        builder=identity, description=description, features=features(classes), disable_shuffling=True
    )
    # GeneratorBasedBuilder keeps a split in memory and past 1 GB asks for TensorFlow; the sequential writer streams.
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=EXAMPLES_PER_SHARD, file_format="array_record")
    fingerprint, counts = Fingerprint(classes), {}
    for split, examples_of in splits.items():
        examples = iter(examples_of())
        first = next(examples, None)
        if first is None:
            continue
        writer.initialize_splits([split])
        fingerprint.begin(split)
        counts[split] = 0
        for batch in _batches(_shrunk(itertools.chain([first], examples), max_side)):
            for example in batch:
                fingerprint.add(example)
            encoded = [encode(example, labels) for example in batch]
            with _disk_errors():
                writer.add_examples({split: encoded})
            counts[split] += len(batch)
            progress(len(batch))
        with _disk_errors():
            writer.close_splits([split])
    if not counts:
        raise UserError("there is no example to write")
    return counts, fingerprint.hexdigest()


class Fingerprint:
    """Tells content apart: classes, splits, examples and their order."""

    def __init__(self, classes: Sequence[str]):
        self._hash = hashlib.sha256(json.dumps(classes).encode())

    def begin(self, split: str) -> None:
        """The examples of a split follow."""
        self._hash.update(split.encode())

    def add(self, example: Example) -> None:
        """The next example."""
        fields = {**vars(example), "image": hashlib.sha256(example.image).hexdigest()}
        self._hash.update(hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest())

    def hexdigest(self) -> str:
        """Of all that was added."""
        return self._hash.hexdigest()


def _batches(examples: Iterable[Example], *, most: int = 256, most_bytes: int = 16 << 20) -> Iterator[list[Example]]:
    """Lists of examples, short enough to be held in memory whatever the size of the photos."""
    batch, size = [], 0
    for example in examples:
        batch.append(example)
        size += len(example.image)
        if len(batch) == most or size >= most_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _shrunk(examples: Iterable[Example], max_side: int | None) -> Iterable[Example]:
    if max_side is None:
        return examples
    return parallel_map(functools.partial(_with_shrunk_image, max_side=max_side), examples)


def _with_shrunk_image(example: Example, max_side: int) -> Example:
    return replace(example, image=shrink(example.image, max_side))


def encode(example: Example, labels: Mapping[str, int]) -> dict[str, Any]:
    """An example as TFDS takes it, with the label of its class."""
    import tensorflow_datasets as tfds

    if not example.captions or len(example.captions) != len(example.caption_kinds):
        raise ValueError(f"{example.source}: needs at least one caption, and a kind for each")
    if len(example.boxes) != len(example.box_names):
        raise ValueError(f"{example.source}: needs a name for each box")
    return {
        **{name: getattr(example, name) for name in ("image", "class_name", "class_key", "dataset", "domain")},
        "source": example.source,
        "licence": example.licence,
        "captions": list(example.captions),
        "caption_kinds": list(example.caption_kinds),
        "label": labels[f"{example.dataset}/{example.class_key}"],
        "boxes": [tfds.features.BBox(*map(float, box)) for box in example.boxes],
        "box_names": list(example.box_names),
    }


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """array_record tells of a full disk by RuntimeError("write() failed: No space left ...; writing ...")."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error).split(";")[0]) from error


def _check_shards(folder: Path, name: str, counts: Mapping[str, int]) -> None:
    """Counts the records that reached the disk: a full disk must not leave a folder that looks whole."""
    from array_record.python.array_record_module import ArrayRecordReader

    for split, count in counts.items():
        found = 0
        for path in folder.glob(f"{name}-{split}.array_record-*"):
            reader = ArrayRecordReader(str(path))
            found += reader.num_records()
            reader.close()
        if found != count:
            raise OSError(f"{count} examples of {split} were written, {found} are on the disk (is it full?)")


@dataclass(frozen=True)
class Alive:
    """An opened ALive folder.

    Attributes:
      path: the folder.
      splits: name -> number of examples.
      classes: global list of "dataset/class_key"; labels index it.
      datasets: slug -> `DatasetRecord`.
      fingerprint: hex; equal for equal content, wherever the folder lies.
    """

    path: Path
    splits: dict[str, int]
    datasets: dict[str, DatasetRecord]
    fingerprint: str
    classes: list[str] = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "classes", class_list(self.datasets))

    @classmethod
    def open(cls, path: Path | str) -> "Alive":
        """Opens a folder that `write` made.

        Raises:
          UserError: it is missing, not an ALive folder, or its shards are missing or cut off.
        """
        path = Path(path)
        make = "make one with tools/build_alive.py --source=PHOTOS --out=DIR"
        if not path.is_dir():
            raise UserError(f"there is no ALive folder {path}; {make}")
        if not (path / "alive.json").is_file() or not (path / "dataset_info.json").is_file():
            raise UserError(f"{path} is not an ALive folder (it has no alive.json beside a dataset_info.json); {make}")
        try:
            about = read_record(path / "alive.json")
            shards = about["shards"]
            alive = cls(
                path=path,
                splits=about["splits"],
                datasets={
                    slug: DatasetRecord(**{**record, "templates": tuple(record["templates"])})
                    for slug, record in about["datasets"].items()
                },
                fingerprint=about["fingerprint"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path / 'alive.json'} cannot be read ({error!r}); build the folder again") from error
        broken = [n for n, size in shards.items() if not (path / n).is_file() or (path / n).stat().st_size != size]
        if broken:
            raise UserError(
                f"{path}: {len(broken)} of {len(shards)} shards missing or cut off, such as {broken[0]}; "
                "copy the folder again or build it again"
            )
        return alive

    def source(self, split: str) -> "Source":
        """Random access to the examples of a split, for `grain.MapDataset.source`.

        Raises:
          UserError: there is no such split.
        """
        if split not in self.splits:
            raise UserError(f"{self.path} has no split {split!r}{near_misses(split, self.splits)}")
        return Source(self.path, split)


class Source(Sequence):
    """The examples of one split; picklable, safe to read from many threads.

    `source[i]` is a dict: image (encoded bytes), captions and caption_kinds (lists of str), label (int), class_name,
    class_key, dataset, domain, source, licence (str), boxes (float32 [n, 4]: ymin, xmin, ymax, xmax), box_names (list
    of str).
    """

    def __init__(self, path: Path, split: str):
        import tensorflow_datasets as tfds

        self._name = f"{path}:{split}"
        try:
            self._records = tfds.builder_from_directory(path).as_data_source(
                split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
        except Exception as error:  # TFDS and protobuf answer missing and damaged files with many kinds
            raise UserError(
                f"{path}: its dataset_info.json or features.json is missing or damaged "
                f"({' '.join(str(error).split())[:120]}); copy the folder again or build it again"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        # The protobuf is read directly: six times as fast as TFDS's general decoder.
        from tensorflow_datasets.proto import tf_example_pb2

        index = range(len(self))[index]
        try:
            record = self._records[index]
        except RuntimeError as error:
            raise UserError(
                f"{self._name}: example {index} cannot be read, its shard is damaged; copy or build the folder again"
            ) from error
        features = tf_example_pb2.Example.FromString(record).features.feature

        def texts(name: str) -> list[str]:
            return [text.decode() for text in features[name].bytes_list.value]

        words = ("class_name", "class_key", "dataset", "domain", "source", "licence")
        return {
            "image": features["image"].bytes_list.value[0],
            "captions": texts("captions"),
            "caption_kinds": [CAPTION_KINDS[kind] for kind in features["caption_kinds"].int64_list.value],
            "label": features["label"].int64_list.value[0],
            **{name: texts(name)[0] for name in words},
            "boxes": np.array(features["boxes"].float_list.value, np.float32).reshape(-1, 4),
            "box_names": texts("box_names"),
        }

    def __repr__(self) -> str:
        return f"Source({self._name})"


def upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data says; as it is where those cannot be read.

    Pillow's `exif_transpose` also writes those anew, which fails for tags to which some program gave another type.
    """
    method = UPRIGHT.get(_orientation(image.getexif))
    return image if method is None else image.transpose(method)


def is_turned(image: Image.Image) -> bool:
    """Whether `upright` swaps width and height, by what stands before the pixels; they are not decoded."""
    # A PNG's own getexif would look behind them.
    return _orientation(lambda: Image.Image.getexif(image)) in (5, 6, 7, 8)


def _orientation(exif: Callable[[], Image.Exif]) -> int | None:
    try:
        return exif().get(ExifTags.Base.Orientation)
    except Exception:  # broken EXIF raises many kinds
        return None


def eight_bits(image: Image.Image) -> Image.Image:
    """An image of 16-bit grays with its brightness kept in 8 bits; any other as it is."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))


def shrink(image: bytes, max_side: int) -> bytes:
    """The image with its longer side at most `max_side` pixels, upright, in its own format (GIF becomes PNG).

    An image that is small enough comes back untouched, byte for byte.
    """
    opened = Image.open(io.BytesIO(image))
    if max(opened.size) <= max_side:
        return image
    kind = {"GIF": "PNG", "MPO": "JPEG"}.get(opened.format, opened.format)  # MPO: several JPEGs of one shot
    opened.draft(opened.mode, (2 * max_side, 2 * max_side))  # a JPEG decoder skips the detail nobody will see
    opened = upright(opened)
    opened = eight_bits(opened)
    if opened.mode not in ("L", "RGB", "RGBA") or (kind == "JPEG" and opened.mode == "RGBA"):
        opened = opened.convert("RGBA" if opened.has_transparency_data and kind != "JPEG" else "RGB")
    opened.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    shrunk = io.BytesIO()
    opened.save(shrunk, kind, **({"quality": 92} if kind in ("JPEG", "WEBP") else {}))
    return shrunk.getvalue()
