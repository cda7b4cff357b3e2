"""Towers that are not trained: what they see in every photo of a corpus, once."""

import dataclasses
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from agriclip_jax import config as configs
from agriclip_jax import encoders, inference, mesh, recipe, rules
from agriclip_jax.data import feature_store, in_order
from agriclip_jax.data.feature_store import FeatureStore
from agriclip_jax.data.records import Alive
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.data.views import EvalView
from agriclip_jax.encoders import Network
from agriclip_jax.errors import UserError
from agriclip_jax.files import cache, read_record, write_json
from agriclip_jax.inference import Model
from agriclip_jax.initial import Source

PASS = "pass.json"  # beside kept features: what the pass over the photos cost


class Frozen(NamedTuple):
    """An image tower, its parameters on the devices, and how it sees photos."""

    network: Network
    params: dict[str, Any]
    view: EvalView


def image_tower(source: Source, devices: Mesh) -> Frozen:
    """The image tower of a trained model.

    Raises:
      UserError: its file cannot be read, or it has none.
    """
    if "image" not in source.towers:
        raise UserError(f"{source.path} ({source.family}) has no image tower")
    config = source.towers["image"]
    params = jax.device_put(rules.unflatten(dict(source.leaves("image"))), NamedSharding(devices, PartitionSpec()))
    resize, share, filter = (source.preparation[name] for name in ("resize", "crop_share", "filter"))
    return Frozen(encoders.tower(config), params, EvalView(config.image_size, resize, share, filter))


def model(source: Source, like: ConfigDict, tokenizer: Tokenizer, devices: Mesh) -> Model:
    """A trained model of two towers, ready to be scored.

    Args:
      source: of both towers.
      like: a configuration for all that `source` does not decide.
      tokenizer: of its text tower.
      devices: where it is to lie.
    """
    image, config = image_tower(source, devices), ConfigDict(like.to_dict())
    config.image_size = image.view.size
    options = recipe.options_of(source.towers["image"]) | dict(source.preparation)
    configs.assign(config, {f"image.{name}": value for name, value in options.items()})
    whole = NamedSharding(devices, PartitionSpec())
    text = jax.device_put(rules.unflatten(dict(source.leaves("text"))), whole)
    params = {"image": image.params, "text": text, **jax.device_put(dict(source.scale()), whole)}
    towers = {"image": image.network, "text": encoders.tower(source.towers["text"])}
    return Model(config, towers, params, tokenizer, devices, source.path, 0)


def look(
    towers: Mapping[str, tuple[Frozen, str]],
    source: Sequence[Mapping[str, Any]],
    batch_size: int,
    devices: Mesh,
    *,
    start: int = 0,
) -> Iterator[dict[str, jax.Array]]:
    """Features of examples in their order, as evaluation sees them; every process is to iterate.

    Args:
      towers: name -> a tower and what is wanted of it: "pooled" features, or "projected" ones, whose length is kept.
      source: examples, such as `Alive.source(split)`.
      batch_size: of the global batches.
      devices: that share the rows of a batch.
      start: the first example that is wanted.

    Yields:
      {name: float32 [batch, width], "weight": float32 [batch]}, 0 for rows that only fill up the last batch.

    Raises:
      UserError: a photo is unreadable.
    """
    sharding = mesh.batch_sharding(devices, batch_size)
    named = {name: f"{tower.view} {tower.view.size}" for name, (tower, _) in towers.items()}  # alike ones decode once
    views = {named[name]: tower.view for name, (tower, _) in towers.items()}
    features = {name: jax.jit(partial(_features, tower.network, wanted)) for name, (tower, wanted) in towers.items()}
    batches = in_order.batches(
        source, views, batch_size, start=start, process_index=jax.process_index(), process_count=jax.process_count()
    )
    for rows in batches:
        batch = mesh.place_batch(rows, sharding)
        seen = {name: features[name](tower.params, batch[named[name]]) for name, (tower, _) in towers.items()}
        yield seen | {in_order.WEIGHT: batch[in_order.WEIGHT]}


def remembered(
    tower: Frozen, alive: Alive, split: str, batch_size: int, devices: Mesh, say: Callable[[str], None]
) -> tuple[FeatureStore, float]:
    """The pooled features of a split's photos, kept in the cache or computed now and kept there, and what they cost.

    That is the seconds that the whole pass took or, stopped and gone on with, would have at the speed of its last part.
    Processes are to share the cache's file system.

    Raises:
      UserError: a photo is unreadable, or the cache cannot be written.
    """
    how = ("remat", "unroll", "drop_path")  # it runs, not what it gives
    config = tower.network.config
    if hasattr(config, "blocks"):
        blocks = {name: value for name, value in dataclasses.asdict(config.blocks).items() if name not in how}
        config = {**dataclasses.asdict(config), "blocks": blocks}
    digest = hashlib.sha256(json.dumps([repr(config), str(tower.view), tower.view.size]).encode())
    digest.update(f"{alive.fingerprint} {split}".encode())
    pooling = {name: part for name, part in tower.params.items() if name != "projection"}
    inference.add_parameters(digest, mesh.gathered(pooling, devices))
    folder = cache() / "features" / digest.hexdigest()[:24]
    source = alive.source(split)
    there, cost = feature_store.count(folder, tower.network.config.features), folder / PASS
    # One process looks: others might see a shard that it does not, and begin elsewhere.
    if mesh.agreed(int(there < len(source) or not cost.is_file())):
        last = (len(source) - 1) // feature_store.ROWS * feature_store.ROWS  # again, where what it cost was not written
        start, began = mesh.agreed(min(feature_store.full(folder), last)), time.perf_counter()
        say(f"features of {len(source) - start:,} photos are computed once and kept in {folder}")
        batches = look({"pooled": (tower, "pooled")}, source, batch_size, devices, start=start)
        blocks = (mesh.gathered(batch, devices) for batch in batches)
        rows = (block["pooled"][block[in_order.WEIGHT] > 0] for block in blocks)
        if jax.process_index() == 0:
            deque(feature_store.fill(folder, rows, start), maxlen=0)
            share = (len(source) - start) / len(source)
            write_json(cost, {"seconds": (time.perf_counter() - began) / share})
        else:
            deque(rows, maxlen=0)
        mesh.together("the features are written")
    return FeatureStore(folder), read_record(cost, "seconds")["seconds"]


def _features(network: Network, wanted: str, params: Any, images: jax.Array) -> jax.Array:
    pooled = network(params, images).pooled
    return (network(params, pooled, method="project") if wanted == "projected" else pooled).astype(jnp.float32)
