"""Which patches of a view are hidden: masks of a few blocks, as BEiT and DINOv2 draw them."""

import math

import numpy as np

RATIOS = (0.1, 0.5)  # least and greatest share of the patches that a masked view hides (DINOv2)
ASPECTS = (0.3, 1 / 0.3)  # least and greatest height / width of a block
_LEAST = 4  # patches of a block, where as many are still to be hidden
_TRIES = 10  # at a block that fits


def draw(rng: np.random.Generator, views: int, grid: int) -> np.ndarray:
    """Masks of the views of one image: half of the views are masked, of an odd one every other time.

    Each hides a share drawn uniformly from `RATIOS`, or a little less (iBOT, arXiv 2111.07832, section 4.1; DINOv2's
    own code masks half of the views of a whole batch instead, with shares spread evenly over it).

    Args:
      rng: decides everything.
      views: how many.
      grid: patches along one side.

    Returns:
      bool [views, grid * grid], true for a hidden patch, row-major; at most `most(views, grid)` are.
    """
    masked = int(views / 2 + rng.random())
    masks = np.zeros((views, grid, grid), bool)
    for view in rng.permutation(views)[:masked]:
        masks[view] = blocks(rng, grid, max(1, int(rng.uniform(*RATIOS) * grid**2)))
    return masks.reshape(views, -1)


def most(views: int, grid: int) -> int:
    """The greatest number of patches that `draw` hides in the views of one image together."""
    return math.ceil(views / 2) * max(1, int(RATIOS[1] * grid**2))


def blocks(rng: np.random.Generator, grid: int, count: int) -> np.ndarray:
    """A mask bool [grid, grid] of at most `count` patches, in blocks (BEiT, arXiv 2106.08254, algorithm 1).

    It ends when `_TRIES` blocks, one after the other, would have hidden nothing new or too much.
    """
    mask = np.zeros((grid, grid), bool)
    left, tries = count, _TRIES
    while left and tries:
        area = rng.uniform(min(_LEAST, left), left)
        aspect = math.exp(rng.uniform(*map(math.log, ASPECTS)))
        height, width = (max(1, min(grid, round(math.sqrt(area * side)))) for side in (aspect, 1 / aspect))
        top, start = rng.integers(grid - height + 1), rng.integers(grid - width + 1)
        block = mask[top : top + height, start : start + width]
        new = block.size - np.count_nonzero(block)
        if 0 < new <= left:
            block[:] = True
            left, tries = left - new, _TRIES
        else:
            tries -= 1
    return mask
