"""What the commands do. Each imports what it needs, so a typo is refused without importing torch."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fcs_utils.cli.parser import build_parser
from fcs_utils.cli.process import QuickEnd, import_torch, let_go, start_again_with_allocator
from fcs_utils.errors import OutOfTime, StudyError, counted, is_out_of_memory

if TYPE_CHECKING:
    from fcs_utils.study.study import Study


def console() -> int:
    """What ``fcs-mlft`` and ``python -m fcs_utils`` start; it returns the exit status, with which the process then ends."""
    if not {"-h", "--help"} & {*sys.argv}:
        start_again_with_allocator()
    end = QuickEnd()
    try:
        end.status = main(prog="fcs-mlft" if Path(sys.argv[0]).stem == "fcs-mlft" else "python -m fcs_utils")
        return end.status
    finally:
        let_go()


def main(arguments: Sequence[str] | None = None, prog: str = "python -m fcs_utils") -> int:
    """Run a command; returns the exit status. Whatever the user can put right is one line on stderr."""
    if not sys.stderr.isatty():  # tqdm reads it when imported; without a terminal it then prints a line every ten seconds
        os.environ.setdefault("TQDM_MININTERVAL", "10")
    options = argparse.Namespace()
    try:
        build_parser(prog).parse_args(arguments, options)
        signal.signal(signal.SIGTERM, _interrupt)  # what a scheduler sends is handled like Ctrl-C
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell's & switched it off
            signal.signal(signal.SIGINT, _interrupt)
        if not options.parse_only:
            _dispatch(options)
        return 0
    except OutOfTime as error:
        print(f"{error}; finished runs are kept, start again to go on", file=sys.stderr)
        return 0
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        print(f"error: {error}: use the study's own environment, .venv/bin/python, which ./run_all.sh makes", file=sys.stderr)
    except (ImportError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, ImportError) or is_out_of_memory(error)):
            raise
        print(f"error: memory ran out, perhaps by a limit (ulimit -v): {error or 'no more to be had'}", file=sys.stderr)
    except BrokenPipeError:
        let_go()
        return 141  # as after SIGPIPE
    except OSError as error:  # the disk or the system refused something that no module foresaw
        print(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
    except KeyboardInterrupt as error:
        kept = {
            **dict.fromkeys(("speed", "latency"), "the measurement in progress is not kept"),
            "prune": "nothing is written before the end",
            "networks": "networks that are done are kept in the file of --rows, if there is one",
        }.get(options.command, "records made so far are kept, start again to go on")
        print(f"interrupted: {kept}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)
    return 1


def _interrupt(number: int, _frame: object) -> NoReturn:
    for again in (signal.SIGINT, signal.SIGTERM):  # a second signal ends at once: files on disk are always whole
        signal.signal(again, lambda *_: os._exit(128 + number))
    raise KeyboardInterrupt(number)


def _open(name: str, options: argparse.Namespace) -> Study:
    from fcs_utils.study.study import Study

    return Study(name, options.out, options.data, options.device, options.passes, options.plugin)


def _dispatch(options: argparse.Namespace) -> None:
    started = time.monotonic()
    import_torch()
    if options.command in ACTIONS:
        return ACTIONS[options.command](options)
    from fcs_utils.study.profiles import import_plugins, studies
    from fcs_utils.study.records import Store

    import_plugins(options.plugin)
    names = studies(options.profile, options.datasets)
    if options.list and options.fresh:
        raise StudyError("give either --list, which changes nothing, or --fresh")
    if options.allow_missing and options.fresh:
        raise StudyError("give either --allow-missing, which does no run, or --fresh")
    # Missing data is reported before results are set aside or hours are spent.
    if (len(names) > 1 or options.fresh) and not options.list:
        for study in (_open(name, options) for name in names):
            if options.fresh or study.missing():
                _ = study.bench.dataset
    for name in names:
        if options.fresh and (kept := Store(options.out, name).set_aside()):
            print(f"existing results are kept in {kept}", file=sys.stderr)
        if options.command == "study":
            _build(name, options)
        elif options.command == "estimate":
            _estimate(name, options)
        else:
            _run(name, options, started)


def _build(name: str, options: argparse.Namespace) -> None:
    from fcs_utils.report.publish import build

    given = options.out, options.data, options.notebooks, options.workers, _cluster(options)
    index = build(name, *given, allow_missing=options.allow_missing)
    print(f"open {index.resolve()} in a browser")


def _cluster(options: argparse.Namespace) -> str | None:
    """Whose workers do the runs; --workers are this machine's, whatever FCS_CLUSTER says."""
    place: str | None = None if options.workers else options.cluster
    return place


def _run(name: str, options: argparse.Namespace, started: float) -> None:
    from fcs_utils.machine import pick_workers
    from fcs_utils.study.guards import Deadline
    from fcs_utils.study.runs import describe

    study = _open(name, options)
    if options.list:
        for run in study.pending(options.stages, options.only):
            print(describe(run))
        return
    if options.time_budget:
        # The reserve is for ending the workers and for a run in progress that has no epochs.
        study.bench.deadline = Deadline(started + options.time_budget - min(10.0, options.time_budget / 10))
        if study.bench.device.type == "cuda":  # a booked machine: how far will the time reach?
            _print_estimate(study, options)
    workers = pick_workers(options.workers, study.bench.device)
    records = study.run(options.stages, workers=workers, only=options.only, cluster=_cluster(options))
    print(f"records of {counted(len(records), 'run')} of profile {name} are in {study.store.root}")


def _estimate(name: str, options: argparse.Namespace) -> None:
    study = _open(name, options)
    _ = study.bench.dataset  # report missing data before anything is measured
    _print_estimate(study, options)


def _print_estimate(study: Study, options: argparse.Namespace) -> None:
    from fcs_utils.study.cluster import on_cluster
    from fcs_utils.study.estimate import cluster_throughput, estimate, training_throughput

    if cluster := options.cluster if options.command == "estimate" else None:
        with on_cluster(cluster) as engine:
            print(f"{study.profile.name} on {counted(engine.slots(), 'worker')} of a cluster, passes {options.passes}:", flush=True)
            table = estimate(study, cluster_throughput(engine, engine.slots, options.passes))
    else:
        print(f"{study.profile.name} on {study.bench.device.type}, passes {options.passes}:", flush=True)
        table = estimate(study, training_throughput(study.bench.device, options.passes))
    print(table.to_string(index=False, float_format="{:,.2f}".format))


def _speed(options: argparse.Namespace) -> None:
    from fcs_utils.benchmarks.speed_tables import speed_table
    from fcs_utils.study.measurements import measure_here

    study = _open(options.profile, options)
    print(speed_table(measure_here(study.store, study.profile.speed, study.bench.device.type)[-1:]).to_string(index=False))
    print("usual: DataLoader, PIL images, fp32, NCHW; study: a run as done here; two at once: both together, a thread each;")
    print(f"convolutions alone: no loop can be faster. Saved in {study.store.measurements()}")


def _tables(options: argparse.Namespace) -> None:
    from fcs_utils.report.frames import make_report

    study = _open(options.profile, options)
    report = make_report(study, allow_missing=options.allow_missing)
    report.write(study.store)
    print(f"{len(report.tables())} tables in {study.store.table('claims').parent}, {counted(len(report.missing), 'run')} missing")


def _publish(options: argparse.Namespace) -> None:
    from fcs_utils.report.published import publish

    print(f"published: {publish(options.profile, options.out, options.data, allow_missing=options.allow_missing)}")


def _prune(options: argparse.Namespace) -> None:
    from fcs_utils.cli.parser import PRUNE
    from fcs_utils.pruning.latency_goal import latency_in_words
    from fcs_utils.report.shrunk import before_and_after, write_shrunk
    from fcs_utils.study.shrink import Shrinking, shrink

    names = [option.removeprefix("--").replace("-", "_") for option in PRUNE if option != "--out"]
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    if "latency" in given:
        given["latency"] = latency_in_words(given["latency"])
    out = Path(options.out)
    found = shrink(Shrinking(**given), out, lambda line: print(line, flush=True))
    print(before_and_after(found.measured).to_string(index=False))
    print(f"open {write_shrunk(found, out).resolve()} in a browser; all files are in {out}")


def _latency(options: argparse.Namespace) -> None:
    from fcs_utils.study.measurements import measure_latencies

    store = _open(options.profile, options).store
    for table in measure_latencies(store):
        print(table.to_string(index=False), end="\n\n", flush=True)
    print(f"Saved in {store.measurements()}")


def _networks(options: argparse.Namespace) -> None:
    from fcs_utils.benchmarks.network_tables import page, said, terminal_table
    from fcs_utils.benchmarks.networks import ProcessLimits, try_networks
    from fcs_utils.benchmarks.zoo import chosen
    from fcs_utils.files import write_atomic

    limits = ProcessLimits(**{name: value for name in ("seconds", "gigabytes") if (value := getattr(options, name)) is not None})
    names, left_out = chosen(options.only)
    if left_out:
        print(f"timm is not installed (pip install timm), so these are left out: {', '.join(left_out)}")
    rows = {}
    for name, row in try_networks(list(names), limits, Path(options.rows) if options.rows else None):
        rows[name] = row
        print(f"{name}: {said(row['here'])}; Torch-Pruning: {said(row['torch-pruning'])}", flush=True)
    print(terminal_table(rows).to_string(index=False))
    if options.out:
        write_atomic(Path(options.out), page(rows, limits).encode())


# The commands for one profile on its own data set, and those without a profile.
ACTIONS = {"prune": _prune, "networks": _networks, "latency": _latency, "tables": _tables, "speed": _speed, "publish": _publish}
