"""What a person sees: data printed as data.

rich reads brackets as markup and `:name:` as an emoji, so that `pip install 'unmask[text]'` loses
its `[text]`. Consoles and progress bars come from here, with both switched off; style is said by
`style=`. Knows nothing of what is printed.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn


def data_console() -> Console:
    """Standard error, in which nothing is markup."""
    return Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)


def progress_bar(*columns: ProgressColumn, console: Console | None = None) -> Progress:
    """A bar that begins with the description of its task, as it is."""
    description = TextColumn("{task.description}", markup=False)
    return Progress(description, BarColumn(), *columns, console=console or data_console())
