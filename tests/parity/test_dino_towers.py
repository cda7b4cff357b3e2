"""Our image tower with DINO's options computes what timm's and transformers' DINO ViT and DINOv2 compute."""

import jax
import numpy as np
import originals
import pytest

from agriclip_jax import encoders
from agriclip_jax.encoders import vit

pytestmark = pytest.mark.parity

DEPTH, PATCHES = 2, 16
SIZES = {"hidden_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def tower(layer_scale=0.0, registers=0):
    blocks = encoders.block_config("Ti", width=48, depth=DEPTH, heads=4, norm_eps=1e-6, layer_scale=layer_scale)
    return encoders.image_tower(vit.ViTConfig(blocks, 8, 32, embed_dim=0, pool="cls", registers=registers, **IMAGENET))


def params_of(weights, names, *, cls, positions, patch, blocks, norm):
    return {
        "patch": originals.patch(weights, patch),
        **originals.class_and_positions(weights, cls, positions),
        "blocks": originals.blocks(weights, blocks, DEPTH, names),
        "norm": originals.norm(weights, norm),
    }


HUGGING_FACE = {
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}


@pytest.fixture(scope="module")
def timms(torch):
    timm = pytest.importorskip("timm")
    sizes = {"embed_dim": 48, "depth": DEPTH, "num_heads": 4, "img_size": 32, "patch_size": 8}
    return originals.made(
        timm.create_model, "vit_small_patch16_224.dino", num_classes=0, dynamic_img_size=True, **sizes
    )


@pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 56)], ids=["own grid", "local view", "any grid"])
def test_timms_dino_on_its_own_grid_and_on_others(timms, torch, size):
    weights = originals.Weights(timms.state_dict())
    names = {"cls": "cls_token", "positions": "pos_embed", "patch": "patch_embed.proj"}
    network = tower()
    params = params_of(weights, originals.TIMM, **names, blocks="blocks", norm="norm")
    originals.fits(network, params, weights)
    images = np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)
    with torch.no_grad():
        wanted = timms.forward_features(originals.pixels(images, network.config))
    ours = jax.jit(network)(params, images)
    originals.agree(ours.pooled, wanted[:, 0])
    originals.agree(ours.patches, wanted[:, 1:])


def test_transformers_dino_and_where_its_class_token_looks(torch, images):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(**SIZES, intermediate_size=192, layer_norm_eps=1e-6, attn_implementation="eager")
    theirs = originals.made(transformers.ViTModel, config, add_pooling_layer=False)
    weights, network = originals.Weights(theirs.state_dict()), tower()
    params = params_of(weights, originals.VIT, **HUGGING_FACE, blocks="layers")
    originals.fits(network, params, weights)
    with torch.no_grad():
        wanted = theirs(originals.pixels(images, network.config), output_attentions=True)
    ours = jax.jit(network)(params, images)
    originals.agree(ours.pooled, wanted.last_hidden_state[:, 0])
    originals.agree(ours.patches, wanted.last_hidden_state[:, 1:])
    looks = wanted.attentions[-1][:, :, 0, 1:].reshape(3, 4, 4, 4)
    originals.agree(PATCHES * network(params, images, method="attention"), PATCHES * looks)


def test_dinov2_with_registers_and_layer_scale(torch, images):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2WithRegistersConfig(
        **SIZES, num_register_tokens=3, layerscale_value=0.5, attn_implementation="eager"
    )
    theirs = originals.made(transformers.Dinov2WithRegistersModel, config)
    weights, network = originals.Weights(theirs.state_dict()), tower(layer_scale=1.0, registers=3)
    params = params_of(weights, originals.DINOV2, **HUGGING_FACE, blocks="encoder.layer")
    params["registers"] = weights["embeddings.register_tokens"][0]
    originals.fits(network, params, weights, unused={"embeddings.mask_token"})
    with torch.no_grad():
        wanted = theirs(originals.pixels(images, network.config), output_attentions=True)
    ours = jax.jit(network)(params, images)
    originals.agree(ours.pooled, wanted.pooler_output)
    originals.agree(ours.patches, wanted.last_hidden_state[:, 4:])
    looks = wanted.attentions[-1][:, :, 0, 4:].reshape(3, 4, 4, 4)
    originals.agree(PATCHES * network(params, images, method="attention"), PATCHES * looks)
