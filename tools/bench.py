"""How fast this machine trains: both sides of each ratio in one run, medians over repeats.

python tools/bench.py step  [--config=configs/alive.py] [--config.KEY=VALUE ...]   the training step and the matmul peak
python tools/bench.py input [--config=configs/alive.py] [--config.KEY=VALUE ...]   the input pipeline, for each core
python tools/bench.py corpus                                                       drawing the embedded corpus
"""

import argparse
import json
import sys
import time

from agriclip_jax.errors import UserError, exit_on_user_error


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("what", choices=("step", "input", "corpus"))
    parser.add_argument("--config", default="configs/alive.py", metavar="FILE[:VARIANT]", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE.json", help="also write the figures")
    options, rest = parser.parse_known_args()
    if options.repeats < 1:
        raise UserError(f"--repeats={options.repeats} is less than 1")
    return options, rest


def main() -> None:
    options, rest = parse_arguments()
    from agriclip_jax import config as configs
    from agriclip_jax.files import check_file, write_whole

    if options.out:
        check_file(options.out)
    config = configs.load(options.config, configs.overrides(rest))
    figures = {"step": bench_step, "input": bench_input, "corpus": bench_corpus}[options.what](config, options.repeats)
    for name, value in figures.items():
        print(f"{name:34} {value:,.3f}" if isinstance(value, float) else f"{name:34} {value}")
    if options.out:
        write_whole(options.out, json.dumps(figures, indent=1) + "\n")


def bench_step(config, repeats: int) -> dict[str, float | str]:
    """Images/s of the compiled step on random batches, and its share of the matmul rate measured between the steps.

    The model's operations are counted on the unrolled, not rematerialised step, so recomputation earns nothing.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from agriclip_jax import mesh, recipe
    from agriclip_jax.data.tokenizers import train as train_tokenizer
    from agriclip_jax.state import batch_fields

    tokenizer = train_tokenizer([f"leaf {i}" for i in range(500)], 600)
    devices = mesh.make(config.mesh)
    sharding = mesh.batch_sharding(devices, config.batch_size)

    learner, init = recipe.learner(config, recipe.towers(config, tokenizer))
    shardings = mesh.state_sharding(devices, jax.eval_shape(init, jax.random.key(0)))
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    rows = random_rows(config, recipe.views(config), batch_fields(learner.objectives), tokenizer)
    batch = mesh.place_batch(rows, sharding)
    step = jax.jit(learner.step, donate_argnums=0, out_shardings=(shardings, None))
    began = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - began

    counted = config.copy_and_resolve_references()
    counted.remat = "none"
    for tower in (counted.image, counted.text):
        tower.unroll = 0
    plain, plain_init = recipe.learner(counted, recipe.towers(counted, tokenizer))
    abstract = jax.eval_shape(plain_init, jax.random.key(0))
    operations = jax.jit(plain.step).lower(abstract, rows).cost_analysis()["flops"]

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
        "images/s": config.batch_size / seconds,
        "seconds/step (median)": seconds,
        "seconds/step (least, most)": f"{min(steps):.3f}, {max(steps):.3f}",
        "GFLOP/image": operations / config.batch_size / 1e9,
        "GFLOP/s of the step": operations / seconds / 1e9,
        "GFLOP/s of a matmul": peak / 1e9,
        "share of the matmul peak": operations / seconds / peak,
        "compile seconds": compile_seconds,
        "temporary memory, MB/device": memory.temp_size_in_bytes / 1e6,
    }


def random_rows(config, views, needs, tokenizer) -> dict:
    """One batch of the needed fields with random content."""
    import numpy as np

    rng, rows = np.random.default_rng(0), {}
    for name, spec in views.items():
        shape = (config.batch_size, spec.count, spec.size, spec.size, 3)
        rows[f"image/{name}"] = rng.integers(0, 256, shape, np.uint8)
    rows["tokens"] = tokenizer.encode(["a photo of a leaf"] * config.batch_size, config.text.context_length)
    for name in ("caption_id", "class_id"):
        rows[name] = rng.integers(0, 2**31, (config.batch_size, 2)).astype(np.uint32)
    return {name: value for name, value in rows.items() if name in needs}


def bench_input(config, repeats: int) -> dict[str, float | str]:
    """Images/s of the training pipeline for one thread and for all cores: by the clock, and by a core's own time."""
    import numpy as np

    from agriclip_jax import recipe
    from agriclip_jax.data import corpus, pipeline
    from agriclip_jax.data.records import Alive, cores
    from agriclip_jax.data.tokenizers import train as train_tokenizer

    alive = Alive.open(config.data.path or corpus.ensure())
    tokenizer = train_tokenizer(pipeline.captions(alive, "train", config.data.caption_kinds), config.text.vocab_size)
    learner, _ = recipe.learner(config, recipe.towers(config, tokenizer))
    figures: dict[str, float | str] = {"examples": float(alive.splits["train"]), "cores": float(cores())}
    for threads in sorted({1, cores()}):
        batches = recipe.batches(config, alive, tokenizer, learner, threads)
        for _ in range(threads + 2):
            next(batches)
        clock, cpu = [], []
        for _ in range(repeats):
            began, used = time.perf_counter(), time.process_time()
            for _ in range(4):
                next(batches)
            clock.append(4 * config.batch_size / (time.perf_counter() - began))
            cpu.append(4 * config.batch_size / (time.process_time() - used))
        batches.close()
        figures[f"images/s, {threads} thread{'s' * (threads > 1)}"] = float(np.median(clock))
        figures[f"images/s per core, {threads} thread{'s' * (threads > 1)}"] = float(np.median(cpu))
    return figures


def bench_corpus(config, repeats: int) -> dict[str, float | str]:
    """Images/s at which one core draws the embedded corpus, encoded and captioned, every class once a repeat."""
    import numpy as np

    from agriclip_jax.data import corpus

    size, speeds = 64, []
    for index in range(repeats):
        used = time.process_time()
        for kind in corpus.KINDS:
            corpus.example(kind, kind.splits[0], index, seed=config.seed, size=size)
        speeds.append(len(corpus.KINDS) / (time.process_time() - used))
    speed = float(np.median(speeds))
    return {"image side": float(size), "classes": float(len(corpus.KINDS)), "images/s per core": speed}


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    exit_on_user_error(main)
