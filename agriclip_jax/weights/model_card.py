"""The card of an exported model, in the form of the Hugging Face hub, from what its run left on record.

Nothing is said that no record says: what is unknown is called so.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import yaml

from agriclip_jax.data.measure import measure, pass_over
from agriclip_jax.data.records import Alive
from agriclip_jax.encoders import resnet
from agriclip_jax.errors import UserError
from agriclip_jax.files import read_optional, write_whole
from agriclip_jax.weights.hub import PREFIX

LIBRARIES = {"hf": "transformers", "open_clip": "open_clip", "stablehlo": "jax", "onnx": "onnxruntime"}
NO_LICENCE = "none stated"


def write(model: Any, out: Path, *, target: str, licence: str, command: str) -> None:
    """Writes README.md, the card, and LICENSE.md; a README.md that is there becomes the section on loading.

    Args:
      model: an `inference.Model`; the rest is read in its workdir.
      out: the folder that holds the exported model.
      target: the format.
      licence: of the weights, in the hub's words ("apache-2.0") or any; empty where nobody has said.
      command: how the export was started.

    Raises:
      UserError: a record in the workdir is damaged.
    """
    try:
        data = _data(model.workdir)
        loading = (out / "README.md").read_text(encoding="utf-8").strip()
        parts = [
            f"---\n{yaml.safe_dump(_front(model, target, licence), sort_keys=False, allow_unicode=True)}---",
            f"# {_md(_name(model))}",
            _what(model),
            "## How to load it",
            re.sub(r"^# .*\n+", "", loading),
            "## Results",
            *_results(model),
            "## Data",
            *_describe_data(model, data),
            "## Licence",
            _licence_text(model, licence, data),
            "## Limits",
            _list(_limits(model)),
            "## How it was made",
            *_making(model, command),
        ]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{model.workdir}: its records are damaged ({error!r:.100}); restore them") from error
    write_whole(out / "README.md", "\n\n".join(parts) + "\n")
    write_whole(out / "LICENSE.md", _licence_text(model, licence, data) + "\n")


def _front(model: Any, target: str, licence: str) -> dict[str, Any]:
    is_known = re.fullmatch(r"[a-z0-9.-]+", licence)
    said = {"license": licence} if is_known else {"license": "other", "license_name": licence}
    return {
        **(said if licence else {"license": "unknown"}),
        **({"base_model": bases} if (bases := _on_the_hub(model)) else {}),
        "library_name": LIBRARIES.get(target, "agriclip_jax"),
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["clip", "vision-language", "agriculture", "agriclip_jax"],
    }


def _name(model: Any) -> str:
    return model.workdir.resolve().name


def _origins(model: Any) -> dict[str, str]:
    """What the run started from by the key of `config.init` that said so; of local files the last part of the path."""
    said = {name: value for name, value in model.config.init.to_dict().items() if value and isinstance(value, str)}
    return {name: value if value.startswith(PREFIX) else Path(value).name for name, value in said.items()}


def _on_the_hub(model: Any) -> list[str]:
    found = (
        spec.removeprefix(PREFIX).partition("@")[0] for spec in _origins(model).values() if spec.startswith(PREFIX)
    )
    return ["/".join(place.split("/")[:2]) for place in found]


def _what(model: Any) -> str:
    config, image, text = model.config, model.towers["image"].config, model.towers["text"].config
    image_size, text_size = (
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.params[tower])) for tower in ("image", "text")
    )
    if isinstance(image, resnet.ResNetConfig):
        kind = f"a ResNet of {'-'.join(map(str, image.layers))} blocks and width {image.width}"
    else:
        kind = f"a Vision Transformer of {_stack(image)}, patches of {image.patch} pixels"
    whose = ", the image tower the moving average of the trained one" if model.use == "teacher" else ""
    return (
        "A two-tower vision-language model: images and texts to one space of "
        f"{text.embed_dim} numbers, where what belongs together lies close. "
        + (
            "Trained with agriclip_jax."
            if _is_trained(model)
            else "agriclip_jax has not trained it: see its origin below."
        )
        + "\n\n"
        + _list(
            [
                f"image tower: {kind}, images of {config.image_size} x {config.image_size} pixels, "
                f"{image_size:,} parameters",
                f"text tower: a transformer of {_stack(text)}, up to {text.context_length} tokens of a vocabulary of "
                f"{text.vocab_size:,}, {text_size:,} parameters",
                f"checkpoint: step {model.step:,}{whose}",
            ]
        )
    )


def _is_trained(model: Any) -> bool:
    """Whether any step was made; an imported model is at step 0."""
    return model.step > 0


def _stack(tower: Any) -> str:
    blocks = tower.blocks
    return f"{blocks.depth} blocks, width {blocks.width} and {blocks.heads} {'heads' if blocks.heads > 1 else 'head'}"


def _results(model: Any) -> Iterator[str]:
    record = read_optional(model.workdir / "zeroshot.json")
    scored = record.get("checkpoint", {})
    if not record:
        yield "Unknown: the run has no record of scores."
    elif (scored["step"], scored["use"]) != (model.step, model.use):
        yield f"Unknown: what the run scored is another checkpoint, step {scored['step']} of the {scored['use']}."
    else:
        yield (
            "Zero-shot classification: nothing was fitted to these tasks; an image gets the class whose description "
            f"lies nearest. Chance is what guessing would reach; intervals: {_md(record['interval'])}."
        )
        rows = [
            _score(result["dataset"], result["group"], result["metrics"]["acc1"], result)
            for result in record["results"]
            if result.get("metrics")
        ]
        rows += [_score(f"mean of {mean['tasks']}", mean["group"], mean["top1"], mean) for mean in record["means"]]
        yield _table(("task", "group", "top-1", "95 % interval", "chance", "images"), rows)


def _score(name: str, group: str, top1: float, scored: Mapping[str, Any]) -> list[str]:
    low, high = map(_percent, scored["interval"])
    return [name, group, f"{_percent(top1)} %", f"{low} to {high}", _percent(scored["chance"]), f"{scored['images']:,}"]


def _data(workdir: Path) -> dict[str, Any] | None:
    """What the run's data folder holds, as `measure` counts it; None where it is not there or has changed."""
    said = read_optional(workdir / "data.json")
    try:
        alive = Alive.open(said.get("path", ""))
        if alive.fingerprint != said["fingerprint"]:
            return None
        card = read_optional(alive.path / "card.json")
        if card.get("measured", {}).get("fingerprint") == alive.fingerprint:
            return card["measured"]
        return measure(alive, pass_over(alive))
    except UserError:
        return None


def _describe_data(model: Any, data: Mapping[str, Any] | None) -> Iterator[str]:
    if not _is_trained(model):
        yield "Unknown: it was not trained here."
        return
    said, kinds = read_optional(model.workdir / "data.json"), model.config.data.caption_kinds
    splits = ", ".join(f"{name} {number:,}" for name, number in said.get("splits", {}).items())
    yield (
        f"Images: {splits or 'unknown'}. Captions: {_md(', '.join(kinds) or 'unknown')}. "
        f"Fingerprint: {_md(said.get('fingerprint', 'unknown'))}."
    )
    if data is None:
        yield "Where the images come from is unknown here: the data folder was not at hand when this card was written."
        return
    rows = [
        [
            slug,
            of["domain"],
            f"{of['splits'].get('train', 0):,}",
            _licence_names(of["licences"]),
            of["source"] or "unknown",
        ]
        for slug, of in data["datasets"].items()
    ]
    yield _table(("dataset", "domain", "images in train", "licence as its source states it", "source"), rows)


def _licence_names(licences: Mapping[str, int]) -> str:
    named = [f"{licence or NO_LICENCE} ({number:,})" for licence, number in licences.items()]
    return ", ".join(named) if len(named) > 1 else next(iter(licences), "") or NO_LICENCE


def _licence_text(model: Any, licence: str, data: Mapping[str, Any] | None) -> str:
    weights = (
        f"The weights: {_md(licence)}." if licence else "The licence of the weights is unknown: nobody has stated one."
    )
    if origins := _origins(model):
        weights += (
            f" They started from {_md(', '.join(origins.values()))}, whose licence and training data are not on record "
            "here; both go on to bind them."
        )
    if data is None:
        return f"{weights} The licences of the images they were trained on are unknown here."
    images: Counter[str] = Counter()
    for of in data["datasets"].values():
        images.update({name or NO_LICENCE: number for name, number in of["licences"].items()})
    listed = _list(f"{_md(name)}: {number:,} images" for name, number in images.most_common())
    return f"{weights} The images of the data they were trained on are, as their sources state it:\n\n{listed}"


def _limits(model: Any) -> Iterator[str]:
    config, text = model.config, model.towers["text"].config
    if _is_trained(model) and not config.data.path:
        yield (
            "The training images are drawings made by a program, not photos: what the model makes of photos is unknown "
            "but for the results above."
        )
    seen = "all of an image, squashed," if model.view.resize == "squash" else "the centre square of an image"
    yield (
        f"It sees {seen} at {model.view.size} pixels a side, and loses what is too fine for that. Of a text it reads "
        f"the first {text.context_length} tokens."
    )
    if _is_trained(model):
        yield f"The scores are of one run with seed {config.seed}; other seeds give others."
    if _origins(model):
        yield "What it started from was trained on data that are not on record here, with their faults and preferences."
    if "logit_bias" in model.params and _is_trained(model):
        yield "The bias of its logits is the one it started from: training here moves the temperature, not the bias."
    yield (
        "It chooses among the texts it is given and says nothing of what none of them describes. No study was made of "
        "its errors in the field: for a decision on plants, animals or food, ask someone who knows them."
    )
    if _is_trained(model) and config.dtype != "float32":
        yield f"It was trained computing in {config.dtype}; its parameters are float32."


def _images_of(config: Any) -> str:
    """What a step of a run sees."""
    unpaired = config.data.unpaired_batch
    return f"{config.batch_size:,} images" + (f" and {unpaired:,} without captions" if unpaired else "")


def _making(model: Any, command: str) -> Iterator[str]:
    config, environment = model.config, read_optional(model.workdir / "environment.json")
    objectives = ", ".join(f"{name} (weight {_short(weight)})" for name, weight in config.objectives.items())
    packages = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    devices = ", ".join(environment.get("devices", []))
    made = [
        ["recipe", config.recipe],
        ["objectives", objectives],
        ["steps", f"{model.step:,} of {config.total_steps:,}, {_images_of(config)} each"],
        ["seed", str(config.seed)],
        ["device", f"{environment.get('device_count', 1)} x {devices}" if devices else "unknown"],
    ]
    facts = [
        ["started from", _short(origins) if (origins := _origins(model)) else "fresh weights"],
        *(made if _is_trained(model) else []),
        ["agriclip_jax that made the checkpoint", environment.get("code", "unknown")],
        ["agriclip_jax that exported it", model.code_version],
        ["packages", packages or "unknown"],
        ["exported by", command],
    ]
    yield _table(("", ""), facts)
    whole = json.dumps(config.to_dict(), indent=1)
    yield f"<details><summary>The whole configuration</summary>\n\n```json\n{whole}\n```\n\n</details>"


def _short(value: Any) -> str:
    return json.dumps(value, default=list) if isinstance(value, Mapping | Sequence) else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _md(text: str) -> str:
    """A text in one line of Markdown, with nothing in it that Markdown or HTML would read."""
    text = re.sub(r"([\\`*_{}\[\]|#~!])", r"\\\1", " ".join(str(text).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_md(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(items: Any) -> str:
    return "\n".join(f"* {item}" for item in items)
