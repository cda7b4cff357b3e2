"""The main job: photos in; a trained model, its zero-shot table and its report out.

python -m agriclip_jax.main --config=configs/alive.py [--workdir=DIR] [--config.KEY=VALUE ...]
"""

import argparse
import importlib.util
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from agriclip_jax.errors import UserError, exit_on_user_error


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line: its options, and the other arguments, which set keys of the recipe."""
    parser = argparse.ArgumentParser(
        prog="python -m agriclip_jax.main",
        description="Train a recipe on ALive shards, score it zero-shot and write a report.",
        epilog="--config.KEY=VALUE sets a key of the recipe: --config.total_steps=200 --config.data.path=alive/",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]", help="a recipe, such as configs/alive.py")
    parser.add_argument("--workdir", metavar="DIR", help="where the run lives (default: runs/<recipe>)")
    parser.add_argument("--extend", action="store_true", help="continue a run to a larger config.total_steps")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes started by hand")
    parser.add_argument("--num_processes", type=int, metavar="N")
    parser.add_argument("--process_id", type=int, metavar="I")
    options, rest = parser.parse_known_args(list(argv))
    given = [options.coordinator, options.num_processes, options.process_id]
    if options.workdir == "":
        parser.error("--workdir= is empty; name a folder, or leave it out")
    if any(v is not None for v in given) and None in given:
        parser.error("--coordinator, --num_processes and --process_id go together")
    return options, rest


def run(argv: Sequence[str]) -> int:
    """The command; returns its exit status.

    Raises:
      UserError: for bad input or configuration, before anything is written.
      RunFailure: when a run that began cannot go on.
    """
    options, rest = parse(argv)
    from agriclip_jax import config as configs

    given = configs.overrides(rest)
    planned = configs.stages(options.config, given)
    start_jax(options)
    from agriclip_jax import runs, stages

    command = shlex.join([sys.executable, "-m", "agriclip_jax.main", *(a for a in argv if a != "--extend")])
    whole = configs.load(options.config) if planned[0].name else planned[0].config
    workdir = Path(options.workdir or f"runs/{whole.recipe}")
    if planned[0].name and runs.is_run(workdir):
        raise UserError(f"{workdir} holds a run; a recipe of stages makes a folder of each, so name another --workdir")
    stages.check(planned, workdir)
    for stage in planned:
        ended = stages.run(
            stage.config, workdir / stage.name, explicit=stage.explicit, extend=options.extend, command=command
        )
        if not ended:
            break
    return 0


def start_jax(options: argparse.Namespace) -> None:
    """Compilation cache, and the other processes: named by hand, or found on a TPU pod or under SLURM."""
    import jax

    from agriclip_jax.mesh import keep_compiled

    keep_compiled()
    if options.coordinator:
        try:
            jax.distributed.initialize(options.coordinator, options.num_processes, options.process_id)
        except (ValueError, RuntimeError) as error:
            raise UserError(f"--coordinator={options.coordinator}: {' '.join(str(error).split())[:200]}") from None
    elif os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_PROCID" in os.environ:
        try:
            jax.distributed.initialize()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"SLURM says {os.environ['SLURM_NTASKS']} tasks, and they cannot find each other "
                f"({' '.join(str(error).split())[:120]}); start them with srun, or set SLURM_NTASKS=1 for one process"
            ) from None
    elif importlib.util.find_spec("libtpu") and os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu"):
        try:
            jax.distributed.initialize()
        except (OSError, ValueError, RuntimeError) as error:
            print(f"one process: no TPU pod found ({' '.join(str(error).split())[:80]})", file=sys.stderr)


def main() -> int:
    """Entry point."""
    return run(sys.argv[1:])


if __name__ == "__main__":
    exit_on_user_error(main)
