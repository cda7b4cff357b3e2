"""The DINO head, the DINO loss and InfoNCE against torch: the formulas of the papers' code, through autograd."""

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest

from agriclip_jax import encoders
from agriclip_jax.losses import contrastive, distill

pytestmark = pytest.mark.parity

VIEWS, GLOBALS, BATCH, PROTOTYPES = 5, 2, 6, 40
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE, MOMENTUM = 0.1, 0.04, 0.9
HEAD = encoders.Network(lambda rngs: encoders.DinoHead(24, hidden=64, bottleneck=16, prototypes=PROTOTYPES, rngs=rngs))


def close(ours, theirs):
    """Equal within 1e-4 of the largest value."""
    size = np.abs(theirs).max()
    assert size > 1e-6
    np.testing.assert_allclose(np.asarray(ours) / size, theirs / size, rtol=0, atol=originals.TOLERANCE)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def dino_head(torch, seed=0):
    """`DINOHead(in_dim=24, out_dim=40, hidden_dim=64, bottleneck_dim=16)` of facebookresearch/dino."""
    nn = torch.nn

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.mlp = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
            self.last = nn.utils.parametrizations.weight_norm(nn.Linear(16, PROTOTYPES, bias=False))

        def forward(self, x):
            return self.last(nn.functional.normalize(self.mlp(x), dim=-1, p=2))

    head = originals.made(Head, seed=seed)
    gain = head.last.parametrizations.weight.original0
    gain.data.fill_(1.0)
    gain.requires_grad_(False)
    return head


def head_params(weights):
    layers = {f"layer{i + 1}": originals.dense(weights, [f"mlp.{2 * i}"]) for i in range(3)}
    return layers | {"prototypes": weights["last.parametrizations.weight.original1"]}


def dino_loss(torch, student, teacher, centre):
    """`DINOLoss.forward` of facebookresearch/dino: views along the first axis, the student's own view skipped."""
    softmax, log_softmax = torch.nn.functional.softmax, torch.nn.functional.log_softmax
    targets = softmax((teacher - centre) / TEACHER_TEMPERATURE, dim=-1).detach().chunk(GLOBALS)
    total, terms = 0, 0
    for q, target in enumerate(targets):
        for v, view in enumerate((student / STUDENT_TEMPERATURE).chunk(VIEWS)):
            if v != q:
                total = total + torch.sum(-target * log_softmax(view, dim=-1), dim=-1).mean()
                terms += 1
    assert terms == GLOBALS * VIEWS - GLOBALS
    return total / terms


def update_centre(torch, centre, teacher):
    return centre * MOMENTUM + torch.sum(teacher, dim=0, keepdim=True) / len(teacher) * (1 - MOMENTUM)


def by_view(torch, logits):
    """Ours [batch, views, prototypes] as DINO's [views * batch, prototypes], the batch of each view together."""
    return torch.tensor(logits.transpose(1, 0, 2).reshape(-1, logits.shape[-1]))


def ours_dino(student, teacher, centre):
    targets = distill.centred_targets(teacher, centre, TEACHER_TEMPERATURE)
    return distill.dino(student, targets, temperature=STUDENT_TEMPERATURE)


def test_the_dino_head(torch):
    theirs = dino_head(torch)
    weights = originals.Weights(theirs.state_dict())
    params = originals.fits(HEAD, head_params(weights), weights, unused={"last.parametrizations.weight.original0"})
    x = random(BATCH, 24)
    originals.agree(HEAD(params, x), theirs(torch.tensor(x)), least_spread=0.2)


def test_the_dino_loss_its_gradient_and_its_centre_over_three_steps(torch):
    theirs_centre, centre = torch.zeros(1, PROTOTYPES), jnp.zeros(PROTOTYPES)
    for step in range(3):
        student = np.tanh(random(BATCH, VIEWS, PROTOTYPES, seed=step))  # logits are cosines
        teacher = np.tanh(random(BATCH, GLOBALS, PROTOTYPES, seed=100 + step) + 0.5)
        value, gradient = jax.value_and_grad(ours_dino)(student, teacher, centre)
        flat = by_view(torch, student).requires_grad_()
        wanted = dino_loss(torch, flat, by_view(torch, teacher), theirs_centre)
        wanted.backward()
        np.testing.assert_allclose(value, wanted.item(), rtol=0, atol=originals.TOLERANCE)
        close(gradient.swapaxes(0, 1).reshape(-1, PROTOTYPES), flat.grad.numpy())
        centre = distill.update_centre(centre, teacher, MOMENTUM)
        theirs_centre = update_centre(torch, theirs_centre, by_view(torch, teacher))
        originals.agree(centre, theirs_centre[0], least_spread=0.01)


def test_the_gradient_of_the_dino_loss_through_the_head(torch):
    student, teacher = dino_head(torch), dino_head(torch, seed=1)
    features, seen = random(BATCH, VIEWS, 24), random(BATCH, GLOBALS, 24, seed=1)
    centre = 0.1 * random(PROTOTYPES, seed=2)
    wanted = dino_loss(torch, student(by_view(torch, features)), teacher(by_view(torch, seen)), torch.tensor(centre))
    wanted.backward()
    targets = HEAD(head_params(originals.Weights(teacher.state_dict())), seen)
    loss = jax.value_and_grad(lambda params: ours_dino(HEAD(params, features), targets, centre))
    value, ours = loss(head_params(originals.Weights(student.state_dict())))
    np.testing.assert_allclose(value, wanted.item(), rtol=0, atol=originals.TOLERANCE)
    gradients = {name: p.grad for name, p in student.named_parameters() if p.requires_grad}
    theirs = head_params(originals.Weights(gradients))
    jax.tree.map(close, ours, theirs)


def test_info_nce_is_the_mean_of_two_cross_entropies(torch):
    images, texts, log_scale = random(BATCH, 8), random(BATCH, 8, seed=1), np.float32(2.3)

    def loss(images, texts, log_scale):
        unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts)]
        return contrastive.info_nce(*unit, jnp.exp(log_scale), jnp.eye(BATCH, dtype=bool))

    value, gradients = jax.value_and_grad(loss, (0, 1, 2))(images, texts, log_scale)
    inputs = [torch.tensor(x, requires_grad=True) for x in (images, texts, log_scale)]
    unit = [torch.nn.functional.normalize(x) for x in inputs[:2]]
    logits, own = inputs[2].exp() * unit[0] @ unit[1].T, torch.arange(BATCH)
    cross_entropy = torch.nn.functional.cross_entropy
    wanted = (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2
    wanted.backward()
    np.testing.assert_allclose(value, wanted.item(), rtol=0, atol=originals.TOLERANCE)
    for got, theirs in zip(gradients, inputs, strict=True):
        close(got, theirs.grad.numpy())


def test_info_nce_with_repeated_captions_is_cross_entropy_with_soft_targets(torch):
    images, texts = random(BATCH, 8), random(BATCH, 8, seed=1)
    captions = np.array([0, 1, 0, 2, 1, 0])
    positive = captions[:, None] == captions
    inputs = [torch.tensor(x, requires_grad=True) for x in (images, texts)]
    logits = inputs[0] @ inputs[1].T
    targets = torch.tensor(positive / positive.sum(1, keepdims=True), dtype=torch.float32)
    cross_entropy = torch.nn.functional.cross_entropy
    wanted = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
    wanted.backward()
    value, gradients = jax.value_and_grad(contrastive.info_nce, (0, 1))(images, texts, 1.0, positive)
    np.testing.assert_allclose(value, wanted.item(), rtol=0, atol=originals.TOLERANCE)
    for got, theirs in zip(gradients, inputs, strict=True):
        close(got, theirs.grad.numpy())
