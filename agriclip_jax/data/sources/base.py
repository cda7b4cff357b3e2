"""What every source gives, and the metadata that a source may come with."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from agriclip_jax.errors import UserError

METADATA = "dataset.json"
_LONGEST_PATTERN, _MOST_REPEATS = 100, 3


class Item(NamedTuple):
    """An image of a source, before it is read.

    Attributes:
      path: in the source, with "/"; what a user finds it by.
      place: what the source's `read` finds it by; fit for JSON.
      class_key: its class; empty when it has no label.
      captions: texts that it came with.
      problem: why it cannot be used, where that is known without reading it.
    """

    path: str
    place: Any
    class_key: str = ""
    captions: tuple[str, ...] = ()
    problem: str = ""


class Aside(NamedTuple):
    """A file that is no photo."""

    path: str


class Known(NamedTuple):
    """A class that the source speaks of, whether or not it has a photo."""

    key: str


class About(NamedTuple):
    """A metadata record that the source holds of itself, as `check_record` allows it."""

    record: dict


class Source(Protocol):
    """One dataset, wherever it lies. Small and picklable: it holds where things are, not what they are.

    Attributes:
      origin: where it lies, for messages.
      slug: its name, unless its metadata gives another.
      in_order: `read` can only go forward, so places must be asked for in the order in which `items` gave them.
      seekable: a place is reached without reading through those before it.
    """

    origin: Path
    slug: str
    in_order: bool
    seekable: bool

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """Everything in it, streamed.

        Raises:
          UserError: it is damaged, climbs out of its folder, or is not of its kind.
        """

    def read(self, places: Iterable[Any]) -> Iterator[bytes | Exception]:
        """The encoded image of each place, in the order asked, or why it cannot be had."""


# ---- metadata --------------------------------------------------------------------------------------------------------


def read_metadata(path: Path | str) -> dict[str, dict]:
    """Records of datasets by name, from a JSON file that holds one record or a list of them.

    Raises:
      UserError: the file is missing, no JSON, or not such a list; see `check_record`.
    """
    try:
        return parse_metadata(Path(path).read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"cannot read the metadata {path}: {error.strerror}") from error


def parse_metadata(data: bytes, where: str) -> dict[str, dict]:
    """Records of datasets by name, from the content of such a file; `where` names it in errors."""
    try:
        records = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"the metadata {where} is not valid JSON: {error}") from error
    by_name = {}
    for record in records if isinstance(records, list) else [records]:
        check_record(record, f"the metadata {where}")
        if "licence" in record:
            record["license"] = record.pop("licence") or record.get("license", "")
        by_name[record.get("name", "")] = record
    return by_name


def check_record(record: object, where: str) -> None:
    """Raises UserError unless it is a metadata record.

    It may give name, domain, license, source, commit (texts); classes {key: name as people say it}; templates [text
    with {}]; group, a regular expression on file names whose first group says what must stay in one split; taxonomy
    {key: {kingdom, phylum, class, order, family, genus, species, common_name, supercategory}}. A license may be spelt
    licence.
    """
    if fault := _record_fault(record):
        raise UserError(f"{where} has a record that {fault}")


def _record_fault(record: object) -> str:
    if not isinstance(record, dict):
        return "is not an object with name, domain and classes"
    for key in ("name", "domain", "license", "licence", "source", "commit", "group"):
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
    if fault := _group_fault(record.get("group", "")):
        return fault
    taxonomy = record.get("taxonomy", {})
    if not _is_table(taxonomy) or not all(isinstance(name, str) for row in taxonomy.values() for name in row.values()):
        return 'has a taxonomy that is not {"folder": {"genus": "...", "species": "...", ...}}'
    return ""


def _group_fault(pattern: str) -> str:
    """Why a regular expression is none, or might take for ever on some name: it may have come with a download."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"has a group that is no regular expression: {error}"
    repeats = len(re.findall(r"[*+]|\{\d*,\d*\}", pattern))
    if len(pattern) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or re.search(r"\)[*+{]", pattern):
        return f"has a group that is long, repeats in brackets or has over {_MOST_REPEATS} repeats, so it may never end"
    return ""


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(row, Mapping) for row in value.values())


def squeezed(text: str) -> str:
    """A name without white space that nobody sees."""
    return " ".join(text.split())
