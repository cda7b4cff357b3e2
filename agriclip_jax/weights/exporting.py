"""A trained model as folders that transformers, open_clip and this package load.

A writer takes the model, an empty folder, and a function that tells the user a line; it leaves the weights, what tells
their towers, the preprocessing and the tokenizer, and a README.md that says how they are loaded. What a format cannot
hold is refused by the part's name, with the format that can.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agriclip_jax import peft, rules
from agriclip_jax.data.views import FILTERS, EvalView
from agriclip_jax.encoders import resnet, vit
from agriclip_jax.errors import UserError
from agriclip_jax.files import write_json
from agriclip_jax.weights import names, open_clip, own, timm_names
from agriclip_jax.weights.families import FAMILIES, Tower
from agriclip_jax.weights.family import ACTIVATIONS
from agriclip_jax.weights.names import Row

Say = Callable[[str], None]

IN_TRANSFORMERS = {ours: theirs for theirs, ours in ACTIVATIONS.items()}


class Parts(NamedTuple):
    """A model on its way out.

    Attributes:
      image, text: configurations of the towers.
      params: "image" and "text", each float32 arrays by path.
      scale: `logit_scale`, and `logit_bias` where it has one; float32 [].
    """

    image: Tower
    text: Tower
    params: dict[str, dict[str, np.ndarray]]
    scale: dict[str, np.ndarray]

    @classmethod
    def of(cls, model: Any) -> "Parts":
        """Those of an `inference.Model`, on the host; without the mask token, which only training needs."""
        params = {
            tower: {path: np.asarray(leaf) for path, leaf in rules.flatten(model.params[tower]).items()}
            for tower in ("image", "text")
        }
        scale = {name: np.asarray(model.params[name]) for name in ("logit_scale", "logit_bias") if name in model.params}
        image = model.towers["image"].config
        if params["image"].pop("mask", None) is not None:
            image = dataclasses.replace(image, mask_token=False)
        return cls(image, model.towers["text"].config, params, scale)

    def arrays(self, image: Iterable[Row], text: Iterable[Row], scale: Iterable[Row]) -> Iterator:
        """Their names and arrays by tables of rows, one layer in memory at a time."""
        tables = ((image, self.params["image"]), (text, self.params["text"]), (scale, self.scale))
        return itertools.chain.from_iterable(names.write(rows, params) for rows, params in tables)


def save(path: Path, arrays: Callable[[], Iterable[tuple[str, np.ndarray]]]) -> None:
    """Writes float32 arrays as safetensors, one in memory at a time whatever their memory order.

    The safetensors library wants all of them at once, which doubles a model of transposed matrices, and its 0.8.0
    writes the memory of an array that is not contiguous as if it were.

    Args:
      path: of the file.
      arrays: gives names and arrays, the same each of the two times it is called.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # which transformers asks for
    stop = 0
    for name, array in arrays():
        start, stop = stop, stop + 4 * array.size
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that arrays begin at a multiple of their size
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, array in arrays():
            file.write(np.ascontiguousarray(array, "<f4").data)


# ---- safetensors -----------------------------------------------------------------------------------------------------


def write_safetensors(model: Any, out: Path, say: Say) -> None:
    """Writes a model under its own names, which this package reads back bit for bit.

    Raises:
      UserError: a method of `config.peft` added to its towers.
    """
    parts, family = Parts.of(model), FAMILIES["agriclip_jax"]
    _refuse_added(parts)
    save(
        out / "model.safetensors",
        lambda: parts.arrays(family.towers["image"], family.towers["text"], family.scale),
    )
    write_json(out / "config.json", own.describe({"image": parts.image, "text": parts.text}))
    write_json(out / "preprocessor_config.json", _preprocessing(model.view, parts.image, "CLIP"))
    model.tokenizer.save(out / "tokenizer.json")
    size, is_resnet = parts.image.image_size, isinstance(parts.image, resnet.ResNetConfig)
    cell = resnet.STRIDE if is_resnet else parts.image.patch
    _write_loading(
        out,
        f"""Both towers, or one of them, start a run of agriclip_jax, at these images and smaller views or at others:

```bash
python -m agriclip_jax.main --config=configs/alive.py --config.init.model=PATH/TO/THIS/FOLDER \\
  --config.image_size={size} --config.views.local.size={cell * max(1, round(0.4 * size / cell))}
```

In any program, the arrays lie under the paths of agriclip_jax's parameter tree, and `config.json` has the towers:

```python
from safetensors.numpy import load_file

arrays = load_file("PATH/TO/THIS/FOLDER/model.safetensors")
```""",
    )


# ---- transformers ----------------------------------------------------------------------------------------------------


def write_hf(model: Any, out: Path, say: Say) -> None:
    """Writes a folder that transformers loads as CLIPModel, or as SiglipModel where the image tower pools by attention.

    Raises:
      UserError: a part of the model has no place there.
    """
    parts = Parts.of(model)
    _refuse("hf", parts)
    is_siglip = parts.image.pool == "attention"
    kind, stem = ("Siglip", "siglip") if is_siglip else ("CLIP", "clip")
    image, text = parts.params["image"], parts.params["text"]
    width, embed_dim = parts.image.blocks.width, parts.text.embed_dim
    if is_siglip:
        image.setdefault("patch/bias", np.zeros(width, np.float32))
        text.setdefault("projection/bias", np.zeros(embed_dim, np.float32))
        parts.scale.setdefault("logit_bias", np.zeros((), np.float32))
    else:
        _fold_patch_bias(image)
    family = FAMILIES[f"{stem} (transformers)"]
    save(
        out / "model.safetensors",
        lambda: parts.arrays(family.towers["image"], family.towers["text"], family.scale),
    )
    words = _stack(parts.text) | {
        "vocab_size": parts.text.vocab_size,
        "max_position_embeddings": parts.text.context_length,
        "bos_token_id": model.tokenizer.start_id,
        "eos_token_id": parts.text.end_id,  # where CLIPTextModel pools
        "pad_token_id": model.tokenizer.pad_id,
    }
    words |= {"projection_size": embed_dim} if is_siglip else {"projection_dim": embed_dim}
    vision = _stack(parts.image) | {"patch_size": parts.image.patch, "image_size": parts.image.image_size}
    vision |= {} if is_siglip else {"projection_dim": embed_dim}
    config = {
        "architectures": [f"{kind}Model"],
        "model_type": stem,
        "dtype": "float32",
        "text_config": {"model_type": f"{stem}_text_model", **words},
        "vision_config": {"model_type": f"{stem}_vision_model", **vision},
    }
    write_json(out / "config.json", config | ({} if is_siglip else {"projection_dim": embed_dim}))
    write_json(out / "preprocessor_config.json", _preprocessing(model.view, parts.image, kind))
    _write_tokenizer(model, out, parts.text.context_length)
    say(f"as transformers' {kind}Model")
    padding = 'padding="max_length"' if is_siglip else "padding=True"
    chances = "sigmoid()" if is_siglip else "softmax(dim=-1)"
    _write_loading(
        out,
        f"""```python
from PIL import Image, ImageOps
from transformers import {kind}Model, {kind}Processor

model = {kind}Model.from_pretrained("PATH/TO/THIS/FOLDER")
processor = {kind}Processor.from_pretrained("PATH/TO/THIS/FOLDER")
texts = ["a photo of a healthy leaf.", "a photo of a leaf with rust."]
photo = ImageOps.exif_transpose(Image.open("photo.jpg"))
inputs = processor(text=texts, images=photo, return_tensors="pt", {padding}, truncation=True)
chances = model(**inputs).logits_per_image.{chances}
```

Training resized by Pillow: `from_pretrained(..., backend="pil")` does too, torchvision's pixels are up to 1/255 apart.
Where an odd number of pixels is left beside the centre square, transformers may cut it out one pixel further left.""",
    )


def _preprocessing(view: EvalView, image: Tower, kind: str) -> dict[str, Any]:
    """What transformers' image processors, of "CLIP" or "Siglip", are told of how a photo is prepared."""
    square, is_cut = {"height": view.size, "width": view.size}, view.resize == "crop"
    return {
        "image_processor_type": f"{kind}ImageProcessor",
        "processor_class": f"{kind}Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": view.short} if is_cut else square,
        "resample": FILTERS[view.filter].value,
        "do_center_crop": is_cut,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": image.mean,
        "image_std": image.std,
    }


def _stack(tower: Tower) -> dict[str, Any]:
    blocks = tower.blocks
    return {
        "hidden_size": blocks.width,
        "intermediate_size": blocks.mlp,
        "num_hidden_layers": blocks.depth,
        "num_attention_heads": blocks.heads,
        "hidden_act": IN_TRANSFORMERS[blocks.activation],
        "layer_norm_eps": blocks.norm_eps,
    }


def _not_in_transformers(parts: Parts) -> list[str]:
    """The parts of a model that neither CLIPModel nor SiglipModel has."""
    image, text = parts.image, parts.text
    if isinstance(image, resnet.ResNetConfig):
        return ["a ResNet"]
    is_siglip = image.pool == "attention"
    return _named(
        {
            f"{image.pool} pooling": image.pool in ("mean", "cls_mean"),
            "a head of blocks": image.head_blocks,
            "registers": image.registers,
            "rotary positions": image.rotary_base,
            "LayerScale": image.blocks.layer_scale or text.blocks.layer_scale,
            "a gated MLP": "swiglu" in (image.blocks.activation, text.blocks.activation),
            "a bias of the image projection": image.embed_dim and image.projection_bias,
            "an image tower without projection": not is_siglip and not image.embed_dim,
            "an image projection after attention pooling": is_siglip and image.embed_dim,
            "an image tower without a layer norm before its blocks": not is_siglip and not image.pre_norm,
            "a layer norm before the blocks of a tower with attention pooling": is_siglip and image.pre_norm,
            "a bias of the text projection": not is_siglip and text.projection_bias,
            f"a text tower pooled by {text.pool!r}": text.pool != ("last" if is_siglip else "end"),
            "a causal text tower beside attention pooling": is_siglip and text.causal,
            "a text tower that is not causal": not is_siglip and not text.causal,
            "an end of texts with id 2": not is_siglip and text.end_id == 2,  # for which CLIPTextModel takes another
            "a bias of the logits": not is_siglip and "logit_bias" in parts.scale,
        }
    )


# ---- open_clip -------------------------------------------------------------------------------------------------------


def write_open_clip(model: Any, out: Path, say: Say) -> None:
    """Writes a folder that open_clip loads by "local-dir:": its own towers, or a projected image tower of timm.

    Raises:
      UserError: a part of the model has no place there.
    """
    parts = Parts.of(model)
    _refuse("open_clip", parts)
    image, text, view = parts.image, parts.text, model.view
    rows, vision = _image_in_open_clip(image, parts.params["image"])
    trunk = vision.get("timm_model_name", "")
    words = _settings(text) | {
        "context_length": text.context_length,
        "vocab_size": text.vocab_size,
        "hf_tokenizer_name": "this folder",  # open_clip takes any name for it when it loads from a folder
        "heads": text.blocks.heads,
        "no_causal_mask": not text.causal,
        "pool_type": {"end": "eos"}.get(text.pool, text.pool),
        "eos_id": text.end_id,
        "pad_id": model.tokenizer.pad_id,
        "proj_bias": text.projection_bias,
    }
    settings = {
        "embed_dim": text.embed_dim,
        "vision_cfg": {"image_size": image.image_size, **vision},
        "text_cfg": words,
        "quick_gelu": text.blocks.activation == "quick_gelu",
        "custom_text": bool(trunk),
    }
    if "logit_bias" in parts.scale:
        settings["init_logit_bias"] = float(parts.scale["logit_bias"])
    preprocessing = {
        "size": view.size,
        "mode": "RGB",
        "mean": image.mean,
        "std": image.std,
        "interpolation": view.filter,
        "resize_mode": "squash" if view.resize == "squash" else "shortest",
        "fill_color": 0,
    }
    of_text = FAMILIES[f"{'siglip ' * text.projection_bias}text (open_clip)"]
    text_rows = names.within("text." if trunk else "", of_text.towers["text"])
    save(out / "open_clip_model.safetensors", lambda: parts.arrays(rows, text_rows, of_text.scale))
    write_json(out / "open_clip_config.json", {"model_cfg": settings, "preprocess_cfg": preprocessing})
    # open_clip has no word for the share that is cut out; this file is for those who read the folder otherwise.
    write_json(out / "preprocessor_config.json", _preprocessing(view, image, "CLIP"))
    _write_tokenizer(model, out, text.context_length)
    say(f"its image tower as timm's {trunk}" if trunk else "as open_clip's own towers")
    larger = f"""
from torchvision.transforms import InterpolationMode, Resize

# Shrunk to more than it needs, of which the centre is cut out: no setting of open_clip's says so.
preprocess.transforms[0] = Resize({view.short}, InterpolationMode.{view.filter.upper()})
"""
    _write_loading(
        out,
        f"""```python
import open_clip
import torch
from PIL import Image, ImageOps

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH/TO/THIS/FOLDER")
tokenizer = open_clip.get_tokenizer("local-dir:PATH/TO/THIS/FOLDER")
model.eval()
{larger * (view.share != 1)}
photo = ImageOps.exif_transpose(Image.open("photo.jpg"))
with torch.no_grad():
    images = model.encode_image(preprocess(photo).unsqueeze(0), normalize=True)
    texts = model.encode_text(tokenizer(["a photo of a healthy leaf.", "a photo of a leaf with rust."]), normalize=True)
    chances = (model.logit_scale.exp() * images @ texts.T).softmax(dim=-1)
```

Transparent photos were put on white in training; neither program does that.

To load it from the Hugging Face hub as `hf-hub:OWNER/NAME`, write `OWNER/NAME` as `hf_tokenizer_name` into
`open_clip_config.json`.""",
    )
    if view.share != 1:
        say("open_clip has no setting for the part of a photo that is cut out; README.md says how it is done")


def _image_in_open_clip(image: Tower, params: dict[str, np.ndarray]) -> tuple[Iterable[Row], dict[str, Any]]:
    """The name map of an image tower and its CLIPVisionCfg; the parameters are changed to what these hold."""
    if not _not_native(image):
        if isinstance(image, resnet.ResNetConfig):
            params.setdefault("projection/bias", np.zeros(image.embed_dim, np.float32))
            sizes = {"layers": image.layers, "width": image.width, "head_width": 32 * image.width // image.heads}
            return FAMILIES["clip resnet (openai, open_clip)"].towers["image"], sizes
        _fold_patch_bias(params)
        sizes = {"head_width": image.blocks.width // image.blocks.heads, "patch_size": image.patch}
        rows = FAMILIES["clip (openai, open_clip)"].towers["image"]
        return rows, _settings(image) | sizes | {"no_ln_pre": not image.pre_norm}
    if isinstance(image, vit.ViTConfig):
        params.setdefault("patch/bias", np.zeros(image.blocks.width, np.float32))
    head = names.dense("projection", "visual.head.proj") if image.embed_dim else []
    return [*names.within("visual.trunk.", timm_names.rows(image)), *head], {
        "timm_model_name": timm_names.find(image),
        "timm_model_pretrained": False,
        "timm_pool": open_clip.TRUNK_POOLS[image.pool],
        "timm_proj": "linear" if head else "none",
        "timm_proj_bias": bool(head and image.projection_bias),
    }


def _settings(tower: Tower) -> dict[str, Any]:
    """What CLIPVisionCfg and CLIPTextCfg alike say of a stack."""
    blocks = tower.blocks
    ratio = blocks.mlp / blocks.width
    said: dict[str, Any] = {
        "width": blocks.width,
        "layers": blocks.depth,
        # open_clip rounds the product down.
        "mlp_ratio": ratio if int(ratio * blocks.width) == blocks.mlp else (blocks.mlp + 0.5) / blocks.width,
        "norm_kwargs": {"eps": blocks.norm_eps},
    }
    if blocks.activation == "gelu_tanh":
        said["act_kwargs"] = {"approximate": "tanh"}
    if blocks.layer_scale:
        said["ls_init_value"] = blocks.layer_scale
    return said


def _not_in_open_clip(parts: Parts) -> list[str]:
    """The parts of a model that open_clip has neither itself nor from timm."""
    image, text = parts.image, parts.text
    faults = _not_native(image)
    if faults and timm_names.find(image):
        faults = []
    elif faults and isinstance(image, vit.ViTConfig):
        faults.append(f"an image tower of {timm_names.size(image)}, for which timm has no name")
    # One setting tells it of both towers, but not of a ResNet or one of timm's.
    told = (image, text) if isinstance(image, vit.ViTConfig) and not _not_native(image) else (text,)
    activations = {tower.blocks.activation for tower in told}
    return faults + _named(
        {
            "a gated MLP of the text tower": text.blocks.activation == "swiglu",
            "quick_gelu in one tower alone": "quick_gelu" in activations and len(activations) > 1,
            f"a text tower pooled by {text.pool!r} that is not causal": not text.causal and text.pool != "last",
            "a text tower pooled by 'mean'": text.causal and text.pool == "mean",
        }
    )


def _not_native(image: Tower) -> list[str]:
    """The parts of an image tower that open_clip's own have not."""
    if isinstance(image, resnet.ResNetConfig):
        is_clip = image.stem == "clip" and image.pool == "attention" and image.embed_dim
        return [] if is_clip else [f"a ResNet with a {image.stem!r} stem and {image.pool} pooling"]
    return _named(
        {
            f"{image.pool} pooling": image.pool != "cls",
            "a head of blocks": image.head_blocks,
            "registers": image.registers,
            "rotary positions": image.rotary_base,
            "a gated MLP": image.blocks.activation == "swiglu",
            "an image tower without projection": not image.embed_dim,
            "a bias of the image projection": image.embed_dim and image.projection_bias,
        }
    )


# ---- both ------------------------------------------------------------------------------------------------------------

_FAULTS = {"hf": _not_in_transformers, "open_clip": _not_in_open_clip}


def _refuse_added(parts: Parts) -> None:
    """Raises UserError when towers hold what a method of `config.peft` added, for which no names are known."""
    paths = (f"{tower}/{path}" for tower, params in parts.params.items() for path in params)
    if added := [path for path in paths if peft.is_added(path)]:
        raise UserError(
            f"a file of weights has no place for {len(added)} parameters that config.peft added to the blocks, first "
            f"{added[0]}; --format=stablehlo and --format=onnx have"
        )


def _refuse(target: str, parts: Parts) -> None:
    """Raises UserError when a format cannot hold the model, and names one that can."""
    _refuse_added(parts)
    if faults := _FAULTS[target](parts):
        others = [other for other, find in _FAULTS.items() if other != target and not find(parts)]
        raise UserError(
            f"--format={target} has no place for {' and '.join(faults)}; --format={(*others, 'safetensors')[0]} has"
        )


def _named(parts: Mapping[str, Any]) -> list[str]:
    return [name for name, is_there in parts.items() if is_there]


def _fold_patch_bias(params: dict[str, np.ndarray]) -> None:
    """Adds the bias of the patches, if there is one, to their places: neither reaches the class token."""
    if "patch/bias" in params:
        params["positions"] = params["positions"] + params.pop("patch/bias")


def _write_tokenizer(model: Any, out: Path, length: int) -> None:
    for name, content in model.tokenizer.transformers_files(length).items():
        (out / name).write_bytes(content)


def _write_loading(out: Path, text: str) -> None:
    (out / "README.md").write_text(text + "\n", encoding="utf-8")
