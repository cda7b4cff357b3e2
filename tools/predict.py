"""What is on these photos?

  python tools/predict.py --ckpt=runs/alive photos/
  python tools/predict.py --ckpt=runs/alive 'field/*.jpg' cow.png --cls='healthy leaf,leaf with rust' --output=x.csv

Photos are files, folders or quoted globs. Without --cls the answers are the classes the run was trained on.
"""

import argparse
import sys

from agriclip_jax import commands
from agriclip_jax.errors import UserError, exit_on_user_error


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", help="files, folders or globs")
    commands.add_checkpoint(parser)
    parser.add_argument("--cls", metavar="a,b,c", help="classes to choose from, or a text file with one a line")
    parser.add_argument("--k", type=int, default=3, help="how many classes to name for a photo (default: %(default)s)")
    parser.add_argument("--output", metavar="x.csv", help="write a CSV file there instead of printing a table")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if arguments.k < 1:
        raise UserError(f"--k={arguments.k}: give 1 or more")
    from agriclip_jax.evaluate import predict, tasks
    from agriclip_jax.files import check_file, write_whole

    if arguments.output:
        check_file(arguments.output)
    files = predict.find_photos(arguments.photos)
    classes = predict.given_classes(arguments.cls) if arguments.cls is not None else None

    from agriclip_jax import inference

    model = inference.load(arguments.ckpt, step=arguments.step, use=arguments.use)
    classes = classes or predict.trained_classes(tasks.known_classes(arguments.ckpt))
    with commands.progress("photos", len(files)) as advance:
        predictions = predict.predict(model, files, classes, k=arguments.k, progress=advance)
    bad = sum(bool(prediction.error) for prediction in predictions)
    if arguments.output:
        write_whole(arguments.output, predict.as_csv(predictions))
        print(f"wrote {len(predictions) - bad} photos to {arguments.output}")
    else:
        predict.show(predictions)
    if bad:
        print(f"{bad} of {len(predictions)} photos cannot be read; their rows say why", file=sys.stderr)
    return 0


if __name__ == "__main__":
    exit_on_user_error(main)
