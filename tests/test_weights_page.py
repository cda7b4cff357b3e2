"""docs/weights.md shows, for every family of weights, how far its features are from the original's."""

import re
from pathlib import Path

import pytest

from agriclip_jax.weights import families

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rows():
    """Cells of the table that `make parity-table` writes: model, names, original, feature, largest difference."""
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    _, between, _ = re.split("<!-- parity: (?:begin|end) -->", page)
    table = [line for line in between.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def family(model, names):
    return model if model == names else f"{model} ({names})"


def test_every_family_has_its_rows_and_one_of_each_kind_of_feature_it_gives(rows):
    seen = {}
    for model, names, _, feature, _ in rows:
        seen.setdefault(family(model, names), set()).add("image" if feature.startswith("image") else "text")
    assert {name: set(each.towers) for name, each in families.FAMILIES.items()}.items() <= seen.items()


def test_every_image_tower_was_also_compared_on_another_grid(rows):
    others = {family(model, names) for model, names, _, feature, _ in rows if feature.endswith("another grid")}
    own_format = {"agriclip_jax"}  # whose original is itself
    assert {name for name, each in families.FAMILIES.items() if "image" in each.towers} - own_format <= others


def test_no_feature_differs_by_more_than_a_ten_thousandth(rows):
    assert max(float(difference) for *_, difference in rows) <= 1e-4


def test_the_originals_are_of_the_versions_that_make_parity_installs(rows):
    pins = (ROOT / "requirements-parity.txt").read_text(encoding="utf-8").replace("open_clip_torch", "open_clip")
    pins = dict(re.findall(r"^([\w-]+)==([\d.]+)$", pins, flags=re.MULTILINE))
    originals = {tuple(re.split("[ ,]", original)[:2]) for _, _, original, _, _ in rows}
    libraries = ("open_clip", "timm", "torchvision", "transformers")
    assert {each for each in originals if each[0] != "agriclip_jax"} == {(name, pins[name]) for name in libraries}


def test_models_that_were_written_here_were_loaded_by_the_programs_they_are_for(rows):
    written = {(names, original.split(" ")[0]) for model, names, original, _, _ in rows if "exported" in model}
    assert written == {("hf", "transformers"), ("open_clip", "open_clip")}
