"""Photos to views: what decoding accepts, what evaluation sees, what augmentation does to pixels."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agriclip_jax.data.records import shrink
from agriclip_jax.data.survey import examine
from agriclip_jax.data.views import EvalView, ViewSpec, crops, decode, eval_view, load_view
from agriclip_jax.errors import UserError

PLAIN = ViewSpec(count=1, size=16, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
DINO = ViewSpec(
    count=3,
    size=24,
    scale=(0.05, 1.0),
    jitter=(0.4, 0.4, 0.2, 0.1),
    grayscale=0.2,
    blur=(1.0, 0.1, 0.5),
    solarise=(0.0, 0.2),
)


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def smooth(height, width, seed=0):
    return noise(4, 4, seed).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rng(seed=0):
    return np.random.default_rng(seed)


def changed(**strengths):
    return dataclasses.replace(PLAIN, **strengths)


# Decoding


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_every_kind_of_photo_becomes_rgb(kind):
    image = decode(encoded(Image.new("RGB", (9, 5), (200, 40, 40)), kind))
    assert (image.mode, image.size) == ("RGB", (9, 5))
    assert np.abs(np.asarray(image, int) - (200, 40, 40)).max() <= 4


def test_a_photo_taken_sideways_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by a quarter to the right to see it
    lying = Image.new("RGB", (40, 20), "blue")
    lying.paste("red", (0, 0, 20, 20))
    upright = np.asarray(decode(encoded(lying, "JPEG", exif=exif)))
    assert upright.shape == (40, 20, 3)
    assert upright[5, 10, 0] > 200 and upright[35, 10, 2] > 200


@pytest.mark.parametrize("tag", [0x011A, 0x0128, 0x0213])  # resolution, its unit, position of the chroma
def test_exif_that_pillow_cannot_write_anew_still_turns_a_photo(tag):
    entry = struct.Struct("<HHI4s").pack
    tags = entry(0x0112, 3, 1, b"\x06\0\0\0") + entry(tag, 2, 3, b"72\0\0")  # text where a number belongs
    if tag < 0x0112:
        tags = tags[12:] + tags[:12]
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tags + struct.pack("<I", 0)
    data = encoded(Image.new("RGB", (40, 20), "blue"), "JPEG", exif=exif)
    assert decode(data).size == (20, 40)
    assert Image.open(io.BytesIO(shrink(data, 20))).size == (10, 20)
    assert examine(data).fault == ""


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    pixels = np.asarray(decode(encoded(clear)))
    assert pixels[0, 0].tolist() == [255, 0, 0] and pixels[3, 3].tolist() == [255, 255, 255]
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 1)
    pixels = np.asarray(decode(encoded(palette, transparency=0)))
    assert pixels[0, 0].tolist() == [0, 255, 0] and pixels[3, 3].tolist() == [255, 255, 255]


def test_sixteen_bits_keep_their_brightness():
    deep = Image.fromarray(np.array([[0, 0x7FFF, 0xFFFF]], np.uint16))
    assert np.asarray(decode(encoded(deep)))[0].tolist() == [[0] * 3, [127] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "CMYK"])
def test_other_modes_keep_a_gray_gray(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    light = Image.new("RGB", (8, 8), "white").convert(mode)
    assert np.asarray(decode(encoded(light, kind))).min() >= 250


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_large_photo_comes_shrunk_to_what_is_needed(kind):
    photo = smooth(600, 900)
    data = encoded(photo, kind)
    small = decode(data, side=64)
    assert 64 <= min(small.size) < 128
    assert decode(data).size == (900, 600)
    expected = np.asarray(photo.resize(small.size, Image.Resampling.BOX), int)
    assert np.abs(np.asarray(small, int) - expected).mean() < 3
    assert decode(encoded(noise(50, 60)), side=64).size == (60, 50)


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_more_than_200_megapixels_are_refused_before_decoding(side):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(UserError, match="more than 200 megapixels"):
        decode(png)


@pytest.mark.parametrize("data", [b"", b"no photo", encoded(noise(9, 9))[:60], encoded(noise(99, 99), "JPEG")[:900]])
def test_what_is_no_whole_photo_is_one_readable_line(data):
    with pytest.raises(UserError, match=r"not an image|broken image") as error:
        decode(data)
    assert "\n" not in str(error.value)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]),
    places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
    kept=st.floats(0.1, 1),
    side=st.sampled_from([None, 8]),
)
def test_damaged_bytes_never_raise_anything_else(kind, places, kept, side):
    data = bytearray(encoded(noise(20, 30), kind))
    for place, value in places:
        data[int(place * len(data))] = value
    try:
        image = decode(bytes(data[: int(kept * len(data))]), side)
    except UserError:
        return
    assert image.mode == "RGB" and min(image.size) > 0


def test_load_view_decodes_and_views_in_one_call():
    np.testing.assert_array_equal(
        load_view(encoded(noise(30, 40)), EvalView(16)), eval_view(noise(30, 40), EvalView(16))
    )
    with pytest.raises(UserError):
        load_view(b"broken", EvalView(16))


# The view of evaluation


@pytest.mark.parametrize(
    ("width", "height", "size", "resized", "left", "top"),
    [
        (100, 50, 32, (64, 32), 16, 0),
        (50, 100, 32, (32, 64), 0, 16),
        (59, 129, 96, (96, 209), 0, 56),  # 209.9 is cut to 209, 56.5 rounds to the even 56
        (77, 64, 64, (77, 64), 6, 0),  # 6.5
        (79, 64, 64, (79, 64), 8, 0),  # 7.5
        (20, 30, 32, (32, 48), 0, 8),
    ],
)
def test_the_short_side_is_resized_and_the_centre_cut(width, height, size, resized, left, top):
    image = noise(height, width)
    whole = np.asarray(image.resize(resized, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(eval_view(image, EvalView(size)), whole[top : top + size, left : left + size])


def test_a_strip_of_a_few_pixels_asks_for_no_mountain_of_memory():
    assert eval_view(Image.new("RGB", (60_000, 1), "red"), EvalView(224)).shape == (224, 224, 3)


# The views of training


@settings(max_examples=100, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    count=st.integers(0, 4),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_image_gives_the_asked_crops_and_the_same_ones_again(width, height, count, size, seed):
    spec, image = dataclasses.replace(DINO, count=count, size=size), noise(height, width)
    views = crops(image, rng(seed), spec)
    assert (views.shape, views.dtype, views.flags.c_contiguous) == ((count, size, size, 3), np.uint8, True)
    np.testing.assert_array_equal(views, crops(image, rng(seed), spec))


def test_another_generator_gives_other_crops_and_the_image_is_left_alone():
    image, untouched = noise(64, 64), noise(64, 64)
    assert (crops(image, rng(0), DINO) != crops(image, rng(1), DINO)).mean() > 0.5
    np.testing.assert_array_equal(np.asarray(image), np.asarray(untouched))


def test_strengths_do_not_move_the_chances_of_each_other():
    """Turning the colours on leaves the boxes as they were, and what is drawn next."""
    one, other = rng(3), rng(3)
    plain = dataclasses.replace(DINO, jitter=(0, 0, 0, 0), grayscale=0, blur=(), solarise=())
    crops(noise(40, 50), one, plain)
    crops(noise(40, 50), other, DINO)
    assert one.random() == other.random()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), shape=st.sampled_from([(200, 200), (150, 250), (250, 150)]))
def test_a_crop_shows_a_part_of_the_asked_area_and_ratio(seed, shape):
    """Pixels that hold their own coordinates tell where a crop comes from."""
    height, width = shape
    y, x = np.mgrid[0:height, 0:width]
    spec = ViewSpec(count=1, size=50, scale=(0.2, 0.6), ratio=(0.75, 4 / 3), flip=0.0)
    view = crops(Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8)), rng(seed), spec)[0].astype(float)
    # 48 of the 50 steps between pixel centres, away from the rims where bicubic rings.
    wide, high = (view[25, 48, 0] - view[25, 1, 0]) * 50 / 47, (view[48, 25, 1] - view[1, 25, 1]) * 50 / 47
    assert 0.2 - 0.02 <= wide * high / (width * height) <= 0.6 + 0.02
    assert 0.75 - 0.05 <= wide / high <= 4 / 3 + 0.05


def test_the_area_and_the_place_are_drawn_evenly():
    y, x = np.mgrid[0:100, 0:100]
    image = Image.fromarray(np.stack([x * 2, y * 2, 0 * x], -1).astype(np.uint8))
    spec = ViewSpec(count=800, size=20, scale=(0.1, 0.9), ratio=(0.8, 1.25), flip=0.0)
    views = crops(image, rng(), spec).astype(float) / 2
    wide, high = (
        (views[:, 10, 18, 0] - views[:, 10, 1, 0]) * 20 / 17,
        (views[:, 18, 10, 1] - views[:, 1, 10, 1]) * 20 / 17,
    )
    area = wide * high / 10_000
    assert abs(area.mean() - 0.5) < 0.03 and abs(area.std() - 0.8 / 12**0.5) < 0.03
    assert abs(views[:, 10, 10, 0].mean() - 50) < 3 and abs(views[:, 10, 10, 1].mean() - 50) < 3


def test_a_panorama_still_gives_a_crop_of_the_widest_ratio():
    y, x = np.mgrid[0:20, 0:250]
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    view = crops(image, rng(), dataclasses.replace(PLAIN, size=20, scale=(0.9, 1.0), ratio=(0.5, 2.0)))[0].astype(float)
    assert 34 < (view[10, 18, 0] - view[10, 1, 0]) * 20 / 17 < 46  # all of the 20 pixels high, twice as wide


def test_the_whole_image_comes_through_unchanged_when_nothing_is_asked():
    image = noise(16, 16)
    np.testing.assert_array_equal(crops(image, rng(), PLAIN)[0], np.asarray(image))


@pytest.mark.parametrize("shape", [(20, 25), (25, 20), (33, 30), (31, 29), (30, 40)])
def test_all_of_the_area_is_the_whole_image_where_its_ratio_is_allowed(shape):
    image = noise(*shape)
    view = crops(image, rng(), changed(ratio=(3 / 4, 4 / 3)))[0].astype(int)
    whole = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC), int)
    assert np.abs(view - whole).max() <= 1


@pytest.mark.parametrize(("chance", "least", "most"), [(0.0, 0, 0), (1.0, 200, 200), (0.5, 70, 130)])
def test_flips_come_with_their_chance(chance, least, most):
    image = noise(16, 16)
    views = crops(image, rng(), changed(flip=chance, count=200))
    mirrored = (views == np.asarray(image)[:, ::-1]).all((1, 2, 3))
    assert least <= mirrored.sum() <= most
    np.testing.assert_array_equal(views[~mirrored], np.broadcast_to(np.asarray(image), views[~mirrored].shape))


def test_grayscale_keeps_the_luma_alone():
    image = noise(16, 16)
    view = crops(image, rng(), changed(grayscale=1.0))[0].astype(int)
    assert (view[..., 0] == view[..., 1]).all() and (view[..., 0] == view[..., 2]).all()
    assert np.abs(view[..., 0] - np.asarray(image.convert("L"), int)).max() <= 1


def test_brightness_scales_every_value_alike():
    image = Image.fromarray(np.random.default_rng(0).integers(20, 120, (16, 16, 3), np.uint8))
    views = crops(image, rng(), changed(jitter=(0.5, 0, 0, 0), jitter_prob=1.0, count=100)).astype(float)
    factor = views.mean((1, 2, 3)) / np.asarray(image, float).mean()
    assert factor.min() < 0.6 and factor.max() > 1.4 and factor.min() > 0.49 and factor.max() < 1.51
    assert np.abs(views - np.asarray(image) * factor[:, None, None, None]).max() < 1.5


def test_contrast_keeps_the_mean_luma_and_scales_the_spread():
    image = Image.fromarray(np.random.default_rng(0).integers(80, 170, (16, 16, 3), np.uint8))
    views = crops(image, rng(), changed(jitter=(0, 0.4, 0, 0), jitter_prob=1.0, count=50)).astype(float)
    luma = views @ (0.299, 0.587, 0.114)
    assert np.abs(luma.mean((1, 2)) - (np.asarray(image) @ (0.299, 0.587, 0.114)).mean()).max() < 1
    spread = luma.std((1, 2)) / (np.asarray(image) @ (0.299, 0.587, 0.114)).std()
    assert 0.59 < spread.min() < 0.7 and 1.3 < spread.max() < 1.41


def test_saturation_and_hue_leave_luma_and_gray_pixels_alone():
    pixels = np.random.default_rng(0).integers(90, 160, (16, 16, 3), np.uint8)
    pixels[:8] = pixels[:8, :, :1]  # gray
    strong = changed(jitter=(0, 0, 0.5, 0.5), jitter_prob=1.0, count=20)
    views = crops(Image.fromarray(pixels), rng(), strong).astype(float)
    assert np.abs(views[:, :8] - pixels[:8]).max() <= 1
    assert np.abs(views @ (0.299, 0.587, 0.114) - pixels @ (0.299, 0.587, 0.114)).max() <= 1
    assert np.abs(views[:, 8:] - pixels[8:]).max() > 40


def test_turns_of_hue_reach_every_side_of_the_colour_wheel():
    red = Image.new("RGB", (16, 16), (170, 90, 90))
    views = crops(red, rng(), changed(jitter=(0, 0, 0, 0.5), jitter_prob=1.0, count=400))[:, 0, 0]
    assert {int(view.argmax()) for view in views} == {0, 1, 2}


def test_jitter_comes_with_its_chance():
    image = smooth(16, 16)
    views = crops(image, rng(), changed(jitter=(0.4, 0.4, 0.2, 0.1), jitter_prob=0.8, count=300))
    untouched = (views == np.asarray(image)).all((1, 2, 3)).sum()
    assert 35 <= untouched <= 85  # 60 of 300, give or take 3.6 standard deviations


def test_blur_and_solarise_follow_the_place_of_the_crop():
    image = noise(16, 16)
    spec = changed(count=3, blur=(1.0, 0.0), sigma=(1.5, 1.5), solarise=(0.0, 1.0, 0.0))
    first, second, third = crops(image, rng(), spec).astype(int)
    pixels = np.asarray(image, int)
    assert np.abs(np.diff(first, axis=1)).mean() < 0.4 * np.abs(np.diff(pixels, axis=1)).mean()
    np.testing.assert_array_equal(second, np.where(pixels < 128, pixels, 255 - pixels))
    np.testing.assert_array_equal(third, pixels)


def test_the_source_side_keeps_the_smallest_crop_from_being_enlarged_much():
    spec = ViewSpec(count=1, size=96, scale=(0.05, 0.4))
    assert spec.source_side * 0.05**0.5 >= 0.8 * 96 > (spec.source_side - 1) * 0.05**0.5


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"scale": (0.5, 1.2)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"),
        ({"sigma": (1.0, 0.5)}, "sigma"),
        ({"size": 0}, "size"),
        ({"jitter": (0.4,)}, "jitter"),
    ],
)
def test_an_impossible_spec_is_named(wrong, word):
    with pytest.raises(UserError, match=word):
        changed(**wrong)
