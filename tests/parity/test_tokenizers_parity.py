"""Our CLIP tokenizer gives the ids of open_clip's `SimpleTokenizer`, which is OpenAI's."""

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agriclip_jax.data import knowledge, tokenizers

pytestmark = pytest.mark.parity

LENGTH = 77
TEXTS = [
    "A photo of a coffee leaf with rust.",
    "a farmer's cow, they're grazing; WE'LL see, I'D say it's 'sheep'",
    "Feuilles abîmées de café — Müller's Äpfel, niño, Ünlü, ﬁsh, ß",
    "naïve vs naïve (composed and not)",
    "🌿🐄 leaf 👩🏽‍🌾 with 🍅!!!",
    "salt &amp; pepper, &amp;lt;b&amp;gt; &eacute;t&eacute; &#127807;",
    "full-width ＲＩＣＥ ｌｅａｆ １２３ 、。「病」",
    "稲のいもち病 и картофель 감자 البطاطس आलू",
    "  white \t\n space\u00a0and\u2003more \u200b ",
    "schÃ¶n mojibake â€“ doesnâ€™t matter",
    "1234.56 m² ½ Ⅷ x10^-3 @#$%^&*()_+{}|:<>?",
    "“curly” ‘quotes’ don’t",
    "word" * 100,
    "İstanbul ſhort KELVIN K Ω",
    "",
]


@pytest.fixture(scope="module")
def both(torch):
    theirs = pytest.importorskip("open_clip.tokenizer")
    ours = tokenizers.Tokenizer.load(Path(theirs.__file__).with_name("bpe_simple_vocab_16e6.txt.gz"))
    return ours, theirs.SimpleTokenizer()


def test_the_vocabulary_has_the_same_shape(both):
    ours, theirs = both
    assert (ours.vocab_size, ours.start_id, ours.end_id) == (49_408, 49_406, 49_407)
    assert (theirs.vocab_size, theirs.sot_token_id, theirs.eot_token_id) == (49_408, 49_406, 49_407)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_equal_on_the_texts_that_usually_differ(both, text):
    ours, theirs = both
    np.testing.assert_array_equal(ours.encode([text], LENGTH), theirs([text], LENGTH).numpy())


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=60))
def test_ids_are_equal_on_any_text_of_characters_that_both_unicode_tables_know(both, text):
    ours, theirs = both
    cleaned = tokenizers.clean(text)
    assume("_of_text>" not in cleaned)  # to us a control token's name inside a caption is text
    assume(all(unicodedata.category(each) != "Cn" for each in cleaned))  # ftfy can make an unassigned character
    np.testing.assert_array_equal(ours.encode([text], LENGTH), theirs([text], LENGTH).numpy())


def test_the_estimate_without_clips_file_is_seldom_short_and_never_by_much(both):
    ours, _ = both
    texts = [f"a plant with {fact.name}, showing {sign}." for fact in knowledge.shipped() for sign in fact.signs]
    exact = (ours.encode(texts, LENGTH) != ours.pad_id).sum(axis=1)
    short = exact - np.array([tokenizers.estimated_tokens(text) for text in texts])
    assert (short <= 0).mean() > 0.85 and short.max() <= 6
