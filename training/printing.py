"""Consoles and progress bars that print text as it is.

rich reads brackets as markup and `:name:` as an emoji. So `pip install 'unmask[text]'` would lose
its `[text]`. Here both are off; use `style=` for style. Knows nothing of what is printed.
"""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn


def data_console() -> Console:
    """A console on standard error that treats nothing as markup."""
    return Console(stderr=True, soft_wrap=True, markup=False, emoji=False, highlight=False)


def progress_bar(*columns: ProgressColumn, console: Console | None = None) -> Progress:
    """A progress bar that begins with the description of its task, unchanged."""
    description = TextColumn("{task.description}", markup=False)
    return Progress(description, BarColumn(), *columns, console=console or data_console())
