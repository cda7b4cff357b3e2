"""Captions of classes in other words, by a language model: AgriCLIP's customised captions (arXiv 2410.01407).

The model is told what a class is and what can be seen of it, and gives several captions. None is taken on trust: each
must name its class and no other, fit into the text encoder, say something new, and be a caption at all.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from agriclip_jax.data.captions import normalise_caption
from agriclip_jax.data.endpoint import Endpoint, Prompt, Usage
from agriclip_jax.data.knowledge import content_words

LEAST_WORDS = 3
MOST_OTHERS = 40  # names of other classes that a prompt lists

SYSTEM = (
    "You write captions for photos from agriculture, livestock keeping and fishery. "
    "You write nothing but captions, one a line, without numbering, quotes or remarks."
)
_RULES = """\
Rules:
- Every caption is one sentence of 6 to 30 words, true of any photo of this class.
- What can be seen comes first: the subject, then its parts, colours, shapes, textures and surroundings.
- Every caption names the class in its own words: {name}.
- No two captions say the same thing in the same way.
- No numbers, places, dates, cameras, file names or names of data sets; nothing that a photo cannot show.
Write exactly {lines} lines, one caption in each."""


@dataclass(frozen=True)
class Subject:
    """A class to be captioned.

    Attributes:
      key: "dataset/class_key".
      phrase: with its article: "a coffee leaf with rust".
      class_name: as people say it: "coffee leaf with rust".
      domain: "crop", ..., "other".
      signs: what can be seen of it, as far as that is known.
      others: the names of the other classes of its dataset.
      taken: the captions that it has already.
    """

    key: str
    phrase: str
    class_name: str
    domain: str
    signs: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()


@dataclass
class Rewritten:
    """What a model made of the classes.

    Attributes:
      captions: key -> one to `count` captions.
      rejects: reason -> number of lines that were no good.
      fallen_back: keys without a caption; they keep those they have.
      errors: reason -> number of classes for which the endpoint gave nothing.
      usage: of the endpoint.
    """

    captions: dict[str, list[str]] = field(default_factory=dict)
    rejects: Counter[str] = field(default_factory=Counter)
    fallen_back: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    usage: Usage = field(default_factory=Usage)

    @property
    def accepted(self) -> int:
        """The number of captions."""
        return sum(map(len, self.captions.values()))


def rewrite(
    subjects: Iterable[Subject],
    endpoint: Endpoint,
    *,
    count: int,
    count_tokens: Callable[[str], int],
    most_tokens: int = 60,
) -> Rewritten:
    """New captions for classes: one prompt each, which asks for half as many again as are wanted.

    A caption that two classes could share goes to the first of them; none repeats one that any class has.

    Args:
      subjects: the classes.
      endpoint: the model.
      count: captions wanted of each class.
      count_tokens: the length of a text for the text encoder.
      most_tokens: of a caption.
    """
    subjects = list(subjects)
    seen = {normalise_caption(text) for subject in subjects for text in subject.taken}
    rewritten = Rewritten(usage=endpoint.usage)
    answers = endpoint.ask(Prompt(prompt_text(subject, count + (count + 1) // 2), SYSTEM) for subject in subjects)
    for subject, answer in zip(subjects, answers, strict=True):
        rewritten.errors.update([answer.error] if answer.error else [])
        kept = []
        for text in (line for answered in answer.texts for line in lines(answered)):
            if len(kept) == count:
                break
            reason = (
                form_fault(text, count_tokens, most_tokens)
                or class_fault(text, subject)
                or ("repeated" if normalise_caption(text) in seen else "")
            )
            if reason:
                rewritten.rejects[reason] += 1
                continue
            seen.add(normalise_caption(text))
            kept.append(text)
        if kept:
            rewritten.captions[subject.key] = kept
        else:
            rewritten.fallen_back.append(subject.key)
    return rewritten


def prompt_text(subject: Subject, count: int) -> str:
    """What a model is told of a class, and how many captions it is to write."""
    told = [f"Write {count} different captions for photos of this class: {subject.phrase}.", ""]
    told.append(f"Kind of photos: {subject.domain}" if subject.domain != "other" else "Kind of photos: agriculture")
    if subject.signs:
        told += [
            "What can be seen in such photos (use some of it in each caption):",
            *(f"- {s}" for s in subject.signs),
        ]
    if subject.others:
        told.append(f"Never name these other classes: {'; '.join(subject.others[:MOST_OTHERS])}")
    return "\n".join([*told, "", _RULES.format(name=subject.class_name, lines=count)])


# ---- reading what a model wrote --------------------------------------------------------------------------------------

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)  # of models that reason aloud
_LABEL = re.compile(r"(?:[-*•–—]\s+|[(\[]?\d{1,3}[)\].:*]+\s+|(?i:caption)\s?\d{0,3}\s?:\s?)*")
_WRAPPING = " ,\"'`*“”‘’"


def lines(text: str) -> list[str]:
    """The captions in a model's answer: its lines or the texts of a JSON array, without numbers, bullets and quotes."""
    text = _THOUGHT.sub("", text)
    listed = _array(text[text.find("[") : text.rfind("]") + 1])
    items = [text] if listed is None else listed
    found = (_bare(line) for item in items for line in item.splitlines())
    return [line for line in found if line not in ("", "json")]


def _array(text: str) -> list[str] | None:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        return None
    return items


def _bare(line: str) -> str:
    line = " ".join(line.split()).strip(_WRAPPING)
    return line[_LABEL.match(line).end() :].strip(_WRAPPING)


# ---- what is no caption ----------------------------------------------------------------------------------------------

_LINK = re.compile(r"(?i)https?:|www\.|@|\.(com|org|net|jpe?g|png)\b")
_MARKUP = re.compile(r"[<>{}\[\]|`#\\_~]|\*\*|&#?\w+;")
_REMARK = re.compile(
    r"(?i)^(sure|certainly|of course|okay|ok|sorry|unfortunately|note)[,.:!]|^here(['’]s| is| are)\b|^i(['’]| )|"
    r"\b(captions?|data ?sets?|an ai|(language|ai) model|class name|this class|as requested)\b|:$"
)


def form_fault(text: str, count_tokens: Callable[[str], int], most_tokens: int) -> str:
    """Why a text is no caption of anything, in a few words; empty when it may be one."""
    if len(text) > 10 * most_tokens:
        return "too long"
    if len(text.splitlines()) > 1:
        return "several lines"
    if not text.isprintable() or "\N{REPLACEMENT CHARACTER}" in text:
        return "not printable"
    if _LINK.search(text):
        return "a link"
    if _MARKUP.search(text):
        return "markup"
    if _REMARK.search(text):
        return "a remark, no caption"
    if len(re.findall(r"[^\W_]+", text)) < LEAST_WORDS:
        return "too short"
    if count_tokens(text) > most_tokens:
        return "too long"
    return ""


def class_fault(text: str, subject: Subject) -> str:
    """Why a caption is none of this class, in a few words; empty when it may be one.

    It must say every word of the class's name that says something, in any order and number, all those of no other class
    of its dataset (unless the class says them too), and no figure that it was not told.
    """
    said, own = frozenset(content_words(text)), _named(subject.class_name)
    if not own <= said:
        return "does not name its class"
    if any(other and other <= said and not other <= own for other in map(_named, subject.others)):
        return "names another class"
    told = " ".join((subject.class_name, subject.phrase, *subject.signs))
    if set(re.findall(r"\d+", text)) - set(re.findall(r"\d+", told)):
        return "an invented number"
    return ""


@functools.lru_cache(1 << 16)  # every class of a dataset is held against every caption of the others
def _named(class_name: str) -> frozenset[str]:
    return frozenset(content_words(class_name))
