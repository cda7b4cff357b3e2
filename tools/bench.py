"""How fast this machine trains: both sides of each ratio in one run, medians over repeats.

python tools/bench.py step  [--config=configs/alive.py] [--config.KEY=VALUE ...]   the training step and the matmul peak
python tools/bench.py compile --topology=v5e:8x8 [--config=configs/alive.py:b16]   the step on a TPU that is not here
python tools/bench.py transport [--config=configs/sclip.py]   S-CLIP's step, labels by optimal transport or by softmax
python tools/bench.py input [--config=configs/alive.py] [--config.KEY=VALUE ...]   the input pipeline, for each core
python tools/bench.py joint [--config=configs/alive.py]      a step of both losses beside a step of each
python tools/bench.py locked [--config=configs/lit.py]       LiT's step on kept features beside computing them
python tools/bench.py aligner                     AgriCLIP's aligner in closed form beside 70 epochs of SGD
python tools/bench.py corpus                                                       drawing the embedded corpus
python tools/bench.py build [--source=PHOTOS]     photos to an ALive folder, beside a plain loop that reads the same
python tools/bench.py memory                      how much of it a build takes as the collection grows
python tools/bench.py duplicates                  a million perceptual hashes among themselves
python tools/bench.py import [--source=MODEL]     weights of others to devices, beside reading the file alone
python tools/bench.py eval [--config=...]         evaluation beside the bare forward pass; then the next two
python tools/bench.py zeroshot                    50,000 images among 10,000 classes: seconds and memory
python tools/bench.py retrieval                   50,000 images and 250,000 texts, both ways: seconds and memory
"""

import argparse
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from agriclip_jax.errors import RunFailure, UserError, exit_on_user_error

KEYWORDS = tuple(f"leaf {i}" for i in range(100))
# Of the chips of a TPU topology: bfloat16 operations a second and GiB of memory, as their maker states them.
CHIPS = {"v4": (275e12, 32), "v5e": (197e12, 16), "v5p": (459e12, 95), "v6e": (918e12, 32)}


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=tuple(BENCHES))
    parser.add_argument(
        "--config", metavar="FILE[:VARIANT]", help="default: configs/alive.py; of transport sclip.py, of locked lit.py"
    )
    parser.add_argument("--topology", metavar="CHIP:SHAPE", help="for compile: such as v5e:8x8 or v5p:4x4x4")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--source", metavar="PHOTOS", help="for build and import: yours, instead of drawn ones")
    parser.add_argument("--count", type=int, metavar="N", help="photos, the most of memory, or hashes")
    parser.add_argument("--out", metavar="FILE.json", help="also write the figures")
    options, rest = parser.parse_known_args()
    if options.repeats < 1:
        raise UserError(f"--repeats={options.repeats} is less than 1")
    return options, rest


def main() -> None:
    options, rest = parse_arguments()
    from agriclip_jax.files import check_file, write_whole

    if options.out:
        check_file(options.out)
    figures = BENCHES[options.what](options, rest)
    for name, value in figures.items():
        print(f"{name:34} {value:,.3f}" if isinstance(value, float) else f"{name:34} {value}")
    if options.out:
        write_whole(options.out, json.dumps(figures, indent=1) + "\n")


def load_config(options: argparse.Namespace, rest: list[str]):
    """The recipe that the command line asks for, with keywords in place of those that it would find in the data."""
    from agriclip_jax import config as configs

    config = configs.load(options.config or "configs/alive.py", configs.overrides(rest))
    configs.assign(config, {"sclip.phrases": KEYWORDS})
    return config


def bench_step(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Images/s of the compiled step on random batches, and its share of the matmul rate measured between the steps."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from agriclip_jax import config as configs
    from agriclip_jax import mesh
    from agriclip_jax.data.tokenizers import train as train_tokenizer

    config, repeats = load_config(options, rest), options.repeats
    tokenizer = train_tokenizer([f"leaf {i}" for i in range(500)], 600)
    devices = mesh.make(config.mesh)
    made = make_step(config, tokenizer, devices)
    state, batch = begin(made, config, tokenizer)
    began = time.perf_counter()
    compiled = made.step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - began

    operations = operations_of_a_step(config, tokenizer, batch)
    side = 2048 if devices.devices.flat[0].platform == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(1), (side, side), jnp.dtype(config.dtype))
    multiply = jax.jit(lambda a: a @ a)
    multiply(matrix).block_until_ready()
    state, _ = compiled(state, batch)
    jax.block_until_ready(state)
    steps, peaks = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        steps.append(time.perf_counter() - began)
        began = time.perf_counter()
        multiply(matrix).block_until_ready()
        peaks.append(2 * side**3 / (time.perf_counter() - began))
    seconds, peak = float(np.median(steps)), float(np.median(peaks)) * devices.size
    memory = compiled.memory_analysis()
    return {
        "device": f"{devices.size} x {devices.devices.flat[0].device_kind}",
        "images/s": configs.images_per_step(config) / seconds,
        "seconds/step (median)": seconds,
        "seconds/step (least, most)": f"{min(steps):.3f}, {max(steps):.3f}",
        "GFLOP/image": operations / configs.images_per_step(config) / 1e9,
        "GFLOP/s of the step": operations / seconds / 1e9,
        "GFLOP/s of a matmul": peak / 1e9,
        "share of the matmul peak": operations / seconds / peak,
        "compile seconds": compile_seconds,
        "temporary memory, MB/device": memory.temp_size_in_bytes / 1e6,
    }


class Made(NamedTuple):
    """The step of a recipe on given devices, and what it works on."""

    learner: Any
    init: Callable  # key -> state
    step: Callable  # jitted, not compiled: (state, which is donated, batch) -> (state, metrics)
    shapes: Any  # of the state
    shardings: Any  # of the state
    by_rows: Any  # the sharding of a batch


def make_step(config, tokenizer, devices) -> Made:
    """As the training loop does; nothing is compiled yet, and no array is made."""
    import jax

    from agriclip_jax import mesh, recipe

    learner, init = recipe.learner(config, tokenizer)
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings, by_rows = mesh.state_sharding(devices, shapes), mesh.batch_sharding(devices, config.batch_size)
    step = jax.jit(learner.step, donate_argnums=0, out_shardings=(shardings, None))
    return Made(learner, init, step, shapes, shardings, by_rows)


def begin(made: Made, config, tokenizer):
    """A state at step 0 and a random batch, on the devices."""
    import jax

    from agriclip_jax import mesh, recipe

    state = jax.jit(made.init, out_shardings=made.shardings)(jax.random.key(0))
    needs, width = recipe.fields(config, made.learner), made.learner.towers["image"].config.features
    rows = random_rows(config, recipe.views(config), needs, tokenizer, width)
    return state, mesh.place_batch(rows, made.by_rows)


def operations_of_a_step(config, tokenizer, batch) -> float:
    """Of the unrolled, not rematerialised step on all devices together, so that recomputation earns nothing."""
    import jax

    from agriclip_jax import recipe

    counted = config.copy_and_resolve_references()
    counted.remat = "none"
    for tower in (counted.image, counted.text):
        tower.unroll = 0
    learner, init = recipe.learner(counted, tokenizer)
    state = jax.eval_shape(init, jax.random.key(0))
    batch = {name: jax.ShapeDtypeStruct(row.shape, row.dtype) for name, row in batch.items()}
    with jax.default_device(jax.devices("cpu")[0]):  # the only platform that counts what it did not compile
        return jax.jit(learner.step).lower(state, batch).cost_analysis()["flops"]


def bench_compile(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """The step compiled by the TPU compiler for chips that are not here: its memory, operations and collectives.

    Nothing is run, so nothing is timed: images/s are those of a chip that never waits.
    """
    # No TPU is asked for, not even where one is; the others keep the compiler from complaining that none is found.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-1"}
    os.environ |= {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}
    import jax
    from jax.experimental import topologies

    from agriclip_jax import config as configs
    from agriclip_jax import mesh
    from agriclip_jax.data.tokenizers import train as train_tokenizer

    chip = (options.topology or "").partition(":")[0]
    if chip not in CHIPS:
        raise UserError(f"--topology={options.topology or ''}: give one of {', '.join(CHIPS)} and its shape: v5e:8x8")
    if not importlib.util.find_spec("libtpu"):
        raise UserError(f"--topology={options.topology}: the compiler is libtpu (pip install libtpu)")
    config = load_config(options, rest)
    tokenizer = train_tokenizer(list(KEYWORDS), 600)
    tokenizer.vocab_size = max(tokenizer.vocab_size, config.text.vocab_size)  # as that of a whole dataset
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=options.topology)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--topology={options.topology}: {' '.join(str(error).split())[:200]}") from None
    devices = mesh.make(config.mesh, described.devices)
    made = make_step(config, tokenizer, devices)
    batch = shapes_of_a_batch(config, made.learner, tokenizer)
    arguments = jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding),
        (made.shapes, batch),
        (made.shardings, dict.fromkeys(batch, made.by_rows)),
    )
    began = time.perf_counter()
    try:
        compiled = made.step.lower(*arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = str(error).splitlines()[0].partition(": ")[2]
        raise RunFailure(
            f"{options.topology}: {why} Try more chips, a smaller batch_size, config.remat=nothing_saveable, or fsdp "
            "in config.mesh"
        ) from None
    seconds, memory = time.perf_counter() - began, compiled.memory_analysis()
    peak, room = CHIPS[chip]
    operations, images = operations_of_a_step(config, tokenizer, batch), configs.images_per_step(config)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "chips": f"{devices.size} x {described.devices[0].device_kind}",
        "images on a chip": images / devices.size,
        "state and batch, GiB/chip": held / 2**30,
        "temporary memory, GiB/chip": memory.temp_size_in_bytes / 2**30,
        "share of its memory": (held + memory.temp_size_in_bytes) / 2**30 / room,
        "GFLOP/image": operations / images / 1e9,
        "images/s at the peak": images * devices.size * peak / operations,
        "collectives, a loop's once": collectives(compiled.as_text()),
        "compile seconds": seconds,
    }


def shapes_of_a_batch(config, learner, tokenizer) -> dict:
    """Of the fields that a step of the recipe reads, whatever its size: no array is made."""
    import jax

    from agriclip_jax import recipe

    one = config.copy_and_resolve_references()
    one.batch_size, one.data.unpaired_batch = 1, min(config.data.unpaired_batch, 1)
    width = learner.towers["image"].config.features
    rows = random_rows(one, recipe.views(one), recipe.fields(one, learner), tokenizer, width)
    counts = {"unpaired": config.data.unpaired_batch}
    return {
        name: jax.ShapeDtypeStruct((counts.get(name.partition("/")[0], config.batch_size), *row.shape[1:]), row.dtype)
        for name, row in rows.items()
    }


def collectives(program: str) -> str:
    """How many of each kind a compiled program has, and the MB that they leave on each device."""
    kinds = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
    found: dict[str, dict[str, float]] = {}
    # One of them may stand in several places, as parts of what runs meanwhile do: its channel tells which it is.
    for shapes, kind, channel in re.findall(rf"= (\S.*?) ({kinds})\(.*?channel_id=(\d+)", program):
        arrays = re.findall(r"(?:pred|[a-z]+(\d+))\[([\d,]*)\]", shapes)
        sizes = [int(bits or 8) / 8 * math.prod(map(int, filter(None, shape.split(",")))) for bits, shape in arrays]
        found.setdefault(kind, {})[channel] = sum(sizes)
    return ", ".join(f"{len(each)} {kind} ({sum(each.values()) / 1e6:,.1f} MB)" for kind, each in sorted(found.items()))


def bench_transport(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """What optimal transport adds to S-CLIP's step: 512 images with captions and 512 without, 100 keywords.

    The two steps differ in nothing but `sclip.assignment`.
    """
    from agriclip_jax import config as configs

    sizes = {"batch_size": "512", "data.unpaired_batch": "512"}
    config = configs.load(options.config or "configs/sclip.py", sizes | configs.overrides(rest))
    if not config.objectives.get("sclip"):
        raise UserError("config.objectives: transport is S-CLIP's; give config.objectives.sclip a weight")
    configs.assign(config, {"sclip.phrases": KEYWORDS})
    plain = config.copy_and_resolve_references()
    plain.sclip.assignment = "soft"
    times, memory = steps_in_turn({"transport": config, "softmax": plain}, options.repeats)
    return {
        "images/step": f"{config.batch_size} paired, {config.data.unpaired_batch} unpaired",
        **spent(times, memory),
        **ratio(times, "transport", ["softmax"]),
    }


def bench_joint(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """One step of both losses beside a step of each: what sharing the global views' forward pass saves."""
    from agriclip_jax import config as configs

    config = load_config(options, rest)
    both = {name: weight for name, weight in config.objectives.items() if weight}
    if not {"contrastive", "distill"} <= both.keys():
        raise UserError("config.objectives: joint needs contrastive and distill, each with a weight")
    recipes = {"joint": config}
    for name, others in (("contrastive", both.keys() - {"contrastive"}), ("distill", {"contrastive"})):
        recipes[name] = config.copy_and_resolve_references()
        configs.assign(recipes[name], {f"objectives.{other}": 0.0 for other in others})
    times, memory = steps_in_turn(recipes, options.repeats)
    return {**spent(times, memory), **ratio(times, "joint", ["contrastive", "distill"])}


def bench_locked(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """A step of LiT on kept features beside one that computes them, on batches that lie ready."""
    from agriclip_jax import config as configs

    kept = configs.load(options.config or "configs/lit.py", configs.overrides(rest))
    anew = kept.copy_and_resolve_references()
    anew.data.frozen_features = False
    times, memory = steps_in_turn({"kept": kept, "computed": anew}, options.repeats)
    return {**spent(times, memory), **ratio(times, "kept", ["computed"])}


def bench_aligner(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """The aligner in closed form beside the paper's 70 epochs of SGD, on the same features of `--count` photos.

    They are drawn: 384 of a spectrum that falls as 1 / k, and 512 that are a smooth function of them with noise.
    """
    import jax.numpy as jnp
    import numpy as np

    from agriclip_jax import aligner

    no_more(rest)
    count, rng = options.count or 50_000, np.random.default_rng(0)
    hidden = rng.standard_normal((count + 5_000, 384)) / np.arange(1, 385)
    x = (hidden @ rng.standard_normal((384, 384))).astype(np.float32) + 1
    y = (np.tanh(3 * hidden) @ rng.standard_normal((384, 512)) + 0.3 * rng.standard_normal((len(x), 512))).astype(
        np.float32
    )

    def batches(rows: slice):
        for start in range(rows.start, rows.stop, 1000):
            part = slice(start, min(start + 1000, rows.stop))
            yield jnp.asarray(x[part]), jnp.asarray(y[part]), jnp.ones(part.stop - part.start)

    held_out = aligner.moments(batches(slice(count, len(x))))
    fits: dict[str, list[tuple[float, float]]] = {"ridge": [], "sgd": []}
    for _ in range(options.repeats):
        began = time.perf_counter()
        found = aligner.ridge(aligner.moments(batches(slice(0, count))), held_out)
        fits["ridge"].append((time.perf_counter() - began, found.r2))
        began = time.perf_counter()
        fitted = aligner.sgd(x[:count], y[:count])
        fits["sgd"].append((time.perf_counter() - began, aligner.r2(fitted, held_out)))
    figures: dict[str, float | str] = {"photos": float(count)}
    for name, rows in fits.items():
        figures[f"seconds, {name}"], figures[f"held-out R2, {name}"] = (float(v) for v in np.median(rows, axis=0))
    seconds = np.array([[row[0] for row in fits[name]] for name in ("sgd", "ridge")])
    return figures | {"sgd / ridge, seconds": float(np.median(seconds[0] / seconds[1]))}


def steps_in_turn(recipes: dict, repeats: int) -> tuple[dict, dict]:
    """Compiles the step of each recipe in one process, then has them take turns on batches that lie ready.

    Returns:
      name -> (seconds by the clock, by the cores) of each repeat, and name -> temporary bytes on a device.
    """
    import jax

    from agriclip_jax import mesh
    from agriclip_jax.data.tokenizers import train as train_tokenizer

    compiled, states, batches = {}, {}, {}
    tokenizer = train_tokenizer(list(KEYWORDS), 600)
    for name, config in recipes.items():
        made = make_step(config, tokenizer, mesh.make(config.mesh))
        state, batches[name] = begin(made, config, tokenizer)
        compiled[name] = made.step.lower(state, batches[name]).compile()
        states[name], _ = compiled[name](state, batches[name])
    jax.block_until_ready(states)

    def step_once(name: str) -> None:
        states[name], _ = compiled[name](states[name], batches[name])
        jax.block_until_ready(states[name])

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in recipes}
    for repeat in range(repeats):
        for name in sorted(recipes, reverse=bool(repeat % 2)):  # whoever is second finds a warmer machine
            times[name].append(timed(lambda name=name: step_once(name)))
    return times, {name: step.memory_analysis().temp_size_in_bytes for name, step in compiled.items()}


def spent(times: dict, memory: dict) -> dict[str, float | str]:
    """The device, and of each recipe the median seconds of a step and its memory."""
    import jax
    import numpy as np

    figures: dict[str, float | str] = {"device": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
    for name, seen in times.items():
        figures[f"seconds/step (median), {name}"] = float(np.median(np.array(seen)[:, 0]))
        figures[f"temporary memory, MB/device, {name}"] = memory[name] / 1e6
    return figures


def ratio(times: dict, one: str, others: list[str]) -> dict[str, float | str]:
    """One recipe's step over the sum of others', turn by turn: the median, and its 95 % interval from 6 turns on."""
    import numpy as np
    from scipy import stats

    ratios = np.sort(np.array(times[one]) / sum(np.array(times[other]) for other in others), axis=0)
    beyond = int(stats.binom.ppf(0.025, len(ratios), 0.5)) - 1  # ranks of the median's 95 % interval
    figures: dict[str, float | str] = {}
    for of, by in zip(ratios.T, ("by the clock", "by the cores' time"), strict=True):
        figures[f"{one} / {' + '.join(others)}, {by}"] = float(np.median(of))
        if beyond >= 0:
            figures[f"95 % interval, {by}"] = f"{of[beyond]:.3f}, {of[-1 - beyond]:.3f}"
    return figures


def random_rows(config, views, needs, tokenizer, width: int = 0) -> dict:
    """One batch of the needed fields with random content; `width` is that of image features."""
    import numpy as np

    from agriclip_jax.data import masks

    rng, rows = np.random.default_rng(0), {}
    for name, spec in views.items():
        for stream, count in (("", config.batch_size), ("unpaired/", config.data.unpaired_batch)):
            shape = (count, spec.count, spec.size, spec.size, 3)
            rows[f"{stream}image/{name}"] = rng.integers(0, 256, shape, np.uint8)
    rows["features/global"] = rng.standard_normal((config.batch_size, 1, width), np.float32)
    rows["mentions"] = rng.random((config.batch_size, len(config.sclip.phrases))) < 0.02
    rows["tokens"] = tokenizer.encode(["a photo of a leaf"] * config.batch_size, config.text.context_length)
    for name in ("caption_id", "class_id"):
        rows[name] = rng.integers(0, 2**31, (config.batch_size, 2)).astype(np.uint32)
    if "mask" in needs:
        count, grid = views["global"].count, views["global"].size // config.image.patch
        rows["mask"] = np.stack([masks.draw(rng, count, grid) for _ in range(config.batch_size)])
    return {name: value for name, value in rows.items() if name in needs}


def bench_input(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Images/s of the training pipeline by one thread, by all cores' threads and by as many processes."""
    import numpy as np

    from agriclip_jax import config as configs
    from agriclip_jax import recipe
    from agriclip_jax.data import corpus, pipeline
    from agriclip_jax.data.parallel import cores
    from agriclip_jax.data.records import Alive
    from agriclip_jax.data.tokenizers import train as train_tokenizer

    config, repeats = load_config(options, rest), options.repeats
    alive = Alive.open(config.data.path or corpus.ensure())
    chosen = recipe.select(config, alive, recipe.replayed(config, alive))
    captions = pipeline.captions(chosen.captioned(), config.data.caption_kinds)
    tokenizer = train_tokenizer(captions, config.text.vocab_size)
    learner, _ = recipe.learner(config, tokenizer)
    figures: dict[str, float | str] = {"examples": float(alive.splits["train"]), "cores": float(cores())}
    ways = {"1 thread": (1, 0), "1 worker": (0, 1)}
    if cores() > 1:
        ways = {"1 thread": (1, 0), f"{cores()} threads": (cores(), 0), f"{cores()} workers": (0, cores())}
    for name, (config.data.threads, config.data.workers) in ways.items():
        batches = recipe.batches(config, chosen, tokenizer, learner)
        for _ in range(cores() + 2):
            next(batches)
        clock, cpu = [], []
        for _ in range(repeats):
            began, used = time.perf_counter(), time.process_time()
            for _ in range(4):
                next(batches)
            clock.append(4 * configs.images_per_step(config) / (time.perf_counter() - began))
            cpu.append(4 * configs.images_per_step(config) / (time.process_time() - used))
        batches.close()
        figures[f"images/s, {name}"] = float(np.median(clock))
        if not config.data.workers:  # whose time is not this process's
            figures[f"images/s per core, {name}"] = float(np.median(cpu))
    return figures


def bench_corpus(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Images/s at which one core draws the embedded corpus, encoded and captioned, every class once a repeat."""
    import numpy as np

    from agriclip_jax.data import corpus

    size, speeds, seed = 64, [], load_config(options, rest).seed
    for index in range(options.repeats):
        used = time.process_time()
        for kind in corpus.KINDS:
            corpus.example(kind, kind.splits[0], index, seed=seed, size=size)
        speeds.append(len(corpus.KINDS) / (time.process_time() - used))
    speed = float(np.median(speeds))
    return {"image side": float(size), "classes": float(len(corpus.KINDS)), "images/s per core": speed}


def bench_build(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Images/s of a whole build on photos of 96 and of 1,024 pixels, and of a plain loop over the same photos.

    The plain loop is what an ImageFolder does: walk the class folders, open each photo with Pillow, decode it to RGB.
    """
    import tempfile
    from pathlib import Path

    import numpy as np

    from agriclip_jax.data.parallel import cores

    no_more(rest)
    if options.source and not Path(options.source).is_dir():
        raise UserError(f"--source={options.source} is no folder; give one with a folder for each class")
    figures: dict[str, float | str] = {"cores": float(cores())}
    with tempfile.TemporaryDirectory() as scratch:
        folders = {"given": Path(options.source)} if options.source else {}
        for side, count in () if options.source else ((96, 2000), (1024, 300)):
            folders[f"{side} px"] = draw_photos(Path(scratch) / str(side), options.count or count, side)
        for name, folder in folders.items():
            loops, builds = [], []
            for repeat in range(options.repeats):
                loops.append(timed(lambda folder=folder: plain_loop(folder)))
                builds.append(timed(lambda f=folder, r=repeat, n=name: build_once(f, Path(scratch) / f"{n}{r}")))
            count = plain_loop(folder)
            figures[f"{name}: photos"] = float(count)
            for what, times in (("plain loop", loops), ("build", builds)):
                clock, core = np.median(np.array(times), axis=0)
                figures[f"{name}: {what}, images/s"] = count / clock
                figures[f"{name}: {what}, images/s per core"] = count / core
            clock = [build[0] / loop[0] for build, loop in zip(builds, loops, strict=True)]
            core = [build[1] / loop[1] for build, loop in zip(builds, loops, strict=True)]
            figures[f"{name}: build / plain loop, by the clock"] = float(np.median(clock))
            figures[f"{name}: build / plain loop, by a core's time"] = float(np.median(core))
            figures[f"{name}: minutes for 600,000"] = 600_000 / figures[f"{name}: build, images/s"] / 60
    return figures


def no_more(rest: list[str]) -> None:
    """Raises UserError for arguments that nothing takes."""
    if rest:
        raise UserError(f"unknown argument {rest[0]}; see --help")


def timed(work) -> tuple[float, float]:
    """Seconds by the clock and of the cores that some work takes."""
    began, used = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - used


def draw_photos(folder, count: int, side: int):
    """A class-per-folder tree of distinct JPEGs as large in bytes as photos are: soft shapes and a camera's grain."""
    import numpy as np
    from PIL import Image

    for number in range(count):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8))
        pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-12, 13, (side, side, 1), np.int16)
        path = folder / f"class {number % 20:02}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def plain_loop(folder) -> int:
    """Opens and decodes every photo of a tree; gives their number."""
    from PIL import Image

    from agriclip_jax.data.sources.files import is_photo

    count = 0
    for path in sorted(path for path in folder.rglob("*") if is_photo(path.name)):
        with path.open("rb") as file:
            Image.open(file).convert("RGB")
        count += 1
    return count


def build_once(folder, out) -> None:
    """Builds an ALive folder of a tree, with its card, and removes it."""
    import shutil

    from agriclip_jax.data import build, knowledge, sources

    build.build(out, sources.find([str(folder)]), build.Plan(knowledge=knowledge.table()))
    shutil.rmtree(out)


def bench_memory(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """The most memory that a build holds, for a small and a large collection, each in a process of its own."""
    import subprocess
    import tempfile
    from pathlib import Path

    no_more(rest)
    figures: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for count in (1_000, options.count or 50_000):
            folder = draw_photos(Path(scratch) / str(count), count, 64)
            tool = [sys.executable, str(Path(__file__).with_name("build_alive.py"))]
            command = [*tool, f"--source={folder}", f"--out={scratch}/alive{count}"]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            if status:
                raise UserError(f"the build of {count} photos failed with status {os.waitstatus_to_exitcode(status)}")
            figures[f"MB for {count:,} photos"] = usage.ru_maxrss / 1e3
            figures[f"seconds of the cores for {count:,} photos"] = usage.ru_utime + usage.ru_stime
    return figures


def bench_duplicates(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Seconds to find all near pairs among a million hashes, one in a hundred of which has a near copy planted."""

    import numpy as np

    from agriclip_jax.data import curation, duplicates

    no_more(rest)
    count = options.count or 1_000_000
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, (count, 4), np.uint64)
    copies = rng.permutation(count)[: 2 * (count // 100)].reshape(2, -1)
    flipped = np.argsort(rng.random((copies.shape[1], 256)), axis=1)[:, : duplicates.NEAR]
    bits = np.zeros((copies.shape[1], 256), np.uint8)
    np.put_along_axis(bits, flipped, 1, axis=1)
    hashes[copies[1]] = hashes[copies[0]] ^ np.packbits(bits, axis=1).view(np.uint64)
    began, used = time.perf_counter(), time.process_time()
    pairs = duplicates.near_pairs(hashes)
    searched = time.perf_counter() - began, time.process_time() - used
    planted = set(map(tuple, np.sort(copies.T).tolist()))
    found = len(planted & set(map(tuple, pairs.tolist())))
    deciding = time.perf_counter()
    stays = curation.keepers(hashes)
    return {
        "hashes": float(count),
        "pairs planted": float(len(planted)),
        "planted pairs found": float(found),
        "pairs": float(len(pairs)),
        "seconds of the search": searched[0],
        "seconds of the search, of the cores": searched[1],
        "seconds to decide who stays": time.perf_counter() - deciding,
        "hashes that stay": float((stays == np.arange(count)).sum()),
        "MB": peak_memory(),
    }


def bench_eval(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Photos/s from files to features and embeddings, beside the bare forward pass on a batch that lies ready.

    And photos/s from files to pixels, without a model: where that is near, or on the same cores, decoding is the limit.
    Then `zeroshot` and `retrieval`, each in a process of its own, so that its memory is its own.
    """
    import subprocess
    import tempfile
    from functools import partial
    from pathlib import Path

    import jax
    import numpy as np

    from agriclip_jax import inference, mesh, recipe
    from agriclip_jax.data import views
    from agriclip_jax.data.parallel import parallel_map
    from agriclip_jax.data.tokenizers import train as train_tokenizer
    from agriclip_jax.evaluate import features, tasks

    config, count = load_config(options, rest), options.count or 1024
    tokenizer = train_tokenizer([f"leaf {i}" for i in range(500)], 600)
    learner, init = recipe.learner(config, tokenizer)
    towers = dict(learner.towers)
    params = jax.jit(init)(jax.random.key(0)).params
    model = inference.Model(config, towers, params, tokenizer, mesh.make("auto"), Path("none"), 0)
    image = towers["image"]
    forward = jax.jit(lambda p, x: image(p, image(p, x).pooled, method="embed"))
    side = config.image_size
    ready = jax.device_put(np.zeros((features.BATCH, side, side, 3), np.uint8))
    passes, bare, decoding = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        (task,) = tasks.load_tasks(str(draw_photos(Path(scratch) / "photos", count, side * 4 // 3)))
        features.of_task(model, task)
        forward(params["image"], ready).block_until_ready()
        for _ in range(options.repeats):
            bare.append(timed(lambda: [forward(params["image"], ready).block_until_ready() for _ in range(8)])[0])
            passes.append(timed(lambda: features.of_task(model, task))[0])
            load = partial(views.load_view, view=views.EvalView(side))
            pixels = parallel_map(load, (photo.image for photo in task.photos()))
            decoding.append(timed(lambda pixels=pixels: sum(1 for _ in pixels))[0])
    speed, peak = count / float(np.median(passes)), 8 * features.BATCH / float(np.median(bare))
    ratios = [count / a / (8 * features.BATCH / b) for a, b in zip(passes, bare, strict=True)]
    figures: dict[str, float | str] = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "photos/s, files to features": speed,
        "photos/s, files to pixels": count / float(np.median(decoding)),
        "images/s of the bare forward pass": peak,
        "share of the bare forward pass": float(np.median(ratios)),
    }
    for what in ("zeroshot", "retrieval"):
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "figures.json"
            command = [sys.executable, __file__, what, f"--out={out}"]
            command += [f"--count={options.count}"] if options.count else []
            told = subprocess.run(command, capture_output=True, text=True)
            if told.returncode:
                raise UserError(f"bench.py {what} ended with status {told.returncode}: {told.stderr.strip()[-200:]}")
            figures |= {f"{what}: {name}": value for name, value in json.loads(out.read_text()).items()}
    return figures


def bench_import(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Seconds from a file of CLIP ViT-B/16's size to arrays on devices, those of reading the file alone, and memory.

    The file is drawn in one process and read in another, so that memory is that of reading.
    """
    import subprocess
    import tempfile
    from pathlib import Path

    import jax
    import numpy as np

    from agriclip_jax import initial, mesh, recipe
    from agriclip_jax.data.tokenizers import train as train_tokenizer

    no_more(rest)
    if not options.source:
        with tempfile.TemporaryDirectory() as scratch:
            file, out = draw_clip(Path(scratch) / "model.safetensors"), Path(scratch) / "figures.json"
            command = [sys.executable, __file__, "import", f"--source={file}", f"--out={out}"]
            told = subprocess.run([*command, f"--repeats={options.repeats}"], capture_output=True, text=True)
            if told.returncode:
                raise UserError(f"bench.py import ended with status {told.returncode}: {told.stderr.strip()[-200:]}")
            return json.loads(out.read_text())
    config = load_config(options, [f"--config.init.model={options.source}"])
    found = initial.sources(config)
    tower = found["image"].towers["image"]
    config.image_size = tower.image_size
    config.views.local.count = 0
    initial.adopt(config, found)
    tokenizer = train_tokenizer(["leaf"], 600)
    _, init = recipe.learner(config, tokenizer)
    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = mesh.state_sharding(mesh.make(config.mesh), shapes)
    file = Path(options.source)
    files = [part for part in file.iterdir() if part.is_file()] if file.is_dir() else [file]
    before, reads, imports = peak_memory(), [], []
    for _ in range(options.repeats):
        reads.append(timed(lambda: [read_through(part) for part in files])[0])
        began = time.perf_counter()
        arrays = initial.parameters(initial.sources(config), shapes.params, shardings.params)
        jax.block_until_ready(arrays)
        imports.append(time.perf_counter() - began)
        size = sum(array.nbytes for array in arrays.values()) / 1e6
        del arrays
    return {
        "MB of parameters": size,
        "seconds, file to devices": float(np.median(imports)),
        "seconds to read the file": float(np.median(reads)),
        "seconds beyond reading": float(np.median([a - b for a, b in zip(imports, reads, strict=True)])),
        "MB that the process grew by": peak_memory() - before,
    }


def peak_memory() -> float:
    """MB, the most that this process has held; the usage that Linux reports begins with that of whoever started it."""
    import resource
    from pathlib import Path

    status = Path("/proc/self/status")
    if status.is_file():
        return float(status.read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def read_through(file) -> None:
    """Reads a file and keeps nothing."""
    with file.open("rb", buffering=0) as bytes_of:
        while bytes_of.read(16 << 20):
            pass


def draw_clip(file):
    """A CLIP ViT-B/16 of random weights as transformers writes it; its path."""
    import jax

    from agriclip_jax import encoders, rules
    from agriclip_jax.encoders import text, vit
    from agriclip_jax.weights import exporting, names
    from agriclip_jax.weights.families import FAMILIES

    words = encoders.block_config("S", width=512, depth=12, heads=8)
    image = vit.ViTConfig(encoders.block_config("B"), 16, 224, pre_norm=True, patch_bias=False)
    towers = {"image": image, "text": text.TextConfig(words, 49_408, 77, end_id=49_407)}
    rows = FAMILIES["clip (transformers)"]
    params = {name: rules.flatten(encoders.tower(of).init(jax.random.key(0))) for name, of in towers.items()}
    scale = {"logit_scale": jax.numpy.float32(4.6)}

    def arrays():
        for tower, of in params.items():
            yield from names.write(rows.towers[tower], of)
        yield from names.write(rows.scale, scale)

    exporting.save(file, arrays)
    return file


def bench_zeroshot(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Seconds and memory to classify images among a fifth as many classes, d = 512, and to score the answers."""

    import numpy as np

    from agriclip_jax.evaluate import measures

    no_more(rest)
    count = options.count or 50_000
    images, classes = random_embeddings(count, 0), random_embeddings(max(2, count // 5), 1)
    began = time.perf_counter()
    answers = measures.classify(images, classes, 7 * np.arange(count) % len(classes), 100.0)
    classified = time.perf_counter() - began
    measures.score(answers)
    return {
        "images": float(count),
        "classes": float(len(classes)),
        "seconds to classify": classified,
        "seconds to score": time.perf_counter() - began - classified,
        "MB": peak_memory(),
    }


def bench_retrieval(options: argparse.Namespace, rest: list[str]) -> dict[str, float | str]:
    """Seconds and memory of retrieval both ways, five texts an image, d = 512."""

    import numpy as np

    from agriclip_jax.evaluate import retrieval

    no_more(rest)
    count = options.count or 50_000
    images, texts = random_embeddings(count, 0), random_embeddings(5 * count, 1)
    keys = np.arange(count)
    began = time.perf_counter()
    retrieval.retrieve(images, texts, keys, np.repeat(keys, 5))
    return {
        "images": float(count),
        "texts": float(len(texts)),
        "seconds": time.perf_counter() - began,
        "MB": peak_memory(),
    }


def random_embeddings(count: int, seed: int):
    """float32 [count, 512], L2-normalised."""
    import numpy as np

    rows = np.random.default_rng(seed).standard_normal((count, 512), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


BENCHES = {
    "joint": bench_joint,
    "locked": bench_locked,
    "aligner": bench_aligner,
    "eval": bench_eval,
    "import": bench_import,
    "zeroshot": bench_zeroshot,
    "retrieval": bench_retrieval,
    "duplicates": bench_duplicates,
    "step": bench_step,
    "compile": bench_compile,
    "transport": bench_transport,
    "input": bench_input,
    "corpus": bench_corpus,
    "build": bench_build,
    "memory": bench_memory,
}

if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    exit_on_user_error(main)
