"""The objective `classify`: its loss by hand, the classes that a run takes from its data, a run from end to end."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_losses import info_nce_oracle, log_softmax, unit
from test_losses_semisupervised import single
from test_objectives import IMAGE, ROWS, WIDTH, embedded, evaluate, has_slope, learner_and_parameters, random_features

from agriclip_jax import main as command
from agriclip_jax import recipe
from agriclip_jax.data import captions, tokenizers
from agriclip_jax.data.pipeline import class_id
from agriclip_jax.data.records import Alive
from agriclip_jax.errors import UserError
from agriclip_jax.losses import contrastive
from agriclip_jax.objectives import build

CLASSES = (
    ("rust", "coffee_leaf", "crop"),
    ("sheep", "farm", "livestock"),
    ("rust", "corn_leaf", "crop"),
    ("a sheep", "meadow", "livestock"),  # what the sheep of the farm are
    ("sea bream", "reef", "fish"),
)
ONLY = {"objectives__contrastive": 0, "objectives__distill": 0, "objectives__classify": 1.0, "image_size": 32}


def oracle(z, t, s, right):
    """The loss, and by hand its gradients: dL/dlogits = (softmax - q) / n, none of an image without a class."""
    q = right / np.maximum(right.sum(1, keepdims=True), 1)
    logits = s * z @ t.T
    d = (np.exp(log_softmax(logits)) * (q.sum(1, keepdims=True) > 0) - q) / len(z)
    return -(q * log_softmax(logits)).sum(1).mean(), (s * d @ t, s * d.T @ z, (d * (z @ t.T)).sum())


def test_classify_equals_the_oracle_in_value_and_gradient():
    rng = np.random.default_rng(0)
    z, t, right = unit(rng, 12, 7), unit(rng, 9, 7), np.arange(12)[:, None] % 10 == np.arange(9)
    right[0, 5] = True
    assert set(right.sum(1)) == {0, 1, 2}
    value, gradients = jax.value_and_grad(contrastive.classify, (0, 1, 2))(*single(z, t, 14.3), jnp.asarray(right))
    wanted, slopes = oracle(z, t, 14.3, right)
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    for got, slope in zip(gradients, slopes, strict=True):
        np.testing.assert_allclose(got, slope, rtol=1e-4, atol=1e-5)


def test_with_the_texts_of_a_batch_for_classes_it_is_the_image_half_of_info_nce():
    rng = np.random.default_rng(1)
    z, t, itself = unit(rng, 9, 5), unit(rng, 9, 5), np.eye(9, dtype=bool)
    halves = [contrastive.classify(*single(x, y, 10.0), jnp.asarray(itself)) for x, y in ((z, t), (t, z))]
    np.testing.assert_allclose(np.mean(halves), info_nce_oracle(z, t, 10.0, itself), rtol=1e-5)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(
        [text for name, of, domain in CLASSES for text, _ in captions.captions(name, domain, of)], 600
    )


def test_each_class_stands_once_in_every_template_of_its_domain(tokenizer):
    config = tiny.config(**ONLY, classify__classes=CLASSES)
    objective = build(config, recipe.towers(config, tokenizer), tokenizer)["classify"]
    distinct = [CLASSES[i] for i in (0, 1, 2, 4)]
    np.testing.assert_array_equal(objective.classes, [class_id(name, of) for name, of, _ in distinct])
    for drawn, of_template in enumerate(objective.tokens):
        texts = [captions.captions(name, domain, of)[drawn][0] for name, of, domain in distinct]
        np.testing.assert_array_equal(of_template, tokenizer.encode(texts, 12))
    assert len(objective.tokens) == len(captions.templates("crop"))


def test_every_view_is_told_from_all_classes_in_one_template_drawn_for_the_step(tokenizer):
    learner, params, aux = learner_and_parameters(tiny.config(**ONLY, classify__classes=CLASSES), tokenizer)
    objective, features = learner.objectives["classify"], random_features((IMAGE,))
    shown = np.array([class_id(*CLASSES[i][:2]) for i in (0, 1, 2, 3, 4)] + [class_id("unheard of", "")])
    value, _, (slopes, _) = evaluate(objective, features, params, aux["classify"], {"class_id": shown})
    right = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], bool)
    student, text = params.student, learner.towers["text"]

    def of_template(tokens):
        texts = text(student["text"], text(single_tree(student["text"]), tokens), method="embed")

        def loss(pooled):
            views = np.moveaxis(embedded(student["image"], pooled), 1, 0)
            scale = np.exp(student["logit_scale"])
            return np.mean([oracle(view, np.float64(texts), scale, right)[0] for view in views])

        return loss

    losses = [of_template(tokens) for tokens in objective.tokens]
    near = [loss(features[IMAGE].pooled) for loss in losses]
    drawn = int(np.argmin(np.abs(np.array(near) - value)))
    assert value == pytest.approx(near[drawn], rel=1e-5) and len(set(np.round(near, 4))) == len(near)
    has_slope(losses[drawn], features[IMAGE].pooled, slopes[IMAGE].pooled)
    assert features[IMAGE].pooled.shape == (ROWS, 2, WIDTH)


def single_tree(tree):
    return jax.tree.map(jnp.float32, tree)


def arguments(workdir, corpus, **given):
    keys = tiny.SMALL | {"objectives.distill": 0, "objectives.classify": 0.5, "views.local.count": 0}
    keys |= {"data.path": corpus, "log_every": 1} | {key.replace("__", "."): value for key, value in given.items()}
    return [f"--config={tiny.RECIPE}", f"--workdir={workdir}", *(f"--config.{k}={v}" for k, v in keys.items())]


def test_a_run_keeps_the_classes_of_its_domains_and_goes_on_with_them(corpus, tmp_path):
    domains = "('fish','livestock')"
    assert command.run(arguments(tmp_path / "run", corpus, data__domains=domains)) == 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["classify"]["classes"]
    records = Alive.open(corpus).datasets
    assert {slug for _, slug, _ in kept} == {slug for slug, r in records.items() if r.domain in ("fish", "livestock")}
    assert all(name in records[slug].classes.values() and domain == records[slug].domain for name, slug, domain in kept)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss/classify" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    for row in steps:
        assert row["loss"] == pytest.approx(row["loss/contrastive"] + 0.5 * row["loss/classify"], rel=1e-4)
    assert steps[-1]["loss/classify"] < steps[0]["loss/classify"]
    again = arguments(tmp_path / "run", corpus, data__domains=domains, total_steps=10)
    assert command.run([*again, "--extend"]) == 0
    known = json.loads((tmp_path / "run" / "classes.json").read_text(encoding="utf-8"))
    assert {each["domain"] for each in known} == {"fish", "livestock"}  # what it was not shown it has not seen


def test_a_run_that_was_killed_before_its_first_checkpoint_is_given_again_and_begins_anew(corpus, tmp_path):
    given = arguments(tmp_path / "run", corpus, total_steps=1)
    assert command.run(given) == 0
    for name in ("checkpoints", "report.html", "zeroshot.json"):
        left = tmp_path / "run" / name
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    assert command.run(given) == 0 and (tmp_path / "run" / "report.html").is_file()


def test_the_classes_of_what_is_replayed_are_told_apart_too(corpus):
    alive = Alive.open(corpus)
    config = tiny.config(objectives__classify=1.0, data__domains=("fish",), data__replay__share=0.25)
    recipe.settle(config, alive, alive, recipe.select(config, alive, alive))
    assert {domain for _, _, domain in config.classify.classes} == {r.domain for r in alive.datasets.values()}
    assert len(set(config.classify.classes)) == len(config.classify.classes)
    config = tiny.config(objectives__classify=1.0, data__domains=("fish",), data__replay__domains=("weed",))
    recipe.settle(config, alive, alive, recipe.select(config, alive, alive))
    assert {domain for _, _, domain in config.classify.classes} == {"fish", "weed"}


def test_data_without_classes_is_one_line(tokenizer):
    config = tiny.config(**ONLY)
    with pytest.raises(UserError, match=r"config.objectives.classify: no example has a class; set its weight to 0"):
        build(config, recipe.towers(config, tokenizer), tokenizer)
