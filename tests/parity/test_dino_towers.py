"""Our image tower with DINO's options computes what timm's and transformers' DINO ViT, DINOv2 and DINOv3 compute."""

import jax
import numpy as np
import originals
import pytest

from agriclip_jax import encoders
from agriclip_jax.encoders import vit

pytestmark = pytest.mark.parity

DEPTH, PATCHES = 2, 16
SIZES = {"hidden_size": 48, "num_hidden_layers": DEPTH, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
TIMM_SIZES = {"embed_dim": 48, "depth": DEPTH, "num_heads": 4, "img_size": 32, "patch_size": 8, "num_classes": 0}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
ROTARY = {"rotary_base": 100, "norm_eps": 1e-5}
GRIDS = pytest.mark.parametrize("size", [(32, 32), (16, 16), (24, 56)], ids=["own grid", "local view", "any grid"])


def tower(registers=0, rotary_base=0.0, **blocks):
    stack = encoders.block_config("Ti", **{"width": 48, "depth": DEPTH, "heads": 4} | blocks)
    return encoders.image_tower(
        vit.ViTConfig(stack, 8, 32, embed_dim=0, registers=registers, rotary_base=rotary_base, **IMAGENET)
    )


def params_of(weights, names, *, cls, patch, blocks, norm, positions=None, registers=None):
    """`positions`: absent where they are rotary, which are no parameter; given, they have a row for the class token."""
    tokens = {"registers": weights[registers][0]} if registers else {}
    return {
        **tokens,
        **(originals.class_and_positions(weights, cls, positions) if positions else {"cls": weights[cls][0]}),
        "patch": originals.patch(weights, patch),
        "blocks": originals.blocks(weights, blocks, DEPTH, names),
        "norm": originals.norm(weights, norm),
    }


TIMM = {"cls": "cls_token", "patch": "patch_embed.proj", "blocks": "blocks", "norm": "norm"}
HUGGING_FACE = {
    "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings",
    "patch": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
DINOV3 = {
    "cls": HUGGING_FACE["cls"],
    "registers": "embeddings.register_tokens",
    "patch": "embeddings.patch_embeddings",
    "blocks": "model.layer",
    "norm": "norm",
}


def pixels(size):
    return np.random.default_rng(0).integers(0, 256, (3, *size, 3), np.uint8)


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def timm(torch):
    return pytest.importorskip("timm")


def agrees_with_timm(torch, theirs, network, params, images):
    """Asserts that a tower of timm gives our features."""
    first = 1 + network.config.registers
    with torch.no_grad():
        wanted = theirs.forward_features(originals.pixels(images, network.config))
    ours = jax.jit(network)(params, images)
    originals.agree(ours.pooled, wanted[:, 0])
    originals.agree(ours.patches, wanted[:, first:])


def agrees_with_transformers(torch, theirs, network, params, images):
    """Asserts that a tower of transformers gives our features, and that its class token looks where ours looks."""
    first = 1 + network.config.registers
    with torch.no_grad():
        wanted = theirs(originals.pixels(images, network.config), output_attentions=True)
    ours, maps = jax.jit(network)(params, images), network(params, images, method="attention")
    originals.agree(ours.pooled, wanted.last_hidden_state[:, 0])
    originals.agree(ours.patches, wanted.last_hidden_state[:, first:])
    looks = wanted.attentions[-1][:, :, 0, first:].reshape(maps.shape)
    originals.agree(PATCHES * maps, PATCHES * looks)


@pytest.fixture(scope="module")
def timms(timm):
    return originals.made(timm.create_model, "vit_small_patch16_224.dino", dynamic_img_size=True, **TIMM_SIZES)


@GRIDS
def test_timms_dino_on_its_own_grid_and_on_others(timms, torch, size):
    weights, network = originals.Weights(timms.state_dict()), tower()
    params = params_of(weights, originals.TIMM, **TIMM, positions="pos_embed")
    agrees_with_timm(torch, timms, network, originals.fits(network, params, weights), pixels(size))


def test_transformers_dino(transformers, torch, images):
    config = transformers.ViTConfig(**SIZES, intermediate_size=192, layer_norm_eps=1e-6, attn_implementation="eager")
    theirs = originals.made(transformers.ViTModel, config, add_pooling_layer=False)
    weights, network = originals.Weights(theirs.state_dict()), tower()
    params = params_of(weights, originals.VIT, **HUGGING_FACE, blocks="layers")
    agrees_with_transformers(torch, theirs, network, originals.fits(network, params, weights), images)


def test_dinov2_with_registers_and_layer_scale(transformers, torch, images):
    config = transformers.Dinov2WithRegistersConfig(
        **SIZES, num_register_tokens=3, layerscale_value=0.5, attn_implementation="eager"
    )
    theirs = originals.made(transformers.Dinov2WithRegistersModel, config)
    weights, network = originals.Weights(theirs.state_dict()), tower(layer_scale=1.0, registers=3)
    params = params_of(
        weights, originals.DINOV2, **HUGGING_FACE, blocks="encoder.layer", registers="embeddings.register_tokens"
    )
    originals.fits(network, params, weights, unused={"embeddings.mask_token"})
    agrees_with_transformers(torch, theirs, network, params, images)


def test_dinov2_giant_with_its_gated_mlp(transformers, torch, images):
    config = transformers.Dinov2Config(**SIZES, use_swiglu_ffn=True, layerscale_value=0.5, attn_implementation="eager")
    theirs = originals.made(transformers.Dinov2Model, config)
    weights, network = originals.Weights(theirs.state_dict()), tower(layer_scale=1.0, activation="swiglu", mlp=128)
    names = originals.DINOV2 | {"mlp": originals.GATED}
    params = params_of(weights, names, **HUGGING_FACE, blocks="encoder.layer")
    originals.fits(network, params, weights, unused={"embeddings.mask_token"})
    agrees_with_transformers(torch, theirs, network, params, images)


def test_timms_dinov2_giant_whose_class_token_has_no_position(timm, torch, images):
    theirs = originals.made(timm.create_model, "vit_giant_patch14_reg4_dinov2", **TIMM_SIZES)
    weights = originals.Weights(theirs.state_dict())
    network = tower(layer_scale=1.0, registers=4, activation="swiglu", mlp=128)
    params = params_of(weights, originals.TIMM_DINOV2, **TIMM, registers="reg_token")
    params["positions"] = weights["pos_embed"][0]
    agrees_with_timm(torch, theirs, network, originals.fits(network, params, weights), images)


@GRIDS
@pytest.mark.parametrize("gated", [False, True])
def test_dinov3_its_looks_and_its_patches_values_on_any_grid(transformers, torch, gated, size):
    mlp = {"use_gated_mlp": True, "hidden_act": "silu"} if gated else {}
    config = transformers.DINOv3ViTConfig(
        **SIZES, **mlp, intermediate_size=96, num_register_tokens=4, attn_implementation="eager"
    )
    theirs = originals.made(transformers.DINOv3ViTModel, config)
    weights, images = originals.Weights(theirs.state_dict()), pixels(size)
    network = tower(registers=4, layer_scale=1.0, mlp=96, activation="swiglu" if gated else "gelu", **ROTARY)
    params = params_of(weights, originals.DINOV3 | ({"mlp": originals.GATED} if gated else {}), **DINOV3)
    originals.fits(network, params, weights, unused={"embeddings.mask_token"})
    agrees_with_transformers(torch, theirs, network, params, images)

    last = theirs.model.layer[-1]
    with torch.no_grad():
        entering = theirs(originals.pixels(images, network.config), output_hidden_states=True).hidden_states[-2]
        values = last.layer_scale1(last.attention.o_proj(last.attention.v_proj(last.norm1(entering))))
        wanted = torch.nn.functional.normalize(theirs.norm(values)[:, 5:], dim=-1)
    dense = network(params, images, method="dense")
    originals.agree(dense, wanted.reshape(dense.shape), least_spread=0.1)


@GRIDS
def test_timms_dinov3(timm, torch, size):
    theirs = originals.made(timm.create_model, "vit_small_plus_patch16_dinov3_qkvb", **TIMM_SIZES)
    weights = originals.Weights(theirs.state_dict())
    for i in range(DEPTH):
        query, value = (weights[f"blocks.{i}.attn.{which}_bias"] for which in "qv")
        weights[f"blocks.{i}.attn.qkv.bias"] = np.concatenate([query, np.zeros_like(query), value])
    network = tower(registers=4, layer_scale=1.0, activation="swiglu", **ROTARY)
    params = params_of(weights, originals.TIMM_DINOV3, **TIMM, registers="reg_token")
    agrees_with_timm(torch, theirs, network, originals.fits(network, params, weights), pixels(size))


V2 = {"patch": 14, "image_size": 518}
V3 = {"patch": 16, "image_size": 256, "registers": 4, "rotary_base": 100}
GIANT = {"width": 1536, "depth": 40, "heads": 24, "mlp": 4096, "activation": "swiglu"}
SEVEN = {"width": 4096, "depth": 40, "heads": 32, "mlp": 8192, "activation": "swiglu"}
PUBLIC = {
    "vit_small_patch14_dinov2": (V2, "S", {}),
    "vit_base_patch14_reg4_dinov2": (V2 | {"registers": 4}, "B", {}),
    "vit_large_patch14_dinov2": (V2, "L", {}),
    "vit_giant_patch14_dinov2": (V2, "g", GIANT),
    "vit_small_patch16_dinov3_qkvb": (V3, "S", {}),
    "vit_small_plus_patch16_dinov3_qkvb": (V3, "S", {"activation": "swiglu"}),
    "vit_base_patch16_dinov3_qkvb": (V3, "B", {}),
    "vit_large_patch16_dinov3_qkvb": (V3, "L", {}),
    "vit_huge_plus_patch16_dinov3_qkvb": (V3, "H", {"heads": 20, "activation": "swiglu"}),
    "vit_7b_patch16_dinov3": (V3, "g", SEVEN),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_dino_has_as_many_parameters_as_our_options_make(timm, torch, name):
    options, size, blocks = PUBLIC[name]
    network = encoders.image_tower(
        vit.ViTConfig(encoders.block_config(size, layer_scale=1e-5, **blocks), embed_dim=0, **options)
    )
    with torch.device("meta"):
        theirs = {n: tuple(p.shape) for n, p in timm.create_model(name, num_classes=0).named_parameters()}
    stack = network.config.blocks
    biases = 3 if "blocks.0.attn.qkv.bias" in theirs else 2 * ("blocks.0.attn.q_bias" in theirs)
    zeros = (3 - biases) * stack.depth * stack.width  # where theirs has no bias
    row = stack.width * (theirs.get("pos_embed") == (1, network.config.grid**2 + 1, stack.width))  # of the class token
    ours = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(network.shapes))
    assert ours - zeros == sum(map(np.prod, theirs.values())) - row
