"""What exports that run without this package share: the towers as plain functions, and the program in their README."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agriclip_jax import rules
from agriclip_jax.encoders import Network, vit
from agriclip_jax.weights.exporting import Parts


class Tower(NamedTuple):
    """A tower on its way out.

    Attributes:
      network: its structure.
      params: float32 arrays by path, on the host.
      row: shape and dtype of one input: uint8 [size, size, 3], or int32 [length].
    """

    network: Network
    params: dict[str, np.ndarray]
    row: jax.ShapeDtypeStruct

    def embed(self, params: dict[str, jax.Array], rows: jax.Array) -> jax.Array:
        """L2-normalised float32 [n, dim] of n inputs, by parameters such as its own."""
        tree = rules.unflatten(params)
        features = self.network(tree, rows)
        pooled = features.pooled if isinstance(features, vit.ImageFeatures) else features
        return self.network(tree, pooled, method="embed")


def towers(model: Any) -> dict[str, Tower]:
    """The towers "image" and "text" of an `inference.Model`."""
    size, length = model.image_size, model.towers["text"].config.context_length
    rows = {
        "image": jax.ShapeDtypeStruct((size, size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((length,), jnp.int32),
    }
    params = Parts.of(model).params
    return {name: Tower(model.towers[name], params[name], row) for name, row in rows.items()}


def program(model: Any, imports: str, embed: str) -> str:
    """A program that tells which of some names fits a photo, as Markdown.

    Args:
      model: an `inference.Model`, whose tokenizer lies beside the towers as tokenizer.json.
      imports: the lines of imports that `embed` needs.
      embed: the lines that define `embed(tower, rows)`: float32 [n, dim] of n rows for the tower "image" or "text".
    """
    tokenizer, length = model.tokenizer, model.towers["text"].config.context_length
    cleaning, cleaned, start = "", "text", ""
    if tokenizer.start_id is not None:  # CLIP's; SigLIP's cleaning is part of tokenizer.json
        cleaning = "import html\n\nimport ftfy\n"
        cleaned = '" ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()'
        start = f"{tokenizer.start_id}, "
    longest = length - 1 - bool(start)
    chances = "np.exp(logits - logits.max(1, keepdims=True))\nchances /= chances.sum(1, keepdims=True)"
    if "logit_bias" in model.params:
        chances = f"1 / (1 + np.exp(-logits - {float(model.params['logit_bias'])}))"
    view = model.view
    size, resampling = view.size, f"Image.Resampling.{view.filter.upper()}"
    square = f"""    return np.array(photo.resize(({size}, {size}), {resampling}))"""
    if view.resize == "crop":
        short = view.short
        square = f"""    photo = photo.resize([{short} * side // min(photo.size) for side in photo.size], {resampling})
    left, top = (round((side - {size}) / 2) for side in photo.size)
    return np.array(photo.crop((left, top, left + {size}, top + {size})))"""
    return f"""```python
{cleaning}import numpy as np
{imports}
from PIL import Image, ImageOps
from tokenizers import Tokenizer

{embed}

def pixels(path):
    photo = ImageOps.exif_transpose(Image.open(path)).convert("RGBA")
    photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo).convert("RGB")
{square}


def tokens(texts):
    tokenizer = Tokenizer.from_file("tokenizer.json")
    tokenizer.no_padding()
    rows = np.full((len(texts), {length}), {tokenizer.pad_id}, np.int32)
    for row, text in zip(rows, texts):
        cleaned = {cleaned}
        ids = [{start}*tokenizer.encode(cleaned, add_special_tokens=False).ids[:{longest}], {tokenizer.end_id}]
        row[: len(ids)] = ids
    return rows


names = ["healthy leaf", "leaf with rust"]
images = embed("image", np.stack([pixels("photo.jpg")]))
texts = embed("text", tokens([f"a photo of a {{name}}" for name in names]))
logits = {model.logit_scale} * images @ texts.T
chances = {chances}
print(dict(zip(names, chances[0].tolist())))
```
"""
