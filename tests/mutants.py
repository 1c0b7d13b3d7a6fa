"""Plants single mistakes in copies of the code, one at a time, and tells which of them the quick tests let pass.

    .venv/bin/python tests/mutants.py --sample 200 --seed 0             # a sample, the same for a seed and a code
    .venv/bin/python tests/mutants.py --files fcs_utils/pruning/fcs.py  # all mistakes of some files

Against a mistake run the tests of its room that import its module, until one fails: first those of its name, then the others,
the quickest first. Messages, annotations and what only a GPU runs are left alone.
"""

from __future__ import annotations

import argparse
import ast
import copy
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
from dataclasses import dataclass
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PASSED = (0, 5)  # what pytest says where no test failed, or none was chosen
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
LOADED = "torchvision torch_pruning pandas scipy.stats scipy.optimize sklearn.datasets sklearn.cluster pydantic hypothesis"

OTHER = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv},
    **{ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
OPPOSITES = [("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("idxmin", "idxmax"), ("any", "all"), ("sum", "mean")]
NAMES = dict(OPPOSITES) | {right: left for left, right in OPPOSITES}
# Calls whose loss changes no number on a CPU, only memory, type or device; arguments that only check, print or warn.
SAME = {"contiguous", "to", "cpu", "item", "tolist", "numpy", "copy", "keys", "as_dict"}
ASIDE = {"strict", "stacklevel", "leave", "verbose", "display", "exist_ok", "compute_mode", "fused"}
MESSAGES = {"refuse", "StudyError", "warn", "OutOfTime", "tqdm"}

EQUIVALENT = {  # changes that are no mistakes: by module and a part of the change, with the reason
    ("dataset", "images.shape[(2)]"): "images are square",
    ("baselines", ".sum((0))"): "distances are symmetric",
    ("counts", "ratios[:low + 1]"): "a longer list has the same nearest ratio",
    ("counts", "ratios[max(0, low - 1):]"): "likewise",
    ("counts", "low - (2)"): "likewise",
    ("counts", "low + (2)"): "likewise",
    ("fcs", "stable=(False)"): "ties are broken before",
    ("fcs", '"exact", seed: int = (1))'): "its caller gives the seed",
    ("fcs", "in (labels)"): "a bin that is ranked again gets the same ranks",
    ("flow", ".to(seen) - 0.5"): "any weights will do that are not alike",
    ("flow", ".to(seen) + (1.0)"): "likewise",
    ("inference", "effect >= 0"): "an effect of zero has no small p value",
    ("layers", "example[:]"): "more images only take longer",
    ("layers", "example[:(2)]"): "likewise",
    ("loop", "(seed)  ->  pass"): "the first look only counts batches and takes a shape",
}


@dataclass(frozen=True)
class Mutant:
    """One change of a file: bytes ``start`` to ``end`` become ``text``. change: the lines before and after."""

    file: str
    line: int
    start: int
    end: int
    text: bytes
    change: str

    @property
    def equivalent(self) -> bool:
        return any(module == Path(self.file).stem and part in self.change for module, part in EQUIVALENT)


def changed(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.copy(node)
    vars(other).update(fields)
    return other


def mistakes(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """What might stand in a node's place by mistake."""
    if isinstance(parent, ast.If) and isinstance(node, ast.Name | ast.Attribute | ast.Call):
        yield ast.UnaryOp(ast.Not(), node)
    match node:
        case ast.Compare(ops=ops):
            for n, op in enumerate(ops):
                yield changed(node, ops=[*ops[:n], OTHER[type(op)](), *ops[n + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) | ast.AugAssign(op=op) if type(op) in OTHER:
            yield changed(node, op=OTHER[type(op)]())
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):  # 1 as an argument is mostly a dimension, and 0 is the other one
            yield ast.Constant(0 if value == 1 and isinstance(parent, ast.Call) else value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Call(func=ast.Attribute(value=value, attr=name) as function) if name in NAMES:
            yield changed(node, func=changed(function, attr=NAMES[name]))
        case ast.Call(func=ast.Name(id=name)) if name in NAMES and name not in ("sum", "mean"):
            yield changed(node, func=ast.Name(NAMES[name]))
        case ast.Call(func=ast.Attribute(value=ast.Call() | ast.Subscript() | ast.BinOp() | ast.Name() as value, attr=name)):
            modules = {"torch", "nn", "F", "np", "pd", "tp", "math", "os", "re", "json", "stats", "time", "self", "cls"}
            if not (isinstance(value, ast.Name) and value.id in modules) and name not in SAME:
                yield value  # the method is not called
        case ast.Return(value=ast.Call(func=ast.Name(), args=[first, *_])):
            yield ast.Return(first)
        case ast.Slice(lower=lower, upper=upper):
            yield from (changed(node, **{side: None}) for side, bound in (("lower", lower), ("upper", upper)) if bound)
        case ast.IfExp(body=body, orelse=orelse):
            yield changed(node, body=orelse, orelse=body)
    if isinstance(node, ast.AugAssign | ast.Continue | ast.Break | ast.Expr) or (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    ):
        yield ast.Pass()


def skipped(node: ast.AST, text: str) -> bool:
    """Whether a node and all in it are left alone."""
    if isinstance(node, ast.Call):
        called = node.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        return name in MESSAGES
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom)
    if isinstance(node, ast.stmt) and "cuda" in text:
        return not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.With | ast.Try)
    if isinstance(node, ast.keyword):
        return node.arg in ASIDE
    return isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal)


def plant(file: str) -> list[Mutant]:
    """Every single mistake of a file."""
    source = (ROOT / file).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []

    def visit(node: ast.AST, parent: ast.AST) -> None:
        if isinstance(node, ast.expr | ast.stmt):
            start, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            if skipped(node, source[start:end].decode()):
                return
            for other in mistakes(node, parent):
                text = ast.unparse(ast.fix_missing_locations(other)).encode()
                if isinstance(other, ast.expr) and not isinstance(other, ast.Slice):
                    text = b"(%b)" % text
                first, last = starts[node.lineno - 1], starts[node.end_lineno]
                lines = source[first:last], source[first:start] + text + source[end:last]
                change = "  ->  ".join(" ".join(line.decode().split()) for line in lines)
                found.append(Mutant(file, node.lineno, start, end, text, change))
        elif skipped(node, ""):
            return
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list", "bases"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        visit(child, node)

    tree = ast.parse(source)
    visit(tree, tree)
    return found


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
    return [test for test in tests if named(test, file) or (test.name not in LEFT and word.search(text_of(test)))]


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
    """By file, its tests: those of its name, then the others, the quickest first. Refuses tests that fail without one."""
    found = {file: tests_of(file) for file in sorted(files)}
    seconds: dict[Path, float] = {}
    for test in {test for tests in found.values() for test in tests}:
        child, status, used = os.wait4(start_tests(place, [str(test.relative_to(ROOT))]), 0)
        seconds[test] = used.ru_utime + used.ru_stime
        if finish(child, status) not in PASSED:
            raise SystemExit(f"without a mistake, too, tests fail:\n{(place / 'output.txt').read_text()[-3000:]}")
    sums = {file: sum(seconds[test] for test in tests) for file, tests in found.items()}
    longest = max(sums, key=sums.__getitem__)
    print(f"Tests of a mistake take at most {sums[longest]:.0f} s of computing ({longest}).", flush=True)
    return {
        file: [str(test.relative_to(ROOT)) for test in sorted(tests, key=lambda test: (not named(test, file), seconds[test]))]  # noqa: B023
        for file, tests in found.items()
    }


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
