"""Small files: written whole or not at all, and read with one clear line when damaged."""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agriclip_jax.errors import UserError

REMEDY = "restore it, or make its folder again"


def read_record(path: Path, *keys: str, remedy: str = REMEDY) -> Any:
    """The content of a JSON file; with `keys`, a dictionary that has them; `remedy` ends the error.

    Raises:
      UserError: it is missing, was cut off or was changed.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:  # also of bytes that are no UTF-8
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None
    missing = [key for key in keys if not (isinstance(record, dict) and key in record)]
    if missing:
        raise UserError(f"{path} is damaged (it has no {missing[0]}); {remedy}")
    return record


def read_optional(path: Path, most_bytes: int = 64 << 20) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no file.

    Raises:
      UserError: it is larger than `most_bytes`, damaged, or holds no object.
    """
    if not path.is_file():
        return {}
    if path.stat().st_size > most_bytes:
        raise UserError(f"{path} is larger than {most_bytes >> 20} MiB; that is no record")
    record = read_record(path)
    if not isinstance(record, dict):
        raise UserError(f"{path} is damaged (it holds no names); {REMEDY}")
    return record


def read_yaml(path: Path, what: str, most_bytes: int) -> Any:
    """The content of a YAML file that a person wrote: plain values only.

    Args:
      path: the file.
      what: it holds, for errors: "the facts".
      most_bytes: a larger file is refused.

    Raises:
      UserError: it cannot be read, is too large or no such YAML.
    """
    import yaml

    try:
        if path.stat().st_size > most_bytes:
            raise UserError(f"{what} {path} are larger than {most_bytes >> 20} MiB")
        return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{what} {path} are no valid YAML: {' '.join(str(error).split())[:200]}") from error


def check_place(path: Path | str) -> None:
    """Raises UserError when nothing can be made at `path`; costs nothing, so ask before long work."""
    path = Path(os.path.abspath(path))
    place = next(p for p in path.parents if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {place}, where {path.name} should be made; name another place")


def check_file(path: Path | str) -> None:
    """Raises UserError when no file can be written at `path`; costs nothing, so ask before long work."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder; name a file")
    check_place(path)


def check_new_folder(path: Path | str) -> None:
    """Raises UserError when no new folder can be made at `path`, or it holds something already."""
    path = Path(path)
    if path.is_symlink():
        raise UserError(f"{path} is a link; name the folder itself")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} is there already, and not an empty folder; name another place")
    check_place(path)


@contextlib.contextmanager
def new_folder(path: Path | str) -> Iterator[Path]:
    """A folder to fill; it gets its name when all went well, else nothing of it stays.

    Raises:
      UserError: as `check_new_folder`.
    """
    path = Path(os.path.abspath(path))
    check_new_folder(path)
    holder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.partial-", dir=path.parent))
        partial = holder / "new"  # with the rights of any new folder, which a temporary one has not
        partial.mkdir()
        yield partial
        partial.rename(path)
    except OSError as error:
        raise UserError(f"could not write {path}: {error.strerror or error}") from error
    finally:
        if holder:
            shutil.rmtree(holder, ignore_errors=True)


def cache() -> Path:
    """Where what can be made again is kept: $AGRICLIP_CACHE, or else ~/.cache/agriclip_jax."""
    return Path(os.environ.get("AGRICLIP_CACHE") or Path.home() / ".cache" / "agriclip_jax").expanduser()


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Writes a file, all of it or nothing, with the folders above it; a text in UTF-8.

    Raises:
      UserError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        try:
            partial.replace(path)
        except FileNotFoundError:  # another process wrote the same file at the same time
            if not path.exists():
                raise
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if not isinstance(error, OSError):
            raise
        raise UserError(f"could not write {path}: {error.strerror or error}") from error


def write_json(path: Path | str, content: Any) -> None:
    """Writes a JSON file, all of it or nothing; a row of numbers is one line.

    Raises:
      UserError: the file cannot be written.
    """
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    # No string matches, for a string in JSON holds no newline.
    text = re.sub(r"\[\n([-+.,\deEnul\s]+)\]", lambda row: f"[{' '.join(row[1].split())}]", text)
    write_whole(path, text + "\n")
