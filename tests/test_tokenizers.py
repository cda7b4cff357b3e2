"""Captions to ids: cleaning, CLIP's files, a BPE trained on captions, rows and what is cut from them."""

import gzip
import json
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
