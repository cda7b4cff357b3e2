"""The tree of iNaturalist 2021: a folder for each species, whose name is its taxonomy, as in
`00042_Animalia_Chordata_Actinopterygii_Cypriniformes_Cyprinidae_Cyprinus_carpio`. Common names come from a table."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agriclip_jax.data.sources.base import About, Aside, Item, Known
from agriclip_jax.data.sources.table import rows
from agriclip_jax.data.sources.tree import Tree
from agriclip_jax.data.taxonomy import RANKS
from agriclip_jax.errors import UserError

FOLDER = re.compile(r"(\d{3,})" + r"_([^_/]+)" * 6 + r"_([^/]+)")
_MOST_BYTES = 256 << 20  # of a categories file
_GLANCE = 200  # entries looked at to guess


@dataclass(frozen=True)
class INaturalist(Tree):
    """Such a tree, in a folder or an archive."""

    categories: Path | None = None

    OPTIONS = ("categories",)

    @staticmethod
    def guess(path: Path) -> bool:
        """Whether the first class folders of a tree are named so."""
        if not Tree.guess(path):
            return False
        entries = itertools.islice(Tree.open([path], {})[0].files.walk(), _GLANCE)
        return any(FOLDER.fullmatch(part) for entry in entries for part in entry.path.split("/")[:-1])

    @classmethod
    def open(cls, paths: Sequence[Path], options: Mapping[str, str]) -> list["INaturalist"]:
        """A source for each path."""
        categories = Path(options["categories"]).expanduser() if "categories" in options else None
        return [cls(tree.files, categories) for tree in Tree.open(paths, {})]

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`."""
        known, record, taxonomy = self._categories(), {}, {}
        for thing in super().items():
            if isinstance(thing, About):
                record = thing.record
                continue
            if isinstance(thing, Item) and thing.class_key and thing.class_key not in taxonomy:
                taxonomy[thing.class_key] = known.get(thing.class_key) or taxon_of(thing.class_key)
            yield thing
        taxonomy = {key: taxon for key, taxon in taxonomy.items() if taxon}
        yield About({**record, "taxonomy": {**taxonomy, **record.get("taxonomy", {})}})

    def _categories(self) -> dict[str, dict[str, str]]:
        """Taxa by the name of their folder, from the file the user named."""
        if self.categories is None:
            return {}
        found = {}
        for row in _category_rows(self.categories):
            taxon = {name: str(row[name]).strip() for name in (*RANKS, "common_name", "supercategory") if row.get(name)}
            if epithet := row.get("specific_epithet"):
                taxon["species"] = f"{taxon.get('genus', '')} {epithet}".strip()
            number, *lineage = (str(row.get("id", "")).zfill(5), *(taxon.get(rank, "") for rank in RANKS[:-1]))
            epithet = taxon.get("species", "").rpartition(" ")[2]
            folder = row.get("image_dir_name") or "_".join((number, *lineage, epithet))
            found[str(folder)] = taxon
        if not found:
            raise UserError(f"?categories={self.categories} holds no categories with genus and specific_epithet")
        return found


def taxon_of(folder: str) -> dict[str, str]:
    """The ranks in a folder's name; none when it is not named so."""
    match = FOLDER.fullmatch(folder)
    if not match:
        return {}
    *ranks, epithet = match.groups()[1:]
    return {**dict(zip(RANKS, ranks, strict=False)), "species": f"{ranks[-1]} {epithet.replace('_', ' ')}"}


def _category_rows(path: Path) -> Iterator[dict]:
    if path.suffix.lower() != ".json":
        yield from (row for _, row in rows(path) if isinstance(row, dict))
        return
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UserError(
                f"?categories={path} is larger than {_MOST_BYTES >> 20} MiB; val.json has the categories too"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"?categories={path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"?categories={path} is not valid JSON: {error}") from error
    listed = content.get("categories", []) if isinstance(content, dict) else content
    yield from (row for row in listed if isinstance(row, dict))
