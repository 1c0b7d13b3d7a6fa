"""The single mistakes that ``mutants.py`` plants.

Messages, what is worked out for messages alone, annotations and what only a GPU runs are left alone.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from equivalent import EQUIVALENT

ROOT = Path(__file__).resolve().parents[1]
OTHER = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv},
    **{ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
OPPOSITES = [("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("idxmin", "idxmax"), ("any", "all"), ("sum", "mean")]
NAMES = dict(OPPOSITES) | {right: left for left, right in OPPOSITES}
# Calls whose loss changes no number on a CPU, only memory, type or device; arguments that only check, print or warn.
SAME = {"contiguous", "to", "cpu", "item", "tolist", "numpy", "to_numpy", "copy", "keys", "as_dict"}
ASIDE = {"inplace", "strict", "stacklevel", "leave", "verbose", "display", "exist_ok", "compute_mode", "fused"}
MESSAGES = {"refuse", "StudyError", "warn", "OutOfTime", "tqdm"}


@dataclass(frozen=True)
class Mutant:
    """One change of a file: bytes ``start`` to ``end`` become ``text``.

    change: the lines before and after. rows: the lines of its statement.
    """

    file: str
    line: int
    start: int
    end: int
    text: bytes
    change: str
    rows: range

    @property
    def equivalent(self) -> bool:
        return any(module == Path(self.file).stem and part in self.change for module, part in EQUIVALENT)

    def within(self, lines: Mapping[str, Sequence[int]]) -> bool:
        """Whether its statement is among lines that were run, by file."""
        return any(line in self.rows for line in lines.get(self.file, ()))


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
    if isinstance(node, ast.stmt) and "cuda" in text:
        return not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.With | ast.Try)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant | ast.Yield | ast.YieldFrom)
    if isinstance(node, ast.keyword):
        return node.arg in ASIDE
    return isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom | ast.Global | ast.Nonlocal)


def targets(assignment: ast.Assign) -> set[str]:
    """What an assignment sets, in words."""
    parts = [part for one in assignment.targets for part in (one.elts if isinstance(one, ast.Tuple) else [one])]
    return {ast.unparse(part) for part in parts}


def said_only(function: ast.AST) -> set[str]:
    """The names that nothing but messages reads."""
    said = [node for node in ast.walk(function) if isinstance(node, ast.Raise | ast.Call) and skipped(node, "")]
    inside = {id(name) for node in said for name in ast.walk(node)}
    loads = [node for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)]
    return {name.id for name in loads} - {name.id for name in loads if id(name) not in inside}


def rows_of(statement: ast.stmt) -> range:
    """The lines of a statement; of one that holds others, those before them."""
    body = getattr(statement, "body", None)
    last = max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno
    first = min([statement.lineno, *(one.lineno for one in getattr(statement, "decorator_list", ()))])
    return range(first, (last or first) + 1)


def plant(file: str) -> list[Mutant]:
    """Every single mistake of a file."""
    source = (ROOT / file).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutant] = []

    def visit(node: ast.AST, parent: ast.AST, rows: range, said: set[str]) -> None:
        rows = rows_of(node) if isinstance(node, ast.stmt) else rows
        said = said_only(node) if isinstance(node, ast.FunctionDef) else said
        if isinstance(node, ast.Assign) and targets(node) <= said:
            return
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
                found.append(Mutant(file, node.lineno, start, end, text, change, rows))
        elif skipped(node, ""):
            return
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list", "bases"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        visit(child, node, rows, said)

    tree = ast.parse(source)
    visit(tree, tree, range(0), set())
    return found
