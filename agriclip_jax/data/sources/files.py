"""Where the files of a source lie: a folder, a .zip, a .tar. Nothing is unpacked to disk, and no list of names is kept
but the directory of a .zip while it is open.

Each has `origin` (the path), `slug` (its name without ending), `in_order` (it can only be read from front to back),
`walk` and `read`. Archives that climb out of their folder are refused whole; a member that is a link, or larger
than any photo is, is a `ValueError` in its place.
"""

import bz2
import contextlib
import functools
import gzip
import lzma
import os
import posixpath
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from agriclip_jax.errors import UserError

MAX_FILE_BYTES = 256 << 20  # no photo is larger; a member that claims or expands to more is a bomb
MAX_TEXT_BYTES = 16 << 20  # of a file of metadata or captions beside the photos
PHOTO_ENDINGS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp")

_LONGEST_PATH = 4096
_LINK = "is a link or no plain file; pack the photo itself"


class Entry(NamedTuple):
    """A file or folder met on a walk.

    Attributes:
      path: below the origin, with "/".
      is_folder: whether it is one.
      place: what `read` finds it by; fit for JSON.
      text: the content, where the walk was asked for it.
    """

    path: str
    is_folder: bool
    place: Any
    text: bytes | None = None


def is_hidden(path: str) -> bool:
    """Whether an operating system or an editor left this, not a person."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in path.split("/"))


def is_photo(path: str) -> bool:
    """Whether a file is taken for a photo, by its name."""
    return path.lower().endswith(PHOTO_ENDINGS) and not is_hidden(path)


def printable(path: str) -> str:
    """A path whose bytes are no UTF-8 still becomes text that can be stored."""
    return storable(path).removeprefix("./")


def storable(text: str) -> str:
    """A text without the halves of characters (surrogates) that files and databases refuse."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def never(path: str) -> bool:
    """For `walk`: no content is wanted."""
    return False


@dataclass(frozen=True)
class Folder:
    """A folder; `only` limits it to some of its files and folders."""

    origin: Path
    slug: str
    only: tuple[Path, ...] = ()
    in_order = False

    @staticmethod
    def accepts(path: Path) -> bool:
        return path.is_dir()

    @classmethod
    def open(cls, path: Path) -> "Folder":
        return cls(path, path.resolve().name)

    def walk(self, wants_text: Callable[[str], bool] = never) -> Iterator[Entry]:
        """Everything in the folder, by name; links are followed, but not in circles."""
        for start in self.only or (self.origin,):
            if start.exists():
                yield from self._walk(start, (), wants_text)

    def _walk(self, path: Path, seen: tuple[str, ...], wants_text: Callable[[str], bool]) -> Iterator[Entry]:
        name = path.relative_to(self.origin).as_posix()
        if not path.is_dir():
            yield Entry(printable(name), False, name, _text_of(path) if wants_text(name) else None)
            return
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder around itself
            return
        if path != self.origin:
            yield Entry(printable(name), True, name)
        for child in children(path):
            yield from self._walk(child, (*seen, real), wants_text)

    def read(self, places: Iterable[str]) -> Iterator[bytes | Exception]:
        """The content of each place, or why there is none."""
        for place in places:
            try:
                yield read_file(self.origin / place)
            except (OSError, ValueError) as error:
                yield error


def read_file(path: Path) -> bytes:
    """The bytes of a file; OSError when it cannot be read, ValueError when it is none or no photo can be so large."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("is no regular file")
    if about.st_size > MAX_FILE_BYTES:
        raise ValueError(_too_large(about.st_size))
    return path.read_bytes()


def _text_of(path: Path) -> bytes | None:
    try:
        return read_file(path) if path.stat().st_size <= MAX_TEXT_BYTES else None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError:
        return None


def children(folder: Path) -> list[Path]:
    """What lies in a folder, by name.

    Raises:
      UserError: it may not be read.
    """
    try:
        return sorted(folder.iterdir())
    except PermissionError as error:
        raise UserError(f"{folder} may not be read; give yourself the right to, or leave it out") from error


@dataclass(frozen=True)
class Zip:
    """A .zip."""

    origin: Path
    slug: str
    in_order = False

    @staticmethod
    def accepts(path: Path) -> bool:
        return path.is_file() and path.name.lower().endswith(".zip")

    @classmethod
    def open(cls, path: Path) -> "Zip":
        return cls(path, path.name[: -len(".zip")])

    def walk(self, wants_text: Callable[[str], bool] = never) -> Iterator[Entry]:
        """Every member, in the order of the archive."""
        with opened(self.origin, zipfile.ZipFile) as archive:
            for number, member in enumerate(archive.infolist()):
                name = member.filename.replace("\\", "/")
                is_link = self._is_link(member)
                _refuse_climbing(self.origin, name, self._target(archive, member) if is_link else None)
                text = None
                if not is_link and not member.is_dir() and wants_text(name) and member.file_size <= MAX_TEXT_BYTES:
                    with archive.open(member) as file:
                        text = file.read(MAX_TEXT_BYTES)
                yield Entry(printable(name.rstrip("/")), member.is_dir(), number, text)

    @staticmethod
    def _is_link(member: zipfile.ZipInfo) -> bool:
        return stat.S_ISLNK(member.external_attr >> 16)

    @staticmethod
    def _target(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> str:
        with archive.open(member) as file:
            return file.read(_LONGEST_PATH).decode(errors="replace")

    def read(self, places: Iterable[int]) -> Iterator[bytes | Exception]:
        """The content of each place, or why there is none."""
        with opened(self.origin, zipfile.ZipFile) as archive:
            members = archive.infolist()
            for place in places:
                member = members[place]
                try:
                    if fault := _size_fault(-1 if self._is_link(member) else member.file_size):
                        raise ValueError(fault)
                    with archive.open(member) as file:
                        yield file.read(MAX_FILE_BYTES)
                except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                    yield error


@dataclass(frozen=True)
class Tar:
    """A .tar: a plain one is read anywhere, a compressed one from front to back."""

    origin: Path
    slug: str

    ENDING = re.compile(r"\.(tar|tar\.gz|tgz|tar\.bz2|tbz2|tar\.xz|txz)$", re.IGNORECASE)

    @staticmethod
    def accepts(path: Path) -> bool:
        return path.is_file() and Tar.ENDING.search(path.name) is not None

    @classmethod
    def open(cls, path: Path) -> "Tar":
        return cls(path, cls.ENDING.sub("", path.name))

    @functools.cached_property
    def in_order(self) -> bool:
        """Whether places must be asked for in the order of the archive: it is compressed, or of before 1988."""
        with opened(self.origin, lambda path: open(path, "rb")) as file:
            file.seek(257)
            return file.read(5) != b"ustar"

    def _members(self) -> Iterator[tuple[int, tarfile.TarFile, tarfile.TarInfo]]:
        with opened(self.origin, _unpacked) as file, tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as archive:
            number = 0
            while (member := archive.next()) is not None:
                yield number, archive, member
                archive.members = []  # or tarfile keeps them all
                number += 1

    def walk(self, wants_text: Callable[[str], bool] = never) -> Iterator[Entry]:
        """Every file, folder and link, in the order of the archive."""
        for number, archive, member in self._members():
            link = member.linkname if member.issym() or member.islnk() else None
            _refuse_climbing(self.origin, member.name, link, from_top=member.islnk())
            if not (member.isfile() or member.isdir() or link is not None):
                continue
            is_text = member.isfile() and wants_text(member.name) and member.size <= MAX_TEXT_BYTES
            text = None
            if is_text:
                with opened(self.origin, lambda _, of=(archive, member): of[0].extractfile(of[1])) as file:
                    text = file.read()
            whole = member.isfile() and not member.issparse()
            place = number if self.in_order else [member.offset_data, member.size if whole else -1]
            yield Entry(printable(member.name.rstrip("/")), member.isdir(), place, text)

    def read(self, places: Iterable) -> Iterator[bytes | Exception]:
        """The content of each place, or why there is none; with `in_order`, places must ascend."""
        return self._read_through(iter(places)) if self.in_order else self._read_at(places)

    def _read_at(self, places: Iterable[tuple[int, int]]) -> Iterator[bytes | Exception]:
        with opened(self.origin, lambda path: open(path, "rb")) as file:
            for offset, size in places:
                if fault := _size_fault(size):
                    yield ValueError(fault)
                else:
                    file.seek(offset)
                    yield file.read(size)

    def _read_through(self, places: Iterator[int]) -> Iterator[bytes | Exception]:
        wanted = next(places, None)
        for number, archive, member in self._members():
            if wanted is None:
                return
            if number == wanted:
                fault = _size_fault(member.size if member.isfile() else -1)
                yield ValueError(fault) if fault else archive.extractfile(member).read()
                wanted = next(places, None)


def _size_fault(size: int) -> str:
    """Why a member is not read; -1 stands for the size of what is no plain file."""
    return _LINK if size < 0 else _too_large(size) if size > MAX_FILE_BYTES else ""


def _unpacked(path: Path) -> IO[bytes]:
    """A tar's own bytes. tarfile's way of unpacking a stream gives a bomb all the memory it asks for."""
    with path.open("rb") as file:
        start = file.read(6)
    known = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    opener = next((opener for magic, opener in known.items() if start.startswith(magic)), open)
    return opener(path, "rb")


class _Header(tarfile.TarInfo):
    """A member's header; a file that ends without the mark of an archive's end was cut off, which tarfile forgives."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        try:
            return super().fromtarfile(archive)
        except (tarfile.TruncatedHeaderError, tarfile.EmptyHeaderError):
            raise tarfile.ReadError("unexpected end of data") from None


ARCHIVES = (Zip, Tar)
FILES = (*ARCHIVES, Folder)


@contextlib.contextmanager
def opened(path: Path, opener: Callable) -> Iterator:
    """An archive; whatever keeps it from being read to its end is one clear line.

    Raises:
      UserError: the archive may not be read, or is damaged.
    """
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
