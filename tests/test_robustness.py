"""Corruptions: what each does to a view, that it is the same each time, and the same in a small and a large view."""

import numpy as np
import pytest
from PIL import Image

from agriclip_jax.errors import UserError
from agriclip_jax.evaluate.robustness import CORRUPTIONS, corrupt

STRENGTHS = range(1, 6)
every_kind = pytest.mark.parametrize("kind", CORRUPTIONS)


def textured(side=96):
    """Coarse and fine structure in colour, without a symmetry that a rotation could keep."""
    rng = np.random.default_rng(0)
    layers = [
        Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for cells in (3, 7, 24)
    ]
    return np.mean([np.asarray(layer, np.float32) for layer in layers], axis=0).astype(np.uint8)


def distance(a, b):
    return np.abs(a.astype(np.float32) - b).mean()


@every_kind
@pytest.mark.parametrize("side", [1, 31, 72])
def test_a_view_stays_a_view_and_the_original_stays_as_it_was(kind, side):
    view = textured(side)
    before = view.copy()
    for strength in STRENGTHS:
        found = corrupt(view, kind, strength, seed=0)
        assert found.shape == view.shape and found.dtype == np.uint8 and found.flags.writeable
    np.testing.assert_array_equal(view, before)


@every_kind
def test_the_same_arguments_give_the_same_pixels(kind):
    view = textured()
    np.testing.assert_array_equal(corrupt(view, kind, 3, seed=5), corrupt(view, kind, 3, seed=5))


def test_another_seed_gives_other_noise_and_the_next_strength_more_of_the_same():
    view = np.full((64, 64, 3), 128, np.uint8)
    one, two, more = corrupt(view, "noise", 1, 0), corrupt(view, "noise", 1, 1), corrupt(view, "noise", 2, 0)
    assert (one != two).mean() > 0.5
    np.testing.assert_array_equal(one > 128, (more > 128) & (one != 128))


@every_kind
@pytest.mark.parametrize("side", [72, 224])
def test_each_strength_is_further_from_the_original_than_the_one_before(kind, side):
    view = textured(side)
    distances = [distance(corrupt(view, kind, strength, seed=0), view) for strength in STRENGTHS]
    assert distances[0] > 0 and np.all(np.diff(distances) > 0)


@every_kind
def test_a_small_view_is_made_as_bad_as_a_large_one(kind):
    large = textured(216)
    small = np.asarray(Image.fromarray(large).resize((72, 72), Image.Resampling.BOX))
    shrunk = Image.fromarray(corrupt(large, kind, 4, seed=0)).resize((72, 72), Image.Resampling.BOX)
    expected, found = distance(np.asarray(shrunk), small), distance(corrupt(small, kind, 4, seed=0), small)
    assert found == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("kind", ["blur", "rotation"])
@pytest.mark.parametrize("grey", [0, 1, 77, 128, 255])
def test_a_constant_view_survives_what_only_moves_pixels(kind, grey):
    view = np.full((72, 72, 3), grey, np.uint8)
    for strength in STRENGTHS:
        np.testing.assert_array_equal(corrupt(view, kind, strength, seed=0), view)


def test_a_rotation_turns_anticlockwise_about_the_centre():
    view = np.zeros((65, 65, 3), np.uint8)
    view[:, 33:] = 255  # right half
    turned = corrupt(view, "rotation", 5, seed=0)
    assert turned[8, 28, 0] == 255 and turned[56, 36, 0] == 0  # at the top the edge leans to the left
    assert turned[30, 36, 0] == 255 and turned[34, 28, 0] == 0


def test_a_stop_of_exposure_is_twice_the_light():
    view = np.full((4, 4, 3), 100, np.uint8)
    assert corrupt(view, "bright", 2, 0)[0, 0, 0] == round(100 * 2 ** (1 / 2.2))
    assert corrupt(view, "dark", 1, 0)[0, 0, 0] == round(100 / 2 ** (1 / 2.2))
    assert corrupt(np.full_like(view, 250), "bright", 5, 0).max() == 255


def test_an_unknown_kind_names_the_near_miss():
    with pytest.raises(UserError, match=r"unknown corruption 'rotatoin'; did you mean 'rotation'\?"):
        corrupt(textured(), "rotatoin", 1, 0)


@pytest.mark.parametrize("strength", [0, 6, 2.5])
def test_an_unknown_strength_says_what_there_is(strength):
    with pytest.raises(UserError, match="whole number from 1 to 5"):
        corrupt(textured(), "blur", strength, 0)
