"""Types for the command-line options of the benchmarks.

Each takes the text of an option. It raises ArgumentTypeError with a sentence if the text is wrong.
"""

from __future__ import annotations

from argparse import ArgumentTypeError


def params_of(text: str) -> tuple[int, int]:
    """(r_warm, m_par) of a schedule."""
    try:
        r_warm, m_par = map(int, text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not two numbers, as 4,2") from None
    return r_warm, m_par


def at_least_one(text: str) -> int:
    """A number above 0."""
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def share_of_one(text: str) -> float:
    """A number above 0, at most 1."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not 0 < number <= 1:
        raise ArgumentTypeError(f"{text!r} is not a share above 0, at most 1")
    return number
