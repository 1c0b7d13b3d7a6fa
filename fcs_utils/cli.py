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

if TYPE_CHECKING:
    from fcs_utils.training.passes import Mode
import re

# Spelled out so that a typo is refused without importing torch; a test compares them with the real tables.
PROFILES = ("smoke", "quick", "cifar", "fashion", "paper", "paper-core", "paper-resnet110")
STAGES = ("reference", "similarity", "pruned", "tuned", "ablation", "headstart", "rates", "arms")


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See {self.prog} --help\n")


DATASET = re.compile(r"\w[\w:.@\[\]-]*")


def _profile(text: str) -> str:
    base, colon, dataset = text.partition(":")
    if base not in PROFILES or bool(colon) != bool(DATASET.fullmatch(dataset)):
        allowed = f"{', '.join(PROFILES)}, or NAME:DATASET such as paper:cifar100"
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: {allowed}")
    return text


def _datasets(text: str) -> list[str]:
    if not all(DATASET.fullmatch(name) for name in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: names joined by commas, such as cifar10,cifar100")
    return text.split(",")


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    """``90s``, ``9m``, ``1.5h`` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: a number with s, m or h, such as 9m")
    return seconds


def build_parser(prog: str = "python -m fcs_utils") -> argparse.ArgumentParser:
    parser = Parser(prog=prog, description="Reproducible study of FCS pruning and MLFT fine-tuning.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str, profile: str = "quick") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, epilog=f"Example: {example}", allow_abbrev=False)
        if example.startswith("./run_all.sh"):  # how users know this command
            command.prog = "./run_all.sh"
        names = f"one of {', '.join(PROFILES)} (default: {profile}); NAME:DATASET is the same on another data set"
        command.add_argument("--profile", type=_profile, default=profile, metavar="NAME", help=names)
        command.add_argument("--out", default="results", metavar="DIR", help="results folder (default: results)")
        return command

    def add_data(command: argparse.ArgumentParser) -> None:
        command.add_argument("--data", metavar="DIR", help="data folder (default: FCS_DATA, else ./data)")

    def add_datasets(command: argparse.ArgumentParser) -> None:
        add_data(command)
        command.add_argument("--datasets", type=_datasets, default=[], metavar="A,B",
                             help="study these data sets instead of the profile's own, one after the other")  # fmt: skip

    def add_device(command: argparse.ArgumentParser) -> None:
        command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="where to run (default: auto)")

    def add_passes(command: argparse.ArgumentParser) -> None:
        text = "how training passes are done: plain (default), compiled (torch.compile), or graphs (CUDA graphs, on a GPU)"
        command.add_argument("--passes", default="plain", choices=("plain", "compiled", "graphs"), help=text)

    def add_running(command: argparse.ArgumentParser) -> None:
        add_datasets(command)
        command.add_argument("--fresh", action="store_true", help="set existing results of the profile aside and do all again")
        command.add_argument("--parse-only", action="store_true", help=argparse.SUPPRESS)
        command.add_argument("--workers", type=_count, metavar="N", help="runs at once (default: one a core, or one on a GPU)")

    text = "run a profile: all runs, the notebooks, tables and pages (what ./run_all.sh calls; ./run_all.sh lab opens the explorer)"
    study = add("study", text,
                "./run_all.sh --profile quick --notebooks 03,06")  # fmt: skip
    add_running(study)
    study.add_argument("--notebooks", metavar="NN,NN", help="only these notebooks and the runs they need, such as 03,06")
    run = add("run", "the runs alone, without Jupyter, for servers", "python -m fcs_utils run --profile smoke --stages reference")
    add_running(run)
    run.add_argument("--stages", nargs="+", choices=STAGES, metavar="STAGE", help="some of: " + ", ".join(STAGES))
    run.add_argument("--only", default="", metavar="WORDS", help="only runs whose description has these words, such as 'vgg16 fcs'")
    run.add_argument("--time-budget", type=_seconds, metavar="TIME", help="stop cleanly within this time, such as 9m or 2h")
    add_device(run)
    add_passes(run)
    text = "what the runs that a profile still lacks will take on this machine, from some seconds of measured training"
    estimate = add("estimate", text, "python -m fcs_utils estimate --profile paper", "paper")
    add_datasets(estimate)
    add_device(estimate)
    add_passes(estimate)
    text = "measure how fast this machine trains and evaluates a profile's networks; notebook 08 shows it beside other machines"
    speed = add("speed", text, "python -m fcs_utils speed --profile paper-core", "paper-core")
    add_device(speed)
    tables = add("tables", "write tables and verdicts from records, running nothing", "python -m fcs_utils tables --profile cifar")
    add_data(tables)
    tables.add_argument("--allow-missing", action="store_true", help="list runs without a record in a table instead of refusing")
    publish = add("publish", "promote what was run on this machine to the published results", "python -m fcs_utils publish")
    add_data(publish)
    return parser


# glibc keeps what a step frees for the next one, and takes it in huge pages: up to a seventh of a training step's time.
ALLOCATOR = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=2147483647"


def console() -> int:
    """What ``fcs-mlft`` and ``python -m fcs_utils`` start.

    glibc reads its settings when a process starts, so on Linux this one starts itself again with them.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:  # what the user has set is left alone
        os.environ["GLIBC_TUNABLES"] = ALLOCATOR
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is meant
    return main()


def main(arguments: Sequence[str] | None = None, prog: str = "python -m fcs_utils") -> int:
    """Run a command; returns the exit status. Whatever the user can put right is one line on stderr."""
    options = build_parser(prog).parse_args(arguments)
    if not sys.stderr.isatty():  # tqdm reads it when it is imported: where nobody watches, a line every ten seconds
        os.environ.setdefault("TQDM_MININTERVAL", "10")
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
    from fcs_utils.report.chapters import pick_notebooks

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
    if options.command == "publish":
        from fcs_utils.report.published import publish

        print(f"published: {publish(options.profile, options.out, options.data)}")
        return 0
    if options.command == "tables":
        from fcs_utils.report.frames import make_report
        from fcs_utils.study.study import Study

        study = Study(options.profile, options.out, options.data)
        report = make_report(study, allow_missing=options.allow_missing)
        report.write(study.store)
        print(f"{len(report.tables())} tables in {study.store.table('claims').parent}, {len(report.missing)} runs missing")
        return 0
    if options.command == "speed":
        _speed(options)
        return 0
    _check_before_install(options)
    from fcs_utils.study.profiles import studies
    from fcs_utils.study.records import Store

    names = studies(options.profile, options.datasets)
    if options.command == "estimate":
        _estimate(names, options)
        return 0
    if len(names) > 1 or options.fresh:  # missing data is said before results are set aside, or the first study takes its hours
        from fcs_utils.study.study import Study

        for study in (Study(name, options.out, options.data, *_training(options)) for name in names):
            if options.fresh or study.missing():
                _ = study.bench.dataset
    for name in names:
        if options.fresh and (kept := Store(options.out, name).set_aside()):
            print(f"existing results are kept in {kept}", file=sys.stderr)
        if options.command == "run":
            _run(name, options, started)
        else:
            _build(name, options)
    return 0


def _training(options: argparse.Namespace) -> tuple[str, Mode]:
    """Device and passes, for commands that leave them open too."""
    return getattr(options, "device", "auto"), getattr(options, "passes", "plain")


def _speed(options: argparse.Namespace) -> None:
    from fcs_utils.benchmarks.speed_tables import speed_table
    from fcs_utils.study.measurements import measure_here
    from fcs_utils.study.study import Study

    _check_folder("out", options.out)
    study = Study(options.profile, options.out, device=options.device)
    print(speed_table(measure_here(study.store, study.profile.speed, study.bench.device.type)[-1:]).to_string(index=False))
    print("usual: DataLoader, PIL images, fp32, NCHW; study: a run as done here; two at once: both together, a thread each;")
    print(f"convolutions alone: what a loop cannot go below. Kept in {study.store.measurements()}")


def _estimate(names: Sequence[str], options: argparse.Namespace) -> None:
    from fcs_utils.study.estimate import estimate, training_throughput
    from fcs_utils.study.study import Study

    for study in [Study(name, options.out, options.data, *_training(options)) for name in names]:
        _ = study.bench.dataset  # missing data is said before anything is measured
        print(f"{study.profile.name} on {study.bench.device.type}, passes {options.passes}:")
        print(
            estimate(study, training_throughput(study.bench.device, options.passes)).to_string(
                index=False, float_format="{:,.2f}".format
            )
        )


def _build(name: str, options: argparse.Namespace) -> None:
    from fcs_utils.report.publish import build

    index = build(name, options.out, options.data, options.notebooks, options.workers)
    print(f"open {index.resolve()} in a browser")


def _run(name: str, options: argparse.Namespace, started: float) -> None:
    from fcs_utils.machine import pick_workers
    from fcs_utils.study.guards import Deadline
    from fcs_utils.study.study import Study

    study = Study(name, options.out, options.data, *_training(options))
    if options.time_budget:
        # Something is left for a run without epochs that is in hand, and for ending the workers.
        study.bench.deadline = Deadline(started + options.time_budget - min(10.0, options.time_budget / 10))
    records = study.run(options.stages, workers=pick_workers(options.workers, study.bench.device), only=options.only)
    print(f"{len(records)} runs of profile {name} have records in {study.store.root}")
