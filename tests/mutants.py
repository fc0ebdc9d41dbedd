"""Weaken one condition after the other and check whether a test fails: ``python -m tests.mutants [FILE[:LINE]...]``.

A copy of the repository is changed, never the repository itself. Changes that no test notices are printed as SURVIVED.
``--list`` prints all changes and runs nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODULES = ("judging", "records", "deadness", "layer_state", "history")
FILES = [f"lightning_symmetry/verdicts/{name}.py" for name in MODULES]
TESTS = ["tests/verdicts", "tests/engine", "tests/test_cases.py"]
OPTIONS = ["-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", "--assert=plain"]
PRELOADED = ("pytest", "torch", "lightning.pytorch", "hypothesis")  # imported once, not once per mutant

# Replacements of a comparison: moved by one, or inverted.
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}


class Mutant(NamedTuple):
    path: str
    line: int
    change: str
    source: str


def mutants_of(path: str) -> Iterator[Mutant]:
    """Make every single change to a file."""
    tree = ast.parse((ROOT / path).read_text())
    for parent, field, i, node in _places(tree):
        for other in _weakened(field, node):
            _put(parent, field, i, other)
            source = ast.unparse(tree)
            _put(parent, field, i, node)
            line: int = getattr(node, "lineno", 0)
            yield Mutant(path, line, f"{ast.unparse(node)}  ->  {ast.unparse(other)}", source)


def _places(parent: ast.AST) -> Iterator[tuple[ast.AST, str, int, ast.AST]]:
    """Yield every node below another one, with its place in its parent."""
    for field, value in ast.iter_fields(parent):
        # `zip(..., strict=True)` states what holds.
        if field in ("annotation", "returns", "decorator_list") or getattr(parent, "arg", "") == "strict":
            continue
        for i, node in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(node, ast.AST):
                yield parent, field, i, node
                yield from _places(node)


def _put(parent: ast.AST, field: str, i: int, node: ast.AST) -> None:
    value = getattr(parent, field)
    if isinstance(value, list):
        value[i] = node
    else:
        setattr(parent, field, node)


def _weakened(field: str, node: ast.AST) -> Iterator[ast.AST]:
    """Yield the replacements of a node."""
    is_negated_below = isinstance(node, ast.UnaryOp) or (isinstance(node, ast.Compare) and len(node.ops) == 1)
    is_condition = field in ("test", "ifs") and ast.unparse(node) != "TYPE_CHECKING"
    if is_condition and isinstance(node, ast.expr) and not is_negated_below:
        yield ast.UnaryOp(ast.Not(), node)
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            rest = node.values[:i] + node.values[i + 1 :]
            yield ast.BoolOp(node.op, rest) if len(rest) > 1 else rest[0]
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield from (node.left, node.right)
    elif isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in COMPARISONS[type(op)]:
                yield ast.Compare(node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        value: Any = node.value
        yield ast.Constant(not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else 2 * value)
    elif isinstance(node, ast.AugAssign):
        yield ast.Assign([node.target], node.value, lineno=node.lineno)
    if _changes_state(node):
        yield ast.Pass()


def _changes_state(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Attribute | ast.Subscript) for target in node.targets)
    is_call = isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    return is_call or isinstance(node, ast.AugAssign | ast.Delete)


def outcome(folder: Path, tests: list[str], limit: float) -> str:
    """Run tests on a copy of the repository, in a separate process.

    Returns:
        The failed test, or that the time limit was reached; empty if all tests passed.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setsid()
            os.chdir(folder)
            log = os.open(folder.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            for stream in (1, 2):
                os.dup2(log, stream)
            sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", str(ROOT)))]
            for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "lightning_symmetry")]:
                del sys.modules[name]
            status = import_module("pytest").main([*tests, *OPTIONS])
        finally:
            os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            lines = (folder.parent / "log").read_text().splitlines()
            failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            return "" if status == 0 else failed[-1].partition(" - ")[0] if failed else "\n".join(lines[-9:])
        time.sleep(0.1)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "took too long"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", default=FILES, metavar="FILE[:LINE]")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what to run, the fastest first")
    parser.add_argument("--list", action="store_true", help="print the changes, run nothing")
    chosen = parser.parse_args()
    places = [each.partition(":") for each in chosen.files]
    mutants = [each for path, _, line in places for each in mutants_of(path) if line in ("", str(each.line))]
    if chosen.list:
        print(*(f"{each.path}:{each.line}: {each.change}" for each in mutants), f"{len(mutants)} mutants", sep="\n")
        return
    for name in PRELOADED:
        import_module(name)
    # On a busy machine, a test that takes longer than usual would count as a failure.
    import_module("hypothesis").settings.register_profile("mutants", deadline=None)
    import_module("hypothesis").settings.load_profile("mutants")
    sys.dont_write_bytecode = True  # a mutant may have the length and the modification time of the previous one
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "copy"
        shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "site"))
        start = time.monotonic()
        if failed := outcome(folder, chosen.tests, limit=3600):
            raise SystemExit(f"Expected the tests to pass without a change but: {failed}")
        took = time.monotonic() - start
        print(f"Without a change the tests pass, in {took:.0f} s", flush=True)
        survivors = 0
        for each in mutants:
            file = folder / each.path
            original = file.read_text()
            file.write_text(each.source)
            start = time.monotonic()
            failed = outcome(folder, chosen.tests, limit=60 + 3 * took)
            file.write_text(original)
            survivors += not failed
            print(f"{each.path}:{each.line}: {each.change}")
            print(f"    {failed or 'SURVIVED'}, {time.monotonic() - start:.0f} s", flush=True)
        print(f"{survivors} of {len(mutants)} mutants survived")


if __name__ == "__main__":
    main()
