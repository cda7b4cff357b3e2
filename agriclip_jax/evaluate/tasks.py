"""What a model is asked: a dataset's photos, its class names as people say them, and templates to put them in.

A user adds a task by a folder, nothing else: `load_tasks` turns what was typed into tasks. What is known of a task
beyond its folder stands in a task file (`taskfiles.py`). A task streams its photos and holds none of them.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import accumulate, chain
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from agriclip_jax.data import captions, corpus, knowledge, sources, splits, taxonomy
from agriclip_jax.data import survey as surveys
from agriclip_jax.data.records import Alive, DatasetRecord
from agriclip_jax.data.splits import SPLITS
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.evaluate import taskfiles
from agriclip_jax.evaluate.taskfiles import TaskFile
from agriclip_jax.files import read_record

EMBEDDED, UNSEEN = "embedded", "embedded, unseen combinations"
IN_DOMAIN, DOWNSTREAM = "in-domain", "downstream"
ALL = "all"  # the split that is everything
OWN = ("given", "described")  # kinds of captions that belong to an image and not to its class
TASK_FILE = "task.yaml"  # in a folder of photos: the task file that it is asked by
SINGLE, ENSEMBLE, OWN_PROMPTS, DESCRIPTIONS, PAPER = "single", "ensemble", "per class", "descriptions", "paper"


class Photo(NamedTuple):
    """An image to classify or to find.

    Attributes:
      image: encoded bytes.
      label: index of its class; -1 without one.
      source: path in its source.
      captions: its own ones.
    """

    image: bytes
    label: int
    source: str
    captions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """What is asked about a dataset's photos.

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
      fingerprint: equal for equal photos in equal order.
      spec: what was typed for it.
      own_prompts: for each class its whole prompts, of a task file that gives them; else empty.
      paper_prompts: for each class the prompts of the original, verbatim; empty where unknown.
      ranks: rank -> the group of each class ("genus", "health", ...); of ranks that tell some classes apart.
      splits: of the split "all", the split of each photo, in their order.
      lineages: class key -> its names by rank, as far as they are known.
      mismatch: why the photos are not those of the task file that they are asked by; such a task is not scored.
      at: function that asks the same of another split.
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
    fingerprint: str = ""
    spec: str = ""
    own_prompts: tuple[tuple[str, ...], ...] = ()
    paper_prompts: tuple[tuple[str, ...], ...] = ()
    ranks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    splits: tuple[str, ...] = field(default=(), repr=False)
    lineages: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    mismatch: str = ""
    at: Callable[[str], "Task"] | None = field(default=None, repr=False)

    @property
    def phrases(self) -> list[str]:
        """The classes as noun phrases, as templates take them: "a coffee leaf with rust"."""
        return [captions.class_phrase(name, self.name, self.domain) for name in self.class_names]

    def prompts(self) -> list[list[str]]:
        """For each class, its whole prompts where a task file gives them, else its phrase in every template."""
        return [list(texts) for texts in self.own_prompts] or self._filled()

    def _filled(self) -> list[list[str]]:
        return [[captions.fill(template, phrase) for template in self.templates] for phrase in self.phrases]

    def prompt_kinds(self) -> dict[str, list[list[str]]]:
        """Kind of prompts -> for each class its prompts; the first kind is that of `prompts`.

        "per class" are a task file's whole prompts, "ensemble" all templates and "single" the first alone; where they
        are known, "paper" are the original's prompts, and "descriptions" what a class looks like, from the table of
        facts (a class without a fact keeps its templates).
        """
        ensemble, own = self._filled(), [list(texts) for texts in self.own_prompts]
        kinds = {OWN_PROMPTS: own} if own else {}
        kinds |= {ENSEMBLE: ensemble, SINGLE: [texts[:1] for texts in ensemble]}
        table = knowledge.table()
        facts = [table.captions(name, self.domain, self.name) for name in self.class_names]
        if any(facts):
            kinds[DESCRIPTIONS] = [known or texts for known, texts in zip(facts, ensemble, strict=True)]
        if self.paper_prompts:
            kinds[PAPER] = [list(texts) for texts in self.paper_prompts]
        return kinds


def load_tasks(
    spec: str,
    *,
    split: str | None = None,
    templates: Sequence[str] = (),
    meta: Path | str | None = None,
    seen: Mapping[str, str] = MappingProxyType({}),
    unlabelled: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> list[Task]:
    """Tasks from what a user typed.

    Args:
      spec: PATHs with commas between them: class-per-folder trees, archives of one, globs, folders of archives, ALive
        folders (one task a dataset), folders of CLIP_benchmark; or the word "embedded" for the corpus the project
        draws. NAME=PATH asks the photos by the task file of that name, or by a user's own, FILE.yaml=PATH.
      split: "train", "val", "test" or "all". None: an ALive folder's "test"; CLIP_benchmark's "test", or the split that
        the task file names where the folder has it; of photos, which have only splits of our own, the whole set, but
        "test" of a dataset in `seen`, so that no model is asked what it was trained on.
      templates: instead of those of the metadata, task file or domain.
      meta: a JSON list of metadata records.
      seen: datasets that the model was trained on and how they were split, as from `seen_datasets`; their tasks are
        "in-domain", others "downstream".
      unlabelled: whether photos without a label are part of a task, for retrieval.
      say: called with each line a user should know: guessed names, classes without photos.

    Raises:
      UserError: a path, split or task file does not exist, a template has no `{}`, nothing in a path can be a task, or
        two tasks have one name.
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
        asked_by, place = _asked_by(part)
        path = Path(place).expanduser()
        if place == EMBEDDED and not path.exists():
            path = corpus.ensure()
        if (path / "alive.json").is_file() or (path / "dataset_info.json").is_file():
            alive = Alive.open(path)
            found = from_alive(alive, split or "test", templates=templates, seen=seen, unlabelled=unlabelled)
        else:
            found = list(_from_photos(place, split, templates, metadata, seen, unlabelled, asked_by, say))
        tasks += [replace(_asked(task, asked_by, templates, say), spec=part) for task in found]
    if known := [task.name for task in tasks if split is None and task.group == IN_DOMAIN]:
        say(f"only the test split is asked of what the model was trained on (--split=all asks all): {', '.join(known)}")
    if not tasks:
        raise UserError(f"--tasks={spec} names nothing; give a folder of class folders, an archive, or 'embedded'")
    name, count = Counter(task.name for task in tasks).most_common(1)[0]
    if count > 1:
        raise UserError(f"--tasks={spec} asks {name!r} twice; give it once, or rename a folder")
    return tasks


def known_classes(workdir: Path | str) -> list[dict[str, str]]:
    """What a run was trained on: records of dataset, domain, class_key and class_name; none when it does not say."""
    file = Path(workdir) / "classes.json"
    known, keys = read_record(file) if file.is_file() else [], {"dataset", "domain", "class_key", "class_name"}
    if not (isinstance(known, list) and all(isinstance(record, dict) and keys <= record.keys() for record in known)):
        raise UserError(f"{file} is damaged; restore it, or train anew")
    return known


def seen_datasets(*known: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Slugs of the datasets that models were trained on -> the shares by which their photos were split.

    Args:
      known: of each model, as from `known_classes`. Of shares that differ those with the smallest test split: test
        comes first in one order of the photos, so what is in it is in the others' too.
    """
    found: dict[str, set[str]] = {}
    for each in chain(*known):
        found.setdefault(each["dataset"], set()).add(each.get("shares", splits.SHARES))
    test = lambda shares: (splits.parse_ratios(shares).get("test", 0), shares)  # noqa: E731
    return {slug: min(shares, key=test) for slug, shares in found.items()}


def from_alive(
    alive: Alive,
    split: str,
    *,
    templates: Sequence[str] = (),
    seen: Collection[str] | None = None,
    unlabelled: bool = False,
) -> list[Task]:
    """One task for each dataset of an ALive folder that has labels.

    Args:
      alive: the opened folder.
      split: one of its splits, or "all".
      templates: instead of those of the dataset or its domain.
      seen: slugs of the datasets the model was trained on; None: all of this folder.
      unlabelled: whether photos without a label are part of a task, and datasets without one tasks.

    Raises:
      UserError: the folder has no such split.
    """
    found = {name: alive.source(name) for name in (alive.splits if split == ALL else (split,))}
    asked = {slug: record for slug, record in alive.datasets.items() if unlabelled or any(record.classes)}
    places, splits, bare = {slug: [] for slug in asked}, {slug: [] for slug in asked}, set()
    for name, source in found.items():
        for row in range(len(source)):
            slug, _, key = alive.classes[source[row]["label"]].partition("/")
            if key or unlabelled:
                places[slug].append((source, row))
                splits[slug].append(name)
                bare |= set() if key else {slug}
    # Where the labels of each dataset begin; the class without a name, of images without a label, sorts first.
    first = {slug: start + ("" in alive.datasets[slug].classes) for slug, start in _starts(alive).items()}

    def stream(slug: str) -> Iterator[Photo]:
        for source, row in places[slug]:
            example = source[row]
            own = _own(example["captions"], example["caption_kinds"])
            yield Photo(example["image"], example["label"] - first[slug], example["source"], own)

    @cache
    def elsewhere(split: str) -> dict[str, Task]:
        tasks = from_alive(alive, split, templates=templates, seen=seen, unlabelled=unlabelled)
        return {task.name: task for task in tasks}

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
            fingerprint=f"{alive.fingerprint}/{slug}" + ("+" if slug in bare else ""),
            splits=tuple(splits[slug]) if split == ALL else (),
            lineages=record.taxonomy,
            ranks=_ranks(record),
            at=lambda split, slug=slug: elsewhere(split)[slug],
        )
        for slug, record in asked.items()
    ]


def _own(texts: Sequence[str], kinds: Sequence[str]) -> tuple[str, ...]:
    """The captions that belong to an image and not to its class."""
    return tuple(text for text, kind in zip(texts, kinds, strict=True) if kind in OWN)


def _starts(alive: Alive) -> dict[str, int]:
    """Where each dataset's classes begin in the global list."""
    sizes = [len(record.classes) for record in alive.datasets.values()]
    return dict(zip(alive.datasets, accumulate([0, *sizes]), strict=False))


def _group(slug: str, seen: Collection[str]) -> str:
    if slug in corpus.datasets():
        return UNSEEN if slug == corpus.UNSEEN else EMBEDDED
    return IN_DOMAIN if slug in seen else DOWNSTREAM


def _from_photos(
    place: str,
    split: str | None,
    templates: Sequence[str],
    metadata: dict[str, dict],
    seen: Mapping[str, str],
    unlabelled: bool,
    asked_by: TaskFile | None,
    say: Callable[[str], None],
) -> Iterator[Task]:
    """One task for each class-per-folder tree or archive that `place` names, or for a folder of CLIP_benchmark."""
    path = Path(place).expanduser()
    if (path / taskfiles.CLASS_NAMES).is_file():
        yield _from_benchmark(path, split, templates, seen, asked_by)
        return
    for source in sources.find([place], flag="--tasks"):
        survey = surveys.survey([source], metadata=metadata)
        ((slug, record),) = survey.datasets.items()
        if (shares := seen.get(slug, record.shares)) != record.shares:
            survey = surveys.survey([source], metadata=metadata, ratios=splits.parse_ratios(shares))
        for line in survey.notes:
            if not asked_by:  # a task file knows the names that are guessed without one
                say(line)
        of_split = split or ("test" if slug in seen else ALL)
        yield _surveyed(survey, slug, record, _group(slug, seen), tuple(templates), unlabelled, of_split)


def _surveyed(
    survey: surveys.Survey,
    slug: str,
    record: DatasetRecord,
    group: str,
    templates: tuple[str, ...],
    unlabelled: bool,
    split: str,
) -> Task:
    one = None if split == ALL else split
    keys = tuple(filter(None, record.classes))
    splits, fingerprint = survey.digest(slug, one, unlabelled=unlabelled)
    labels = {key: label for label, key in enumerate(keys)} | {"": -1}

    def stream() -> Iterator[Photo]:
        for example in survey.examples(one):
            if example.class_key or unlabelled:
                own = _own(example.captions, example.caption_kinds)
                yield Photo(example.image, labels[example.class_key], example.source, own)

    return Task(
        name=slug,
        group=group,
        domain=record.domain,
        split=split,
        class_keys=keys,
        class_names=tuple(record.classes[key] for key in keys),
        templates=templates or record.templates or captions.templates(record.domain),
        count=len(splits),
        photos=stream,
        unreadable=tuple(survey.dropped(surveys.UNREADABLE, one)),
        fingerprint=fingerprint,
        splits=splits if split == ALL else (),
        lineages=record.taxonomy,
        ranks=_ranks(record),
        at=partial(_surveyed, survey, slug, record, group, templates, unlabelled),
    )


def _from_benchmark(
    path: Path, split: str | None, templates: Sequence[str], seen: Collection[str], asked_by: TaskFile | None
) -> Task:
    """The task of a folder of CLIP_benchmark: all of its class names are offered, also those without a photo."""
    folder = taskfiles.benchmark_folder(path)
    of_original = asked_by.split if asked_by and asked_by.split in folder.splits else "test"

    @cache
    def at(split: str) -> Task:
        if split not in folder.splits:
            raise UserError(f"{path} has no split {split!r}; it has: {', '.join(folder.splits)}")
        survey = surveys.survey([folder.splits[split]])
        ((slug, record),) = survey.datasets.items()
        record = replace(record, classes=dict(folder.classes), templates=folder.templates)
        task = _surveyed(survey, slug, record, _group(slug, seen), tuple(templates), False, ALL)
        return replace(task, split=split, splits=(), at=at)

    return at(split or of_original)


# ---- asked by a task file --------------------------------------------------------------------------------------------


def _asked_by(part: str) -> tuple[TaskFile | None, str]:
    """The task file that NAME=PATH names, or that lies in the folder, and the PATH."""
    name, separator, place = part.partition("=")
    is_file = name.endswith((".yaml", ".yml"))
    if separator and not Path(part).expanduser().exists() and (is_file or re.fullmatch(r"[\w -]+", name)):
        return (taskfiles.read(Path(name).expanduser()) if is_file else taskfiles.find(name)), place
    inside = Path(part).expanduser() / TASK_FILE
    return (taskfiles.read(inside) if inside.is_file() else None), part


def _asked(
    task: Task, by: TaskFile | None, templates: Sequence[str], say: Callable[[str], None] = lambda line: None
) -> Task:
    """The task as its file has it: names, prompts and ranks; or with what is wrong, and then it is not scored."""
    if by is None:
        return task
    at = task.at and (lambda split: _asked(task.at(split), by, templates))
    if mismatch := taskfiles.mismatch(by, task.class_keys, {}):
        return replace(task, name=by.name, mismatch=mismatch, at=at)
    if note := taskfiles.images_note(by, {"": task.count}):
        say(note)
    keys = taskfiles.pairs(by, task.class_keys)
    of = [keys.get(key, "") for key in task.class_keys]

    def prompts(paper: bool) -> tuple[tuple[str, ...], ...]:
        named = [
            (key or folder, task.lineages.get(folder, {})) for key, folder in zip(of, task.class_keys, strict=True)
        ]
        try:
            return tuple(tuple(taskfiles.class_prompts(by, key, paper=paper, taxon=taxon)) for key, taxon in named)
        except UserError as error:
            say(f"not asked by the original's prompts: {error}")
            return ()

    return replace(
        task,
        name=by.name,
        domain=by.domain,
        class_names=tuple(by.classes[key] for key in of) if by.classes else task.class_names,
        templates=tuple(templates) or by.templates or captions.templates(by.domain),
        own_prompts=prompts(paper=False) if by.prompts else (),
        paper_prompts=prompts(paper=True) if by.paper_templates else (),
        ranks={**task.ranks, **{rank: tuple(group[key] for key in of) for rank, group in by.hierarchy.items()}},
        at=at,
    )


def _ranks(record: DatasetRecord) -> Mapping[str, tuple[str, ...]]:
    """What the classes can be rolled up to: the ranks of their lineages, and healthy or sick."""
    keys = tuple(filter(None, record.classes))
    lineages = [record.taxonomy.get(key, {}) for key in keys]
    ranks = {rank: tuple(lineage.get(rank, "") for lineage in lineages) for rank in (*taxonomy.RANKS, "supercategory")}
    is_healthy = ["healthy" in record.classes[key].casefold().split() for key in keys]
    ranks["health"] = tuple("healthy" if healthy else "sick" for healthy in is_healthy)
    return MappingProxyType(
        {rank: groups for rank, groups in ranks.items() if all(groups) and 1 < len(set(groups)) < len(groups)}
    )
