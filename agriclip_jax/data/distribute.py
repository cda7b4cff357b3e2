"""The two stages of a build that read every photo, on Apache Beam: on many cores or on a cluster (Flink, Spark,
Dataflow) whose workers see the sources and the output under the same paths. What comes out is what a local build gives.
"""

import contextlib
import functools
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agriclip_jax.data import records, splits
from agriclip_jax.data.records import Example
from agriclip_jax.data.sources.base import Source
from agriclip_jax.data.survey import Chunk, Finding, Survey, examine
from agriclip_jax.errors import RunFailure, UserError

_ROWS = 1024  # photos that a worker takes at once: a source is opened for each such piece


def options(runner: str, more: Sequence[str]) -> Any:
    """Beam's options for a runner.

    Args:
      runner: "DirectRunner", "FlinkRunner", "SparkRunner", "DataflowRunner", ...
      more: of the runner, as on a command line: "--direct_num_workers=2".

    Raises:
      UserError: Beam is not installed, or there is no such runner or option.
    """
    logging.getLogger().setLevel(logging.ERROR)  # it tells of optional packages at its import
    try:
        from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    except ImportError:
        raise UserError("--runner needs Apache Beam: pip install -e '.[beam]'") from None
    known = StandardOptions.KNOWN_RUNNER_NAMES
    if runner not in known:
        raise UserError(f"--runner={runner} is unknown; Beam has: {', '.join(known)}")
    found = PipelineOptions([f"--runner={runner}", *more])
    if unknown := found.get_all_options(retain_unknown_options=True).keys() - found.get_all_options().keys():
        raise UserError(f"--{sorted(unknown)[0]} is an option neither of this command nor of --runner={runner}")
    return found


def check(survey: Survey, beam_options: Any, place: Path, progress: Callable[[int, int], None] | None = None) -> None:
    """`Survey.check` on Beam. The list of what is to be read is held in memory here, some 200 bytes a photo.

    Args:
      survey: that lists the photos.
      beam_options: from `options`.
      place: a folder that workers write to; what they find goes through a temporary one in it.
      progress: called with (photos done, photos in all) in the end.

    Raises:
      RunFailure: the pipeline failed.
    """
    import apache_beam as beam

    work = list(survey.unread(_ROWS))
    total = sum(len(rows) for _, rows in work)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".found-", dir=place) as folder, _beam_errors():
        with beam.Pipeline(options=beam_options) as pipeline:
            # Beam would check the annotated type, which a protocol with attributes does not allow.
            found = pipeline | beam.Create(work) | beam.Reshuffle() | beam.FlatMap(_examine).with_input_types(Any)
            found | beam.io.WriteToText(f"{folder}/found", file_name_suffix=".jsonl")
        for path in sorted(Path(folder).glob("found*.jsonl")):
            with path.open(encoding="utf-8") as file:
                survey.record(_finding(line) for line in file)
    if missing := sum(len(rows) for _, rows in survey.unread(_ROWS)):
        raise RunFailure(f"Beam's workers gave nothing back of {missing} photos; do they see {place} under that path?")
    survey.checked()
    if progress:
        progress(total, total)


def _examine(work: tuple[Source, Sequence[tuple[int, Any]]]) -> Iterator[str]:
    source, rows = work
    for (number, _), data in zip(rows, source.read(place for _, place in rows), strict=True):
        found = examine(data)
        yield json.dumps([number, found.fault, found.sha.hex(), found.look.hex()])


def _finding(line: str) -> tuple[int, Finding]:
    number, fault, sha, look = json.loads(line)
    return number, Finding(fault, bytes.fromhex(sha), bytes.fromhex(look))


def write_shards(
    folder: Path,
    survey: Survey,
    beam_options: Any,
    *,
    name: str,
    description: str,
    max_side: int | None = None,
) -> tuple[dict[str, int], str]:
    """Writes the photos of a survey as `records.write` does, for `records.put`.

    Raises:
      RunFailure: the pipeline failed.
    """
    import tensorflow_datasets as tfds

    datasets = survey.datasets
    classes = records.class_list(datasets)
    work = {split: found for split in splits.SPLITS if (found := _numbered(survey.chunks(split, _ROWS)))}
    encode = functools.partial(_encode, labels={key: label for label, key in enumerate(classes)}, max_side=max_side)
    with _beam_errors():
        builder = _builder(name, description, classes, work, encode)(
            data_dir=str(folder / "made"), file_format=tfds.core.FileFormat.ARRAY_RECORD
        )
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=beam_options))
    for path in Path(builder.data_path).iterdir():
        shutil.move(path, folder / path.name)
    shutil.rmtree(folder / "made")
    fingerprint, counts = records.Fingerprint(classes), {}
    for split in work:
        examples = records.Source(folder, split)
        counts[split] = len(examples)
        fingerprint.begin(split)
        for row in range(len(examples)):
            fingerprint.add(_example(examples[row]))
    return counts, fingerprint.hexdigest()


def _numbered(chunks: Iterator[Chunk]) -> list[tuple[int, Chunk]]:
    """Chunks with the place of their first example in the split."""
    found, start = [], 0
    for chunk in chunks:
        found.append((start, chunk))
        start += len(chunk.rows)
    return found


def _encode(
    work: tuple[int, Chunk], labels: Mapping[str, int], max_side: int | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    start, chunk = work
    for number, example in enumerate(chunk.examples(), start):
        image = example.image if max_side is None else records.shrink(example.image, max_side)
        yield number, records.encode(replace(example, image=image), labels)


def _builder(
    dataset: str,
    about: str,
    classes: Sequence[str],
    work: Mapping[str, Sequence[tuple[int, Chunk]]],
    encode: Callable[[tuple[int, Chunk]], Iterator[tuple[int, dict]]],
) -> type:
    """TFDS's builder of the examples, in their order: its keys are their places."""
    import apache_beam as beam
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(records.VERSION)
        name = dataset
        code_path = None  # nothing is downloaded, so TFDS need not look for checksums beside the code

        def _info(self) -> tfds.core.DatasetInfo:
            found = records.features(classes)
            return tfds.core.DatasetInfo(builder=self, description=about, features=found, disable_shuffling=True)

        def _split_generators(self, downloads: Any) -> dict[str, Any]:
            return {
                split: f"photos of {split}" >> beam.Create(chunks)
                | f"spread {split}" >> beam.Reshuffle()
                | f"read {split}" >> beam.FlatMap(encode)
                for split, chunks in work.items()
            }

        def _generate_examples(self) -> None:
            raise NotImplementedError

    return Builder


def _example(record: Mapping[str, Any]) -> Example:
    """The example that a record was made of; those of a survey have no boxes."""
    fields = {name: value for name, value in record.items() if name not in ("label", "boxes", "box_names")}
    return Example(**{**fields, "captions": tuple(fields["captions"]), "caption_kinds": tuple(fields["caption_kinds"])})


@contextlib.contextmanager
def _beam_errors() -> Iterator[None]:
    """A failing worker tells of it in a traceback of many screens, of which the last line says what it was."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        last = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise RunFailure(f"the Beam pipeline failed: {last[-1].strip()[:300]}") from error
