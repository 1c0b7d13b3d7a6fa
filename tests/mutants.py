"""Plants single mistakes in copies of the code, one at a time, and tells which of them the quick tests let pass.

    .venv/bin/python tests/mutants.py --sample 200 --seed 0             # a sample, the same for a seed and a code
    .venv/bin/python tests/mutants.py --files fcs_utils/pruning/fcs.py  # all mistakes of some files

Against a mistake run the tests of its room that import its module, until one fails: first those of its name, then the quickest
ones, as many as take two minutes of computing in all. ``mistakes.py`` says which mistakes there are.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

import pytest
import torch
from mistakes import Mutant, plant

ROOT = Path(__file__).resolve().parents[1]
PASSED = (0, 5)  # what pytest says where no test failed, or none was chosen
BUDGET = 120  # seconds of computing for the tests of one mistake: slower ones are left out
ENDLESS = 240  # seconds of computing after which a mistake counts as caught
FILES = (  # the rooms of the method, and the arithmetic of the study and the report
    *("data", "models.py", "pruning", "training", "study/grid.py", "study/rates.py"),
    *(f"report/{name}.py" for name in ("comparisons", "claims", "inference", "tables")),
)
# Tests that compile, start programs, or prune hundreds of networks are too slow to be tried on every mistake.
LEFT = {
    *("test_properties.py", "test_torch_pruning.py", "test_passes.py", "test_study.py", "test_going_on.py", "test_schedule.py"),
    *("test_plugins.py", "test_explorer.py", "test_publish.py", "test_pruners.py"),
}
LEFT_FILES = {"fcs_utils/pruning/torch_pruning.py", "fcs_utils/training/passes.py"}  # which have no others
THROUGH = {  # modules that no test of their room imports, and the ones through which they are tested
    "fcs_utils/data/archives.py": "fcs_utils/data/imagefolder.py",
    "fcs_utils/pruning/baselines.py": "fcs_utils/pruning/criteria.py",
    "fcs_utils/pruning/cutting.py": "fcs_utils/pruning/surgery.py",
    "fcs_utils/pruning/draft.py": "fcs_utils/pruning/surgery.py",
    "fcs_utils/pruning/flow.py": "fcs_utils/pruning/layers.py",
    "fcs_utils/pruning/graph.py": "fcs_utils/pruning/layers.py",
    "fcs_utils/pruning/segments.py": "fcs_utils/pruning/layers.py",
    "fcs_utils/study/rates.py": "fcs_utils/report/inference.py",
}
ALSO = {  # test files of other rooms
    **dict.fromkeys(("fcs_utils/data/archives.py", "fcs_utils/data/imagefolder.py"), ["promises/test_hostile_archives.py"]),
    "fcs_utils/models.py": ["data/test_pictures.py"],  # which measures batches
}
LOADED = "torchvision torch_pruning pandas scipy.stats scipy.optimize sklearn.datasets sklearn.cluster pydantic hypothesis"


def named(test: Path, file: str) -> bool:
    """Whether a test file has a module's name, or that of the module through which it is tested."""
    return test.name.startswith(f"test_{Path(file).stem}") or test.stem == f"test_{Path(THROUGH.get(file, file)).stem}"


def text_of(test: Path) -> str:
    """A test file, with what it takes from other files of tests."""
    text = test.read_text()
    return text + "".join(
        Path(ROOT, *name.split(".")).with_suffix(".py").read_text() for name in re.findall(r"(tests\.\w+\.\w+)", text)
    )


def tests_of(file: str) -> list[Path]:
    """The test files of a module: those of its name, and those of its room that import it."""
    path = Path(THROUGH.get(file, file))
    room = ROOT / "tests" / (path.parts[1] if len(path.parts) > 2 else path.stem)
    word = re.compile(rf"\b{'.'.join(path.with_suffix('').parts)}\b|\bfrom {'.'.join(path.parts[:-1])} import .*\b{path.stem}\b")
    tests = sorted(room.glob("test_*.py"))
    own = [test for test in tests if named(test, file) or (test.name not in LEFT and word.search(text_of(test)))]
    return own + [ROOT / "tests" / name for name in ALSO.get(file, ())]


def copy_project(place: Path) -> None:
    """A copy of the code and its tests; the rest is linked."""
    for entry in ROOT.iterdir():
        if entry.name in ("fcs_utils", "tests"):
            shutil.copytree(entry, place / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif not entry.name.startswith("."):
            (place / entry.name).symlink_to(entry)


def start_tests(place: Path, tests: list[str]) -> int:
    """Fork a process that runs tests of a copy until one fails. It ends with pytest's status, or by a signal if it never would."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 70
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CPU, (ENDLESS, ENDLESS))
        signal.alarm(20 * ENDLESS)
        output = os.open(place / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(place)
        os.environ["PYTHONPATH"] = str(place)
        sys.path[:] = [str(place), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "tests"))]
        for test in tests:  # one after the other: what comes later is not even imported before
            status = int(pytest.main(["-x", "-p", "no:cacheprovider", "-m", "not slow", test]))
            if status not in PASSED:
                break
    finally:
        os._exit(status)


def finish(child: int, status: int) -> int:
    """Pytest's status of an ended process; what it started ends, too."""
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def check(place: Path, files: set[str]) -> dict[str, list[str]]:
    """By file, its tests within the budget: those of its name, then the quickest. Refuses tests that fail without a mistake."""
    found = {file: tests_of(file) for file in sorted(files)}
    seconds: dict[Path, float] = {}
    for test in {test for tests in found.values() for test in tests}:
        child, status, used = os.wait4(start_tests(place, [str(test.relative_to(ROOT))]), 0)
        seconds[test] = used.ru_utime + used.ru_stime
        if finish(child, status) not in PASSED:
            raise SystemExit(f"without a mistake, too, tests fail:\n{(place / 'output.txt').read_text()[-3000:]}")
    chosen: dict[str, list[str]] = {}
    for file, tests in found.items():
        tests.sort(key=lambda test: (not named(test, file), seconds[test]))  # noqa: B023 - called at once
        used = accumulate(seconds[test] for test in tests)
        chosen[file] = [str(test.relative_to(ROOT)) for test, total in zip(tests, used, strict=True) if total <= BUDGET]
    return chosen


def tried(mutants: list[Mutant], tests: dict[str, list[str]], places: list[Path]) -> Iterator[tuple[Mutant, bool, float]]:
    """Each mistake, whether tests catch it, and the seconds of computing that this took, as they end."""
    running: dict[int, tuple[Mutant, Path, bytes, int]] = {}
    waiting, free = mutants[::-1], list(places)
    try:
        while waiting or running:
            while waiting and free:
                mutant, place = waiting.pop(), free.pop()
                file = place / mutant.file
                source, changed_at = file.read_bytes(), file.stat().st_mtime_ns
                file.write_bytes(source[: mutant.start] + mutant.text + source[mutant.end :])
                running[start_tests(place, tests[mutant.file])] = mutant, place, source, changed_at
            child, status, used = os.wait3(0)
            mutant, place, source, changed_at = running.pop(child)
            (place / mutant.file).write_bytes(source)
            os.utime(place / mutant.file, ns=(changed_at, changed_at))  # its bytecode counts again
            free.append(place)
            yield mutant, finish(child, status) not in PASSED, used.ru_utime + used.ru_stime
    finally:
        for child in running:
            os.kill(child, signal.SIGKILL)
            finish(*os.waitpid(child, 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--files", nargs="+", default=[f"fcs_utils/{name}" for name in FILES], help="files or folders (default: FILES)"
    )
    parser.add_argument("--sample", type=int, help="so many of the mistakes (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mistakes tried at once")
    options = parser.parse_args()
    paths = [ROOT / name for name in options.files]
    files = [str(file.relative_to(ROOT)) for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    mutants = [mutant for file in files if file not in LEFT_FILES for mutant in plant(file)]
    if options.sample:
        mutants = sorted(
            random.Random(options.seed).sample(mutants, min(options.sample, len(mutants))), key=lambda m: (m.file, m.start)
        )
    real = [mutant for mutant in mutants if not mutant.equivalent]
    for name in LOADED.split():  # once, and not in every process
        importlib.import_module(name)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(options.jobs)]
        places[0].mkdir()
        copy_project(places[0])
        tests = check(places[0], {mutant.file for mutant in real})
        for place in places[1:]:
            shutil.copytree(places[0], place, symlinks=True)
        sys.dont_write_bytecode = True  # what this first run wrote is read again: only the changed file is compiled
        passed, spent = Counter[str](), 0.0
        for mutant, caught, seconds in tried(real, tests, places):
            spent += seconds
            if not caught:
                passed[mutant.file] += 1
                print(f"{mutant.file}:{mutant.line}: {mutant.change}", flush=True)
    for file, number in Counter(mutant.file for mutant in real).items():
        print(f"{file}: {number - passed[file]} of {number}")
    caught, same = len(real) - passed.total(), len(mutants) - len(real)
    print(f"{caught} of {len(real)} mistakes caught, {100 * caught / max(1, len(real)):.1f} %; {same} more change nothing.")
    print(f"This took {spent / 60:.0f} minutes of computing.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
