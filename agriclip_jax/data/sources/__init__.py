"""Where images come from: `find` turns what a user typed into sources, one a dataset.

A new kind is one file with a class, and one line in `KINDS`: the class has what `base.Source` says, `OPTIONS` (the keys
it takes after "?"), `guess(path)` and `open(paths, options)`, which gives sources; `named(name, options)` too where it
has datasets that are no files.
"""

import glob
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from agriclip_jax.data.sources.alive import AliveFolder
from agriclip_jax.data.sources.base import METADATA, About, Aside, Item, Known, Source, read_metadata
from agriclip_jax.data.sources.files import ARCHIVES, Folder, children, is_photo
from agriclip_jax.data.sources.inaturalist import INaturalist
from agriclip_jax.data.sources.parquet import Parquet
from agriclip_jax.data.sources.samples import Samples
from agriclip_jax.data.sources.table import Table
from agriclip_jax.data.sources.tfds import TFDS
from agriclip_jax.data.sources.tree import Tree
from agriclip_jax.errors import UserError, near_misses

__all__ = ["KINDS", "About", "Aside", "Item", "Known", "Source", "find", "read_metadata"]

# The first that takes a path for its own gets it, where no kind is told; one class may have several names.
KINDS = {
    "alive": AliveFolder,
    "tfds": TFDS,
    "table": Table,
    "csv": Table,
    "tsv": Table,
    "huggingface": Table,
    "parquet": Parquet,
    "inaturalist": INaturalist,
    "webdataset": Samples,
    "img2dataset": Samples,
    "folder": Tree,
    "zip": Tree,
    "tar": Tree,
}

_OPTIONS = re.compile(r"\?(?=[a-z_]+=)")


def find(texts: Sequence[str], *, flag: str = "--source") -> list[Source]:
    """Sources of what the user named, each as KIND:LOCATION?key=value&key=value, kind and options left out or not.

    The location is a path or a glob. Without a kind it is guessed; a folder of archives is a dataset each; a glob may
    also match photos or class folders: then the folder above the classes is the dataset. `flag` is how errors call it.

    Raises:
      UserError: a path does not exist, a glob matches nothing, an option is unknown, or it is nothing of these kinds.
    """
    try:
        return [source for text in texts for source in _sources(text)]
    except UserError as error:
        told = str(error)
        raise UserError(flag + told.removeprefix("--source") if told.startswith("--source") else told) from error


def _sources(text: str) -> list[Source]:
    kind, location, options = _parse(text)
    if not location:
        raise UserError("--source= is empty; name a folder, an archive or a table")
    path = Path(os.path.abspath(os.path.expanduser(location)))
    if path.exists():
        return _at(path, kind, options, text)
    if glob.has_magic(location):
        return _of_glob(location, kind, options, text)
    if kind and hasattr(KINDS[kind], "named"):
        return _checked(KINDS[kind], options, text).named(location, options)
    siblings = os.listdir(path.parent) if path.parent.is_dir() else []
    raise UserError(f"--source={text}: no such file or folder{near_misses(path.name, siblings[:1000])}")


def _parse(text: str) -> tuple[str, str, dict[str, str]]:
    """Kind (empty where none is told), location and options."""
    kind, location = "", text
    before, colon, after = text.partition(":")
    if colon and re.fullmatch(r"[a-z]\w+", before) and not os.path.exists(text):
        if before not in KINDS:
            raise UserError(f"--source={text}: unknown kind {before!r}{near_misses(before, KINDS)}")
        kind, location = before, after
    options = {}
    parts = _OPTIONS.split(location, maxsplit=1)
    if len(parts) == 2 and not os.path.exists(location):
        location = parts[0]
        for part in parts[1].split("&"):
            key, equals, value = part.partition("=")
            if not equals or not value:
                raise UserError(f"--source={text}: {part!r} is not key=value")
            options[key] = value
    return kind, location, options


def _checked(kind: type, options: Mapping[str, str], text: str) -> type:
    if unknown := sorted(options.keys() - set(kind.OPTIONS)):
        takes = near_misses(unknown[0], kind.OPTIONS) or "; it takes none"
        raise UserError(f"--source={text}: unknown option {unknown[0]!r} of a {kind.__name__.lower()} source{takes}")
    return kind


def _at(path: Path, kind: str, options: Mapping[str, str], text: str) -> list[Source]:
    """Sources of a path that exists."""
    if kind:
        return _open(_checked(KINDS[kind], options, text), [path], options, text)
    guessed = next((guess for guess in dict.fromkeys(KINDS.values()) if guess.guess(path)), None)
    if guessed is None:
        raise UserError(
            f"--source={text} is no folder, archive (.zip, .tar, .tar.gz, ...) or table (.csv, .parquet, ...)"
        )
    if guessed is Tree and path.is_dir() and (inside := _datasets_in(path)):
        return [source for child in inside for source in _at(child, kind, options, str(child))]
    return _open(_checked(guessed, options, text), [path], options, text)


def _open(kind: type, paths: Sequence[Path], options: Mapping[str, str], text: str) -> list[Source]:
    if issubclass(kind, Tree) and not all(map(Tree.guess, paths)):
        raise UserError(f"--source={text} is no folder, .zip or .tar")
    return kind.open(paths, options)


def _datasets_in(folder: Path) -> list[Path]:
    """The archives and tables in a folder without photos, by name: a dataset each."""
    files = [path for path in children(folder) if not path.name.startswith(".") and path.is_file()]
    inside = [path for path in files if any(kind.accepts(path) for kind in ARCHIVES)]
    return [] if inside and any(is_photo(entry.path) for entry in Folder.open(folder).walk()) else inside


def _of_glob(pattern: str, kind: str, options: Mapping[str, str], text: str) -> list[Source]:
    paths = sorted(Path(os.path.abspath(path)) for path in glob.glob(os.path.expanduser(pattern), recursive=True))
    if kind and paths:
        return _open(_checked(KINDS[kind], options, text), paths, options, text)
    sources, parts = [], {}
    for path in paths:
        if path.is_dir() and any(is_photo(child.name) for child in path.iterdir() if child.is_file()):
            parts.setdefault(path.parent, []).append(path)
        elif path.is_file() and is_photo(path.name):
            parts.setdefault(path.parent.parent, []).append(path)
        elif any(known.guess(path) for known in KINDS.values()):
            sources += _at(path, kind, options, str(path))
    if parts:
        _checked(Tree, options, text)
    for root, found in parts.items():
        # A pattern can match a folder and what is in it: each photo counts once.
        apart = [path for path in found if not set(path.parents) & set(found)]
        sources.append(Tree(Folder(root, root.name, (*apart, root / METADATA))))
    if not sources:
        raise UserError(f"--source={text} matches no photos, archives or tables (is it quoted?)")
    return sources
