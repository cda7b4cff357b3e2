"""Captions to ids: cleaning, CLIP's and SigLIP's files, a BPE trained on captions, rows and what is cut from them."""

import gzip
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.data import tokenizers
from agriclip_jax.data.tokenizers import Tokenizer, clean, train
from agriclip_jax.errors import UserError

CAPTIONS = [
    f"a {size} photo of a {crop} leaf with {symptom}"
    for size in ("small", "large")
    for crop in ("coffee", "maize", "rice", "tomato")
    for symptom in ("rust", "blight", "leaf mould", "no symptom; it's healthy")
]
MERGES = '"bpe#version: 0.2\nl e\na f</w>\nle af</w>\nr u\nru s\nrus t</w>\n\n'
# OpenAI's numbering: "!" is the first letter of a byte, "a" the 65th, the same + 256 at the end of a word, then merges.
A, L, LE, LEAF_END, RUST_END, START, END = 64, 75, 512, 514, 517, 518, 519


@pytest.fixture(scope="module")
def trained():
    return train(CAPTIONS, 700)


@pytest.fixture
def merges_file(tmp_path):
    path = tmp_path / "bpe_simple_vocab_16e6.txt"
    path.write_text(MERGES, encoding="utf-8")
    return path


def test_cleaning_is_clips():
    assert clean("  A  Photo\n of\ta LEAF ") == "a photo of a leaf"
    assert clean("salt &amp;amp; pepper") == "salt & pepper"
    assert clean("schÃ¶n") == "schön"  # ftfy mends a wrong decoding
    assert clean("ＲＩＣＥ") == "rice"  # and full-width letters


def test_a_merges_file_gives_clips_numbering(merges_file):
    tokenizer = Tokenizer.load(merges_file)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (520, START, END, 0)
    row = tokenizer.encode(["Leaf  RUST a la le"], 12)[0].tolist()
    assert row == [START, LEAF_END, RUST_END, A + 256, L, A + 256, L, ord("e") - ord("!") + 256, END, 0, 0, 0]


def test_merges_are_applied_by_rank_within_a_word(merges_file):
    tokenizer = Tokenizer.load(merges_file)
    assert tokenizer.encode(["leaflet"], 8)[0, 1] == LE
    # "af" is a merge only at the end of a word.
    assert tokenizer.encode(["leafs"], 8)[0].tolist()[1:4] == [LE, A, ord("f") - ord("!")]


def test_merges_may_be_packed_and_named_by_the_environment(merges_file, monkeypatch):
    packed = merges_file.with_suffix(".txt.gz")
    packed.write_bytes(gzip.compress(MERGES.encode()))
    monkeypatch.setenv("AGRICLIP_BPE", str(packed))
    np.testing.assert_array_equal(
        Tokenizer.load().encode(CAPTIONS, 40), Tokenizer.load(merges_file).encode(CAPTIONS, 40)
    )


def test_no_more_merges_are_read_than_openai_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "_CLIP_MERGES", 3)
    path = tmp_path / "merges.txt"
    path.write_text(MERGES, encoding="utf-8")
    assert Tokenizer.load(path).vocab_size == 512 + 3 + 2


def test_training_fills_the_vocabulary_with_the_words_of_the_captions(trained):
    assert 514 < trained.vocab_size <= 700
    rows = trained.encode(["coffee leaf rust", "zzzz"], 16)
    assert (rows[0] != 0).sum() == 5  # start, three words, end
    assert (rows[1] != 0).sum() == 6  # never seen: letter by letter


def test_training_gives_the_same_tokenizer_in_any_process_and_order(trained, tmp_path):
    script = (
        "import sys, json; from agriclip_jax.data.tokenizers import train;"
        "captions = json.load(sys.stdin); train(captions[::-1], 700).save(sys.argv[1])"
    )
    trained.save(tmp_path / "here.json")
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "there.json"], input=json.dumps(CAPTIONS).encode(), check=True
    )
    assert (tmp_path / "here.json").read_text("utf-8") == (tmp_path / "there.json").read_text("utf-8")


def test_saved_and_loaded_the_ids_are_the_same(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    texts = [*CAPTIONS, "Été à la ferme 🐄", "it's 12.5 %", ""]
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        np.testing.assert_array_equal(loaded.encode(texts, 40), trained.encode(texts, 40))
        assert (loaded.vocab_size, loaded.end_id) == (trained.vocab_size, trained.end_id)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=30))
def test_no_text_is_unknown(trained, text):
    """Every byte of the cleaned text comes back; only the spaces between words and signs are drawn anew."""
    row = trained.encode([text], 400)[0]
    assert (row.min(), row.max()) >= (0, 0) and row.max() < trained.vocab_size
    back = trained.decode(row.tolist())
    expected = clean(text)
    if "</w>" not in expected.replace(" ", ""):
        assert "".join(back.split()) == "".join(expected.split())


def test_rows_are_start_ids_end_and_padding(trained):
    rows = trained.encode(["rust", "coffee leaf with rust"], 8)
    assert rows.dtype == np.int32 and rows.shape == (2, 8)
    assert (rows[:, 0] == trained.start_id).all()
    assert ((rows == trained.end_id).sum(1) == 1).all()
    ends = (rows == trained.end_id).argmax(1)
    assert ends.tolist() == [2, 5]
    assert (rows[0, 3:] == trained.pad_id).all() and trained.pad_id not in (trained.start_id, trained.end_id)
    assert trained.encode([], 8).shape == (0, 8)


def test_a_caption_that_is_too_long_ends_with_the_end_and_is_counted(trained):
    texts = ["coffee leaf rust", "coffee leaf", "coffee leaf with rust"]
    rows = trained.encode(texts, 5)
    assert (rows[:, -1] == trained.end_id).tolist() == [True, False, True]
    np.testing.assert_array_equal(rows[2, :4], trained.encode(texts[2:], 9)[0, :4])
    assert trained.truncated(texts, 5) == 1  # exactly full is not cut
    assert trained.truncated(texts, 6) == 0
    assert trained.truncated(texts, 4) == 2


def test_the_name_of_a_control_token_in_a_caption_is_text(trained):
    row = trained.encode(["rust <|endoftext|> leaf"], 40)[0]
    assert (row == trained.end_id).sum() == 1
    assert trained.decode(row).replace(" ", "") == "rust<|endoftext|>leaf"


def test_a_clip_tokenizer_json_is_read_whatever_padding_it_stores(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.json")
    stored = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    stored["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    stored["padding"] = {
        **{"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1},
        **{"pad_type_id": 0, "pad_token": "x"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored), encoding="utf-8")
    np.testing.assert_array_equal(Tokenizer.load(tmp_path).encode(CAPTIONS, 40), trained.encode(CAPTIONS, 40))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", b"{", "not a tokenizer.json"),
        ("tokenizer.json", b'{"model": 3}', "not a tokenizer.json"),
        (
            "tokenizer.json",
            b'{"version":"1.0","model":{"type":"BPE","vocab":{"l":0,"e":1},"merges":["l e"]}}',
            "json: range",
        ),
        ("tokenizer.json", b"\xff\xfe", "cannot be read"),
        ("tokenizer.json", b'{"version":"1.0","model":{"type":"BPE","vocab":{"a":0},"merges":[]}}', "<|startoftext|>"),
        ("merges.txt", b"#version: 0.2\n", "no merges"),
        ("merges.txt", b"#version: 0.2\na b c\n", "'a b c' is not a merge"),
        ("merges.txt", b"#version: 0.2\nab c\n", "out of vocabulary"),
        ("merges.txt.gz", b"not packed", "gzip"),
        ("merges.txt.gz", gzip.compress(MERGES.encode(), mtime=0)[:-12], "end-of-stream"),
    ],
)
def test_a_malformed_file_is_one_line_that_names_it(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        Tokenizer.load(tmp_path / name)
    line = str(error.value)
    assert str(tmp_path / name) in line and reason in line and "\n" not in line


def test_a_missing_file_or_name_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("AGRICLIP_BPE", raising=False)
    with pytest.raises(UserError, match="AGRICLIP_BPE"):
        Tokenizer.load("")
    with pytest.raises(UserError, match="No such file"):
        Tokenizer.load(tmp_path / "none.json")


def test_a_vocabulary_without_room_for_merges_is_refused():
    with pytest.raises(UserError, match="more than 514"):
        train(CAPTIONS, 300)


# SigLIP's. The letters of the vocabularies have worse scores than the words made of them.
PAD, EOS, UNK = ("<pad>", 0.0, 3), ("</s>", 0.0, 3), ("<unk>", 0.0, 2)
WORDS = ("▁leaf", "▁rust", "▁23", "▁c", "▁", *"aefhlrstuyz¥")
UNIGRAM = [PAD, EOS, UNK, *((word, -1.0 - i, 1) for i, word in enumerate(WORDS))]
GEMMA = [
    *(PAD, ("<eos>", 0.0, 3), ("<bos>", 0.0, 3), ("<unk>", 0.0, 2)),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    *((word, -float(i), 1) for i, word in enumerate(["le", "af", "leaf", "▁leaf", "</s>", *"aefl▁"])),
]
_Y = ord("Y")
_UNITS = {0: 256 << 10, 256 + _Y: _Y | 256 | 256 << 10, _Y: 1 << 31}  # a root, its one child, and what stands instead
CHARSMAP = struct.pack("<I512I", 2048, *(_UNITS.get(i, 0) for i in range(512))) + b"y\0"  # "Y" becomes "y"

OUTSIDE = CHARSMAP.replace(struct.pack("<I", 256 << 10), struct.pack("<I", 512 << 10), 1)


def varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def field(number, value):
    """A field of a protocol buffer."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece(pieces, trainer=((3, 1),), normaliser=()):
    """A `.model` file."""
    parts = [field(1, field(1, text.encode()) + field(2, score) + field(3, kind)) for text, score, kind in pieces]
    specs = [field(n, b"".join(field(*each) for each in spec)) for n, spec in ((2, trainer), (3, normaliser))]
    return b"".join(parts + specs)


UNIGRAM_FILE = sentencepiece(UNIGRAM, normaliser=[(2, CHARSMAP)])
GEMMA_FILE = sentencepiece(GEMMA, trainer=[(3, 2), (35, 1)], normaliser=[(3, 0), (4, 0)])


def put(folder, **files):
    """Files of a folder by their names without the dot; a dictionary becomes JSON."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        content = json.dumps(content).encode() if isinstance(content, dict) else content
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


@pytest.fixture
def siglip(tmp_path):
    return put(
        tmp_path / "siglip", spiece__model=UNIGRAM_FILE, tokenizer_config__json={"tokenizer_class": "SiglipTokenizer"}
    )


@pytest.fixture
def siglip2(tmp_path):
    settings = {"tokenizer_class": "GemmaTokenizer", "pad_token": {"content": "<pad>"}, "add_bos_token": False}
    return put(tmp_path / "siglip2", tokenizer__model=GEMMA_FILE, tokenizer_config__json=settings)


def ids(pieces, *names):
    return [[piece for piece, _, _ in pieces].index(name) for name in names]


def test_siglips_rows_have_no_start_and_are_filled_with_the_end(siglip):
    tokenizer = Tokenizer.load(siglip)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (len(UNIGRAM), None, 1, 1)
    rows = tokenizer.encode(["Leaf, RUST!", "", "leaf rust leaf rust leaf"], 4)
    leaf, rust = ids(UNIGRAM, "▁leaf", "▁rust")
    assert rows.dtype == np.int32
    assert rows.tolist() == [[leaf, rust, 1, 1], [1, 1, 1, 1], [leaf, rust, leaf, 1]]
    assert tokenizer.truncated(["leaf rust leaf", "leaf rust leaf rust"], 4) == 1
    assert tokenizer.decode(rows[0]) == "leaf rust"


def test_siglips_texts_lose_their_case_signs_and_extra_spaces(siglip):
    tokenizer = Tokenizer.load(siglip)
    same = ["23 C leaf", "  23\t°c\x1f\n(leaf) ".replace("°", ""), "2_3 c. <leaf>", "23 c &leaf;"]
    rows = tokenizer.encode(same, 16)
    np.testing.assert_array_equal(rows, np.tile(rows[0], (len(same), 1)))
    assert rows[0].tolist()[:4] == [*ids(UNIGRAM, "▁23", "▁c", "▁leaf"), 1]


def test_case_is_kept_where_the_settings_keep_it(siglip):
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": False}
    tokenizer = Tokenizer.load(put(siglip, tokenizer_config__json=settings))
    unknown, leaf = ids(UNIGRAM, "<unk>", "▁leaf")
    assert tokenizer.encode(["leaf QX"], 8)[0].tolist()[:3] == [leaf, *ids(UNIGRAM, "▁"), unknown]


def test_a_sentencepiece_files_own_characters_are_mapped(siglip):
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": False}
    tokenizer = Tokenizer.load(put(siglip, tokenizer_config__json=settings))
    assert tokenizer.encode(["YX"], 8)[0].tolist()[:3] == ids(UNIGRAM, "▁", "y", "<unk>")


def test_siglip_2s_texts_are_lower_case_and_no_byte_is_unknown(siglip2):
    tokenizer = Tokenizer.load(siglip2)
    assert (tokenizer.vocab_size, tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (len(GEMMA), None, 1, 0)
    row = tokenizer.encode(["Leaf LEAF é!"], 12)[0].tolist()
    expected = ids(GEMMA, "leaf", "▁leaf", "▁", "<0xC3>", "<0xA9>", "<0x21>", "<eos>")
    assert row == [*expected, *[0] * 5]
    assert tokenizer.decode(row) == "leaf leaf é!"


def test_the_name_of_a_control_token_is_text_to_siglip_too(siglip2):
    row = Tokenizer.load(siglip2).encode(["a<eos>a"], 16)[0].tolist()
    assert row.index(1) == 7 and row[0] == row[6]


@pytest.mark.parametrize("name", ["siglip", "siglip2"])
def test_siglips_tokenizer_comes_back_from_one_file_with_its_cleaning_and_padding(name, request, tmp_path):
    tokenizer = Tokenizer.load(request.getfixturevalue(name))
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "run")
    texts = [*CAPTIONS, "Leaf_RUST, 23 °C", ""]
    np.testing.assert_array_equal(loaded.encode(texts, 20), tokenizer.encode(texts, 20))
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.pad_id, loaded.start_id) == (tokenizer.pad_id, None)


@pytest.mark.parametrize("name", ["siglip", "siglip2", "trained"])
def test_the_files_for_transformers_are_read_back_to_the_same_ids(name, request, tmp_path):
    found = request.getfixturevalue(name)
    tokenizer = found if isinstance(found, Tokenizer) else Tokenizer.load(found)
    for file, content in tokenizer.transformers_files(64).items():
        (tmp_path / file).write_bytes(content)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert settings["model_max_length"] == 64
    texts = [*CAPTIONS, "Leaf_RUST, 23 °C", ""]
    expected = tokenizer.encode(texts, 20)
    np.testing.assert_array_equal(Tokenizer.load(tmp_path).encode(texts, 20), expected)
    if name == "trained":
        (tmp_path / "tokenizer.json").unlink()
        assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint  # from vocab.json and merges.txt


def test_an_open_clip_folder_says_how_texts_are_cleaned(siglip2):
    text = {"hf_tokenizer_name": "timm/x", "tokenizer_kwargs": {"clean": "canonicalize"}}
    folder = put(siglip2, open_clip_config__json={"model_cfg": {"text_cfg": text}})
    row = Tokenizer.load(folder).encode(["LEAF_(leaf)"], 8)[0].tolist()
    assert row == [*ids(GEMMA, "leaf", "▁leaf", "<eos>"), *[0] * 5]


def test_a_sentencepiece_file_alone_is_cleaned_as_big_vision_does(tmp_path):
    (tmp_path / "c4_en.model").write_bytes(UNIGRAM_FILE)
    row = Tokenizer.load(tmp_path / "c4_en.model").encode(["Leaf_(RUST)"], 4)[0].tolist()
    assert row == [*ids(UNIGRAM, "▁leaf", "▁rust"), 1, 1]


def test_transformers_siglip_reads_its_spiece_model_and_not_a_tokenizer_json(siglip, trained):
    trained.save(siglip / "tokenizer.json")
    assert Tokenizer.load(siglip).end_id == 1
    put(siglip, tokenizer_config__json={})
    assert Tokenizer.load(siglip).end_id == trained.end_id


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "CLIP's merges file"),
        ({"open_clip_config__json": {"model_cfg": {"text_cfg": {"hf_tokenizer_name": "timm/x"}}}}, "timm/x"),
        ({"open_clip_config__json": {"model_cfg": 3}}, "open_clip_config.json is damaged"),
        ({"tokenizer_config__json": {"pad_token": 3}}, "pad_token is no text"),
        ({"tokenizer_config__json": b"[]"}, "tokenizer_config.json is damaged"),
        ({"tokenizer_config__json": b"[" * 100_000}, "tokenizer_config.json is damaged"),
        ({"spiece__model": UNIGRAM_FILE, "tokenizer_config__json": {"pad_token": "<mask>"}}, "<mask>"),
        ({"spiece__model": UNIGRAM_FILE[:-3]}, "cut off"),
        ({"spiece__model": sentencepiece(UNIGRAM, trainer=[(3, 4)])}, "unigram or BPE"),
        ({"spiece__model": sentencepiece(UNIGRAM, trainer=[(35, b"")])}, "another type"),
        ({"spiece__model": sentencepiece([*UNIGRAM, UNIGRAM[-1]])}, "the same"),
        ({"spiece__model": sentencepiece([*UNIGRAM, ("x", float("nan"), 1)])}, "not finite"),
        ({"spiece__model": sentencepiece([*UNIGRAM, ("x" * 300, 0.0, 1)])}, "too long"),
        ({"spiece__model": sentencepiece(UNIGRAM[:2])}, "not a sentencepiece model"),
        ({"spiece__model": sentencepiece(UNIGRAM[2:])}, "id 1"),
        ({"spiece__model": sentencepiece(UNIGRAM, normaliser=[(2, CHARSMAP[:-2])])}, "out of bounds"),
        ({"spiece__model": sentencepiece(UNIGRAM, normaliser=[(2, OUTSIDE)])}, "points outside"),
        ({"merges__txt": MERGES.encode(), "vocab__json": {"l": 0, "e": 1}}, "out of vocabulary"),
        ({"merges__txt": b"#version: 0.2\nl e\n", "vocab__json": {"l": 0, "e": 1, "le": 900}}, "0, 1, 2"),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line_that_says_why(tmp_path, files, reason):
    with pytest.raises(UserError) as error:
        Tokenizer.load(put(tmp_path, **files))
    line = str(error.value)
    assert str(tmp_path) in line and reason in line and "\n" not in line


@pytest.mark.parametrize("whole", [UNIGRAM_FILE, GEMMA_FILE], ids=["unigram", "bpe"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_damaged_sentencepiece_file_is_refused_or_encodes(whole, data):
    at = data.draw(st.integers(0, len(whole) - 1))
    content = whole[:at] + data.draw(st.binary(max_size=8)) + whole[at + data.draw(st.integers(0, 8)) :]
    try:
        backend = tokenizers.sentencepiece.read(content)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        for text in ("leaf Y\u0301 rust é", "", "YY"):
            assert all(0 <= each < backend.get_vocab_size() for each in backend.encode(text).ids)


def test_captions_are_not_counted_by_siglips_tokenizer(siglip, monkeypatch):
    monkeypatch.setenv("AGRICLIP_BPE", str(siglip))
    with pytest.raises(UserError, match="AGRICLIP_BPE names a tokenizer of SigLIP"):
        tokenizers.counter()
