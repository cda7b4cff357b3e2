"""Captions to token ids: CLIP's byte-level BPE, read from files or trained on captions; SigLIP's, read from files.

CLIP's is OpenAI's `SimpleTokenizer`: cleaned text, CLIP's split into words, bytes written as letters, `</w>` at the end
of a word, merges by rank; ids are 256 bytes, the same 256 at the end of a word, the merges, start, end. No text is ever
unknown to it. SigLIP's is a sentencepiece vocabulary; how it cleans texts is part of its `tokenizer.json`.
"""

import functools
import gzip
import hashlib
import html
import json
import os
import re
import string
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from agriclip_jax.data import sentencepiece
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_optional, write_whole

FILE = "tokenizer.json"
FILES = (FILE, "merges.txt", "spiece.model", "tokenizer.model")  # of a folder
ENVIRONMENT = "AGRICLIP_BPE"  # names the tokenizer file of `load` without a path

_CLIP_MERGES = 49_152 - 256 - 2  # OpenAI reads so many of the lines of its merges file
_MOST_BYTES = 64 << 20  # of a file, unpacked
_WORD_END = "</w>"
_SPLIT = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_START_AND_END = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))  # CLIP's
_SIGLIP_END = 1
_PAD_OF_END = {"</s>": "</s>", "<eos>": "<pad>"}  # of SigLIP; of SigLIP 2, whose vocabulary is Gemma's


def clean(text: str) -> str:
    """CLIP's cleaning: mended Unicode (ftfy), HTML entities resolved twice, single spaces, lower case."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


class Tokenizer:
    """Texts to padded rows of ids: CLIP's `start, text, end, pad, ...` or SigLIP's `text, end, pad, ...`.

    Attributes:
      vocab_size: number of ids.
      start_id: first of every row; None for SigLIP's.
      end_id: after the last id of the text; the last of a truncated row.
      pad_id: fills a row after `end_id`. For CLIP 0, as OpenAI's `clip.tokenize` does; transformers fills with
        `end_id`. The features are the same: the text tower is causal and reads the first `end_id`.
    """

    def __init__(self, backend: tokenizers.Tokenizer):
        """Wraps a tokenizer of the `tokenizers` library that knows CLIP's start and end, or SigLIP's end.

        Raises:
          UserError: it does not know them, or has ids without a token.
        """
        self.vocab_size = backend.get_vocab_size()
        if max(backend.get_vocab().values(), default=0) >= self.vocab_size:
            raise UserError("not a tokenizer of CLIP or SigLIP: its ids are not 0, 1, 2, ...")
        backend.no_truncation()
        end = backend.id_to_token(_SIGLIP_END)
        if clip := _clip_ids(backend):
            (self.start_id, self.end_id), self.pad_id = clip, 0
            backend.no_padding()
        elif end in _PAD_OF_END:
            pad = backend.padding["pad_token"] if backend.padding else _PAD_OF_END[end]
            self.start_id, self.end_id, self.pad_id = None, _SIGLIP_END, backend.token_to_id(pad)
            if self.pad_id is None:
                raise UserError(f"not a tokenizer of SigLIP: it does not know {pad!r}, with which it fills rows")
            # Neither touches a text that is encoded by itself and without special tokens; both are saved with the rest.
            backend.enable_padding(pad_id=self.pad_id, pad_token=pad)
            backend.post_processor = processors.TemplateProcessing(["$A", end], special_tokens=[(end, self.end_id)])
        else:
            names = " and ".join(_START_AND_END[0])
            raise UserError(f"not a tokenizer of CLIP or SigLIP: it has no {names}, nor </s> or <eos> as id 1")
        backend.encode_special_tokens = True  # "<|endoftext|>" inside a caption is text
        self._backend = backend
        self._ids = functools.lru_cache(1 << 16)(self._ids_of)  # captions repeat

    def __reduce__(self):
        return type(self), (self._backend,)  # to other processes without the memory of captions

    @classmethod
    def load(cls, path: str | Path = "") -> "Tokenizer":
        """Reads a tokenizer file, or the one of a folder that transformers, open_clip or we wrote.

        The file is a `tokenizer.json`, CLIP's merges (`bpe_simple_vocab_16e6.txt[.gz]`; `merges.txt` with `vocab.json`
        beside it) or sentencepiece's (`spiece.model`, `tokenizer.model`). What the settings beside it say about
        cleaning and padding becomes part of the tokenizer.

        Args:
          path: empty for the one that the environment variable AGRICLIP_BPE names.

        Raises:
          UserError: there is no such file, or it is not such a file.
        """
        path = path or os.environ.get(ENVIRONMENT, "")
        if not path:
            raise UserError(f"no tokenizer file: name a {FILE} or CLIP merges file, or set ${ENVIRONMENT} to one")
        path = Path(path)
        try:
            settings = _settings(path if path.is_dir() else path.parent)
            path = _file_in(path, settings) if path.is_dir() else path
            return cls(_backend(path, settings))
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

    def transformers_files(self, length: int) -> dict[str, bytes]:
        """The files of a folder from which transformers' `AutoTokenizer` and open_clip's `HFTokenizer` give our ids.

        CLIP's is a `CLIPTokenizer`, which cannot hold all of our cleaning: with transformers alone, HTML entities and
        what ftfy mends (curly quotes, full-width letters, ligatures, wrong decodings) give other ids. open_clip cleans
        as we do.

        Args:
          length: of a row.
        """
        backend = _from_json(self._backend.to_str(pretty=False))
        backend.no_padding()
        end, pad = map(backend.id_to_token, (self.end_id, self.pad_id))
        settings = {"eos_token": end, "model_max_length": length, "padding_side": "right"}
        files = {}
        if self.start_id is None:
            settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad, "unk_token": "<unk>"}
            settings |= {"model_input_names": ["input_ids"]}  # SigLIP attends to the padding
        else:
            start = backend.id_to_token(self.start_id)
            settings |= {"tokenizer_class": "CLIPTokenizer", "bos_token": start, "pad_token": end, "unk_token": end}
            backend.normalizer = normalizers.Sequence(
                [normalizers.NFC(), normalizers.Replace(tokenizers.Regex(r"\s+"), " "), normalizers.Lowercase()]
            )
            backend.post_processor = processors.RobertaProcessing(
                (end, self.end_id), (start, self.start_id), trim_offsets=False, add_prefix_space=False
            )
            ids = sorted(backend.get_vocab().items(), key=lambda item: item[1])
            merges = json.loads(backend.to_str())["model"]["merges"]
            files["vocab.json"] = json.dumps(dict(ids), ensure_ascii=False)
            files["merges.txt"] = "\n".join(["#version: 0.2", *map(" ".join, merges), ""])
        files[FILE] = backend.to_str(pretty=False)
        files["tokenizer_config.json"] = json.dumps(settings, indent=1)
        names = {key: value for key, value in settings.items() if key.endswith("_token")}
        files["special_tokens_map.json"] = json.dumps(names, indent=1)
        return {name: content.encode() for name, content in files.items()}

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Rows `start, ids of the cleaned text, end, pad, pad, ...`, SigLIP's without start: int32 [n, length].

        A text that is too long loses its tail: its row ends with `end_id`.
        """
        start = () if self.start_id is None else (self.start_id,)
        rows = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = (*start, *self._ids(text)[: length - len(start) - 1], self.end_id)
            row[: len(ids)] = ids
        return rows

    def decode(self, row: Sequence[int]) -> str:
        """The cleaned text of a row of `encode`; CLIP's with words and signs apart by one space."""
        row = list(row)
        return self._backend.decode(row[self.start_id is not None : row.index(self.end_id)]).strip()

    def truncated(self, texts: Iterable[str], length: int) -> int:
        """How many of the texts lose tokens in rows of `length`."""
        return sum(self.count(text) > length for text in texts)

    def count(self, text: str) -> int:
        """How many ids a text takes, start and end included."""
        return len(self._ids(text)) + 1 + (self.start_id is not None)

    def _ids_of(self, text: str) -> tuple[int, ...]:
        cleaned = text if self.start_id is None else clean(text)  # SigLIP's cleaning is the backend's own
        return tuple(self._backend.encode(cleaned, add_special_tokens=False).ids)


def counter() -> tuple[Callable[[str], int], str]:
    """How many tokens a text takes in CLIP's text encoder, start and end included, and by what that is known.

    The file that AGRICLIP_BPE names tells exactly; without it a word counts one token for every five letters begun. Of
    the captions that the project makes nine in ten are then no shorter than for CLIP, and none by more than a few.
    """
    if os.environ.get(ENVIRONMENT):
        tokenizer = Tokenizer.load()
        if tokenizer.start_id is None:
            raise UserError(f"${ENVIRONMENT} names a tokenizer of SigLIP; name CLIP's")
        return tokenizer.count, "CLIP's own tokenizer"
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


def _clip_ids(backend: tokenizers.Tokenizer) -> tuple[int, int] | None:
    """Those of CLIP's start and end; None for a vocabulary that is not CLIP's."""
    ids = (tuple(map(backend.token_to_id, names)) for names in _START_AND_END)
    return next((pair for pair in ids if None not in pair), None)


def _backend(path: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Reads a tokenizer file; SigLIP's gets the cleaning and padding that the settings ask for."""
    content = _bytes(path)
    if path.suffix == ".model":
        backend = sentencepiece.read(content)
    elif path.suffix == ".json":
        backend = _from_json(content.decode("utf-8"))
    else:
        numbering = read_optional(path.with_name("vocab.json")) if path.name == "merges.txt" else {}
        return _clip_bpe(_merges(content.decode("utf-8")), numbering)
    if not _clip_ids(backend):
        kind = settings["tokenizer_class"]
        if kind is None and path.suffix == ".model":  # as big_vision has it
            kind = "GemmaTokenizer" if backend.id_to_token(_SIGLIP_END) == "<eos>" else "canonicalize"
        if steps := _cleaning(
            settings["clean"] or kind, bool(settings["clean"]) or settings.get("do_lower_case", True)
        ):
            backend.normalizer = normalizers.Sequence([*steps, *filter(None, [backend.normalizer])])
        if settings["pad_token"]:
            backend.enable_padding(pad_token=settings["pad_token"])
    return backend


def _cleaning(kind: str | None, lower: bool) -> list[normalizers.Normalizer]:
    """What SigLIP's originals do to a text before its tokenizer sees it.

    Args:
      kind: a tokenizer's class in transformers, or open_clip's name of a cleaning; what is not known here cleans
        nothing: the tokenizer file has it all.
      lower: False keeps the case.
    """
    lower_case = [normalizers.Lowercase()] if lower else []
    if kind in ("lower", "GemmaTokenizer", "Siglip2Tokenizer"):  # SigLIP 2 was trained on lower case, Gemma was not
        return lower_case
    if kind not in ("canonicalize", "SiglipTokenizer"):
        return []
    # Both follow big_vision's `canonicalize_text`, but transformers joins what "_" separates.
    underscores = [normalizers.Replace("_", " ")] if kind == "canonicalize" else []
    punctuation = tokenizers.Regex(f"[{re.escape(string.punctuation)}]")
    spaces = tokenizers.Regex(r"[\s\x1c-\x1f]+")  # Python's \s
    rest = [normalizers.Replace(punctuation, ""), normalizers.Replace(spaces, " "), normalizers.Strip()]
    return [*underscores, *lower_case, *rest]


def _settings(folder: Path) -> dict[str, Any]:
    """What a folder's files say about its tokenizer.

    Returns:
      transformers' settings, and of open_clip's `clean` and `elsewhere` (the repository of the tokenizer's files).
    """
    settings = {"tokenizer_class": None, "pad_token": None}
    settings |= read_optional(folder / "special_tokens_map.json") | read_optional(folder / "tokenizer_config.json")
    try:
        text = read_optional(folder / "open_clip_config.json").get("model_cfg", {}).get("text_cfg", {})
        settings |= {"clean": text.get("tokenizer_kwargs", {}).get("clean"), "elsewhere": text.get("hf_tokenizer_name")}
    except AttributeError as error:
        raise UserError(f"open_clip_config.json is damaged ({error})") from error
    if isinstance(settings["pad_token"], dict):
        settings["pad_token"] = settings["pad_token"].get("content")
    for name in ("tokenizer_class", "pad_token", "clean", "elsewhere"):
        if not isinstance(settings[name], str | None):
            raise UserError(f"the settings beside it are damaged: {name} is no text")
    if settings["tokenizer_class"]:
        settings["tokenizer_class"] = settings["tokenizer_class"].removesuffix("Fast")
    return settings


def _file_in(folder: Path, settings: Mapping[str, Any]) -> Path:
    """The file that decides a folder's ids."""
    names = list(FILES)
    if settings["tokenizer_class"] == "SiglipTokenizer":  # which reads no tokenizer.json
        names.insert(0, "spiece.model")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    wanted = f"the files of {settings['elsewhere']}" if settings["elsewhere"] else "CLIP's merges file"
    raise UserError(f"the folder has no {', no '.join(names)}; name {wanted}, apart")


def _bytes(path: Path) -> bytes:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise UserError(f"{path.name} has more than {_MOST_BYTES >> 20} MiB")
    return content


def _clip_bpe(merges: list[tuple[str, str]], numbering: Mapping[str, int] | None = None) -> tokenizers.Tokenizer:
    """CLIP's machine with these merges.

    Args:
      merges: best first.
      numbering: id of each token; CLIP's own when there is none.
    """
    letters = _byte_letters()
    words = [*letters, *(letter + _WORD_END for letter in letters), *map("".join, merges), *_START_AND_END[0]]
    numbering = numbering or {word: i for i, word in enumerate(words)}
    for merge in merges:
        if not numbering.keys() >= {*merge, "".join(merge)}:
            raise UserError(f"the merge {' '.join(merge)[:40]!r} is of tokens out of vocabulary")
    try:
        model = models.BPE(numbering, merges, end_of_word_suffix=_WORD_END)
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
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library's own kind is Exception itself, and its panics are not even that
        raise UserError(f"not a {FILE}: {error}") from error
