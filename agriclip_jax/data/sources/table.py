"""Tables that name image files: CSV and TSV as open_clip reads them, JSON lines, Parquet, and the metadata files of
Hugging Face's imagefolder. Paths are relative to the table, and may not leave its folder unless `?root=` says so."""

import csv
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from agriclip_jax.data.sources import columns
from agriclip_jax.data.sources.base import METADATA, About, Aside, Item, Known, read_metadata
from agriclip_jax.data.sources.files import MAX_TEXT_BYTES, children, is_hidden, printable, read_file
from agriclip_jax.data.sources.parquet import opened_parquet
from agriclip_jax.errors import UserError

TEXT_ENDINGS = (".csv", ".tsv", ".jsonl")
SEPARATORS = ("\t", ",", ";", "|")
HUGGING_FACE = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

MOST_LINES = 20  # of one row, in quotes
_MOST_FORMS = 1000  # sets of keys that the objects of a table may have, held at a time


@dataclass(frozen=True)
class Table:
    """One or several tables of one dataset.

    Attributes:
      tables: their files.
      slug: of the dataset.
      root: the folder of the images; None for that of each table.
      options: column names by role, and `sep`.
    """

    tables: tuple[Path, ...]
    slug: str
    root: Path | None
    options: Mapping[str, str]

    OPTIONS = (*columns.OPTIONS, "sep", "root")
    in_order = False
    seekable = True

    @staticmethod
    def guess(path: Path) -> bool:
        """Whether a path is a table of text, or a folder with Hugging Face's metadata in it or in its splits."""
        if path.is_dir():
            return bool(_metadata_of(path))
        return path.is_file() and path.name.lower().endswith(TEXT_ENDINGS)

    @classmethod
    def open(cls, paths: Sequence[Path], options: Mapping[str, str]) -> list["Table"]:
        """A source for each path."""
        root = Path(os.path.abspath(os.path.expanduser(options["root"]))) if "root" in options else None
        if root is not None and not root.is_dir():
            raise UserError(f"?root={options['root']}: there is no such folder")
        sources = []
        for path in paths:
            tables = _metadata_of(path) if path.is_dir() else (path,)
            if not tables:
                raise UserError(f"{path} holds no {', '.join(HUGGING_FACE)}; name the table itself")
            is_folder = path.is_dir() or path.name in HUGGING_FACE
            name = (path if path.is_dir() else path.parent).resolve().name if is_folder else path.stem
            sources.append(cls(tables, name, root, dict(options)))
        return sources

    @property
    def origin(self) -> Path:
        """The table, or the first of them."""
        return self.tables[0]

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`. A row that cannot be understood is an `Item` with its problem."""
        about = self.tables[0].parent / METADATA
        if about.is_file():
            records = read_metadata(about)
            yield About(records.get(self.slug) or next(iter(records.values()), {}))
        for number, table in enumerate(self.tables):
            yield from self._items(number, table)

    def _items(self, number: int, table: Path) -> Iterator[Item]:
        is_ragged, chosen = table.name.lower().endswith(".jsonl"), {}
        for line, row in rows(table, self.options.get("sep")):
            where = printable(f"{table.name}:{line}")
            if isinstance(row, str):
                yield Item(where, None, problem=row)
                continue
            if is_ragged and len(chosen) > _MOST_FORMS:
                chosen.clear()
            if (form := tuple(row)) not in chosen:
                chosen[form] = columns.choose(form, self.options, str(table), must=not is_ragged)
            names = chosen[form]
            cell = {role: row.get(names.get(role)) for role in columns.OPTIONS}
            path, problem = _path_of(cell["image"], self.root or table.parent)
            if problem:
                yield Item(where, None, problem=problem)
                continue
            label = columns.key(cell["label"])
            if not (label or is_ragged or names.keys() & {"label", "caption"}):
                label = columns.key(Path(path).parent.name)
            yield Item(printable(path), [number, path], label, columns.texts(cell["caption"]))

    def read(self, places: Iterable[tuple[int, str]]) -> Iterator[bytes | Exception]:
        """See `Source`."""
        for number, path in places:
            try:
                yield read_file((self.root or self.tables[number].parent) / path)
            except (OSError, ValueError) as error:
                yield error


def _metadata_of(folder: Path) -> tuple[Path, ...]:
    """The metadata files of Hugging Face's imagefolder: in the folder, else in each folder of its splits."""
    if path := _metadata_in(folder):
        return (path,)
    inside = [_metadata_in(child) for child in children(folder) if child.is_dir() and not is_hidden(child.name)]
    return tuple(inside) if inside and all(inside) else ()


def _metadata_in(folder: Path) -> Path | None:
    for path in (folder / name for name in HUGGING_FACE):
        if path.is_file():
            _, row = next(rows(path), (0, ""))
            return path if "file_name" in row else None
    return None


def _path_of(cell: Any, root: Path) -> tuple[str, str]:
    """The path below `root` that a cell names, or what is wrong with it."""
    if not isinstance(cell, str) or not cell.strip():
        return "", "names no image"
    text = cell.strip()
    address = urlsplit(text) if "://" in text[:12] else None
    if address and address.scheme == "file":
        text = unquote(address.path)
    elif address:
        return "", "names a web address; download the images first (img2dataset does), then give what it made"
    if "\0" in text:
        return "", "names no image"
    inside = os.path.relpath(os.path.normpath(os.path.join(root, text)), root)
    if inside.split(os.sep)[0] == os.pardir:
        return "", f"{text!r} lies outside of the table's folder; allow it with ?root=FOLDER"
    return inside.replace(os.sep, "/"), ""


def rows(path: Path, separator: str | None = None) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The rows of a table as (line, columns -> cells), streamed; a row that is broken is why in words.

    Args:
      path: .csv, .tsv, .jsonl or .parquet.
      separator: of a CSV; None finds the one of tab, comma, semicolon and bar that its first line has most of.

    Raises:
      UserError: the file cannot be read.
    """
    if path.name.lower().endswith(".parquet"):
        yield from _parquet_rows(path)
        return
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield from (_json_rows(file) if path.name.lower().endswith(".jsonl") else _csv_rows(file, path, separator))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _json_rows(file: Iterable[str]) -> Iterator[tuple[int, dict | str]]:
    for line, text in enumerate(_bounded_lines(file), 1):
        if text.strip():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):
                row = None
            yield line, row if isinstance(row, dict) else "is no JSON object"


def _bounded_lines(file: Any) -> Iterator[str]:
    """Lines, of which none is longer than a text may be: what follows then is a line of its own."""
    while line := file.readline(MAX_TEXT_BYTES):
        yield line


def _csv_rows(file: Any, path: Path, separator: str | None) -> Iterator[tuple[int, dict[str, str] | str]]:
    lines = _bounded_lines(file)
    first = next(lines, "")
    separator = {"tab": "\t", "\\t": "\t"}.get(separator, separator) or max(SEPARATORS, key=first.count)
    if len(separator) != 1:
        raise UserError(f"{path}: ?sep={separator} is no single character (tab stands for a tab)")
    try:
        header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
    except csv.Error as error:
        raise UserError(f"{path} has a first line that names no columns ({error})") from error
    for line, texts in _records(lines):
        reader = csv.reader(texts, delimiter=separator)
        try:
            for cells in reader:
                yield from _csv_row(line + reader.line_num - len(texts), cells, header, separator)
        except csv.Error as error:
            yield line, f"is no row of a table ({error})"


def _records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the last line, lines) of rows; a quote that is never closed costs its own line, not the others."""
    numbered, waiting = enumerate(lines, 2), deque()
    while (first := waiting.popleft() if waiting else next(numbered, None)) is not None:
        taken, quotes = [first], first[1].count('"')
        while quotes % 2 and len(taken) < MOST_LINES:
            more = waiting.popleft() if waiting else next(numbered, None)
            if more is None:
                break
            taken.append(more)
            quotes += more[1].count('"')
        if quotes % 2:
            waiting.extendleft(reversed(taken[1:]))
            taken = taken[:1]
        yield taken[-1][0], [text for _, text in taken]


def _csv_row(line: int, cells: list[str], header: list[str], separator: str) -> Iterator[tuple[int, dict | str]]:
    if len(cells) == 1 and len(header) > 1 and separator in cells[0]:  # the whole row was quoted
        cells = next(csv.reader([cells[0]], delimiter=separator))
    while len(cells) > len(header) and not cells[-1]:
        cells.pop()
    if cells and len(cells) != len(header):
        yield line, f"has {len(cells)} cells where the table has {len(header)} columns"
    elif cells:
        yield line, dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with opened_parquet(path) as file:
        cells = (row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist())
        yield from enumerate(cells, 1)
