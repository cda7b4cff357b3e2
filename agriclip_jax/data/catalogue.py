"""Well-known image datasets of agriculture: what their folders show, where they come from and how to split them.

They are the YAML files in `named/`, each a list of entries with the fields of `Named`. Facts only: what no source
states is left out, and unknown.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType

from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import read_yaml

NAMED = Path(__file__).parent / "named"
MAX_BYTES = 1 << 20  # of a file
MAX_PATTERN = 100  # characters of a `group`
DOMAINS = ("crop", "fruit", "weed", "insect", "livestock", "poultry", "fish", "other")

_ENDINGS = re.compile(r"(?<=.)(dataset|train|main|master)+$")  # that archives and branches add to a name


@dataclass(frozen=True)
class Named:
    """A well-known dataset.

    Attributes:
      name: slug, which no other has.
      title: as people call it: "PlantVillage".
      aliases: other slugs it goes by.
      domain: from `DOMAINS`.
      where: "tfds:NAME", "hf:OWNER/NAME", "agml:NAME", a web address, or words.
      images: how many; None where unknown.
      license: empty where unknown.
      group: regular expression searched in a file name: its first group, or the whole match, names what must stay in
        one split, such as the photos of one leaf; empty where file names do not tell.
      classes: folder name -> name as people say it: {"Tomato___Late_blight": "tomato leaf with late blight"}; empty
        where unknown.
      notes: what is wrong with it, or odd.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    domain: str
    where: str
    images: int | None
    license: str
    group: str
    classes: Mapping[str, str]
    notes: str


@cache
def shipped() -> tuple[Named, ...]:
    """The datasets that the project knows, by domain and name."""
    return tuple(sorted(read(sorted(NAMED.glob("*.yaml"))), key=lambda named: (named.domain, named.name)))


def find(slug: str) -> Named | None:
    """The dataset of that name or alias, None when it is not known.

    Case, "-", "_", spaces and endings such as "-main" do not matter: "PlantVillage-Dataset-master" is plant_village.
    """
    return _by_key().get(_key(slug))


def record(named: Named) -> dict:
    """The metadata record of a dataset, as `sources.survey` takes it, with the `group` besides."""
    return {
        "name": named.name,
        "domain": named.domain,
        "classes": dict(named.classes),
        "license": named.license,
        "source": named.where,
        "group": named.group,
    }


def read(paths: Iterable[Path | str]) -> list[Named]:
    """The datasets of YAML files.

    Raises:
      UserError: a file cannot be read, an entry is not as `Named` says, or two go by one name; the entry is named.
    """
    found, owner = [], {}
    for path in paths:
        for number, entry in enumerate(_entries(Path(path)), 1):
            where = f"the datasets {path}, entry {number}"
            named = _named(entry, where)
            for slug in (named.name, *named.aliases):
                other = owner.setdefault(_key(slug), named)
                if other is not named:
                    raise UserError(f"{where} ({named.name}): {slug!r} is {other.name} already; name it otherwise")
            found.append(named)
    return found


@cache
def _by_key() -> dict[str, Named]:
    return {_key(slug): named for named in shipped() for slug in (named.name, *named.aliases)}


def _key(slug: str) -> str:
    return _ENDINGS.sub("", re.sub(r"[\s_-]+", "", slug.casefold()))


def _entries(path: Path) -> list:
    entries = read_yaml(path, "the datasets", MAX_BYTES)
    if not isinstance(entries, list):
        raise UserError(f"the datasets {path} are not a list of entries, each with name, title, domain and where")
    return entries


def _named(entry: object, where: str) -> Named:
    if not isinstance(entry, dict) or not _is_slug(entry.get("name")):
        raise UserError(f"{where}: it has no name of small letters, digits and '_'")
    where = f"{where} ({entry['name']})"
    names = [field.name for field in fields(Named)]
    if unknown := sorted(map(str, entry.keys() - set(names))):
        raise UserError(f"{where}: unknown key {unknown[0]!r}{near_misses(unknown[0], names)}")
    entry = {"aliases": [], "images": None, "license": "", "group": "", "classes": {}, "notes": "", **entry}
    if fault := _fault(entry):
        raise UserError(f"{where}: {fault}")
    return Named(**entry | {"aliases": tuple(entry["aliases"]), "classes": MappingProxyType(entry["classes"])})


def _fault(entry: dict) -> str:
    """What is wrong with the values of an entry, or nothing."""
    for key in ("title", "domain", "where"):
        if not _is_text(entry.get(key)):
            return f"it has no {key}, which must be a text"
    if entry["domain"] not in DOMAINS:
        return f"domain {entry['domain']!r} is unknown{near_misses(entry['domain'], DOMAINS)}"
    for key in ("license", "group", "notes"):
        if not isinstance(entry[key], str):
            return f"{key} must be a text"
    aliases, images, classes = entry["aliases"], entry["images"], entry["classes"]
    if not isinstance(aliases, list) or not all(map(_is_slug, aliases)):
        return "aliases must be a list of slugs of small letters, digits and '_'"
    if images is not None and (type(images) is not int or images < 1):
        return "images must be a whole number above 0"
    if not isinstance(classes, dict) or not all(map(_is_text, (*classes, *classes.values()))):
        return "classes must give each folder, a text in quotes, its name as people say it"
    if len(entry["group"]) > MAX_PATTERN:
        return f"group has more than {MAX_PATTERN} characters"
    try:
        re.compile(entry["group"])
    except (re.error, OverflowError, RecursionError) as error:
        return f"group is no regular expression ({error})"
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_slug(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", value) is not None
