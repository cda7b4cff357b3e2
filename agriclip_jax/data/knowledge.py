"""What things look like: a table of facts, and the captions that a class gets from it.

The project's own facts are the YAML files in `facts/`, each a list of entries with the fields of `Fact`; a user adds
files of the same form. A class takes the fact whose name says most of what the class says: "maize leaf with northern
leaf blight" takes "northern leaf blight" of maize, not "leaf blight" of any plant.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from agriclip_jax.data.captions import class_phrase, normalise_caption, word_set
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import read_yaml

FACTS = Path(__file__).parent / "facts"
MAX_BYTES = 16 << 20  # of a file of facts
MAX_WORDS = 16  # of a sign: what matters stands within CLIP's 77 tokens

# The kinds of facts that can be meant in a domain; any other domain may mean all.
KINDS_OF = {
    "crop": ("deficiency", "disease", "pest", "stage", "state"),
    "fruit": ("fruit", "ripeness", "disease", "state"),
    "weed": ("weed", "stage"),
    "insect": ("pest", "insect"),
    "livestock": ("breed", "animal", "animal disease", "state"),
    "poultry": ("breed", "animal", "animal disease", "state"),
    "fish": ("fish", "animal"),
}
KINDS = tuple(sorted({"flower", *(kind for kinds in KINDS_OF.values() for kind in kinds)}))

_IDLE = word_set("a an the with of on in by and for from at under to showing having")
_SORTS = word_set("fish plant leaf weed insect pest fruit animal crop")  # of a domain, all are that
_PARTS = word_set("leaf stem root flower")  # a photo of one of them shows no sign on another part of the plant
_PLANT = _PARTS | word_set("plant seedling")
_NOT_SHOWN_BY = {"fruit": _PLANT, "ripeness": _PLANT, "flower": _PLANT - {"flower"}}  # nor these kinds, one of those
_ORGANS = _PARTS | word_set(
    "fruit tuber cane pod boll berry bud shoot twig branch trunk bark panicle grain ear cob kernel head bulb seed stalk"
)


@dataclass(frozen=True)
class Fact:
    """What one thing looks like.

    Attributes:
      name: as people say it: "late blight".
      kind: from `KINDS`.
      synonyms: other names, the scientific one among them.
      hosts: what has it ("tomato", "cattle"), one of which a class must name; empty when it says enough alone.
      signs: noun phrases of what can be seen, each completing "showing ...".
      reference: a named source, or "general knowledge".
    """

    name: str
    kind: str
    synonyms: tuple[str, ...]
    hosts: tuple[str, ...]
    signs: tuple[str, ...]
    reference: str


class Knowledge:
    """A table of facts, searched by class names."""

    def __init__(self, facts: Sequence[Fact], otherwise: "Knowledge | None" = None):
        """Args: facts: an earlier one wins where two match equally well; otherwise: asked where none matches."""
        self.facts, self._otherwise = tuple(facts), otherwise
        self._named: dict[str, list[tuple[frozenset[str], Fact]]] = {}
        for fact in self.facts:
            for words in dict.fromkeys(frozenset(content_words(name)) for name in (fact.name, *fact.synonyms)):
                for word in words:
                    self._named.setdefault(word, []).append((words, fact))
        # Information in bits: a word of many names ("carp") tells less than one of few ("catla").
        self._weight = {
            word: 0.0 if word in _SORTS else math.log2(1 + len(self.facts) / len({id(fact) for _, fact in named}))
            for word, named in self._named.items()
        }

    def find(self, class_name: str, dataset: str, domain: str) -> Fact | None:
        """The fact that says most of what a class says; None when there is none.

        Every word of the fact's name or synonym is one of the class's, whatever their order; a host is named by the
        class or by its dataset. The name that tells most wins, by the information in its words; then one with a host,
        then the longest.
        """
        said = frozenset(content_words(class_name))
        told = said | frozenset(content_words(dataset.replace("_", " ").replace("-", " ")))
        kinds = KINDS_OF.get(domain, KINDS)
        best, found = (-1.0, False, 0), None
        for words, fact in (entry for word in sorted(said) for entry in self._named.get(word, ())):
            host = any(frozenset(content_words(host)) <= told for host in fact.hosts)
            if not words <= said or fact.kind not in kinds or (fact.hosts and not host):
                continue
            if said & _NOT_SHOWN_BY.get(fact.kind, frozenset()):
                continue
            weight = (sum(sorted(self._weight[word] for word in words)), host, len(words))
            if weight > best:
                best, found = weight, fact
        if found is None and self._otherwise:
            return self._otherwise.find(class_name, dataset, domain)
        return found

    def captions(self, class_name: str, domain: str, dataset: str) -> list[str]:
        """A caption for each sign of the class's fact: "a coffee leaf with rust, showing powdery orange spots.".

        Signs on another part of the plant than the class names are left out, unless there are no others.
        """
        fact = self.find(class_name, dataset, domain)
        if not fact:
            return []
        phrase = class_phrase(class_name, dataset, domain)
        part = _PARTS & set(content_words(phrase))
        shown = {sign: _ORGANS & set(content_words(sign)) for sign in fact.signs}
        fitting = [sign for sign, organs in shown.items() if not part or part & organs or not organs]
        return [f"{phrase}, showing {sign}." for sign in fitting or fact.signs]


def read(path: Path | str) -> list[Fact]:
    """The facts of a YAML file.

    Raises:
      UserError: it cannot be read, or an entry is not as `Fact` says; the entry is named.
    """
    entries = read_yaml(Path(path), "the facts", MAX_BYTES)
    if not isinstance(entries, list):
        raise UserError(f"the facts {path} are not a list of entries, each with name, kind and signs")
    return [_fact(entry, f"the facts {path}, entry {number}") for number, entry in enumerate(entries, 1)]


def _fact(entry: object, where: str) -> Fact:
    names = [field.name for field in fields(Fact)]
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not content_words(entry["name"]):
        raise UserError(f"{where}: it has no name")
    where = f"{where} ({entry['name']})"
    if unknown := sorted(map(str, entry.keys() - set(names))):
        raise UserError(f"{where}: unknown key {unknown[0]!r}{near_misses(unknown[0], names)}")
    entry = {"synonyms": [], "hosts": [], "reference": "general knowledge", **entry}
    if entry.get("kind") not in KINDS:
        raise UserError(f"{where}: kind {entry.get('kind')!r} is unknown{near_misses(str(entry.get('kind')), KINDS)}")
    for key in ("synonyms", "hosts", "signs"):
        texts = entry.get(key)
        if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"{where}: {key} must be a list of texts")
    if not entry["signs"]:
        raise UserError(f"{where}: it has no signs, which are what the captions are made of")
    if long := next((sign for sign in entry["signs"] if len(sign.split()) > MAX_WORDS), None):
        raise UserError(f"{where}: the sign {long!r} has more than {MAX_WORDS} words")
    if not isinstance(entry["reference"], str) or not entry["reference"].strip():
        raise UserError(f"{where}: reference must name a source, or say 'general knowledge'")
    texts = {key: tuple(text.strip().rstrip(".") for text in entry[key]) for key in ("synonyms", "hosts", "signs")}
    return Fact(name=entry["name"], kind=entry["kind"], reference=entry["reference"], **texts)


@cache
def shipped() -> tuple[Fact, ...]:
    """The project's own facts."""
    return tuple(fact for file in sorted(FACTS.glob("*.yaml")) for fact in read(file))


def table(more: Sequence[Path | str] = ()) -> Knowledge:
    """The user's facts, and where they say nothing the project's own.

    Raises:
      UserError: a file of the user's cannot be read.
    """
    return Knowledge([fact for file in more for fact in read(file)], otherwise=Knowledge(shipped()))


def content_words(text: str) -> list[str]:
    """The words that say something, in the singular: "leaves with brown spots" -> leaf, brown, spot."""
    words = re.findall(r"[^\W_]+", normalise_caption(text).replace("'", "").replace("’", ""))
    return [_singular(word) for word in words if word not in _IDLE]


def _singular(word: str) -> str:
    if word in ("leaves", "geese", "mice", "lice", "oxen"):
        return {"leaves": "leaf", "geese": "goose", "mice": "mouse", "lice": "louse", "oxen": "ox"}[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "toes", "goes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
