"""The original implementations, for the tests that `make parity` runs."""

import importlib.util

import pytest

_KEPT = []  # a torch library forgets its names when it is collected


def torch_and_vision():
    """Makes `import torchvision` and `import open_clip` work beside a CPU build of torch; skips without torch.

    Such a torchvision has not compiled two operators whose names its import asks for: they are declared first.
    """
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("torchvision") and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)
    return torch
