"""An original module beside ours: its random weights, its pixels, and its `state_dict` as our parameter tree.

A tree is built from the original's own names, one short table for each family; torch's matrices [out, in] turn into
our kernels [in, out], and the layers of a stack lie along one leading axis.
"""

import importlib.metadata
import re
from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

TOLERANCE = 1e-4  # on features of order 1
GRIDS = ("", ", another grid")  # what the name of a feature of an image ends in: the stored grid of patches, or not
SEEN: dict[tuple[str, str, str], float] = {}  # family, original and feature: the largest difference

# The libraries of the originals, as the package index calls them.
PACKAGES = {name: name for name in ("timm", "torchvision", "transformers")} | {"open_clip": "open_clip_torch"}

# Our part of a block: the original's names of it. A dense layer of several names is their outputs side by side.
CLIP = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attention": {"qkv": [f"self_attn.{which}_proj" for which in "qkv"], "out": ["self_attn.out_proj"]},
    "mlp": {"up": ["mlp.fc1"], "down": ["mlp.fc2"]},
}
VIT = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attention": {"qkv": [f"attention.{which}_proj" for which in "qkv"], "out": ["attention.o_proj"]},
    "mlp": CLIP["mlp"],
}
GATED = {"up": ["mlp.gate_proj", "mlp.up_proj"], "down": ["mlp.down_proj"]}
DINOV2 = VIT | {"norm1": "norm1", "norm2": "norm2", "scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1"}
DINOV3 = DINOV2 | {"mlp": {"up": ["mlp.up_proj"], "down": ["mlp.down_proj"]}}
TIMM = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention": {"qkv": ["attn.qkv"], "out": ["attn.proj"]},
    "mlp": CLIP["mlp"],
}
TIMM_DINOV2 = TIMM | {"scale1": "ls1.gamma", "scale2": "ls2.gamma"}
TIMM_DINOV3 = TIMM | {
    "mlp": {"up": ["mlp.fc1_g", "mlp.fc1_x"], "down": ["mlp.fc2"]},
    "scale1": "gamma_1",
    "scale2": "gamma_2",
}


class Weights(dict):
    """torch tensors by name as NumPy arrays; `unread` holds the names that nobody asked for."""

    def __init__(self, tensors: Mapping):
        super().__init__({name: tensor.detach().numpy() for name, tensor in tensors.items()})
        self.unread = set(self)

    def __getitem__(self, name: str) -> np.ndarray:
        self.unread.discard(name)
        return super().__getitem__(name)


def made(build, *args, seed: int = 0, **kwargs):
    """The torch module `build(*args, **kwargs)`, every parameter moved from its start (norms from 1, biases from 0)."""
    import torch

    torch.manual_seed(seed)
    module = build(*args, **kwargs)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module.eval()


def pixels(images: np.ndarray, config):
    """uint8 [n, h, w, 3] as the original takes them: torch float32 [n, 3, h, w], colours standardised."""
    import torch

    standard = (images / 255.0 - np.array(config.mean)) / np.array(config.std)
    return torch.tensor(standard.transpose(0, 3, 1, 2), dtype=torch.float32)


def dense(weights: Weights, names: list[str]) -> dict[str, np.ndarray]:
    """Where only some of `names` have a bias (DINOv3's keys have none), those without get zeros."""
    kernels = [weights[f"{name}.weight"] for name in names]
    layer = {"kernel": np.concatenate(kernels).T}
    has_bias = [f"{name}.bias" in weights for name in names]
    if any(has_bias):
        biases = zip(names, kernels, has_bias, strict=True)
        layer["bias"] = np.concatenate([weights[f"{n}.bias"] if has else np.zeros(len(k)) for n, k, has in biases])
    return layer


def norm(weights: Weights, name: str) -> dict[str, np.ndarray]:
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def blocks(weights: Weights, prefix: str, depth: int, names: dict) -> dict:
    """The stack whose layer i is named `<prefix>.<i>.`."""

    def part(prefix: str, ours: str, theirs) -> dict | np.ndarray:
        if isinstance(theirs, dict):
            return {key: part(prefix, key, value) for key, value in theirs.items()}
        if isinstance(theirs, list):
            return dense(weights, [prefix + name for name in theirs])
        return weights[prefix + theirs] if ours.startswith("scale") else norm(weights, prefix + theirs)

    layers = [part(f"{prefix}.{i}.", "", names) for i in range(depth)]
    return jax.tree.map(lambda *each: np.stack(each), *layers)


def patch(weights: Weights, name: str) -> dict[str, np.ndarray]:
    """A convolution [width, 3, side, side] as the dense layer on a patch's pixels, colours innermost."""
    kernel = weights[f"{name}.weight"]
    layer = {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])}
    return layer | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def class_and_positions(weights: Weights, cls: str, positions: str) -> dict[str, np.ndarray]:
    """Theirs adds a position to the class token, at row 0; ours stores the sum."""
    positions = weights[positions].reshape(-1, weights[positions].shape[-1])
    return {"cls": weights[cls].reshape(1, -1) + positions[:1], "positions": positions[1:]}


def fits(network, params: dict, weights: Weights, unused: set = frozenset()) -> dict:
    """`params`, after checking that they are the network's in name and shape and leave nothing of the original out."""
    wanted = jax.tree.map(np.shape, nnx.to_pure_dict(network.shapes))
    assert jax.tree.map(np.shape, params) == wanted
    assert weights.unread == unused
    return params


def agree(ours, theirs, least_spread: float = 0.3, of: tuple[str, str, str] | None = None):
    """Asserts |ours - theirs| <= 1e-4 everywhere, on values that do spread.

    Args:
      of: the row of the table: family, original (which begins with a library's name), feature; `None` for none.
        Of a file of two families, which are joined by " + ", features of images are the first's, others the second's.
    """
    ours, theirs = np.asarray(ours), np.asarray(theirs.detach() if hasattr(theirs, "detach") else theirs)
    assert theirs.std() >= least_spread
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)
    if of:
        family, original, feature = of
        row = family.split(" + ")[0 if feature.startswith("image") else -1], original, feature
        SEEN[row] = max(SEEN.get(row, 0.0), float(np.abs(ours - theirs).max()))


def table() -> str:
    """What was seen, as Markdown: the families in their order, then what is none."""
    from agriclip_jax.weights import families

    order = list(families.FAMILIES)
    lines = ["| model | names | original | feature | largest difference |", "|---|---|---|---|---:|"]
    for row in sorted(SEEN, key=lambda row: (order.index(row[0]) if row[0] in order else len(order), *row)):
        family, original, feature = row
        model, names = re.fullmatch(r"(.+?)(?: \((.+)\))?", family).groups()
        if (library := re.match(r"\w+", original)[0]) in PACKAGES:
            version, *_ = importlib.metadata.version(PACKAGES[library]).split("+")  # of which build is no matter
            original = f"{library} {version}{original.removeprefix(library)}"
        lines.append(f"| {model} | {names or model} | {original} | {feature} | {_digit(SEEN[row])} |")
    return "\n".join(lines)


def _digit(difference: float) -> str:
    """One digit, such as "3e-6"."""
    digit, _, power = f"{difference:.0e}".partition("e")
    return f"{digit}e{int(power)}" if difference else "0"
