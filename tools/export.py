"""A trained model as files that other programs load.

  python tools/export.py --ckpt=runs/alive --format=hf --out=alive-hf
  python tools/export.py --ckpt=runs/alive --format=onnx --out=alive-onnx --license=apache-2.0

hf: transformers; open_clip; safetensors: any program, and config.init.model of a recipe here; stablehlo: JAX without
this package; onnx: ONNX Runtime. README.md in the folder says how it is loaded and how the model was made.
"""

import argparse
import functools
import importlib
import shlex
import sys
from pathlib import Path

from agriclip_jax import commands
from agriclip_jax.errors import UserError, exit_on_user_error, near_misses

# Where the function write(model, out, say) of each format is; it finds `out` empty and leaves a README.md on loading.
FORMATS = {
    "hf": ("exporting", "write_hf"),
    "open_clip": ("exporting", "write_open_clip"),
    "safetensors": ("exporting", "write_safetensors"),
    "stablehlo": ("stablehlo", "write"),
    "onnx": ("onnx", "write"),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands.add_checkpoint(parser)
    parser.add_argument("--format", required=True, metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("--out", required=True, metavar="DIR", help="a folder that is not there yet, or empty")
    parser.add_argument("--license", default="", help="of the weights, for the card (default: unknown)")
    return parser.parse_args()


def shares(model) -> dict[str, float]:
    """How much of each task of the corpus that the project draws a model gets right, zero-shot."""
    from agriclip_jax.evaluate import tasks, zeroshot

    results = zeroshot.evaluate(model, tasks.load_tasks("embedded", split="test"))
    return {result.task.name: result.metrics.top1 for result in results}


def main() -> int:
    arguments = parse_arguments()
    if arguments.format not in FORMATS:
        raise UserError(f"--format: {arguments.format!r} is none{near_misses(arguments.format, FORMATS)}")
    from agriclip_jax.files import check_new_folder, new_folder

    check_new_folder(arguments.out)

    from agriclip_jax import inference
    from agriclip_jax.weights import model_card

    module, function = FORMATS[arguments.format]
    write = getattr(importlib.import_module(f"agriclip_jax.weights.{module}"), function)
    if arguments.format == "onnx":
        write = functools.partial(write, score=shares)
    model = inference.load(arguments.ckpt, step=arguments.step, use=arguments.use)
    with new_folder(arguments.out) as folder:
        write(model, folder, print)
        command = shlex.join(["python", *sys.argv])
        model_card.write(model, folder, target=arguments.format, licence=arguments.license, command=command)
    size = sum(path.stat().st_size for path in Path(arguments.out).rglob("*") if path.is_file())
    print(f"wrote {arguments.out} ({size / 1e6:,.1f} MB): step {model.step}, {model.use}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
