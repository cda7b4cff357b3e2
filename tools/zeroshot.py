"""How good is a model at photos it was never fitted to? A table, and a JSON file with everything behind it.

  python tools/zeroshot.py --ckpt=runs/alive --tasks=embedded
  python tools/zeroshot.py --ckpt=runs/alive --tasks=alive/,photos.zip,deep_weeds=folder/ --out=table.json
  python tools/zeroshot.py --list

A task is a folder with one folder for each class, a .zip or .tar of one, a folder of such archives, an ALive folder
(one task for each dataset in it) or a folder that CLIP_benchmark exported. Class names come from --meta or a
dataset.json, else from the folder names. NAME=PATH asks by the task file of that name, FILE.yaml=PATH by one of yours:
its classes must be the folder's.
"""

import argparse
from pathlib import Path

from agriclip_jax import commands
from agriclip_jax.errors import UserError, exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands.add_checkpoint(parser)
    commands.add_tasks(parser)
    parser.add_argument(
        "--out", metavar="FILE.json", help="where the results go (default: zeroshot-TASKS.json in WORKDIR)"
    )
    parser.add_argument("--list", action=List, nargs=0, help="the tasks that are known by name, and what is not known")
    return parser.parse_args()


class List(argparse.Action):
    """Prints the table of known tasks and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *_) -> None:
        from rich.markup import escape

        from agriclip_jax.evaluate import taskfiles
        from agriclip_jax.evaluate.terminal import screen

        console, table = screen()
        for column in taskfiles.COLUMNS:
            table.add_column(column, justify="right" if column in ("classes", "images") else "left", overflow="fold")
        for row in taskfiles.table():
            table.add_row(*map(escape, row))
        console.print(table)
        parser.exit()


def main() -> int:
    arguments = parse_arguments()
    from agriclip_jax import inference
    from agriclip_jax.evaluate import features, tasks, zeroshot
    from agriclip_jax.files import check_file

    model = inference.load(arguments.ckpt, step=arguments.step, use=arguments.use)
    out = arguments.out or Path(arguments.ckpt) / f"zeroshot-{commands.file_stem(arguments.tasks)}.json"
    check_file(out)
    asked = tasks.load_tasks(
        arguments.tasks,
        split=arguments.split,
        templates=arguments.template,
        meta=arguments.meta,
        seen=tasks.seen_datasets(tasks.known_classes(arguments.ckpt)),
        say=commands.note,
    )
    if all(task.mismatch for task in asked):
        raise UserError(f"{asked[0].mismatch}; without NAME= the folder is scored as it is")
    cache = features.cache_of(model)
    try:
        check_file(cache / "any.npz")
    except UserError:
        commands.note(f"what the model sees is not kept, for {cache} cannot be written")
        cache = None
    with commands.progress("images", sum(task.count for task in asked)) as advance:
        results = zeroshot.evaluate(model, asked, cache=cache, detailed=True, progress=advance)
    print(f"{model.workdir}, step {model.step}, {model.use}; shares in %")
    zeroshot.show(results)
    zeroshot.write(results, out, model)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
