"""Classes get new captions from a language model, and none that a careful reader would strike out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import answers, said, says, serving, status

from agriclip_jax.data import endpoint
from agriclip_jax.data.endpoint import Endpoint
from agriclip_jax.data.rewriting import Subject, class_fault, form_fault, lines, prompt_text, rewrite

RUST = Subject(
    key="coffee/rust",
    phrase="a coffee leaf with rust",
    class_name="coffee leaf with rust",
    domain="crop",
    signs=("powdery orange spots below", "up to 5 yellow halos"),
    others=("healthy coffee leaf", "coffee leaf with miner", "leaf", "robusta coffee leaf with brown rust"),
    taken=("a photo of a coffee leaf with rust.",),
)
HEALTHY = Subject("coffee/healthy", "a healthy coffee leaf", "healthy coffee leaf", "crop", others=(RUST.class_name,))
CALM = "a coffee leaf with rust in a calm green field"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No back-off, no key and no proxy."""
    monkeypatch.setattr(endpoint, "BACK_OFF", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def count_words(text):
    return len(text.split())


def rewritten(folder, text, *subjects, count=3):
    """What becomes of the subjects when the model answers each with this text."""
    with serving(answers(lambda payload: text)) as server:
        asked = Endpoint(server.url, "tiny", cache=folder / "cache", workers=1)
        return rewrite(subjects or [RUST], asked, count=count, count_tokens=count_words)


# ---- end to end ------------------------------------------------------------------------------------------------------


def test_a_class_gets_the_captions_that_are_good(tmp_path):
    written = f"""Sure, here are 5 captions:
1. {CALM}
2. Rust in powdery orange spots on the lower side of coffee leaves
3. A photo of a coffee leaf with rust.
4. {CALM.upper()}.
5. a coffee leaf with miner and rust
6. rust on a leaf
7. **a coffee leaf with rust** at https://example.org
8. a rusty coffee leaf, rust and rust again"""
    result = rewritten(tmp_path, written, count=9)
    assert result.captions == {
        "coffee/rust": [
            CALM,
            "Rust in powdery orange spots on the lower side of coffee leaves",
            "a rusty coffee leaf, rust and rust again",
        ]
    }
    assert result.rejects == {
        "a remark, no caption": 1,
        "repeated": 2,
        "names another class": 1,
        "does not name its class": 1,
        "a link": 1,
    }
    assert (result.accepted, result.fallen_back, result.errors) == (3, [], {})
    assert result.usage.requests == 1


def test_more_are_asked_for_than_are_kept(tmp_path):
    with serving(answers(lambda payload: "\n".join(f"{CALM} {word}" for word in "abcdefgh"))) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path)
        result = rewrite([RUST], asked, count=4, count_tokens=count_words)
    assert result.captions["coffee/rust"] == [f"{CALM} {word}" for word in "abcd"] and not result.rejects
    assert "Write exactly 6 lines" in said(server.payloads[0])


def test_no_text_is_shared_by_two_classes(tmp_path):
    twin = Subject("tea/rust", RUST.phrase, RUST.class_name, "crop", taken=("Rust on one coffee leaf",))
    result = rewritten(tmp_path, f"{CALM}\nrust on one coffee leaf.", RUST, twin)
    assert result.captions == {"coffee/rust": [CALM]}
    assert result.rejects == {"repeated": 3} and result.fallen_back == ["tea/rust"]


def test_a_class_without_a_good_caption_falls_back(tmp_path):
    result = rewritten(tmp_path, f"I cannot do that.\n{CALM}", RUST, HEALTHY)
    assert result.fallen_back == ["coffee/healthy"] and list(result.captions) == ["coffee/rust"]


def test_a_dead_endpoint_costs_no_class_its_captions_and_gives_the_reason(tmp_path):
    with serving(status(404, "no such model")) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path, workers=1)
        subjects = [Subject(f"set/{n}", "a leaf", "leaf", "crop") for n in range(9)]
        result = rewrite(subjects, asked, count=3, count_tokens=count_words)
    assert result.fallen_back == [subject.key for subject in subjects] and not result.captions
    assert sorted(result.errors.values()) == [4, 5] and all("no such model" in error for error in result.errors)


def test_a_second_run_gives_the_same_and_asks_nothing(tmp_path):
    with serving(says(CALM)) as server:
        results = [
            rewrite([RUST, HEALTHY], Endpoint(server.url, "tiny", cache=tmp_path), count=3, count_tokens=count_words)
            for _ in range(2)
        ]
    assert results[0].captions == results[1].captions and len(server.payloads) == 2
    assert (results[1].usage.requests, results[1].usage.cached) == (0, 2)


def test_the_model_is_told_what_the_class_is_and_what_it_is_not():
    told = prompt_text(RUST, 7)
    for part in (RUST.phrase, RUST.class_name, "crop", *RUST.signs, *RUST.others, "exactly 7 lines", "No numbers"):
        assert part in told
    bare = prompt_text(Subject("a/b", "a leaf", "leaf", "other"), 7)
    assert "can be seen in such photos" not in bare and "Never name" not in bare


# ---- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a green leaf\na wet fish",
        "1. a green leaf\n2. a wet fish",
        "1) a green leaf\n\n2) a wet fish\n",
        "[1] a green leaf\n[2] a wet fish",
        "- a green leaf\r\n- a wet fish",
        "* a green leaf\n* a wet fish",
        "• a green leaf\n• a wet fish",
        "**1.** a green leaf\n**2.** a wet fish",
        "Caption 1: a green leaf\n**Caption 2:** a wet fish",
        '"a green leaf"\n“a wet fish”',
        '1. "a green leaf",\n2. "a wet fish"',
        '["a green leaf", "a wet fish"]',
        '```json\n["a green leaf",\n "a wet fish"]\n```',
        '{"captions": ["a green leaf", "a wet fish"]}',
        '```json\n"a green leaf",\n"a wet fish"\n```',
        '["a green leaf\\na wet fish"]',
        "\ta  green\N{NO-BREAK SPACE}leaf\n\x1f a wet fish",
        "<think>1. a red herring\n[</think>\na green leaf\na wet fish",
    ],
)
def test_captions_are_read_in_whatever_form_they_come(text):
    assert lines(text) == ["a green leaf", "a wet fish"]


@pytest.mark.parametrize(
    "text", ["3 leaves", "2.5 leaves", "a - b", "a caption: b", "leaf's edge", "x [1] y", "[1, 2]"]
)
def test_what_only_looks_like_a_form_is_left_alone(text):
    assert lines(text) == [text]


@settings(deadline=None)  # a busy machine may pause for long
@given(st.text(alphabet=st.characters() | st.sampled_from('\n"[]*-1. `<>:')))
def test_any_text_can_be_read_and_judged(text):
    for line in lines(text):
        assert line.strip() == line != ""
        form_fault(line, count_words, 60), class_fault(line, RUST)


@pytest.mark.parametrize("text", ["[" * 200_000, "caption" + " " * 1_000_000, "1" * 1_000_000, "- " * 500_000])
def test_the_longest_answers_are_read_in_no_time(text):
    for line in lines(text):
        assert form_fault(line, count_words, 60)


# ---- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (CALM, ""),
        ("Great egret (Ardea alba) at a pond's edge: white, long-necked; 60% of the frame", ""),
        ("sure-footed goats, noted for its dataless horns", ""),
        ("a leaf\na fish", "several lines"),
        ("a leaf with\x07 a bell", "not printable"),
        ("a leaf with \N{ZERO WIDTH SPACE}nothing", "not printable"),
        ("a leaf with \N{REPLACEMENT CHARACTER} spots", "not printable"),
        ("see https://example.org for a leaf", "a link"),
        ("a leaf from example.com here", "a link"),
        ("a leaf in photo 12.jpg here", "a link"),
        ("a <b>leaf</b> with spots", "markup"),
        ("a leaf, **rusty**, with spots", "markup"),
        ("a leaf [see below] with spots", "markup"),
        ("a leaf &amp; its spots", "markup"),
        ("# a leaf with spots", "markup"),
        ("Sure! A leaf with spots", "a remark, no caption"),
        ("Here are leaves with spots", "a remark, no caption"),
        ("Here’s a leaf with spots", "a remark, no caption"),
        ("As an AI model I see no leaf", "a remark, no caption"),
        ("I'm sorry, but I see no leaf", "a remark, no caption"),
        ("I cannot see a leaf", "a remark, no caption"),
        ("Leaf, caption 1: with spots", "a remark, no caption"),
        ("a leaf of the PlantVillage dataset", "a remark, no caption"),
        ("Leaves that have many spots:", "a remark, no caption"),
        ("a leaf", "too short"),
        ("... !!! ??? - -", "too short"),
        ("leaf " * 10, ""),
        ("leaf " * 11, "too long"),
        ("a leaf " + "x" * 100, "too long"),
    ],
)
def test_what_is_no_caption_has_its_fault_named(text, fault):
    assert form_fault(text.strip(" "), count_words, 20 if not fault else 10) == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("coffee leaves whose rusts shine", ""),
        ("RUST on a Coffee-leaf", ""),
        ("a coffee leaf with 5 spots of rust", ""),  # it was told of 5
        ("a coffee leaf with 7 spots of rust", "an invented number"),
        ("rust on a coffee plant", "does not name its class"),
        ("a coffee leaf with rusty spots", "does not name its class"),
        ("rust beside a healthy coffee leaf", "names another class"),
        ("miners in a coffee leaf with rust", "names another class"),
        ("a robusta coffee leaf with brown rust", "names another class"),
        ("a coffee leaf with brown rust", ""),
    ],
)
def test_a_caption_is_of_its_class_and_of_no_other(text, fault):
    assert class_fault(text, RUST) == fault


def test_a_class_whose_name_holds_anothers_can_be_named():
    brown = Subject(
        "a/b", "a coffee leaf with brown rust", "coffee leaf with brown rust", "crop", others=("coffee leaf with rust",)
    )
    assert class_fault("brown rust on a coffee leaf", brown) == ""
