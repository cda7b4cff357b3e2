"""The families of public towers, and which of them a file is of."""

from collections.abc import Collection

from agriclip_jax.errors import UserError
from agriclip_jax.weights import big_vision, clip, dino, open_clip, own, resnets, siglip, timm
from agriclip_jax.weights.family import Family, Tower, joined

__all__ = ["FAMILIES", "Family", "Tower", "find", "recognise"]

# A file of several of these is of the first.
FAMILIES = {
    **clip.FAMILIES,
    **open_clip.FAMILIES,
    **resnets.FAMILIES,
    **siglip.FAMILIES,
    **dino.FAMILIES,
    **timm.FAMILIES,
    **big_vision.FAMILIES,
}
FAMILIES["agriclip_jax"] = Family(
    own.TOLD_BY, own.rows(family.towers for family in FAMILIES.values()), open_clip.SCALE, "", own.configure
)


def find(names: Collection[str]) -> tuple[str, Family] | None:
    """The family of a file with arrays of these names, or that of its image and that of its text tower as one.

    Returns:
      Its key in `FAMILIES`, or both keys joined by " + ", and the family; `None` where there is none.
    """
    found: tuple[str, Family] | None = None
    for name, family in FAMILIES.items():
        if all(told in names for told in family.told_by):
            if found is None:
                found = name, family
            elif not found[1].towers.keys() & family.towers.keys():
                found = f"{found[0]} + {name}", joined(found[1], family)
    return found


def recognise(names: Collection[str], where: str) -> tuple[str, Family]:
    """What `find` gives.

    Raises:
      UserError: they are of no family.
    """
    if (found := find(names)) is None:
        some = ", ".join(sorted(names)[:3])
        known = "CLIP, SigLIP, DINO to DINOv3 and ResNets, of OpenAI, Meta, open_clip, transformers, timm, torchvision"
        raise UserError(f"{where} is of no known family (its arrays are {some}, ...); known: {known} and big_vision")
    return found
