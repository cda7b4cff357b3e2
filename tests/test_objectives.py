"""The objectives: each one's value and gradient against float64 NumPy, its own state, what it refuses, any mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy.special import erf
from test_losses import dino_oracle, log_softmax
from test_losses_distill import ibot_oracle, sinkhorn_oracle
from test_losses_geometry import gram_oracle, koleo_oracle, normalised
from test_losses_sigmoid import oracle as sigmoid_oracle
from test_step import start

from agriclip_jax import main as command
from agriclip_jax import mesh as meshes
from agriclip_jax import rules
from agriclip_jax.data import masks
from agriclip_jax.encoders.vit import ImageFeatures
from agriclip_jax.errors import UserError
from agriclip_jax.objectives import Parameters, Want, has_teacher
from agriclip_jax.state import batch_fields

ONLY = {"objectives__contrastive": 0, "objectives__distill": 0}
BIAS = {"logit_bias": "True", "logit_bias_init": -3.0}
IMAGE, TEXT, LOCAL = Want("student", "image", "global"), Want("student", "text"), Want("student", "image", "local")
MASKED, TEACHER = IMAGE._replace(masked=True), Want("teacher", "image", "global")
ROWS, WIDTH, PATCHES = 6, 32, 16


def settings(name, weight=1.0, **overrides):
    """The miniature with one objective more, chosen alone unless said otherwise; views of 4 x 4 patches."""
    return tiny.config(**ONLY | {"image_size": 32, f"objectives__{name}": weight} | overrides)


def single(tree):
    return jax.tree.map(jnp.float32, tree)


def learner_and_parameters(config, *tokenizer):
    """A learner, and parameters in float64 whose student and teacher differ and whose biases are not 0."""
    learner, state = start(config, *tokenizer)
    rng = np.random.default_rng(1)
    shifted = lambda tree: jax.tree.map(lambda x: np.float64(x) + 0.1 * rng.normal(size=x.shape), tree)  # noqa: E731
    return learner, Parameters(shifted(state.params), shifted(state.teacher)), state.aux


def random_features(wants, rows=ROWS, patches=PATCHES):
    """float64 features of every want, as an encoder would give them."""
    rng = np.random.default_rng(0)
    features = {}
    for want in sorted(wants):
        image = ImageFeatures(rng.normal(size=(rows, 2, WIDTH)), rng.normal(size=(rows, 2, patches, WIDTH)))
        features[want] = rng.normal(size=(rows, WIDTH)) if want.tower == "text" else image
    return features


def evaluate(objective, features, params, aux, batch, step=0):
    """Loss, the next own state, and the gradients with respect to the features and the student's parameters."""

    def loss(features, student):
        value, _, after = objective(
            features, Parameters(student, single(params.teacher)), aux, batch, jnp.int32(step), jax.random.key(0)
        )
        return value, after

    function = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, after), gradients = function(single(features), single(params.student))
    return float(value), after, gradients


def has_slope(oracle, x, gradient, rtol=2e-3):
    """Whether `gradient` is that of a float64 function of one array, along random directions."""
    rng, step = np.random.default_rng(7), 1e-5
    for _ in range(6):
        along = rng.normal(size=np.shape(x))
        wanted = (oracle(x + step * along) - oracle(x - step * along)) / (2 * step)
        np.testing.assert_allclose(np.sum(along * gradient), wanted, rtol=rtol, atol=1e-4)


def embedded(tower, features):
    return normalised(features @ tower["projection"]["kernel"])


def head_oracle(head, x):
    """Cosines with the prototypes: three layers, GELU between them."""
    for name in ("layer1", "layer2", "layer3"):
        x = x @ head[name]["kernel"] + head[name]["bias"]
        x = x if name == "layer3" else x * 0.5 * (1 + erf(x / np.sqrt(2)))
    return normalised(x) @ normalised(head["prototypes"]).T


# Values and gradients


def test_siglip_is_the_sigmoid_loss_of_every_view_with_every_caption_of_its_class():
    learner, params, aux = learner_and_parameters(settings("siglip", **BIAS))
    features, batch = random_features((IMAGE, TEXT)), tiny.batch(ROWS, classes=3)
    classes = batch["class_id"][:, 0]
    positive = classes[:, None] == classes

    def oracle(images=features[IMAGE].pooled, texts=features[TEXT], bias=params.student["logit_bias"]):
        texts, scale = embedded(params.student["text"], texts), np.exp(params.student["logit_scale"])
        views = np.moveaxis(embedded(params.student["image"], images), 1, 0)
        return np.mean([sigmoid_oracle(view, texts, scale, bias, positive)[0] for view in views])

    value, _, (slopes, student) = evaluate(learner.objectives["siglip"], features, params, aux["siglip"], batch)
    np.testing.assert_allclose(value, oracle(), rtol=1e-5)
    has_slope(oracle, features[IMAGE].pooled, slopes[IMAGE].pooled)
    has_slope(lambda x: oracle(texts=x), features[TEXT], slopes[TEXT])
    has_slope(lambda x: oracle(bias=x), params.student["logit_bias"], student["logit_bias"])


@pytest.mark.parametrize("positives", ["class", "caption", "none"])
def test_contrastive_takes_for_right_what_its_recipe_says(positives):
    learner, params, aux = learner_and_parameters(settings("contrastive", contrastive__positives=positives))
    objective = learner.objectives["contrastive"]
    features, batch = random_features((IMAGE, TEXT)), tiny.batch(ROWS, classes=3)
    batch["caption_id"][1] = batch["caption_id"][0]
    loss, _, (of_features, _) = evaluate(objective, features, params, aux["contrastive"], batch)
    same = {
        "class": lambda i, j: any((batch[k][i] == batch[k][j]).all() for k in ("class_id", "caption_id")),
        "caption": lambda i, j: (batch["caption_id"][i] == batch["caption_id"][j]).all(),
        "none": lambda i, j: i == j,
    }[positives]
    right = np.array([[same(i, j) for j in range(ROWS)] for i in range(ROWS)], np.float64)
    student = params.student

    def oracle(pooled):
        texts, images = embedded(student["text"], features[TEXT]), embedded(student["image"], pooled)
        losses = []
        for view in range(images.shape[1]):
            logits = np.exp(student["logit_scale"]) * images[:, view] @ texts.T
            for each in (logits, logits.T):
                losses.append(-np.mean(np.sum(right / right.sum(1, keepdims=True) * log_softmax(each), axis=1)))
        return np.mean(losses)

    assert loss == pytest.approx(oracle(features[IMAGE].pooled), rel=1e-5)
    has_slope(oracle, features[IMAGE].pooled, of_features[IMAGE].pooled)
    assert objective.needs == {"class": {"class_id", "caption_id"}, "caption": {"caption_id"}, "none": set()}[positives]


def test_koleo_is_the_sum_over_the_views_of_each_ones_own():
    learner, params, aux = learner_and_parameters(settings("koleo"))
    features = random_features((IMAGE,))
    oracle = lambda x: koleo_oracle(x[:, 0]) + koleo_oracle(x[:, 1])  # noqa: E731
    value, _, (slopes, _) = evaluate(learner.objectives["koleo"], features, params, aux["koleo"], tiny.batch(ROWS))
    np.testing.assert_allclose(value, oracle(features[IMAGE].pooled), rtol=1e-4)
    has_slope(oracle, features[IMAGE].pooled, slopes[IMAGE].pooled)


def test_distill_by_sinkhorn_has_targets_that_share_the_prototypes_and_no_centre():
    learner, params, aux = learner_and_parameters(
        settings("distill", distill__centring="sinkhorn", distill__teacher_temperature=0.07)
    )
    features = random_features((IMAGE, LOCAL, TEACHER))
    logits = head_oracle(params.teacher["dino_head"], features[TEACHER].pooled)
    targets = sinkhorn_oracle(logits.reshape(2 * ROWS, -1), 0.07).reshape(logits.shape)

    def oracle(x):
        views = np.concatenate([x, features[LOCAL].pooled], axis=1)
        student = head_oracle(params.student["dino_head"], views)
        return dino_oracle(student, np.log(targets), 0.0, 0.1, 1.0)  # whose softmax of logarithms are the targets

    objective = learner.objectives["distill"]
    value, after, (slopes, _) = evaluate(objective, features, params, aux["distill"], tiny.batch(ROWS))
    assert aux["distill"] == after == {}
    np.testing.assert_allclose(value, oracle(features[IMAGE].pooled), rtol=1e-4)
    has_slope(oracle, features[IMAGE].pooled, slopes[IMAGE].pooled)
    assert not np.any(slopes[TEACHER].pooled)


def drawn_masks(seed=3):
    rng = np.random.default_rng(seed)
    return np.stack([masks.draw(rng, 2, 4) for _ in range(ROWS)])


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_ibot_predicts_what_the_teacher_says_of_masked_patches_and_of_no_others(centring, shared):
    learner, params, aux = learner_and_parameters(
        settings("ibot", distill__centring=centring, ibot__shared_head=shared, distill__teacher_temperature=0.07)
    )
    name = "dino_head" if shared else "ibot_head"
    assert set(learner.objectives["ibot"].networks) == {name}
    features, mask = random_features((MASKED, TEACHER)), drawn_masks()
    logits, targets = head_oracle(params.teacher[name], features[TEACHER].patches), np.zeros((ROWS, 2, PATCHES, 64))
    own = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(5).normal(size=x.shape), aux["ibot"])
    if centring == "sinkhorn":
        targets[mask] = sinkhorn_oracle(logits[mask], 0.07)
    else:
        targets[mask] = np.exp(log_softmax((logits[mask] - own["centre"]) / 0.07))

    def oracle(x):
        student = head_oracle(params.student[name], x).reshape(2 * ROWS, PATCHES, -1)
        views = (2 * ROWS, PATCHES)
        return ibot_oracle(student, targets.reshape(*views, -1), mask.reshape(views), 0.1)[0]

    batch = tiny.batch(ROWS) | {"mask": mask}
    value, after, (slopes, _) = evaluate(learner.objectives["ibot"], features, params, single(own), batch)
    np.testing.assert_allclose(value, oracle(features[MASKED].patches), rtol=1e-4)
    has_slope(oracle, features[MASKED].patches, slopes[MASKED].patches)
    assert not np.any(slopes[MASKED].patches[~mask]) and not np.any(slopes[TEACHER].patches)
    if centring == "centre":
        np.testing.assert_allclose(after["centre"], 0.9 * own["centre"] + 0.1 * logits[mask].mean(0), atol=1e-5)


def test_a_batch_that_happens_to_have_no_mask_costs_nothing_and_moves_no_centre():
    learner, params, aux = learner_and_parameters(settings("ibot"))
    batch = tiny.batch(ROWS) | {"mask": np.zeros((ROWS, 2, PATCHES), bool)}
    own = jax.tree.map(lambda x: x + 0.5, aux["ibot"])
    value, after, gradients = evaluate(
        learner.objectives["ibot"], random_features((MASKED, TEACHER)), params, own, batch
    )
    assert value == 0 and not any(np.any(x) for x in jax.tree.leaves(gradients))
    np.testing.assert_array_equal(after["centre"], own["centre"])


GRAM = {"total_steps": 20, "gram__start": 0.25, "gram__every": 0.2, "gram__refreshes": 2}


def gram_parts(**overrides):
    learner, params, aux = learner_and_parameters(settings("gram", **GRAM | overrides))
    images = np.random.default_rng(2).integers(0, 256, (ROWS, 2, 32, 32, 3), np.uint8)
    return learner, params, aux["gram"], random_features((IMAGE,)), tiny.batch(ROWS) | {"image/global": images}


def test_gram_compares_the_patches_with_those_of_the_anchor_and_is_nothing_before_its_start():
    learner, params, aux, features, batch = gram_parts()
    objective = learner.objectives["gram"]
    value, after, gradients = evaluate(objective, features, params, aux, batch, step=4)
    assert value == 0 and not any(np.any(x) for x in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, after, aux)
    images = batch["image/global"].reshape(-1, 32, 32, 3)

    def oracle(x):
        anchor = np.float64(learner.towers["image"](single(params.teacher["image"]), images).patches)
        return gram_oracle(x.reshape(-1, PATCHES, WIDTH), anchor)

    value, _, (slopes, student) = evaluate(objective, features, params, aux, batch, step=5)
    np.testing.assert_allclose(value, oracle(features[IMAGE].patches), rtol=1e-4)
    has_slope(oracle, features[IMAGE].patches, slopes[IMAGE].patches)
    assert not any(np.any(x) for x in jax.tree.leaves(student))


def test_the_anchor_is_the_teacher_at_the_start_and_at_each_refresh_and_stays_between():
    learner, params, aux, features, batch = gram_parts()
    objective, key = learner.objectives["gram"], jax.random.key(0)
    teacher = single(params.teacher)

    @jax.jit
    def move(aux, step):
        of_now = {"image": jax.tree.map(lambda x: jnp.full_like(x, step), teacher["image"])}
        return objective(single(features), Parameters(single(params.student), of_now), aux, batch, step, key)[2]

    taken = []
    for step in range(20):
        aux = move(aux, jnp.float32(step).astype(jnp.int32))
        taken.append(float(np.ravel(aux["image"]["cls"])[0]))
    assert taken[5:] == [5] * 4 + [9] * 4 + [13] * 7
    assert len(set(taken[:5])) == 1 and taken[0] not in (0, 1)


def products(jaxpr):
    """Matrix products of a program, without those of its branches."""
    inner = [v for e in jaxpr.eqns if e.primitive.name != "cond" for v in e.params.values() if hasattr(v, "jaxpr")]
    return sum(e.primitive.name == "dot_general" for e in jaxpr.eqns) + sum(products(v.jaxpr) for v in inner)


def test_until_its_start_the_anchor_looks_at_nothing():
    learner, params, aux, features, batch = gram_parts()

    def call(aux, features, params, step):
        return learner.objectives["gram"](features, params, aux, batch, step, jax.random.key(0))

    program = jax.make_jaxpr(call)(aux, single(features), single(params), jnp.int32(0))
    assert products(program.jaxpr) == 0 and "dot_general" in str(program)


def test_an_anchor_that_sees_enlarged_views_is_brought_back_to_the_students_grid():
    """Its features vary slowly where the photo does: enlarged or not, their grid is the same."""
    learner, params, aux, _, batch = gram_parts(gram__size=64)
    slow = np.linspace(0, 255, 32)[:, None, None].repeat(32, 1).repeat(3, 2)
    images = np.broadcast_to(slow, (ROWS, 2, 32, 32, 3)).astype(np.uint8)
    objective = learner.objectives["gram"]
    anchor = objective._patches(single(params.teacher["image"]), images)
    assert anchor.shape == (ROWS, 2, PATCHES, WIDTH)
    plain = learner.towers["image"](single(params.teacher["image"]), images[:, 0]).patches
    shuffled = plain[:, ::-1]
    near, far = (np.abs(normalised(anchor[:, 0]) - normalised(x)).mean() for x in (plain, shuffled))
    assert near < 0.5 * far
    value, _, _ = evaluate(
        objective, {IMAGE: ImageFeatures(anchor[:, :, 0], anchor)}, params, aux, batch | {"image/global": images}, 5
    )
    assert value < 1e-10


def test_l2_to_start_is_half_the_squared_way_of_both_towers_and_of_nothing_else():
    learner, params, aux = learner_and_parameters(settings("l2_to_start", objectives__contrastive=1.0))
    own = aux["l2_to_start"]
    value, after, (_, student) = evaluate(learner.objectives["l2_to_start"], {}, params, own, tiny.batch(ROWS))
    towers = {tower: params.student[tower] for tower in ("image", "text")}
    moved = jax.tree.map(lambda x, then: x - np.float64(then), towers, own)
    np.testing.assert_allclose(value, 0.5 * sum(np.sum(x**2) for x in jax.tree.leaves(moved)), rtol=1e-5)
    for tower in moved:
        jax.tree.map(lambda g, way: np.testing.assert_allclose(g, way, atol=1e-6), student[tower], moved[tower])
    assert not np.any(student["logit_scale"])
    jax.tree.map(np.testing.assert_array_equal, after, own)


def test_a_frozen_tower_stays_where_l2_to_start_has_it_and_costs_nothing():
    config = settings("l2_to_start", 0.1, objectives__contrastive=1.0, optimizer__freeze=("image/.*",))
    learner, state = start(config)
    before = state.params["image"]
    step, batch = jax.jit(learner.step), tiny.batch()
    for _ in range(3):
        state, metrics = step(state, batch | {"image/global": batch["image/global"].repeat(2, 2).repeat(2, 3)})
    way = jax.tree.map(
        lambda a, b: float(jnp.sum((a - b) ** 2)), state.params["text"], state.aux["l2_to_start"]["text"]
    )
    assert metrics["loss/l2_to_start"] > 0 and sum(jax.tree.leaves(way)) > 0
    jax.tree.map(np.testing.assert_array_equal, state.params["image"], before)
    assert state.aux["l2_to_start"].keys() == {"text"}  # of what stays no copy is kept


@pytest.mark.parametrize(
    ("method", "kept"),
    [("bias", r"(image|text)/(.*/)?bias"), ("lora", r"(image|text)/blocks/attention/qkv/kernel"), ("full", ".*")],
)
def test_l2_to_start_keeps_a_copy_of_what_the_method_of_config_peft_can_move_alone(method, kept):
    config = settings("l2_to_start", 0.1, objectives__contrastive=1.0, peft__method=method)
    learner, begun = start(config)
    copies = rules.flatten(begun.aux["l2_to_start"])
    assert copies and all(re.fullmatch(kept, path) for path in copies)
    step, batch = jax.jit(learner.step), tiny.batch()
    batch["image/global"] = batch["image/global"].repeat(2, 2).repeat(2, 3)
    once, _ = step(begun, batch)
    _, metrics = step(once, batch)
    before, after = (rules.flatten(learner.effective(state.params)) for state in (begun, once))
    towers = [path for path in before if path.startswith(("image/", "text/"))]
    moved = sum(float(jnp.sum((after[path] - before[path]) ** 2)) for path in towers)
    assert metrics["loss/l2_to_start"] == pytest.approx(0.5 * moved, rel=1e-3) and moved > 0


def test_l2_to_start_takes_what_is_trained_beside_a_method_and_is_of_no_tower():
    _, state = start(settings("l2_to_start", 0.1, objectives__contrastive=1.0, peft__method="bias"))
    also = {"peft__method": "bias", "peft__also": ("logit_scale",)}
    _, more = start(settings("l2_to_start", 0.1, objectives__contrastive=1.0, **also))
    assert rules.flatten(more.aux["l2_to_start"]).keys() == rules.flatten(state.aux["l2_to_start"]).keys()


# In one step

SELF_DISTILLATION = {f"objectives__{name}": 1.0 for name in ("distill", "ibot", "koleo", "gram")}
ALL = SELF_DISTILLATION | {f"objectives__{name}": 1.0 for name in ("contrastive", "siglip", "l2_to_start")} | BIAS


@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_over_eight_devices_every_objective_is_that_of_the_global_batch(centring):
    learner, params, aux = learner_and_parameters(tiny.config(**ALL | {"gram__start": 0.0}, distill__centring=centring))
    wants = {want for objective in learner.objectives.values() for want in objective.wants}
    features = single(random_features(wants, rows=16, patches=4))
    batch, params = tiny.batch(16), Parameters(*map(single, params))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def losses(features, batch):
        results = [
            objective(features, params, aux[name], batch, jnp.int32(1), jax.random.key(0))
            for name, objective in learner.objectives.items()
        ]
        return sum(loss for loss, _, _ in results), [(loss, after) for loss, _, after in results]

    rows = meshes.batch_sharding(meshes.make("data=4,fsdp=2"))
    spread = losses(*jax.device_put((features, batch), rows))
    for got, wanted in zip(jax.tree.leaves(spread), jax.tree.leaves(losses(features, batch)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_what_an_objective_keeps_of_a_tower_lies_as_the_tower_does():
    _, init = tiny.learner(tiny.config(**ALL))
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = meshes.state_sharding(meshes.make("data=2,fsdp=2,tensor=2"), shapes)
    up = lambda tree: tree["image"]["blocks"]["mlp"]["up"]["kernel"].spec  # noqa: E731
    assert up(shardings.aux["gram"]) == up(shardings.aux["l2_to_start"]) == up(shardings.params)
    assert up(shardings.params) == jax.P(None, "fsdp", "tensor")
    assert shardings.params["ibot_head"]["prototypes"].spec == shardings.params["dino_head"]["prototypes"].spec
    assert shardings.params["ibot_head"]["prototypes"].spec == jax.P(("fsdp", "tensor"), None)


def test_what_distill_ibot_koleo_and_gram_ask_of_the_student_is_one_forward_pass():
    learner, _ = tiny.learner(tiny.config(**ONLY | SELF_DISTILLATION))
    wants = {want for objective in learner.objectives.values() for want in objective.wants}
    assert wants == {MASKED, LOCAL, TEACHER}
    assert batch_fields(learner.objectives) == {"image/global", "image/local", "mask"}
    learner, _ = tiny.learner(tiny.config(**ONLY | SELF_DISTILLATION | {"objectives__ibot": 0.0}))
    assert {want for o in learner.objectives.values() for want in o.wants} == {IMAGE, LOCAL, TEACHER}
    assert "mask" not in batch_fields(learner.objectives)


# What is refused, before anything is written


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"objectives.siglip": 1.0}, "config.objectives.siglip: the sigmoid loss needs a bias; set config.logit_bias="),
        ({"objectives.ibot": 1.0, "image.token_keep": 0.5}, "image.token_keep=0.5 drops patches that .*ibot"),
        ({"objectives.gram": 1.0, "image.token_keep": 0.5}, "image.token_keep=0.5 drops patches that .*gram"),
        (
            {"objectives.ibot": 1.0, "image.layers": (1, 1, 1, 1), "image.pool": "mean", "image_size": 32},
            "config.objectives.ibot: it masks patches, and a ResNet has none",
        ),
        (
            {"objectives.gram": 1.0, "image.layers": (1, 1, 1, 1), "image.pool": "mean", "image_size": 32},
            "config.objectives.gram: it compares patches, and a ResNet has none",
        ),
        ({"objectives.gram": 1.0, "gram.size": 8}, "config.gram.size: 8 is smaller than the global views, 16"),
        ({"gram.size": 20}, "config.gram.size: 20 is not a multiple of config.image.patch 8; use 16"),
        ({"gram.every": 0.0}, "config.gram.every: 0.0 is not above 0"),
        ({"distill.centring": "swav"}, "config.distill.centring: unknown 'swav'; known: centre, sinkhorn"),
        ({"objectives.koala": 1.0}, "config.objectives: unknown objective 'koala'; did you mean 'koleo'"),
        (
            {"objectives.contrastive": 0, "objectives.distill": 0, "objectives.l2_to_start": 1.0},
            "config.objectives: l2_to_start looks at no photo; give another one a weight too",
        ),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(keys, message, corpus, tmp_path):
    keys = tiny.SMALL | {"views.local.count": 0} | keys | {"data.path": str(corpus)}
    workdir = tmp_path / "run"
    with pytest.raises(UserError, match=message):
        command.run(
            [f"--config={tiny.RECIPE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]
        )
    assert not workdir.exists()


@pytest.mark.parametrize("name", ["contrastive", "distill", "gram", "ibot", "koleo", "siglip"])
def test_which_objectives_have_a_teacher_is_known_before_they_are_built(name):
    config = settings(name, **(BIAS if name == "siglip" else {}))
    learner, _ = tiny.learner(config)
    assert has_teacher(config) == bool(learner.objectives[name].teacher)
