"""One step: what it shares, what it leaves alone, and that sharding does not change it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from agriclip_jax import mesh as meshes
from agriclip_jax import rules
from agriclip_jax.errors import UserError
from agriclip_jax.state import batch_fields


def start(config, *tokenizer):
    learner, init = tiny.learner(config, *tokenizer)
    return learner, jax.jit(init)(jax.random.key(0))


def sharded_run(spec, steps=3, **overrides):
    learner, init = tiny.learner(tiny.config(**overrides))
    mesh = meshes.make(spec)
    shardings = meshes.state_sharding(mesh, jax.eval_shape(init, jax.random.key(0)))
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    step = jax.jit(learner.step, donate_argnums=0, out_shardings=(shardings, None))
    history = []
    for i in range(steps):
        state, metrics = step(state, meshes.place_batch(tiny.batch(seed=i), meshes.batch_sharding(mesh, 16)))
        history.append({k: float(v) for k, v in metrics.items()})
    return state, history


@pytest.fixture(scope="module")
def alone():
    learner, state = start(tiny.config())
    step, history = jax.jit(learner.step), []
    for i in range(3):
        state, metrics = step(state, tiny.batch(seed=i))
        history.append({k: float(v) for k, v in metrics.items()})
    return state, history


@pytest.mark.parametrize("spec", ["auto", "data=2,fsdp=2,tensor=2"])
def test_any_mesh_gives_the_losses_and_parameters_of_one_device(alone, spec):
    state, history = sharded_run(spec)
    for got, wanted in zip(history, alone[1], strict=True):
        for name in ("loss", "loss/contrastive", "loss/distill", "grad_norm"):
            assert got[name] == pytest.approx(wanted[name], rel=1e-4), name
    # Adam divides by the gradient's own size, so a rounding of a tiny one shows: a hundredth of a step of 0.01.
    for part, atol in (("aux", 1e-5), ("params", 1e-4), ("teacher", 1e-4)):
        of = lambda state, part=part: jax.tree.leaves(getattr(state, part))  # noqa: E731
        for got, wanted in zip(of(state), of(alone[0]), strict=True):
            np.testing.assert_allclose(got, wanted, atol=atol)


def test_the_blocks_of_a_head_are_sharded_like_those_of_the_tower():
    _, init = tiny.learner(tiny.config(image__head_blocks=2))
    shapes = jax.eval_shape(init, jax.random.key(0))
    image = meshes.state_sharding(meshes.make("data=2,fsdp=2,tensor=2"), shapes).params["image"]
    up, below = (image[name]["mlp"]["up"]["kernel"].spec for name in ("head_blocks", "blocks"))
    assert up == below == jax.P(None, "fsdp", "tensor")


def test_parameters_moments_and_teacher_are_sharded_alike():
    state, _ = sharded_run("data=2,fsdp=2,tensor=2", steps=1)
    up = lambda tree: tree["image"]["blocks"]["mlp"]["up"]["kernel"].sharding.spec  # noqa: E731
    assert up(state.params) == jax.P(None, "fsdp", "tensor")
    assert up(state.teacher) == up(state.params)
    assert state.opt_state[1].mu["image/blocks/mlp/up/kernel"].sharding.spec == up(state.params)
    assert state.step.sharding.is_fully_replicated


def test_muon_gives_the_same_on_any_mesh_and_its_momentum_is_sharded_like_the_parameter():
    muon = {"optimizer__muon": ("image/blocks/mlp/.*/kernel",)}
    state, history = sharded_run("data=2,fsdp=2,tensor=2", **muon)
    learner, alone = start(tiny.config(**muon))
    step = jax.jit(learner.step)
    for i, got in enumerate(history):
        alone, wanted = step(alone, tiny.batch(seed=i))
        assert got["loss"] == pytest.approx(float(wanted["loss"]), rel=1e-4)
    path = "image/blocks/mlp/up/kernel"
    (momentum,) = [
        v for k, v in jax.tree_util.tree_leaves_with_path(state.opt_state) if rules.path_of(k).endswith(path)
    ]
    assert momentum.sharding.spec == jax.P(None, "fsdp", "tensor")


def test_an_axis_that_does_not_divide_a_dimension_is_left_out():
    mesh = meshes.make("fsdp=8")
    shapes = type("S", (), {"params": {"text": {"tokens": jax.ShapeDtypeStruct((300, 20), jnp.float32)}}})
    effects = meshes.state_sharding(mesh, jax.tree.map(lambda x: x, tiny_state(shapes.params)))
    assert effects.params["text"]["tokens"].spec == jax.P("tensor", None)


def tiny_state(params):
    from agriclip_jax.state import State

    return State(None, params, None, {}, {}, None, None)


@pytest.mark.parametrize(
    "spec,message",
    [
        ("data=4", "asks for 4 devices, there are 8"),
        ("date=8", "unknown axis 'date' in 'date=8'; did you mean 'data'"),
        ("data=x", "'data=x' in 'data=x' is not AXIS=NUMBER"),
    ],
)
def test_a_mesh_that_cannot_be_is_one_clear_line(spec, message):
    with pytest.raises(UserError, match=message):
        meshes.make(spec)


def test_a_batch_that_the_mesh_does_not_divide_names_one_that_it_does():
    with pytest.raises(UserError, match=r"config.batch_size 30 is not divisible by data \* fsdp = 8 .* use 24"):
        meshes.batch_sharding(meshes.make("auto"), 30)


def test_each_distinct_feature_is_computed_once():
    """Both objectives read the student's global views: a joint step costs clearly less than the two apart."""

    def flops(**weights):
        learner, state = start(tiny.config(**weights))
        return jax.jit(learner.step).lower(state, tiny.batch()).cost_analysis()["flops"]

    both = flops()
    contrastive, distill = flops(objectives__distill=0), flops(objectives__contrastive=0)
    assert both < 0.85 * (contrastive + distill)


def test_the_teacher_gets_no_gradient_and_follows_the_student_by_its_momentum():
    config = tiny.config(distill__momentum=0.75)
    learner, state = start(config)
    teacher = jax.tree.map(lambda x: x + 0.01, state.teacher)
    state = replace(state, teacher=teacher)

    def loss(teacher):
        return sum(r[0] for r in learner.losses(state.params, replace(state, teacher=teacher), tiny.batch()).values())

    assert all(not np.any(g) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(teacher)))
    moved, _ = jax.jit(learner.step)(state, tiny.batch())
    for t, before, s in zip(
        jax.tree.leaves(moved.teacher),
        jax.tree.leaves(teacher),
        jax.tree.leaves({n: moved.params[n] for n in teacher}),
        strict=True,
    ):
        np.testing.assert_allclose(t, 0.75 * before + 0.25 * s, atol=1e-6)


def test_the_text_tower_has_no_teacher_and_contrastive_alone_has_none():
    _, state = start(tiny.config())
    assert set(state.teacher) == {"image", "dino_head"}
    _, state = start(tiny.config(objectives__distill=0))
    assert state.teacher == {} and "dino_head" not in state.params


def test_only_the_needed_fields_are_asked_of_the_pipeline():
    both, _ = tiny.learner(tiny.config())
    assert batch_fields(both.objectives) == {"image/global", "image/local", "tokens", "caption_id", "class_id"}
    contrastive, _ = tiny.learner(tiny.config(objectives__distill=0))
    assert batch_fields(contrastive.objectives) == {"image/global", "tokens", "caption_id", "class_id"}
    distill, _ = tiny.learner(tiny.config(objectives__contrastive=0))
    assert batch_fields(distill.objectives) == {"image/global", "image/local"}
    no_local, _ = tiny.learner(tiny.config(objectives__contrastive=0, views__local__count=0))
    assert batch_fields(no_local.objectives) == {"image/global"}


def test_the_prototypes_rest_at_first_and_the_rest_of_the_head_does_not():
    learner, state = start(tiny.config(optimizer__lr_rules=(("dino_head/prototypes", ("switch", 0.0, 1.0, 0.25)),)))
    step = jax.jit(learner.step)
    after_one, _ = step(state, tiny.batch())
    np.testing.assert_array_equal(after_one.params["dino_head"]["prototypes"], state.params["dino_head"]["prototypes"])
    assert np.any(after_one.params["dino_head"]["layer1"]["kernel"] != state.params["dino_head"]["layer1"]["kernel"])
    later = after_one
    for _ in range(2):
        later, _ = step(later, tiny.batch())
    assert np.any(later.params["dino_head"]["prototypes"] != state.params["dino_head"]["prototypes"])


def test_a_step_that_is_not_finite_changes_nothing_and_its_objective_is_found():
    learner, state = start(tiny.config())
    breakable = {name: Breakable(name, objective) for name, objective in learner.objectives.items()}
    learner = replace(learner, objectives=breakable)
    step = jax.jit(learner.step)
    good = tiny.batch() | {"contrastive/flag": np.float32(1), "distill/flag": np.float32(1)}
    bad = good | {"distill/flag": np.float32(0)}
    after, metrics = step(state, bad)
    assert np.isfinite(metrics["loss"]) and not metrics["healthy"] and not after.healthy and after.step == 0
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert learner.culprits(after, bad) == ["distill"]
    still, metrics = step(after, good)
    assert still.step == 0 and not metrics["healthy"]
    well, metrics = step(state, good)
    assert well.step == 1 and metrics["healthy"]


class Breakable:
    """An objective whose value stays finite while its gradient does not, where its flag in the batch is 0."""

    def __init__(self, name, good):
        self.__dict__.update({k: getattr(good, k) for k in ("needs", "wants", "networks", "teacher", "init_aux")})
        self.name, self.good = name, good

    def __call__(self, features, params, aux, batch, step, key):
        loss, metrics, aux = self.good(features, params, aux, batch, step, key)
        return loss + jnp.sqrt(0.0 * loss + batch[f"{self.name}/flag"]), metrics, aux
