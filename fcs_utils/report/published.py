"""From this machine's ``work`` folder to what is committed: records in one file, tables, verdicts, weights and a README."""

from __future__ import annotations

from pathlib import Path

from fcs_utils.errors import StudyError
from fcs_utils.files import (
    LARGEST_TENSORS,
    read_bytes,
    read_or_set_aside,
    read_tensors,
    tensors_sum,
    write_atomic,
    write_checksummed,
)
from fcs_utils.report.chapters import NOTEBOOKS
from fcs_utils.report.figures import forest
from fcs_utils.report.frames import Report, make_report
from fcs_utils.report.pages import draw_figures
from fcs_utils.report.plots import drawn, use_house_style
from fcs_utils.report.readme import ledger_digest, profile_readme
from fcs_utils.study.catalogue import HEADLINE
from fcs_utils.study.records import Store, pack
from fcs_utils.study.study import Study


def publish(profile: str, out: str | Path, data: str | Path | None = None, *, allow_missing: bool = False) -> Path:
    """Promote what this machine made of a profile; returns the README of the results, which shows it.

    Records of this machine move into ``records.jsonl``. The profile that leads the README publishes its executed notebooks and
    figures too. allow_missing: runs without a record are listed in tables, with the hours that they would take. Raises
    StudyError, changing nothing, while runs are missing and that is not allowed, or where a record of this machine has another
    result than the published one, or weights differ from those behind the records.
    """
    study = Study(profile, out, data)
    store, report = study.store, make_report(study, allow_missing=allow_missing)
    records, weights = pack(store), _weights(study)
    write_atomic(store.packed(), records)
    for path in weights:
        _promote(store, path)
    if store.settings().exists() and not store.published(store.settings()).exists():
        _promote(store, store.settings())
    if own := read_or_set_aside(store.measurements()):
        path = store.published(store.measurements())
        write_checksummed(path, {**(read_or_set_aside(path) or {}), **own})
    report.write(store)
    for path in (store.claims(), *sorted(store.table("claims").parent.glob("*.*"))):
        _promote(store, path)
    if store.name == HEADLINE:
        _promote_notebooks_and_figures(store, report)
    readme = store.root / "README.md"
    write_atomic(readme, (profile_readme(study, report) + "\n").encode())
    for path in store.all_records():
        path.unlink()  # each is a line of records.jsonl by now
    return readme


def _promote(store: Store, path: Path) -> None:
    write_atomic(store.published(path), read_bytes(path, LARGEST_TENSORS))


def _weights(study: Study) -> list[Path]:
    """Weights of this machine that notebooks open: each network's first seed. Raises StudyError where they are not the records'."""
    paths = []
    for run in study.grid["reference"]:
        path, record = study.store.weights(run.identity), study.record(run)
        if run.reference.seed == study.profile.seeds[0] and path.exists() and not study.store.published(path).exists() and record:
            if tensors_sum(read_tensors(path)[0]) != record["result"]["weights_sha256"]:
                raise StudyError(
                    f"{path} differs from the weights behind its record, perhaps trained on another machine; remove it"
                )
            paths.append(path)
    return paths


def _promote_notebooks_and_figures(store: Store, report: Report) -> None:
    draw_figures(store, report)
    for path in [store.figure(name, suffix) for name in report.figures() for suffix in ("png", "csv")]:
        if path.exists():
            _promote(store, path)
    for path in store.published(store.figure("any")).parent.glob("*"):
        if path.stem not in (*report.figures(), "readme"):  # no longer drawn
            path.unlink()
    use_house_style()
    overview = drawn(forest(report.ledger), metadata={"Source": ledger_digest(report)})
    write_atomic(store.published(store.figure("readme")), overview)
    for notebook in NOTEBOOKS.values():
        if store.executed(notebook.name).exists():
            _promote(store, store.executed(notebook.name))
