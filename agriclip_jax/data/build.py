"""From sources to an ALive folder: list, read, curate, caption, write, and the card that tells of it."""

import csv
import datetime
import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agriclip_jax.data import captions, card, curation, describing, distribute, records, rewriting, splits
from agriclip_jax.data.curation import Judge, Keywords, Stage, Twin
from agriclip_jax.data.endpoint import Endpoint
from agriclip_jax.data.knowledge import Knowledge
from agriclip_jax.data.sources import KINDS, Source
from agriclip_jax.data.survey import UNREADABLE, WORDLESS, Survey
from agriclip_jax.data.tokenizers import counter
from agriclip_jax.data.views import eval_view
from agriclip_jax.errors import one_line

NAME = "alive"
DROPPED = "dropped.csv"
DUPLICATES = {"keep": (), "exact": (curation.EXACT,), "near": (curation.EXACT, curation.NEAR)}
LISTED = 100  # photos that were dropped, in the card

# Called with a label; gives a function to call with (done since the last call, in all).
Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Plan:
    """What a build does beside listing, reading, captioning and writing.

    Attributes:
      metadata: records by dataset name, from `sources.read_metadata`.
      ratios: percent by split.
      knowledge: facts that classes get captions from.
      max_side: shrink photos to at most so many pixels a side; None leaves every byte as it came.
      against: sources of which no photo may be among the examples.
      keywords: what the captions must and must not name.
      duplicates: "keep", or drop "exact" ones, or "near" ones as well.
      judge: a two-tower model, for the three that follow.
      min_agreement: cosine similarity of a photo to the nearest of its captions, below which it is dropped.
      max_deviation: from its domain, in robust standard deviations, above which a photo is dropped.
      describer: an endpoint that gives photos without class and caption one; the judge chooses among `candidates`.
      candidates: captions to ask of it for a photo.
      rewriter: an endpoint that says the captions of classes in other words.
      rewrites: captions to ask of it for a class.
      beam: options of Apache Beam's pipelines, from `distribute.options`; None works here.
      command: how the build was started, for the card.
      version: of the code, for the card.
    """

    metadata: Mapping[str, dict] = field(default_factory=dict)
    ratios: Mapping[str, int] = field(default_factory=lambda: splits.RATIOS)
    knowledge: Knowledge | None = None
    max_side: int | None = None
    against: Sequence[Source] = ()
    keywords: Keywords | None = None
    duplicates: str = "keep"
    judge: Judge | None = None
    min_agreement: float | None = None
    max_deviation: float | None = None
    describer: Endpoint | None = None
    candidates: int = 4
    rewriter: Endpoint | None = None
    rewrites: int = 4
    beam: Any = None
    command: str = ""
    version: str = ""

    @property
    def stages(self) -> list[str]:
        """Those of the funnel that are gone through, in order."""
        wanted = {
            curation.OFF_TOPIC: self.keywords is not None,
            UNREADABLE: True,
            WORDLESS: True,
            curation.EXACT: curation.EXACT in DUPLICATES[self.duplicates],
            curation.NEAR: curation.NEAR in DUPLICATES[self.duplicates],
            curation.CONTAMINATED: bool(self.against),
            curation.DISAGREES: self.min_agreement is not None,
            curation.OUTLIER: self.max_deviation is not None,
        }
        return [stage for stage in curation.STAGES if wanted[stage]]


@dataclass
class Built:
    """What came of a build.

    Attributes:
      survey: of the photos that were kept.
      funnel: what each stage dropped.
      twins: how many duplicates were found, dropped or not: "exact", "near", "across_splits", "noise".
      endpoints: a line for each endpoint on what it was asked.
      rejects: why captions that were written by a model were not taken.
    """

    survey: Survey
    funnel: list[Stage]
    twins: dict[str, int]
    endpoints: list[str] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)


def build(
    out: Path | str, sources: Sequence[Source], plan: Plan, *, overwrite: bool = False, progress: Progress | None = None
) -> Built:
    """Makes an ALive folder of sources, with its card and the list of what was dropped; all of it or nothing.

    Args:
      out: the folder to make.
      sources: from `sources.find`.
      plan: what to do.
      overwrite: replace `out` when it is an ALive folder.
      progress: told of each of the long stages.

    Raises:
      UserError: a source is damaged, two have one name, nothing can be kept, or `out` cannot be written.
      RunFailure: Beam's pipeline failed.
    """
    records.check_out(out, overwrite=overwrite)
    progress = progress or (lambda label: lambda done, total: None)
    survey = Survey(plan.knowledge)
    for source in sources:
        survey.add(source, metadata=plan.metadata, ratios=plan.ratios)
    for source in plan.against:
        survey.add(source, metadata=plan.metadata, ratios=plan.ratios, ours=False)
    built = Built(survey, [], {})
    pairs = _curate(built, plan, Path(os.path.realpath(out)), progress)
    if plan.rewriter:
        _rewrite(built, plan)
    built.funnel = curation.funnel(survey, plan.stages)
    record = _record(built, plan)
    description = f"Photos with captions from {len(survey.datasets)} datasets."
    total = built.funnel[-1].left

    def finish(folder: Path) -> None:
        _list_dropped(survey, folder / DROPPED)
        card.write_card(folder, record, pairs)

    where = {"name": NAME, "datasets": survey.datasets, "overwrite": overwrite, "finish": finish}
    if plan.beam:
        shards = partial(
            distribute.write_shards,
            survey=survey,
            beam_options=plan.beam,
            name=NAME,
            description=description,
            max_side=plan.max_side,
        )
        records.put(out, shards, **where)
    else:
        writing = progress("writing")
        records.write(
            out,
            survey.splits(),
            description=description,
            max_side=plan.max_side,
            progress=lambda done: writing(done, total),
            **where,
        )
    return built


def _curate(built: Built, plan: Plan, out: Path, progress: Progress) -> list[card.Pair]:
    """Every stage of the funnel; gives the pairs that the card shows."""
    survey = built.survey
    if plan.keywords:
        curation.drop_off_topic(survey, plan.keywords)
    if plan.beam:
        distribute.check(survey, plan.beam, out.parent, progress("checking"))
    else:
        survey.check(progress("checking"))
    if not plan.describer:
        survey.drop_wordless()
    curation.find_twins(survey)
    shown = _count_twins(built)
    for stage in DUPLICATES[plan.duplicates]:
        curation.drop_twins(survey, stage)
    if plan.against:
        curation.drop_contaminated(survey)
    if plan.describer:
        _describe(built, plan, progress("describing"))
        survey.drop_wordless()
        if plan.keywords:
            curation.drop_off_topic(survey, plan.keywords)
    survey.must_keep_some()
    if plan.judge and (plan.min_agreement is not None or plan.max_deviation is not None):
        curation.drop_by_model(
            survey,
            plan.judge,
            min_agreement=plan.min_agreement,
            max_deviation=plan.max_deviation,
            progress=progress("asking the model"),
        )
        survey.must_keep_some()
    return _pairs(survey, shown)


def _describe(built: Built, plan: Plan, progress: Callable[[int, int], None]) -> None:
    """Gives photos that came without words a caption."""
    survey = built.survey
    count_tokens, _ = counter()
    judge = partial(_similarities, plan.judge) if plan.judge else None
    total = survey.wordless()
    for dataset in survey.datasets_of(wordless=True):
        images = ((str(row.id), data) for row, data in dataset.photos())
        asked = describing.describe(
            images, plan.describer, judge, candidates=plan.candidates, count_tokens=count_tokens
        )
        # The list is not changed while it is read.
        for found in list(asked):
            survey.describe(int(found.key), found.caption, found.error)
            progress(1, total)
    built.endpoints.append(f"describing: {plan.describer.usage}")


def _similarities(judge: Judge, images: Sequence[Image.Image], texts: Sequence[str]) -> np.ndarray:
    """Cosine similarities [images, texts]."""
    views = np.stack([eval_view(image, judge.view) for image in images])
    return judge.embed_images(views) @ judge.embed_texts(texts).T


def _rewrite(built: Built, plan: Plan) -> None:
    """Gives classes captions in other words."""
    survey = built.survey
    count_tokens, _ = counter()
    subjects = []
    for slug, record in survey.datasets.items():
        for key, name in record.classes.items():
            if name:
                fact = plan.knowledge.find(name, slug, record.domain) if plan.knowledge else None
                subjects.append(
                    rewriting.Subject(
                        key=f"{slug}/{key}",
                        phrase=captions.class_phrase(name, slug, record.domain),
                        class_name=name,
                        domain=record.domain,
                        signs=fact.signs if fact else (),
                        others=tuple(other for other in record.classes.values() if other not in ("", name)),
                        taken=tuple(text for text, _ in survey.class_captions(slug, record, key)),
                    )
                )
    found = rewriting.rewrite(subjects, plan.rewriter, count=plan.rewrites, count_tokens=count_tokens)
    survey.rewritten = found.captions
    built.rejects += found.rejects
    built.endpoints.append(
        f"rewriting: {found.accepted} captions of {len(found.captions)} classes, {len(found.fallen_back)} classes keep "
        f"those they had; {plan.rewriter.usage}"
    )
    built.endpoints += [
        f"rewriting failed for {count} classes: {error}" for error, count in found.errors.most_common(3)
    ]


def _count_twins(built: Built) -> list[tuple[str, Twin]]:
    """Counts the duplicates; gives some of each kind."""
    counts, shown = Counter(exact=0, near=0, noise=0, across_splits=0), []
    for twin in curation.twins(built.survey):
        kinds = ["noise"] if curation.is_label_noise(twin) else []
        kinds.append("exact" if twin.is_exact else "near")
        shown += [(kind, twin) for kind in kinds[:1] if counts[kind] < card.PAIRS]
        counts.update(kinds)
        counts["across_splits"] += twin.is_across_splits
    built.twins = dict(counts)
    return shown


def _pairs(survey: Survey, shown: list[tuple[str, Twin]]) -> list[card.Pair]:
    """The pairs that the card shows, with their pictures."""
    shown = shown + [("held out", twin) for twin in itertools.islice(curation.contaminated(survey), card.PAIRS)]
    pictures = survey.pictures({photo for _, twin in shown for photo in (twin.photo, twin.other_photo)})
    return [
        card.Pair(kind, twin.source, twin.other, twin.names, pictures[twin.photo], pictures[twin.other_photo])
        for kind, twin in shown
    ]


def _record(built: Built, plan: Plan) -> dict[str, Any]:
    """What the card tells of the build."""
    survey = built.survey
    kinds = {kind: name for name, kind in reversed(KINDS.items())}
    dropped = itertools.chain.from_iterable(survey.dropped(stage) for stage in curation.STAGES)
    return {
        "command": plan.command,
        "version": plan.version,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "sources": [
            {"slug": part.slug, "kind": kinds[type(part.source)], "origin": part.source.origin.name}
            for part in survey.parts
            if part.ours
        ],
        "funnel": [list(stage) for stage in built.funnel],
        "twins": built.twins,
        "notes": survey.notes,
        "dropped": [list(problem) for problem in itertools.islice(dropped, LISTED)],
        "dropped_total": built.funnel[0].left - built.funnel[-1].left,
        "endpoints": built.endpoints,
        "rejects": dict(built.rejects.most_common()),
        "unknown": survey.unknown(),
    }


def _list_dropped(survey: Survey, path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("source", "stage", "reason"))
        for stage in curation.STAGES:
            rows.writerows((one_line(p.source), stage, one_line(p.reason)) for p in survey.dropped(stage))
