"""Our towers with CLIP's options compute what transformers' CLIP computes, loss and every gradient included."""

import jax
import jax.numpy as jnp
import numpy as np
import originals
import pytest

from agriclip_jax import encoders
from agriclip_jax.encoders import text, vit
from agriclip_jax.losses import contrastive

pytestmark = pytest.mark.parity

DEPTH, END = 2, 98
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": DEPTH, "num_attention_heads": 4}
VISION = SIZES | {"image_size": 32, "patch_size": 8, "projection_dim": 24}
TEXT = SIZES | {"vocab_size": 99, "max_position_embeddings": 12, "projection_dim": 24, "bos_token_id": 97}

BLOCKS = encoders.block_config("Ti", width=48, depth=DEPTH, heads=4, mlp=96, activation="quick_gelu", norm_eps=1e-5)
IMAGE = encoders.image_tower(vit.ViTConfig(BLOCKS, 8, 32, embed_dim=24, pool="cls", pre_norm=True, patch_bias=False))
WORDS = encoders.text_tower(text.TextConfig(BLOCKS, 99, 12, END, embed_dim=24))


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tokens():
    """int32 [3, 12]: captions of three lengths, padded with the end token as CLIP's are; one fills its row."""
    tokens = np.random.default_rng(1).integers(1, 97, (3, 12))
    for row, end in zip(tokens, (4, 8, 11), strict=True):
        row[end:] = END
    return tokens


def image_params(weights):
    return {
        "patch": originals.patch(weights, "vision_model.embeddings.patch_embedding"),
        **originals.class_and_positions(
            weights, "vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"
        ),
        "norm_pre": originals.norm(weights, "vision_model.pre_layrnorm"),
        "blocks": originals.blocks(weights, "vision_model.encoder.layers", DEPTH, originals.CLIP),
        "norm": originals.norm(weights, "vision_model.post_layernorm"),
        "projection": originals.dense(weights, ["visual_projection"]),
    }


def text_params(weights):
    return {
        "tokens": weights["text_model.embeddings.token_embedding.weight"],
        "positions": weights["text_model.embeddings.position_embedding.weight"],
        "blocks": originals.blocks(weights, "text_model.encoder.layers", DEPTH, originals.CLIP),
        "norm": originals.norm(weights, "text_model.final_layer_norm"),
        "projection": originals.dense(weights, ["text_projection"]),
    }


def test_the_image_tower(transformers, torch, images):
    theirs = originals.made(transformers.CLIPVisionModelWithProjection, transformers.CLIPVisionConfig(**VISION))
    weights = originals.Weights(theirs.state_dict())
    params = originals.fits(IMAGE, image_params(weights), weights)
    with torch.no_grad():
        tower = theirs.vision_model(originals.pixels(images, IMAGE.config))
        patches = theirs.vision_model.post_layernorm(tower.last_hidden_state)[:, 1:]
        embedded = torch.nn.functional.normalize(theirs(originals.pixels(images, IMAGE.config)).image_embeds)
    ours = jax.jit(IMAGE)(params, images)
    originals.agree(ours.pooled, tower.pooler_output)
    originals.agree(ours.patches, patches)
    originals.agree(IMAGE(params, ours.pooled, method="embed"), embedded, least_spread=0.1)


@pytest.mark.parametrize("eos_token_id", [END, 2])  # 2: configurations older than 2023, which pool at the greatest id
def test_the_text_tower(transformers, torch, tokens, eos_token_id):
    config = transformers.CLIPTextConfig(**TEXT, eos_token_id=eos_token_id)
    theirs = originals.made(transformers.CLIPTextModelWithProjection, config)
    weights = originals.Weights(theirs.state_dict())
    params = originals.fits(WORDS, text_params(weights), weights)
    with torch.no_grad():
        pooled = theirs.text_model(torch.tensor(tokens)).pooler_output
        embedded = torch.nn.functional.normalize(theirs(torch.tensor(tokens)).text_embeds)
    ours = jax.jit(WORDS)(params, tokens)
    originals.agree(ours, pooled)
    originals.agree(WORDS(params, ours, method="embed"), embedded, least_spread=0.1)


def test_what_follows_the_end_token_changes_nothing(transformers, torch, tokens):
    config = transformers.CLIPTextConfig(**TEXT, eos_token_id=END)
    theirs = originals.made(transformers.CLIPTextModelWithProjection, config)
    params = text_params(originals.Weights(theirs.state_dict()))
    other = tokens.copy()
    other[0, 5:] = 0  # padded with 0, as open_clip does
    originals.agree(WORDS(params, other), theirs.text_model(torch.tensor(tokens)).pooler_output)


def test_the_two_towers_cosines_loss_and_the_gradient_of_every_parameter(transformers, torch, images, tokens):
    config = transformers.CLIPConfig(
        vision_config=VISION, text_config=TEXT | {"eos_token_id": END}, projection_dim=24, logit_scale_init_value=2.0
    )
    theirs = originals.made(transformers.CLIPModel, config)
    output = theirs(torch.tensor(tokens), originals.pixels(images, IMAGE.config), return_loss=True)
    output.loss.backward()

    def tree(tensors):
        weights = originals.Weights(tensors)
        image, words = image_params(weights), text_params(weights)
        return {"image": image, "text": words, "logit_scale": weights["logit_scale"]}

    def loss(params):
        z = IMAGE(params["image"], IMAGE(params["image"], images).pooled, method="embed")
        t = WORDS(params["text"], WORDS(params["text"], tokens), method="embed")
        scale = jnp.exp(params["logit_scale"])
        return contrastive.info_nce(z, t, scale, jnp.eye(len(images), dtype=bool)), scale * z @ t.T

    gradients = {name: parameter.grad.clone() for name, parameter in theirs.named_parameters()}
    gradients["vision_model.embeddings.position_embedding.weight"][0] = 0  # of the sum: once, not of each summand
    (value, logits), ours = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree(theirs.state_dict()))
    originals.agree(logits, output.logits_per_image)
    np.testing.assert_allclose(value, output.loss.item(), rtol=0, atol=originals.TOLERANCE)
    wanted = tree(gradients)
    for (path, got), want in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(wanted), strict=True):
        size = np.abs(want).max()
        assert size > 1e-3, path
        np.testing.assert_allclose(got / size, want / size, rtol=0, atol=originals.TOLERANCE, err_msg=str(path))
