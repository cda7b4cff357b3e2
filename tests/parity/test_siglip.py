"""Our towers with SigLIP's options compute what transformers' SigLIP computes."""

import jax
import numpy as np
import originals
import pytest

from agriclip_jax import encoders
from agriclip_jax.encoders import text, vit

pytestmark = pytest.mark.parity

DEPTH, PATCHES, END = 2, 16, 1
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
VISION = SIZES | {"image_size": 32, "patch_size": 8}
TEXT = SIZES | {"vocab_size": 99, "max_position_embeddings": 12, "projection_size": 24}
TEXT |= {"bos_token_id": 97, "eos_token_id": END, "pad_token_id": END}

BLOCKS = encoders.block_config("Ti", width=48, depth=DEPTH, heads=4, mlp=96, activation="gelu_tanh", norm_eps=1e-6)
HALF = (0.5, 0.5, 0.5)
IMAGE = encoders.image_tower(vit.ViTConfig(BLOCKS, 8, 32, embed_dim=0, pool="attention", mean=HALF, std=HALF))
WORDS = encoders.text_tower(
    text.TextConfig(BLOCKS, 99, 12, END, embed_dim=24, causal=False, pool="last", projection_bias=True)
)


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers")


def attention_pool(weights):
    query, *key_value = np.split(weights["head.attention.in_proj_weight"], 3)
    query_bias, *key_value_bias = np.split(weights["head.attention.in_proj_bias"], 3)
    return {
        "probe": weights["head.probe"][0],
        "query": {"kernel": query.T, "bias": query_bias},
        "key_value": {"kernel": np.concatenate(key_value).T, "bias": np.concatenate(key_value_bias)},
        "out": originals.dense(weights, ["head.attention.out_proj"]),
        "norm": originals.norm(weights, "head.layernorm"),
        "mlp": {"up": originals.dense(weights, ["head.mlp.fc1"]), "down": originals.dense(weights, ["head.mlp.fc2"])},
    }


def image_params(weights):
    return {
        "patch": originals.patch(weights, "embeddings.patch_embedding"),
        "positions": weights["embeddings.position_embedding.weight"],
        "blocks": originals.blocks(weights, "encoder.layers", DEPTH, originals.CLIP),
        "norm": originals.norm(weights, "post_layernorm"),
        "head": attention_pool(weights),
    }


def text_params(weights):
    return {
        "tokens": weights["embeddings.token_embedding.weight"],
        "positions": weights["embeddings.position_embedding.weight"],
        "blocks": originals.blocks(weights, "encoder.layers", DEPTH, originals.CLIP),
        "norm": originals.norm(weights, "final_layer_norm"),
        "projection": originals.dense(weights, ["head"]),
    }


def test_the_image_tower_and_where_its_pooling_head_looks(transformers, torch, images):
    theirs = originals.made(transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**VISION))
    weights = originals.Weights(theirs.state_dict())
    params = originals.fits(IMAGE, image_params(weights), weights)
    with torch.no_grad():
        wanted = theirs(originals.pixels(images, IMAGE.config))
        probe = theirs.head.probe.repeat(len(images), 1, 1)
        patches = wanted.last_hidden_state
        _, looks = theirs.head.attention(probe, patches, patches, average_attn_weights=False)
    ours = jax.jit(IMAGE)(params, images)
    originals.agree(ours.pooled, wanted.pooler_output)
    originals.agree(ours.patches, patches)
    attention = IMAGE(params, images, method="attention")
    originals.agree(PATCHES * attention, PATCHES * looks.reshape(3, 4, 4, 4))


def test_the_text_tower_sees_its_padding_and_pools_at_the_last_position(transformers, torch):
    theirs = originals.made(transformers.SiglipTextModel, transformers.SiglipTextConfig(**TEXT))
    weights = originals.Weights(theirs.state_dict())
    params = originals.fits(WORDS, text_params(weights), weights)
    tokens = np.random.default_rng(1).integers(2, 97, (3, 12))
    tokens[0, 4:] = tokens[1, 9:] = END
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens))
        embedded = torch.nn.functional.normalize(wanted.pooler_output)
    ours = jax.jit(WORDS)(params, tokens)
    originals.agree(ours, wanted.last_hidden_state[:, -1])
    originals.agree(WORDS(params, ours, method="embed"), embedded, least_spread=0.1)
