"""Where on these photos is it?

  python tools/localize.py --ckpt=runs/alive photos/ --query='brown lesion' --out=found/
  python tools/localize.py --ckpt=runs/alive --pointing --out=found/
  python tools/localize.py --ckpt=runs/alive --selo=AIR-SLT/ --out=found/

Photos are files, folders or quoted globs. Each photo and query becomes a picture, and locations.json says where the
map is highest. --pointing asks the embedded corpus, which knows where it drew its lesions, how often that is right;
--selo scores Semantic Localisation on annotations/anno.json and imgs/.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from agriclip_jax import commands
from agriclip_jax.errors import RunFailure, UserError, exit_on_user_error

SIDE = 512  # pixels at least of a photo's short side that are looked at


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help="files, folders or globs")
    commands.add_checkpoint(parser)
    parser.add_argument("--query", action="append", default=[], metavar="TEXT", help="what to look for; repeatable")
    parser.add_argument(
        "--contrast", action="append", default=[], metavar="TEXT", help="what it is not, such as 'a photo.'; repeatable"
    )
    parser.add_argument("--method", choices=("dense", "windows"), default="dense", help="(default: %(default)s)")
    parser.add_argument("--pointing", action="store_true", help="how often the maximum lies on a lesion")
    parser.add_argument("--selo", metavar="FOLDER", help="a data set in the form of AIR-SLT")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write into")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    if bool(arguments.photos) + arguments.pointing + bool(arguments.selo) != 1:
        raise UserError("give one of PHOTOS, --pointing and --selo")
    if bool(arguments.photos) != any(query.strip() for query in arguments.query):
        raise UserError("PHOTOS and what to look for on them go together, as in photos/ --query='brown lesion'")
    out = Path(arguments.out)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; name a folder")
    from agriclip_jax.evaluate import localize, predict
    from agriclip_jax.files import check_place, write_json

    check_place(out / "x")
    files = predict.find_photos(arguments.photos) if arguments.photos else []
    queries = localize.read_located(Path(arguments.selo) / localize.ANNOTATIONS) if arguments.selo else []

    from dataclasses import asdict

    from agriclip_jax import inference

    model = inference.load(arguments.ckpt, step=arguments.step, use=arguments.use)
    model.batch = 8  # a photo has few squares, and every call is filled up to a batch
    said = {
        "checkpoint": {"workdir": str(model.workdir), "step": int(model.step), "use": model.use},
        "code_version": model.code_version,
        "method": "windows" if arguments.selo else arguments.method,
        "contrast": arguments.contrast,
    }
    with commands.progress("photos", len(files) or len(queries) or None) as progress:
        if arguments.pointing:
            file = out / "pointing.json"
            found = localize.pointing(model, method=arguments.method, contrast=arguments.contrast, progress=progress)
            said["pointing"] = {symptom: asdict(scores) for symptom, scores in found.items()}
        elif arguments.selo:
            file = out / "selo.json"
            said["mean"], each = localize.selo(model, arguments.selo, contrast=arguments.contrast, progress=progress)
            said["queries"] = [{"image": query.image, "caption": query.caption, **asdict(on)} for query, on in each]
        else:
            file = out / "locations.json"
            said["locations"] = list(_locations(arguments, model, files, out, progress))
    write_json(file, said)
    if arguments.pointing:
        localize.show(found)
    elif arguments.selo:
        print("  ".join(f"{indicator} {value:.4f}" for indicator, value in said["mean"].items()))
    print(f"wrote {file}")
    bad = [location for location in said.get("locations", ()) if "error" in location]
    if bad and len(bad) == len(files):
        raise RunFailure(f"none of {len(files)} photos can be read; the first, {bad[0]['file']}: {bad[0]['error']}")
    if bad:
        print(f"{len(bad)} of {len(files)} photos cannot be read; {file.name} says why", file=sys.stderr)
    return 0


def _locations(arguments: argparse.Namespace, model, files: list[Path], out: Path, progress) -> Iterator[dict]:
    """Writes the pictures; says for each photo and query where the map is highest, in pixels of the photo."""
    from agriclip_jax.data import views
    from agriclip_jax.data.sources.files import printable, read_file
    from agriclip_jax.evaluate import localize
    from agriclip_jax.files import write_whole

    wanted = localize.directions(model, arguments.query, arguments.contrast)
    for number, file in enumerate(files):
        named = {"file": printable(str(file))}
        try:
            data = read_file(file)
            photo = views.decode(data, SIDE)
            heats = localize.METHODS[arguments.method](model, photo, wanted)
            width, height = views.size_of(data)
        except (OSError, ValueError, UserError) as error:
            heats = ()
            yield named | {"error": getattr(error, "strerror", None) or str(error)}
        for rank, (query, heat) in enumerate(zip(arguments.query, heats, strict=False)):
            x, y = localize.peak(heat)
            picture = f"{number:04}-{rank}-{_slug(file.stem)}-{_slug(query)}.png"
            write_whole(out / picture, _picture(photo, heat, (x, y)))
            yield named | {
                "query": query,
                "x": round((x + 0.5) * width / photo.width, 1),
                "y": round((y + 0.5) * height / photo.height, 1),
                "score": float(heat[y, x]),
                "picture": picture,
            }
        progress(1)


def _picture(photo, heat, peak: tuple[int, int]) -> bytes:
    """A PNG: the photo, and beside it the map in colour with a ring round its maximum."""
    import io

    import numpy as np
    from PIL import Image, ImageDraw

    from agriclip_jax import page

    side = max(SIDE // 2, min(max(photo.size), 2 * SIDE))
    shown = page.overlay(np.asarray(photo), heat, side)
    x, y = ((place + 0.5) * shown.width / photo.width for place in peak)
    for radius, colour in ((side / 40 + 2, "black"), (side / 40, "white")):
        ImageDraw.Draw(shown).ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    both = Image.new("RGB", (2 * shown.width + 8, shown.height), "white")
    both.paste(photo.resize(shown.size, Image.Resampling.BICUBIC), (0, 0))
    both.paste(shown, (shown.width + 8, 0))
    data = io.BytesIO()
    both.save(data, "PNG")
    return data.getvalue()


def _slug(text: str) -> str:
    """What of a name every file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "x"


if __name__ == "__main__":
    exit_on_user_error(main)
