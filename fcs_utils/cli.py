"""What the commands do. Each imports what it needs, so that a wrong word costs no import of torch."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fcs_utils.errors import OutOfTime, StudyError
from fcs_utils.options import build_parser

if TYPE_CHECKING:
    from fcs_utils.passes import Way


def main(arguments: Sequence[str] | None = None, prog: str = "python -m fcs_utils") -> int:
    """Run a command; returns the exit status. Whatever the user can put right is one line on stderr."""
    options = build_parser(prog).parse_args(arguments)
    try:
        signal.signal(signal.SIGTERM, _interrupt)  # what a scheduler sends is handled like Ctrl-C
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell's & switched it off
            signal.signal(signal.SIGINT, _interrupt)
        if getattr(options, "parse_only", False):
            _check_before_install(options)
            return 0
        return _dispatch(options)
    except OutOfTime as error:
        print(f"{error}; finished runs are kept, start again to go on", file=sys.stderr)
        return 0
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {error}: use the study's own environment, .venv/bin/python, which ./run_all.sh makes", file=sys.stderr)
        return 1
    except OSError as error:  # the disk or the system refused something that no module foresaw
        print(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        kept = (
            "this measurement is not kept" if options.command == "speed" else "records made so far are kept, start again to go on"
        )
        print(f"interrupted: {kept}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def _interrupt(number: int, _frame: object) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM):  # whoever asks twice need not wait: what is on disk is whole at every moment
        signal.signal(again, lambda *_: os._exit(128 + number))
    raise KeyboardInterrupt(number)


def _check_before_install(options: argparse.Namespace) -> None:
    from fcs_utils.publish import pick_notebooks

    pick_notebooks(getattr(options, "notebooks", None))
    if options.data and not Path(options.data).is_dir():
        raise StudyError(f"data={options.data!r} is not allowed; allowed: an existing folder")
    _check_folder("out", options.out)


def _check_folder(parameter: str, folder: str) -> None:
    for place in (path := Path(folder), *path.parents):
        if place.is_file():
            raise StudyError(f"{parameter}={folder!r} is not allowed; allowed: a folder, this is a file")


def _dispatch(options: argparse.Namespace) -> int:
    started = time.monotonic()
    if options.command == "wheels":
        from fcs_utils.wheels import gather

        _check_folder("to", options.to)
        names = [path.name for path in gather(Path(options.to), options.python)]
        print(f"{len(names)} wheels in {options.to}; on the other machine: pip install --no-index --no-deps {options.to}/*.whl")
        return 0
    if options.command == "readme":
        from fcs_utils.readme import update_readme

        return update_readme(options.profile, options.out, check=options.check)
    if options.command == "tables":
        from fcs_utils.study import Study

        study = Study(options.profile, options.out, options.data)
        report = study.report(allow_missing=options.allow_missing)
        report.write(study.store)
        print(f"{len(report.tables())} tables in {study.store.table('claims').parent}, {len(report.missing)} runs missing")
        return 0
    if options.command == "speed":
        _speed(options)
        return 0
    _check_before_install(options)
    from fcs_utils.profiles import studies
    from fcs_utils.store import Store

    names = studies(options.profile, options.datasets)
    if options.command == "estimate":
        _estimate(names, options)
        return 0
    if len(names) > 1 or options.fresh:  # missing data is said before results are set aside, or the first study takes its hours
        from fcs_utils.study import Study

        for study in (Study(name, options.out, options.data, *_training(options)) for name in names):
            if options.fresh or study.missing():
                _ = study.bench.dataset
    for name in names:
        if options.fresh and (kept := Store(options.out, name).set_aside()):
            print(f"existing results are kept in {kept}", file=sys.stderr)
        if options.command == "run":
            _run(name, options, started)
        else:
            _publish(name, options)
    return 0


def _training(options: argparse.Namespace) -> tuple[str, Way]:
    """Device and passes, for commands that leave them open too."""
    return getattr(options, "device", "auto"), getattr(options, "passes", "plain")


def _speed(options: argparse.Namespace) -> None:
    from fcs_utils.speed import measure_here
    from fcs_utils.speed_tables import speed_table
    from fcs_utils.study import Study

    _check_folder("out", options.out)
    study = Study(options.profile, options.out, device=options.device)
    print(speed_table(measure_here(study.store, study.profile.speed, study.bench.device.type)[-1:]).to_string(index=False))
    print("usual: DataLoader, PIL images, fp32, NCHW; study: a run as done here; two at once: both together, a thread each;")
    print(f"convolutions alone: what a loop cannot go below. Kept in {study.store.speed()}")


def _estimate(names: Sequence[str], options: argparse.Namespace) -> None:
    from fcs_utils.estimate import estimate, training_throughput
    from fcs_utils.study import Study

    for study in [Study(name, options.out, options.data, *_training(options)) for name in names]:
        _ = study.bench.dataset  # missing data is said before anything is measured
        print(f"{study.profile.name} on {study.bench.device.type}, passes {options.passes}:")
        print(
            estimate(study, training_throughput(study.bench.device, options.passes)).to_string(
                index=False, float_format="{:,.2f}".format
            )
        )


def _publish(name: str, options: argparse.Namespace) -> None:
    from fcs_utils.publish import publish

    index = publish(name, options.out, options.data, options.notebooks, options.workers)
    print(f"open {index.resolve()} in a browser")


def _run(name: str, options: argparse.Namespace, started: float) -> None:
    from fcs_utils.deadline import Deadline
    from fcs_utils.study import Study
    from fcs_utils.workers import pick_workers

    study = Study(name, options.out, options.data, *_training(options))
    if options.time_budget:
        # Something is left for a run without epochs that is in hand, and for ending the workers.
        study.bench.deadline = Deadline(started + options.time_budget - min(10.0, options.time_budget / 10))
    records = study.run(options.stages, workers=pick_workers(options.workers, study.bench.device), only=options.only)
    print(f"{len(records)} runs of profile {name} have records in {study.store.root}")
