"""Where on the photo: maps that peak where the colour is, SeLo against a slow transcription, pointing at lesions."""

import json
import math
import runpy
import sys
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from colour_model import COLOURS, ColourModel
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agriclip_jax.data import corpus
from agriclip_jax.data.views import EvalView
from agriclip_jax.errors import UserError
from agriclip_jax.evaluate import localize

TOOL = Path(__file__).parent.parent / "tools" / "localize.py"


class PatchModel(ColourModel):
    """The colour model with an embedding of each of 4 x 4 patches."""

    def dense(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (16, 16, 3)
        patches = images.reshape(len(images), 4, 4, 4, 4, 3).mean(axis=(2, 4))
        return self._unit(patches.reshape(-1, 3)).reshape(len(images), 4, 4, 3)


def scene(box, width=96, height=64, colour="red", ground="blue"):
    """A photo of one colour with a rectangle (left, top, right, bottom) of another."""
    photo = Image.new("RGB", (width, height), COLOURS[ground])
    photo.paste(COLOURS[colour], box)
    return photo


# ---- maps


@pytest.mark.parametrize("method", localize.METHODS)
@pytest.mark.parametrize(("width", "height"), [(64, 64), (160, 64), (64, 96)])
@pytest.mark.parametrize("corner", [(0, 0), (1, 1), (1, 0)])
def test_the_map_of_a_colour_peaks_where_the_colour_is(method, width, height, corner):
    left, top = corner[0] * (width - 16), corner[1] * (height - 16)
    photo = scene((left, top, left + 16, top + 16), width, height)
    model = PatchModel()
    heats = localize.METHODS[method](model, photo, localize.directions(model, ["red", "blue"]))
    assert heats.shape == (2, height, width)
    x, y = localize.peak(heats[0])
    assert left <= x < left + 16 and top <= y < top + 16
    x, y = localize.peak(heats[1])
    assert not (left <= x < left + 16 and top <= y < top + 16)


def test_a_contrast_takes_its_mean_cosine_off_the_map():
    model, photo = PatchModel(), scene((0, 0, 32, 32))
    plain = localize.dense_map(model, photo, localize.directions(model, ["red"]))
    less = localize.dense_map(model, photo, localize.directions(model, ["red"], ["green", "yellow"]))
    mean = model.embed_texts(["green", "yellow"]).mean(axis=0)
    both = localize.dense_map(model, photo, (mean / np.linalg.norm(mean))[None])
    np.testing.assert_allclose(less, plain - both, atol=1e-5)


def test_a_window_map_is_the_mean_cosine_of_the_windows_over_each_pixel():
    model, photo = PatchModel(), scene((10, 5, 40, 30), 48, 40)
    (text,) = model.embed_texts(["red"])
    (heat,) = localize.window_map(model, photo, text[None], [16, 24])
    for y, x in ((0, 0), (39, 47), (17, 20), (31, 8)):
        cosines = [
            model.embed_images(np.asarray(photo.crop((left, top, right, bottom)).resize((16, 16), Image.BICUBIC))[None])
            @ text
            for top, left, bottom, right in localize.windows(photo, [16, 24])
            if top <= y < bottom and left <= x < right
        ]
        assert heat[y, x] == pytest.approx(float(np.mean(cosines)), abs=1e-5)


def published_windows(height, width, steps):
    """RS5M's `AIR_SLT.split_image`, for photos that every window fits into: its file names, which collapse twins."""
    found = set()
    for step in steps:
        for gap in (step, int(0.5 * step)):
            for x in range(step - gap, width, step):
                left = width - step if x + step >= width else x
                for y in range(step - gap, height, step):
                    top = height - step if y + step >= height else y
                    found.add((top, left, top + step, left + step))
    return found


@settings(deadline=None, max_examples=20)
@given(st.integers(768, 2000), st.integers(768, 2000))
def test_windows_are_those_of_the_published_code(height, width):
    found = localize.windows(Image.new("1", (width, height)), localize.SCALES)
    assert set(map(tuple, found.tolist())) == published_windows(height, width, localize.SCALES)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 90), st.integers(1, 90), st.lists(st.integers(1, 120), min_size=1, max_size=3))
def test_windows_are_squares_inside_the_photo_and_cover_it_also_when_it_is_smaller(height, width, scales):
    if max(height, width) > 32 * min(height, width):
        return
    found = localize.windows(Image.new("1", (width, height)), scales)
    seen = np.zeros((height, width), bool)
    for top, left, bottom, right in found:
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        assert bottom - top == right - left == min(bottom - top, height, width)
        seen[top:bottom, left:right] = True
    assert seen.all() and len(np.unique(found, axis=0)) == len(found)


def test_a_strip_is_refused_before_it_becomes_windows_without_number():
    for method in localize.METHODS.values():
        with pytest.raises(UserError, match="5000 x 8 pixels, more than 32 times as long as wide"):
            method(PatchModel(), Image.new("RGB", (5000, 8)), np.zeros((1, 3), np.float32))


def test_of_equal_maxima_the_one_nearest_to_their_middle_is_the_peak():
    heat = np.zeros((9, 9))
    heat[2:5, 4:7] = 1
    assert localize.peak(heat) == (5, 3)
    assert localize.peak(np.ones((9, 9))) == (4, 4)


# ---- SeLo


@cache
def slow_peaks(name):
    """The peaks of a map of `MAPS` as a list of (x, y), in plain loops."""
    prob = MAPS[name]
    height, width = prob.shape
    gray = np.floor(prob * 255)
    for _ in range(5):
        padded = np.pad(gray, ((25, 24), (25, 24)), mode="reflect")
        gray = np.rint(np.lib.stride_tricks.sliding_window_view(padded, (50, 50)).mean(axis=(2, 3)))
    rest, centres = {(y, x) for y, x in np.argwhere((gray == gray.max()) & (gray > 0)).tolist()}, []
    assert height <= 500 and width <= 500, "so that every pixel's 1000 x 1000 hold the whole map"
    while rest:
        component, edge = [], [rest.pop()]
        while edge:
            y, x = edge.pop()
            component.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & rest
            rest -= near
            edge += near
        y, x = np.mean(component, axis=0).astype(int)
        if prob[y, x] >= 0.5:
            centres.append((x, y))
    return centres


def slow_indicators(name, boxes):
    """The formulas in plain float64 for regions that are rectangles (left, top, right, bottom), corners included."""
    prob, centres = MAPS[name], slow_peaks(name)
    height, width = prob.shape
    mask = np.zeros((height, width))
    for left, top, right, bottom in boxes:
        mask[max(0, top) : bottom + 1, max(0, left) : right + 1] = 1
    inside, everything, area = (prob * mask).sum(), prob.sum(), mask.sum()
    rsu = 1 - math.exp(-0.707 * inside / (everything - inside + 1e-7) * (height * width - area) / area) if area else 0

    ras, rda = [], []
    for left, top, right, bottom in boxes:
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        cx, cy = int((left + right) / 2), int((top + bottom) / 2)
        r = max(1, int(1.5 * np.mean([math.hypot(x - cx, y - cy) for x, y in corners])))
        own = [(x, y) for x, y in centres if math.hypot(x - cx, y - cy) <= r]
        ras.append((np.mean([math.hypot(x - cx, y - cy) for x, y in own]) if own else r) / r)
        if len(own) <= 1:
            rda.append(len(own))
        else:
            mx, my = np.mean(own, axis=0)
            spread = np.mean([math.hypot(x - mx, y - my) for x, y in own])
            rda.append(0.5 * (1 - spread / r) + math.exp(-0.5 * (len(own) + 2)))
    ras, rda = (math.exp(3 * np.mean(ras)) - 1) / (math.exp(3) - 1), np.mean(rda)
    return rsu, ras, rda, 0.4 * rsu + 0.35 * (1 - ras) + 0.25 * rda


def polygons(boxes):
    return [np.array([(a, b), (c, b), (c, d), (a, d)], float) for a, b, c, d in boxes]


def blobs(height, width, *spots):
    """A map in [0, 1] with round hills (x, y, radius, height)."""
    y, x = np.mgrid[:height, :width]
    hills = [tall * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * r**2)) for a, b, r, tall in spots]
    return np.max(hills, axis=0)


WHOLE = (0, 0, 99, 69)
MAPS = {
    "one hill": blobs(70, 100, (30, 40, 12, 1.0)),
    "two equal hills": blobs(70, 100, (20, 35, 10, 1.0), (80, 35, 10, 1.0)),
    "noise": np.random.default_rng(0).random((70, 100)),
    "nothing": np.zeros((70, 100)),
    "all the same": np.full((70, 100), 0.7),
    "below one half": blobs(70, 100, (30, 40, 12, 0.45)),
    "off the middle": blobs(200, 160, (30, 140, 30, 1.0), (120, 60, 14, 0.9)),
    "slant": np.add.outer(np.arange(180), np.arange(150)) % 160 / 160,
}
REGIONS = {
    "on the hill": [(20, 30, 40, 50)],
    "elsewhere": [(80, 2, 95, 12)],
    "two": [(10, 25, 40, 50), (70, 20, 95, 60)],
    "the whole map": [WHOLE],
    "over the border": [(-30, -10, 25, 45), (90, 60, 140, 90)],
    "a single pixel": [(30, 40, 30, 40)],
    "outside": [(300, 300, 340, 340)],
}


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("name", MAPS)
def test_indicators_equal_a_slow_transcription_of_the_formulas(name, regions):
    found = localize.indicators(MAPS[name], polygons(REGIONS[regions]))
    expected = slow_indicators(name, REGIONS[regions])
    np.testing.assert_allclose([found.rsu, found.ras, found.rda, found.rmi], expected, atol=1e-9)
    assert all(0 <= value <= 1 for value in (found.rsu, found.ras, found.rda, found.rmi))


@pytest.mark.parametrize("name", MAPS)
def test_peaks_equal_a_slow_transcription(name):
    assert sorted(map(tuple, localize.peaks(MAPS[name]).tolist())) == sorted(slow_peaks(name))


def test_without_a_peak_every_region_counts_its_radius():
    found = localize.indicators(np.zeros((70, 100)), polygons([(0, 0, 9, 9), (20, 20, 69, 69)]))
    assert found == localize.Selo(rsu=0.0, ras=pytest.approx(1), rda=0.0, rmi=pytest.approx(0))


def test_peaks_more_than_500_pixels_apart_are_two_and_nearer_ones_the_higher():
    wide = blobs(60, 1600, (200, 30, 60, 1.0), (1400, 30, 60, 0.8))
    assert [abs(x - at) < 30 for (x, _), at in zip(localize.peaks(wide), (200, 1400), strict=True)] == [True, True]
    near = blobs(60, 1600, (200, 30, 60, 1.0), (650, 30, 60, 0.8))
    ((x, _),) = localize.peaks(near)
    assert abs(x - 200) < 30


def test_more_peaks_in_one_region_are_worse_than_one_by_the_published_step():
    two = blobs(60, 1600, (200, 30, 60, 1.0), (1400, 30, 60, 1.0))
    one = blobs(60, 1600, (200, 30, 60, 1.0))
    region = polygons([(0, 0, 1599, 59)])
    assert localize.indicators(one, region).rda == 1
    ((x1, y1), (x2, y2)), radius = localize.peaks(two).tolist(), int(1.5 * math.hypot(799.5, 29.5))
    spread = math.hypot(x1 - x2, y1 - y2) / 2 / radius
    found = localize.indicators(two, region).rda
    assert found == pytest.approx(0.5 * (1 - spread) + math.exp(-2), abs=1e-3)


def test_a_constant_map_becomes_zeros_and_any_other_fills_0_to_1():
    assert not localize.probability(np.full((30, 40), 0.3, np.float32)).any()
    ramp = np.linspace(-2, 5, 1200, dtype=np.float32).reshape(30, 40)
    np.testing.assert_allclose(localize.probability(ramp, 1), (ramp + 2) / 7, atol=1e-6)


@pytest.mark.parametrize(("blur", "off"), [(9, 0.0), (49, 0.0), (251, 5.0)])
def test_the_median_is_exact_when_narrow_and_moves_edges_a_little_when_wide(blur, off):
    heat = np.zeros((30, 403), np.float32)
    heat[:, 203:] = 1
    smooth = localize.probability(heat, blur)
    assert smooth.shape == heat.shape and set(np.unique(smooth)) == {0.0, 1.0}
    assert (np.abs((smooth == 0).sum(axis=1) - 203) <= off).all()


def test_the_median_takes_specks_away():
    heat = np.zeros((60, 60), np.float32)
    heat[30, 30] = heat[0, 0] = 1
    heat[10:30, 10:30] = 0.5
    smooth = localize.probability(heat, 5)
    assert smooth[30, 30] == smooth[0, 0] == 0 and smooth[20, 20] == 0.5


def air_slt(folder, photo, queries):
    """A data set in AIR-SLT's form: one photo, captions with rectangles."""
    (folder / "imgs").mkdir(parents=True)
    (folder / "annotations").mkdir()
    photo.save(folder / "imgs" / "0.png")
    entries = [
        {"jpg_name": "0.png", "caption": f"{caption}\n", "points": [p.tolist() for p in polygons(boxes)]}
        for caption, boxes in queries
    ]
    (folder / "annotations" / "anno.json").write_text(json.dumps(entries), encoding="utf-8")
    return folder


def test_selo_scores_a_right_map_far_above_a_wrong_one(tmp_path):
    place = (20, 20, 99, 99)
    folder = air_slt(tmp_path / "x", scene(place, 300, 200), [("red", [place]), ("blue", [place])])
    done = []
    means, each = localize.selo(PatchModel(), folder, scales=(48, 96), blur=25, progress=done.append)
    (right, wrong) = (scores for _, scores in each)
    assert [query.caption for query, _ in each] == ["red", "blue"] and done == [1, 1]
    assert right.rmi > 0.8 and wrong.rmi < 0.3
    assert means["rmi"] == pytest.approx((right.rmi + wrong.rmi) / 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "entry 1 is not"),
        ("[]", "holds no query"),
        ("[1]", "entry 1 is not"),
        ('[{"jpg_name": "a.jpg", "caption": "x", "points": []}]', "it has no region"),
        ('[{"jpg_name": "a.jpg", "caption": "x", "points": [[]]}]', "a region of fewer than two vertices"),
        ('[{"jpg_name": "a.jpg", "caption": "x", "points": [[[1, 2]]]}]', "a region of fewer than two vertices"),
        ('[{"jpg_name": "a.jpg", "caption": "x", "points": [[[1, 2, 3]]]}]', "entry 1 is not"),
        ('[{"jpg_name": "a.jpg", "caption": "x", "points": [[[1, NaN], [3, 4]]]}]', "a vertex that is no place"),
        ('[{"jpg_name": "a.jpg", "caption": "x", "points": [[[1, 1e9], [3, 4]]]}]', "a vertex that is no place"),
        ('[{"jpg_name": "../a.jpg", "caption": "x", "points": [[[1, 2], [3, 4]]]}]', "jpg_name is no file name"),
        ('[{"jpg_name": "a.jpg", "caption": 3, "points": [[[1, 2]]]}]', "entry 1 is not"),
        ("not json", "is damaged"),
    ],
)
def test_a_damaged_annotation_file_is_one_line(tmp_path, text, message):
    (tmp_path / "anno.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        localize.read_located(tmp_path / "anno.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("beside", [(300, 0, 340, 40), (-50, -50, -1, -1), (0, 200, 299, 250)])
def test_a_region_without_a_pixel_of_the_photo_is_one_line_that_names_the_entry(tmp_path, beside):
    on_edge = (299, 199, 400, 400)
    queries = [("red", [on_edge]), ("blue", [(0, 0, 9, 9), beside])]
    folder = air_slt(tmp_path / "x", scene((0, 0, 99, 99), 300, 200), queries)
    with pytest.raises(UserError, match=r"0\.png: region 2 of entry 2 lies beside its 300 x 200 pixels") as raised:
        localize.selo(PatchModel(), folder, scales=(96,), blur=25)
    assert "\n" not in str(raised.value)


# ---- pointing


class Knowing(PatchModel):
    """Looks a picture's lesions up and answers `sign` times how much of each patch they cover."""

    image_size = 32
    view = EvalView(32)

    def __init__(self, sign):
        super().__init__()
        self.sign = sign
        leaves = [kind for kind in corpus.KINDS if kind.domain == "crop" and kind.marks]
        drawn = [corpus.lesions(kind, "test", 0, size=32) for kind in leaves]
        self.lesions = {pixels.tobytes(): lesion for pixels, lesion in drawn}

    def embed_texts(self, texts):
        return np.tile(np.float32([1, 0]), (len(texts), 1))

    def dense(self, images):
        blank = np.zeros((32, 32), bool)
        masks = np.stack([self.lesions.get(image.tobytes(), blank) for image in images])
        shares = self.sign * masks.reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
        return np.stack([shares, np.sqrt(1 - shares**2)], axis=-1).astype(np.float32)


def test_who_knows_the_lesions_points_at_them_and_who_denies_them_does_not():
    right, wrong = (localize.pointing(Knowing(sign), count=1, size=32) for sign in (1, -1))
    assert set(right) == {"all", *(kind.marks for kind in corpus.KINDS if kind.domain == "crop" and kind.marks)}
    assert right["all"].images == sum(found.images for name, found in right.items() if name != "all")
    assert right["all"].accuracy == 1 and right["all"].auroc > 0.9
    assert wrong["all"].accuracy < 0.2 and wrong["all"].auroc < 0.1
    assert right["all"].interval[0] < 1 == right["all"].interval[1]
    assert (right["rust"].chance, right["rust"].centre) == (wrong["rust"].chance, wrong["rust"].centre)


def test_chance_and_centre_are_shares_of_the_lesions_dilated_by_half_a_patch():
    found = localize.pointing(Knowing(1), count=1, size=32)["blight"]
    chance, centre = [], []
    for kind in corpus.KINDS:
        if kind.marks == "blight":
            _, lesion = corpus.lesions(kind, "test", 0, size=32)
            places = np.argwhere(lesion)
            near = [
                [np.hypot(*(places - (y, x)).T).min() <= 2 for x in range(32)] for y in range(32)
            ]  # a patch is 4 pixels
            chance.append(np.mean(near))
            centre.append(near[16][16])
    assert found.chance == pytest.approx(np.mean(chance)) and found.centre == pytest.approx(np.mean(centre))


# ---- the tool


def call(monkeypatch, capsys, *arguments, model=None):
    if model is not None:
        monkeypatch.setattr("agriclip_jax.inference.load", lambda *_, **__: model)
    monkeypatch.setattr(sys, "argv", ["localize.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOL), run_name="__main__")
    return ended.value.code, capsys.readouterr()


@pytest.mark.parametrize("method", localize.METHODS)
def test_the_tool_says_where_in_pixels_of_the_photo_and_draws_it(tmp_path, monkeypatch, capsys, method):
    large = scene((900, 0, 1080, 180), 1080, 720)
    large.save(tmp_path / "a leaf.png")
    (tmp_path / "broken.png").write_bytes(b"no photo")
    out = tmp_path / "new" / "found"
    asked = (tmp_path, f"--out={out}", "--ckpt=x", "--query=red", "--query=Blue?", f"--method={method}")
    status, shown = call(monkeypatch, capsys, *asked, model=PatchModel())
    assert status == 0 and "1 of 2 photos cannot be read" in shown.err
    file = json.loads((out / "locations.json").read_text(encoding="utf-8"))
    red, blue, broken = file["locations"]
    assert 900 <= red["x"] < 1080 and 0 <= red["y"] < 180 and red["query"] == "red"
    assert not (900 <= blue["x"] < 1080 and 0 <= blue["y"] < 180)
    assert "not an image" in broken["error"] and set(broken) == {"file", "error"}
    assert file["method"] == method and file["checkpoint"]["step"] == 7
    assert blue["picture"] == "0000-1-a-leaf-blue.png"
    with Image.open(out / red["picture"]) as picture:
        width, height = picture.size
        assert picture.format == "PNG" and height * 3 == pytest.approx(width, rel=0.02)
        map_ = np.asarray(picture.convert("RGB"), float)[:, width // 2 + 4 :].sum(axis=2)
    assert map_[: height // 5, -height // 5 :].mean() > 1.5 * map_[height // 2 :].mean()


def test_where_no_photo_can_be_read_the_tool_says_so_and_fails(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no photo")
    asked = (tmp_path, f"--out={tmp_path / 'out'}", "--ckpt=x", "--query=red", "--query=blue")
    status, shown = call(monkeypatch, capsys, *asked, model=PatchModel())
    file = json.loads((tmp_path / "out" / "locations.json").read_text(encoding="utf-8"))
    assert [set(location) for location in file["locations"]] == [{"file", "error"}] * 2
    assert status == 1 and "none of 2 photos can be read; the first, " in shown.err and "not an image" in shown.err


def test_the_tool_scores_a_data_set_in_air_slts_form(tmp_path, monkeypatch, capsys):
    folder = air_slt(tmp_path / "x", scene((0, 0, 99, 99), 300, 200), [("red", [(0, 0, 99, 99)])])
    out = tmp_path / "out"
    status, shown = call(monkeypatch, capsys, f"--selo={folder}", f"--out={out}", "--ckpt=x", model=PatchModel())
    file = json.loads((out / "selo.json").read_text(encoding="utf-8"))
    assert status == 0 and f"rmi {file['mean']['rmi']:.4f}" in shown.out
    assert file["queries"][0]["caption"] == "red" and file["method"] == "windows"


def test_the_tool_prints_and_writes_the_pointing_accuracy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(localize, "pointing", partial(localize.pointing, count=1, size=32))
    asked = ("--pointing", f"--out={tmp_path}", "--ckpt=x")
    status, shown = call(monkeypatch, capsys, *asked, model=Knowing(1))
    file = json.loads((tmp_path / "pointing.json").read_text(encoding="utf-8"))
    assert status == 0 and file["pointing"]["all"]["accuracy"] == 1
    assert "powdery mildew" in shown.out and "100.0" in shown.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photo}", "--query=red"], "missing is not the workdir of a run"),
        (["{photo}"], "PHOTOS and what to look for on them go together"),
        (["{photo}", "--query= "], "PHOTOS and what to look for on them go together"),
        (["--pointing", "--query=red"], "PHOTOS and what to look for on them go together"),
        ([], "give one of PHOTOS, --pointing and --selo"),
        (["{photo}", "--query=red", "--pointing"], "give one of PHOTOS, --pointing and --selo"),
        (["nothing-*.jpg", "--query=red"], "no photo matches nothing-*.jpg"),
        (["{photo}", "--query=red", "--out={photo}"], "is a file; name a folder"),
        (["--selo={folder}"], "anno.json cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    scene((0, 0, 9, 9)).save(tmp_path / "photo.png")
    filled = [text.format(photo=tmp_path / "photo.png", folder=tmp_path) for text in arguments]
    status, shown = call(monkeypatch, capsys, "--ckpt=missing", f"--out={tmp_path / 'out'}", *filled)
    assert status == 2 and shown.out == ""
    (line,) = shown.err.strip().splitlines()
    assert line.startswith("error: ") and message in line


def test_a_checkpoints_model_gives_every_patch_an_embedding_of_length_1():
    import jax
    from tiny import Vocabulary, config

    from agriclip_jax import inference, mesh, recipe

    settings_ = config()
    towers = recipe.towers(settings_, Vocabulary())
    params = {"image": jax.jit(towers["image"].init)(jax.random.key(0))}
    model = inference.Model(settings_, towers, params, None, mesh.make("auto"), Path("x"), 0, batch=8)
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3), np.uint8)
    found = model.dense(images)
    assert found.shape == (11, 2, 2, 16) and found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found[9:], model.dense(images[9:]), atol=1e-5)
