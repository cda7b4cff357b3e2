"""Which examples training sees: those of some domains, their captions or not, and general ones beside them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agriclip_jax.data.records import Alive, Source
from agriclip_jax.errors import UserError, near_misses


class Examples(Sequence):
    """What a source, or anything in its order, has at some of its places; picklable, and read when asked for."""

    def __init__(self, source: Sequence[Any], places: np.ndarray):
        self._source, self.places = source, places.astype(np.int32)  # a worker gets them: four bytes an example

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Any:
        return self._source[int(self.places[index])]


@dataclass(frozen=True)
class Selection:
    """The examples of a run, each a dictionary as `records.Source` has it.

    Attributes:
      paired: their captions are used.
      unpaired: of the same domains; their captions are not.
      general: with their captions, replayed against forgetting.
    """

    paired: Sequence[Mapping[str, Any]]
    unpaired: Sequence[Mapping[str, Any]] = ()
    general: Sequence[Mapping[str, Any]] = ()

    def captioned(self) -> Iterator[Mapping[str, Any]]:
        """Those whose captions training may draw."""
        yield from self.paired
        yield from self.general


def select(
    alive: Alive,
    split: str,
    *,
    domains: Sequence[str] = (),
    label_ratio: float = 1.0,
    label_seed: int = 0,
    general: Alive | None = None,
    general_domains: Sequence[str] = (),
) -> Selection:
    """Chooses the examples of a run.

    Where domains are named every record of the split is read once.

    Args:
      alive: the records.
      split: which of its splits.
      domains: "crop", "weed", ...; none for all.
      label_ratio: share of them whose captions may be used, above 0 and at most 1; one example at least. A smaller
        share is part of a larger one.
      label_seed: decides which.
      general: where the replayed examples come from; None for none. Of the same content as `alive`, they are those that
        `domains` leaves out.
      general_domains: of the replayed ones; none for all.

    Raises:
      UserError: no such split, a domain that is unknown or without examples there, nothing to replay.
    """
    source = alive.source(split)
    places = _of_domains(alive, source, domains, "config.data.domains")
    if not len(places):
        raise UserError(f"config.data.domains={tuple(domains)}: {alive.path} has no example of them in {split!r}")
    count = max(1, round(label_ratio * len(places)))
    order = np.random.default_rng(label_seed).permutation(len(places))
    paired, unpaired = (Examples(source, places[np.sort(part)]) for part in (order[:count], order[count:]))
    if general is None:
        return Selection(paired, unpaired)
    replayed = general.source(split)
    kept = _of_domains(general, replayed, general_domains, "config.data.replay.domains")
    if general.fingerprint == alive.fingerprint:
        kept = np.setdiff1d(kept, places)
    if not len(kept):
        raise UserError(
            "config.data.replay: there is nothing to replay, for what it names is trained on anyway or has no example; "
            "name another folder by config.data.replay.path, or fewer domains by config.data.domains"
        )
    return Selection(paired, unpaired, Examples(replayed, kept))


def _of_domains(alive: Alive, source: Source, domains: Sequence[str], key: str) -> np.ndarray:
    """The places of the examples of some domains, in order."""
    known = {record.domain for record in alive.datasets.values()}
    for domain in domains:
        if domain not in known:
            raise UserError(f"{key}: {alive.path} has no domain {domain!r}{near_misses(str(domain), known)}")
    if not domains or known <= set(domains):
        return np.arange(len(source))
    return np.flatnonzero([example["domain"] in domains for example in source])
