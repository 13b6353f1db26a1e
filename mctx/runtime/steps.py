"""Work in steps: a generator that stops where the device has been asked and need not be waited for
yet, so that its host can do something else meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Made = TypeVar("Made")
Steps = Generator[None, None, Made]


def finish(steps: Steps[Made]) -> Made:
    """All steps one after another; what they make."""
    try:
        while True:
            next(steps)
    except StopIteration as end:
        return end.value


def more(steps: Steps) -> bool:
    """One step; whether another may follow."""
    return next(steps, steps) is not steps
