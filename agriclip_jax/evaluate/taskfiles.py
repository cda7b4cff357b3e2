"""Task files: what a classification task is, so that a number that was published can be had again.

Classes, prompts, split and counts stand in YAML: the files in `named/` are families of known tasks, each a list of
entries with the fields of `TaskFile`, and a user's own file is one entry. Facts only: what no source states is named
under `unknown`. A folder that CLIP_benchmark exported says the same in its own way, and is read as it is.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from itertools import chain
from pathlib import Path
from string import Formatter
from types import MappingProxyType

from agriclip_jax.data import captions, catalogue, corpus, taxonomy
from agriclip_jax.data.sources.base import About, Aside, Item, Known
from agriclip_jax.data.sources.files import Tar, children
from agriclip_jax.data.sources.samples import Samples
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import read_yaml

NAMED = Path(__file__).parent / "named"
MAX_BYTES = 8 << 20  # of a file
MAX_TEMPLATES = 1000
MAX_SHARDS = 100_000
SPLITS = ("all", "test", "val", "train")
UNKNOWN = ("class names", "images", "prompts", "source", "split")  # what may be unknown of a task
NAME_FIELDS = ("folder", "lower", "common_name", "supercategory", *taxonomy.RANKS, "specific_epithet")
COLUMNS = ("name", "domain", "classes", "images", "unknown")  # of `table`

CLASS_NAMES = "classnames.txt"  # what a folder of CLIP_benchmark has, and no other
_TEMPLATES = "zeroshot_classification_templates.txt"
_FEW = 5  # classes named in a message
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class TaskFile:
    """A classification task.

    Attributes:
      name: slug, which no other has.
      title: as people call it.
      domain: from `catalogue.DOMAINS`.
      dataset: slug of the entry of the catalogue, or of the dataset of the embedded corpus, that gives title, domain,
        classes and, of the split "all", images where the file does not; source and licence are there. May be empty.
      classes: folder -> name as people say it; two spellings of one folder share a name. Empty where they are unknown
        or come with the photos.
      templates: prompts with one `{}` for a class; empty: those of the domain.
      paper_templates: the original's, verbatim; empty where unknown. A file may give these and `templates` as
        {patterns: [...], nouns: [...]}: every noun in place of `{noun}` in every pattern.
      paper_names: how the original wrote a class, a text with `NAME_FIELDS` in braces; "lower" is the folder in lower
        case, with spaces for "_" and "/".
      prompts: folder -> whole prompts (as CuPL has them), instead of templates.
      split: which of the original's photos are its `images`, from `SPLITS`; empty where unknown. Of what is read here
        only a folder of CLIP_benchmark keeps the original's splits, and is asked by this one; others are split by our
        own hash, and there the photos at hand are meant.
      split_means: in words.
      classes_count: how many classes; None where unknown.
      images: how many photos the split has; None where unknown.
      hierarchy: rank -> folder -> group, such as {"crop": {"bean_rust": "bean"}}; a file gives each group its folders:
        {crop: {bean: [bean_rust, healthy]}}.
      citation: authors, year, title and where, in a line.
      unknown: what is not known, from `UNKNOWN`.
      notes: what else there is to know.
    """

    name: str
    title: str
    domain: str
    dataset: str
    classes: Mapping[str, str]
    templates: tuple[str, ...]
    paper_templates: tuple[str, ...]
    paper_names: str
    prompts: Mapping[str, tuple[str, ...]]
    split: str
    split_means: str
    classes_count: int | None
    images: int | None
    hierarchy: Mapping[str, Mapping[str, str]]
    citation: str
    unknown: tuple[str, ...]
    notes: str


# ---- what is known ---------------------------------------------------------------------------------------------------


@cache
def shipped() -> tuple[TaskFile, ...]:
    """The tasks that the project knows, by file and in the order there."""
    return tuple(task for path in sorted(NAMED.glob("*.yaml")) for task in _tasks(path))


def find(name: str) -> TaskFile:
    """The task of that name; case, spaces, "-" and "_" do not matter.

    Raises:
      UserError: the project knows none.
    """
    known = {_plain(task.name): task for task in shipped()}
    if _plain(name) not in known:
        raise UserError(f"no task {name!r} is known{near_misses(name, (task.name for task in shipped()))}")
    return known[_plain(name)]


def read(path: Path | str) -> TaskFile:
    """The task of a user's own file.

    Raises:
      UserError: it cannot be read, or is not one entry as `TaskFile` says.
    """
    tasks = _tasks(Path(path))
    if len(tasks) != 1:
        raise UserError(f"the tasks {path}: it holds {len(tasks)} tasks, and a file of your own is to hold one")
    return tasks[0]


def table() -> list[tuple[str, ...]]:
    """A row of `COLUMNS` for each task that is shipped."""
    return [
        (
            task.name,
            task.domain,
            f"{task.classes_count:,}" if task.classes_count else "?",
            f"{task.images:,}" if task.images else "?",
            ", ".join(task.unknown),
        )
        for task in shipped()
    ]


# ---- a task and the photos at hand -----------------------------------------------------------------------------------


def pairs(task: TaskFile, class_keys: Iterable[str]) -> dict[str, str]:
    """The keys of the photos' classes -> those of the task, of the classes that both have.

    Case, spaces, "-" and "_" do not matter.
    """
    known = {_plain(key): key for key in task.classes}
    return {key: known[_plain(key)] for key in class_keys if _plain(key) in known}


def mismatch(task: TaskFile, class_keys: Iterable[str], counts: Mapping[str, int]) -> str:
    """Why photos are not those of a task: "" when their classes are exactly the task's, as `pairs` finds them.

    Args:
      task: what is asked.
      class_keys: of the photos; an empty one, of photos without a label, does not count.
      counts: class key -> how many photos, as far as known.

    Returns:
      One line with the classes that are missing, those that are none of the task's, and those that are there twice.
    """
    keys = list(dict.fromkeys(filter(None, class_keys)))
    if not task.classes:
        differ = task.classes_count is not None and task.classes_count != len(keys)
        return f"{task.name} has {task.classes_count:,} classes, and the photos {len(keys):,}" if differ else ""
    paired = pairs(task, keys)
    folders: dict[str, list[str]] = {name: [] for name in task.classes.values()}
    for key, of_task in paired.items():
        folders[task.classes[of_task]].append(key)
    first = {name: key for key, name in reversed(task.classes.items())}
    missing = [repr(first[name]) for name, found in folders.items() if not found]
    extra = [repr(key) + (f" ({counts[key]:,} photos)" if key in counts else "") for key in keys if key not in paired]
    twice = [" and ".join(map(repr, found)) for found in folders.values() if len(found) > 1]
    told = [
        f"{len(missing)} of {len(folders)} classes are missing: {_few(missing)}" if missing else "",
        f"{len(extra)} of the photos' classes are none of them: {_few(extra)}" if extra else "",
        f"several folders are one class: {_few(twice)}" if twice else "",
    ]
    return f"{task.name}: {'; '.join(filter(None, told))}" if any(told) else ""


def images_note(task: TaskFile, counts: Mapping[str, int]) -> str:
    """A line when there are more or fewer photos than the task's split has; "" when not, or when that is unknown."""
    found = sum(counts.values())
    if task.images in (None, found):
        return ""
    of_split = f" ({task.split_means})" if task.split_means else ""
    return f"{task.name}: {found:,} photos, where the original has {task.images:,}{of_split}"


def class_prompts(task: TaskFile, key: str, *, paper: bool = False, taxon: Mapping[str, str] = _NOTHING) -> list[str]:
    """The prompts of a class: its whole ones, else its phrase in every template.

    Args:
      task: with the class, unless `paper`.
      key: of the task's class; with `paper` and no classes, the folder.
      paper: the original's prompts, verbatim; none where they are unknown.
      taxon: what the photos' source says of the class, by rank; for names such as "{common_name} {genus}".

    Raises:
      UserError: the original's prompts name a rank that `taxon` lacks.
    """
    if paper:
        name = _paper_name(task, key, taxon) if task.paper_templates else ""
        return [template.replace("{}", name) for template in task.paper_templates]
    if task.prompts:
        return list(task.prompts[key])
    phrase = captions.class_phrase(task.classes[key], task.dataset or task.name, task.domain)
    return [captions.fill(template, phrase) for template in task.templates or captions.templates(task.domain)]


def _paper_name(task: TaskFile, key: str, taxon: Mapping[str, str]) -> str:
    genus, species = taxon.get("genus", ""), taxonomy.scientific_name(taxon)
    known = {
        **taxon,
        "folder": key,
        "lower": re.sub("[_/]", " ", key).lower(),
        "common_name": taxon.get("common_name") or species,
        "specific_epithet": species.removeprefix(genus).strip(),
    }
    for _, field, _, _ in Formatter().parse(task.paper_names):
        if field is not None and not known.get(field):
            raise UserError(
                f"{task.name}: class {key!r} has no {field}, which the original's prompts name; "
                "name the table of categories (?categories=FILE)"
            )
    return task.paper_names.format_map(known)


def _plain(key: str) -> str:
    return re.sub(r"[\s_-]+", "", key.casefold())


def _few(words: list[str]) -> str:
    more = f" and {len(words) - _FEW:,} more" if len(words) > _FEW else ""
    return ", ".join(words[:_FEW]) + more


# ---- reading a file --------------------------------------------------------------------------------------------------


def _tasks(path: Path) -> list[TaskFile]:
    content = read_yaml(path, "the tasks", MAX_BYTES)
    if isinstance(content, dict):
        return [_task(content, f"the tasks {path}")]
    if not isinstance(content, list):
        raise UserError(f"the tasks {path} are no entry with name, title and domain, nor a list of such")
    return [_task(entry, f"the tasks {path}, entry {number}") for number, entry in enumerate(content, 1)]


def _task(entry: object, where: str) -> TaskFile:
    if not isinstance(entry, dict) or not _is_text(entry.get("name")) or not _is_slug(entry["name"]):
        raise UserError(f"{where}: it has no name of small letters, digits and '_'")
    where = f"{where} ({entry['name']})"
    names = [field.name for field in fields(TaskFile)]
    if wrong := sorted(map(str, entry.keys() - set(names))):
        raise UserError(f"{where}: unknown key {wrong[0]!r}{near_misses(wrong[0], names)}")
    texts = dict.fromkeys(("title", "domain", "dataset", "split", "split_means", "citation", "notes"), "")
    lists = {"templates": [], "paper_templates": [], "unknown": []}
    tables = {"classes": {}, "prompts": {}, "hierarchy": {}}
    entry = texts | lists | tables | {"paper_names": "{folder}", "classes_count": None, "images": None} | entry
    fault = _dataset_fault(entry["dataset"])
    if not fault:
        entry = _completed(entry)
        fault = _fault(entry) or _disagreement(entry)
    if fault:
        raise UserError(f"{where}: {fault}")
    return TaskFile(
        **entry
        | {
            "classes": MappingProxyType(entry["classes"]),
            "prompts": MappingProxyType({key: tuple(texts) for key, texts in entry["prompts"].items()}),
            "hierarchy": MappingProxyType({rank: _by_folder(groups) for rank, groups in entry["hierarchy"].items()}),
            "templates": tuple(entry["templates"]),
            "paper_templates": tuple(entry["paper_templates"]),
            "unknown": tuple(entry["unknown"]),
            "classes_count": entry["classes_count"] or len(set(entry["classes"].values())) or None,
        }
    )


def _dataset_fault(slug: object) -> str:
    if not isinstance(slug, str):
        return "dataset must be a text"
    if not slug or catalogue.find(slug) or slug in corpus.datasets():
        return ""
    known = (*(named.name for named in catalogue.shipped()), *corpus.datasets())
    return f"dataset {slug!r} is not in the catalogue{near_misses(slug, known)}"


def _completed(entry: dict) -> dict:
    """The entry with what its dataset says where it says nothing, and patterns written out."""
    dataset = catalogue.find(entry["dataset"]) or corpus.datasets().get(entry["dataset"])
    if dataset:
        whole = entry["split"] == "all" and not entry["classes"]
        entry = entry | {
            "title": entry["title"] or getattr(dataset, "title", ""),
            "domain": entry["domain"] or dataset.domain,
            "images": getattr(dataset, "images", None) if whole and entry["images"] is None else entry["images"],
            "classes": entry["classes"] or dict(dataset.classes),
        }
    return entry | {key: _written_out(entry[key]) for key in ("templates", "paper_templates")}


def _written_out(templates: object) -> object:
    """Templates given as {patterns, nouns}, noun by noun; anything else as it is."""
    if not isinstance(templates, dict) or templates.keys() != {"patterns", "nouns"}:
        return templates
    patterns, nouns = templates["patterns"], templates["nouns"]
    if not _are_texts(patterns) or not _are_texts(nouns) or len(patterns) * len(nouns) > MAX_TEMPLATES:
        return None
    return [
        re.sub(r"\ba \{noun\}", f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}", pattern).replace("{noun}", noun)
        for noun in nouns
        for pattern in patterns
    ]


def _by_folder(groups: dict[str, list[str]]) -> Mapping[str, str]:
    return MappingProxyType({folder: group for group, folders in groups.items() for folder in folders})


def _fault(entry: dict) -> str:
    """What is wrong with the values of an entry, each for itself; or nothing."""
    for key in ("title", "domain"):
        if not _is_text(entry[key]):
            return f"it has no {key}, which must be a text"
    for key in ("paper_names", "split", "split_means", "citation", "notes"):
        if not isinstance(entry[key], str):
            return f"{key} must be a text"
    if len(entry["citation"].splitlines()) > 1:
        return "citation must be one line"
    for key, known in (("domain", catalogue.DOMAINS), ("split", ("", *SPLITS))):
        if entry[key] not in known:
            return f"{key} {entry[key]!r} is unknown{near_misses(entry[key], filter(None, known))}"
    for key in ("classes_count", "images"):
        if entry[key] is not None and (type(entry[key]) is not int or entry[key] < 1):
            return f"{key} must be a whole number above 0"
    if not _are_names(entry["classes"]):
        return "classes must give each folder, a text in quotes, its name as people say it"
    for key in ("templates", "paper_templates"):
        of = entry[key]
        if of != [] and not (_are_texts(of) and len(of) <= MAX_TEMPLATES and all(t.count("{}") == 1 for t in of)):
            return f"{key} must be texts with one {{}} each, or patterns and nouns of such; at most {MAX_TEMPLATES}"
    prompts, hierarchy = entry["prompts"], entry["hierarchy"]
    if not _are_lists(prompts):
        return "prompts must give each folder a list of whole prompts"
    if not isinstance(hierarchy, dict) or not all(_is_text(rank) and _are_lists(of) for rank, of in hierarchy.items()):
        return "hierarchy must give each rank its groups, and each group a list of folders"
    unknown = entry["unknown"]
    if unknown != [] and not _are_texts(unknown):
        return "unknown must be a list of texts"
    if wrong := [word for word in unknown if word not in UNKNOWN]:
        return f"{wrong[0]!r} is nothing that may be unknown{near_misses(wrong[0], UNKNOWN)}"
    return _paper_names_fault(entry["paper_names"])


def _paper_names_fault(text: str) -> str:
    try:
        parts = [(field, spec, change) for _, field, spec, change in Formatter().parse(text) if field is not None]
    except ValueError as error:
        return f"paper_names {text!r} is no text with fields in braces ({error})"
    for field, spec, change in parts:
        if field not in NAME_FIELDS or spec or change:
            return f"paper_names has an unknown field {field!r}{near_misses(field, NAME_FIELDS)}"
    return ""


def _disagreement(entry: dict) -> str:
    """Where parts of an entry do not fit each other, or nothing."""
    classes, count = entry["classes"], entry["classes_count"]
    if classes and count not in (None, len(set(classes.values()))):
        return f"classes_count is {count}, but {len(set(classes.values()))} classes are named"
    plain: dict[str, str] = {}
    for key in classes:
        other = plain.setdefault(_plain(key), key)
        if classes[other] != classes[key]:
            return f"classes {other!r} and {key!r} differ only in case, spaces, '-' or '_'"
    parts = {f"hierarchy {rank!r}": [*chain(*groups.values())] for rank, groups in entry["hierarchy"].items()}
    if entry["prompts"]:
        parts["prompts"] = [*entry["prompts"]]
    for part, keys in parts.items():
        had = Counter(keys)
        if extra := [key for key in had if key not in classes]:
            return f"{part} has {extra[0]!r}, which is no class{near_misses(extra[0], classes)}"
        if lacking := [key for key in classes if key not in had]:
            return f"{part} lacks class {lacking[0]!r}"
        if had.total() > len(had):
            return f"{part} has {had.most_common(1)[0][0]!r} in two groups"
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_slug(text: str) -> bool:
    return re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", text) is not None


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_text, value))


def _are_lists(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(key) and _are_texts(texts) for key, texts in value.items())


def _are_names(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_text, (*value, *value.values())))


# ---- folders of CLIP_benchmark ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shards(Samples):
    """The shards of one split, which know the names of their classes; see `Samples`.

    Attributes:
      record: metadata of the dataset, as `sources.base.check_record` has it: name, classes and templates.
    """

    record: Mapping[str, object]

    def items(self) -> Iterator[Item | Aside | Known | About]:
        """See `Source`.

        Raises:
          UserError: besides, a sample whose class has no name.
        """
        yield About(dict(self.record))
        classes = self.record["classes"]
        for item in super().items():
            if isinstance(item, Item) and item.class_key not in classes:
                told = f"has class {item.class_key!r}" if item.class_key else "has no class"
                raise UserError(
                    f"{self.origin.parent}: {item.path} {told}, but the {len(classes)} lines of {CLASS_NAMES} are "
                    f"0 to {len(classes) - 1}"
                )
            yield item


@dataclass(frozen=True)
class Benchmark:
    """A classification task as CLIP_benchmark exports it.

    Attributes:
      name: of the folder.
      classes: key of the samples, "0" and so on -> name, in that order; also of classes without a sample.
      templates: prompts with one `{}`; empty where the folder has none.
      splits: "test" and so on -> its samples, a source like any other.
    """

    name: str
    classes: Mapping[str, str]
    templates: tuple[str, ...]
    splits: Mapping[str, Shards]


def benchmark_folder(path: Path | str) -> Benchmark:
    """Reads such a folder: classnames.txt, zeroshot_classification_templates.txt, and for each split nshards.txt beside
    0.tar, 1.tar and so on. As in CLIP_benchmark, blank lines do not count.

    Raises:
      UserError: it is no folder of classes, a file in it is damaged, or a shard is missing.
    """
    path = Path(path)
    kind = _lines(path / "dataset_type.txt")
    if kind and kind[0].lower() != "classification":
        raise UserError(f"{path} is made for {kind[0]!r}, and only 'classification' is read here")
    names = _lines(path / CLASS_NAMES)
    if not names:
        raise UserError(f"{path} has no {CLASS_NAMES} with a class in each line; is it a folder of CLIP_benchmark?")
    templates = []
    for template in _lines(path / _TEMPLATES):
        if template.count("{c}") != 1 or "{}" in template:
            raise UserError(f"{path / _TEMPLATES}: {template!r} needs one {{c}}, where the class goes")
        templates.append(template.replace("{c}", "{}"))
    name = path.resolve().name
    classes = {str(number): class_name for number, class_name in enumerate(names)}
    record = {"name": name, "classes": classes, "templates": templates}
    folders = [child for child in children(path) if (child / "nshards.txt").is_file()]
    if not folders:
        raise UserError(f"{path} has no split: a folder such as test, with nshards.txt, 0.tar, 1.tar and so on")
    splits = {folder.name: Shards(_shards(folder), name, {}, record) for folder in folders}
    return Benchmark(name, MappingProxyType(classes), tuple(templates), MappingProxyType(splits))


def _shards(folder: Path) -> tuple[Tar, ...]:
    told = " ".join(_lines(folder / "nshards.txt"))
    if not re.fullmatch("[0-9]{1,6}", told) or not 0 < int(told) <= MAX_SHARDS:
        raise UserError(f"{folder / 'nshards.txt'} must say how many shards there are, 1 to {MAX_SHARDS:,}")
    paths = [folder / f"{number}.tar" for number in range(int(told))]
    if missing := [shard.name for shard in paths if not Tar.accepts(shard)]:
        raise UserError(f"{folder} lacks {len(missing)} of its {told} shards: {_few(missing)}; download it again")
    return tuple(map(Tar.open, paths))


def _lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank; none when there is no such file."""
    if not path.is_file():
        return []
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path} is no UTF-8 text; save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
