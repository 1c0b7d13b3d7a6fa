"""Plants single mistakes in copies of the code, one at a time, and tells which of them the quick tests let pass.

    .venv/bin/python tests/mutants.py --sample 200 --seed 0             # a sample, the same for a seed and a code
    .venv/bin/python tests/mutants.py --files fcs_utils/pruning/fcs.py  # all mistakes of some files

At first every test of the rooms runs once, to see which lines it runs and how long it takes. Against a mistake run the tests that
run its statement, until one fails: first those that caught others in its file, then the quickest ones, as many as take two
minutes of computing in all. ``mistakes.py`` says which mistakes there are.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

import torch
from mistakes import Mutant, plant
from scipy.stats import binomtest
from watching import FAILED, OUTPUT, PASSED, WATCHED, Choose, Watch, collect, finish, start

ROOT = Path(__file__).resolve().parents[1]
BUDGET = 120  # seconds of computing for the tests of one mistake: slower ones are left out
PARTS = (4, 30, BUDGET)  # seconds after which pytest starts again with the next tests: most mistakes are caught before
ENDLESS = (30, 3)  # seconds, and times what its tests take without it: after so much computing a mistake counts as caught
LONGEST = 3600  # seconds of computing for all tests of a file
FILES = (  # the rooms of the method, and the arithmetic of the study and the report
    *("data", "models.py", "pruning", "training", "study/grid.py", "study/rates.py"),
    *(f"report/{name}.py" for name in ("comparisons", "claims", "inference", "tables")),
)
# Tests that compile or start programs are too slow to be tried.
LEFT = {"test_torch_pruning.py", "test_passes.py", "test_study.py", "test_going_on.py", "test_schedule.py"}
LEFT |= {"test_plugins.py", "test_explorer.py", "test_publish.py"}
LEFT_FILES = {"fcs_utils/pruning/torch_pruning.py", "fcs_utils/training/passes.py"}  # which have no others
WHOLE = ("data", "models", "pruning", "training")  # rooms of which every test counts; of others those that import the module
THROUGH = {"fcs_utils/study/rates.py": "fcs_utils/report/inference.py"}  # a module and the one through which it is tested
ALSO = {  # by room, quick test files of others
    "data": ["promises/test_hostile_archives.py", "promises/test_hostile_files.py"],
    "models": ["data/test_pictures.py"],  # which measures batches
    "pruning": ["promises/test_bad_calls.py"],
    "training": ["promises/test_bad_calls.py", "promises/test_wrong_checkpoints.py"],
}
LOADED = "torchvision torch_pruning pandas scipy.stats scipy.optimize sklearn.datasets sklearn.cluster pydantic hypothesis"
Watched = dict[str, Any]  # of a test file: the lines run before its tests, and by test its seconds and its lines


def text_of(test: Path, place: Path = ROOT) -> str:
    """A test file, with what it takes from other files of tests."""
    text = test.read_text()
    return text + "".join(
        Path(place, *name.split(".")).with_suffix(".py").read_text() for name in re.findall(r"(tests\.\w+\.\w+)", text)
    )


@cache  # so that files that come later are not asked for
def tests_of(file: str) -> list[str]:
    """The test files that may notice a mistake in a file."""
    path = Path(THROUGH.get(file, file))
    room = path.parts[1] if len(path.parts) > 2 else path.stem
    word = re.compile(rf"\b{'.'.join(path.with_suffix('').parts)}\b|\bfrom {'.'.join(path.parts[:-1])} import .*\b{path.stem}\b")
    found = [test for test in sorted((ROOT / "tests" / room).glob("test_*.py")) if test.name not in LEFT]
    own = [test for test in found if room in WHOLE or word.search(text_of(test))]
    return [str(test.relative_to(ROOT)) for test in own] + [f"tests/{name}" for name in ALSO.get(room, ())]


def copy_project(place: Path) -> None:
    """A copy of the code and its tests; the rest is linked."""
    for entry in ROOT.iterdir():
        if entry.name in ("fcs_utils", "tests"):
            shutil.copytree(entry, place / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not entry.name.startswith("."):
            (place / entry.name).symlink_to(entry)


def watch(place: Path, tests: set[str], known: Path | None) -> dict[str, Watched]:
    """What each test file runs. known: a file that keeps it for the same code. Refuses tests that fail without a mistake."""
    stored: dict[str, Watched] = json.loads(known.read_text()) if known and known.exists() else {}
    code = b"".join(path.read_bytes() for path in sorted((place / "fcs_utils").rglob("*.py")))
    found: dict[str, Watched] = {}
    for test in sorted(tests):
        key = hashlib.sha256(code + text_of(place / test, place).encode()).hexdigest()
        if key not in stored:
            child, status, _ = os.wait4(start(place, [(lambda test=test: Watch(place).run(test), LONGEST)]), 0)
            if finish(child, status) not in PASSED:
                raise SystemExit(f"without a mistake, too, tests fail:\n{(place / OUTPUT).read_text()[-3000:]}")
            stored[key] = json.loads((place / WATCHED).read_text())
            if known:
                known.write_text(json.dumps(stored))
        found[test] = stored[key]
    finish(*os.wait4(start(place, [(lambda: collect(found), LONGEST)]), 0)[:2])  # so that all bytecode is there
    return found


def chosen(mutant: Mutant, watched: dict[str, Watched], caught: Counter[str]) -> list[tuple[list[str], float]]:
    """The tests that run a mistake's statement, in the order in which they are tried, in parts; and the seconds that each takes."""
    ran: dict[str, tuple[int, bool, float]] = {}
    for test in tests_of(mutant.file):
        shared, stem = mutant.within(watched[test]["before"]), Path(test).stem.removeprefix("test_")
        for name, (seconds, lines) in watched[test]["tests"].items():
            if shared or mutant.within(lines):  # of a line that the import runs, first the tests of the module's own name
                ran[name] = -caught[name], shared and stem != Path(mutant.file).stem, seconds
    parts: list[tuple[list[str], float]] = [([], 0.0) for _ in PARTS]
    total = 0.0
    for name in sorted(ran, key=ran.__getitem__):
        seconds = ran[name][2]
        if total + seconds <= BUDGET:
            total += seconds
            number = sum(total > limit for limit in PARTS)
            parts[number] = [*parts[number][0], name], parts[number][1] + seconds
    return [part for part in parts if part[0]]


def tried(mutants: list[Mutant], watched: dict[str, Watched], places: list[Path]) -> Iterator[tuple[Mutant, str, float]]:
    """Each mistake, what catches it, if anything does, and the seconds of computing that this took, as they end."""
    running: dict[int, tuple[Mutant, Path, bytes, int]] = {}
    waiting, free = mutants[::-1], list(places)
    caught: dict[str, Counter[str]] = defaultdict(Counter)
    try:
        while waiting or running:
            while waiting and free:
                mutant, place = waiting.pop(), free.pop()
                file = place / mutant.file
                source, changed_at = file.read_bytes(), file.stat().st_mtime_ns
                file.write_bytes(source[: mutant.start] + mutant.text + source[mutant.end :])
                parts = chosen(mutant, watched, caught[mutant.file])
                runs = [(Choose(names).run, ENDLESS[0] + ENDLESS[1] * seconds) for names, seconds in parts]
                running[start(place, runs)] = mutant, place, source, changed_at
            child, status, used = os.wait3(0)
            mutant, place, source, changed_at = running.pop(child)
            (place / mutant.file).write_bytes(source)
            os.utime(place / mutant.file, ns=(changed_at, changed_at))  # its bytecode counts again
            free.append(place)
            by = "" if finish(child, status) in PASSED else "an error outside of tests"
            if by and (place / FAILED).exists():
                by = (place / FAILED).read_text()
            caught[mutant.file][by] += 1
            yield mutant, by, used.ru_utime + used.ru_stime
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            finish(*os.waitpid(child, 0))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", nargs="+", default=[f"fcs_utils/{name}" for name in FILES], help="files or folders (default: FILES)"
    )
    parser.add_argument("--sample", type=int, help="so many of the mistakes (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mistakes tried at once")
    parser.add_argument("--known", type=Path, help="a file that keeps which test runs what, for another start with this code")
    parser.add_argument("--list", action="store_true", help="list the mistakes and end")
    return parser.parse_args()


def planted(options: argparse.Namespace) -> list[Mutant]:
    """The mistakes that are asked for."""
    paths = [ROOT / name for name in options.files]
    files = [str(file.relative_to(ROOT)) for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    mutants = [mutant for file in files if file not in LEFT_FILES for mutant in plant(file)]
    if options.sample:  # by chance in their order, too: where it is stopped, what was tried is a sample
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    return mutants


def main() -> None:
    options = read_options()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended early, it says what it found
    mutants = planted(options)
    real = [mutant for mutant in mutants if not mutant.equivalent]
    if options.list:
        print(*(f"{mutant.file}:{mutant.line}: {mutant.change}" for mutant in real), sep="\n")
        return
    for name in LOADED.split():  # once, and not in every process
        importlib.import_module(name)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(options.jobs)]
        places[0].mkdir()
        copy_project(places[0])
        watched = watch(places[0], {test for mutant in real for test in tests_of(mutant.file)}, options.known)
        for place in places[1:]:
            shutil.copytree(places[0], place, symlinks=True)
        sys.dont_write_bytecode = True  # only the changed file is compiled
        found: list[tuple[Mutant, str, float]] = []
        with suppress(KeyboardInterrupt):
            for mutant, by, seconds in tried(real, watched, places):
                found.append((mutant, by, seconds))
                if not by:
                    print(f"{mutant.file}:{mutant.line}: {mutant.change}", flush=True)
    passed = Counter(mutant.file for mutant, by, _ in found if not by)
    for file, number in sorted(Counter(mutant.file for mutant, _, _ in found).items()):
        print(f"{file}: {number - passed[file]} of {number}")
    caught, number, same = len(found) - passed.total(), len(found), len(mutants) - len(real)
    low, high = binomtest(caught, number).proportion_ci(method="wilson")
    print(f"{caught} of {number} mistakes caught, {caught / number:.1%} ({low:.1%} to {high:.1%}); {len(real) - number} not tried.")
    print(f"{same} more change nothing. This took {sum(seconds for _, _, seconds in found) / 60:.0f} minutes of computing.")


if __name__ == "__main__":
    main()
