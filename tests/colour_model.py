"""A small real model for tests: photos and texts meet in the space of colours. Nothing is learnt, nothing is random."""

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from agriclip_jax.data.views import EvalView

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 50, 220), "yellow": (230, 220, 40)}


class ColourModel:
    """Embeds a photo by its mean colour and a text by the colours it names; has `inference.Model`'s interface."""

    image_size = 16
    view = EvalView(16)
    logit_scale = 20.0
    step, use, code_version = 7, "student", "0.1.0+test"

    def __init__(self, workdir: Path = Path("runs/colours")):
        self.workdir = Path(workdir)
        self.calls: list[int] = []  # photos in each call

    @property
    def fingerprint(self) -> str:
        return f"{type(self).__name__} of {self.workdir}"

    def look(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32), self.embed_images(images)

    def embed_images(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.uint8 and images.shape[1:] == (self.image_size, self.image_size, 3)
        self.calls.append(len(images))
        return self._unit(images.reshape(len(images), -1, 3).mean(axis=1))

    def embed_texts(self, texts: Sequence[str], *, normalise: bool = True) -> np.ndarray:
        named = [[COLOURS[word] for word in re.findall(r"\w+", text.lower()) if word in COLOURS] for text in texts]
        colours = np.array([np.mean(found or [(128, 128, 128)], axis=0) for found in named])
        return self._unit(colours) if normalise else (colours / 255 - 0.5 + 1e-3).astype(np.float32)

    def attention(self, images: np.ndarray) -> np.ndarray:
        patches = images.reshape(len(images), 4, 4, 4, 4, 3).astype(np.float32).mean(axis=(2, 4)) + 1
        heads = patches.transpose(0, 3, 1, 2)
        return heads / heads.sum(axis=(2, 3), keepdims=True)

    @staticmethod
    def _unit(colours: np.ndarray) -> np.ndarray:
        centred = colours / 255 - 0.5 + 1e-3
        return (centred / np.linalg.norm(centred, axis=1, keepdims=True)).astype(np.float32)


def photo(colour: str, seed: int = 0, side: int = 24) -> bytes:
    """A noisy JPEG of one colour."""
    pixels = np.array(COLOURS[colour]) + np.random.default_rng(seed).normal(0, 20, (side, side + 6, 3))
    data = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def folder(path: Path, classes: dict[str, Sequence[bytes]]) -> Path:
    """A class-per-folder tree of photos; bytes that are no photo stay what they are."""
    for key, photos in classes.items():
        (path / key).mkdir(parents=True)
        for number, data in enumerate(photos):
            (path / key / f"{number:03}.jpg").write_bytes(data)
    return path


def photos(colour: str, count: int) -> list[bytes]:
    return [photo(colour, seed) for seed in range(count)]
