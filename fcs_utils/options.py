"""The words of the command line. They need the standard library only, so help works before installation."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

# Spelled out so that a typo is refused without importing torch; a test compares them with the real tables.
PROFILES = ("smoke", "quick", "cifar", "fashion", "paper", "paper-core", "paper-resnet110")
HEADLINE = "cifar"  # whose verdicts stand in the README
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
    readme = add("readme", "render the README's table and figure from records", "python -m fcs_utils readme", HEADLINE)
    readme.add_argument("--check", action="store_true", help="change nothing; fail when they are stale")
    text = "gather the wheels that runs need beside torch, torchvision, numpy, pandas and scikit-learn"
    wheels = commands.add_parser("wheels", help=text, description=text, allow_abbrev=False,
                                 epilog="Example: python -m fcs_utils wheels --to wheels --python 3.12")  # fmt: skip
    wheels.add_argument("--to", required=True, metavar="DIR", help="folder for the wheels")
    wheels.add_argument("--python", default="3.12", metavar="3.N", help="the other machine's Python (default: 3.12)")
    return parser
