"""LiT: a locked image tower, its features computed once, kept, and trained on as if they were computed anew."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from agriclip_jax import frozen, inference, runs
from agriclip_jax import main as command
from agriclip_jax.data import feature_store
from agriclip_jax.data.feature_store import FeatureStore
from agriclip_jax.data.records import Alive
from agriclip_jax.data.views import load_view
from agriclip_jax.errors import UserError

RECIPE = "configs/lit.py"
SMALL = {k: v for k, v in tiny.SMALL.items() if not k.startswith(("objectives", "image.", "embed"))}


def arguments(workdir, data, *flags, recipe=None, **given):
    keys = SMALL | {"data.path": str(data), "checkpoint.every": "3", "log_every": "1"}
    keys |= {k.replace("__", "."): str(v) for k, v in given.items()}
    return [
        f"--config={recipe or RECIPE}",
        f"--workdir={workdir}",
        *flags,
        *(f"--config.{k}={v}" for k, v in keys.items()),
    ]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 23), min_size=1, max_size=12), st.integers(0, 5))
def test_a_store_gives_back_what_it_was_filled_with_also_when_filling_was_stopped(tmp_path_factory, sizes, killed):
    folder, whole = tmp_path_factory.mktemp("store"), np.random.default_rng(0).normal(size=(sum(sizes), 3))
    whole = whole.astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feature_store, "ROWS", 7)
        blocks = np.split(whole, np.cumsum(sizes)[:-1])
        for _, _ in zip(feature_store.fill(folder, iter(blocks)), range(killed), strict=False):
            pass
        start = feature_store.full(folder)
        rest = whole[start:]
        assert sum(feature_store.fill(folder, iter([rest]), start)) == len(rest)
        store = FeatureStore(folder)
        assert feature_store.count(folder, 3) == len(store) == len(whole)
        np.testing.assert_array_equal(np.stack([store[i] for i in range(len(store))]), whole)


@pytest.mark.parametrize("content", [b"no array", b"", b"PK\x03\x04"])
def test_a_damaged_shard_is_one_line(tmp_path, content):
    list(feature_store.fill(tmp_path, [np.zeros((3, 2), np.float32)]))
    (tmp_path / "00000.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"00000.npy is damaged .*; remove it"):
        feature_store.count(tmp_path, 2)


def test_a_shard_of_another_width_is_one_line(tmp_path):
    list(feature_store.fill(tmp_path, [np.zeros((3, 2), np.float32)]))
    with pytest.raises(UserError, match=r"00000.npy is damaged \(float32 \(3, 2\)\); remove it"):
        feature_store.count(tmp_path, 4)


def test_a_step_on_kept_features_is_the_step_on_their_images():
    config = tiny.config(objectives__distill=0.0, views__global__count=1, optimizer__freeze="('image/(?!proj).*',)")
    learner, init = tiny.learner(config)
    state = init(jax.random.key(0))
    batch = tiny.batch()
    batch["image/global"] = batch["image/global"][:, :1]
    pooled = learner.towers["image"](state.params["image"], batch["image/global"][:, 0]).pooled
    known = {k: v for k, v in batch.items() if not k.startswith("image/")} | {"features/global": pooled[:, None]}
    (one, seen), (other, kept) = (jax.jit(learner.step)(state, rows) for rows in (batch, known))
    assert seen["loss"] == pytest.approx(float(kept["loss"]), rel=1e-6)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.fixture(scope="module")
def locked(tmp_path_factory, corpus):
    """A run to take an image tower from, and a LiT run on it."""
    root = tmp_path_factory.mktemp("lit")
    keys = tiny.SMALL | {"data.path": str(corpus), "objectives.distill": "0.0", "total_steps": "2"}
    general = [f"--config={tiny.RECIPE}", f"--workdir={root / 'general'}"]
    assert command.run([*general, *(f"--config.{k}={v}" for k, v in keys.items())]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGRICLIP_CACHE", str(root / "cache"))
        assert command.run(arguments(root / "run", corpus, init__image=root / "general")) == 0
    return root


def test_the_image_tower_stays_as_it_was_and_texts_are_mapped_into_its_feature_space(locked):
    general, run = inference.load(locked / "general"), inference.load(locked / "run")
    before = {k: v for k, v in general.params["image"].items() if k != "projection"}
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(run.params["image"]), strict=True):
        np.testing.assert_array_equal(a, b)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    features, embeddings = run.look(images)
    np.testing.assert_allclose(embeddings, features / np.linalg.norm(features, axis=1, keepdims=True), atol=1e-6)
    assert run.embed_texts(["a cow"]).shape == (1, 32)


def test_written_as_a_model_it_needs_the_run_it_began_with_no_more(locked, tmp_path):
    run = inference.load(locked / "run")
    runs.write_model(run, tmp_path / "whole")
    assert inference.load(tmp_path / "whole").fingerprint == run.fingerprint


def test_with_a_head_of_blocks_that_alone_trains_and_reads_the_class_token_and_the_mean_patch(locked, corpus, tmp_path):
    given = {"recipe": f"{RECIPE}:head=blocks", "init__image": locked / "general"}
    assert command.run(arguments(tmp_path / "run", corpus, total_steps=2, **given)) == 0
    general, run = inference.load(locked / "general"), inference.load(tmp_path / "run")
    own, theirs = run.params["image"], general.params["image"]
    assert own.keys() - theirs.keys() == {"head_blocks", "head_norm"}
    for name in theirs.keys() - {"projection"}:
        for a, b in zip(jax.tree.leaves(theirs[name]), jax.tree.leaves(own[name]), strict=True):
            np.testing.assert_array_equal(a, b)
    assert own["projection"]["kernel"].shape == (64, 16) and run.embed_texts(["a cow"]).shape == (1, 16)
    features, embeddings = run.look(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    assert features.shape == (3, 64) and embeddings.shape == (3, 16)
    assert command.run(arguments(tmp_path / "run", corpus, "--extend", total_steps=3, **given)) == 0
    moved = inference.load(tmp_path / "run").params["image"]["head_blocks"]
    changed = [np.abs(a - b).max() > 0 for a, b in zip(*map(jax.tree.leaves, (own["head_blocks"], moved)), strict=True)]
    assert all(changed)


def test_a_fresh_head_that_is_locked_is_one_line_at_start(locked, corpus, tmp_path):
    given = {"recipe": f"{RECIPE}:head=blocks", "init__image": locked / "general", "optimizer__freeze": "('image/.*',)"}
    with pytest.raises(UserError, match=r"config.optimizer.freeze would leave image/head_blocks/.* at random"):
        command.run(arguments(tmp_path / "run", corpus, **given))
    assert not (tmp_path / "run").exists()


def test_the_kept_features_are_those_of_the_photos(locked, corpus):
    (folder,) = (locked / "cache" / "features").iterdir()
    store, source, run = FeatureStore(folder), Alive.open(corpus).source("train"), inference.load(locked / "run")
    assert len(store) == len(source)
    for i in (0, 17, len(source) - 1):
        features, _ = run.look(load_view(source[i]["image"], run.view)[None])
        np.testing.assert_allclose(store[i], features[0], atol=1e-5)


def test_another_run_on_the_tower_and_a_continued_one_compute_nothing_anew(
    locked, corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("AGRICLIP_CACHE", str(locked / "cache"))
    (shard,) = (locked / "cache" / "features").rglob("*.npy")
    made = shard.stat().st_mtime_ns
    other = {"init__image": locked / "general", "seed": 1}
    assert command.run(arguments(tmp_path / "run", corpus, total_steps=4, **other)) == 0
    assert command.run(arguments(tmp_path / "run", corpus, "--extend", total_steps=6, **other)) == 0
    assert "computed once" not in capsys.readouterr().out and shard.stat().st_mtime_ns == made
    assert [shard] == list((locked / "cache" / "features").rglob("*.npy"))
    costs = [json.loads((run / runs.FEATURES).read_text())["seconds"] for run in (locked / "run", tmp_path / "run")]
    assert costs[0] == costs[1] > 0, "what is not computed anew cost what it cost"


def test_a_pass_killed_before_it_wrote_what_it_cost_is_measured_on_its_last_shard(
    locked, corpus, tmp_path, monkeypatch, capsys
):
    shutil.copytree(locked / "cache" / "features", tmp_path / "cache" / "features")
    monkeypatch.setenv("AGRICLIP_CACHE", str(tmp_path / "cache"))
    (shard,), (cost,) = (list(tmp_path.glob(f"cache/features/*/{name}")) for name in ("*.npy", frozen.PASS))
    before = np.load(shard)
    cost.unlink()
    assert command.run(arguments(tmp_path / "run", corpus, total_steps=2, init__image=locked / "general")) == 0
    assert f"features of {len(before)} photos are computed once" in capsys.readouterr().out
    np.testing.assert_allclose(np.load(shard), before, atol=1e-5)
    assert (
        json.loads((tmp_path / "run" / runs.FEATURES).read_text())["seconds"]
        == json.loads(cost.read_text())["seconds"]
        > 0
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"locks an image tower that is fresh; name the weights it has as config.init.image"),
        ({"optimizer__freeze": "()"}, r"frozen_features: .* need a frozen image tower; set config.optimizer.freeze"),
        ({"objectives__distill": 1.0, "views__global__count": 2}, r"do not serve the objective 'distill'"),
        ({"views__global__count": 2}, r"are of one view; set config.views.global.count to 1"),
    ],
)
def test_what_cannot_be_trained_on_kept_features_is_one_line_at_start(locked, corpus, tmp_path, given, message):
    given |= {"init__image": locked / "general"} if given else {"image__patch": 8}
    with pytest.raises(UserError, match=message):
        command.run(arguments(tmp_path / "run", corpus, **given))
    assert not (tmp_path / "run").exists()
