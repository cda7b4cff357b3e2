"""Sentencepiece's `.model` files, read without sentencepiece: SigLIP's unigram vocabulary, SigLIP 2's (Gemma's) BPE.

The file is one protocol buffer, `sentencepiece_model.proto`. Of it we need the pieces, the kind of model and how texts
are normalised; from them the `tokenizers` library makes the same ids, except that a mark which combines with a
character that the vocabulary's map changes is lost.
"""

import math
import struct
from collections import defaultdict
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers

from agriclip_jax.errors import UserError

_MOST_BYTES = 16 << 20  # of a file; Gemma's has 4
_LONGEST_PIECE = 256
_SPACE = "▁"  # what sentencepiece writes for a space
_UNIGRAM, _BPE = 1, 2  # kinds of model
_NORMAL, _UNKNOWN, _CONTROL, _OF_USER = 1, 2, 3, 4  # kinds of piece


def read(content: bytes) -> tokenizers.Tokenizer:
    """The tokenizer of a `.model` file.

    Args:
      content: of the file; not trusted.

    Raises:
      UserError: it is no such file, or of a kind that no SigLIP has.
    """
    if len(content) > _MOST_BYTES:
        raise UserError(f"a sentencepiece model of more than {_MOST_BYTES >> 20} MiB is not read")
    try:
        proto = _fields(content)
        trainer, spec = (_fields(_last(proto, number, b"")) for number in (2, 3))
        pieces = [_piece(each) for each in proto[1] if isinstance(each, bytes)]
        ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
        (unknown,) = (piece for piece, _, kind in pieces if kind == _UNKNOWN)
        if len(ids) < len(pieces):
            raise ValueError("two pieces are the same")
        algorithm, byte_fallback = _last(trainer, 3, _UNIGRAM), bool(_last(trainer, 35, 0))
        plain = not _last(trainer, 24, 0) and _last(spec, 5, 1)  # treat_whitespace_as_suffix, escape_whitespaces
        normaliser = _normaliser(spec)
    except (ValueError, IndexError, struct.error) as error:
        raise UserError(f"not a sentencepiece model, or damaged ({error})") from error
    if algorithm not in (_UNIGRAM, _BPE) or not plain:
        raise UserError("only sentencepiece models of kind unigram or BPE that write a space before a word are read")

    if algorithm == _UNIGRAM:  # in which "<unk>" inside a text is the piece of that name; SigLIP's have no "<" left
        scores = [(piece, score) for piece, score, _ in pieces]
        model = models.Unigram(scores, unk_id=ids[unknown], byte_fallback=byte_fallback)
    else:
        model = models.BPE(ids, _merges(pieces, ids), unk_token=unknown, fuse_unk=True, byte_fallback=byte_fallback)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normaliser
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(_SPACE, " ")])
    backend.add_tokens(
        [
            AddedToken(piece, normalized=False, special=kind == _CONTROL)
            for piece, _, kind in pieces
            if kind in (_CONTROL, _OF_USER)
        ]
    )
    return backend


def _normaliser(spec: dict[int, list]) -> normalizers.Normalizer:
    charsmap = _last(spec, 2, b"")
    _check_charsmap(charsmap)
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    if _last(spec, 4, 1):  # remove_extra_whitespaces
        extra = {r"\A +| +\z": "", " {2,}": " "}  # of spaces alone: `Strip` takes more
        steps += [normalizers.Replace(tokenizers.Regex(pattern), kept) for pattern, kept in extra.items()]
    if _last(spec, 3, 1):  # add_dummy_prefix
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _merges(pieces: list[tuple[str, float, int]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """All ways to join two pieces to a third, the best third first; sentencepiece stores only the thirds."""
    joined = [piece for piece, _, kind in sorted(pieces, key=lambda piece: -piece[1]) if kind in (_NORMAL, _OF_USER)]
    parts, merges = set(joined), []
    for piece in joined:
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        merges += sorted((pair for pair in pairs if parts.issuperset(pair)), key=lambda pair: ids[pair[0]])
    return merges


def _piece(content: bytes) -> tuple[str, float, int]:
    """Text, score (log-probability, or minus the rank), kind."""
    fields = _fields(content)
    piece, (score,) = _last(fields, 1, b"").decode("utf-8"), struct.unpack("<f", _last(fields, 2, bytes(4)))
    if not 0 < len(piece) <= _LONGEST_PIECE or not math.isfinite(score):
        raise ValueError("a piece is empty or too long, or its score is not finite")
    return piece, score, _last(fields, 3, _NORMAL)


def _check_charsmap(content: bytes) -> None:
    """Raises ValueError where looking up some text in a charsmap would leave its tables.

    It is a size, a Darts double array of so many bytes, and the replacements, each ended by a zero.
    """
    if not content:
        return
    (size,) = struct.unpack_from("<I", content)
    units, texts = np.frombuffer(content[4 : 4 + size], "<u4"), content[4 + size :]
    texts.decode("utf-8")
    if not units.size or units.nbytes != size:
        raise ValueError("its character map is cut off")
    leaf = units >> 31 == 1
    following = np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6))
    ends = following[~leaf & (units & 256 > 0)]  # where what was read so far has a replacement
    starts = np.frombuffer(texts, np.uint8) & 0xC0 != 0x80
    inside = (following[~leaf] | 255 < len(units)).all()  # whichever byte comes next
    if not (inside and leaf[ends].all() and starts[units[leaf] & 0x7FFFFFFF].all()):
        raise ValueError("its character map points outside itself")


def _last(fields: dict[int, list], number: int, default: Any) -> Any:
    """A field that is not repeated: its last value counts.

    Raises:
      ValueError: it is of another type than its default.
    """
    value = fields[number][-1] if number in fields else default
    if not isinstance(value, type(default)):
        raise ValueError(f"field {number} is of another type")
    return value


def _fields(content: bytes) -> dict[int, list]:
    """The fields of a protocol buffer by number: whole numbers as int, all others as bytes."""
    fields, at = defaultdict(list), 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while shift < 64:
            byte = content[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value
        raise ValueError("a number is too long")

    while at < len(content):
        tag = number()
        if tag & 7 == 0:
            value = number()
        else:
            size = {1: 8, 5: 4}.get(tag & 7) or (number() if tag & 7 == 2 else math.inf)
            if size > len(content) - at:
                raise ValueError("it is cut off")
            value = content[at : at + size]
            at += size
        fields[tag >> 3].append(value)
    return fields
