"""Datasets of TensorFlow Datasets, without TensorFlow: by name (`tfds:beans`) or by the folder of a prepared one.

What can be read is what has random access: prepared as array_record. A dataset that is not there yet is downloaded and
prepared so where its builder can do that without TensorFlow.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agriclip_jax.data.sources import columns
from agriclip_jax.data.sources.base import About, Aside, Item, Known
from agriclip_jax.errors import UserError


@dataclass(frozen=True)
class TFDS:
    """A prepared dataset of TFDS, all its splits.

    Attributes:
      origin: its folder, which holds dataset_info.json.
      slug: its name.
      options: names of its features by role.
    """

    origin: Path
    slug: str
    options: Mapping[str, str]

    OPTIONS = (*columns.OPTIONS, "data_dir")
    in_order = False
    seekable = True

    @staticmethod
    def guess(path: Path) -> bool:
        """Whether a folder is that of a prepared dataset."""
        return (path / "dataset_info.json").is_file() and (path / "features.json").is_file()

    @classmethod
    def open(cls, paths: Sequence[Path], options: Mapping[str, str]) -> list["TFDS"]:
        """A source for each path."""
        for path in paths:
            if not cls.guess(path):
                raise UserError(f"{path} is not the folder of a prepared TFDS dataset: it has no dataset_info.json")
        return [cls(path, _builder(path).info.name, dict(options)) for path in paths]

    @classmethod
    def named(cls, name: str, options: Mapping[str, str]) -> list["TFDS"]:
        """The source of a dataset of that name, prepared here when it is not yet."""
        import tensorflow_datasets as tfds

        data_dir = os.path.expanduser(options["data_dir"]) if "data_dir" in options else None
        try:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
            if not Path(builder.data_path).is_dir():
                builder.download_and_prepare()
        except Exception as error:  # TFDS, its builders and the network fail in many ways
            raise UserError(
                f"tfds:{name} cannot be prepared without TensorFlow ({_first_line(error)}); prepare it elsewhere with "
                'file_format="array_record" and give its folder'
            ) from error
        return [cls(Path(builder.data_path), builder.info.name, dict(options))]

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`."""
        import tensorflow_datasets as tfds

        builder = _builder(self.origin)
        features = builder.info.features
        names = columns.choose(list(features), self.options, str(self.origin))
        label = features[names["label"]] if "label" in names else None
        classes = label.names if isinstance(label, tfds.features.ClassLabel) else None
        if classes:
            yield About({"classes": {name: name.replace("_", " ") for name in classes}})
        for split in builder.info.splits:
            for index, row in enumerate(_records(builder, split)):
                key = _values(row, names.get("label"))[:1]
                key = classes[key[0]] if classes and key and 0 <= key[0] < len(classes) else columns.key(*key or [""])
                captions = columns.texts([str(text) for text in _values(row, names.get("caption"))])
                yield Item(f"{split}/{index}", [split, index], key, captions)

    def read(self, places: Iterable[tuple[str, int]]) -> Iterator[bytes | Exception]:
        """See `Source`."""
        builder = _builder(self.origin)
        image = columns.choose(list(builder.info.features), self.options, str(self.origin))["image"]
        splits: dict[str, Any] = {}
        for split, index in places:
            if split not in splits:
                splits[split] = _records(builder, split)
            try:
                found = splits[split][index][image].bytes_list.value
                yield found[0] if found else ValueError("holds no image")
            except UserError as error:
                yield error


class _Rows(Sequence):
    """The records of a split as protobuf features: undecoded, so that only what is asked for costs time."""

    def __init__(self, records: Any, name: str):
        self._records, self._name = records, name

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            return tf_example_pb2.Example.FromString(self._records[range(len(self))[index]]).features.feature
        except IndexError:
            raise
        except Exception as error:  # array_record and protobuf answer damaged files with many kinds
            raise UserError(f"{self._name}: example {index} cannot be read, its shard is damaged") from error


def _records(builder: Any, split: str) -> _Rows:
    import tensorflow_datasets as tfds

    try:
        records = builder.as_data_source(split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    except Exception as error:  # also for formats without random access
        raise UserError(
            f"{builder.data_path}: the split {split} cannot be read at random ({_first_line(error)}); prepare the "
            'dataset with file_format="array_record"'
        ) from error
    return _Rows(records, f"{builder.data_path}:{split}")


def _builder(folder: Path) -> Any:
    import tensorflow_datasets as tfds

    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS and protobuf answer missing and damaged files with many kinds
        raise UserError(f"{folder} cannot be opened as a TFDS dataset ({_first_line(error)})") from error


def _values(row: Mapping[str, Any], name: str | None) -> list:
    """The values of a feature, texts decoded."""
    if name is None or name not in row:
        return []
    kind = row[name].WhichOneof("kind")
    values = getattr(row[name], kind).value if kind else ()
    return [value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value for value in values]


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
