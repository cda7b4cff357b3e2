"""What is on these photos? The nearest of some class names for each, and one bad photo is one bad row."""

import csv
import glob
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agriclip_jax.data import captions
from agriclip_jax.data.sources.files import PHOTO_ENDINGS, printable, read_file
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.evaluate import features, zeroshot
from agriclip_jax.evaluate.features import Embedder
from agriclip_jax.evaluate.terminal import screen

COLUMNS = ("file", "rank", "class", "probability", "error")


@dataclass(frozen=True)
class Prediction:
    """One photo's answer.

    Attributes:
      file: the photo.
      best: (class, probability), the most probable first; empty when the photo cannot be read.
      error: why it cannot be read; "" when it can.
    """

    file: Path
    best: tuple[tuple[str, float], ...]
    error: str = ""


def find_photos(patterns: Sequence[str]) -> list[Path]:
    """The photos that files, folders (with what is below them) and globs name, each once, in the order given.

    A file that is named is kept whatever it is, so that it shows among the answers.

    Raises:
      UserError: they name no photo at all.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            found |= dict.fromkeys(_photos_below(path))
        elif path.exists() or not glob.has_magic(pattern):
            found[path] = None
        else:
            for match in sorted(map(Path, glob.glob(str(path), recursive=True))):
                found |= dict.fromkeys(_photos_below(match) if match.is_dir() else [match])
    if not any(path.exists() for path in found):
        endings = " ".join(PHOTO_ENDINGS)
        raise UserError(f"no photo matches {' '.join(patterns)}; give files, folders or quoted globs of {endings}")
    return list(found)


def _photos_below(folder: Path) -> list[Path]:
    def is_photo(path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        return path.suffix.lower() in PHOTO_ENDINGS and not hidden and path.is_file()

    return sorted(path for path in folder.rglob("*") if is_photo(path))


def given_classes(text: str) -> dict[str, list[str]]:
    """Class -> its prompts, from names with commas between them, or from a text file with one name a line.

    Raises:
      UserError: fewer than two names, or a file that is no text.
    """
    path = Path(text).expanduser()
    try:
        listed = path.read_text(encoding="utf-8-sig").splitlines() if os.path.isfile(path) else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--cls={text} cannot be read as text with one class a line: {error}") from error
    names = list(dict.fromkeys(" ".join(name.split()) for name in listed if name.strip()))
    if len(names) < 2:
        raise UserError(f"--cls={text} names {len(names)} class; give two or more to choose from, as in --cls=a,b,c")
    # A bare "healthy" has no dataset here that could say of what: it stays as the user wrote it.
    phrases = {name: name if captions.is_bare(name) else captions.class_phrase(name, "", "other") for name in names}
    return {name: _prompts(phrase, "other") for name, phrase in phrases.items()}


def trained_classes(known: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Class -> its prompts, from what a run was trained on; classes that datasets share come once.

    Args:
      known: records with dataset, domain, class_key and class_name, as from `tasks.known_classes`.

    Raises:
      UserError: there are none.
    """
    if not known:
        raise UserError("the run has no classes.json that says its classes; name some, as in --cls=a,b,c")
    distinct = {captions.class_identity(each["class_name"], each["dataset"]): each for each in reversed(known)}
    classes = {}
    for each in reversed(distinct.values()):
        phrase = captions.class_phrase(each["class_name"], each["dataset"], each["domain"])
        shown = phrase if captions.is_bare(each["class_name"]) else each["class_name"]
        classes[shown] = _prompts(phrase, each["domain"])
    return classes


def _prompts(phrase: str, domain: str) -> list[str]:
    return [captions.fill(template, phrase) for template in captions.templates(domain)]


def predict(
    model: Embedder,
    files: Sequence[Path],
    classes: Mapping[str, Sequence[str]],
    *,
    k: int = 3,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Prediction]:
    """The k most probable classes of each photo, in the order of `files`.

    A probability is softmax(logit_scale * cosine) over the classes.

    Raises:
      RunFailure: no photo can be read.
    """

    def contents() -> Iterator[bytes | Exception]:
        for file in files:
            try:
                yield read_file(file)
            except (OSError, ValueError) as error:
                yield error

    names = list(classes)
    _, embeddings, kept, unreadable = features.see(model, contents(), progress=progress)
    if not len(kept):
        raise RunFailure(f"none of {len(files)} photos can be read; the first, {files[0]}: {unreadable[0]}")
    cosines = embeddings @ zeroshot.class_embeddings(model, list(classes.values())).T
    found: dict[int, Prediction] = {i: Prediction(files[i], (), why) for i, why in unreadable.items()}
    for position, row in zip(kept.tolist(), zeroshot.probabilities(cosines, model.logit_scale), strict=True):
        nearest = np.argsort(-row, kind="stable")[:k]
        found[position] = Prediction(files[position], tuple((names[i], float(row[i])) for i in nearest))
    return [found[position] for position in range(len(files))]


def as_csv(predictions: Sequence[Prediction]) -> str:
    """The predictions as CSV with the columns `COLUMNS`: a row for each of the k classes, one for a bad photo."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for prediction in predictions:
        file = printable(str(prediction.file))
        for rank, (name, probability) in enumerate(prediction.best, 1):
            rows.writerow([file, rank, name, f"{probability:.6f}", ""])
        if prediction.error:
            rows.writerow([file, "", "", "", prediction.error])
    return text.getvalue()


def show(predictions: Sequence[Prediction]) -> None:
    """Prints the predictions as a table."""
    from rich.markup import escape

    console, table = screen()
    for name, justify in (("photo", "left"), ("rank", "right"), ("class", "left"), ("probability", "right")):
        table.add_column(name, justify=justify, overflow="fold")
    for prediction in predictions:
        file = escape(printable(str(prediction.file)))
        for rank, (name, probability) in enumerate(prediction.best, 1):
            table.add_row("" if rank > 1 else file, str(rank), escape(name), f"{100 * probability:.1f} %")
        if prediction.error:
            table.add_row(file, "", f"cannot be read: {escape(prediction.error)}", "", style="red")
    console.print(table)
