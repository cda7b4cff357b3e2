"""Photos are prepared for imported towers as their own Pillow pipelines do, within half a grey level."""

import json

import numpy as np
import pytest
from PIL import Image

from agriclip_jax.data.views import EvalView, eval_view
from agriclip_jax.weights import beside

pytestmark = pytest.mark.parity

# Margins beside the centre square are even: of an odd number transformers may leave one more on the left.
SIZES = ((640, 480), (300, 420), (224, 224), (1000, 300))


def photos():
    """Smooth noise, so that a filter or a place that differs shows everywhere."""
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        yield Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def ours(folder, family, size, defaults):
    """What the tower gets, normalised."""
    said = beside.preparation(folder, family)
    colours = defaults | beside.colours(folder)
    view = EvalView(size, said["resize"], said["crop_share"], said["filter"])
    for photo in photos():
        pixels = eval_view(photo, view).astype(np.float32) / 255
        yield (pixels - np.float32(colours["mean"])) / np.float32(colours["std"]), np.float32(colours["std"])


def assert_alike(found, theirs):
    for (pixels, std), wanted in zip(found, theirs, strict=True):
        assert pixels.shape == wanted.shape
        assert np.abs((pixels - wanted) * std).max() <= 0.5 / 255


PROCESSORS = {
    "clip (transformers)": ("CLIPImageProcessor", {}),
    "siglip (transformers)": ("SiglipImageProcessor", {}),
    "dino (transformers)": (
        "ViTImageProcessor",
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    ),
    "dinov2 (transformers)": (
        "BitImageProcessor",
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
    ),
}


@pytest.mark.parametrize("family", PROCESSORS)
def test_as_transformers_does(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    name, settings = PROCESSORS[family]
    processor = getattr(transformers, f"{name}Pil", getattr(transformers, name))(**settings)
    processor.save_pretrained(tmp_path)
    theirs = [processor(photo, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0) for photo in photos()]
    assert_alike(ours(tmp_path, family, 224, {}), theirs)


@pytest.mark.parametrize(
    "mode,filter", [("shortest", "bicubic"), ("shortest", "bilinear"), ("squash", "bicubic"), ("squash", "bilinear")]
)
def test_as_open_clip_does(mode, filter, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    said = {"mean": mean, "std": std, "interpolation": filter, "resize_mode": mode}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": said}))
    transform = open_clip.image_transform(
        224, is_train=False, mean=mean, std=std, interpolation=filter, resize_mode=mode
    )
    theirs = [transform(photo).numpy().transpose(1, 2, 0) for photo in photos()]
    assert_alike(ours(tmp_path, "clip (openai, open_clip)", 224, {}), theirs)


@pytest.mark.parametrize(
    "crop,share,filter", [("center", 0.9, "bicubic"), ("center", 1.0, "bilinear"), ("squash", 1.0, "bicubic")]
)
def test_as_timm_does(crop, share, filter, tmp_path):
    timm = pytest.importorskip("timm")
    mean, std = [0.5, 0.5, 0.5], [0.5, 0.4, 0.3]
    said = {"mean": mean, "std": std, "interpolation": filter, "crop_mode": crop, "crop_pct": share}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": said}))
    transform = timm.data.create_transform((3, 224, 224), **said)
    theirs = [transform(photo).numpy().transpose(1, 2, 0) for photo in photos()]
    assert_alike(ours(tmp_path, "dino (meta, timm)", 224, {}), theirs)


def test_as_dinos_own_evaluation_does_where_no_file_says(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    colours = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    transform = transforms.Compose(
        [
            transforms.Resize(256, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(*colours.values()),
        ]
    )
    theirs = [transform(photo).numpy().transpose(1, 2, 0) for photo in photos()]
    assert_alike(ours(tmp_path / "dino.pth", "dino (meta, timm)", 224, colours), theirs)
