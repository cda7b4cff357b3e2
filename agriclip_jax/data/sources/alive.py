"""A finished ALive folder as a source again: each of its datasets, with what is known of it and the captions that came
with its images; templates, knowledge and taxonomy are made anew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from agriclip_jax.data.records import Alive
from agriclip_jax.data.sources.base import About, Aside, Item, Known
from agriclip_jax.errors import UserError

_KEPT = ("given", "described")  # kinds of captions that belong to an image and not to its class


@dataclass(frozen=True)
class AliveFolder:
    """One dataset of an ALive folder."""

    origin: Path
    slug: str

    OPTIONS = ()
    in_order = False
    seekable = True

    @staticmethod
    def guess(path: Path) -> bool:
        """Whether a folder is one."""
        return (path / "alive.json").is_file()

    @classmethod
    def open(cls, paths: Sequence[Path], options: Mapping[str, str]) -> list["AliveFolder"]:
        """A source for each dataset of each path."""
        return [cls(path, slug) for path in paths for slug in Alive.open(path).datasets]

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`."""
        alive = Alive.open(self.origin)
        record = asdict(alive.datasets[self.slug])
        licence, classes = record.pop("licence"), {key: name for key, name in record.pop("classes").items() if key}
        yield About({**record, "classes": classes, "license": licence, "templates": list(record["templates"])})
        for split in alive.splits:
            for index, row in enumerate(alive.source(split)):
                if row["dataset"] == self.slug:
                    named = zip(row["captions"], row["caption_kinds"], strict=True)
                    own = tuple(text for text, kind in named if kind in _KEPT)
                    yield Item(row["source"].removeprefix(f"{self.slug}/"), [split, index], row["class_key"], own)

    def read(self, places: Iterable[tuple[str, int]]) -> Iterator[bytes | Exception]:
        """See `Source`."""
        alive = Alive.open(self.origin)
        splits = {split: alive.source(split) for split in alive.splits}
        for split, index in places:
            try:
                yield splits[split][index]["image"]
            except UserError as error:
                yield error
