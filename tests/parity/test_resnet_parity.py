"""Our ResNet towers compute what open_clip's ModifiedResNet and torchvision's ResNet compute, gradients included."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest

from agriclip_jax import encoders, rules
from agriclip_jax.encoders import resnet
from agriclip_jax.weights import families, names

pytestmark = pytest.mark.parity


def made(torch, build, *args, **kwargs):
    """A torch ResNet that keeps its features of order 1, with batch statistics moved from where they start."""
    module = originals.made(build, *args, **kwargs)
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.2)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
        for name, weight in module.named_parameters():
            if weight.ndim == 4:
                weight.mul_((2 / weight[0].numel()) ** 0.5 / weight.std())
            elif name.endswith("bn3.weight"):
                weight.fill_(0.3).add_(0.05 * torch.randn_like(weight))
            elif weight.ndim == 2:
                weight.mul_(2 * weight.shape[1] ** -0.5 / weight.std())
    return module


CLIP = resnet.ResNetConfig((2, 1, 3, 2), width=8, heads=4, image_size=64, embed_dim=24)
PLAIN = dataclasses.replace(resnet.CONFIGS["ResNet50"], layers=(1, 2, 1, 1))

CLIP_ROWS = families.FAMILIES["clip resnet (openai, open_clip)"].towers["image"]
PLAIN_ROWS = families.FAMILIES["resnet (torchvision)"].towers["image"]


@pytest.fixture(scope="module")
def clip(torch):
    modified_resnet = pytest.importorskip("open_clip.modified_resnet")
    theirs = made(torch, modified_resnet.ModifiedResNet, list(CLIP.layers), 24, CLIP.heads, CLIP.image_size, CLIP.width)
    return theirs, encoders.resnet_tower(CLIP), tree(theirs.state_dict(), CLIP_ROWS, "visual.")


@pytest.fixture(scope="module")
def plain(torch):
    models = pytest.importorskip("torchvision.models.resnet")
    theirs = made(torch, models.ResNet, models.Bottleneck, list(PLAIN.layers))
    return theirs, encoders.resnet_tower(PLAIN), tree(theirs.state_dict(), PLAIN_ROWS, "")


def tree(tensors, rows, prefix):
    """Our parameters of the original's arrays, or of their gradients."""
    arrays = {prefix + name: tensor.detach().numpy for name, tensor in tensors.items()}
    return rules.unflatten(dict(names.read(rows, arrays)))


def photos(*size):
    return np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)


def cells_of(theirs, x):
    """The last stage's output, [n, width, rows, columns]."""
    x = theirs.stem(x) if hasattr(theirs, "attnpool") else theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
    return theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(x))))


def as_patches(cells):
    return cells.flatten(2).transpose(1, 2)


def resized_pool(torch, theirs, rows, columns):
    """Their attention pool with positions for another grid, by torch's own bicubic interpolation."""
    pool, width = theirs.attnpool, theirs.attnpool.positional_embedding.shape[1]
    grid = pool.positional_embedding[1:].T.reshape(1, width, CLIP.grid, CLIP.grid)
    if (rows, columns) != (CLIP.grid, CLIP.grid):
        grid = torch.nn.functional.interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
    return torch.cat([pool.positional_embedding[:1], grid[0].flatten(1).T])


def attended(torch, pool, positions, cells):
    """Weights [n, heads, 1 + cells] and pooled value [n, width] of their pool, spelt out from its own layers."""
    x = as_patches(cells)
    x = torch.cat([x.mean(1, keepdim=True), x], 1) + positions
    heads = lambda y: y.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)  # noqa: E731
    q, k, v = heads(pool.q_proj(x[:, :1])), heads(pool.k_proj(x)), heads(pool.v_proj(x))
    weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
    return x, weights[:, :, 0], (weights @ v).transpose(1, 2).flatten(1)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 160)], ids=["own grid", "larger", "any grid"])
def test_clips_resnet_on_its_own_grid_and_on_others(clip, torch, size):
    theirs, network, params = clip
    x = originals.pixels(photos(*size), CLIP)
    pool, normalise = theirs.attnpool, torch.nn.functional.normalize
    with torch.no_grad():
        cells = cells_of(theirs, x)
        positions = resized_pool(torch, theirs, *cells.shape[2:])
        tokens, weights, pooled = attended(torch, pool, positions, cells)
        dense = normalise(pool.c_proj(pool.v_proj(tokens[:, 1:])), dim=-1)
        own, pool.positional_embedding.data = pool.positional_embedding.data, positions
        embedded = normalise(theirs(x), dim=-1)
        pool.positional_embedding.data = own
    ours = jax.jit(network)(params, photos(*size))
    originals.agree(ours.patches, as_patches(cells))
    originals.agree(ours.pooled, pooled)
    originals.agree(network(params, ours.pooled, method="embed"), embedded, least_spread=0.1)
    grid = cells.shape[2:]
    looks = network(params, photos(*size), method="attention")
    originals.agree(grid.numel() * looks, grid.numel() * weights[..., 1:].unflatten(-1, grid))
    originals.agree(network(params, photos(*size), method="dense"), dense.unflatten(1, grid), least_spread=0.1)


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (75, 101)], ids=["square", "oblong", "odd"])
def test_torchvisions_resnet_before_its_classifier(plain, torch, size):
    theirs, network, params = plain
    with torch.no_grad():
        x = originals.pixels(photos(*size), PLAIN)
        cells = cells_of(theirs, x)
        pooled = theirs.avgpool(cells).flatten(1)
        np.testing.assert_array_equal(theirs(x), theirs.fc(pooled))
    ours = jax.jit(network)(params, photos(*size))
    originals.agree(ours.patches, as_patches(cells))
    originals.agree(ours.pooled, pooled)


def test_an_odd_size_goes_through_clips_resnet_as_through_the_original(clip, torch):
    theirs, network, params = clip
    with torch.no_grad():
        cells = cells_of(theirs, originals.pixels(photos(75, 101), CLIP))
    originals.agree(jax.jit(network)(params, photos(75, 101)).patches, as_patches(cells))


@pytest.mark.parametrize("family", ["clip", "plain"])
def test_the_gradient_of_every_parameter(family, torch, request):
    """In float64, and from black and white pixels: in float32 some ReLU falls on either side of zero by rounding."""
    theirs, network, params = request.getfixturevalue(family)
    rows, prefix = (CLIP_ROWS, "visual.") if family == "clip" else (PLAIN_ROWS, "")
    images = photos(64, 64)[:1] // 128 * np.uint8(255)
    theirs = copy.deepcopy(theirs).double()
    theirs.fc = torch.nn.Identity()
    standard = (images / 255 - np.array(network.config.mean)) / np.array(network.config.std)
    features = theirs(torch.tensor(standard.transpose(0, 3, 1, 2)))
    direction = np.random.default_rng(1).normal(size=features.shape)
    (torch.nn.functional.normalize(features, dim=-1) * torch.tensor(direction)).sum().backward()
    # Their statistics are buffers and have no gradient.
    gradients = {name: torch.zeros_like(value) for name, value in theirs.state_dict().items()}
    gradients |= {name: parameter.grad for name, parameter in theirs.named_parameters()}
    wanted = rules.flatten(tree(gradients, rows, prefix))

    def loss(params):
        return jnp.sum(network(params, network(params, images).pooled, method="embed") * direction)

    with jax.enable_x64(True):
        network = encoders.resnet_tower(dataclasses.replace(network.config, dtype="float64"))
        ours = rules.flatten(jax.device_get(jax.jit(jax.grad(loss))(jax.tree.map(np.float64, params))))
    for path, got in ours.items():
        if path.endswith(("/mean", "/var", "head/key/bias")):  # a softmax cancels its keys' bias
            continue
        size = np.abs(wanted[path]).max()
        assert size > 1e-4, path
        np.testing.assert_allclose(got / size, wanted[path] / size, rtol=0, atol=originals.TOLERANCE, err_msg=path)


@pytest.mark.parametrize("name", sorted(resnet.CONFIGS.keys() - {"ResNet50"}))
def test_the_named_towers_are_open_clips(name, torch):
    open_clip = pytest.importorskip("open_clip")
    config, theirs = resnet.CONFIGS[name], open_clip.get_model_config(name)
    vision = theirs["vision_cfg"]
    wanted = (tuple(vision["layers"]), vision["width"], vision["image_size"], theirs["embed_dim"])
    assert (config.layers, config.width, config.image_size, config.embed_dim) == wanted
    assert config.heads == vision["width"] * 32 // 64  # open_clip's rule: heads of 64 channels
