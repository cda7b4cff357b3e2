"""Masks: how many views and patches they hide, in what shapes, and that they move nothing else of a row."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pipeline import FIELDS, VIEWS, alive, batches, same, take, tokenizer  # noqa: F401

from agriclip_jax.data import masks
from agriclip_jax.errors import UserError

PATCH = 4  # of views of 16 pixels: 16 patches
NEEDS = FIELDS | {"mask"}

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=200)
@given(seeds, st.integers(1, 4), st.integers(1, 16))
def test_half_of_the_views_are_masked_each_by_at_most_half_of_its_patches(seed, views, grid):
    mask = masks.draw(np.random.default_rng(seed), views, grid)
    assert mask.shape == (views, grid * grid) and mask.dtype == bool
    assert mask.any(1).sum() in {views // 2, (views + 1) // 2}
    assert mask.sum(1).max() <= max(1, grid**2 // 2)
    assert mask.sum() <= masks.most(views, grid)


def test_of_one_view_every_other_image_is_masked_and_of_two_each_is_as_often():
    rng = np.random.default_rng(0)
    one = np.mean([masks.draw(rng, 1, 8).any() for _ in range(4000)])
    assert abs(one - 0.5) < 0.04  # five standard deviations
    two = np.mean([masks.draw(rng, 2, 8).any(1) for _ in range(4000)], axis=0)
    assert two.sum() == 1 and abs(two[0] - 0.5) < 0.04


def test_the_hidden_share_is_spread_evenly_from_a_tenth_to_a_half():
    rng = np.random.default_rng(0)
    shares = np.array([masks.draw(rng, 2, 16).sum() / 256 for _ in range(2000)])
    assert 0.05 < shares.min() < 0.12 and 0.47 < shares.max() <= 0.5
    assert abs(shares.mean() - 0.3) < 0.02
    assert np.histogram(shares, 4, (0.1, 0.5))[0].min() > 400


def test_every_patch_is_hidden_sometimes_and_neighbours_together():
    rng = np.random.default_rng(0)
    drawn = np.array([masks.blocks(rng, 14, 59) for _ in range(2000)])
    hidden = drawn.mean(0)
    assert hidden.min() > 0.02 and hidden[4:10, 4:10].min() > 0.3 and abs(hidden.mean() - 0.3) < 0.01
    np.testing.assert_allclose(hidden, hidden[::-1, ::-1], atol=0.06)
    together = (drawn[:, :, 1:] & drawn[:, :, :-1]).mean() / hidden.mean()
    assert together > 0.7  # of single patches spread at random it would be 0.3


def test_a_block_is_no_narrower_than_its_aspect_allows(monkeypatch):
    """Of masks that end with the first block that does not fit, those that are one whole rectangle."""
    monkeypatch.setattr(masks, "_TRIES", 1)
    rng, aspects = np.random.default_rng(0), []
    for _ in range(3000):
        if not (mask := masks.blocks(rng, 40, 400)).any():
            continue
        rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        if mask.sum() == height * width > 100:
            aspects.append(height / width)
    assert len(aspects) >= 100
    assert 0.27 < min(aspects) < 0.4 and 2.5 < max(aspects) < 3.7  # rounded to whole patches


# In the pipeline


def test_a_batch_has_a_mask_for_each_patch_of_each_global_view(batches):  # noqa: F811
    (batch,) = take(batches(needs=NEEDS, patch=PATCH), 1)
    assert batch["mask"].shape == (8, 2, 16) and batch["mask"].dtype == bool
    assert (batch["mask"].any(2).sum(1) == 1).all()
    assert len({row.tobytes() for row in batch["mask"]}) > 4


def test_masks_move_nothing_else_that_is_drawn(batches):  # noqa: F811
    with_masks, without = take(batches(needs=NEEDS, patch=PATCH), 4), take(batches(), 4)
    for one, other in zip(with_masks, without, strict=True):
        one.pop("mask")
        assert same(one, other)


def test_masks_are_the_same_for_any_number_of_processes_threads_and_workers(batches):  # noqa: F811
    whole = [batch["mask"] for batch in take(batches(needs=NEEDS, patch=PATCH), 3)]
    for maker in ({"threads": 3}, {"workers": 2}):
        assert all(map(np.array_equal, whole, [b["mask"] for b in take(batches(needs=NEEDS, patch=PATCH, **maker), 3)]))
    parts = [take(batches(needs=NEEDS, patch=PATCH, process_index=i, process_count=2), 3) for i in range(2)]
    for step, mask in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([part[step]["mask"] for part in parts]), mask)


def test_a_position_restores_the_masks_that_followed(batches):  # noqa: F811
    straight = take(batches(needs=NEEDS, patch=PATCH), 5)
    first = batches(needs=NEEDS, patch=PATCH)
    list(itertools.islice(first, 2))
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = batches(needs=NEEDS, patch=PATCH)
    second.set_state(state)
    assert all(same(a, b) for a, b in zip(straight[2:], take(second, 3), strict=True))


@pytest.mark.parametrize("wrong", [{}, {"patch": PATCH, "views": {"local": VIEWS["local"]}}])
def test_masks_need_a_patch_and_global_views(batches, wrong):  # noqa: F811
    with pytest.raises(UserError, match="an objective needs mask, which the pipeline cannot make"):
        batches(needs=frozenset({"mask"}), **wrong)
