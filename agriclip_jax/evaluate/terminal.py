"""Tables of scores on a terminal."""


def screen():
    """A `rich` console and an empty table for it, in the project's style."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 110))  # a file has no width that names must fit
    return console, Table(box=SIMPLE, pad_edge=False, header_style="")
