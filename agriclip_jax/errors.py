"""The one kind of error a user is meant to read."""

import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input or configuration: one line that names what was wrong, where, and what to do."""

    status = 2


class RunFailure(UserError):
    """A run that began and cannot go on (a non-finite loss, a full disk): what it saved stays."""

    status = 1


def near_misses(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest of `known`, or the whole list when nothing is near."""
    known = sorted(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    return f"; known: {', '.join(known)}" if known else ""


def one_line(text: str) -> str:
    """A text that may hold names from anywhere, without what would break its line or command a terminal."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "\N{REPLACEMENT CHARACTER}", text)


def exit_on_user_error(main: Callable[[], int | None]) -> None:
    """Runs a command; a `UserError` ends it with its one line on stderr and its status.

    So do a file that cannot be read or written where nothing more helpful is known (status 1) and Ctrl-C (130).

    Raises:
      SystemExit: always, with 0 (done), 1 (failure), 2 (bad input) or 130 (Ctrl-C).
    """
    try:
        status = main()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        status = error.status
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except OSError as error:
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        status = 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        status = 130
    sys.exit(status or 0)
