"""Keywords: what some captions may have in common, such as the names of classes, and which caption mentions which."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from agriclip_jax.data.captions import class_phrase, without_article
from agriclip_jax.data.records import DatasetRecord, named_classes
from agriclip_jax.errors import UserError, near_misses

SOURCES = ("classes", "yake:N", "file:PATH")


class Keywords:
    """Finds keywords in captions, as whole words whatever their case and the punctuation between them."""

    def __init__(self, keywords: Sequence[str]):
        self._number: dict[tuple[str, ...], int] = {}
        for number, keyword in enumerate(keywords):
            self._number.setdefault(_words(keyword), number)
        self._count, self._lengths = len(keywords), sorted({len(words) for words in self._number})

    def mentioned(self, caption: str) -> np.ndarray:
        """Which keywords a caption has: bool [keywords]."""
        mentioned, said = np.zeros(self._count, bool), _words(caption)
        for length in self._lengths:
            for start in range(len(said) - length + 1):
                if (number := self._number.get(said[start : start + length])) is not None:
                    mentioned[number] = True
        return mentioned


def choose(spec: str, captions: Sequence[str], classes: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The keywords that a recipe asks for and some caption mentions.

    Args:
      spec: "classes"; "yake:N" for N phrases of one or two words that YAKE (Campos et al. 2020) finds in the captions;
        "file:PATH" for those of a file, one a line.
      captions: that training may draw.
      classes: what `of_classes` gave.

    Returns:
      the keywords, those that say the same once, and what a user should know, line by line.

    Raises:
      UserError: no such source or file, or no caption has any.
    """
    source, _, argument = spec.partition(":")
    if spec == "classes":
        found = classes
    elif source == "yake" and argument.isdecimal() and int(argument):
        found = _yake(captions, int(argument))
    elif source == "file" and argument:
        found = _lines(Path(argument))
    else:
        raise UserError(f"config.sclip.keywords: unknown {spec!r}{near_misses(spec, SOURCES)}")
    distinct: dict[tuple[str, ...], str] = {}
    for keyword in found:
        distinct.setdefault(_words(keyword), keyword)
    distinct.pop((), None)
    candidates = list(distinct.values())
    keywords = Keywords(candidates)
    mentioned = np.zeros(len(candidates), bool)
    for caption in captions:
        mentioned |= keywords.mentioned(caption)
    unheard = [keyword for keyword, said in zip(candidates, mentioned, strict=True) if not said]
    such = f", such as {unheard[0]!r}" if unheard else ""
    if not mentioned.any():
        raise UserError(
            f"config.sclip.keywords={spec}: none of its {len(candidates)} keywords occurs in a training caption{such}; "
            "name others, or set config.sclip.keyword_weight=0"
        )
    notes = [f"keywords: {int(mentioned.sum())} ({spec})"]
    if unheard:
        notes.append(f"keywords: {len(unheard)} more occur in no caption and are left out{such}")
    return tuple(keyword for keyword, said in zip(candidates, mentioned, strict=True) if said), notes


def of_classes(datasets: Mapping[str, DatasetRecord], domains: Sequence[str] = ()) -> list[str]:
    """The classes of some domains as captions say them: "healthy" of banana_leaf is "healthy banana leaf".

    Args:
      datasets: slug -> record.
      domains: "crop", "weed", ...; none for all.
    """
    return [without_article(class_phrase(*named)) for named in named_classes(datasets, domains)]


def _yake(captions: Sequence[str], count: int) -> list[str]:
    try:
        import yake
    except ImportError:
        raise UserError(
            f"config.sclip.keywords=yake:{count} needs the package yake: pip install -e '.[keywords]'"
        ) from None
    sentences = (caption if caption.rstrip().endswith((".", "!", "?")) else f"{caption}." for caption in captions)
    extractor = yake.KeywordExtractor(lan="en", n=2, top=count)
    return [phrase for phrase, _ in extractor.extract_keywords(" ".join(sentences))]


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"config.sclip.keywords: {path} cannot be read ({reason}); give one keyword a line") from None
    return [line.strip() for line in lines]


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold()))
