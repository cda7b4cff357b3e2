"""ResNets as torchvision names them, DINO's among them; CLIP's have its stages."""

import dataclasses

from agriclip_jax.encoders import resnet
from agriclip_jax.weights import names
from agriclip_jax.weights.family import Family, Settings, Shapes, Tower
from agriclip_jax.weights.names import Row

COUNTERS = r".*num_batches_tracked"


def rows(prefix: str, stem: int) -> tuple[Row, ...]:
    """A stem of so many convolutions, and four stages, each a first block and others like one another."""

    def normed(ours: str, conv: str, norm: str) -> list[Row]:
        parts = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        return [
            Row((f"{ours}/conv/kernel",), (f"{conv}.weight",), "convolution"),
            *(Row((f"{ours}/norm/{a}",), (f"{norm}.{b}",)) for a, b in parts.items()),
        ]

    found = [row for i in range(stem) for row in normed(f"stem/{i}", f"{prefix}conv{i + 1}", f"{prefix}bn{i + 1}")]
    for stage in range(4):
        ours, theirs = f"stages/{stage}", f"{prefix}layer{stage + 1}"
        for i, part in enumerate(("reduce", "spatial", "expand"), 1):
            found += normed(f"{ours}/first/{part}", f"{theirs}.0.conv{i}", f"{theirs}.0.bn{i}")
            found += names.optional(normed(f"{ours}/blocks/{part}", f"{theirs}.{{1}}.conv{i}", f"{theirs}.{{1}}.bn{i}"))
        found += normed(f"{ours}/first/shortcut", f"{theirs}.0.downsample.0", f"{theirs}.0.downsample.1")
    return tuple(found)


def stages(shapes: Shapes, prefix: str) -> tuple[int, ...]:
    """Blocks of each stage."""
    return tuple(names.depth(f"{prefix}layer{stage}.{{}}.conv1.weight", shapes) for stage in (1, 2, 3, 4))


def _configure(shapes: Shapes, settings: Settings) -> dict[str, Tower]:
    width, _, _, _ = shapes["conv1.weight"]
    plain = resnet.CONFIGS["ResNet50"]
    return {"image": dataclasses.replace(plain, layers=stages(shapes, ""), width=width)}


FAMILIES = {
    "resnet (torchvision)": Family(
        ("layer1.0.conv1.weight", "conv1.weight"), {"image": rows("", stem=1)}, (), rf"fc\..*|{COUNTERS}", _configure
    )
}
