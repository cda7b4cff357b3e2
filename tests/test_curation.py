"""Each stage of the funnel drops what it should and says why; what is left is what a model may learn from."""

import io
import json
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_sources import plant

from agriclip_jax.data import corpus, curation, duplicates
from agriclip_jax.data.curation import CONTAMINATED, DISAGREES, EXACT, NEAR, OFF_TOPIC, OUTLIER, Keywords, Stage
from agriclip_jax.data.sources import find
from agriclip_jax.data.survey import UNREADABLE, WORDLESS, Survey
from agriclip_jax.data.views import EvalView
from agriclip_jax.errors import UserError


def drawn(number: int, side: int = 96) -> bytes:
    """A picture of the embedded corpus, another for each number."""
    kind = corpus.KINDS[number % len(corpus.KINDS)]
    return corpus.example(kind, kind.splits[0], number, seed=0, size=side).image


def recoded(data: bytes, **options) -> bytes:
    """The same picture in other bytes."""
    again = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(again, "JPEG", **{"quality": 70, **options})
    return again.getvalue()


def looked_at(*paths, against=(), **options) -> Survey:
    """A survey of sources, every photo read."""
    survey = Survey()
    for source in find([str(path) for path in paths]):
        survey.add(source, **options)
    for source in find([str(path) for path in against]):
        survey.add(source, ours=False)
    survey.check()
    return survey


def kept(survey: Survey) -> set[str]:
    return {example.source for example in survey.examples()}


# ---- duplicates ------------------------------------------------------------------------------------------------------

A, B, C = drawn(0), drawn(1), drawn(2)


def test_duplicates_are_found_within_and_across_datasets_and_dropped_only_when_asked(tmp_path):
    plant(tmp_path / "one", {"rust/a.jpg": A, "rust/b.jpg": B, "rust/again.jpg": A})
    plant(tmp_path / "two", {"rust/a.jpg": A, "rust/near_b.jpg": recoded(B), "rust/c.jpg": C})
    survey = looked_at(tmp_path / "one", tmp_path / "two", ratios={"train": 100})
    curation.find_twins(survey)
    assert [(t.source, t.other, t.is_exact) for t in curation.twins(survey)] == [
        ("one/rust/again.jpg", "one/rust/a.jpg", True),
        ("two/rust/a.jpg", "one/rust/a.jpg", True),
        ("two/rust/near_b.jpg", "one/rust/b.jpg", False),
    ]
    assert len(kept(survey)) == 6
    curation.drop_twins(survey, EXACT)
    assert kept(survey) == {"one/rust/a.jpg", "one/rust/b.jpg", "two/rust/near_b.jpg", "two/rust/c.jpg"}
    curation.drop_twins(survey, NEAR)
    assert kept(survey) == {"one/rust/a.jpg", "one/rust/b.jpg", "two/rust/c.jpg"}
    assert dict(survey.dropped(EXACT))["two/rust/a.jpg"] == "the same bytes as one/rust/a.jpg"
    assert dict(survey.dropped(NEAR)) == {"two/rust/near_b.jpg": "the same picture as one/rust/b.jpg"}


def test_of_twins_the_one_that_scores_are_made_of_stays(tmp_path):
    names = [f"{n}.jpg" for n in range(40)]
    plant(tmp_path / "bean", {f"rust/{name}": A for name in names})
    survey = looked_at(tmp_path / "bean")
    splits = dict(survey.all("SELECT path, split FROM photo"))
    assert set(splits.values()) == {"train", "val", "test"}
    curation.find_twins(survey)
    assert all(twin.is_across_splits == (splits[twin.source[5:]] != "test") for twin in curation.twins(survey))
    curation.drop_twins(survey, EXACT)
    (left,) = kept(survey)
    assert splits[left.removeprefix("bean/")] == "test"


def naive_keepers(looks: np.ndarray) -> list[int]:
    """The rule, word by word."""
    stays = []
    for row, look in enumerate(looks):
        near = [r for r in stays if r == stays[r] and np.bitwise_count(looks[r] ^ look).sum() <= duplicates.NEAR]
        stays.append(near[0] if near else row)
    return stays


def spotted(spots: list[tuple[int, int]]) -> np.ndarray:
    """Hashes that differ in two groups of bits by steps of half of what is near: chains, crowds and equal ones."""
    looks = np.full((len(spots), 4), 0x5555555555555555, np.uint64)
    for look, spot in zip(looks, spots, strict=True):
        look[:2] = [(1 << (step * duplicates.NEAR // 2)) - 1 for step in spot]
    return looks


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30), st.sampled_from([1, 3, 256]))
def test_who_stays_is_decided_one_by_one_whatever_the_crowd(spots, crowd):
    looks = spotted(spots)
    with mock.patch.object(curation, "CROWD", crowd):
        stays = curation.keepers(looks)
    assert set(stays.tolist()) == set(naive_keepers(looks))
    assert (np.bitwise_count(looks ^ looks[stays]).sum(axis=1) <= duplicates.NEAR).all()


@settings(deadline=None)
@given(*[st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=15)] * 2, st.sampled_from([1, 3, 256]))
def test_the_first_that_is_near_is_found_in_another_set(spots, others, crowd):
    looks, held = spotted(spots), spotted(others)
    near = lambda look: [r for r, h in enumerate(held) if np.bitwise_count(h ^ look).sum() <= duplicates.NEAR]  # noqa: E731
    with mock.patch.object(curation, "CROWD", crowd):
        assert curation.first_near(looks, held).tolist() == [(near(look) or [-1])[0] for look in looks]


def test_a_still_cameras_thousands_of_frames_are_one_picture():
    rng = np.random.default_rng(0)
    scenes = rng.integers(0, 2**64, (3, 4), np.uint64)
    noise = np.uint64(1) << rng.integers(0, 64, (6000, 4), np.uint64)  # every frame differs in a few bits
    looks = scenes[np.arange(6000) % 3] ^ noise
    assert curation.keepers(looks).tolist() == [0, 1, 2] * 2000
    assert set(curation.first_near(looks, looks[:3] ^ noise[3:6]).tolist()) == {0, 1, 2}


def test_one_picture_under_two_names_is_label_noise(tmp_path):
    plant(tmp_path / "one", {"bean_rust/a.jpg": A, "bean_scab/a.jpg": A, "bean_rust/b.jpg": B})
    plant(tmp_path / "two", {"Bean rust/b.jpg": B, "healthy/c.jpg": C})
    plant(tmp_path / "six", {"healthy/c.jpg": C})
    survey = looked_at(tmp_path / "one", tmp_path / "two", tmp_path / "six", ratios={"train": 100})
    curation.find_twins(survey)
    noise = {(t.source, t.other) for t in curation.twins(survey) if curation.is_label_noise(t)}
    # "Bean rust" is the same name as "bean rust"; "healthy" is another thing in another dataset.
    assert noise == {("one/bean_scab/a.jpg", "one/bean_rust/a.jpg"), ("six/healthy/c.jpg", "two/healthy/c.jpg")}


def test_nothing_that_is_also_in_a_held_out_set_is_kept(tmp_path):
    plant(tmp_path / "mine", {"rust/a.jpg": A, "rust/b.jpg": B, "rust/c.jpg": C})
    plant(tmp_path / "test", {"x/1.jpg": A, "x/2.jpg": recoded(B, quality=60), "x/3.jpg": drawn(7)})
    survey = looked_at(tmp_path / "mine", against=[tmp_path / "test"])
    curation.drop_contaminated(survey)
    assert kept(survey) == {"mine/rust/c.jpg"} and list(survey.datasets) == ["mine"]
    assert dict(survey.dropped(CONTAMINATED)) == {
        "mine/rust/a.jpg": "the same bytes as test/x/1.jpg",
        "mine/rust/b.jpg": "the same picture as test/x/2.jpg",
    }
    assert [(t.source, t.other, t.is_exact) for t in curation.contaminated(survey)] == [
        ("mine/rust/a.jpg", "test/x/1.jpg", True),
        ("mine/rust/b.jpg", "test/x/2.jpg", False),
    ]


def test_a_held_out_set_may_have_the_name_of_a_source(tmp_path):
    for place in ("a", "b"):
        plant(tmp_path / place / "bean", {"rust/1.jpg": A, f"rust/{place}.jpg": B if place == "a" else C})
    survey = looked_at(tmp_path / "a" / "bean", against=[tmp_path / "b" / "bean"])
    curation.drop_contaminated(survey)
    assert kept(survey) == {"bean/rust/a.jpg"}


def test_held_out_photos_need_no_class_and_one_that_cannot_be_read_is_said(tmp_path):
    plant(tmp_path / "mine", {"rust/a.jpg": A, "rust/b.jpg": B})
    plant(tmp_path / "flat", {"1.jpg": recoded(A), "broken.jpg": A[:-20]})
    survey = looked_at(tmp_path / "mine", against=[tmp_path / "flat"])
    curation.drop_contaminated(survey)
    assert kept(survey) == {"mine/rust/b.jpg"}
    assert "flat, held out: 1 photos cannot be read, so none is compared with" in survey.notes
    plant(tmp_path / "bad", {"1.jpg": b"x"})
    with pytest.raises(UserError, match="bad holds no readable photo to compare with"):
        looked_at(tmp_path / "mine", against=[tmp_path / "bad"])


def test_a_photo_without_words_does_not_take_the_place_of_one_with_a_label(tmp_path):
    plant(tmp_path, {"img/a.jpg": A, "img/b.jpg": B, "tree/rust/a.jpg": A})
    (tmp_path / "web.csv").write_text("filepath,caption\nimg/a.jpg,\nimg/b.jpg,a leaf\n", encoding="utf-8")
    survey = looked_at(tmp_path / "web.csv", tmp_path / "tree")
    curation.find_twins(survey)
    curation.drop_twins(survey, EXACT)
    assert {row[0] for row in survey.all("SELECT path FROM photo WHERE stage IS NULL")} == {"img/b.jpg", "rust/a.jpg"}


# ---- keywords --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Leaf blight on maize, Kenya", ""),
        ("MAIZE LEAVES", ""),
        ("two tomato plants", ""),
        ("a parking lot", "its text names nothing of the domain"),
        ("a phone case with a leaf", "its text names 'phone case'"),
        ("the Toronto Maple Leafs", "its text names 'maple leafs'"),
        ("a leaflet of the party", "its text names nothing of the domain"),
    ],
)
def test_keywords_keep_what_is_of_a_domain(text, fault):
    assert curation.keywords("crop").fault(text) == fault


def test_every_domain_has_lists_and_they_can_be_joined():
    for domain in ("crop", "fruit", "weed", "insect", "livestock", "poultry", "fish"):
        wanted = curation.keywords(domain)
        assert len(wanted.include) >= 20 and len(wanted.exclude) >= 5
    both = curation.keywords("crop,fish")
    assert both.fault("a carp") == both.fault("a wheat ear") == "" and both.fault("a car")


def test_keywords_of_ones_own(tmp_path):
    (tmp_path / "mine.yaml").write_text("{include: [quinoa], exclude: [salad]}", encoding="utf-8")
    mine = curation.keywords(str(tmp_path / "mine.yaml"))
    assert mine == Keywords(("quinoa",), ("salad",))
    assert mine.fault("Quinoa salads") == "its text names 'salads'" and mine.fault("a quinoa field") == ""


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[a]", "are not {include"),
        ("{include: x}", "are not {include"),
        ("{}", "are not {include"),
        ("{includ: [a]}", "are not {include"),
        ("{", "no valid YAML"),
    ],
)
def test_bad_keywords_are_one_line(tmp_path, content, told):
    (tmp_path / "mine.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=told):
        curation.keywords(str(tmp_path / "mine.yaml"))
    with pytest.raises(UserError, match="no lists for 'corp'; did you mean 'crop'"):
        curation.keywords("corp")


def test_the_filter_reads_captions_and_where_there_are_none_class_names(tmp_path):
    plant(tmp_path, {"img/1.jpg": A, "img/2.jpg": B, "img/3.jpg": C})
    (tmp_path / "pairs.csv").write_text(
        "filepath,caption\nimg/1.jpg,a maize leaf\nimg/2.jpg,a parking lot\nimg/3.jpg,leaf wallpaper\n",
        encoding="utf-8",
    )
    plant(tmp_path / "tree", {"tomato_leaf/1.jpg": drawn(3), "cars/1.jpg": drawn(4)})
    survey = looked_at(tmp_path / "pairs.csv", tmp_path / "tree")
    curation.drop_off_topic(survey, curation.keywords("crop"))
    assert kept(survey) == {"pairs/img/1.jpg", "tree/tomato_leaf/1.jpg"}
    assert dict(survey.dropped(OFF_TOPIC)) == {
        "pairs/img/2.jpg": "its text names nothing of the domain",
        "pairs/img/3.jpg": "its text names 'wallpaper'",
        "tree/cars/1.jpg": "its text names nothing of the domain",
    }


def test_the_filter_reads_any_script_and_leaves_what_nothing_is_said_of(tmp_path):
    plant(tmp_path, {f"img/{n}.jpg": drawn(n) for n in range(3)})
    rows = ["img/0.jpg,un épi de blé", "img/1.jpg,🌿leaf", "img/2.jpg,"]
    (tmp_path / "web.csv").write_text("\n".join(["filepath,caption", *rows]), encoding="utf-8")
    survey = looked_at(tmp_path / "web.csv")
    curation.drop_off_topic(survey, Keywords(("blé", "leaf"), ("given",)))
    assert survey.one("SELECT count(*) FROM photo WHERE stage IS NULL") == 3


# ---- a model's view --------------------------------------------------------------------------------------------------


class ColourJudge:
    """A two-tower model that knows colours: an image is its mean colour, a text the colour that it names."""

    view = EvalView(16)
    COLOURS = (("red", (1, 0, 0)), ("green", (0, 1, 0)), ("blue", (0, 0, 1)))

    def embed_images(self, images):
        means = images.reshape(len(images), -1, 3).mean(1) + 1e-3
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)

    def embed_texts(self, texts):
        named = [[np.array(c) for name, c in self.COLOURS if name in text] for text in texts]
        sums = np.array([np.sum(found, 0) if found else np.ones(3) for found in named], np.float32)
        return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def plain(*colour: int) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(data, "PNG")
    return data.getvalue()


def test_photos_that_disagree_with_their_captions_are_dropped(tmp_path):
    reds = {f"red_leaf/{n}.png": plain(200 + n, 0, 0) for n in range(5)}
    plant(tmp_path / "bean", reds | {"red_leaf/odd.png": plain(0, 220, 0), "green_leaf/1.png": plain(0, 210, 0)})
    survey = looked_at(tmp_path / "bean")
    curation.drop_by_model(survey, ColourJudge(), min_agreement=0.5)
    assert dict(survey.dropped(DISAGREES)) == {"bean/red_leaf/odd.png": "its similarity to its text is 0.00"}


def test_outliers_of_their_domain_are_dropped(tmp_path):
    leaves = {f"leaf/{n:02}.png": plain(10 + n, 200, 10 + (n * 7) % 13) for n in range(30)}
    plant(tmp_path / "bean", leaves | {"leaf/screenshot.png": plain(250, 30, 250)})
    plant(tmp_path / "cow", {f"cow/{n}.png": plain(250, 30, 240 + n) for n in range(9)})
    plant(tmp_path / "cow", {"dataset.json": json.dumps({"name": "cow", "domain": "livestock"}).encode()})
    survey = looked_at(tmp_path / "bean", tmp_path / "cow")
    told = []
    curation.drop_by_model(
        survey, ColourJudge(), max_deviation=8.0, progress=lambda done, total: told.append((done, total))
    )
    assert [source for source, _ in survey.dropped(OUTLIER)] == ["bean/leaf/screenshot.png"]
    assert sum(done for done, _ in told) == 40 and {total for _, total in told} == {40}


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_funnel_counts_every_photo_once(tmp_path):
    plant(tmp_path / "mine", {"rust/a.jpg": A, "rust/a2.jpg": A, "rust/b.jpg": B, "rust/near.jpg": recoded(B)})
    plant(tmp_path / "mine", {"rust/broken.jpg": A[:-30], "rust/c.jpg": C, "cars/d.jpg": drawn(9)})
    plant(tmp_path / "test", {"x/1.jpg": C})
    survey = looked_at(tmp_path / "mine", against=[tmp_path / "test"], ratios={"train": 100})
    curation.drop_off_topic(survey, Keywords(("rust",), ()))
    curation.find_twins(survey)
    curation.drop_twins(survey, EXACT)
    curation.drop_twins(survey, NEAR)
    curation.drop_contaminated(survey)
    assert curation.funnel(survey) == [
        Stage("found", 0, 7),
        Stage(OFF_TOPIC, 1, 6),
        Stage(UNREADABLE, 1, 5),
        Stage(WORDLESS, 0, 5),
        Stage(EXACT, 1, 4),
        Stage(NEAR, 1, 3),
        Stage(CONTAMINATED, 1, 2),
        Stage(DISAGREES, 0, 2),
        Stage(OUTLIER, 0, 2),
    ]
    assert len(kept(survey)) == 2 and survey.counts == {"mine": {"train": 2}}
