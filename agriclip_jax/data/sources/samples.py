"""Samples as webdataset and img2dataset write them: files that share a name and differ in their ending, in tars or in
folders: `000.jpg` the image, `000.txt` its caption, `000.json` what is known of it, `000.cls` its class."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agriclip_jax.data.sources import columns
from agriclip_jax.data.sources.base import About, Aside, Item, Known
from agriclip_jax.data.sources.files import Entry, Folder, Tar, children, is_hidden, is_photo
from agriclip_jax.errors import UserError

TEXTS = (".txt", ".json", ".cls")
_STATS = "_stats.json"  # img2dataset's report on a shard
_GLANCE = 64  # files looked at to guess


@dataclass(frozen=True)
class Samples:
    """The samples of one dataset, in one or several tars or in one folder."""

    parts: tuple[Tar | Folder, ...]
    slug: str
    options: Mapping[str, str]

    OPTIONS = ("caption", "label")
    in_order = True

    @property
    def seekable(self) -> bool:
        """Whether none of its tars is compressed."""
        return not any(part.in_order for part in self.parts)

    @staticmethod
    def guess(path: Path) -> bool:
        """Whether a path is a tar of samples, a folder of such tars, or a folder that img2dataset wrote."""
        parts = _parts_of(path)
        if parts and isinstance(parts[0], Tar):
            return _pairs_up(itertools.islice(parts[0].walk(), _GLANCE))
        return bool(parts) and any(child.name.endswith(_STATS) for child in children(path))

    @classmethod
    def open(cls, paths: Sequence[Path], options: Mapping[str, str]) -> list["Samples"]:
        """One source of all paths."""
        parts = tuple(part for path in paths for part in _parts_of(path))
        if not parts:
            raise UserError(f"{paths[0]} holds no samples: neither .tar files nor images with texts beside them")
        alone = len(paths) == 1
        name = parts[0].slug if alone and len(parts) == 1 else (paths[0] if alone else paths[0].parent).resolve().name
        return [cls(parts, name, dict(options))]

    @property
    def origin(self) -> Path:
        """The first of its parts."""
        return self.parts[0].origin

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`."""
        for number, part in enumerate(self.parts):
            entries = (entry for entry in part.walk(_wants_text) if not entry.is_folder and not is_hidden(entry.path))
            for key, files in itertools.groupby(entries, lambda entry: _key(entry.path)):
                yield from self._sample(number, part, key, list(files))

    def _sample(self, number: int, part: Tar | Folder, key: str, files: list[Entry]) -> Iterator[Item | Aside]:
        texts = {file.path[len(key) :].lower(): file.text or b"" for file in files if _wants_text(file.path)}
        known = _json(texts.get(".json", b""))
        captions = columns.texts(texts.get(".txt", b"").decode("utf-8", "surrogateescape"))
        names = (self.options["caption"],) if "caption" in self.options else columns.CAPTION
        captions += columns.texts(next((known[name] for name in names if known.get(name)), None))
        labels = (self.options["label"],) if "label" in self.options else columns.LABEL
        label = columns.key(texts.get(".cls", b"").decode("utf-8", "replace"))
        label = label or columns.key(next((known[name] for name in labels if name in known), None))
        photos = [file for file in files if is_photo(file.path)]
        for file in photos:
            path = f"{part.origin.name}/{file.path}" if len(self.parts) > 1 else file.path
            yield Item(path, [number, file.place], label, tuple(dict.fromkeys(captions)))
        if not photos and not key.endswith(_STATS.removesuffix(".json")):
            yield from (Aside(file.path) for file in files)

    def read(self, places: Iterable[tuple[int, Any]]) -> Iterator[bytes | Exception]:
        """See `Source`; places must ascend."""
        for number, group in itertools.groupby(places, lambda place: place[0]):
            yield from self.parts[number].read(place for _, place in group)


def _parts_of(path: Path) -> tuple[Tar | Folder, ...]:
    if Tar.accepts(path):
        return (Tar.open(path),)
    if not path.is_dir():
        return ()
    tars = tuple(Tar.open(child) for child in children(path) if Tar.accepts(child))
    return tars or (Folder.open(path),)


def _pairs_up(entries: Iterable[Entry]) -> bool:
    """Whether images stand, in no folder, among files of the same name that say something of them."""
    photos, texts = set(), set()
    for entry in entries:
        if not entry.is_folder and not is_hidden(entry.path) and "/" not in entry.path:
            names = photos if is_photo(entry.path) else texts if _wants_text(entry.path) else set()
            names.add(_key(entry.path))
    return bool(photos & texts)


def _key(path: str) -> str:
    """The name of a sample: the path up to the first dot of the file's name."""
    folder, slash, file = path.rpartition("/")
    return folder + slash + file.split(".", 1)[0]


def _wants_text(path: str) -> bool:
    return path.lower().endswith(TEXTS)


def _json(text: bytes) -> dict:
    try:
        known = json.loads(text.decode("utf-8", "replace")) if text else {}
    except (ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
