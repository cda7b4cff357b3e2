"""A trained model as ONNX, through jax2onnx: in float32, in float16 and with int8 matrices, and what each costs.

Every file is of the standard's own operators, its layers unrolled, and takes any number of rows.
"""

import contextlib
import dataclasses
import importlib.util
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from agriclip_jax import encoders
from agriclip_jax.data.tokenizers import Tokenizer
from agriclip_jax.data.views import EvalView
from agriclip_jax.encoders import resnet, text
from agriclip_jax.errors import RunFailure, UserError
from agriclip_jax.files import write_json
from agriclip_jax.weights import standalone
from agriclip_jax.weights.standalone import Tower

PACKAGES = ("jax2onnx", "onnx", "onnxruntime")
INSTALL = "pip install 'jax2onnx>=0.13,<0.14' onnxruntime"
OPSET = 18  # of 2022: the first with all operators of ours; onnxruntime reads it from 1.14 on
MOST_BYTES = 2**31 - 2**24  # of parameters in one file: protobuf ends at 2 GiB
TOLERANCE = 1e-4  # of float32 embeddings, whose length is 1
VARIANTS = {"fp32": "", "fp16": ".fp16", "int8": ".int8"}  # what follows the tower in a file's name
BATCH = 16  # rows that are timed together
ROUNDS = 15


@dataclasses.dataclass(frozen=True)
class Runtime:
    """One variant as onnxruntime computes it on the CPU: an `evaluate.features.Embedder`.

    Attributes:
      sessions: "image" and "text".
      tokenizer: of the text tower.
      length: of a row of token ids.
      image_size: side of the photos, pixels.
      view: how photos become so.
      logit_scale: what cosines are multiplied with.
      fingerprint: of the variant.
    """

    sessions: Mapping[str, Any]
    tokenizer: Tokenizer
    length: int
    image_size: int
    view: EvalView
    logit_scale: float
    fingerprint: str

    def embed(self, tower: str, rows: np.ndarray) -> np.ndarray:
        """L2-normalised float32 [n, dim] of n rows."""
        (embeddings,) = self.sessions[tower].run(None, {"rows": rows})
        return embeddings

    def look(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The embeddings of images, twice: these files do not give the features before the projection."""
        embeddings = self.embed("image", images)
        return embeddings, embeddings

    def embed_texts(self, texts: Sequence[str], *, normalise: bool = True) -> np.ndarray:
        """Embeddings of texts, always of length 1: these files give no others."""
        rows = self.tokenizer.encode(texts, self.length)
        return np.concatenate([self.embed("text", rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)])


def write(
    model: Any,
    out: Path,
    say: Callable[[str], None],
    score: Callable[[Runtime], Mapping[str, float]] | None = None,
) -> None:
    """Writes TOWER.onnx, TOWER.fp16.onnx and TOWER.int8.onnx, and what they cost as onnx.json and in README.md.

    Args:
      model: an `inference.Model`.
      out: an empty folder.
      say: tells the user a line.
      score: the share of right answers by task of a variant; None leaves accuracy unmeasured.

    Raises:
      UserError: the converter is not installed, or a tower is too large for the format.
      RunFailure: the converted towers compute something else.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--format=onnx needs {' and '.join(missing)}; install them: {INSTALL}")
    towers = {name: plain(tower) for name, tower in standalone.towers(model).items()}
    if getattr(model.towers["image"].config, "stem", "") == "plain":  # onnxruntime pools over three axes at most
        raise UserError("--format=onnx has no place for the max pool of a plain ResNet; --format=stablehlo has")
    for name, tower in towers.items():
        size = sum(array.nbytes for array in tower.params.values())
        if size > MOST_BYTES:
            raise UserError(
                f"--format=onnx: the {name} tower takes {size / 2**30:.1f} GiB, and an ONNX file holds less than 2; "
                "--format=stablehlo has no such limit"
            )
    with _quiet():
        for name, tower in towers.items():
            say(f"converting the {name} tower")
            convert(tower, out / f"{name}.onnx")
            halve(out / f"{name}.onnx", out / f"{name}.fp16.onnx")
            quantise(out / f"{name}.onnx", out / f"{name}.int8.onnx")
    model.tokenizer.save(out / "tokenizer.json")
    say("measuring the variants")
    record = measure(model, towers, out, score)
    write_json(out / "onnx.json", record)
    (out / "README.md").write_text(_readme(model, record), encoding="utf-8")


def plain(tower: Tower) -> Tower:
    """The same tower in float32, without what only training needs."""
    config = tower.network.config
    if isinstance(config, resnet.ResNetConfig):
        config = dataclasses.replace(config, dtype="float32")
    else:
        blocks = dataclasses.replace(config.blocks, dtype="float32", remat="none", attention=None)
        config = dataclasses.replace(config, blocks=blocks)
    return tower._replace(network=encoders.tower(config))


def convert(tower: Tower, path: Path) -> None:
    """Writes what `plain` returned as an ONNX file of any number of "rows" to "embeddings"."""
    import onnx
    import onnxruntime
    from jax2onnx import to_onnx

    params = {name: jnp.asarray(array) for name, array in tower.params.items()}

    def embed(rows: jax.Array) -> jax.Array:
        with jax.disable_jit():  # where a scan is a loop in Python: each layer becomes nodes of its own
            return tower.embed(params, rows)

    rows = jax.ShapeDtypeStruct((jax.export.symbolic_shape("batch")[0], *tower.row.shape), tower.row.dtype)
    function = embed
    if _only_by_primitives(tower.network.config):
        primitives = jaxpr_as_fun(jax.make_jaxpr(embed)(rows))
        function = lambda rows: primitives(rows)[0]  # noqa: E731
    graph = to_onnx(function, [rows], opset=OPSET, input_names=["rows"], output_names=["embeddings"])
    _as_matmul(graph.graph.node)
    onnx.save(graph, path)
    # The layers are slices of stacked parameters. onnxruntime makes arrays of them, which can then be quantised.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    folded = path.with_suffix(".folded")
    options.optimized_model_filepath = str(folded)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folded)
    folded.unlink()
    del graph.opset_import[:]  # it names every extension that onnxruntime has
    graph.opset_import.append(onnx.helper.make_opsetid("", OPSET))
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def _as_matmul(nodes: Any) -> None:
    """Changes `1 A B + 0 C`, which is jax2onnx's product of two matrices, to `A B`, the one that is quantised."""
    for node in nodes:
        given = {attribute.name: attribute.i or attribute.f for attribute in node.attribute}
        if node.op_type == "Gemm" and given == {"alpha": 1, "beta": 0}:
            node.op_type = "MatMul"
            del node.attribute[:], node.input[2:]


def _only_by_primitives(config: Any) -> bool:
    """Whether jax2onnx fails on layers of a tower that it knows by name: convolutions, and attention up to a length."""
    if isinstance(config, text.TextConfig):
        return not config.causal and config.pool != "last"
    return isinstance(config, resnet.ResNetConfig)


def halve(path: Path, out: Path) -> None:
    """Writes a float32 file as float16, its input and output and the normalising end left as they are."""
    import onnx
    from onnxruntime.transformers import float16

    model = onnx.load(path)
    # A squared length may lie beyond float16's 65,504, and a root that is rounded gives embeddings of another length.
    (end,) = (i for i, node in enumerate(model.graph.node) if node.op_type == "ReduceSumSquare")
    kept = [node.name for node in model.graph.node[end:]]
    model = float16.convert_float_to_float16(model, keep_io_types=True, node_block_list=kept)
    # The converter rounds also between two nodes that it leaves alone.
    casts = {node.output[0]: node for node in model.graph.node if node.op_type == "Cast"}
    for cast in casts.values():
        if cast.attribute[0].i == onnx.TensorProto.FLOAT and (before := casts.get(cast.input[0])):
            cast.input[0] = before.input[0]
    onnx.save(model, out)


def quantise(path: Path, out: Path) -> None:
    """Writes a float32 file with its matrices as int8, one scale for each of their columns."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Seven bits: with eight, CPUs without VNNI saturate and would answer differently from what was measured here.
    quantize_dynamic(path, out, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)


def load(model: Any, folder: Path, variant: str) -> Runtime:
    """A variant that `write` wrote of a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # Threads of one variant that wait for work in a loop would slow the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = {
        tower: onnxruntime.InferenceSession(
            folder / f"{tower}{VARIANTS[variant]}.onnx", options, providers=["CPUExecutionProvider"]
        )
        for tower in ("image", "text")
    }
    length = model.towers["text"].config.context_length
    return Runtime(sessions, model.tokenizer, length, model.image_size, model.view, model.logit_scale, variant)


def measure(
    model: Any,
    towers: Mapping[str, Tower],
    folder: Path,
    score: Callable[[Runtime], Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What the variants in a folder weigh, how fast they are, and how far from the towers they came from.

    Args:
      model: as for `write`.
      towers: what was converted.
      folder: that holds the variants.
      score: as for `write`.

    Returns:
      Ready for JSON. By variant: "bytes", "milliseconds" (median, of `BATCH` rows), "speed" (times that of fp32),
      "difference" (the largest of a coordinate) and "cosine" (the smallest to ours) by tower, "top1" by task.

    Raises:
      RunFailure: fp32 differs from the towers by more than `TOLERANCE`.
    """
    import onnxruntime

    rng = np.random.default_rng(0)
    end, length = model.tokenizer.end_id, model.towers["text"].config.context_length
    words = rng.integers(0, model.tokenizer.vocab_size, (BATCH, length), np.int32)
    words = np.where(np.arange(length) < rng.integers(1, length, (BATCH, 1)), words, end)
    rows = {"image": rng.integers(0, 256, (BATCH, *towers["image"].row.shape), np.uint8), "text": words}
    runtimes = {variant: load(model, folder, variant) for variant in VARIANTS}
    variants: dict[str, dict[str, Any]] = {variant: {} for variant in VARIANTS}
    for tower, given in rows.items():
        ours = np.asarray(jax.jit(towers[tower].embed)(towers[tower].params, given))
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(1 + ROUNDS):  # in turns, so that whatever else the machine does slows all alike
            for variant, runtime in runtimes.items():
                start = time.perf_counter()
                runtime.embed(tower, given)
                seconds[variant].append(time.perf_counter() - start)
        medians = {variant: float(np.median(taken[1:])) for variant, taken in seconds.items()}
        for variant, runtime in runtimes.items():
            found = runtime.embed(tower, given)
            said = {
                "bytes": (folder / f"{tower}{VARIANTS[variant]}.onnx").stat().st_size,
                "milliseconds": round(1000 * medians[variant], 3),
                "speed": round(medians["fp32"] / medians[variant], 3),
                "difference": float(np.abs(found - ours).max()),
                "cosine": float((found * ours).sum(1).min()),
            }
            for name, value in said.items():
                variants[variant].setdefault(name, {})[tower] = value
        if not variants["fp32"]["difference"][tower] <= TOLERANCE:
            raise RunFailure(
                f"the converted {tower} tower differs from ours by {variants['fp32']['difference'][tower]:.1e}, more "
                f"than {TOLERANCE}; take --format=stablehlo, or another version of jax2onnx"
            )
    for variant, runtime in runtimes.items():
        variants[variant]["top1"] = dict(score(runtime)) if score else None
    return {
        "opset": OPSET,
        "onnxruntime": onnxruntime.__version__,
        "provider": "CPUExecutionProvider",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "rows": BATCH,
        "variants": variants,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of converters about their own internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _readme(model: Any, record: Mapping[str, Any]) -> str:
    def cells(variant: str, said: Mapping[str, Any]) -> tuple[str, ...]:
        size, taken, speed, cosine = ([said[key][t] for t in ("image", "text")] for key in _COLUMNS)
        top1 = "not measured"
        if said["top1"]:
            mean, whole = (100 * np.mean(list(of["top1"].values())) for of in (said, record["variants"]["fp32"]))
            top1 = f"{mean:.2f} %" if variant == "fp32" else f"{mean:.2f} % ({mean - whole:+.2f})"
        return (
            variant,
            f"{size[0] / 1e6:.2f} + {size[1] / 1e6:.2f}",
            f"{taken[0]:.2f} + {taken[1]:.2f}",
            f"{speed[0]:.2f}; {speed[1]:.2f}",
            f"{cosine[0]:.5f}; {cosine[1]:.5f}",
            top1,
        )

    table = "\n".join(f"| {' | '.join(cells(*variant))} |" for variant in record["variants"].items())
    about = f"""\
`image.onnx` takes photos uint8 `[n, size, size, 3]`, `text.onnx` token ids int32 `[n, length]`, any n; both give
embeddings float32 `[n, dim]` of length 1. `.fp16` holds its numbers as float16, `.int8` its matrices in 7 bits. None
needs the code it was trained with: `pip install onnxruntime tokenizers pillow ftfy`

Measured with onnxruntime {record["onnxruntime"]} on {record["cores"]} cores ({record["machine"]}), {record["rows"]} \
rows at once, median of {ROUNDS}; cosine: the smallest to the embeddings of the original; top-1 on the drawn corpus.

| | MB, image + text | ms, image + text | speed, image; text | cosine, image; text | zero-shot top-1, mean |
|---|---|---|---|---|---|
{table}

`onnx.json` has the same by task.

"""
    program = standalone.program(
        model,
        "import onnxruntime",
        """
variant = ""  # or ".fp16", ".int8"
providers = ["CPUExecutionProvider"]  # or onnxruntime.get_available_providers()
towers = {
    tower: onnxruntime.InferenceSession(f"{tower}{variant}.onnx", providers=providers) for tower in ("image", "text")
}


def embed(tower, rows):
    return towers[tower].run(None, {"rows": rows})[0]
""",
    )
    return about + program


_COLUMNS = ("bytes", "milliseconds", "speed", "cosine")
