"""What sources hold, photo by photo: listed, read once to learn which can be kept, then streamed as examples.

The list is a temporary SQLite database, so memory does not grow with the number of photos. `curation.py` drops photos
from it by stages; what is left are the examples.
"""

import contextlib
import hashlib
import itertools
import json
import re
import sqlite3
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from agriclip_jax.data import captions, catalogue, splits, taxonomy
from agriclip_jax.data.duplicates import SIDE, perceptual_hash
from agriclip_jax.data.knowledge import Knowledge
from agriclip_jax.data.parallel import batched, parallel_map
from agriclip_jax.data.records import DatasetRecord, Example
from agriclip_jax.data.sources.base import METADATA, About, Aside, Item, Known, Source, read_metadata, squeezed
from agriclip_jax.data.views import decode
from agriclip_jax.errors import UserError

UNREADABLE = "unreadable"  # the stage that drops what cannot be used
WORDLESS = "without words"  # and that which drops photos with neither a class nor a caption
_ROWS = 4096  # of the list, held in memory at once
_READ = 64  # photos between two words on progress

_IS_WORDLESS = "stage IS NULL AND class_key = '' AND captions IS NULL"

_LIST = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE photo (
    id INTEGER PRIMARY KEY, part INTEGER, path TEXT, place TEXT, class_key TEXT, split TEXT, captions TEXT,
    sha BLOB, look BLOB, stage TEXT, reason TEXT, twin INTEGER
);
CREATE INDEX by_part ON photo (part, class_key, path);
"""


class Problem(NamedTuple):
    """A photo that was dropped, and why."""

    source: str
    reason: str


class Row(NamedTuple):
    """A photo of the list.

    Attributes:
      id: its number.
      path: in its source.
      place: what its source reads it by.
      class_key: empty when it has no label.
      captions: its own ones, (text, kind) each.
    """

    id: int
    path: str
    place: Any
    class_key: str
    captions: tuple[tuple[str, str], ...]


class Finding(NamedTuple):
    """What reading a photo once tells.

    Attributes:
      fault: why it cannot be used; empty when it can, and only then the others are filled.
      sha: SHA-256 of its bytes.
      look: its perceptual hash, as bytes.
    """

    fault: str
    sha: bytes = b""
    look: bytes = b""


def examine(data: bytes | Exception) -> Finding:
    """What is to know of an encoded photo, or of why it could not be read; it is decoded whole."""
    if isinstance(data, ValueError):
        return Finding(str(data))
    if isinstance(data, Exception):
        return Finding(f"cannot be read: {data}")
    if not data:
        return Finding("is empty")
    try:
        look = perceptual_hash(decode(data, SIDE))
    except UserError as error:
        return Finding(str(error))
    return Finding("", hashlib.sha256(data).digest(), look.tobytes())


@dataclass(frozen=True)
class Chunk:
    """Some photos of one source, and what is said of them.

    Attributes:
      source: where they are.
      slug: of the dataset.
      record: of the dataset, with the classes of these photos at least.
      texts: class -> its captions, (text, kind) each.
      rows: the photos, in an order in which the source can read them.
    """

    source: Source
    slug: str
    record: DatasetRecord
    texts: Mapping[str, Sequence[tuple[str, str]]]
    rows: Iterable[Row]

    def photos(self) -> Iterator[tuple[Row, bytes]]:
        """The photos with their bytes.

        Raises:
          UserError: a photo that could be read before cannot be read any more.
        """
        rows, again = itertools.tee(self.rows)
        for row, data in zip(rows, self.source.read(row.place for row in again), strict=True):
            if isinstance(data, Exception):
                raise UserError(f"{self.slug}/{row.path} cannot be read any more ({data}); was it changed?")
            yield row, data

    def captions(self, row: Row) -> dict[str, str]:
        """Text -> kind of a photo's captions: those of its class, then its own."""
        texts: dict[str, str] = {}
        for text, kind in (*self.texts[row.class_key], *row.captions):
            texts.setdefault(text, kind)
        return texts

    def examples(self) -> Iterator[Example]:
        """The photos as examples; raises as `photos` does."""
        for row, data in self.photos():
            texts = self.captions(row)
            yield Example(
                image=data,
                captions=tuple(texts),
                caption_kinds=tuple(texts.values()),
                class_name=self.record.classes[row.class_key],
                class_key=row.class_key,
                dataset=self.slug,
                domain=self.record.domain,
                source=f"{self.slug}/{row.path}",
                licence=self.record.licence,
            )


@dataclass(frozen=True)
class Part:
    """A source, and what is known of it as a whole.

    Attributes:
      number: its place among the parts.
      source: where its photos are.
      slug: the name of the dataset.
      about: its metadata record; None when it has none.
      named: the entry of the catalogue that fills what the metadata leaves out.
      known: classes that it or its metadata speaks of.
      aside: number of files that are no photos.
      ours: whether its photos become examples, or are only there to be compared with.
      ratios: percent by split.
    """

    number: int
    source: Source
    slug: str
    about: dict | None
    named: catalogue.Named | None
    known: frozenset[str]
    aside: int
    ours: bool
    ratios: Mapping[str, int]

    def name_of(self, key: str) -> str:
        """A class as people say it; empty for that of the photos without a label."""
        about = self.about or {}
        lineage = about.get("taxonomy", {}).get(key)
        name = about.get("classes", {}).get(key) or (taxonomy.display_name(lineage) if lineage else "")
        return name or captions.words(key) if key else ""


class Survey:
    """The photos of sources.

    Attributes:
      parts: in the order in which they were added.
      knowledge: facts that classes get captions from.
      rewritten: more captions of classes, by "dataset/class_key".
      ledger: the list, one row a photo; `stage` and `reason` say why one was dropped, `twin` for which other.
    """

    def __init__(self, knowledge: Knowledge | None = None):
        self.parts: list[Part] = []
        self.knowledge = knowledge
        self.rewritten: Mapping[str, Sequence[str]] = {}
        # An empty name is a temporary file that goes with the connection.
        self.ledger = sqlite3.connect("", isolation_level=None)
        self.ledger.executescript(_LIST)

    # ---- listing ----

    def add(
        self,
        source: Source,
        *,
        metadata: Mapping[str, dict] | None = None,
        ratios: Mapping[str, int] = splits.RATIOS,
        ours: bool = True,
    ) -> None:
        """Lists what a source holds.

        Args:
          source: from `sources.find`.
          metadata: records by dataset name; key by key they come before what lies beside the source, that before what
            lies in it, and that before the catalogue of named datasets.
          ratios: percent by split.
          ours: False for photos that are only compared with, which need no class.

        Raises:
          UserError: the source is damaged or climbs out of its folder, or another has its name.
        """
        listing = _Listing(len(self.parts), ours)
        self.many(
            "INSERT INTO photo (part, path, place, class_key, captions, stage, reason) VALUES (?, ?, ?, ?, ?, ?, ?)",
            listing.rows(source.items()),
        )
        self._merge_rows(len(self.parts))
        about = _about(source, metadata or {}, listing.about)
        slug = (about or {}).get("name") or squeezed(source.slug) or "photos"
        for part in self.parts:
            if part.slug == slug and part.ours and ours:
                origins = f"{part.source.origin} and {source.origin}"
                raise UserError(f"two sources are called {slug!r}: {origins}; rename one of them")
        known = (listing.keys | set((about or {}).get("classes", {}))) - {""}
        named, filling = _named(slug, listing.keys - {""})
        about = filling | (about or {}) if named else about
        self.parts.append(
            Part(
                number=len(self.parts),
                source=source,
                slug=slug,
                about=about,
                named=named,
                known=frozenset(known),
                aside=listing.aside,
                ours=ours,
                ratios=ratios,
            )
        )
        together = _together(about)

        def split_of(key: str, path: str) -> str:
            return splits.split_of(slug, key, together(path.rpartition("/")[2]), ratios)

        self.ledger.create_function("split_of", 2, split_of)
        self.run("UPDATE photo SET split = split_of(class_key, path) WHERE part = ?", len(self.parts) - 1)

    def _merge_rows(self, number: int) -> None:
        """Makes one photo of the rows of a table that give one image several captions."""
        select = "SELECT path FROM photo WHERE part = ? AND captions IS NOT NULL GROUP BY path, class_key, place "
        for (path,) in self.all(select + "HAVING count(*) > 1", number):
            where = "part = ? AND path = ? AND captions IS NOT NULL"
            rows = self.all(f"SELECT id, class_key, place, captions FROM photo WHERE {where} ORDER BY id", number, path)
            together: dict[tuple, list] = {}
            for photo, key, place, own in rows:
                together.setdefault((key, place), []).append((photo, json.loads(own)))
            for group in together.values():
                own = json.dumps([text for _, texts in group for text in texts])
                self.run("UPDATE photo SET captions = ? WHERE id = ?", own, group[0][0])
                self.many("DELETE FROM photo WHERE id = ?", ((photo,) for photo, _ in group[1:]))

    def check(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Reads every listed photo, decodes it whole and drops those that cannot be used.

        Args:
          progress: called with (photos done since the last call, photos in all).

        Raises:
          UserError: an archive cannot be read to its end.
        """
        total = self.one("SELECT count(*) FROM photo WHERE stage IS NULL AND sha IS NULL")
        for part in self.parts:
            ids, places = itertools.tee(self._unread(part))
            found = parallel_map(examine, part.source.read(place for _, place in places))
            for batch in batched(zip((number for number, _ in ids), found, strict=True), _READ):
                self.record(batch)
                if progress:
                    progress(len(batch), total)
        self.checked()

    def checked(self) -> None:
        """To be called when every photo was read: what is looked up by content from now on is found fast.

        Raises:
          UserError: photos that are only compared with, of which none could be read.
        """
        self.run("CREATE INDEX IF NOT EXISTS by_sha ON photo (sha)")
        readable = "SELECT count(*) FROM photo WHERE part = ? AND stage IS NULL"
        for part in self.parts:
            if not part.ours and not self.one(readable, part.number):
                raise UserError(f"{part.source.origin} holds no readable photo to compare with; name another folder")

    def unread(self, most: int) -> Iterator[tuple[Source, list[tuple[int, Any]]]]:
        """(source, [(id, place)]) of the photos that are still to be read, at most so many at once."""
        for part in self.parts:
            for rows in batched(self._unread(part), most if part.source.seekable else sys.maxsize):
                yield part.source, rows

    def _unread(self, part: Part) -> Iterator[tuple[int, Any]]:
        last = -1
        where = "part = ? AND id > ? AND stage IS NULL AND sha IS NULL"
        select = f"SELECT id, place FROM photo WHERE {where} ORDER BY id LIMIT ?"
        while rows := self.all(select, part.number, last, _ROWS):
            yield from ((number, json.loads(place)) for number, place in rows)
            last = rows[-1][0]

    def drop_wordless(self) -> None:
        """Drops the photos of which nothing is said: neither a class nor a caption."""
        self.run(
            f"UPDATE photo SET stage = ?, reason = 'has neither a class nor a caption' WHERE {_IS_WORDLESS} "
            f"AND {self.part_in(ours=True)}",
            WORDLESS,
        )

    def wordless(self) -> int:
        """The number of photos of which nothing is said."""
        return self.one(f"SELECT count(*) FROM photo WHERE {_IS_WORDLESS} AND {self.part_in(ours=True)}")

    def part_in(self, *, ours: bool) -> str:
        """The condition that a photo of the list becomes an example, or is only compared with."""
        return f"part IN ({', '.join(str(part.number) for part in self.parts if part.ours == ours)})"

    def describe(self, photo: int, caption: str, error: str) -> None:
        """Gives a photo a caption of its own, or drops it where there is none."""
        if caption:
            texts = json.dumps([(caption, "described")])
            self.run("UPDATE photo SET captions = ? WHERE id = ?", texts, photo)
        else:
            self.run("UPDATE photo SET stage = ?, reason = ? WHERE id = ?", WORDLESS, f"not described: {error}", photo)

    def record(self, found: Iterable[tuple[int, Finding]]) -> None:
        """Notes what was found of photos, by id."""
        self.many(
            "UPDATE photo SET stage = iif(? = '', NULL, ?), reason = nullif(?, ''), sha = ?, look = ? WHERE id = ?",
            ((f.fault, UNREADABLE, f.fault, f.sha, f.look, row) for row, f in found),
        )

    def must_keep_some(self) -> None:
        """Raises UserError when every photo was dropped."""
        if self.datasets:
            return
        stages = [stage for (stage,) in self.all("SELECT DISTINCT stage FROM photo WHERE stage IS NOT NULL")]
        dropped = next((problem for stage in stages for problem in self.dropped(stage)), None)
        why = ""
        if dropped:
            count = self.one(f"SELECT count(*) FROM photo WHERE {self.part_in(ours=True)}")
            why = f"; all {count} were dropped, such as {dropped.source}: {dropped.reason}"
        is_misplaced = dropped is None or "class folders" in dropped.reason
        origins = ", ".join(str(part.source.origin) for part in self._ours())
        advice = "; photos belong in one folder for each class" if is_misplaced else ""
        raise UserError(f"no photo to keep in {origins}{why}{advice}")

    # ---- what it says ----

    @property
    def datasets(self) -> dict[str, DatasetRecord]:
        """slug -> record of the datasets with photos that are kept, by slug; classes without one are left out."""
        return {part.slug: record for part, record in self.described()}

    def described(self) -> list[tuple[Part, DatasetRecord]]:
        """The parts that become datasets, with what is known of them, by slug."""
        return [(part, record) for part in self._ours() if (record := self.record_of(part)).classes]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """slug -> split -> number of photos that are kept."""
        counts = {slug: {} for slug in self.datasets}
        select = "SELECT part, split, count(*) FROM photo WHERE stage IS NULL GROUP BY part, split"
        for number, split, count in self.all(select):
            if self.parts[number].ours:
                counts[self.parts[number].slug][split] = count
        return counts

    @property
    def ignored(self) -> int:
        """Number of files that are no photos."""
        return sum(part.aside for part in self._ours())

    @property
    def problems(self) -> list[Problem]:
        """Photos that could not be used, and why."""
        return list(self.dropped(UNREADABLE))

    @property
    def notes(self) -> list[str]:
        """What a user should know: guessed names, classes without photos, what could not be compared with."""
        unread = "SELECT count(*) FROM photo WHERE part = ? AND stage IS NOT NULL"
        held = [(part, count) for part in self.parts if not part.ours and (count := self.one(unread, part.number))]
        return [
            *(note for part in self._ours() for note in self._notes(part)),
            *(
                f"{part.slug}, held out: {count} photos cannot be read, so none is compared with"
                for part, count in held
            ),
        ]

    def digest(self, slug: str, split: str | None = None, *, unlabelled: bool = True) -> tuple[tuple[str, ...], str]:
        """Of each photo of a dataset that is kept in a split, or in all, its split; and a hash of them all in order.

        The hash is of names, contents and own captions.

        Args:
          slug: of the dataset.
          split: None for all.
          unlabelled: whether photos without a label count.
        """
        (part,) = (part for part in self._ours() if part.slug == slug)
        digest, found = hashlib.sha256(), []
        for row in self._rows(part, split, wordless=False):
            if row.class_key or unlabelled:
                of, sha = self.all("SELECT split, sha FROM photo WHERE id = ?", row.id)[0]
                digest.update(json.dumps([row.class_key, row.path, row.captions]).encode() + sha)
                found.append(of)
        return tuple(found), digest.hexdigest()

    def dropped(self, stage: str, split: str | None = None) -> Iterator[Problem]:
        """The photos of a split, or of all, that a stage dropped, and why."""
        select = (
            "SELECT photo.part, photo.path, photo.reason, twin.part, twin.path FROM photo "
            "LEFT JOIN photo AS twin ON twin.id = photo.twin "
            "WHERE photo.stage = ? AND (? IS NULL OR photo.split = ?) ORDER BY photo.part, photo.path"
        )
        for number, path, reason, twin_part, twin_path in self.stream(select, stage, split, split):
            if self.parts[number].ours:
                other = "" if twin_path is None else f" {self.parts[twin_part].slug}/{twin_path}"
                yield Problem(f"{self.parts[number].slug}/{path}", reason + other)

    def skipped(self, stage: str) -> dict[str, int]:
        """slug -> how many photos a stage dropped."""
        counted = self.all("SELECT part, count(*) FROM photo WHERE stage = ? GROUP BY part", stage)
        return {self.parts[part].slug: count for part, count in counted if self.parts[part].ours}

    def unknown(self) -> list[str]:
        """The classes without a fact, as "dataset/class name"."""
        return [
            f"{slug}/{name}"
            for slug, record in self.datasets.items()
            for name in record.classes.values()
            if name and not (self.knowledge and self.knowledge.find(name, slug, record.domain))
        ]

    def class_captions(self, slug: str, record: DatasetRecord, key: str) -> list[tuple[str, str]]:
        """The captions of a class as (text, kind): templates, what it looks like, its lineage, rewritten ones."""
        name = record.classes[key]
        if not name:
            return []
        known = self.knowledge.captions(name, record.domain, slug) if self.knowledge else []
        lineage = taxonomy.captions(record.taxonomy[key]) if key in record.taxonomy else []
        return [
            *captions.captions(name, record.domain, slug),
            *((text, "knowledge") for text in known),
            *((text, "taxonomy") for text in lineage),
            *((text, "rewritten") for text in self.rewritten.get(f"{slug}/{key}", ())),
        ]

    def splits(self) -> dict[str, Callable[[], Iterator[Example]]]:
        """What `records.write` takes: split -> function giving its examples."""
        return {split: (lambda split=split: self.examples(split)) for split in splits.SPLITS}

    def examples(self, split: str | None = None) -> Iterator[Example]:
        """Streams the kept photos of a split, or all: by dataset, class and path; some sources have their own order.

        Raises:
          UserError: a photo that could be read before cannot be read any more.
        """
        for chunk in self.datasets_of(split):
            yield from chunk.examples()

    def datasets_of(self, split: str | None = None, *, wordless: bool = False) -> Iterator["Chunk"]:
        """The kept photos, a dataset at a time, its photos streamed; or those of them of which nothing is said."""
        for part, record in self.described():
            texts = {key: self.class_captions(part.slug, record, key) for key in record.classes}
            yield Chunk(part.source, part.slug, record, texts, self._rows(part, split, wordless))

    def chunks(self, split: str, most: int) -> Iterator["Chunk"]:
        """The kept photos in pieces of at most `most`, each with all it needs to be read on another machine.

        A source that can only be read from front to back is one piece.
        """
        for chunk in self.datasets_of(split):
            for rows in batched(chunk.rows, most if chunk.source.seekable else sys.maxsize):
                keys = {row.class_key for row in rows}
                record = replace(chunk.record, classes={key: chunk.record.classes[key] for key in keys}, taxonomy={})
                yield replace(chunk, record=record, texts={key: chunk.texts[key] for key in keys}, rows=rows)

    def pictures(self, photos: Collection[int]) -> dict[int, bytes]:
        """The bytes of some photos, by their numbers.

        Raises:
          UserError: a photo that could be read before cannot be read any more.
        """
        found = {}
        for part in self.parts:
            select = "SELECT id, path, place, class_key FROM photo WHERE part = ? AND id = ?"
            rows = [row for photo in sorted(photos) for row in self.all(select, part.number, photo)]
            wanted = [Row(number, path, json.loads(place), key, ()) for number, path, place, key in rows]
            record = DatasetRecord("other", {})
            found |= {row.id: data for row, data in Chunk(part.source, part.slug, record, {}, wanted).photos()}
        return found

    def _rows(self, part: Part, split: str | None, wordless: bool) -> Iterator[Row]:
        order = "id" if part.source.in_order else "class_key, path, id"
        select = (
            "SELECT id, path, place, class_key, captions FROM photo WHERE part = ? AND (? IS NULL OR split = ?) "
            f"AND {_IS_WORDLESS if wordless else 'stage IS NULL'} ORDER BY {order}"
        )
        for number, path, place, key, own in self.stream(select, part.number, split, split):
            yield Row(number, path, json.loads(place), key, tuple(map(tuple, json.loads(own or "[]"))))

    def _ours(self) -> list[Part]:
        return sorted((part for part in self.parts if part.ours), key=lambda part: part.slug)

    def record_of(self, part: Part) -> DatasetRecord:
        """What is known of a part, with the classes of which photos are kept."""
        about = part.about or {}
        lineages, commit = about.get("taxonomy", {}), about.get("commit", "")
        select = "SELECT DISTINCT class_key FROM photo WHERE part = ? AND stage IS NULL ORDER BY class_key"
        keys = [key for (key,) in self.all(select, part.number)]
        return DatasetRecord(
            domain=about.get("domain") or "other",
            classes={key: part.name_of(key) for key in keys},
            licence=about.get("license", ""),
            source=about.get("source", "") + (f"@{commit}" if commit else ""),
            templates=tuple(about.get("templates", ())),
            taxonomy={key: dict(lineages[key]) for key in keys if key in lineages},
            shares=splits.written(part.ratios),
        )

    def _notes(self, part: Part) -> Iterator[str]:
        keys = set(self.record_of(part).classes)
        if not keys:
            yield f"{part.slug}: {part.source.origin} holds no readable photo and is left out"
        elif part.about is None:
            names = "class names come from the folder names and " if any(keys) else ""
            yield f"{part.slug}: no metadata, so {names}the domain is 'other'"
        else:
            if part.named:
                yield f"{part.slug}: taken for {part.named.title}; what its metadata leaves out is from the catalogue"
            named = set(part.about.get("classes", {})) | set(part.about.get("taxonomy", {}))
            for key in sorted(keys - named - {""}):
                yield f"{part.slug}: class {key!r} is not in the metadata and is called {captions.words(key)!r}"
        for key in sorted(part.known - keys):
            yield f"{part.slug}: class {key!r} has no readable photo and is left out"

    # ---- the list ----

    def run(self, statement: str, *values: Any) -> None:
        """Runs a statement on the list."""
        with _disk_errors():
            self.ledger.execute(statement, values)

    def many(self, statement: str, rows: Iterable[tuple]) -> None:
        """Runs a statement on the list for each row."""
        for batch in batched(rows, _ROWS):
            with _disk_errors():
                self.ledger.executemany(statement, batch)

    def all(self, select: str, *values: Any) -> list[tuple]:
        """The rows of a query."""
        with _disk_errors():
            return self.ledger.execute(select, values).fetchall()

    def stream(self, select: str, *values: Any) -> Iterator[tuple]:
        """The rows of a query, a few at a time."""
        with _disk_errors():
            yield from self.ledger.execute(select, values)

    def one(self, select: str, *values: Any) -> Any:
        """The only value of a query."""
        return self.all(select, *values)[0][0]


def survey(
    sources: Sequence[Source],
    *,
    metadata: Mapping[str, dict] | None = None,
    ratios: Mapping[str, int] = splits.RATIOS,
    knowledge: Knowledge | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Survey:
    """Lists and reads sources.

    Args:
      sources: from `sources.find`.
      metadata, ratios: as of `Survey.add`.
      knowledge: facts that classes get captions from.
      progress: called with (photos done since the last call, photos in all).

    Raises:
      UserError: a source is damaged or climbs out of its folder, two have one name, or nothing can be kept.
    """
    found = Survey(knowledge)
    for source in sources:
        found.add(source, metadata=metadata, ratios=ratios)
    found.check(progress)
    found.drop_wordless()
    found.must_keep_some()
    return found


class _Listing:
    """Takes what a source gives apart into rows of the list and facts on the whole."""

    def __init__(self, part: int, ours: bool):
        self.part, self.ours, self.about, self.aside, self.keys = part, ours, {}, 0, set()

    def rows(self, items: Iterable[Item | Aside | Known | About]) -> Iterator[tuple]:
        """The rows of the list."""
        for thing in items:
            if isinstance(thing, Item):
                self.keys.add(thing.class_key)
                place = json.dumps(thing.place)
                texts = json.dumps([(text, "given") for text in thing.captions]) if thing.captions else None
                # A photo that is only compared with need not lie in a class.
                is_fault = thing.problem and (self.ours or thing.place is None)
                fault = (UNREADABLE, thing.problem) if is_fault else (None, None)
                yield (self.part, thing.path, place, thing.class_key, texts, *fault)
            elif isinstance(thing, About):
                self.about = thing.record
            elif isinstance(thing, Known):
                self.keys.add(thing.key)
            else:
                self.aside += 1


def _about(source: Source, metadata: Mapping[str, dict], inside: dict) -> dict | None:
    """What is known of a source, key by key: by the user, else by what lies beside it, else by what lies in it."""
    path = source.origin.parent / METADATA
    beside = read_metadata(path).get(source.slug, {}) if path.is_file() else {}
    records = (inside, beside, metadata.get(source.slug, {}))
    return {key: value for record in records for key, value in record.items() if value} if any(records) else None


def _named(slug: str, keys: Collection[str]) -> tuple[catalogue.Named | None, dict]:
    """The named dataset that a source is, by its name and all of its classes, and what the catalogue says of it."""
    named = catalogue.find(slug)
    names = {_plain(key): name for key, name in named.classes.items()} if named else {}
    if not keys or not all(_plain(key) in names for key in keys):
        return None, {}
    return named, {**catalogue.record(named), "name": slug, "classes": {key: names[_plain(key)] for key in keys}}


def _plain(key: str) -> str:
    return re.sub(r"[\W_]+", "", key.casefold())


def _together(about: dict | None) -> Callable[[str], str]:
    """What decides the split of a file's name: itself, or the group of photos that must stay together."""
    pattern = (about or {}).get("group", "")
    group = re.compile(pattern)

    def together(file: str) -> str:
        found = group.search(file) if pattern else None
        return (found.group(1) if group.groups else found.group()) or file if found else file

    return together


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if not any(word in str(error) for word in ("full", "disk", "open")):
            raise
        where = "give room in the folder that TMPDIR names"
        raise UserError(f"the list of photos cannot be kept ({error}); {where}") from error
