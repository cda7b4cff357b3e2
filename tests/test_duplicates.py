"""Near photos are found: all pairs of near hashes and no others, and photos that show the same have near hashes."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agriclip_jax.data import corpus, duplicates
from agriclip_jax.data.duplicates import NEAR, SIDE, near_pairs, perceptual_hash
from agriclip_jax.data.views import decode
from agriclip_jax.errors import UserError


def apart(hashes, others):
    """All distances: int64 [n, m]."""
    return np.bitwise_count(hashes[:, None] ^ others[None]).sum(axis=-1, dtype=np.int64)


def groups(count, pairs):
    """For each of `count` rows the number of those that pairs link it to, by way of others too."""
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(links, directed=False)[1]


def random_hashes(rng, count, words=4):
    return rng.integers(0, 2**64, (count, words), np.uint64)


def flipped(hashes, bits):
    """The hashes with other bits where `bits`, bool [n, 64 k], says so."""
    return hashes ^ np.packbits(bits, axis=1, bitorder="little").view("<u8")


def some_bits(rng, counts, total=256):
    """bool [n, total] with so many set in each row."""
    return rng.permuted(np.arange(total) < np.asarray(counts)[:, None], axis=1)


# ---- the search ------------------------------------------------------------------------------------------------------


@st.composite
def crowded(draw):
    """Hashes of one or two words that lie in a few crowds, and a distance at which some are near and some are not."""
    words = draw(st.integers(1, 2))
    centres = draw(
        st.lists(st.lists(st.integers(0, 2**64 - 1), min_size=words, max_size=words), min_size=1, max_size=3)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, share = draw(st.integers(0, 40)), draw(st.floats(0, 0.3))
    hashes = np.array(centres, np.uint64)[rng.integers(0, len(centres), count)]
    hashes = flipped(hashes, rng.random((count, 64 * words)) < share) if count else hashes
    return hashes, draw(st.integers(0, 64 * words - 1))


@settings(deadline=None, max_examples=60)  # a busy machine may pause for long
@given(crowded())
def test_the_pairs_are_those_of_comparing_all_with_all(drawn):
    hashes, distance = drawn
    hashes = hashes[np.sort(np.unique(hashes, axis=0, return_index=True)[1])]
    near = np.triu(apart(hashes, hashes) <= distance, 1)
    np.testing.assert_array_equal(near_pairs(hashes, distance=distance), np.argwhere(near))


@settings(deadline=None, max_examples=40)
@given(crowded(), st.floats(0, 1))
def test_the_pairs_across_are_those_of_comparing_all_with_all(drawn, share):
    hashes, distance = drawn
    hashes, others = np.split(hashes, [round(share * len(hashes))])
    hashes, others = (rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])] for rows in (hashes, others))
    np.testing.assert_array_equal(
        near_pairs(hashes, others, distance=distance), np.argwhere(apart(hashes, others) <= distance)
    )


@settings(deadline=None, max_examples=40)
@given(crowded(), st.floats(0, 1))
def test_among_equal_hashes_no_row_is_forgotten(drawn, share):
    hashes, distance = drawn
    hashes = hashes[np.arange(len(hashes)) // 3]
    pairs = near_pairs(hashes, distance=distance)
    near = apart(hashes, hashes) <= distance
    assert near[tuple(pairs.T)].all() and (pairs[:, 0] < pairs[:, 1]).all()
    np.testing.assert_array_equal(groups(len(hashes), pairs), groups(len(hashes), np.argwhere(np.triu(near, 1))))
    size = round(share * len(hashes))
    across, near = near_pairs(hashes[:size], hashes[size:], distance=distance), near[:size, size:]
    assert near[tuple(across.T)].all()
    for axis in (0, 1):
        np.testing.assert_array_equal(np.unique(across[:, axis]), np.flatnonzero(near.any(axis=1 - axis)))


def test_pairs_up_to_the_distance_are_found_and_none_beyond():
    rng = np.random.default_rng(0)
    hashes = random_hashes(rng, 400)
    copies = flipped(hashes, some_bits(rng, np.repeat([NEAR, NEAR + 1], 200)))
    expected = np.stack([np.arange(200), np.arange(200)], axis=1)
    np.testing.assert_array_equal(near_pairs(hashes, copies), expected)
    np.testing.assert_array_equal(near_pairs(np.concatenate([hashes, copies])), expected + np.array([0, 400]))


def test_every_planted_pair_among_many_is_found():
    rng = np.random.default_rng(0)
    hashes = random_hashes(rng, 20_000)
    hashes[19_000:] = flipped(hashes[:1000], some_bits(rng, rng.integers(0, NEAR + 1, 1000)))
    np.testing.assert_array_equal(near_pairs(hashes), np.stack([np.arange(1000), np.arange(19_000, 20_000)], axis=1))


def test_equal_hashes_make_a_star_not_all_pairs():
    one, other, far = random_hashes(np.random.default_rng(0), 3)
    near = one ^ np.array([1, 0, 0, 2**63], np.uint64)
    hashes = np.stack([far, one, *[one] * 100_000, near, near])
    pairs = near_pairs(hashes)
    np.testing.assert_array_equal(pairs[:-1], np.stack([np.ones(100_001, int), np.arange(2, 100_003)], axis=1))
    np.testing.assert_array_equal(pairs[-1], [100_002, 100_003])
    across = near_pairs(np.stack([other, one, one]), hashes)
    np.testing.assert_array_equal(across[across[:, 0] == 1, 1], np.arange(1, 100_004))
    np.testing.assert_array_equal(across[across[:, 0] == 2], [[2, 1]])


def test_more_pairs_than_memory_should_hold_are_one_line(monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 100)
    hashes = np.zeros((20, 4), np.uint64)
    hashes[:, 1] = np.arange(20)
    with pytest.raises(UserError, match="more than 100 pairs of photos are near") as error:
        near_pairs(hashes)
    assert "\n" not in str(error.value)


# ---- the hash --------------------------------------------------------------------------------------------------------


def encoded(image, form="JPEG", **options):
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def resized(image, factor):
    return image.resize([round(factor * side) for side in image.size], Image.Resampling.LANCZOS)


def bordered(image):
    return ImageOps.expand(image, round(0.02 * min(image.size)), "white")


def captioned(image):
    image = image.copy()
    ImageDraw.Draw(image).rectangle((0, round(0.92 * image.height), *image.size), "black")
    return image


COPIES = {
    "recompressed": lambda image: decode(encoded(image, quality=40)),
    "WEBP": lambda image: decode(encoded(image, "WEBP", quality=60)),
    "GIF": lambda image: decode(encoded(image, "GIF")),
    "half the size": lambda image: resized(image, 0.5),
    "twice the size": lambda image: resized(image, 2),
    "stretched": lambda image: image.resize((image.width, round(1.2 * image.height))),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "another gamma": lambda image: image.point([round(255 * (value / 255) ** 0.85) for value in range(256)] * 3),
    "grey": lambda image: image.convert("L").convert("RGB"),
    "bordered": bordered,
    "captioned": captioned,
}


@pytest.fixture(scope="module")
def drawings():
    kinds = corpus.KINDS[::3]
    return [
        Image.fromarray(corpus.picture(kind, kind.splits[-1], index, size=96)[0]) for kind in kinds for index in (0, 1)
    ]


@pytest.fixture(scope="module")
def hashes(drawings):
    return np.stack([perceptual_hash(image) for image in drawings])


def test_a_hash_is_four_words(drawings):
    hashed = perceptual_hash(drawings[0])
    assert (hashed.dtype, hashed.shape) == (np.uint64, (4,))


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_changed_copy_is_near_its_picture_and_no_other(drawings, hashes, change):
    copies = np.stack([perceptual_hash(change(image)) for image in drawings])
    near = apart(hashes, copies) <= NEAR
    assert not near[~np.eye(len(near), dtype=bool)].any()
    assert near.diagonal().all()


def test_slightly_cropped_copies_are_near(drawings, hashes):
    copies = np.stack([perceptual_hash(image.crop((1, 1, 95, 95))) for image in drawings])
    assert (np.bitwise_count(hashes ^ copies).sum(axis=1) <= NEAR).mean() > 0.95


def test_different_pictures_are_far_even_of_one_class(hashes):
    assert len(near_pairs(hashes)) == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_photo_may_be_decoded_to_a_smaller_one_first(form):
    rng = np.random.default_rng(0)
    for _ in range(3):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        data = encoded(coarse.resize((803, 601), Image.Resampling.BICUBIC), form)
        small = decode(data, SIDE)
        assert min(small.size) < 2 * SIDE
        assert apart(perceptual_hash(small)[None], perceptual_hash(decode(data))[None]) <= NEAR // 3


def test_a_hash_is_the_same_on_every_machine():
    """For a picture of 64 x 64 pixels, which no version of Pillow has to resize."""
    row, column = np.indices((64, 64))
    pixels = (row * row * 7 + column * 31 + row * column * 5) // 16 % 256
    hashed = perceptual_hash(Image.fromarray(pixels.astype(np.uint8)).convert("RGB"))
    assert hashed.astype("<u8").tobytes().hex() == "e94e99b3b8b1ec4c4c660c9306d9c6a4631e732939f019d48cc7ce6be6b032c4"


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (96, 96), "white"),
        Image.new("RGB", (1, 1), "black"),
        Image.new("RGB", (5000, 1), (10, 90, 30)),
        Image.linear_gradient("L").convert("RGB"),
        Image.fromarray((np.add.outer(np.arange(200), np.arange(300)) / 2).astype(np.uint8)).convert("RGB"),
    ],
    ids=["white", "a pixel", "a line", "a gradient", "a slope"],
)
def test_a_picture_without_features_is_near_its_equal_only(image, hashes):
    hashed = perceptual_hash(image)[None]
    np.testing.assert_array_equal(hashed[0], perceptual_hash(image.copy()))
    slightly_other = image.point([max(value - 1, 0) if value else 1 for value in range(256)] * 3)
    for other in (perceptual_hash(slightly_other)[None], hashes):
        assert apart(hashed, other).min() > 2 * NEAR


@pytest.mark.slow
@pytest.mark.skipif("AGRICLIP_PHOTOS" not in os.environ, reason="AGRICLIP_PHOTOS names no folder of real photos")
def test_real_photos():
    """Of photos of many datasets nearly all changed copies are found, and next to no pairs of others."""
    photos = []
    for file in sorted(Path(os.environ["AGRICLIP_PHOTOS"]).glob("train/*.zip")):
        with zipfile.ZipFile(file) as content:
            names = sorted(name for name in content.namelist() if name.endswith(".jpg"))
            photos += [decode(content.read(name)) for name in names[:: len(names) // 40]]
    hashes = np.stack([perceptual_hash(photo) for photo in photos])
    assert len(near_pairs(hashes)) < len(photos) / 100
    for name, change in COPIES.items():
        copies = np.stack([perceptual_hash(change(photo)) for photo in photos[::2]])
        found = np.bitwise_count(hashes[::2] ^ copies).sum(axis=1) <= NEAR
        assert found.mean() > 0.98, name
