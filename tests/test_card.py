"""The data card: what it says is what was counted, nothing in it is run, and no folder is too small or too large."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agriclip_jax import page
from agriclip_jax.data import card, measure, tokenizers
from agriclip_jax.data.captions import normalise_caption
from agriclip_jax.data.card import Pair, summary, write_card
from agriclip_jax.data.records import Alive, DatasetRecord, Example, write
from agriclip_jax.errors import UserError

EVIL = "<script>alert('x')</script> & \"co\" | `b` _c_"
SECTIONS = [
    "What is in it",
    "Datasets",
    "Classes",
    "Photos",
    "Captions",
    "From found to kept",
    "Duplicates",
    "Licences",
    "How it was made",
]
BUILD = {
    "command": "build_alive.py --source=photos",
    "version": "0.1.0+abc",
    "date": "2025-01-31",
    "sources": [{"slug": "bean", "kind": "zip", "origin": "bean.zip"}],
    "funnel": [["found", 0, 20], ["unreadable", 5, 15], ["near duplicate", 5, 10]],
    "twins": {"exact": 0, "near": 5, "noise": 1, "across_splits": 2},
    "notes": ["a note"],
    "dropped": [["bean/rust/9.png", "is empty"]],
    "dropped_total": 10,
    "endpoints": ["model m: 12 requests"],
    "rejects": {"names another class": 3},
    "unknown": ["white goat"],
}


def photo(kind="PNG", size=(8, 6), colour=120):
    data = io.BytesIO()
    Image.new("RGB", size, (colour, 90, 30)).save(data, kind)
    return data.getvalue()


def example(key, name, number, *, dataset="bean", captions=(("a leaf.", "template"),), **changes):
    texts, kinds = zip(*captions, strict=True)
    fields = {
        "image": photo(colour=number % 250),
        "captions": texts,
        "caption_kinds": kinds,
        "class_name": name,
        "class_key": key,
        "dataset": dataset,
        "domain": "crop",
        "source": f"{dataset}/{key}/{number}.png",
    }
    return Example(**fields | changes)


def write_folder(out, splits, datasets, name="alive"):
    given = {split: (lambda examples=examples: iter(examples)) for split, examples in splits.items()}
    write(out, given, name=name, description="for a test", datasets=datasets)
    return out


def small(out, **about):
    """A folder of one class with one photo."""
    datasets = {"bean": DatasetRecord("crop", {"rust": "bean leaf with rust"}, **about)}
    return write_folder(out, {"train": [example("rust", "bean leaf with rust", 0)]}, datasets)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten photos: beans 4 healthy and 2 rusty, 3 goats, one photo without a class."""
    long = " ".join(["leaf"] * 80)
    healthy = (("a healthy leaf.", "template"), ("A  healthy LEAF", "given"))
    rusty = (("a leaf with rust.", "template"), (long, "described"))
    train = [
        *(example("healthy", "healthy bean leaf", i, captions=healthy) for i in range(3)),
        example("rust", "bean leaf with rust", 3, captions=rusty, image=photo("JPEG", (64, 48))),
        *(
            example("weiß", "weiße Ziege 山羊", i, dataset="ziege", domain="livestock", licence="CC BY 4.0")
            for i in range(2)
        ),
        example("", "", 9, dataset="ziege", domain="livestock", captions=(("a goat on a hill", "given"),)),
    ]
    test = [
        example("healthy", "healthy bean leaf", 10, captions=healthy),
        example("rust", "bean leaf with rust", 11, captions=rusty, image=photo("WEBP", (100, 40))),
        example("weiß", "weiße Ziege 山羊", 12, dataset="ziege", domain="livestock"),
    ]
    classes = {"healthy": "healthy bean leaf", "rust": "bean leaf with rust", "mould": "bean leaf with mould"}
    datasets = {
        "bean": DatasetRecord("crop", classes, "CC0", "me@1"),
        "ziege": DatasetRecord("livestock", {"weiß": "weiße Ziege 山羊", "": ""}, "unknown (web)", "farm"),
    }
    out = write_folder(tmp_path_factory.mktemp("card") / "alive", {"train": train, "test": test}, datasets)
    pairs = [
        Pair("near", "bean/a.png", "bean/b.png", ("rust", "rust"), photo(), photo(colour=9)),
        Pair("noise", "bean/c.png", "ziege/d.png", ("rust", "goat"), photo(), b"broken"),
    ]
    write_card(out, BUILD, pairs)
    return out


@pytest.fixture(scope="module")
def measured(folder):
    return json.loads((folder / "card.json").read_text(encoding="utf-8"))["measured"]


class Page(HTMLParser):
    """Every element as (tag, attributes), its text by tag, and whether all that was opened was closed."""

    def __init__(self, folder):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.html = (folder / "card.html").read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in {"meta", "img", "wbr"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return "".join(text for tag, text in self.texts if tag != "style")

    def text_of(self, tag):
        return [text for of, text in self.texts if of == tag]


# ---- what is measured ------------------------------------------------------------------------------------------------


def test_examples_are_counted_by_split_dataset_and_class(measured):
    assert measured["splits"] == {"train": 7, "test": 3}
    bean, ziege = measured["datasets"]["bean"], measured["datasets"]["ziege"]
    assert (bean["domain"], bean["source"], bean["splits"]) == ("crop", "me@1", {"train": 4, "test": 2})
    assert bean["classes"] == {
        "healthy": {"name": "healthy bean leaf", "photos": {"train": 3, "test": 1}},
        "rust": {"name": "bean leaf with rust", "photos": {"train": 1, "test": 1}},
        "mould": {"name": "bean leaf with mould", "photos": {"train": 0, "test": 0}},
    }
    assert ziege["without a class"] == 1 and list(ziege["classes"]) == ["weiß"]


def test_photos_are_measured_in_pixels_bytes_and_formats(measured, folder):
    photos = measured["photos"]
    assert photos["formats"] == {"PNG": 8, "JPEG": 1, "WEBP": 1}
    assert photos["width"] == {"least": 8, "5 %": 8, "median": 8, "95 %": 100, "most": 100, "mean": 22.8}
    assert photos["short side"]["most"] == 48
    bins = dict(zip(photos["short side from"], photos["histogram"], strict=True))
    assert {edge: count for edge, count in bins.items() if count} == {6: 8, 32: 1, 46: 1}
    source = Alive.open(folder).source
    assert photos["bytes"] == sum(len(row["image"]) for split in ("train", "test") for row in source(split))


def test_captions_are_counted_by_kind_and_length(measured):
    captions = measured["captions"]
    assert {kind: of["captions"] for kind, of in captions["kinds"].items()} == {
        "template": 9,
        "given": 5,
        "described": 2,
    }
    assert captions["captions"] == 16 and captions["a photo"]["mean"] == 1.6
    assert captions["tokens"]["most"] == 82, "80 words of one token, start and end"
    assert captions["truncated"] == captions["kinds"]["described"]["truncated"] == 2
    assert captions["counted by"] == "an estimate, at five letters a token"
    assert set(captions["kinds"]["template"]["examples"]) == {"a healthy leaf.", "a leaf with rust.", "a leaf."}


def test_captions_that_differ_in_nothing_but_their_spelling_are_repeats(measured):
    repeats = measured["captions"]["repeats"]
    # In train: 6 x "a healthy leaf", 2 x "a leaf", "a leaf with rust", the long one, the goat's.
    assert (repeats["split"], repeats["captions"], repeats["distinct"]) == ("train", 11, 5)
    assert repeats["most frequent"][:2] == [["a healthy leaf", 6], ["a leaf", 2]] and repeats["is exact"]


def test_a_photos_own_licence_comes_before_that_of_its_dataset(measured):
    assert measured["datasets"]["bean"]["licences"] == {"CC0": 6}
    assert measured["datasets"]["ziege"]["licences"] == {"CC BY 4.0": 2, "unknown (web)": 2}


def test_lengths_are_counted_by_clips_own_tokenizer_where_there_is_one(tmp_path, monkeypatch):
    tokenizer = tokenizers.train(["a leaf"], 600)
    tokenizer.save(tmp_path / "tokenizer.json")
    monkeypatch.setenv(tokenizers.ENVIRONMENT, str(tmp_path))
    write_card(small(tmp_path / "alive"), {})
    captions = json.loads((tmp_path / "alive" / "card.json").read_text(encoding="utf-8"))["measured"]["captions"]
    assert captions["counted by"] == "CLIP's own tokenizer" in Page(tmp_path / "alive").text
    assert captions["tokens"]["median"] == (tokenizer.encode(["a leaf."], 77)[0] > 0).sum()


def empty_tally():
    records = {"bean": DatasetRecord("crop", {"rust": "rust"})}
    return measure.Tally(Alive(None, {"train": 1, "test": 1}, records, ""))


def row(number, captions, **changes):
    image = photo()
    plain = {"dataset": "bean", "class_key": "rust", "source": f"{number}.png", "licence": "", "image": image}
    return plain | {"captions": captions, "caption_kinds": ["given"] * len(captions)} | changes


texts = st.lists(st.text("aAéß. 1字", max_size=3) | st.integers(60, 90).map("ab ".__mul__), min_size=1, max_size=5)


@settings(deadline=None)  # a busy machine may pause for long
@given(st.lists(texts, min_size=1, max_size=8))
def test_shares_of_repeats_and_of_cut_captions_are_those_of_a_plain_count(captions):
    tally = empty_tally()
    for number, of_photo in enumerate(captions):
        tally.add("train", number, row(number, of_photo))
    alike = [normalise_caption(text) for of_photo in captions for text in of_photo]
    assert len(tally.hashes) == len(alike) and len(set(tally.hashes)) == len(set(alike))
    cut = sum(tokenizers.estimated_tokens(text) > 77 for of_photo in captions for text in of_photo)
    assert measure.lengths(tally.tokens["given"])["truncated"] == cut
    assert dict(tally.frequent.first(99)) == {text: alike.count(text) for text in alike}


@settings(deadline=None)  # a busy machine may pause for long
@given(st.lists(st.integers(1, 2**15), min_size=1))
def test_quantiles_and_bins_are_numpys(values):
    counts = {value: values.count(value) for value in values}
    quantiles = measure.quantiles(counts)
    ranks = {"least": 0, "5 %": 5, "median": 50, "95 %": 95, "most": 100}
    for name, rank in ranks.items():
        assert quantiles[name] == np.percentile(values, rank, method="inverted_cdf")
    edges = measure.SIDE_EDGES
    assert measure.histogram(counts, edges) == np.histogram(values, [*edges, 2**16])[0].tolist()


@settings(deadline=None)  # a busy machine may pause for long
@given(st.permutations([(group, str(key)) for group in "ab" for key in range(9)] * 2))
def test_samples_do_not_depend_on_the_order(entries):
    def kept(entries):
        sample = measure.Sample(4)
        for group, key in entries:
            sample.add(group, key)
        return {group: [key for _, key, _ in kept] for group, kept in sample.groups.items()}

    assert kept(entries)["a"] == kept(sorted(entries))["a"] and len(kept(entries)["b"]) == 4


def test_the_pass_holds_only_what_is_bounded(monkeypatch):
    monkeypatch.setattr(measure, "TEXTS", 64)
    tally, count = empty_tally(), 1000
    for number in range(count):
        tally.add("train", number, row(number, ["often said", f"said once {number}"], licence=f"licence {number}"))
    assert len(tally.places.groups["bean", "rust"]) == measure.PLACES
    assert len(tally.examples.groups["given"]) == measure.EXAMPLES
    assert len(tally.licences["bean"]) <= measure.LICENCES + 1
    assert len(tally.frequent.counts) <= 64 and tally._known.cache_info().maxsize == 64
    assert tally.hashes.itemsize * len(tally.hashes) == 8 * 2 * count
    assert tally.frequent.first(1) == [("often said", count)] and not tally.frequent.is_exact


# ---- what the card says ----------------------------------------------------------------------------------------------


def test_the_page_has_a_section_for_all_that_is_known(folder):
    shown = Page(folder)
    assert shown.text_of("h2") == SECTIONS
    for told in ("build_alive.py --source=photos", "0.1.0+abc", "2025-01-31", "a note", "bean.zip", "is empty"):
        assert told in shown.text
    for told in ("model m: 12 requests", "names another class", "white goat", "10 photos, the first 1 here"):
        assert told in shown.text
    assert Alive.open(folder).fingerprint in shown.text


def test_sections_without_content_are_left_out(tmp_path):
    write_card(small(tmp_path / "alive", licence="MIT"), {})
    shown = Page(tmp_path / "alive")
    assert shown.text_of("h2") == [name for name in SECTIONS if name not in ("From found to kept", "Duplicates")]
    assert not shown.all("details")[1:] and not shown.all("pre")
    assert "no licence stated" not in shown.text
    assert "## Duplicates" not in (tmp_path / "alive" / "card.md").read_text(encoding="utf-8")


def test_the_balance_of_classes_is_said(folder):
    text = Page(folder).text
    assert "healthy bean leaf (bean), 4 photos" in text and "bean leaf with rust (bean), 2 photos" in text
    assert "2 to 1" in text and "1: bean leaf with mould" in text
    assert "3: bean leaf with rust (2), weiße Ziege 山羊 (3), healthy bean leaf (4)" in text, "fewer than ten"


def test_what_has_no_licence_is_said_plainly(folder):
    shown = Page(folder)
    (warning,) = [text for text in shown.text_of("p") if "no licence stated" in text]
    assert warning == "2 photos of 1 dataset: no licence stated; ask before you share a model or photos."
    rows = shown.html.split('aria-label="licence')[1]
    assert rows.index("unknown (web)") < rows.index("CC0") < rows.index("CC BY 4.0"), "the unknown first"


def test_charts_say_what_they_show(folder):
    labels = [each["aria-label"] for each in Page(folder).all("svg")]
    assert "Photos of each class: from 4 of the largest to 2 of the smallest" in labels
    assert "Photos by short side: half of them at least 6 pixels" in labels
    assert "Captions by length: half of them at least 7 tokens, 2 past 77" in labels
    assert [label for label in labels if label.endswith("%")] == ["100.0 %", "75.0 %", "50.0 %"], "the funnel"


def test_the_contact_sheet_shows_every_class_with_its_name(folder):
    alts = {each["alt"] for each in Page(folder).all("img")}
    assert {"healthy bean leaf, from bean", "bean leaf with rust, from bean"} < alts
    assert {"weiße Ziege 山羊, from ziege", "no class, from ziege"} < alts


def test_twins_stand_side_by_side_label_noise_first(folder):
    shown = Page(folder)
    titles = [text.strip() for text in shown.text_of("h3")]
    assert titles[-2:] == ["One picture under two names", "Nearly the same picture"]
    assert "ziege/d.png" in shown.text and "not readable" in shown.text, (
        "a photo that cannot be shown is said to be there"
    )


def test_pictures_are_small_and_photos_are_never_enlarged(tmp_path):
    one = example("rust", "rust", 0, image=photo("JPEG", (900, 300)))
    write_folder(
        tmp_path / "a", {"train": [one, example("rust", "rust", 1)]}, {"bean": DatasetRecord("crop", {"rust": "rust"})}
    )
    write_card(tmp_path / "a", {}, [Pair("exact", "a", "b", ("x", "x"), one.image, one.image)])
    encoded = [each["src"].partition("base64,")[2] for each in Page(tmp_path / "a").all("img")]
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in encoded]
    assert sorted(sizes) == [(6, 6), (128, 43), (128, 43), (128, 128)]


def test_the_page_fetches_nothing_and_can_be_heard(folder):
    shown = Page(folder)
    for tag, attributes in shown.elements:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg")), tag
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in shown.elements}
    assert all(each["alt"] and each["width"] and each["height"] for each in shown.all("img"))
    assert all(each["aria-label"] and each["role"] == "img" for each in shown.all("svg"))
    assert all(each.get("scope") in ("row", "col") for each in shown.all("th"))


def test_nothing_that_others_wrote_is_run(tmp_path):
    evil = example("rust", EVIL, 0, captions=((EVIL, "given"),), licence=EVIL, source=EVIL)
    records = {"bean": DatasetRecord(EVIL, {"rust": EVIL}, EVIL, EVIL)}
    write_folder(tmp_path / "alive", {"train": [evil]}, records)
    build = {
        **{name: EVIL for name in ("command", "version", "date")},
        **{name: [EVIL] for name in ("notes", "endpoints", "unknown")},
        "sources": [{"slug": EVIL, "kind": EVIL, "origin": EVIL}],
        "funnel": [[EVIL, 0, 1]],
        "dropped": [[EVIL, EVIL + "\udce9"]],
        "rejects": {EVIL: 1},
    }
    write_card(tmp_path / "alive", build, [Pair("noise", EVIL, EVIL, (EVIL, EVIL), photo(), photo())])
    shown = Page(tmp_path / "alive")
    assert not shown.all("script") and "<script" not in shown.html
    assert shown.text.count(EVIL) >= 20
    text = (tmp_path / "alive" / "card.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    assert "<script" not in text.replace(f"    {EVIL}", ""), "but for the command, a block of code"
    tables = re.findall(r"(?m)(?:^\|.*\n?)+", text)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    assert len(tables) >= 8


def test_a_page_escapes_the_titles_it_is_given():
    html = page.render("<b>", "<i>", "", [("<u>", "<p>in it</p>"), ("empty", "")])
    assert not {"<b>", "<i>", "<u>"} & set(re.findall(r"<\w+>", html)) and html.count("&lt;b&gt;") == 2
    assert html.count("&lt;u&gt;") == 2 and "<p>in it</p>" in html and "empty" not in html


def test_the_markdown_card_is_a_dataset_card(folder):
    _, front, text = (folder / "card.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "other",
        "task_categories": ["zero-shot-image-classification", "image-to-text"],
        "language": ["en"],
        "size_categories": ["n<1K"],
        "pretty_name": "alive",
    }
    assert re.findall(r"(?m)^## (.*)", text) == SECTIONS[1:], "without pictures"
    assert "| bean | crop | 3 | 4 | 2 | CC0 | me@1 |" in text
    assert "| near duplicate | 5 | 10 | 50.0 % |" in text


@pytest.mark.parametrize(
    ("licence", "known"),
    [
        ("CC BY 4.0", "cc-by-4.0"),
        ("cc-by-nc-sa-3.0", "cc-by-nc-sa-3.0"),
        ("CC0", "cc0-1.0"),
        ("Apache 2.0", "apache-2.0"),
        ("", "unknown"),
        ("MIT (repo); photos CC BY 4.0", "other"),
    ],
)
def test_one_licence_gets_the_name_that_the_hub_knows(tmp_path, licence, known):
    write_card(small(tmp_path / "alive", licence=licence), {})
    assert f"\nlicense: {known}\n" in (tmp_path / "alive" / "card.md").read_text(encoding="utf-8")


def test_the_same_folder_and_build_give_the_same_bytes(tmp_path):
    small(tmp_path / "alive")
    names, seen = ("card.html", "card.md", "card.json"), []
    for _ in range(2):
        write_card(tmp_path / "alive", BUILD)
        seen.append([(tmp_path / "alive" / name).read_bytes() for name in names])
    assert seen[0] == seen[1]
    assert not list((tmp_path / "alive").glob("*.partial"))


def test_many_classes_stay_readable(tmp_path):
    names = {f"c{i}": f"class number {i}" for i in range(1500)}
    records = {f"set{d}": DatasetRecord(f"domain {d % 20}", names if d == 0 else {"a": "a"}) for d in range(130)}
    photos = [example(key, name, 0, dataset="set0") for key, name in names.items()]
    photos += [example("a", "a", 0, dataset=slug) for slug in records if slug != "set0"]
    write_folder(tmp_path / "alive", {"train": photos}, records)
    write_card(tmp_path / "alive", {"unknown": list(names.values())})
    shown = Page(tmp_path / "alive")
    assert len(shown.all("img")) <= card.PHOTOS and len(shown.html) < 600_000
    assert "and 30 more" in shown.text, "datasets"
    assert "and 1,400 more" in shown.text, "classes without facts"
    assert "and 4 more" in shown.text, "domains"
    assert len(shown.all("tr")) < 1.5 * card.SHOWN and len(shown.all("li")) <= 2 * card.SHOWN + measure.EXAMPLES
    assert max(len(line) for line in summary(tmp_path / "alive").splitlines()) < 140
    assert len(summary(tmp_path / "alive").splitlines()) <= card.SUMMARY_LINES


def test_photos_with_captions_only_need_no_class(tmp_path):
    records = {"bean": DatasetRecord("crop", {"": ""})}
    write_folder(tmp_path / "alive", {"train": [example("", "", 0)]}, records)
    write_card(tmp_path / "alive", {})
    assert "0: photos have captions only" in summary(tmp_path / "alive")
    assert "no class, from bean" in [each["alt"] for each in Page(tmp_path / "alive").all("img")]


def test_photos_that_cannot_be_read_do_not_stop_it(tmp_path):
    records = {"bean": DatasetRecord("crop", {"rust": "rust"})}
    write_folder(tmp_path / "alive", {"test": [example("rust", "rust", 0, image=b"broken")]}, records)
    write_card(tmp_path / "alive", {})
    assert "not readable 1" in Page(tmp_path / "alive").text
    assert "repeats in test" in summary(tmp_path / "alive")


def test_a_folder_that_does_not_fit_its_alive_json_is_one_line(tmp_path):
    about = small(tmp_path / "alive") / "alive.json"
    about.write_text(about.read_text(encoding="utf-8").replace('"rust"', '"smut"'), encoding="utf-8")
    with pytest.raises(UserError, match="names no class 'bean/rust'; build the folder again"):
        write_card(tmp_path / "alive", {})
    with pytest.raises(UserError, match="there is no ALive folder"):
        write_card(tmp_path / "none", {})


# ---- the summary -----------------------------------------------------------------------------------------------------


def test_the_summary_is_made_of_the_card(folder):
    text = summary(folder)
    assert text.startswith("alive\n") and len(text.splitlines()) <= card.SUMMARY_LINES
    for said in ("10: train 7, test 3", "54.5 %; 5 different of 11", "2 photos of 1 dataset", BUILD["command"]):
        assert said in text


def test_the_summary_of_a_folder_without_a_card_measures_and_writes_nothing(folder, tmp_path):
    small(tmp_path / "alive")
    before = sorted((tmp_path / "alive").iterdir())
    text = summary(tmp_path / "alive")
    assert "1: train 1" in text and "1: 1 photo each" in text
    assert sorted((tmp_path / "alive").iterdir()) == before
    write_card(tmp_path / "alive", {})
    assert summary(tmp_path / "alive") == text


def test_the_card_of_another_content_is_not_believed(folder, tmp_path):
    small(tmp_path / "alive")
    (tmp_path / "alive" / "card.json").write_bytes((folder / "card.json").read_bytes())
    assert "train 7" not in summary(tmp_path / "alive")


@pytest.mark.parametrize("content", ["{", "[]", '{"measured": 3, "build": {}}', "{same}"])
def test_a_damaged_card_is_one_line(tmp_path, content):
    fingerprint = Alive.open(small(tmp_path / "alive")).fingerprint
    same = json.dumps({"measured": {"fingerprint": fingerprint}, "build": {}})
    (tmp_path / "alive" / "card.json").write_text(content.replace("{same}", same), encoding="utf-8")
    with pytest.raises(UserError, match=r"card\.json is damaged") as error:
        summary(tmp_path / "alive")
    assert "\n" not in str(error.value)
