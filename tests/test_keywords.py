"""Keywords: where they come from, and in which captions they occur."""

import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax.data.keywords import Keywords, choose, of_classes
from agriclip_jax.data.records import DatasetRecord
from agriclip_jax.errors import UserError

CAPTIONS = [
    "A photo of a Coffee leaf, with RUST.",
    "bean leaf-spot; seen from above",
    "an image of a healthy tomato leaf",
    "rusty iron",
]


def found(keyword):
    return [bool(Keywords([keyword]).mentioned(caption)[0]) for caption in CAPTIONS]


@pytest.mark.parametrize(
    ("keyword", "where"),
    [
        ("rust", [True, False, False, False]),  # not in "rusty"
        ("coffee leaf with rust", [True, False, False, False]),
        ("Leaf Spot", [False, True, False, False]),
        ("leaf-spot", [False, True, False, False]),
        ("leaf", [True, True, True, False]),
        ("tomato", [False, False, True, False]),
        ("leaf rust", [False] * 4),
    ],
)
def test_a_keyword_is_found_as_whole_words_whatever_case_and_punctuation(keyword, where):
    assert found(keyword) == where


WORDS = st.lists(st.sampled_from(["leaf", "Rust", "spot", "red", "a"]), min_size=1, max_size=6)


@settings(deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=5, unique_by=lambda w: " ".join(w).lower()), WORDS, st.sampled_from(" -,_"))
def test_what_is_mentioned_equals_a_search_for_each_keyword(keywords, caption, mark):
    phrases = [" ".join(words) for words in keywords]
    wanted = [re.search(rf"\b{phrase.lower()}\b", " ".join(caption).lower()) is not None for phrase in phrases]
    np.testing.assert_array_equal(Keywords(phrases).mentioned(mark.join(caption)), wanted)


def test_classes_are_named_as_captions_name_them():
    banana = DatasetRecord("crop", {"healthy": "healthy", "rust": "rust"})
    birds = DatasetRecord("poultry", {"hen": "hen", "": ""})
    assert of_classes({"banana_leaf": banana, "birds": birds}) == [
        "healthy banana leaf",
        "banana leaf with rust",
        "hen",
    ]
    assert of_classes({"banana_leaf": banana, "birds": birds}, ("poultry",)) == ["hen"]


def test_keywords_that_no_caption_has_are_left_out_and_said():
    kept, notes = choose("classes", CAPTIONS, ["coffee leaf with rust", "maize", "Tomato leaf", "tomato LEAF", "goat"])
    assert kept == ("coffee leaf with rust", "Tomato leaf")
    assert notes == [
        "keywords: 2 (classes)",
        "keywords: 2 more occur in no caption and are left out, such as 'maize'",
    ]
    assert choose("classes", CAPTIONS, ["rust"]) == (("rust",), ["keywords: 1 (classes)"])


def test_a_file_has_a_keyword_on_each_line(tmp_path):
    file = tmp_path / "keywords.txt"
    file.write_text("rust\n\n  Leaf spot \n...\ncafé\n", encoding="utf-8")
    assert choose(f"file:{file}", [*CAPTIONS, "CAFÉ"], [])[0] == ("rust", "Leaf spot", "café")


def test_yake_finds_phrases_of_at_most_two_words_that_captions_have():
    captions = [f"a {state} {crop} leaf" for state in ("blighted", "healthy", "rusty") for crop in ("coffee", "tomato")]
    kept, _ = choose("yake:8", captions, [])
    assert 4 <= len(kept) <= 8 and all(1 <= len(keyword.split()) <= 2 for keyword in kept)
    assert {"coffee leaf", "tomato leaf"} <= set(kept)
    assert len(choose("yake:3", captions, [])[0]) == 3


def test_without_the_package_yake_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "yake", None)
    with pytest.raises(UserError, match=r"yake:5 needs the package yake: pip install -e '.\[keywords\]'"):
        choose("yake:5", CAPTIONS, [])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("clases", r"config.sclip.keywords: unknown 'clases'; did you mean 'classes'"),
        ("yake:many", r"config.sclip.keywords: unknown 'yake:many'; did you mean 'yake:N'"),
        ("yake:0", r"unknown 'yake:0'"),
        ("file:", r"unknown 'file:'"),
        ("file:/no.txt", r"config.sclip.keywords: /no.txt cannot be read \(No such file or directory\)"),
        (
            "classes",
            r"config.sclip.keywords=classes: none of its 2 keywords occurs in a training caption, such as 'goat'; name "
            r"others, or set config.sclip.keyword_weight=0",
        ),
    ],
)
def test_keywords_that_cannot_be_are_one_line(spec, words):
    with pytest.raises(UserError, match=words) as error:
        choose(spec, CAPTIONS, ["goat", "hen"])
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_text_is_one_line(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match=r"photo.jpg cannot be read \(it is not UTF-8 text\); give one keyword a line"):
        choose(f"file:{tmp_path / 'photo.jpg'}", CAPTIONS, [])
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match=r"none of its 0 keywords occurs"):
        choose(f"file:{tmp_path / 'empty'}", CAPTIONS, [])
