"""Our tokenizers give the originals' ids: OpenAI's (as open_clip has it), transformers' CLIP, SigLIP and SigLIP 2.

No vocabulary of SigLIP can be had here, so sentencepiece trains small ones with the settings of the released ones.
"""

import base64
import functools
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import originals
import pytest
from farm_texts import TEXTS as FARM_TEXTS
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_weight_families import VISION, WORDS, imported, said

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
    assume("\u0345" not in cleaned)  # the one character that open_clip's pattern loses: no letter, nor other than one
    np.testing.assert_array_equal(ours.encode([text], LENGTH), theirs([text], LENGTH).numpy())


def test_ids_are_equal_on_500_texts_about_farms(both):
    ours, theirs = both
    assert len(FARM_TEXTS) == len(set(FARM_TEXTS)) == 500
    np.testing.assert_array_equal(ours.encode(FARM_TEXTS, LENGTH), theirs(list(FARM_TEXTS), LENGTH).numpy())


def test_the_estimate_without_clips_file_is_seldom_short_and_never_by_much(both):
    ours, _ = both
    texts = [f"a plant with {fact.name}, showing {sign}." for fact in knowledge.shipped() for sign in fact.signs]
    exact = (ours.encode(texts, LENGTH) != ours.pad_id).sum(axis=1)
    short = exact - np.array([tokenizers.estimated_tokens(text) for text in texts])
    assert (short <= 0).mean() > 0.85 and short.max() <= 6


SIGLIP = {"model_type": "unigram", "vocab_size": 800, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
GEMMA = {"model_type": "bpe", "vocab_size": 1200, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
GEMMA |= {"eos_piece": "<eos>", "bos_piece": "<bos>", "byte_fallback": True, "split_digits": True}
GEMMA |= {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}


def sentencepiece_model(path, **settings):
    """Trains on farm texts in lower case."""
    library = pytest.importorskip("sentencepiece")
    file = io.BytesIO()
    sentences = (text for text in map(tokenizers.clean, FARM_TEXTS) if len(text) < 300)
    library.SentencePieceTrainer.train(
        sentence_iterator=sentences, model_writer=file, minloglevel=2, num_threads=1, hard_vocab_limit=False, **settings
    )
    path.write_bytes(file.getvalue())
    return path


@pytest.fixture(scope="module")
def siglip(torch, tmp_path_factory):
    """A folder as google/siglip-base-patch16-224 has it, and transformers' tokenizer from it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("siglip")
    model = sentencepiece_model(folder / "spiece.model", **SIGLIP)
    theirs = transformers.SiglipTokenizer(str(model))
    theirs.save_pretrained(folder)
    return folder, transformers.SiglipTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def siglip2(torch, tmp_path_factory):
    """The same of SigLIP 2: Gemma's kind of vocabulary in transformers' class."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("siglip2")
    backend = tokenizers.sentencepiece.read(sentencepiece_model(folder / "tokenizer.model", **GEMMA).read_bytes())
    model = json.loads(backend.to_str())["model"]
    theirs = transformers.Siglip2Tokenizer(
        model["vocab"],
        [tuple(merge) for merge in model["merges"]],
        **{"add_bos_token": False, "add_eos_token": True, "padding_side": "right", "model_max_length": 64},
    )
    theirs.save_pretrained(folder)
    return folder, theirs


def rows(theirs, texts, length=64):
    return theirs(list(texts), padding="max_length", truncation=True, max_length=length).input_ids


loaded = functools.cache(tokenizers.Tokenizer.load)


def no_control_token(text):
    """To us the name of a control token is text, to transformers it is the token."""
    return not any(name in text for name in ("<unk>", "</s>", "<pad>", "<eos>", "<bos>", "<mask>"))


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_a_siglip_folder_gives_transformers_ids_on_500_texts(kind, request):
    folder, theirs = request.getfixturevalue(kind)
    ours = tokenizers.Tokenizer.load(folder)
    assert (ours.vocab_size, ours.start_id, ours.end_id) == (len(theirs), None, 1)
    assert ours.pad_id == theirs.pad_token_id == (1 if kind == "siglip" else 0)
    for length in (64, 9):
        np.testing.assert_array_equal(ours.encode(FARM_TEXTS, length), rows(theirs, FARM_TEXTS, length))
    assert ours.truncated(FARM_TEXTS, 9) > 400 and ours.truncated(FARM_TEXTS, 64) > 2


# The tokenizers library loses a mark that combines with a character which the vocabulary's map changes ("¹" and "༵").
JOINING = ("Mn", "Mc", "Me", "Cf", "Sk", "Lm")


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(exclude_categories=("Cs", "Cn", *JOINING)), max_size=40))
def test_a_siglip_folder_gives_transformers_ids_on_any_text(kind, request, text):
    folder, theirs = request.getfixturevalue(kind)
    assume(no_control_token(text))
    ours = loaded(folder)
    np.testing.assert_array_equal(ours.encode([text], 64), rows(theirs, [text]))


@pytest.mark.parametrize("wanted", [SIGLIP, GEMMA], ids=["unigram", "bpe"])
def test_a_sentencepiece_file_gives_sentencepieces_ids(wanted, torch, tmp_path):
    library = pytest.importorskip("sentencepiece")
    content = sentencepiece_model(tmp_path / "x.model", **wanted).read_bytes()
    ours, theirs = tokenizers.sentencepiece.read(content), library.SentencePieceProcessor(model_proto=content)
    ours.encode_special_tokens = True
    for text in FARM_TEXTS:
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), text


def test_an_open_clip_folder_of_siglip_gives_open_clips_ids_but_where_ftfy_mends(siglip, tmp_path):
    """timm/ViT-B-16-SigLIP's: a T5 tokenizer behind `canonicalize`."""
    open_clip, transformers = pytest.importorskip("open_clip"), pytest.importorskip("transformers")
    folder, _ = siglip
    released = json.loads(tokenizers.sentencepiece.read((folder / "spiece.model").read_bytes()).to_str())
    charsmap = base64.b64decode(released["normalizer"]["normalizers"][0]["precompiled_charsmap"])
    vocabulary = [tuple(piece) for piece in released["model"]["vocab"]]
    t5 = transformers.T5Tokenizer(vocabulary, pad_token="</s>", extra_ids=0, _spm_precompiled_charsmap=charsmap)
    t5.save_pretrained(tmp_path)
    text = {"context_length": 64, "hf_tokenizer_name": "timm/x", "tokenizer_kwargs": {"clean": "canonicalize"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": text}}), encoding="utf-8")
    theirs = open_clip.get_tokenizer(f"local-dir:{tmp_path}")
    texts = [text for text in FARM_TEXTS if is_plain(text)]
    np.testing.assert_array_equal(tokenizers.Tokenizer.load(tmp_path).encode(texts, 64), theirs(texts).numpy())


def is_plain(text):
    """Whether CLIP's cleaning does no more than transformers': NFC, single spaces, lower case."""
    return tokenizers.clean(text) == " ".join(unicodedata.normalize("NFC", text).split()).lower()


def written(tokenizer, length, folder):
    folder.mkdir(exist_ok=True)
    for name, content in tokenizer.transformers_files(length).items():
        (folder / name).write_bytes(content)
    return folder


def filled_with_the_end(rows, end):
    """Rows as transformers pads them."""
    return np.where(np.cumsum(rows == end, axis=1) > 0, end, rows)


@pytest.fixture(scope="module", params=["openai", "trained"])
def clip(request, both):
    return both[0] if request.param == "openai" else tokenizers.train(FARM_TEXTS, 1500)


def test_transformers_reads_our_clip_tokenizer_to_our_ids(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = written(clip, LENGTH, tmp_path / "hf")
    texts = [text for text in FARM_TEXTS if is_plain(text)]
    assert len(texts) > 450
    ours = filled_with_the_end(clip.encode(texts, LENGTH), clip.end_id)
    for reader in (transformers.CLIPTokenizer, transformers.AutoTokenizer):
        np.testing.assert_array_equal(ours, rows(reader.from_pretrained(folder), texts, LENGTH))
    (folder / "tokenizer.json").unlink()  # the oldest transformers read the two others
    np.testing.assert_array_equal(ours, rows(transformers.CLIPTokenizer.from_pretrained(folder), texts, LENGTH))


def test_open_clip_reads_our_clip_tokenizer_to_our_ids_on_every_text(clip, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    folder = written(clip, LENGTH, tmp_path / "hf")
    config = {"model_cfg": {"text_cfg": {"context_length": LENGTH, "hf_tokenizer_name": "ours"}}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours = filled_with_the_end(clip.encode(FARM_TEXTS, LENGTH), clip.end_id)
    np.testing.assert_array_equal(ours, open_clip.get_tokenizer(f"local-dir:{folder}")(list(FARM_TEXTS)).numpy())


def test_we_read_transformers_clip_tokenizer_to_openais_ids(both, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours, theirs = both
    transformers.CLIPTokenizer.from_pretrained(written(ours, LENGTH, tmp_path / "ours")).save_pretrained(tmp_path)
    expected = theirs(list(FARM_TEXTS), LENGTH).numpy()
    np.testing.assert_array_equal(tokenizers.Tokenizer.load(tmp_path).encode(FARM_TEXTS, LENGTH), expected)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_transformers_reads_our_siglip_tokenizer_to_our_ids(kind, request, tmp_path):
    """As it lies beside a model's own config.json, and through the processor."""
    transformers = pytest.importorskip("transformers")
    ours = tokenizers.Tokenizer.load(request.getfixturevalue(kind)[0])
    folder = written(ours, 64, tmp_path / "hf")
    transformers.SiglipConfig().save_pretrained(folder)
    transformers.SiglipImageProcessorPil().save_pretrained(folder)
    expected = ours.encode(FARM_TEXTS, 64)
    np.testing.assert_array_equal(rows(transformers.AutoTokenizer.from_pretrained(folder), FARM_TEXTS), expected)
    processor = transformers.SiglipProcessor.from_pretrained(folder)
    found = processor(text=list(FARM_TEXTS), padding="max_length", truncation=True).input_ids
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(tokenizers.Tokenizer.load(folder).encode(FARM_TEXTS, 64), expected)


# ---- from texts to embeddings ----------------------------------------------------------------------------------------

SHORT = 12  # places of a text tower that many captions overrun
CAPTIONS = (*FARM_TEXTS, *(" ".join(["leaf"] * count) for count in range(1, SHORT)))


def agrees_on_texts(tower, params, ours, texts, wanted, of):
    """Args: ours: the tokenizer; wanted: the original's embeddings of texts by its own; of: family and original."""
    lengths = np.argmax(ours.encode(texts, LENGTH) == ours.end_id, axis=1) + 1
    one = 2 if ours.start_id is None else 3  # a token, between start and end
    assert {one, SHORT - 1, SHORT, SHORT + 1} <= set(lengths) and ours.truncated(texts, SHORT) > 100
    found = said(tower, params, ours.encode(texts, SHORT))
    originals.agree(found, wanted, least_spread=0.1, of=(*of, "text embedding, short to over-long captions"))


def test_captions_of_any_length_through_open_clips_tokenizer_and_tower(both, torch, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 1}
    words = {"context_length": SHORT, "vocab_size": 49_408, "width": 64, "heads": 1, "layers": 2}
    theirs = originals.made(open_clip.CLIP, 24, vision, words, quick_gelu=True)
    torch.save(theirs.state_dict(), tmp_path / "clip.pt")
    name, networks, params = imported(tmp_path / "clip.pt")
    with torch.no_grad():
        wanted = theirs.encode_text(both[1](list(CAPTIONS), SHORT), normalize=True)
    agrees_on_texts(networks["text"], params["text"], both[0], CAPTIONS, wanted, (name, "open_clip"))


def in_transformers(torch, theirs, tokenizer, texts, folder):
    """Embeddings by a model of transformers with its tokenizer, and what our map makes of the model.

    No mask of the padding is given: the tokenizers of SigLIP as released return none.
    """
    theirs.save_pretrained(folder)
    with torch.no_grad():
        found = theirs.get_text_features(torch.tensor(rows(tokenizer, texts, SHORT))).pooler_output
    return torch.nn.functional.normalize(found, dim=-1), *imported(folder)


def test_captions_of_any_length_through_transformers_clip(both, torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    words = {"vocab_size": 49_408, "max_position_embeddings": SHORT, "bos_token_id": 49_406, "eos_token_id": 49_407}
    config = transformers.CLIPConfig(vision_config=VISION, text_config=WORDS | words, projection_dim=24)
    theirs = originals.made(transformers.CLIPModel, config)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(written(both[0], SHORT, tmp_path / "tokenizer"))
    texts = [text for text in CAPTIONS if is_plain(text)]
    wanted, name, networks, params = in_transformers(torch, theirs, tokenizer, texts, tmp_path / "model")
    agrees_on_texts(networks["text"], params["text"], both[0], texts, wanted, (name, "transformers"))


def test_captions_of_any_length_through_transformers_siglip(siglip, torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    folder, tokenizer = siglip
    words = {"vocab_size": len(tokenizer), "max_position_embeddings": SHORT, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.SiglipConfig(vision_config=VISION, text_config=WORDS | words)
    theirs = originals.made(transformers.SiglipModel, config)
    wanted, name, networks, params = in_transformers(torch, theirs, tokenizer, CAPTIONS, tmp_path)
    ours = tokenizers.Tokenizer.load(folder)
    agrees_on_texts(networks["text"], params["text"], ours, CAPTIONS, wanted, (name, "transformers"))
