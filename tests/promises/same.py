"""Comparing records of two results folders, for tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fcs_utils.files import read_checksummed
from fcs_utils.study.runs import Run
from fcs_utils.study.study import Study

SOME = ["network=vgg16", "criterion=fcs"]  # about half of the smoke study: every stage that trains, with one network and with two


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The fields in which two records differ, except ``volatile``."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in one.keys() | other.keys():
            if path or key != "volatile":
                yield from differences(one.get(key), other.get(key), f"{path}.{key}" if path else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif one != other:
        yield f"{path}: {one!r} != {other!r}"


def assert_same_records(expected: Path, found: Path, *, all_of_them: bool = True, only: Sequence[str] = ()) -> None:
    """Asserts that records are equal byte for byte except for ``volatile``; names the record and field that differ.

    all_of_them: whether ``found`` has to hold the records of all runs, and no others; with ``only``, of those that it chooses.
    """
    names = {path.name for path in (found / "smoke" / "work" / "records").glob("*.json")}
    if only:
        study, wanted = Study("smoke", expected), set[str]()
        for chosen in study.runs(only=only):
            run: Run | None = chosen
            while run:  # what it builds on is done with it
                wanted.add(study.store.record(run.kind, run.identity).name)
                run = run.parent()
        assert names == wanted
    elif all_of_them:
        assert names == {path.name for path in (expected / "smoke" / "work" / "records").glob("*.json")}
    assert names
    for name in sorted(names):
        both = [read_checksummed(root / "smoke" / "work" / "records" / name) for root in (expected, found)]
        assert not list(differences(*both)), name
        texts = [json.dumps({k: v for k, v in record.items() if k != "volatile"}) for record in both]
        assert texts[0] == texts[1], f"{name}: the order of fields differs"
