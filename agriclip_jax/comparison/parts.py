"""Small parts of the page in HTML; the texts that come in are plain where nothing else is said."""

from collections.abc import Iterable, Sequence
from html import escape

from agriclip_jax import page
from agriclip_jax.evaluate.comparing import Row, Share
from agriclip_jax.evaluate.records import percent

Note = tuple[str, str, str]  # of what, of which runs ("" is every run), what is to be said


def run(place: int, names: Sequence[str]) -> str:
    """The name of a run, with the line that stands for it where there are several."""
    return f"{page.swatch(place + 1) if len(names) > 1 else ''}{escape(names[place])}"


def who(place: int, names: Sequence[str]) -> str:
    """A line above what is of a run; nothing where there is only one."""
    return f'<p class="who">{run(place, names)}</p>' if len(names) > 1 else ""


def task(name: str) -> str:
    """The name of a task, which may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def head(*names: str, numbers: Sequence[str] = ()) -> str:
    """The heads of columns: of texts, then of numbers; HTML."""
    return "".join(f'<th scope="col">{name}</th>' for name in names) + "".join(
        f'<th scope="col" class="n">{name}</th>' for name in numbers
    )


def runs(names: Sequence[str]) -> list[str]:
    """What stands over the columns of the runs."""
    return [run(place, names) for place in range(len(names))] if len(names) > 1 else ["top-1"]


def row(name: str, cells: str, kind: str = "") -> str:
    """A row of a table: its name in HTML, and its cells."""
    attribute = f' class="{kind}"' if kind else ""
    return f'<tr{attribute}><th scope="row">{name}</th>{cells}</tr>'


def group(name: str, columns: int, lines: Iterable[str]) -> str:
    """The rows of a group, under its name; nothing without rows."""
    title = f'<tr class="group"><th scope="rowgroup" colspan="{columns}">{task(name)}</th></tr>'
    shown = "".join(lines)
    return body([title, shown]) if shown else ""


def body(lines: Iterable[str]) -> str:
    """Rows; nothing without any."""
    shown = "".join(lines)
    return f"<tbody>{shown}</tbody>" if shown else ""


def table(label: str, heads: str, bodies: Iterable[str]) -> str:
    """A table that scrolls by itself; nothing without rows."""
    shown = "".join(bodies)
    return page.scrolling(label, f'<table class="rows"><thead><tr>{heads}</tr></thead>{shown}</table>') if shown else ""


def numbers(cells: Iterable[str]) -> str:
    """Cells of numbers, in HTML."""
    return "".join(f'<td class="n">{cell}</td>' for cell in cells)


def share(value: Share | None, beside: str = "") -> str:
    """A cell: a share in %, what stands beside it, its interval below."""
    beside = f" <i>{escape(beside)}</i>" if beside else ""
    return (
        f'<td class="n"><b>{percent(value[0])}</b>{beside}<small>{ends(value)}</small></td>' if value else numbers("–")
    )


def ends(value: Share | None) -> str:
    """The interval of a share in %; nothing where there is none."""
    return f"{percent(value[1][0])} – {percent(value[1][1])}" if value and value[1] else ""


def reasons(row: Row, names: Sequence[str]) -> list[Note]:
    """Why runs are not compared on a task."""
    told: dict[str, list[str]] = {}
    for name, note in zip(names, row.notes, strict=True):
        if note:
            told.setdefault(note, []).append(name)
    return [(row.task, "" if len(who) == len(names) else ", ".join(who), note) for note, who in told.items()]


def notes(told: Iterable[Note]) -> str:
    """A list of what is to be said, once for all of which the same is."""
    of: dict[tuple[str, str], list[str]] = {}
    for name, who, note in told:
        of.setdefault((who, note), []).append(task(name))
    shown = "".join(
        f"<li><b>{', '.join(names)}</b>{f'; {escape(who)}' if who else ''}: {escape(note)}</li>"
        for (who, note), names in of.items()
    )
    return f'<ul class="notes">{shown}</ul>' if shown else ""


def points(difference: float) -> str:
    """A difference of shares in percentage points with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−") if round(1000 * difference) else "0.0"


def p_value(value: float) -> str:
    """Three digits of a p-value."""
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def many(count: int, thing: str) -> str:
    """ "3 tasks"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"
