"""Class-per-folder trees, as torchvision's ImageFolder reads them: the class of a photo is the folder that holds it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agriclip_jax.data.sources.base import METADATA, About, Aside, Item, Known, parse_metadata, squeezed
from agriclip_jax.data.sources.files import FILES, Folder, Tar, Zip, is_hidden, is_photo


@dataclass(frozen=True)
class Tree:
    """A folder with a folder for each class, or an archive of one."""

    files: Folder | Zip | Tar

    OPTIONS = ()

    @staticmethod
    def guess(path: Path) -> bool:
        """Whether a path may be one."""
        return any(kind.accepts(path) for kind in FILES)

    @classmethod
    def open(cls, paths: Sequence[Path], options: Mapping[str, str]) -> list["Tree"]:
        """A source for each path."""
        return [cls(next(kind for kind in FILES if kind.accepts(path)).open(path)) for path in paths]

    @property
    def origin(self) -> Path:
        """The folder or archive."""
        return self.files.origin

    @property
    def slug(self) -> str:
        """Its name without ending."""
        return self.files.slug

    @property
    def in_order(self) -> bool:
        """Whether it is an archive that is read from front to back."""
        return self.files.in_order

    @property
    def seekable(self) -> bool:
        """Whether it is not such an archive."""
        return not self.files.in_order

    def read(self, places: Iterable[Any]) -> Iterator[bytes | Exception]:
        """See `Source`."""
        return self.files.read(places)

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`; a first walk learns the form of the tree, a second gives the photos."""
        top, about, empty = self._form()
        if about is not None:
            yield About(about)
        for path in empty:
            yield Known(squeezed(path.rpartition("/")[2]))
        for entry in self.files.walk():
            path = entry.path.removeprefix(top)
            *folders, _ = path.split("/")
            if entry.is_folder or path == METADATA:
                continue
            if not is_photo(entry.path):
                yield Aside(path)
            elif not folders:
                yield Item(path, entry.place, problem="lies outside the class folders")
            else:
                yield Item(path, entry.place, squeezed(folders[-1]) or "_")

    def _form(self) -> tuple[str, dict | None, list[str]]:
        """The single folder around everything with its "/" (else empty), the metadata inside, the empty folders."""
        tops, depths, texts = set(), set(), {}
        folders, above = {}, set()
        for entry in self.files.walk(lambda path: path.removeprefix("./").split("/")[-1] == METADATA):
            if entry.text is not None and entry.path.count("/") <= 1:
                texts[entry.path] = entry.text
            above.add(entry.path.rpartition("/")[0])
            if entry.is_folder:
                folders[entry.path] = None
            elif is_photo(entry.path):
                depths.add(entry.path.count("/"))
                if len(tops) < 2:
                    tops.add(entry.path.split("/")[0])
        # One folder around everything, as archives have it, is no class: <dataset>/<class>/<n>.jpg.
        top = tops.pop() + "/" if len(tops) == 1 and min(depths) >= 1 and max(depths) >= 2 else ""
        text = texts.get(METADATA, texts.get(top + METADATA))
        return top, self._about(text), [path for path in folders if path not in above and not is_hidden(path)]

    def _about(self, text: bytes | None) -> dict | None:
        if text is None:
            return None
        records = parse_metadata(text, f"{METADATA} in {self.origin}")
        return records[self.slug] if self.slug in records else next(iter(records.values()), None)
