"""The command line's words. They need the standard library alone, so help and refusals come before installation."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fcs_utils import __version__
from fcs_utils.errors import StudyError, did_you_mean, refuse
from fcs_utils.report.chapters import pick_notebooks
from fcs_utils.study.catalogue import ABOUT_STAGES, HEADLINE, STAGES, check_datasets, check_profile, profile_names, read_profile

# What other tools call an option.
ELSEWHERE = dict.fromkeys(("ratio", "sparsity", "flops"), "macs") | {"lr": "learning-rate", "data": "images", "output": "out"}
ELSEWHERE |= {"checkpoint": "weights", "method": "criterion", "jobs": "workers"}


class Parser(argparse.ArgumentParser):
    """argparse with errors in one line that name the nearest allowed word."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}. See {self.prog} --help\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise refuse(action.dest, value, ", ".join(action.choices))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        try:
            options, unknown = super().parse_known_args(args, namespace)
        except StudyError as error:
            self.error(str(error))
        if unknown:
            known = [option.lstrip("-") for action in self._actions for option in action.option_strings]
            word = unknown[0].partition("=")[0].lstrip("-")
            self.error(f"unknown: {' '.join(unknown)}{did_you_mean(ELSEWHERE.get(word, word), known, '--')}")
        return options, unknown


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise refuse("workers", text, "a whole number from 1")
    return int(text)


def _seconds(text: str) -> float:
    """``90s``, ``9m``, ``1.5h`` in seconds."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([smh])", text)
    seconds = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < seconds < float("inf"):
        raise refuse("time-budget", text, "a number with s, m or h, such as 9m")
    return seconds


def _notebooks(text: str) -> str:
    pick_notebooks(text)
    return text


def _out(text: str) -> str:
    if not text:
        raise refuse("out", text, "a folder")
    for place in (Path(text), *Path(text).parents):
        if os.path.lexists(place) and not os.path.isdir(place):
            raise refuse("out", text, "a folder, this is a link to nothing" if place.is_symlink() else "a folder, this is a file")
    return text


def _file(option: str) -> Callable[[str], str]:
    def place(text: str) -> str:
        if os.path.isdir(text) or not Path(text).parent.is_dir():
            raise refuse(option, text, "a file in a folder that exists")
        return text

    return place


def _data(text: str) -> str:
    if not os.path.isdir(text):
        raise refuse("data", text, "an existing folder")
    return text


def _scheduler(text: str) -> str:
    if not re.fullmatch(r"(tcp|tls)://[^/:\s]+:\d+", text) and not os.path.isfile(text):
        raise refuse("cluster", text, "the file of a running scheduler, tcp://HOST:PORT, tls://HOST:PORT")
    return text


OPTIONS: dict[str, dict[str, Any]] = {
    "--out": {"type": _out, "default": "results", "metavar": "DIR", "help": "results folder (default: results)"},
    "--data": {"type": _data, "metavar": "DIR", "help": "data folder (default: FCS_DATA, else ./data, else data beside README.md)"},
    "--datasets": {
        "type": check_datasets,
        "default": (),
        "metavar": "A,B",
        "help": "study these data sets in turn, not the profile's own",
    },
    "--fresh": {"action": "store_true", "help": "set existing results of the profile aside and repeat every run"},
    "--workers": {"type": _count, "metavar": "N", "help": "how many runs go at once (default: one for each core, or one on a GPU)"},
    "--cluster": {
        "type": _scheduler,
        "metavar": "PLACE",
        "help": "do the runs on a Dask cluster: a scheduler's file, or tcp://HOST:PORT (default: FCS_CLUSTER), see docs/cluster.md",
    },
    "--parse-only": {"action": "store_true", "help": argparse.SUPPRESS},
    "--notebooks": {"type": _notebooks, "metavar": "NN,NN", "help": "only these notebooks and the runs they need, such as 03,06"},
    "--stages": {"nargs": "+", "choices": STAGES, "metavar": "STAGE", "help": "which of the stages below to do (default: all)"},
    "--only": {"nargs": "+", "default": (), "metavar": "KEY=VALUE", "help": "only runs with fields such as criterion=fcs seed=2"},
    "--list": {"action": "store_true", "help": "print the runs that have no record yet, and do none"},
    "--plugin": {
        "action": "append",
        "default": [],
        "metavar": "MODULE",
        "help": "a module that adds criteria or arms; may be repeated",
    },
    "--time-budget": {"type": _seconds, "metavar": "TIME", "help": "stop cleanly within this time, such as 9m or 2h"},
    "--device": {"default": "auto", "choices": ("auto", "cpu", "cuda"), "help": "where to run (default: auto)"},
    "--passes": {
        "default": "plain",
        "choices": ("plain", "compiled", "graphs"),
        "help": "how training passes are done: plain (default), compiled (torch.compile), or graphs (CUDA graphs, on a GPU)",
    },
    "--allow-missing": {"action": "store_true", "help": "show what the records say so far: no run is done or demanded"},
}

# Each command: what it does, an example, its default profile, and its options beside --profile and --out.
COMMANDS: dict[str, tuple[str, str, str, str]] = {
    "study": (
        "run a profile: all runs, the notebooks, tables and pages (./run_all.sh does this too, and ./run_all.sh lab explores)",
        "--profile quick --notebooks 03,06",
        "quick",
        "--data --datasets --fresh --workers --cluster --parse-only --notebooks --allow-missing",
    ),
    "run": (
        "do the runs only, without Jupyter, for servers",
        "--profile smoke --stages reference --only network=vgg16",
        "quick",
        "--data --datasets --fresh --workers --cluster --stages --only --list --plugin --time-budget --device --passes",
    ),
    "estimate": (
        "estimate how long a profile's missing runs take on this machine or on a cluster, from some seconds of training",
        "--profile paper",
        "paper",
        "--data --datasets --cluster --device --passes",
    ),
    "speed": (
        "measure how fast this machine trains and evaluates a profile's networks; notebook 08 shows it beside other machines",
        "--profile paper-core",
        "paper-core",
        "--device",
    ),
    "latency": (
        "measure how much faster networks at half of their MACs are, and what else takes time; notebook 08 shows it",
        "--profile cifar",
        HEADLINE,
        "",
    ),
    "tables": ("write tables and verdicts from records, running nothing", "--profile cifar", "quick", "--data --allow-missing"),
    "publish": ("pack a profile's results into files that are committed", "--profile cifar", HEADLINE, "--data --allow-missing"),
}


# Of the command ``prune``; without a default here, ``study.shrink.Shrinking`` has it.
PRUNE: dict[str, dict[str, Any]] = {
    "--model": {"required": True, "metavar": "NAME", "help": "MODULE:FUNCTION of your own, timm:NAME or torchvision/NAME"},
    "--weights": {"metavar": "FILE", "help": "safetensors file of its weights; without it, your function loads them itself"},
    "--images": {"required": True, "metavar": "PLACE", "help": "a folder with train/CLASS and val/CLASS, or a CSV file"},
    "--out": OPTIONS["--out"] | {"default": "compact", "help": "folder for what comes out (default: compact)"},
    "--macs": {"type": float, "metavar": "SHARE", "help": "share of the multiply-adds to leave (default: 0.5)"},
    "--latency": {"metavar": "GOAL", "help": "in place of --macs: 12.5ms, or a share of the dense latency such as 0.6"},
    "--criterion": {"metavar": "NAME", "help": "how channels are chosen (default: fcs)"},
    "--scope": {"choices": ("inner", "all"), "help": "all: also prune layers in residual sums (default: inner)"},
    "--allocation": {"choices": ("uniform", "global", "sensitivity"), "help": "how layers share the pruning (default: uniform)"},
    "--multiple": {"type": int, "metavar": "N", "help": "channel counts are multiples of N (default: 8)"},
    "--keep": {"action": "append", "metavar": "NAME", "help": "a layer, module or pattern that loses no channel; may be repeated"},
    "--epochs": {"type": int, "metavar": "N", "help": "epochs of tuning (default: 5; 0: none)"},
    "--arm": {"choices": ("tft", "kd", "mlft"), "help": "tune alone (tft, the default), taught by the dense network, or with it"},
    "--learning-rate": {"type": float, "metavar": "RATE", "help": "highest learning rate of tuning (default: 0.01)"},
    "--batch-size": {"type": int, "metavar": "N", "help": "pictures in each step of tuning (default: 32)"},
    "--size": {"type": int, "metavar": "PIXELS", "help": "side of the square pictures that the network gets (default: 224)"},
    "--calibration": {"type": int, "metavar": "N", "help": "pictures that channels are scored on (default: 256)"},
    "--seed": {"type": int, "metavar": "N", "help": "seed of random draws and batches (default: 0)"},
    "--mean": {"type": float, "nargs": 3, "metavar": "X", "help": "mean of each colour, in 0..1 (default: ImageNet's)"},
    "--std": {"type": float, "nargs": 3, "metavar": "X", "help": "standard deviation of each colour (default: ImageNet's)"},
    "--workers": {"type": int, "metavar": "N", "help": "further processes that decode pictures (default: 0)"},
    "--resident": {"action": argparse.BooleanOptionalAction, "help": "keep decoded pictures in memory (default: where they fit)"},
    "--device": OPTIONS["--device"],
    "--threads": {"type": int, "metavar": "N", "help": "threads while latency is measured (default: 1)"},
    "--batches": {"type": int, "nargs": "+", "metavar": "N", "help": "batch sizes at which latency is measured (default: 1 32)"},
    "--rounds": {"type": int, "metavar": "N", "help": "how often latency is measured (default: 15)"},
    "--runtime": {"choices": ("pytorch", "onnxruntime"), "help": "what runs networks to reach --latency (default: pytorch)"},
}

# Of the command ``networks``.
NETWORKS: dict[str, dict[str, Any]] = {
    "--only": {"nargs": "+", "metavar": "NAME", "help": "try these: names, or MODULE:FUNCTION of your own (default: all)"},
    "--out": {"type": _file("out"), "metavar": "FILE", "help": "write the page to this file, such as docs/networks.md"},
    "--rows": {"type": _file("rows"), "metavar": "FILE", "help": "keep finished rows in this JSON file, and go on from them"},
    "--seconds": {"type": float, "metavar": "N", "help": "seconds that one network may take with one tool (default: 300)"},
    "--gigabytes": {"type": float, "metavar": "N", "help": "memory that it may take (default: 12)"},
}

# Commands without a profile: what each does, an example, and its options.
WITHOUT_PROFILE: dict[str, tuple[str, str, dict[str, dict[str, Any]]]] = {
    "prune": (
        "make a network of your own smaller and faster, with your own pictures",
        "--model mymodule:build --weights my.safetensors --images photos --macs 0.5 --epochs 5",
        PRUNE,
    ),
    "networks": (
        "try which networks can be pruned, here and with Torch-Pruning's own pruner",
        "--only resnet50 mymodule:build",
        NETWORKS,
    ),
}


def build_parser(prog: str = "python -m fcs_utils") -> argparse.ArgumentParser:
    """The command line. Raises StudyError for a profile's file that is not TOML."""
    profiles = _listed("profiles", {name: read_profile(name)["summary"] for name in profile_names()})
    stages = _listed("stages", ABOUT_STAGES)
    shape = argparse.RawDescriptionHelpFormatter
    parser = Parser(
        prog=prog, description="Reproducible study of FCS pruning and MLFT fine-tuning.", epilog=f"{profiles}\n\n{stages}",
        allow_abbrev=False, formatter_class=shape,
    )  # fmt: skip
    off = dict.fromkeys(("fresh", "list", "parse_only", "allow_missing"), False)
    parser.set_defaults(data=None, datasets=(), device="auto", passes="plain", plugin=[], **off)
    parser.add_argument("--version", action="version", version=f"fcs-mlft {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, (text, example, profile, options) in COMMANDS.items():
        end = "\n\n".join([profiles, *([stages] if "--stages" in options.split() else []), f"example: {prog} {name} {example}"])
        command = commands.add_parser(name, help=text, description=text, epilog=end, allow_abbrev=False, formatter_class=shape)
        about = f"a profile below (default: {profile}); NAME:DATASET is the same on another data set"
        command.add_argument("--profile", type=check_profile, default=profile, metavar="NAME", help=about)
        # argparse cannot print the help of a command with an empty group
        one_of = command.add_mutually_exclusive_group() if "--cluster" in options.split() else command
        for option in ("--out", *options.split()):
            (one_of if option in ("--workers", "--cluster") else command).add_argument(option, **OPTIONS[option])
        if "--cluster" in options.split():
            command.set_defaults(cluster=os.environ.get("FCS_CLUSTER"))
    for name, (text, example, settings) in WITHOUT_PROFILE.items():
        end = f"example: {prog} {name} {example}"
        command = commands.add_parser(name, help=text, description=text, epilog=end, allow_abbrev=False, formatter_class=shape)
        for option, words in settings.items():
            command.add_argument(option, **words)
    return parser


def _listed(title: str, lines: Mapping[Any, str]) -> str:
    return "\n".join([f"{title}:", *(f"  {name:<17}{text}" for name, text in lines.items())])
