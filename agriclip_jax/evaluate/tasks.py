"""What a model is asked: a dataset's photos, its class names as people say them, and templates to put them in.

A user adds a task by a folder, nothing else: `load_tasks` turns what was typed into tasks. A task streams its photos
and holds none of them.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from agriclip_jax.data import captions, corpus, sources
from agriclip_jax.data import survey as surveys
from agriclip_jax.data.records import Alive, DatasetRecord
from agriclip_jax.data.splits import SPLITS
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import read_record

EMBEDDED, UNSEEN = "embedded", "embedded, unseen combinations"
IN_DOMAIN, DOWNSTREAM = "in-domain", "downstream"
ALL = "all"  # the split that is everything


class Photo(NamedTuple):
    """An image to classify: encoded bytes, index of its class, path in its source."""

    image: bytes
    label: int
    source: str


@dataclass(frozen=True)
class Task:
    """A zero-shot classification task.

    Attributes:
      name: slug of its dataset: "coffee_leaf".
      group: tasks of one group share a mean: "in-domain" (the model was trained on other photos of the dataset),
        "downstream" (it was not), "embedded" and "embedded, unseen combinations" (the corpus the project draws).
      domain: "crop", ..., "other".
      split: "train", "val", "test" or "all".
      class_keys: folder names.
      class_names: as people say them, parallel to `class_keys`; labels index both.
      templates: prompts with `{}`.
      count: number of photos.
      photos: function that streams them, in the same order each time.
      unreadable: (source, why) of photos found broken when the task was opened; `count` leaves them out.
    """

    name: str
    group: str
    domain: str
    split: str
    class_keys: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    count: int
    photos: Callable[[], Iterator[Photo]] = field(repr=False)
    unreadable: tuple[tuple[str, str], ...] = ()

    @property
    def phrases(self) -> list[str]:
        """The classes as noun phrases, as templates take them: "a coffee leaf with rust"."""
        return [captions.class_phrase(name, self.name, self.domain) for name in self.class_names]

    def prompts(self) -> list[list[str]]:
        """For each class, its phrase in every template."""
        return [[captions.fill(template, phrase) for template in self.templates] for phrase in self.phrases]


def load_tasks(
    spec: str,
    *,
    split: str | None = None,
    templates: Sequence[str] = (),
    meta: Path | str | None = None,
    seen: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> list[Task]:
    """Tasks from what a user typed.

    Args:
      spec: PATHs with commas between them: class-per-folder trees, archives of one, globs, folders of archives, ALive
        folders (one task a dataset); or the word "embedded" for the corpus the project draws.
      split: "train", "val", "test" or "all". None: an ALive folder's "test"; of photos the whole set, but "test" of a
        dataset in `seen`, so that no model is asked what it was trained on.
      templates: instead of those of the metadata or the domain.
      meta: a JSON list of metadata records.
      seen: slugs of the datasets the model was trained on; their tasks are "in-domain", others "downstream".
      say: called with each line a user should know: guessed names, classes without photos.

    Raises:
      UserError: a path or split does not exist, a template has no `{}`, or nothing in a path can be a task.
    """
    if split not in (None, ALL, *SPLITS):
        raise UserError(f"--split={split}: unknown split{near_misses(split, (ALL, *SPLITS))}")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(f"--template={template!r} needs one {{}}, where the class goes; as in 'a photo of {{}}'")
    metadata = sources.read_metadata(meta) if meta else {}
    parts = [spec] if os.path.exists(Path(spec).expanduser()) else [part.strip() for part in spec.split(",")]
    tasks = []
    for part in filter(None, parts):
        path = Path(part).expanduser()
        if part == EMBEDDED and not path.exists():
            path = corpus.ensure()
        if (path / "alive.json").is_file() or (path / "dataset_info.json").is_file():
            tasks += from_alive(Alive.open(path), split or "test", templates=templates, seen=seen)
        else:
            tasks += _from_photos(part, split, templates, metadata, seen, say)
    if not tasks:
        raise UserError(f"--tasks={spec} names nothing; give a folder of class folders, an archive, or 'embedded'")
    return tasks


def known_classes(workdir: Path | str) -> list[dict[str, str]]:
    """What a run was trained on: records of dataset, domain, class_key and class_name; none when it does not say."""
    file = Path(workdir) / "classes.json"
    known, keys = read_record(file) if file.is_file() else [], {"dataset", "domain", "class_key", "class_name"}
    if not (isinstance(known, list) and all(isinstance(record, dict) and keys <= record.keys() for record in known)):
        raise UserError(f"{file} is damaged; restore it, or train anew")
    return known


def from_alive(
    alive: Alive, split: str, *, templates: Sequence[str] = (), seen: Collection[str] | None = None
) -> list[Task]:
    """One task for each dataset of an ALive folder that has labels.

    Args:
      alive: the opened folder.
      split: one of its splits, or "all".
      templates: instead of those of the dataset or its domain.
      seen: slugs of the datasets the model was trained on; None: all of this folder.

    Raises:
      UserError: the folder has no such split.
    """
    found = [alive.source(name) for name in (alive.splits if split == ALL else (split,))]
    labelled = {slug: record for slug, record in alive.datasets.items() if any(record.classes)}
    places = {slug: [] for slug in labelled}
    for source in found:
        for row in range(len(source)):
            slug, _, key = alive.classes[source[row]["label"]].partition("/")
            if key:
                places[slug].append((source, row))
    # Where the labels of each dataset begin; the class without a name, of images without a label, sorts first.
    first = {slug: start + ("" in alive.datasets[slug].classes) for slug, start in _starts(alive).items()}

    def stream(slug: str) -> Iterator[Photo]:
        for source, row in places[slug]:
            example = source[row]
            yield Photo(example["image"], example["label"] - first[slug], example["source"])

    return [
        Task(
            name=slug,
            group=_group(slug, alive.datasets if seen is None else seen),
            domain=record.domain,
            split=split,
            class_keys=tuple(filter(None, record.classes)),
            class_names=tuple(filter(None, record.classes.values())),
            templates=tuple(templates) or tuple(record.templates) or captions.templates(record.domain),
            count=len(places[slug]),
            photos=partial(stream, slug),
        )
        for slug, record in labelled.items()
    ]


def _starts(alive: Alive) -> dict[str, int]:
    """Where each dataset's classes begin in the global list."""
    sizes = [len(record.classes) for record in alive.datasets.values()]
    return dict(zip(alive.datasets, accumulate([0, *sizes]), strict=False))


def _group(slug: str, seen: Collection[str]) -> str:
    if slug in corpus.datasets():
        return UNSEEN if slug == corpus.UNSEEN else EMBEDDED
    return IN_DOMAIN if slug in seen else DOWNSTREAM


def _from_photos(
    part: str,
    split: str | None,
    templates: Sequence[str],
    metadata: dict[str, dict],
    seen: Collection[str],
    say: Callable[[str], None],
) -> Iterator[Task]:
    """One task for each class-per-folder tree or archive that `part` names."""
    for source in sources.find([part], flag="--tasks"):
        survey = surveys.survey([source], metadata=metadata)
        for line in survey.notes:
            say(line)
        ((slug, record),) = survey.datasets.items()
        of_split = split or ("test" if slug in seen else ALL)
        if split is None and slug in seen:
            say(f"{slug}: the model was trained on it, so only its test split is asked; --split=all asks all")
        in_split = survey.counts[slug]
        yield Task(
            name=slug,
            group=_group(slug, seen),
            domain=record.domain,
            split=of_split,
            class_keys=tuple(record.classes),
            class_names=tuple(record.classes.values()),
            templates=tuple(templates) or record.templates or captions.templates(record.domain),
            count=sum(in_split.values()) if of_split == ALL else in_split.get(of_split, 0),
            photos=partial(_stream, survey, record, None if of_split == ALL else of_split),
            unreadable=tuple(survey.dropped(surveys.UNREADABLE, None if of_split == ALL else of_split)),
        )


def _stream(survey: surveys.Survey, record: DatasetRecord, split: str | None) -> Iterator[Photo]:
    labels = {key: label for label, key in enumerate(record.classes)}
    for example in survey.examples(split):
        yield Photo(example.image, labels[example.class_key], example.source)
