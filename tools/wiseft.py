"""What a model has forgotten while it learned a domain, and the models between that have both (WiSE-FT).

  python tools/wiseft.py --from=runs/clip-b16 --to=runs/peft_full --domain=leaves/ --general=photos.zip --out=wiseft
  python tools/wiseft.py --from=runs/general --to=runs/adapt --suite=configs/suites/retention.yaml --out=wiseft
  python tools/wiseft.py --from=runs/clip-b16 --to=runs/peft_full --choose=0.5 --write=runs/mixed

The weights of a model between are (1 - alpha) times the general one's plus alpha times the adapted one's. The first
command scores them zero-shot on the tasks of both kinds: a table, wiseft.json and wiseft.html in DIR; the second on
those of a suite, whose groups are domain and general. The third writes the model of one alpha as a run, which every
tool takes; it may be asked at once. Choose alpha on photos that no later test asks, such as --split=val.
"""

import argparse

from agriclip_jax.errors import UserError, exit_on_user_error

ALPHAS = ",".join(f"{tenth / 10:g}" for tenth in range(11))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="general", required=True, metavar="WORKDIR", help="the general model's run")
    parser.add_argument(
        "--to", dest="adapted", required=True, metavar="WORKDIR", help="the run that was adapted from it"
    )
    tasks = "tasks of what it {}, as --tasks of tools/zeroshot.py"
    parser.add_argument("--domain", default="", metavar="PATH[,PATH...]", help=tasks.format("learned"))
    parser.add_argument(
        "--general", dest="kept", default="", metavar="PATH[,PATH...]", help=tasks.format("should keep")
    )
    parser.add_argument(
        "--suite", default="", metavar="FILE.yaml", help="both kinds of tasks, as groups domain and general of a suite"
    )
    parser.add_argument("--alphas", default=ALPHAS, metavar="A[,A...]", help="from 0 to 1 (default: %(default)s)")
    parser.add_argument("--split", help="train, val, test or all (default: as tools/zeroshot.py)")
    parser.add_argument("--out", default="", metavar="DIR", help="where the curve goes")
    parser.add_argument("--choose", type=float, metavar="A", help="the alpha of the model that --write writes")
    parser.add_argument("--write", default="", metavar="DIR", help="the workdir to make of it")
    return parser.parse_args()


def numbers(text: str) -> list[float]:
    """The alphas that were typed, in order."""
    try:
        alphas = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--alphas={text}: these are no numbers with commas between them") from None
    return alphas


def asked_tasks(arguments: argparse.Namespace) -> dict[str, list]:
    """The tasks of both kinds; raises UserError where one has none, or they cannot be loaded."""
    from agriclip_jax.commands import note
    from agriclip_jax.evaluate import suite, tasks, wiseft

    seen = tasks.seen_datasets(*map(tasks.known_classes, (arguments.general, arguments.adapted)))
    if arguments.suite:
        loaded = suite.load(suite.read(arguments.suite, ("zeroshot",)), seen, say=note)
        asked = {kind: [task for task in loaded if task.group == kind] for kind in wiseft.KINDS}
        if missing := [kind for kind in wiseft.KINDS if not asked[kind]]:
            raise UserError(
                f"the suite {arguments.suite} has no task with `group: {missing[0]}`; a curve needs both groups"
            )
        return asked
    asked = {}
    for kind, spec in zip(wiseft.KINDS, (arguments.domain, arguments.kept), strict=True):
        try:
            asked[kind] = tasks.load_tasks(spec, split=arguments.split, seen=seen, say=note)
        except UserError as error:
            raise UserError(str(error).replace("--tasks=", f"--{kind}=", 1)) from error
    return asked


def main() -> int:
    arguments = parse_arguments()
    alphas, kinds = numbers(arguments.alphas), (arguments.domain, arguments.kept)
    scored = (arguments.suite or all(kinds), arguments.out)
    if any((*kinds, *scored)) and not all(scored):
        raise UserError(
            "a curve needs --domain=TASKS, --general=TASKS and --out=DIR, or --suite=FILE.yaml and --out=DIR"
        )
    if arguments.suite and (any(kinds) or arguments.split):
        raise UserError("--suite says the tasks and their splits itself; leave out --domain, --general and --split")
    if (arguments.choose is None) != (not arguments.write):
        raise UserError("a model is written by --choose=ALPHA and --write=DIR together")
    if not arguments.out and not arguments.write:
        raise UserError("give --domain, --general and --out for a curve, or --choose and --write for a model")
    chosen = [] if arguments.choose is None else [arguments.choose]
    if wrong := [alpha for alpha in (*alphas, *chosen) if not 0 <= alpha <= 1]:
        raise UserError(f"an alpha of {wrong[0]:g} is not from 0 to 1")
    from agriclip_jax.files import check_new_folder, check_place

    if arguments.write:
        check_new_folder(arguments.write)
    if arguments.out:
        check_place(arguments.out)
    from agriclip_jax import commands, inference, runs
    from agriclip_jax.evaluate import wiseft

    asked = asked_tasks(arguments) if arguments.out else {}
    general, adapted = inference.load(arguments.general), inference.load(arguments.adapted)
    if arguments.out:
        photos = len(alphas) * sum(task.count for kind in asked.values() for task in kind)
        with commands.progress("images", photos) as advance:
            points = wiseft.curve(general, adapted, alphas, asked, advance)
        print("mean zero-shot top-1 in %; alpha 0 is the general model, 1 the adapted one")
        wiseft.show(points)
        wiseft.write(points, general, adapted, arguments.out)
        print(f"wrote {arguments.out}/wiseft.json and wiseft.html")
    if arguments.write:
        mixed = wiseft.interpolate(general, adapted, arguments.choose)
        print(f"{arguments.write}: {runs.write_model(mixed, arguments.write)}")
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
