"""Which split a photo belongs to: by hash of its name, so the same photo is in the same split everywhere."""

import hashlib
from collections.abc import Mapping

from agriclip_jax.errors import UserError, near_misses

SPLITS = ("train", "val", "test")
RATIOS = {"train": 70, "val": 10, "test": 20}


def written(ratios: Mapping[str, int]) -> str:
    """Such as "train:70,val:10,test:20", what `parse_ratios` reads."""
    return ",".join(f"{split}:{share}" for split, share in ratios.items())


SHARES = written(RATIOS)


def split_of(dataset: str, class_key: str, file: str, ratios: Mapping[str, int] = RATIOS) -> str:
    """The split of `<dataset>/<class_key>/<file>`.

    u = sha256 of that path, as a number, modulo 100: test comes first, then val, the rest is train.

    Args:
      dataset: slug.
      class_key: folder name.
      file: file name within the class folder.
      ratios: percent by split name, summing to 100; a missing one is 0.
    """
    u = int(hashlib.sha256(f"{dataset}/{class_key}/{file}".encode()).hexdigest(), 16) % 100
    if u < ratios.get("test", 0):
        return "test"
    return "val" if u < ratios.get("test", 0) + ratios.get("val", 0) else "train"


def parse_ratios(text: str) -> dict[str, int]:
    """Reads "train:70,val:10,test:20".

    Raises:
      UserError: an unknown or repeated split, a share that is no whole number, or a sum other than 100.
    """
    ratios = {}
    for part in text.split(","):
        name, _, share = part.strip().partition(":")
        if name not in SPLITS:
            raise UserError(f"--split={text}: unknown split {name!r}{near_misses(name, SPLITS)}")
        if name in ratios:
            raise UserError(f"--split={text}: {name} is given twice")
        if not (share.isascii() and share.isdigit()):
            raise UserError(f"--split={text}: {name} needs a whole number of percent, as in train:70,val:10,test:20")
        ratios[name] = int(share)
    if sum(ratios.values()) != 100:
        raise UserError(f"--split={text}: the shares sum to {sum(ratios.values())}, not to 100")
    return ratios
