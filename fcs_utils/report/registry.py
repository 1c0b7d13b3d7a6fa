"""How tables and figures are entered: by a decorator that says what of a ``Report`` they are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Made = TypeVar("Made")
Registry = dict[str, tuple[Callable[..., Made], tuple[str, ...]]]  # by file name: the function, and what it takes of a report


def enter(registry: Registry[Made], name: str, needs: tuple[str, ...]) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """A decorator that enters a function; what it makes is left out where an attribute that it needs is empty."""

    def register(make: Callable[..., Made]) -> Callable[..., Made]:
        registry[name] = (make, needs)
        return make

    return register
