"""A trained model as compiled functions that JAX calls without this package (jax.export)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax import export

from agriclip_jax.weights import standalone
from agriclip_jax.weights.exporting import save

PLATFORMS = ("cpu", "cuda", "tpu")


def write(model: Any, out: Path, say: Callable[[str], None]) -> None:
    """Writes each tower as NAME.stablehlo, a function of its parameters and a batch, beside NAME.safetensors.

    The parameters are an argument, not part of the function: there they would be held in memory several times, be
    folded anew by each compilation (11 seconds instead of 2 for a ViT-B), and end at 2 GiB.

    Args:
      model: an `inference.Model`.
      out: an empty folder.
      say: tells the user a line.
    """
    for name, tower in standalone.towers(model).items():
        (out / f"{name}.stablehlo").write_bytes(serialised(tower))
        save(out / f"{name}.safetensors", tower.params.items)
    model.tokenizer.save(out / "tokenizer.json")
    say(f"for {', '.join(PLATFORMS)}, by jax {jax.__version__}")
    program = standalone.program(
        model,
        """import jax
from jax import export
from safetensors.numpy import load_file""",
        """
def load(tower):
    with open(f"{tower}.stablehlo", "rb") as file:
        function = jax.jit(export.deserialize(bytearray(file.read())).call)
    weights = jax.device_put(load_file(f"{tower}.safetensors"))
    return lambda rows: np.asarray(function(weights, rows))


towers = {tower: load(tower) for tower in ("image", "text")}


def embed(tower, rows):
    return towers[tower](rows)
""",
    )
    (out / "README.md").write_text(_README.format(jax=jax.__version__) + program, encoding="utf-8")


def serialised(tower: standalone.Tower) -> bytes:
    """`tower.embed` for any number of rows, on any of the platforms."""
    (batch,) = export.symbolic_shape("batch")
    rows = jax.ShapeDtypeStruct((batch, *tower.row.shape), tower.row.dtype)
    params = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in tower.params.items()}
    return bytes(export.export(jax.jit(tower.embed), platforms=PLATFORMS)(params, rows).serialize())


_README = """\
`image.stablehlo` and `text.stablehlo` are functions that JAX compiles for a CPU, a CUDA GPU or a TPU. Each takes its
weights and any number of rows, photos uint8 `[n, size, size, 3]` or token ids int32 `[n, length]`, and gives embeddings
float32 `[n, dim]` of length 1. None of the code they were trained with is needed, and no older JAX can read them:
`pip install 'jax>={jax}' flatbuffers safetensors tokenizers pillow ftfy`

"""
