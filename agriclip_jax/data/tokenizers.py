"""Captions to token ids: CLIP's byte-level BPE, read from files the user has or trained on the captions at hand.

Both kinds are the same machine (OpenAI's `SimpleTokenizer`): cleaned text, CLIP's split into words, bytes written as
letters, `</w>` at the end of a word, merges by rank; ids are 256 bytes, the same 256 at the end of a word, the merges,
start, end. No text is ever unknown to it.
"""

import functools
import gzip
import hashlib
import html
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from agriclip_jax.errors import UserError
from agriclip_jax.files import write_whole

FILE = "tokenizer.json"
ENVIRONMENT = "AGRICLIP_BPE"  # names the tokenizer file of `load` without a path

_CLIP_MERGES = 49_152 - 256 - 2  # OpenAI reads so many of the lines of its merges file
_MOST_BYTES = 64 << 20  # of an unpacked merges file
_WORD_END = "</w>"
_SPLIT = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_START_AND_END = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))


def clean(text: str) -> str:
    """CLIP's cleaning: mended Unicode (ftfy), HTML entities resolved twice, single spaces, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


class Tokenizer:
    """Texts to padded rows of ids.

    Attributes:
      vocab_size: number of ids.
      start_id: first of every row.
      end_id: after the last id of the text; the last of a truncated row.
      pad_id: fills a row after `end_id`; 0, as OpenAI's `clip.tokenize` does.
    """

    pad_id = 0

    def __init__(self, backend: tokenizers.Tokenizer):
        """Wraps a tokenizer of the `tokenizers` library that knows CLIP's start and end.

        Raises:
          UserError: it does not know them.
        """
        ids = [tuple(map(backend.token_to_id, names)) for names in _START_AND_END]
        known = [pair for pair in ids if None not in pair]
        if not known:
            raise UserError(f"not a CLIP tokenizer: it has no {' and '.join(_START_AND_END[0])}")
        self.start_id, self.end_id = known[0]
        self.vocab_size = backend.get_vocab_size()
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True  # "<|endoftext|>" inside a caption is text
        self._backend = backend
        self._ids = functools.lru_cache(1 << 16)(self._ids_of)  # captions repeat

    def __reduce__(self):
        return type(self), (self._backend,)  # to other processes without the memory of captions

    @classmethod
    def load(cls, path: str | Path = "") -> "Tokenizer":
        """Reads a `tokenizer.json`, a folder that holds one, or a CLIP merges file (`bpe_simple_vocab_16e6.txt[.gz]`).

        Args:
          path: empty for the one that the environment variable AGRICLIP_BPE names.

        Raises:
          UserError: there is no such file, or it is not such a file.
        """
        path = path or os.environ.get(ENVIRONMENT, "")
        if not path:
            raise UserError(f"no tokenizer file: name a {FILE} or CLIP merges file, or set ${ENVIRONMENT} to one")
        path = Path(path)
        if path.is_dir():
            path = path / FILE
        try:
            if path.suffix == ".json":
                return cls(_from_json(path.read_text(encoding="utf-8")))
            with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
                return cls(_clip_bpe(_merges(file.read(_MOST_BYTES).decode("utf-8"))))
        except (OSError, EOFError, ValueError, zlib.error, UserError) as error:
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise UserError(f"tokenizer file {path} cannot be read: {reason}") from error

    def save(self, path: str | Path) -> None:
        """Writes a `tokenizer.json` that `load` reads back to the same ids; all of it or nothing."""
        write_whole(path, self._backend.to_str(pretty=False))

    @property
    def fingerprint(self) -> str:
        """Hex; equal for tokenizers that give equal ids."""
        return hashlib.sha256(self._backend.to_str(pretty=False).encode()).hexdigest()

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Rows `start, ids of the cleaned text, end, pad, pad, ...`: int32 [n, length].

        A text that is too long loses its tail: its row ends with `end_id`.
        """
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = (self.start_id, *self._ids(text)[: length - 2], self.end_id)
            row[: len(ids)] = ids
        return rows

    def decode(self, row: Sequence[int]) -> str:
        """The cleaned text of a row of `encode`, words and signs apart by one space."""
        row = list(row)
        return self._backend.decode(row[1 : row.index(self.end_id)]).strip()

    def truncated(self, texts: Iterable[str], length: int) -> int:
        """How many of the texts lose tokens in rows of `length`."""
        return sum(len(self._ids(text)) > length - 2 for text in texts)

    def _ids_of(self, text: str) -> tuple[int, ...]:
        return tuple(self._backend.encode(clean(text), add_special_tokens=False).ids)


def counter() -> tuple[Callable[[str], int], str]:
    """How many tokens a text takes in CLIP's text encoder, start and end included, and by what that is known.

    The file that AGRICLIP_BPE names tells exactly; without it a word counts one token for every five letters begun. Of
    the captions that the project makes nine in ten are then no shorter than for CLIP, and none by more than a few.
    """
    if os.environ.get(ENVIRONMENT):
        tokenizer = Tokenizer.load()
        return lambda text: len(tokenizer._ids(text)) + 2, "CLIP's own tokenizer"
    return estimated_tokens, "an estimate, at five letters a token"


def estimated_tokens(text: str) -> int:
    """About how many tokens CLIP makes of a text, start and end included; rather too many than too few."""
    return 2 + sum(-(-len(word) // 5) for word in re.findall(r"[^\W\d_]+|\d|[^\s\w]+|_", clean(text)))


def train(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A CLIP tokenizer whose merges are learnt from captions.

    The same captions, in any order, give the same tokenizer on every machine.

    Args:
      captions: as they are; they are cleaned here.
      vocab_size: the greatest number of ids; few captions give fewer.

    Raises:
      UserError: `vocab_size` does not exceed the 514 ids that need no merge.
    """
    base = _byte_letters()
    base += [letter + _WORD_END for letter in base]
    specials = 2
    if vocab_size <= len(base) + specials:
        raise UserError(f"a tokenizer of {vocab_size} ids has no room for a merge; take more than {len(base) + 2}")
    learner = tokenizers.Tokenizer(models.BPE(end_of_word_suffix=_WORD_END))
    learner.pre_tokenizer = _pre_tokenizer()
    # The base goes in as "special tokens" because only those get ids in a fixed order, and ids decide between ties.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - specials, end_of_word_suffix=_WORD_END, special_tokens=base, show_progress=False
    )
    learner.train_from_iterator(map(clean, captions), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return Tokenizer(_clip_bpe([tuple(merge) for merge in merges]))


def _clip_bpe(merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    letters = _byte_letters()
    words = [*letters, *(letter + _WORD_END for letter in letters), *map("".join, merges), *_START_AND_END[0]]
    try:
        model = models.BPE({word: i for i, word in enumerate(words)}, merges, end_of_word_suffix=_WORD_END)
    except Exception as error:  # the library's own kind is Exception itself
        raise UserError(str(error)) from error
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = _pre_tokenizer()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(_WORD_END, " ")])
    backend.add_special_tokens(list(_START_AND_END[0]))
    return backend


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(tokenizers.Regex(_SPLIT), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_letters() -> list[str]:
    """The letter of each byte, in the order of CLIP's ids: those that print as themselves, then the others."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printing), *(chr(256 + n) for n in range(256 - len(printing)))]


def _merges(text: str) -> list[tuple[str, str]]:
    lines = text.split("\n")
    merges = [tuple(line.split()) for line in lines["#version" in lines[0] :] if line.strip()][:_CLIP_MERGES]
    bad = next((merge for merge in merges if len(merge) != 2), None)
    if bad or not merges:
        raise UserError(f"not a CLIP merges file: {' '.join(bad)[:40]!r} is not a merge" if bad else "it has no merges")
    return merges


def _from_json(text: str) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library's own kind is Exception itself
        raise UserError(f"not a {FILE}: {error}") from error
