"""The embedded corpus: what it promises about its classes, captions, boxes, splits and its place on disk."""

import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from agriclip_jax.data import corpus, records
from agriclip_jax.data.corpus import leaves
from agriclip_jax.data.corpus.canvas import Canvas

TINY = {"train": 1, "val": 1, "test": 1}
TASKS = tuple(corpus.datasets())
SEEN = tuple(kind for kind in corpus.KINDS if kind.dataset != corpus.UNSEEN)


def of(slug):
    return [kind for kind in corpus.KINDS if kind.dataset == slug]


def kind_named(name):
    return next(kind for kind in corpus.KINDS if kind.name == name)


def decoded(example):
    return np.asarray(Image.open(io.BytesIO(example.image)))


def histogram(pixels, mode):
    """Shares of 8 x 8 x 8 colours."""
    coarse = np.asarray(Image.fromarray(pixels).convert(mode)).astype(int) >> 5
    counts = np.bincount((coarse @ (64, 8, 1)).ravel(), minlength=512)
    return counts / counts.sum()


# ---- classes and tasks


def test_many_classes_in_many_domains():
    assert len({kind.domain for kind in corpus.KINDS}) >= 6
    assert len({kind.name for kind in SEEN}) >= 30
    assert len(TASKS) >= 6


@pytest.mark.parametrize("slug", TASKS)
def test_each_task_has_many_classes_with_keys_of_their_own(slug):
    keys = [kind.key for kind in of(slug)]
    assert len(set(keys)) == len(keys) >= 8
    assert list(corpus.datasets()[slug].classes) == keys


def test_unseen_combinations_are_new_only_as_combinations():
    unseen = {kind.name for kind in of(corpus.UNSEEN)}
    assert len(unseen) >= 12
    assert not unseen & {kind.name for kind in SEEN}
    assert all(kind.splits == ("test",) for kind in of(corpus.UNSEEN))
    seen_pairs = [
        (crop, symptom)
        for crop in leaves.CROPS
        for symptom in leaves.SYMPTOMS
        if leaves.class_name(crop, symptom) in {kind.name for kind in SEEN}
    ]
    for crop, symptom in leaves.UNSEEN:
        assert leaves.class_name(crop, symptom) in unseen
        assert sum(c == crop for c, _ in seen_pairs) >= 3
        assert sum(s == symptom for _, s in seen_pairs) >= 3


# ---- pictures


@pytest.mark.parametrize("kind", corpus.KINDS[::13], ids=lambda kind: kind.key)
def test_an_example_depends_only_on_seed_class_split_and_index(kind):
    split = kind.splits[0]
    first = corpus.example(kind, split, 3, seed=5)
    corpus.example(corpus.KINDS[0], "train", 0)
    assert corpus.example(kind, split, 3, seed=5) == first
    others = [corpus.example(kind, split, 4, seed=5), corpus.example(kind, split, 3, seed=6)]
    assert all(other.image != first.image for other in others)


@pytest.mark.parametrize("size", [32, 96])
def test_pictures_have_the_size_that_was_asked_for(size):
    assert decoded(corpus.example(corpus.KINDS[-1], "test", 0, size=size)).shape == (size, size, 3)


def test_a_picture_is_the_same_scene_at_every_size():
    small, large = (corpus.picture(kind_named("healthy grape leaf"), "test", 0, size=size)[0] for size in (64, 128))
    shrunk = np.asarray(Image.fromarray(large).resize((64, 64), Image.Resampling.BOX), np.float32)
    assert np.abs(shrunk - small).mean() < 0.5 * np.abs(shrunk - shrunk.mean((0, 1))).mean()


def test_no_two_pictures_are_equal_within_or_across_splits():
    kinds = corpus.KINDS[::4]
    images = [corpus.example(k, split, i).image for k in kinds for split in k.splits for i in range(3)]
    assert len(set(images)) == len(images)


def test_colour_alone_tells_classes_badly():
    """Nearest centroid of RGB or HSV histograms: a mean top-1 of at most 0.25 at a mean chance of 0.08."""
    top1 = {"RGB": [], "HSV": []}
    for slug in TASKS:
        if slug == corpus.UNSEEN:
            continue
        train = [[corpus.picture(k, "train", i, size=32)[0] for i in range(6)] for k in of(slug)]
        test = [[corpus.picture(k, "test", i, size=32)[0] for i in range(3)] for k in of(slug)]
        for mode, scores in top1.items():
            centroids = np.stack([np.mean([histogram(p, mode) for p in pictures], 0) for pictures in train])
            found = [
                np.square(centroids - histogram(p, mode)).sum(1).argmin() == label
                for label, pictures in enumerate(test)
                for p in pictures
            ]
            scores.append(np.mean(found))
    assert np.mean(top1["RGB"]) <= 0.25
    assert np.mean(top1["HSV"]) <= 0.25


# ---- captions and boxes


@pytest.mark.parametrize("kind", corpus.KINDS, ids=lambda kind: f"{kind.dataset}-{kind.key}")
def test_captions_name_the_class_and_describe_the_picture(kind):
    one, *others = (corpus.example(kind, kind.splits[-1], index) for index in range(5))
    assert len(one.captions) == len(one.caption_kinds) >= 4
    for caption, caption_kind in zip(one.captions, one.caption_kinds, strict=True):
        assert caption_kind in ("template", "knowledge")
        assert caption_kind == "knowledge" or kind.name in caption
        assert "{" not in caption and " a a" not in f" {caption}" and "  " not in caption
    assert one.caption_kinds.count("template") == 2
    assert any(other.captions[2:] != one.captions[2:] for other in others)


def test_captions_of_unseen_ingredients_occur_in_training():
    said = " ".join(c for kind in of("embedded_crop_leaves") for c in corpus.example(kind, "train", 0).captions)
    for crop, symptom in leaves.UNSEEN:
        assert f"{crop} leaf" in said
        assert f"leaf with {symptom}" in said


@pytest.mark.parametrize("kind", corpus.KINDS[::3], ids=lambda kind: f"{kind.dataset}-{kind.key}")
def test_boxes_lie_in_the_picture_and_are_named(kind):
    example = corpus.example(kind, kind.splits[-1], 1)
    assert len(example.boxes) == len(example.box_names)
    assert bool(example.boxes) == bool(kind.marks)
    assert set(example.box_names) <= {kind.marks}
    for top, left, bottom, right in example.boxes:
        assert 0 <= top < bottom <= 1 and 0 <= left < right <= 1


@pytest.mark.parametrize("crop", leaves.CROPS)
@pytest.mark.parametrize("symptom", [name for name in leaves.SYMPTOMS if name != "healthy"])
def test_boxes_hold_what_differs_from_the_same_leaf_healthy(crop, symptom):
    sick, sound = Canvas(64, np.random.default_rng(7)), Canvas(64, np.random.default_rng(7))
    leaves.draw(sick, crop, symptom)
    leaves.draw(sound, crop, "healthy")
    changed = np.abs(np.asarray(sick.image, int) - np.asarray(sound.image, int)).sum(-1) > 60
    boxed = np.zeros_like(changed)
    for box in sick.boxes:
        top, left, bottom, right = (round(v * len(changed)) for v in box)
        boxed[top:bottom, left:right] = True
        assert changed[top:bottom, left:right].mean() > 0.1
    assert changed.any() and (changed & boxed).sum() > 0.8 * changed.sum()


@pytest.mark.parametrize("crop", leaves.CROPS)
@pytest.mark.parametrize("symptom", leaves.SYMPTOMS)
def test_lesions_lie_in_the_boxes_of_the_very_same_picture(crop, symptom):
    kind = kind_named(leaves.class_name(crop, symptom))
    pixels, lesion = corpus.lesions(kind, "test", 2)
    same, canvas, _ = corpus.picture(kind, "test", 2)
    np.testing.assert_array_equal(pixels, same)
    assert lesion.shape == (64, 64) and lesion.dtype == bool and lesion.any() == (symptom != "healthy")
    boxed = np.zeros_like(lesion)
    for top, left, bottom, right in canvas.boxes:
        boxed[math.floor(64 * top) : math.ceil(64 * bottom), math.floor(64 * left) : math.ceil(64 * right)] = True
    assert (lesion & ~boxed).sum() <= 0.1 * lesion.sum(), "only marks of next to nothing have no box"


# ---- on disk


def test_a_tiny_build_opens_as_alive(tmp_path):
    corpus.build(tmp_path / "corpus", count=TINY, seed=3)
    alive = records.Alive.open(tmp_path / "corpus")
    assert alive.splits == {"train": len(SEEN), "val": len(SEEN), "test": len(corpus.KINDS)}
    assert alive.classes == [f"{kind.dataset}/{kind.key}" for kind in corpus.KINDS]
    source = alive.source("test")
    row = source[len(SEEN)]
    assert (row["dataset"], row["class_name"]) == (corpus.UNSEEN, of(corpus.UNSEEN)[0].name)
    assert row["image"] == corpus.example(of(corpus.UNSEEN)[0], "test", 0, seed=3).image
    assert row["boxes"].shape == (len(row["box_names"]), 4) and len(row["boxes"])


def test_racing_ensures_share_one_whole_folder(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: corpus.ensure(tmp_path, count=TINY, size=32), range(2)))
    assert paths[0] == paths[1]
    assert records.Alive.open(paths[0]).splits["train"] == len(SEEN)
    before = (paths[0] / "alive.json").stat().st_mtime_ns
    assert corpus.ensure(tmp_path, count=TINY, size=32) == paths[0]
    assert (paths[0] / "alive.json").stat().st_mtime_ns == before


def test_ensure_draws_a_broken_folder_again_and_other_settings_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRICLIP_CACHE", str(tmp_path))
    path = corpus.ensure(count={"test": 1}, size=32)
    assert path.parent == tmp_path
    next(path.glob("*.array_record-*")).unlink()
    assert corpus.ensure(count={"test": 1}, size=32) == path
    assert len(records.Alive.open(path).source("test")) == len(corpus.KINDS)
    assert corpus.ensure(count={"test": 1}, size=32, seed=1) != path


def test_the_contact_sheet_shows_every_class():
    sheet = corpus.contact_sheet(size=32, columns=8)
    assert sheet.width == 8 * 34 + 2
    assert sheet.height > -(-len(corpus.KINDS) // 8) * 32
