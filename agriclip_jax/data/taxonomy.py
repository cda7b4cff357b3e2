"""Lineages to names and captions: the text types of BioCLIP (arXiv 2311.18803) and of LiT on iNaturalist 2021
(arXiv 2302.10281)."""

from collections.abc import Mapping

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus", "species")

Taxon = Mapping[str, str]  # by rank, "species" being the binomial; also "common_name" and "supercategory"


def scientific_name(taxon: Taxon) -> str:
    """The binomial, or the lowest rank that is known."""
    return next((taxon[rank] for rank in reversed(RANKS) if taxon.get(rank)), "")


def common_name(taxon: Taxon) -> str:
    """What people call it; empty when they have no other name than science's."""
    name = taxon.get("common_name", "")
    return "" if name.casefold() == scientific_name(taxon).casefold() else name


def lineage(taxon: Taxon) -> str:
    """The known ranks from kingdom to species, each name once: "Animalia Chordata ... Cyprinus carpio"."""
    *above, genus, species = (taxon.get(rank, "") for rank in RANKS)
    return _joined(*above, "" if species.startswith(f"{genus} ") else genus, species)


def display_name(taxon: Taxon) -> str:
    """A class name as people say it: "common carp (Cyprinus carpio)"."""
    common, scientific = common_name(taxon), scientific_name(taxon)
    return f"{common} ({scientific})" if common and scientific else common or scientific


def captions(taxon: Taxon) -> list[str]:
    """Captions of a taxon, what is seen first: by common name, scientific name, lineage, and mixes of them.

    BioCLIP's "common", "scientific", "taxonomic", "scientific + common" and "taxonomic + common", and the two forms of
    LiT-iNat: common name, supercategory, genus; and all names from the common one down to the epithet.
    """
    common, scientific, line = common_name(taxon), scientific_name(taxon), lineage(taxon)
    group, genus, species = (taxon.get(rank, "") for rank in ("supercategory", "genus", "species"))
    names = (common, group, *(taxon.get(rank, "") for rank in RANKS[:-1]), species.removeprefix(f"{genus} "))
    texts = [
        common and f"a photo of {common}.",
        scientific and f"a photo of {scientific}.",
        line and f"a photo of {line}.",
        common and scientific and f"a photo of {scientific} with common name {common}.",
        common and line and f"a photo of {line} with common name {common}.",
        common and (group or genus) and _joined(common, group, genus),
        line and _joined(*names),
    ]
    return list(dict.fromkeys(filter(None, texts)))


def _joined(*names: str) -> str:
    """The names that are known, each once."""
    return " ".join(dict.fromkeys(filter(None, names)))
