"""Many tasks, every measure, several checkpoints: one record for each, written when it is made.

A suite is a small file. What it finds of a checkpoint lies in the run's own folder, one JSON for each task and measure,
under a key of everything that decides it: what is done is not done again, and one that was killed goes on where it
was. `report.py` makes pages of these records and needs neither the model nor the photos.
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agriclip_jax.data import captions, views
from agriclip_jax.data.parallel import parallel_map
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.evaluate import features, gallery, localize, measures, probe, retrieval, robustness, zeroshot
from agriclip_jax.evaluate.embedding_map import embedding_map
from agriclip_jax.evaluate.features import Features
from agriclip_jax.evaluate.records import MANIFEST
from agriclip_jax.evaluate.statistics import wilson
from agriclip_jax.evaluate.tasks import ALL, EMBEDDED, IN_DOMAIN, UNSEEN, Task, load_tasks
from agriclip_jax.files import read_record, read_yaml, write_json

VERSION = 2  # of what the measures mean; records of another one are made anew
MAX_BYTES = 1 << 20  # of a suite's file
ENTRY = ("photos", "meta", "split", "group", "domains", "templates")  # keys of an entry of `tasks`
MAP_POINTS = 1500
GALLERY, GALLERY_PHOTOS = 8, 5  # texts, and photos of each
ROBUST_PHOTOS = 100  # of each task
POINTED = 8


@dataclass(frozen=True)
class Suite:
    """What is asked of every checkpoint.

    Attributes:
      name: of the file, without its ending.
      measures: from `MEASURES` and `OF_GROUPS`.
      entries: arguments of `load_tasks` each, and `group`, which replaces the tasks' own.
      file: where it stands; None where flags said it.
    """

    name: str
    measures: tuple[str, ...]
    entries: tuple[Mapping[str, Any], ...]
    file: Path | None = None


def read(path: Path | str, measures: Sequence[str] = ()) -> Suite:
    """The suite of a YAML file, or of its measures only some.

    It holds `tasks`, a list of entries with `photos` (as `--tasks` of tools/zeroshot.py; environment variables are
    filled in) and, where wanted, `meta`, `split`, `group`, `domains` (only tasks of these), `templates`; and
    `measures`, all of them without it.

    Raises:
      UserError: it cannot be read, is no suite, or has not such a measure.
    """
    path, known = Path(path), (*MEASURES, *OF_GROUPS)
    content = read_yaml(path, "the suite", MAX_BYTES)
    if not isinstance(content, dict) or not isinstance(content.get("tasks"), list) or not content["tasks"]:
        raise UserError(f"the suite {path} has no list of tasks, each with photos: PATH")
    if unknown := sorted(map(str, content.keys() - {"tasks", "measures"})):
        raise UserError(f"the suite {path}: unknown key {unknown[0]!r}{near_misses(unknown[0], ('tasks', 'measures'))}")
    asked = content.get("measures", list(known))
    if not isinstance(asked, list) or not asked:
        raise UserError(f"the suite {path}: measures must be a list of {', '.join(known)}")
    for measure in asked:
        if measure not in known:
            raise UserError(f"the suite {path}: unknown measure {measure!r}{near_misses(str(measure), known)}")
    for measure in measures:
        if measure not in asked:
            raise UserError(f"the suite {path} does not ask {measure!r}{near_misses(measure, asked)}")
    asked = [measure for measure in asked if measure in measures or not measures]
    return Suite(path.stem, tuple(asked), tuple(_entries(path, content["tasks"])), path)


def _entries(path: Path, entries: Sequence[Any]) -> Iterator[Mapping[str, Any]]:
    for number, entry in enumerate(entries, 1):
        where = f"the suite {path}, task {number}"
        entry = {"photos": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("photos"), str):
            raise UserError(f"{where}: it has no photos, a path or 'embedded'")
        if unknown := sorted(map(str, entry.keys() - set(ENTRY))):
            raise UserError(f"{where}: unknown key {unknown[0]!r}{near_misses(unknown[0], ENTRY)}")
        if not all(isinstance(entry.get(key, ""), str) for key in ("meta", "split", "group")):
            raise UserError(f"{where}: meta, split and group must be texts")
        domains = entry.get("domains", [])
        if not isinstance(domains, list) or not all(isinstance(domain, str) for domain in domains):
            raise UserError(f"{where}: domains must be a list such as [crop, weed]")
        templates = entry.get("templates", [])
        if not isinstance(templates, list) or not all(isinstance(text, str) for text in templates):
            raise UserError(f"{where}: templates must be a list of texts with {{}} for the class")
        filled = {key: os.path.expandvars(entry[key]) for key in ("photos", "meta") if key in entry}
        if missing := [name for text in filled.values() for name in re.findall(r"\$\{?(\w+)", text)]:
            raise UserError(f"{where}: the environment variable {missing[0]} is not set")
        yield {**entry, **filled}


def load(suite: Suite, seen: Mapping[str, str], say: Callable[[str], None] = lambda line: None) -> list[Task]:
    """The tasks of a suite.

    Args:
      suite: as from `read`.
      seen: as of `tasks.load_tasks`.
      say: called with each line a user should know.

    Raises:
      UserError: an entry cannot be loaded, or two tasks have one name.
    """
    tasks = []
    for number, entry in enumerate(suite.entries, 1):
        options = {key: entry[key] for key in ("meta", "split", "templates") if key in entry}
        try:
            found = load_tasks(entry["photos"], seen=seen, unlabelled=True, say=say, **options)
        except UserError as error:
            if not suite.file:
                raise
            told = str(error).removeprefix("--tasks=").removeprefix("--")  # nobody gave a flag
            raise UserError(f"the suite {suite.file}, task {number}: {told}") from error
        if domains := entry.get("domains"):
            known = {task.domain for task in found}
            if unknown := sorted(set(domains) - known):
                raise UserError(
                    f"the suite {suite.file or suite.name}, task {number}: no task is of the domain {unknown[0]!r}"
                    f"{near_misses(unknown[0], known)}"
                )
            found = [task for task in found if task.domain in domains]
        for task in found:
            if task.name in (other.name for other in tasks):
                raise UserError(f"the suite {suite.name} asks {task.name!r} twice; give it once, or rename a folder")
            tasks.append(replace(task, group=entry["group"]) if "group" in entry else task)
    return tasks


def folder(model: Any, suite: Suite) -> Path:
    """Where the records of a suite and a checkpoint are."""
    return Path(model.workdir) / "evaluations" / f"{suite.name}-{int(model.step)}-{model.use}"


def run(
    model: Any,
    suite: Suite,
    tasks: Sequence[Task],
    *,
    done: Callable[[str], None] = lambda label: None,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Measures a checkpoint by a suite, as far as that is not done yet.

    Args:
      model: an `inference.Model`, or anything with its methods.
      suite: as from `read`.
      tasks: as from `load`.
      done: called with each record that is there: "coffee_leaf: linear".
      progress: called with the number of photos looked at, or found in the cache, since the last call.

    Returns:
      The folder of the records.

    Raises:
      RunFailure: the model gave an embedding that is not finite.
      UserError: a record cannot be written.
    """
    model, out = features.remembering(model), folder(model, suite)
    files = [file for _, file, _ in records_of(suite, tasks)]
    write_json(out / MANIFEST, {"suite": suite.name, "records": files})
    asked = Asked(model, features.cache_of(model), out, progress)
    for name, file, members in records_of(suite, tasks):
        measure = MEASURES.get(name) or OF_GROUPS[name]
        key = _key(name, model, members)
        if not is_done(out / file, key):
            found = measure(asked, members if name in OF_GROUPS else members[0])
            write_json(out / file, {"key": key, **_head(model), **found})
        done(file.removesuffix(".json").replace(".", ": "))
    return out


def records_of(suite: Suite, tasks: Sequence[Task]) -> list[tuple[str, str, list[Task]]]:
    """(measure, file, tasks) of every record of a suite: those of tasks first, then those of groups."""
    groups: dict[str, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.group, []).append(task)
    of_tasks = [(name, f"{task.name}.{name}.json", [task]) for task in tasks for name in suite.measures]
    of_groups = [
        (name, f"{_slug(group)}.{name}.json", members)
        for group, members in groups.items()
        for name in suite.measures
        if name != "pointing" or group == EMBEDDED  # only there it is known where a lesion is
    ]
    return [each for each in of_tasks if each[0] in MEASURES] + [each for each in of_groups if each[0] in OF_GROUPS]


def _slug(group: str) -> str:
    """A file name for a group; with a hash where letters were lost that could tell it from another."""
    slug = re.sub(r"[^a-z0-9]+", "_", group)
    return slug if group in (IN_DOMAIN, UNSEEN, slug) else f"{slug}-{hashlib.sha256(group.encode()).hexdigest()[:6]}"


def is_done(file: Path, key: str) -> bool:
    """Whether a record is there and is of the same things."""
    try:
        return file.is_file() and read_record(file, "key")["key"] == key
    except UserError:
        return False


def _key(name: str, model: Any, tasks: Sequence[Task]) -> str:
    """Everything that decides a record, hashed."""
    said = [VERSION, name, model.logit_scale]
    for task in tasks:
        asked = [task.name, task.group, task.domain, task.class_names, task.prompt_kinds()]
        said.append([features.key(model, task), *asked, sorted(task.ranks.items()), task.mismatch])
        if name in FITTED and task.at:
            said.append([_fingerprint(task, split) for split in ("train", "val", "test")])
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:24]


def _fingerprint(task: Task, split: str) -> str:
    try:
        return task.at(split).fingerprint
    except UserError:  # it has no such split
        return ""


def _head(model: Any) -> dict[str, Any]:
    return {
        "checkpoint": {
            "workdir": str(model.workdir),
            "step": int(model.step),
            "use": model.use,
            "fingerprint": model.fingerprint,
        },
        "code_version": model.code_version,
        "image_size": int(model.image_size),
        "preparation": str(model.view),
    }


@dataclass(frozen=True)
class Asked:
    """Whom measures ask.

    Attributes:
      model: an `inference.Model`.
      cache: folder of what models see.
      out: folder of the records.
      progress: called with the number of photos looked at.
    """

    model: Any
    cache: Path
    out: Path
    progress: Callable[[int], None]

    def see(self, task: Task) -> Features:
        """A task's photos as the model sees them."""
        return features.of_task(self.model, task, cache=self.cache, progress=self.progress)


# ---- of a task -------------------------------------------------------------------------------------------------------


def _zeroshot(asked: Asked, task: Task) -> dict[str, Any]:
    (result,) = zeroshot.evaluate(asked.model, [task], cache=asked.cache, detailed=True, progress=asked.progress)
    return zeroshot.record(result, asked.model)


def _knn(asked: Asked, task: Task) -> dict[str, Any]:
    def fit(train: Features, val: Features, test: Features, classes: int) -> tuple[dict, dict]:
        found = probe.knn(train.features, train.labels, test.features, test.labels, classes)
        return found, {f"acc1_k{each['k']}": each["top1"] for each in found.get("results", ())}

    return _fitted(asked, task, "knn", fit)


def _linear(asked: Asked, task: Task) -> dict[str, Any]:
    def fit(train: Features, val: Features, test: Features, classes: int) -> tuple[dict, dict]:
        found = probe.linear(
            train.features, train.labels, val.features, val.labels, test.features, test.labels, classes
        )
        if found.predicted is None:
            return found.record, {}
        has_val = found.record["val_held_out_with_seed"] is None
        how = {
            "chosen_on": "val" if has_val else "a tenth of train",
            "fitted_on": "train and val" if has_val else "train",
        }
        answers = how | {"labels": test.labels.tolist(), "predicted": found.predicted.tolist()}
        metrics = {"acc1": "top1", "acc5": "top5", "mean_per_class_recall": "mean_per_class"}
        return found.record | answers, {name: found.record[share] for name, share in metrics.items()}

    return _fitted(asked, task, "linear_probe", fit)


def _few_shot(asked: Asked, task: Task) -> dict[str, Any]:
    def fit(train: Features, val: Features, test: Features, classes: int) -> tuple[dict, dict]:
        found = probe.few_shot(train.features, train.labels, test.features, test.labels, classes)
        return found, {f"acc1_{each['method']}_{each['shots']}": each["top1"] for each in found.get("results", ())}

    return _fitted(asked, task, "few_shot", fit)


def _fitted(asked: Asked, task: Task, kind: str, fit: Callable[..., tuple[dict, dict]]) -> dict[str, Any]:
    """A record of something fitted on the train split and measured on the test split."""
    said = zeroshot.identity(task, asked.model, kind) | {"split": "test", "fitted_on": "train"}
    if reason := zeroshot.cannot(task):
        return {**said, "not_scored": reason}
    try:
        train, val, test = (_labelled(asked, task, split) for split in ("train", "val", "test"))
    except UserError as error:
        return {**said, "not_scored": str(error)}
    if not len(train) or not len(test):
        return {**said, "not_scored": f"no readable image in the {'test' if len(train) else 'train'} split"}
    found, metrics = fit(train, val, test, len(task.class_names))
    if "reason" in found:
        return {**said, "not_scored": found["reason"]}
    known = {row.tobytes() for row in train.features}
    twins = sum(row.tobytes() in known for row in test.features)
    unreadable = [{"source": source, "why": why} for source, why in test.unreadable]
    return {
        **said,
        "metrics": metrics,
        **found,
        "also_in_train": twins,
        "sources": list(test.sources),
        "unreadable": unreadable,
    }


def _labelled(asked: Asked, task: Task, split: str) -> Features:
    """The labelled photos of a split of a task's dataset; none where there is no val split."""
    if task.split == ALL:
        seen = asked.see(task)
        return seen.only(np.flatnonzero((np.array(task.splits)[seen.positions] == split) & (seen.labels >= 0)))
    try:
        seen = asked.see(task if split == task.split else task.at(split))
    except UserError:
        if split != "val":
            raise
        return asked.see(task).only(np.zeros(0, int))
    return seen.only(np.flatnonzero(seen.labels >= 0))


def _corrupted(view_and_seed: tuple[np.ndarray, int], kind: str, strength: int) -> np.ndarray:
    view, seed = view_and_seed
    return robustness.corrupt(view, kind, strength, seed)


def _robustness(asked: Asked, task: Task) -> dict[str, Any]:
    model = asked.model
    said = zeroshot.identity(task, model, "robustness")
    if reason := zeroshot.cannot(task):
        return {**said, "not_scored": reason}
    seen = asked.see(task)
    labelled = np.flatnonzero(seen.labels >= 0)
    rows = np.sort(np.random.default_rng(0).permutation(labelled)[:ROBUST_PHOTOS])
    if not len(rows):
        return {**said, "not_scored": "no readable image"}
    classes = zeroshot.class_embeddings(model, task.prompts())
    found = dict(gallery.images(task, seen.positions[rows]))
    rows = np.array([row for row in rows.tolist() if int(seen.positions[row]) in found])
    clean = [views.eval_view(found[int(position)], model.view) for position in seen.positions[rows]]

    def right(shown: Iterable[np.ndarray]) -> int:
        _, embeddings = features.look(model, shown)
        return int(measures.classify(embeddings, classes, seen.labels[rows], model.logit_scale).right.sum())

    def worse(kind: str, strength: int) -> Iterator[np.ndarray]:
        return parallel_map(partial(_corrupted, kind=kind, strength=strength), zip(clean, rows.tolist(), strict=True))

    count, of_clean = len(rows), right(clean)
    hits = {kind: [right(worse(kind, strength)) for strength in range(1, 6)] for kind in robustness.CORRUPTIONS}
    shares = {kind: [each / count for each in of_kind] for kind, of_kind in hits.items()}
    return {
        **said,
        "metrics": {"acc1_clean": of_clean / count, "acc1_corrupted": float(np.mean(list(shares.values())))},
        "images": count,
        "chance": 1 / len(task.class_names),
        "interval": list(wilson(of_clean, count)),
        "top1": shares,
        "intervals": {kind: [list(wilson(each, count)) for each in of_kind] for kind, of_kind in hits.items()},
        "strengths": {kind: list(amounts) for kind, amounts in robustness.CORRUPTIONS.items()},
    }


def _pictures(asked: Asked, task: Task) -> dict[str, Any]:
    said = zeroshot.identity(task, asked.model, "pictures") | {"class_phrases": list(task.phrases)}
    if task.mismatch:
        return {**said, "not_scored": task.mismatch}
    seen = asked.see(task)
    if not len(seen):
        return {**said, "not_scored": "no readable image"}
    reason = zeroshot.cannot(task)
    result = zeroshot.Result(task, None, reason=reason) if reason else zeroshot.score(asked.model, task, seen)
    return {**said, **gallery.pictures(asked.model, task, seen, result, asked.out)}


# ---- of a group of tasks ---------------------------------------------------------------------------------------------


def _retrieval(asked: Asked, tasks: Sequence[Task]) -> dict[str, Any]:
    """Photos to texts and back among all photos of a group.

    A photo's texts are its own captions; where it has none they are its class's prompts, and it shares them with every
    other photo of the class, in whatever dataset.
    """
    keys: dict[Any, int] = {}
    texts: dict[tuple[int, str], None] = {}
    image_keys, embeddings, places = [], [], []
    for task in (task for task in tasks if not task.mismatch):
        seen, prompts = asked.see(task), task.prompts()
        classes = [captions.class_identity(name, task.name) for name in task.class_names]
        for row in range(len(seen)):
            own, label = seen.captions[row], int(seen.labels[row])
            if not own and label < 0:
                continue
            key = keys.setdefault((task.name, seen.sources[row]) if own else classes[label], len(keys))
            texts |= dict.fromkeys((key, text) for text in own or prompts[label])
            image_keys.append(key)
            embeddings.append(seen.embeddings[row])
            places.append((task, int(seen.positions[row])))
    group = tasks[0].group
    said = {"dataset": group, "group": group, "task": "zeroshot_retrieval", "language": "en", "metrics": None}
    if len(keys) < 2:
        return {**said, "not_scored": "fewer than two photos or classes to tell apart"}
    text_keys = np.array([key for key, _ in texts])
    text_embeddings = asked.model.embed_texts([text for _, text in texts])
    found = retrieval.retrieve(np.stack(embeddings), text_embeddings, np.array(image_keys), text_keys)
    directions = {"image_to_text": found.image_to_text, "text_to_image": found.text_to_image}
    ranks = found.image_to_text.ranks
    of_task = np.array([task.name for task, _ in places])
    return {
        **said,
        "metrics": {
            **{f"text_retrieval_recall@{k}": share for k, share in found.image_to_text.recall.items()},
            **{f"image_retrieval_recall@{k}": share for k, share in found.text_to_image.recall.items()},
            "mean_recall": found.mean_recall,
        },
        **{
            name: {
                field: getattr(each, field)
                for field in ("queries", "left_out", "candidates", "recall", "recall_ties_won", "chance", "ties")
            }
            | {"median_rank": float(each.median_rank)}
            for name, each in directions.items()
        },
        "of_tasks": {
            task.name: {
                "images": int((of_task == task.name).sum()),
                "recall": {k: float((ranks[of_task == task.name] <= k).mean()) for k in found.image_to_text.recall},
            }
            for task in tasks
            if (of_task == task.name).any()
        },
        "gallery": _gallery(asked, list(texts), text_embeddings, np.stack(embeddings), image_keys, places),
    }


def _gallery(
    asked: Asked,
    texts: Sequence[tuple[int, str]],
    text_embeddings: np.ndarray,
    embeddings: np.ndarray,
    image_keys: Sequence[int],
    places: Sequence[tuple[Task, int]],
) -> list[dict[str, Any]]:
    """For some texts the nearest photos, and whether they are of it."""
    distinct = list(dict.fromkeys(key for key, _ in texts))
    chosen = [distinct[i] for i in np.linspace(0, len(distinct) - 1, min(GALLERY, len(distinct))).round().astype(int)]
    queries = [next(i for i, (key, _) in enumerate(texts) if key == wanted) for wanted in chosen]
    nearest, _ = retrieval.nearest(text_embeddings[queries], embeddings, GALLERY_PHOTOS)
    wanted: dict[str, tuple[Task, set[int]]] = {}
    for task, position in (places[i] for i in nearest.ravel()):
        wanted.setdefault(task.name, (task, set()))[1].add(position)
    files = {name: gallery.save(task, positions, asked.out) for name, (task, positions) in wanted.items()}
    return [
        {
            "text": texts[query][1],
            "photos": [
                {
                    "file": files[places[i][0].name][places[i][1]],
                    "dataset": places[i][0].name,
                    "right": image_keys[i] == texts[query][0],
                }
                for i in found
            ],
        }
        for query, found in zip(queries, nearest.tolist(), strict=True)
    ]


def _map(asked: Asked, tasks: Sequence[Task]) -> dict[str, Any]:
    """A map of the group's embeddings in the plane: near is alike."""
    rows = [
        (task.name, int(label), row)
        for task in tasks
        if not task.mismatch
        for seen in [asked.see(task)]
        for label, row in zip(seen.labels, seen.embeddings, strict=True)
    ]
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:MAP_POINTS])
    group = tasks[0].group
    said = {"dataset": group, "group": group, "task": "embedding_map", "language": "en", "metrics": None}
    if len(chosen) < 3:
        return {**said, "not_scored": "fewer than three photos"}
    points = embedding_map(np.stack([rows[i][2] for i in chosen]))
    return {
        **said,
        "class_names": {task.name: list(task.class_names) for task in tasks},
        "datasets": [rows[i][0] for i in chosen],
        "labels": [rows[i][1] for i in chosen],
        "x": [round(float(x), 3) for x in points[:, 0]],
        "y": [round(float(y), 3) for y in points[:, 1]],
    }


def _pointing(asked: Asked, tasks: Sequence[Task]) -> dict[str, Any]:
    """Whether the model finds the lesions that the embedded corpus drew."""
    said = {"dataset": EMBEDDED, "group": EMBEDDED, "task": "pointing", "language": "en"}
    model = copy.copy(asked.model)
    model.batch = POINTED  # pictures are looked at one at a time
    found = {name: asdict(each) for name, each in localize.pointing(model, progress=asked.progress).items()}
    return {**said, "metrics": {"pointing_accuracy": found["all"]["accuracy"]}, "symptoms": found}


MEASURES: dict[str, Callable[[Asked, Task], dict[str, Any]]] = {
    "zeroshot": _zeroshot,
    "knn": _knn,
    "linear": _linear,
    "few_shot": _few_shot,
    "robustness": _robustness,
    "pictures": _pictures,
}
FITTED = ("knn", "linear", "few_shot")  # measures that are fitted on other splits
OF_GROUPS: dict[str, Callable[[Asked, Sequence[Task]], dict[str, Any]]] = {
    "retrieval": _retrieval,
    "map": _map,
    "pointing": _pointing,
}
