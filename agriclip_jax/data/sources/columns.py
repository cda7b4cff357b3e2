"""Which columns of a table say what: the image, its captions, its class; by the names people use, or as told."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from agriclip_jax.data.sources.base import squeezed
from agriclip_jax.data.sources.files import storable
from agriclip_jax.errors import UserError, near_misses

IMAGE = ("filepath", "file_name", "image", "url", "image_path", "path", "filename", "file", "img", "img_path", "jpg")
CAPTION = ("title", "caption", "text", "captions", "txt", "description")
LABEL = ("label", "class", "class_name", "labels", "category", "species")
OPTIONS = ("image", "caption", "label")


def choose(columns: Sequence[str], options: Mapping[str, str], where: str, *, must: bool = True) -> dict[str, str]:
    """The column of "image", "caption" and "label", as far as the table has them.

    Args:
      columns: of the table.
      options: the user's own names, by role; others are left alone.
      where: names the table in errors.
      must: whether the columns are those of all rows, so that one that is missing is an error.

    Raises:
      UserError: there is no column of images, or none of the name that was told.
    """
    found = {}
    plain = {column.strip().casefold(): column for column in reversed(columns)}
    for role, names in (("image", IMAGE), ("caption", CAPTION), ("label", LABEL)):
        told = options.get(role)
        if told is not None and told not in columns:
            if not must:
                continue
            raise UserError(f"{where}: there is no column {told!r}{near_misses(told, columns)}")
        column = told or next((plain[name] for name in names if name in plain), None)
        if column is not None:
            found[role] = column
    if must and "image" not in found:
        listed = ", ".join(map(repr, columns[:20])) or "none"
        raise UserError(
            f"{where}: no column of images (such as {', '.join(IMAGE[:4])}) among its columns: {listed}; name it with "
            "?image=COLUMN, or say folder:PATH where folders are the classes"
        )
    return found


def texts(value: Any) -> tuple[str, ...]:
    """The captions in a cell: a text or a list of them."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return tuple(filter(None, (squeezed(mended(text)) for text in values if isinstance(text, str))))


def key(value: Any) -> str:
    """The class in a cell: a text or a number."""
    return squeezed(mended(str(value))) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""


def mended(text: str) -> str:
    """A text whose bytes were no UTF-8, read as Latin-1, which most of them are; without what no text holds."""
    if any("\udc80" <= letter <= "\udcff" for letter in text):
        with contextlib.suppress(UnicodeEncodeError):
            text = text.encode("utf-8", "surrogateescape").decode("latin-1")
    return storable(text).replace("\0", "")
