"""Photos on disk -> examples: class-per-folder trees, .zip and .tar archives of them, globs, folders of archives.

`find` turns what a user typed into readers, one a dataset; `survey` reads every photo once to learn which can be kept;
the `Survey` then gives the examples of a split, reading each photo again. Nothing is unpacked to disk, and only names
are held in memory. A new kind of source is a class with `accepts`, `open`, `slug`, `origin`, `walk()` and `read()`, and
a line in `READERS`.
"""

import contextlib
import glob
import itertools
import json
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from agriclip_jax.data import captions, splits
from agriclip_jax.data.knowledge import Knowledge
from agriclip_jax.data.records import DatasetRecord, Example, parallel_map
from agriclip_jax.data.views import decode
from agriclip_jax.errors import UserError, near_misses

PHOTO_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp")
MAX_FILE_BYTES = 256 << 20  # no photo is larger; a member that claims or expands to more is a bomb
METADATA = "dataset.json"


class Entry(NamedTuple):
    """A file or folder met in a source: its path there (with "/"), and what its reader needs to read it again."""

    path: str
    is_folder: bool
    place: object


class Photo(NamedTuple):
    """A photo of a source: `path` in the source without a single folder around everything, and its split."""

    path: str
    class_key: str
    split: str
    place: object


class Problem(NamedTuple):
    """A photo that was skipped, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class Folder:
    """A class-per-folder tree; `only` limits it to some of its files and class folders."""

    origin: Path
    slug: str
    only: tuple[Path, ...] = ()

    @staticmethod
    def accepts(path: Path) -> bool:
        return path.is_dir()

    @classmethod
    def open(cls, path: Path) -> "Folder":
        return cls(path, path.resolve().name)

    def walk(self) -> Iterator[Entry]:
        for start in (*self.only, self.origin / METADATA) if self.only else (self.origin,):
            if start.exists():
                yield from self._walk(start, seen=())

    def _walk(self, path: Path, seen: tuple[str, ...]) -> Iterator[Entry]:
        if not path.is_dir():
            yield Entry(path.relative_to(self.origin).as_posix(), False, path)
            return
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder around itself
            return
        if path != self.origin:
            yield Entry(path.relative_to(self.origin).as_posix(), True, path)
        for child in _children(path):
            yield from self._walk(child, (*seen, real))

    def read(self, places: Collection) -> Iterator[tuple[object, bytes | Exception]]:
        for path in places:
            try:
                yield path, read_photo(path)
            except (OSError, ValueError) as error:
                yield path, error


def read_photo(path: Path) -> bytes:
    """The bytes of a file; OSError when it cannot be read, ValueError when it is none or no photo can be so large."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is no regular file")
    if about.st_size > MAX_FILE_BYTES:
        raise ValueError(_too_large(about.st_size))
    return path.read_bytes()


def _children(folder: Path) -> list[Path]:
    """What lies in a folder, by name."""
    try:
        return sorted(folder.iterdir())
    except PermissionError as error:
        raise UserError(f"{folder} may not be read; give yourself the right to, or leave it out") from error


@dataclass(frozen=True)
class Zip:
    """A .zip of a class-per-folder tree."""

    origin: Path
    slug: str

    @staticmethod
    def accepts(path: Path) -> bool:
        return path.is_file() and path.name.lower().endswith(".zip")

    @classmethod
    def open(cls, path: Path) -> "Zip":
        return cls(path, path.name[: -len(".zip")])

    def walk(self) -> Iterator[Entry]:
        with _opened(self.origin, zipfile.ZipFile) as archive:
            for member in archive.infolist():
                name = member.filename.replace("\\", "/")
                link = archive.read(member).decode(errors="replace") if self._is_link(member) else None
                _refuse_climbing(self.origin, name, link)
                yield Entry(name.rstrip("/"), member.is_dir(), member)

    @staticmethod
    def _is_link(member: zipfile.ZipInfo) -> bool:
        return stat.S_ISLNK(member.external_attr >> 16)

    def read(self, places: Collection) -> Iterator[tuple[object, bytes | Exception]]:
        with _opened(self.origin, zipfile.ZipFile) as archive:
            for member in places:
                try:
                    if self._is_link(member):
                        raise ValueError(_LINK)
                    if member.file_size > MAX_FILE_BYTES:
                        raise ValueError(_too_large(member.file_size))
                    with archive.open(member) as file:
                        yield member, file.read(MAX_FILE_BYTES)
                except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    yield member, error


@dataclass(frozen=True)
class Tar:
    """A .tar, plain or compressed, of a class-per-folder tree; read from front to back."""

    origin: Path
    slug: str

    ENDING = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz)$", re.IGNORECASE)

    @staticmethod
    def accepts(path: Path) -> bool:
        return path.is_file() and Tar.ENDING.search(path.name) is not None

    @classmethod
    def open(cls, path: Path) -> "Tar":
        return cls(path, cls.ENDING.sub("", path.name))

    def _members(self) -> Iterator[tuple[int, tarfile.TarFile, tarfile.TarInfo]]:
        with _opened(self.origin, lambda path: tarfile.open(path, "r|*", tarinfo=_Header)) as archive:
            number = 0
            while (member := archive.next()) is not None:
                yield number, archive, member
                archive.members = []  # or tarfile keeps them all
                number += 1

    def walk(self) -> Iterator[Entry]:
        for number, _, member in self._members():
            link = member.linkname if member.issym() or member.islnk() else None
            _refuse_climbing(self.origin, member.name, link, from_top=member.islnk())
            if member.isfile() or member.isdir() or link is not None:
                yield Entry(member.name.rstrip("/"), member.isdir(), number)

    def read(self, places: Collection) -> Iterator[tuple[object, bytes | Exception]]:
        wanted = set(places)
        for number, archive, member in self._members():
            if number in wanted:
                if not member.isfile():
                    yield number, ValueError(_LINK)
                elif member.size > MAX_FILE_BYTES:
                    yield number, ValueError(_too_large(member.size))
                else:
                    yield number, archive.extractfile(member).read()


class _Header(tarfile.TarInfo):
    """A member's header; a file that ends without the mark of an archive's end was cut off, which tarfile forgives."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError):
            raise tarfile.ReadError("unexpected end of data") from None


READERS = (Zip, Tar, Folder)
_LINK = "is a link; pack the photo itself"


@contextlib.contextmanager
def _opened(path: Path, opener: Callable) -> Iterator:
    """An archive; whatever keeps it from being read to its end is one clear line."""
    try:
        with opener(path) as archive:
            yield archive
    except PermissionError as error:
        raise UserError(f"{path} may not be read; give yourself the right to, or leave it out") from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path} cannot be read to its end ({error}); copy or download it again") from error


def _refuse_climbing(origin: Path, name: str, link: str | None, *, from_top: bool = False) -> None:
    """Raises UserError for a member, or the target of a link, that lies outside the folder of its archive."""
    paths = [name]
    if link is not None:
        paths.append(link if link.startswith("/") else posixpath.normpath(("" if from_top else name + "/../") + link))
    for path in paths:
        if path.startswith("/") or ".." in path.split("/") or re.match(r"[A-Za-z]:", path):
            raise UserError(f"{origin} has a member that climbs out of its folder: {name!r}; it is not to be trusted")


def _too_large(size: int) -> str:
    return f"is larger than {MAX_FILE_BYTES >> 20} MiB ({size >> 20} MiB)"


# ---- what a user typed -> readers ------------------------------------------------------------------------------------


def find(sources: Sequence[str]) -> list:
    """Readers of what the user named: class-per-folder trees, archives, globs, folders of archives.

    A glob may also match photos or class folders: then the folder above the classes is the dataset.

    Raises:
      UserError: a path does not exist, a glob matches nothing, or there is nothing in it that can be a source.
    """
    readers = []
    for text in sources:
        path = Path(os.path.abspath(os.path.expanduser(text)))
        if not text:
            raise UserError("--source= is empty; name a folder or an archive")
        if path.exists():
            readers += _readers_of(path, text)
        elif glob.has_magic(text):
            readers += _readers_of_glob(text)
        else:
            siblings = os.listdir(path.parent) if path.parent.is_dir() else []
            raise UserError(f"--source={text}: no such file or folder{near_misses(path.name, siblings[:1000])}")
    return readers


def _readers_of(path: Path, text: str) -> list:
    for reader in READERS:
        if reader.accepts(path):
            opened = reader.open(path)
            archives = _archives_in(path) if reader is Folder else []
            holds_photos = archives and any(_is_photo(entry) for entry in opened.walk())
            return [opened] if not archives or holds_photos else archives
    raise UserError(
        f"--source={text} is neither a folder nor an archive (.zip, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz)"
    )


def _archives_in(folder: Path) -> list:
    """Readers of the archives that lie in a folder, by name."""
    kinds = [reader for reader in READERS if reader is not Folder]
    files = [path for path in _children(folder) if not path.name.startswith(".")]
    return [reader.open(path) for path in files for reader in kinds if reader.accepts(path)]


def _readers_of_glob(text: str) -> list:
    readers, parts_of = [], {}
    for path in sorted(Path(os.path.abspath(p)) for p in glob.glob(os.path.expanduser(text), recursive=True)):
        if path.is_dir() and any(_is_photo(Entry(child.name, child.is_dir(), None)) for child in path.iterdir()):
            parts_of.setdefault(path.parent, []).append(path)
        elif path.is_file() and _is_photo(Entry(path.name, False, None)):
            parts_of.setdefault(path.parent.parent, []).append(path)
        elif any(reader.accepts(path) for reader in READERS):
            readers += _readers_of(path, str(path))
    readers += [Folder(root, root.name, tuple(parts)) for root, parts in parts_of.items()]
    if not readers:
        raise UserError(f"--source={text} matches no photos, folders or archives (is it quoted?)")
    return readers


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in path.split("/"))


def _is_photo(entry: Entry) -> bool:
    return not entry.is_folder and not _is_hidden(entry.path) and entry.path.lower().endswith(PHOTO_ENDINGS)


# ---- metadata --------------------------------------------------------------------------------------------------------


def read_metadata(path: Path | str) -> dict[str, dict]:
    """Records of datasets by name, from a JSON file that holds one record or a list of them.

    A record may give name, domain, classes {folder: name as people say it}, license, source, commit, templates.

    Raises:
      UserError: the file is missing, no JSON, or not such a list.
    """
    try:
        return _records(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"cannot read the metadata {path}: {error.strerror}") from error


def _records(data: bytes, where: str) -> dict[str, dict]:
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise UserError(f"the metadata {where} is not valid JSON: {error}") from error
    by_name = {}
    for record in records if isinstance(records, list) else [records]:
        fault = _record_fault(record)
        if fault:
            raise UserError(f"the metadata {where} has a record that {fault}")
        by_name[record.get("name", "")] = record
    return by_name


def _record_fault(record: object) -> str:
    """What is wrong with a metadata record, or nothing."""
    if not isinstance(record, dict):
        return "is not an object with name, domain and classes"
    for key in ("name", "domain", "license", "licence", "source", "commit"):
        if not isinstance(record.get(key, ""), str):
            return f"has a {key} that is no text"
    if "/" in record.get("name", ""):
        return f"has a name with a slash: {record['name']!r}"
    classes = record.get("classes", {})
    if not isinstance(classes, dict) or not all(isinstance(name, str) and name.strip() for name in classes.values()):
        return 'has classes that are not {"folder": "name as people say it"}'
    templates = record.get("templates", [])
    if not isinstance(templates, list) or not all(isinstance(t, str) and t.count("{}") == 1 for t in templates):
        return "has templates that are not a list of texts with one {} each"
    return ""


# ---- reading everything once -----------------------------------------------------------------------------------------


@dataclass
class _Dataset:
    """A reader, what is known of it, and its photos."""

    reader: object
    slug: str
    record: dict | None
    photos: list[Photo]
    class_keys: set[str]  # also of those that have no photo
    problems: list[Problem]
    ignored: int

    def describe(self) -> DatasetRecord:
        record = self.record or {}
        names = record.get("classes", {})
        commit = record.get("commit", "")
        return DatasetRecord(
            domain=record.get("domain") or "other",
            classes={key: names.get(key) or captions.words(key) for key in sorted({p.class_key for p in self.photos})},
            licence=record.get("license") or record.get("licence") or "",
            source=record.get("source", "") + (f"@{commit}" if commit else ""),
            templates=tuple(record.get("templates", ())),
        )


@dataclass
class Survey:
    """What a look at every photo found.

    Attributes:
      datasets: slug -> record, by slug; classes without a readable photo are left out.
      problems: photos that were skipped, and why.
      notes: what a user should know: guessed names, classes without photos.
      ignored: number of files that are no photos.
      counts: slug -> split -> number of photos.
      knowledge: facts that classes get captions from.
    """

    datasets: dict[str, DatasetRecord]
    problems: list[Problem]
    notes: list[str]
    ignored: int
    counts: dict[str, dict[str, int]]
    knowledge: Knowledge | None
    _parts: list[_Dataset] = field(repr=False)

    def captions(self, class_name: str, domain: str, dataset: str) -> list[tuple[str, str]]:
        """The captions of a class as (text, kind): templates, then what it looks like, as far as that is known."""
        known = self.knowledge.captions(class_name, domain, dataset) if self.knowledge else []
        return captions.captions(class_name, domain, dataset) + [(text, "knowledge") for text in known]

    def unknown(self) -> list[str]:
        """The classes without a fact, as "dataset/class name"."""
        return [
            f"{slug}/{name}"
            for slug, record in self.datasets.items()
            for name in record.classes.values()
            if not (self.knowledge and self.knowledge.find(name, slug, record.domain))
        ]

    def splits(self) -> dict[str, Callable[[], Iterator[Example]]]:
        """What `records.write` takes: split -> function giving its examples."""
        return {split: (lambda split=split: self.examples(split)) for split in splits.SPLITS}

    def examples(self, split: str | None = None) -> Iterator[Example]:
        """Streams the examples of a split, or all: by dataset, class and file (a .tar gives them in its own order).

        Raises:
          UserError: a photo that could be read before cannot be read any more.
        """
        for part in self._parts:
            record = self.datasets[part.slug]
            photos = {photo.place: photo for photo in part.photos if split in (None, photo.split)}
            if not photos:
                continue
            texts = {
                key: tuple(zip(*self.captions(name, record.domain, part.slug), strict=True))
                for key, name in record.classes.items()
            }
            for place, data in part.reader.read(photos):
                photo = photos[place]
                if isinstance(data, Exception):
                    raise UserError(f"{part.slug}/{photo.path} cannot be read any more ({data}); was it changed?")
                yield Example(
                    image=data,
                    captions=texts[photo.class_key][0],
                    caption_kinds=texts[photo.class_key][1],
                    class_name=record.classes[photo.class_key],
                    class_key=photo.class_key,
                    dataset=part.slug,
                    domain=record.domain,
                    source=f"{part.slug}/{photo.path}",
                    licence=record.licence,
                )


def survey(
    readers: Sequence,
    *,
    metadata: Mapping[str, dict] | None = None,
    ratios: Mapping[str, int] = splits.RATIOS,
    knowledge: Knowledge | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Reads every photo once and decodes it whole, to learn which can be kept.

    Args:
      readers: from `find`.
      metadata: records by dataset name, from `read_metadata`; they come before a `dataset.json` in or beside a source.
      ratios: percent by split.
      knowledge: facts that classes get captions from.
      progress: called with (photos done since the last call, photos in all).

    Raises:
      UserError: an archive is broken or climbs out of its folder, two sources have one name, or nothing can be kept.
    """
    parts = sorted((_list(reader, metadata or {}, ratios) for reader in readers), key=lambda part: part.slug)
    for one, other in itertools.pairwise(parts):
        if one.slug == other.slug:
            origins = f"{one.reader.origin} and {other.reader.origin}"
            raise UserError(f"two sources are called {one.slug!r}: {origins}; rename one of them")
    total = sum(len(part.photos) for part in parts)
    for part in parts:
        _check(part, lambda done: progress and progress(done, total))
    kept = [part for part in parts if part.photos]
    problems = [problem for part in parts for problem in part.problems]
    if not kept:
        why = ""
        if problems:
            why = f"; all {len(problems)} were skipped, such as {problems[0].source}: {problems[0].reason}"
        origins = ", ".join(str(part.reader.origin) for part in parts)
        raise UserError(f"no photo to keep in {origins}{why}; photos belong in one folder for each class")
    return Survey(
        datasets={part.slug: part.describe() for part in kept},
        problems=problems,
        notes=[note for part in parts for note in _notes(part)],
        ignored=sum(part.ignored for part in parts),
        counts={part.slug: dict(Counter(photo.split for photo in part.photos)) for part in kept},
        knowledge=knowledge,
        _parts=kept,
    )


def _list(reader: object, metadata: Mapping[str, dict], ratios: Mapping[str, int]) -> _Dataset:
    """The photos of a source by name, before any is read."""
    # A glob can match a folder and what is in it: each entry counts once.
    entries = list(dict.fromkeys(entry._replace(path=printable(entry.path)) for entry in reader.walk()))
    photos = [entry for entry in entries if _is_photo(entry)]
    depths = {entry.path.count("/") for entry in photos}
    tops = {entry.path.split("/")[0] for entry in photos}
    # One folder around everything, as archives have it, is no class: <dataset>/<class>/<n>.jpg.
    top = tops.pop() + "/" if len(tops) == 1 and depths and min(depths) >= 1 and max(depths) >= 2 else ""
    inside = [entry for entry in entries if entry.path in (METADATA, top + METADATA)]
    record = _record_of(reader, metadata, inside)
    slug = (record or {}).get("name") or " ".join(reader.slug.split()) or "photos"
    part = _Dataset(reader, slug, record, [], set(), [], ignored=0)
    for entry in entries:
        path = entry.path.removeprefix(top)
        *folders, file = path.split("/")
        if entry.is_folder:
            continue
        if not _is_photo(entry):
            part.ignored += entry not in inside
        elif not folders:
            part.problems.append(Problem(f"{slug}/{path}", "lies outside the class folders"))
        else:
            key = " ".join(folders[-1].split()) or "_"
            part.photos.append(Photo(path, key, splits.split_of(slug, key, file, ratios), entry.place))
    above = {entry.path.rpartition("/")[0] for entry in entries}
    empty = [
        entry.path for entry in entries if entry.is_folder and entry.path not in above and not _is_hidden(entry.path)
    ]
    part.class_keys |= {" ".join(path.split("/")[-1].split()) for path in empty}
    part.class_keys |= {photo.class_key for photo in part.photos} | set((record or {}).get("classes", {}))
    part.photos.sort(key=lambda photo: (photo.class_key, photo.path))
    return part


def printable(path: str) -> str:
    """A path whose bytes are no UTF-8 still becomes text that can be stored."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace").removeprefix("./")


def _record_of(reader: object, metadata: Mapping[str, dict], inside: Sequence[Entry]) -> dict | None:
    """The metadata of a source: from the user's list, else inside it, else beside it."""
    if reader.slug in metadata:
        return metadata[reader.slug]
    for entry in inside:
        for _, data in reader.read([entry.place]):
            if isinstance(data, Exception):
                raise UserError(f"cannot read {entry.path} in {reader.origin}: {data}")
            records = _records(data, f"{entry.path} in {reader.origin}")
            return records[reader.slug] if reader.slug in records else next(iter(records.values()), None)
    beside = reader.origin.parent / METADATA
    return read_metadata(beside).get(reader.slug) if beside.is_file() else None


def _check(part: _Dataset, progress: Callable[[int], None]) -> None:
    """Moves the photos of a dataset that cannot be decoded to its problems."""
    faults = parallel_map(
        lambda read: (read[0], fault(read[1])), part.reader.read([photo.place for photo in part.photos])
    )
    broken = {}
    for place, reason in faults:
        if reason:
            broken[place] = reason
        progress(1)
    part.problems += [Problem(f"{part.slug}/{p.path}", broken[p.place]) for p in part.photos if p.place in broken]
    part.photos = [photo for photo in part.photos if photo.place not in broken]


def fault(data: bytes | Exception) -> str:
    """Why a photo cannot be used, found by decoding it whole; empty when it can."""
    if isinstance(data, ValueError):
        return str(data)
    if isinstance(data, Exception):
        return f"cannot be read: {data}"
    if not data:
        return "is empty"
    try:
        decode(data, 1)  # a JPEG is still read to its end, in an eighth of the time and memory
    except UserError as error:
        return str(error)
    return ""


def _notes(part: _Dataset) -> Iterator[str]:
    has_photos = {photo.class_key for photo in part.photos}
    if not has_photos:
        yield f"{part.slug}: {part.reader.origin} holds no readable photo and is left out"
    elif part.record is None:
        yield f"{part.slug}: no metadata, so class names come from the folder names and the domain is 'other'"
    else:
        for key in sorted(has_photos - set(part.record.get("classes", {}))):
            yield f"{part.slug}: class {key!r} is not in the metadata and is called {captions.words(key)!r}"
    for key in sorted(part.class_keys - has_photos):
        yield f"{part.slug}: class {key!r} has no readable photo and is left out"
