"""What moves the parameters: schedules, rules, projections; AdamW against a float64 oracle."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from agriclip_jax import optim, schedules
from agriclip_jax.errors import UserError

PARAMS = {"image": {"kernel": jnp.full((3, 2), 0.5), "bias": jnp.full(2, 0.5)}, "logit_scale": jnp.float32(4.6)}


def build(**options):
    config = tiny.config(objectives__distill=0, optimizer__lr_rules=())
    with config.unlocked():
        config.optimizer.update(options)
    return optim.build(config, PARAMS)


def run(optimizer, steps, grads):
    trainable, _ = optimizer.split(PARAMS)
    state = optimizer.init(PARAMS)
    for step in range(steps):
        trainable, state = optimizer.update(
            {p: g for p, g in grads(step).items() if p in trainable}, state, trainable, jnp.int32(step)
        )
    return trainable, state


def gradient(step):
    rng = np.random.default_rng(step)
    shapes = {"image/kernel": (3, 2), "image/bias": (2,), "logit_scale": ()}
    return {p: jnp.float32(rng.normal(size=s)) for p, s in shapes.items()}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"lr_rules": ("image/.*", 0.1)}, r"config.optimizer.lr_rules: 'image.*' is no rule"),
        ({"weight_decay_rules": (("image/.*",),)}, r"config.optimizer.weight_decay_rules: .* is no rule"),
        ({"weight_decay": ("cosine", "a", 0)}, r"config.optimizer.weight_decay: .* is no schedule"),
    ],
)
def test_a_rule_or_schedule_of_the_wrong_shape_is_one_line(change, message):
    with pytest.raises(UserError, match=message):
        build(**change)


def test_adamw_equals_a_float64_oracle_with_clipping_decay_and_warmup():
    optimizer = build(learning_rate=0.1, warmup=0.25, weight_decay=0.3, clip_norm=0.5, b1=0.9, b2=0.95, eps=1e-6)
    got, _ = run(optimizer, 6, gradient)
    p = {
        k: np.full(s, v)
        for k, s, v in (("image/kernel", (3, 2), 0.5), ("image/bias", (2,), 0.5), ("logit_scale", (), 4.6))
    }
    m = {k: np.zeros_like(v) for k, v in p.items()}
    n = {k: np.zeros_like(v) for k, v in p.items()}
    for step in range(6):
        g = {k: np.float64(v) for k, v in gradient(step).items()}
        norm = math.sqrt(sum((v**2).sum() for v in g.values()))
        g = {k: v * min(1, 0.5 / norm) for k, v in g.items()}
        lr = 0.1 * (step + 1) / 2 if step < 2 else 0.1 * 0.5 * (1 + math.cos(math.pi * (step - 2) / 6))
        for k in p:
            m[k] = 0.9 * m[k] + 0.1 * g[k]
            n[k] = 0.95 * n[k] + 0.05 * g[k] ** 2
            u = (m[k] / (1 - 0.9 ** (step + 1))) / (np.sqrt(n[k] / (1 - 0.95 ** (step + 1))) + 1e-6)
            p[k] = p[k] - lr * (u + (0.3 if k == "image/kernel" else 0.0) * p[k])
        p["logit_scale"] = np.clip(p["logit_scale"], 0, math.log(100))
    for k in p:
        np.testing.assert_allclose(got[k], p[k], rtol=1e-4, atol=1e-6)


def test_logit_scale_stays_between_zero_and_the_log_of_a_hundred():
    up, _ = run(build(learning_rate=5.0), 3, lambda step: gradient(0) | {"logit_scale": jnp.float32(-1.0)})
    down, _ = run(build(learning_rate=5.0), 3, lambda step: gradient(0) | {"logit_scale": jnp.float32(1.0)})
    assert up["logit_scale"] == pytest.approx(math.log(100)) and down["logit_scale"] == 0


def test_frozen_parameters_have_no_state_and_no_update():
    optimizer = build(freeze=("image/.*",))
    trainable, state = run(optimizer, 2, gradient)
    assert set(trainable) == {"logit_scale"}
    assert set(state[1].mu) == {"logit_scale"}


def test_a_parameter_at_rest_neither_moves_nor_gathers_moments():
    optimizer = build(lr_rules=(("image/kernel", ("switch", 0.0, 1.0, 0.5)),), weight_decay=1.0)
    resting, state = run(optimizer, 4, gradient)  # of 8 steps
    np.testing.assert_array_equal(resting["image/kernel"], PARAMS["image"]["kernel"])
    assert not np.any(state[1].mu["image/kernel"])
    moving, _ = run(optimizer, 5, gradient)
    assert np.all(moving["image/kernel"] != PARAMS["image"]["kernel"])


@pytest.mark.parametrize(
    "spec,values",
    [
        (0.5, [0.5, 0.5, 0.5]),
        (("cosine", 1.0, 0.0), [1.0, 0.5, 0.0]),
        (("linear", 0.0, 1.0, 0.5), [0.0, 1.0, 1.0]),
        (["switch", 0.0, 2.0, 0.5], [0.0, 2.0, 2.0]),
    ],
)
def test_schedules_at_the_start_the_middle_and_the_end(spec, values):
    f = schedules.schedule(spec, 10)
    np.testing.assert_allclose([f(jnp.int32(s)) for s in (0, 5, 10)], values, atol=1e-6)


@pytest.mark.parametrize("spec", ["cosine", ("cosine", 1), ("cosin", 1, 0), None])
def test_a_bad_schedule_says_what_a_schedule_is(spec):
    with pytest.raises(UserError, match=r"objectives.x: .* is no schedule; give a number"):
        schedules.schedule(spec, 10, "objectives.x")


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match="nothing is left to train"):
        build(freeze=(".*",))


def test_a_freeze_pattern_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"'img/\.\*' matches no parameter"):
        build(freeze=("img/.*",))


def orthogonal(matrix):
    """Muon's five Newton-Schulz steps in float64; of a stack, on each matrix."""
    if matrix.ndim > 2:
        return np.stack([orthogonal(m) for m in matrix])
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonal(matrix.T).T
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", [(6, 4), (2, 4, 6)])
def test_muon_equals_a_float64_oracle_on_matrices_and_on_stacks_of_them(shape):
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=shape), rng.normal(size=(3, *shape))
    params = {"image": {"kernel": jnp.float32(start), "bias": jnp.ones(3)}}
    config = tiny.config(objectives__distill=0, optimizer__lr_rules=())
    with config.unlocked():
        config.optimizer.update(
            muon=(r"image/kernel",), learning_rate=0.1, warmup=0.25, weight_decay=0.3, clip_norm=0.0, end=0.0
        )
    optimizer = optim.build(config, params)
    trainable, state = optimizer.split(params)[0], optimizer.init(params)
    wanted, momentum = start, np.zeros(shape)
    for step, grad in enumerate(grads):
        flat = {"image/kernel": jnp.float32(grad), "image/bias": jnp.ones(3)}
        trainable, state = optimizer.update(flat, state, trainable, jnp.int32(step))
        momentum = 0.95 * momentum + 0.05 * grad
        ahead = 0.95 * momentum / (1 - 0.95 ** (step + 2)) + 0.05 * grad / (1 - 0.95 ** (step + 1))
        update = 0.2 * 6**0.5 * orthogonal(ahead)
        wanted = wanted - float(optimizer.learning_rate(step)) * (update + 0.3 * wanted)
    np.testing.assert_allclose(trainable["image/kernel"], wanted, rtol=1e-4, atol=1e-5)
    assert not np.allclose(trainable["image/bias"], 1)


@pytest.mark.parametrize("blocks", ["blocks", "head_blocks"])
def test_muon_refuses_the_stacked_vectors_of_blocks(blocks):
    config = tiny.config(optimizer__muon=(f"image/{blocks}/.*",), image__head_blocks=2)
    with pytest.raises(UserError, match=rf"config.optimizer.muon: image/{blocks}/.*(bias|scale) is no matrix"):
        tiny.learner(config)


def test_muon_refuses_a_vector_and_a_pattern_that_matches_nothing():
    with pytest.raises(UserError, match=r"config.optimizer.muon: image/bias is no matrix"):
        build(muon=(r"image/.*",))
    with pytest.raises(UserError, match=r"config.optimizer.muon: 'imagine/.*' matches no parameter"):
        build(muon=(r"imagine/.*",))
