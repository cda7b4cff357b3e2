"""Every loss is the same on one device and over eight, and in float32 whatever it is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_losses import unit

from agriclip_jax import mesh as meshes
from agriclip_jax.losses import contrastive, distill, geometry, semisupervised

GROUPS = np.arange(16) % 5
POSITIVE = jnp.asarray(GROUPS[:, None] == GROUPS)
RIGHT = jnp.asarray(GROUPS[:, None] == np.arange(24) % 7)
SCALE = jnp.float32(30.0)


def embeddings(seed, *shape):
    return np.float32(unit(np.random.default_rng(seed), *shape))


def caption_loss(assignment, detached):
    def loss(unpaired, images, texts):
        labels = semisupervised.caption_labels(unpaired, images, SCALE, assignment=assignment, detached=detached)
        return semisupervised.pseudo_label_loss(unpaired, texts, SCALE, labels)

    return loss


def keyword_loss(linear):
    keywords = embeddings(9, 5, 8)
    mentions = jnp.asarray(np.random.default_rng(9).random((16, 5)) < 0.5)

    def loss(unpaired, images):
        captions = semisupervised.caption_labels(unpaired, images, SCALE)
        labels = semisupervised.keyword_labels(unpaired, keywords, SCALE, captions, mentions, linear=linear)
        return semisupervised.pseudo_label_loss(unpaired, keywords, SCALE, labels)

    return loss


def ibot_loss(student, teacher):
    masked = jnp.asarray(np.random.default_rng(8).random(student.shape[:-1]) < 0.4)
    targets = distill.sinkhorn_targets(teacher, 0.07, where=masked)
    return distill.ibot(student, targets, distill.patch_weights(masked), temperature=0.1)


IMAGES, TEXTS, UNPAIRED = embeddings(0, 16, 8), embeddings(1, 16, 8), embeddings(2, 24, 8)
STUDENT, TEACHER = embeddings(3, 16, 4, 9), embeddings(4, 16, 2, 9)
PATCHES, ANCHOR = embeddings(5, 16, 2, 6, 9), embeddings(6, 16, 2, 6, 9)

LOSSES = {
    "sigmoid": (lambda z, t: contrastive.sigmoid(z, t, SCALE, jnp.float32(-10.0), POSITIVE), (IMAGES, TEXTS)),
    "classify": (lambda z, t: contrastive.classify(z, t, SCALE, RIGHT), (IMAGES, UNPAIRED)),
    "info_nce_with_unpaired": (
        lambda z, t, u: semisupervised.info_nce_with_unpaired(z, t, u, SCALE, POSITIVE),
        (IMAGES, TEXTS, UNPAIRED),
    ),
    "captions hard": (caption_loss("hard", True), (UNPAIRED, IMAGES, TEXTS)),
    "captions soft": (caption_loss("soft", True), (UNPAIRED, IMAGES, TEXTS)),
    "captions ot": (caption_loss("ot", True), (UNPAIRED, IMAGES, TEXTS)),
    "captions ot through the plan": (caption_loss("ot", False), (UNPAIRED, IMAGES, TEXTS)),
    "keywords": (keyword_loss(False), (UNPAIRED, IMAGES)),
    "keywords linear": (keyword_loss(True), (UNPAIRED, IMAGES)),
    "dino with sinkhorn": (
        lambda s, t: distill.dino(jnp.float32(s), distill.sinkhorn_targets(t, 0.07), temperature=0.1),
        (STUDENT, TEACHER),
    ),
    "ibot": (ibot_loss, (PATCHES, ANCHOR)),
    "koleo": (geometry.koleo, (IMAGES,)),
    "gram_anchoring": (geometry.gram_anchoring, (PATCHES, ANCHOR)),
}


def value_and_gradients(loss, inputs):
    return jax.jit(jax.value_and_grad(loss, tuple(range(len(inputs)))))(*inputs)


@pytest.mark.parametrize("name", LOSSES)
def test_over_eight_devices_a_loss_is_that_of_the_global_batch(name):
    loss, inputs = LOSSES[name]
    rows = meshes.batch_sharding(meshes.make("data=4,fsdp=2"))
    alone = value_and_gradients(loss, inputs)
    spread = [jax.device_put(x, rows) for x in inputs]
    assert {part.data.shape[0] for x in spread for part in x.addressable_shards} <= {2, 3}
    sharded = value_and_gradients(loss, spread)
    for got, wanted in zip(jax.tree.leaves(sharded), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_features_in_bfloat16_lose_no_more_than_their_own_rounding(name):
    loss, inputs = LOSSES[name]
    rounded = [jnp.bfloat16(x) for x in inputs]
    half = value_and_gradients(loss, rounded)
    full = value_and_gradients(loss, [x.astype(jnp.float32) for x in rounded])
    assert half[0].dtype == jnp.float32
    np.testing.assert_allclose(half[0], full[0], rtol=1e-6, atol=1e-6)
    for got, wanted in zip(half[1], full[1], strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.float32(got), wanted, atol=2**-8 * np.abs(wanted).max())
