"""SigLIP and SigLIP 2 as transformers names them (arXiv 2303.15343, 2502.14786)."""

from typing import Any

from agriclip_jax.encoders import text, vit
from agriclip_jax.encoders.layers import BlockConfig
from agriclip_jax.weights.family import (
    HALF,
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

_POOL = "vision_model.head."
_POOL_ATTENTION = f"{_POOL}attention.in_proj_"

IMAGE = (
    *patch("vision_model.embeddings.patch_embedding"),
    Row(("positions",), ("vision_model.embeddings.position_embedding.weight",)),
    *transformers_blocks("vision_model"),
    *norm("norm", "vision_model.post_layernorm"),
    Row(("head/probe",), (f"{_POOL}probe",), "batch_of_one"),
    Row(("head/query/kernel", "head/key_value/kernel"), (f"{_POOL_ATTENTION}weight",), "query_and_key_value"),
    Row(("head/query/bias", "head/key_value/bias"), (f"{_POOL_ATTENTION}bias",), "query_and_key_value"),
    *dense("head/out", f"{_POOL}attention.out_proj"),
    *norm("head/norm", f"{_POOL}layernorm"),
    *dense("head/mlp/up", f"{_POOL}mlp.fc1"),
    *dense("head/mlp/down", f"{_POOL}mlp.fc2"),
)
TEXT = (
    Row(("tokens",), ("text_model.embeddings.token_embedding.weight",)),
    Row(("positions",), ("text_model.embeddings.position_embedding.weight",)),
    *transformers_blocks("text_model"),
    *norm("norm", "text_model.final_layer_norm"),
    *dense("projection", "text_model.head"),
)


def image_tower(blocks: BlockConfig, side: int, grid: int, *, embed_dim: int = 0, **options: Any) -> vit.ViTConfig:
    """SigLIP's image tower.

    Args:
      blocks: its stack.
      side: of a patch, pixels.
      grid: patches along one side.
      embed_dim: 0 where its features are its embeddings.
      options: further fields of `ViTConfig`.
    """
    return vit.ViTConfig(blocks, side, side * grid, embed_dim, pool="attention", **HALF | options)


def text_tower(blocks: BlockConfig, tokens: tuple[int, ...], length: int, embed_dim: int) -> text.TextConfig:
    """SigLIP's text tower: of the embedding of its vocabulary [tokens, width] and of so many places."""
    return text.TextConfig(
        blocks, tokens[0], length, end_id=1, embed_dim=embed_dim, causal=False, pool="last", projection_bias=True
    )


def _in_transformers(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
    _, _, _, side = shapes["vision_model.embeddings.patch_embedding.weight"]
    places, _ = shapes["vision_model.embeddings.position_embedding.weight"]
    length, _ = shapes["text_model.embeddings.position_embedding.weight"]
    embed_dim, _ = shapes["text_model.head.weight"]
    image, words = (
        stack(
            shapes,
            rows,
            **said_in_transformers(settings.get(part, {}), 12 if settings else 0, "gelu_pytorch_tanh", 1e-6),
        )
        for rows, part in ((IMAGE, "vision_config"), (TEXT, "text_config"))
    )
    tokens = shapes["text_model.embeddings.token_embedding.weight"]
    return {
        "image": image_tower(image, side, square(places), antialias=False),
        "text": text_tower(words, tokens, length, embed_dim),
    }


FAMILIES = {
    "siglip (transformers)": Family(
        ("vision_model.head.probe", "text_model.head.weight"),
        {"image": IMAGE, "text": TEXT},
        tuple(Row((name,), (name,), "batch_of_one") for name in ("logit_scale", "logit_bias")),
        r".*position_ids",
        _in_transformers,
    )
}
