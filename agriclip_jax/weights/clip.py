"""CLIP as transformers names it (arXiv 2103.00020), and its towers' configurations whatever their names."""

import dataclasses

from agriclip_jax.encoders import text, vit
from agriclip_jax.encoders.layers import BlockConfig
from agriclip_jax.weights.family import (
    Family,
    Settings,
    Shapes,
    Tower,
    said_in_transformers,
    square,
    stack,
    transformers_blocks,
)
from agriclip_jax.weights.names import Row, dense, norm, patch

IN_TRANSFORMERS = {
    "image": (
        *patch("vision_model.embeddings.patch_embedding"),
        Row(
            ("cls", "positions"),
            ("vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"),
            "class_and_positions",
        ),
        *norm("norm_pre", "vision_model.pre_layrnorm"),
        *transformers_blocks("vision_model"),
        *norm("norm", "vision_model.post_layernorm"),
        *dense("projection", "visual_projection", bias=False),
    ),
    "text": (
        Row(("tokens",), ("text_model.embeddings.token_embedding.weight",)),
        Row(("positions",), ("text_model.embeddings.position_embedding.weight",)),
        *transformers_blocks("text_model"),
        *norm("norm", "text_model.final_layer_norm"),
        *dense("projection", "text_projection", bias=False),
    ),
}


def image_tower(
    blocks: BlockConfig, patches: tuple[int, ...], places: int, embed_dim: int, antialias: bool = True
) -> vit.ViTConfig:
    """CLIP's image tower: of patches [width, 3, side, side] and of so many places, its class token's among them."""
    side = patches[-1]
    size = side * square(places - 1)
    return vit.ViTConfig(blocks, side, size, embed_dim, pre_norm=True, patch_bias=False, antialias=antialias)


def text_tower(blocks: BlockConfig, tokens: tuple[int, ...], length: int, embed_dim: int) -> text.TextConfig:
    """CLIP's text tower: of the embedding of its vocabulary [tokens, width] and of so many places."""
    return text.TextConfig(blocks, tokens[0], length, end_id=tokens[0] - 1, embed_dim=embed_dim)


def _in_transformers(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
    embed_dim, _ = shapes["visual_projection.weight"]
    image, words = (
        stack(
            shapes, rows, **said_in_transformers(settings.get(part, {}), heads if settings else 0, "quick_gelu", 1e-5)
        )
        for rows, part, heads in zip(IN_TRANSFORMERS.values(), ("vision_config", "text_config"), (12, 8), strict=True)
    )
    patches = shapes["vision_model.embeddings.patch_embedding.weight"]
    places, _ = shapes["vision_model.embeddings.position_embedding.weight"]
    tokens = shapes["text_model.embeddings.token_embedding.weight"]
    length, _ = shapes["text_model.embeddings.position_embedding.weight"]
    tower = text_tower(words, tokens, length, embed_dim)
    said = settings.get("text_config", {}).get("eos_token_id", 2)
    if said != 2:  # what older configurations say of CLIP's own vocabulary, whose end is its greatest id
        tower = dataclasses.replace(tower, end_id=said)
    return {"image": image_tower(image, patches, places, embed_dim, antialias=False), "text": tower}


FAMILIES = {
    "clip (transformers)": Family(
        ("vision_model.pre_layrnorm.weight", "visual_projection.weight"),
        IN_TRANSFORMERS,
        (Row(("logit_scale",), ("logit_scale",)),),
        r".*position_ids",
        _in_transformers,
    )
}
