"""Where things live: the device mesh and the sharding of the state and of batches."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agriclip_jax import rules
from agriclip_jax.errors import UserError, near_misses
from agriclip_jax.files import cache
from agriclip_jax.rules import Rule

AXES = ("data", "fsdp", "tensor")

# Axes of the trailing dimensions of a parameter; stacked blocks have the layer axis in front, never sharded.
PARAMETERS = (
    Rule(r".*/(head_)?blocks/attention/qkv/kernel", ("fsdp", "tensor"), optional=True),
    Rule(r".*/(head_)?blocks/attention/out/kernel", ("tensor", "fsdp"), optional=True),
    Rule(r".*/(head_)?blocks/mlp/up/kernel", ("fsdp", "tensor"), optional=True),
    Rule(r".*/(head_)?blocks/mlp/up/bias", ("tensor",), optional=True),
    Rule(r".*/(head_)?blocks/mlp/down/kernel", ("tensor", "fsdp"), optional=True),
    Rule(r"(image/patch|.*/projection)/kernel", ("fsdp", None), optional=True),
    Rule(r"text/tokens", ("tensor", "fsdp"), optional=True),
    Rule(r"(dino|ibot)_head/layer\d/kernel", ("fsdp", "tensor"), optional=True),
    Rule(r"(dino|ibot)_head/prototypes", (("fsdp", "tensor"), None), optional=True),
)


def make(spec: str, devices: Sequence[jax.Device] = ()) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor` over all devices.

    Args:
      spec: "auto" (all devices on `data`) or sizes such as "data=2,fsdp=4"; axes left out are 1.
      devices: others than those that are here, of one process or of many: what is compiled for them can't be run.

    Raises:
      UserError: for an unknown axis, a size that is no number, or sizes whose product is not the number of devices.
    """
    try:
        devices = devices or jax.devices()
    except RuntimeError as error:
        raise UserError(f"JAX finds no device ({' '.join(str(error).split())[:200]}); see JAX_PLATFORMS") from error
    sizes = dict.fromkeys(AXES, 1)
    if spec == "auto":
        sizes["data"] = len(devices)
    else:
        for part in spec.split(","):
            axis, _, size = part.strip().partition("=")
            if axis not in AXES:
                raise UserError(f"config.mesh: unknown axis {axis!r} in {spec!r}{near_misses(axis, AXES)}")
            if not size.isdecimal() or int(size) < 1:
                raise UserError(f"config.mesh: {part.strip()!r} in {spec!r} is not AXIS=NUMBER")
            sizes[axis] = int(size)
    if math.prod(sizes.values()) != len(devices):
        raise UserError(
            f"config.mesh: {spec!r} asks for {math.prod(sizes.values())} devices, there are {len(devices)}; "
            "the sizes must multiply to that, or use 'auto'"
        )
    mesh = jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)
    for copies in mesh.devices.reshape(-1, sizes["tensor"]):
        if len({device.process_index for device in copies}) > 1:
            alike = sum(device.process_index == devices[0].process_index for device in devices)
            raise UserError(
                f"config.mesh: tensor={sizes['tensor']} spans processes, which read different rows; use at most "
                f"as many as a process has devices ({alike})"
            )
    return mesh


def keep_compiled() -> None:
    """Keeps compiled programs on disk, for the next process."""
    jax.config.update("jax_compilation_cache_dir", str(cache() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def batch_sharding(mesh: Mesh, batch_size: int | None = None, key: str = "batch_size") -> NamedSharding:
    """Rows over `data` and `fsdp`, everything else whole.

    Raises:
      UserError: when `batch_size`, the value of the config's `key`, is given and those axes do not divide it.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size is not None and batch_size % parts:
        raise UserError(
            f"config.{key} {batch_size} is not divisible by data * fsdp = {parts} of the mesh; "
            f"use {batch_size - batch_size % parts or parts} or another mesh"
        )
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, shapes: Any) -> Any:
    """Shardings of a training state: parameters by `PARAMETERS`, everything that mirrors one likewise, the rest whole.

    An axis that does not divide its dimension is left out for that parameter.

    Args:
      shapes: a pytree with `shape` at its leaves and a field or key `params` at its top.

    Returns:
      the same pytree of `NamedSharding`.
    """
    effects = rules.match(PARAMETERS, rules.flatten(shapes.params), (), "sharding")

    def place(key_path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        parts = rules.path_of(key_path).split("/")
        suffixes = ("/".join(parts[i:]) for i in range(len(parts)))
        axes = next((effects[s] for s in suffixes if s in effects), ())
        return NamedSharding(mesh, _fit(mesh, axes, leaf.shape))

    return jax.tree_util.tree_map_with_path(place, shapes)


def _fit(mesh: Mesh, axes: tuple[Any, ...], shape: tuple[int, ...]) -> PartitionSpec:
    if len(axes) > len(shape):
        return PartitionSpec()
    axes = (None,) * (len(shape) - len(axes)) + tuple(axes)
    sizes = [math.prod(mesh.shape[a] for a in ((axis,) if isinstance(axis, str) else axis or ())) for axis in axes]
    return PartitionSpec(*(a if n % s == 0 else None for a, n, s in zip(axes, shape, sizes, strict=True)))


def gathered(arrays: Any, mesh: Mesh) -> Any:
    """The global arrays of a tree, all on `mesh`, whole on every process's host; every process is to ask."""
    return jax.tree.map(np.asarray, _replicate(mesh)(arrays))


@functools.cache
def _replicate(mesh: Mesh) -> Callable[[Any], Any]:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))


def together(point: str) -> None:
    """Waits until every process is here, so that none reads what the first one is still writing."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(point)


def agreed(number: int) -> int:
    """The first process's number, on every process."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number))) if jax.process_count() > 1 else number


def place_batch(batch: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """Global arrays from this process's rows of each field."""
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}
