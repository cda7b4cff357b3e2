"""Checkpoints where writing fails: one clear line, and the older ones whole."""

import contextlib
import resource
from dataclasses import replace

import jax
import numpy as np
import pytest
import tiny

from agriclip_jax.checkpoint import Checkpoints, abstract_state
from agriclip_jax.errors import RunFailure, UserError


@contextlib.contextmanager
def no_file_longer_than(size):
    """The kernel refuses longer files, as a full disk refuses them: in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def state():
    _, init = tiny.learner(tiny.config())
    return jax.jit(init)(jax.random.key(0))


def test_a_full_disk_is_one_line_and_the_older_checkpoint_stays_whole(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, {"batch": 0})
    checkpoints.wait()
    moved = replace(state, step=state.step + 1)
    with no_file_longer_than(512), pytest.raises(RunFailure) as failure:
        checkpoints.save(moved, {"batch": 1})
        checkpoints.wait()
    message = str(failure.value)
    assert "a checkpoint could not be written to" in message and "free space there and run the same command" in message
    assert "\n" not in message

    again = Checkpoints(tmp_path / "checkpoints")
    assert again.latest() == 0
    shardings = jax.tree.map(lambda x: x.sharding, state)
    restored, position = again.restore(0, abstract_state(jax.eval_shape(lambda: state), shardings))
    assert position == {"batch": 0}
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    again.save(moved, {"batch": 1})
    again.wait()
    assert again.steps() == [0, 1]


def test_the_newest_and_the_best_are_kept_however_old_the_best_is(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", latest=1)
    for step, score in enumerate((0.1, 0.9, 0.2, 0.3, None)):
        checkpoints.save(replace(state, step=state.step + step), {}, score=score)
    checkpoints.wait()
    assert checkpoints.steps() == [1, 4]
    assert checkpoints.best() == 1 and checkpoints.latest() == 4


def test_a_checkpoint_of_another_model_names_what_differs(state, tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, {})
    checkpoints.wait()
    _, init = tiny.learner(tiny.config(embed_dim=24))
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = jax.tree.map(lambda _: jax.tree.leaves(state)[0].sharding, shapes)
    with pytest.raises(
        UserError, match=r"is of another model: 2 parameters of 'params' differ, first image/projection"
    ):
        checkpoints.restore(0, abstract_state(shapes, shardings))


def test_the_state_of_adam_and_muon_together_comes_back_to_the_bit(tmp_path):
    learner, init = tiny.learner(tiny.config(optimizer__muon=("image/blocks/.*/kernel",)))
    state, _ = jax.jit(learner.step)(jax.jit(init)(jax.random.key(0)), tiny.batch())
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, {})
    checkpoints.wait()
    target = abstract_state(jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state))
    restored, _ = checkpoints.restore(1, target)
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("file", ["params/_METADATA", "params/manifest.ocdbt", "data/metadata", "largest"])
def test_a_damaged_checkpoint_is_one_line_that_names_its_folder(state, tmp_path, file):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(state, {})
    checkpoints.close()
    folder = tmp_path / "checkpoints" / "0"
    damaged = max((folder / "params").rglob("?" * 32), key=lambda p: p.stat().st_size)
    damaged = damaged if file == "largest" else folder / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    target = abstract_state(jax.eval_shape(lambda: state), jax.tree.map(lambda x: x.sharding, state))
    with pytest.raises(UserError, match=f"the checkpoint {folder} is damaged .*; remove that folder") as failure:
        Checkpoints(tmp_path / "checkpoints").restore(0, target)
    assert "\n" not in str(failure.value)


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write checkpoints to .*file/checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")
