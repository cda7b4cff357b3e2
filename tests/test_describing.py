"""Images without a label get the caption that holds whichever way up they are."""

import io

import numpy as np
import pytest
from loopback import answers, image_of, says, serving, status
from PIL import Image

from agriclip_jax.data import describing, endpoint
from agriclip_jax.data.describing import Description, describe, small, turned
from agriclip_jax.data.endpoint import Endpoint
from agriclip_jax.data.views import decode


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No back-off, no key and no proxy."""
    monkeypatch.setattr(endpoint, "BACK_OFF", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def photo(colour="green", size=(40, 30), kind="PNG", **more):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind, **more)
    return file.getvalue()


def described(server, folder, images, judge=None, **more):
    asked = Endpoint(server.url, "tiny", cache=folder / "cache")
    return list(describe(images, asked, judge, count_tokens=lambda text: len(text.split()), **more))


COLOURS = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255)}


def by_colour(images, texts):
    """Similarities of 1 where a text names the colour of an image."""
    mean = [np.asarray(image).mean(axis=(0, 1)) for image in images]
    return np.array(
        [
            [float(any(name in text and np.allclose(m, c, atol=8) for name, c in COLOURS.items())) for text in texts]
            for m in mean
        ]
    )


# ---- end to end ------------------------------------------------------------------------------------------------------


def test_each_image_gets_the_caption_that_agrees_with_it(tmp_path):
    images = [(f"{n}.png", photo(colour)) for n, colour in enumerate(["red", "green", "blue"] * 12)]
    with serving(says(*(f"a leaf all in {colour}" for colour in COLOURS))) as server:
        got = described(server, tmp_path, images, by_colour, candidates=3)
    assert got == [
        Description(f"{n}.png", f"a leaf all in {colour}", 1.0)
        for n, colour in enumerate(["red", "green", "blue"] * 12)
    ]


def test_what_holds_only_upright_loses(tmp_path):
    def judge(images, texts):
        upright = [image.width > image.height and image.getpixel((0, 0))[0] > 200 for image in images]
        return np.array([[float(up) if "upright" in text else 0.5 for text in texts] for up in upright])

    half = Image.new("RGB", (40, 30), "red")
    half.paste("blue", (0, 15, 40, 30))
    file = io.BytesIO()
    half.save(file, "PNG")
    with serving(says("red upright over blue", "red beside the blue")) as server:
        (got,) = described(server, tmp_path, [("a", file.getvalue())], judge, candidates=2)
    assert got == Description("a", "red beside the blue", 0.5)


def test_of_equals_the_first_is_kept_and_so_it_is_without_a_judge(tmp_path):
    with serving(says("too short", "a leaf with spots", "a fish with scales")) as server:
        for judge in (None, lambda images, texts: np.full((len(images), len(texts)), 0.25)):
            (got,) = described(server, tmp_path, [("a", photo())], judge, candidates=3)
            assert got == Description("a", "a leaf with spots", 0.25 if judge else 0.0)


def test_the_judge_sees_batches_of_images_each_turned_four_times(tmp_path, monkeypatch):
    monkeypatch.setattr(describing, "BATCH", 2)
    calls = []

    def judge(images, texts):
        calls.append((len(images), len(texts)))
        return np.zeros((len(images), len(texts)))

    images = [(str(n), photo(size=(40 + n, 30))) for n in range(3)]
    with serving(says("a leaf with spots", "A leaf with spots.", "a fish with scales")) as server:
        described(server, tmp_path, images, judge, candidates=3)
    assert calls == [(8, 4), (4, 2)]  # two captions alike are one


def test_every_image_is_answered_in_its_place(tmp_path):
    images = [(str(n), photo(size=(40 + n, 30)) if n % 3 == 1 else b"no image") for n in range(20)]
    with serving(says("a leaf with spots")) as server:
        got = described(server, tmp_path, images, by_colour, candidates=1)
    assert [one.key for one in got] == [str(n) for n in range(20)]
    for n, one in enumerate(got):
        assert one.caption == ("a leaf with spots" if n % 3 == 1 else "")
        assert one.error.startswith("" if n % 3 == 1 else "not an image") and bool(one.error) != bool(one.caption)
    assert len(server.payloads) == 7


def test_images_stream(tmp_path):
    taken = []

    def images():
        for n in range(10_000):
            taken.append(n)
            yield str(n), photo(size=(40 + n, 30))

    with serving(says("a leaf with spots")) as server:
        asked = Endpoint(server.url, "tiny", cache=tmp_path, workers=2)
        describing_ = describe(images(), asked, None, candidates=1, count_tokens=len, most_tokens=60)
        assert next(describing_).caption == "a leaf with spots"
        describing_.close()
    assert len(taken) < 30


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (says("I cannot see a leaf", "a leaf"), "no usable caption (a remark, no caption; too short)"),
        (says("```"), "no usable caption (empty)"),
        (status(418, "a teapot"), "HTTP status 418 (a teapot)"),
    ],
)
def test_an_image_without_a_caption_says_why(tmp_path, behaviour, error):
    with serving(behaviour) as server:
        (got,) = described(server, tmp_path, [("a", photo())], by_colour, candidates=2)
    assert (got.key, got.caption, got.score) == ("a", "", 0.0)
    assert got.error.endswith(error)


def test_a_caption_may_follow_a_remark(tmp_path):
    with serving(
        answers(lambda payload: "Here is a caption:\n\n1. a leaf with spots\n2. a fish with scales")
    ) as server:
        (got,) = described(server, tmp_path, [("a", photo())], candidates=1)
    assert got.caption == "a leaf with spots"


def test_a_second_run_asks_nothing(tmp_path):
    images = [("a", photo(size=(900, 700), kind="JPEG")), ("b", photo(kind="GIF"))]
    with serving(says("a leaf with spots")) as server:
        first = described(server, tmp_path, images)
        assert described(server, tmp_path, images) == first
    assert len(server.payloads) == 2 * 4  # candidates that came one by one


# ---- what is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (40, 30), (512, 512), (1600, 900), (700, 2100), (3000, 2)])
def test_a_small_jpeg_is_sent(size, kind):
    sent = Image.open(io.BytesIO(small(photo(size=size, kind=kind))))
    assert sent.format == "JPEG" and max(sent.size) == min(512, max(size))
    assert sent.width / sent.height == pytest.approx(size[0] / size[1], rel=0.02) or min(sent.size) == 1


def test_what_a_camera_wrote_beside_the_pixels_is_not_sent(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "hush"
    data = photo(kind="JPEG", exif=exif, comment=b"hush")
    assert data.count(b"hush") == 2
    with serving(says("a leaf with spots")) as server:
        described(server, tmp_path, [("a", data)], candidates=1)
    kind, sent = image_of(server.payloads[0])
    assert kind == "image/jpeg" and b"hush" not in sent and sent == small(data)


def test_an_image_is_turned_without_loss():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))
    for quarter, view in enumerate(turned(image)):
        assert np.array_equal(np.asarray(view), np.rot90(np.asarray(image), quarter))
    assert decode(small(photo("red"))).getpixel((0, 0))[0] > 250
