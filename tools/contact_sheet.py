"""Draws the contact sheet of the embedded corpus: one labelled picture of every class.

python tools/contact_sheet.py --out=docs/corpus.png
"""

import argparse

from agriclip_jax.errors import UserError, exit_on_user_error


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws one labelled picture of every class of the embedded corpus.")
    parser.add_argument("--out", required=True, metavar="FILE", help="the picture to write: .png, .jpg or .webp")
    parser.add_argument("--size", type=int, default=96, help="side of one picture in pixels (default %(default)s)")
    parser.add_argument("--columns", type=int, default=17, help="pictures in a row (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="other pictures of the same classes (default %(default)s)")
    args = parser.parse_args()
    if args.size < 16 or args.columns < 1 or args.seed < 0:
        raise UserError("--size is at least 16, --columns at least 1, --seed at least 0")

    from agriclip_jax.data.corpus import contact_sheet

    sheet = contact_sheet(args.size, columns=args.columns, seed=args.seed)
    if args.out.lower().endswith(".png"):
        sheet = sheet.quantize(256, dither=0)  # a palette makes the file a quarter as large
    try:
        sheet.save(args.out, optimize=True)
    except (OSError, ValueError) as error:
        raise UserError(f"could not write {args.out}: {error}") from error
    print(f"{args.out}: {sheet.width} x {sheet.height} pixels")


if __name__ == "__main__":
    exit_on_user_error(main)
