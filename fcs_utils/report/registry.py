"""What is published by name: functions, each with what of a ``Report`` it is made from."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import partial
from pathlib import Path
from typing import TypeVar

from fcs_utils.report.inference import NoPairs

Made = TypeVar("Made")


class Registry(dict[str, tuple[Callable[..., Made], tuple[str, ...]]]):
    """Functions by the name of the file they fill, and the attributes of a ``Report`` that each of them takes."""

    def enter(self, name: str, *needs: str) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
        """A decorator: publish what the function makes of these attributes as ``name``. Its docstring's first line describes it."""

        def register(make: Callable[..., Made]) -> Callable[..., Made]:
            self[name] = make, needs
            return make

        return register

    def ready(self, report: object) -> dict[str, partial[Made]]:
        """What makes each entry from a report. Entries with an empty need are left out."""
        parts = {name: [getattr(report, need) for need in needs] for name, (_, needs) in self.items()}
        full = [name for name, own in parts.items() if all(len(part) for part in own if isinstance(part, Sized))]
        return {name: partial(self[name][0], *parts[name]) for name in full}

    def source(self, name: str) -> Path:
        """The file with the code that makes an entry."""
        return Path(inspect.getfile(inspect.unwrap(self[name][0])))

    def about(self, name: str) -> str:
        """One line that describes an entry, for readers who cannot see it."""
        return (inspect.getdoc(self[name][0]) or "").partition("\n")[0]


def each(ready: Mapping[str, Callable[[], Made]], kind: str) -> Iterator[tuple[str, Made]]:
    """What is made, by name. A warning names what would compare runs without a seed in common.

    ready: as ``Registry.ready`` gives it. kind: what the entries are, for the warning.
    """
    for name, make in ready.items():
        try:
            yield name, make()
        except NoPairs as error:  # of an incomplete grid
            warnings.warn(f"the {kind} {name} is left out: {error}", stacklevel=2)
