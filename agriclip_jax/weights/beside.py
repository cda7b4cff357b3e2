"""What the files beside weights say of them: transformers', open_clip's and timm's configurations and preprocessing."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agriclip_jax.data.views import FILTERS
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_optional
from agriclip_jax.weights.hub import WEIGHTS

MOST_BYTES = 16 << 20  # of a configuration file

# How photos are prepared where no file says it, by how names of families begin; CLIP's way is `EvalView`'s own.
PREPARATIONS: tuple[tuple[tuple[str, ...], dict[str, Any]], ...] = (
    (("siglip",), {"resize": "squash"}),
    (("dinov3",), {"resize": "squash", "filter": "bilinear"}),
    (("dino", "resnet"), {"crop_share": 224 / 256}),
)
NUMBERS = {filter.value: name for name, filter in FILTERS.items()}  # Pillow's, which transformers writes


def folder_of(path: Path) -> Path | None:
    """The folder whose files belong to weights: a folder itself, or that of a file named as such folders' are."""
    if path.is_dir():
        return path
    return path.parent if path.name in WEIGHTS else None


def settings(path: Path, family: str) -> Mapping[str, Any]:
    """What a configuration says of a model; empty where there is none.

    Args:
      path: of the weights.
      family: their naming, for a folder may hold two programs' configurations.

    Raises:
      UserError: it is damaged.
    """
    if "(transformers)" not in family and (said := _record(path, "open_clip_config.json")):
        return {"quick_gelu": False, **said["model_cfg"]}
    return _record(path, "config.json")


def colours(path: Path) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of pixels in [0, 1]; empty where no file says them.

    Raises:
      UserError: they are none.
    """
    processor = _processor(path)
    if processor.get("do_normalize") is False:
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    for found in ({name: processor.get(f"image_{name}") for name in ("mean", "std")}, *_others(path)):
        if found.get("mean") and found.get("std"):
            mean, std = (tuple(float(x) for x in found[name]) for name in ("mean", "std"))
            if not (len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std)) and min(std) > 0):
                raise UserError(f"its preprocessing subtracts {mean} and divides by {std}; that is of no three colours")
            return {"mean": mean, "std": std}
    return {}


def preparation(path: Path, family: str) -> dict[str, Any]:
    """How photos are made squares: "resize", "crop_share" and "filter", as `data.views.EvalView` has them.

    Args:
      path: of the weights.
      family: which tells it where no file does.
    """
    default = next((said for begins, said in PREPARATIONS if family.startswith(begins)), {})
    found = {"resize": "crop", "crop_share": 1.0, "filter": "bicubic"} | default
    open_clip, timm = _others(path)
    if processor := _processor(path):
        size, crop = processor.get("size"), processor.get("crop_size")
        if isinstance(size, int):  # as it was written before sizes had names
            size = {"shortest_edge": size} if processor.get("do_center_crop") else {"height": size}
        size = size or {}
        short, crop = size.get("shortest_edge"), crop.get("height") if isinstance(crop, dict) else crop
        if "height" in size:
            found |= {"resize": "squash", "crop_share": 1.0}
        elif short:
            found |= {"resize": "crop", "crop_share": min(1.0, (crop or short) / short)}
        found["filter"] = NUMBERS.get(processor.get("resample"), found["filter"])
    elif open_clip:
        found["resize"] = "squash" if open_clip.get("resize_mode") == "squash" else "crop"
        found |= {"crop_share": 1.0, "filter": _filter(open_clip, found["filter"])}
    elif timm:
        found["resize"] = "squash" if timm.get("crop_mode") == "squash" else "crop"
        found |= {"crop_share": float(timm.get("crop_pct") or 1.0), "filter": _filter(timm, found["filter"])}
    return found


def _filter(said: Mapping[str, Any], default: str) -> str:
    name = said.get("interpolation")
    return name if name in FILTERS else default


def _processor(path: Path) -> Mapping[str, Any]:
    """Of transformers."""
    return (
        _record(path, "preprocessor_config.json") or _record(path, "processor_config.json").get("image_processor") or {}
    )


def _others(path: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Of open_clip and of timm."""
    return (
        _record(path, "open_clip_config.json").get("preprocess_cfg") or {},
        _record(path, "config.json").get("pretrained_cfg") or {},
    )


def _record(path: Path, name: str) -> Mapping[str, Any]:
    """A JSON file beside weights; empty where there is none."""
    folder = folder_of(path)
    return read_optional(folder / name, MOST_BYTES) if folder else {}
