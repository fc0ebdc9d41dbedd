"""pyproject.toml declares exactly the imported packages, and its lowest versions are the tested ones."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lightning_symmetry

_ROOT = Path(__file__).parents[1]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(*extras: str) -> dict[str, Requirement]:
    """The requirements of the package and of some of its extras, by name, without the package itself."""
    of_extras = [line for extra in extras for line in _PROJECT["optional-dependencies"][extra]]
    lines = in_force(Requirement(line) for line in [*_PROJECT["dependencies"], *of_extras])
    found: dict[str, Requirement] = {canonicalize_name(line.name): line for line in lines}
    return {name: requirement for name, requirement in found.items() if name != _PROJECT["name"]}


def in_force(lines: Iterable[Requirement]) -> list[Requirement]:
    """Return the requirements for the lowest version of Python."""
    return [line for line in lines if line.marker is None or line.marker.evaluate({"python_version": "3.11"})]


def imported_packages(folder: Path) -> set[str]:
    """The top-level names of everything that a folder's modules import, at their head or in a function."""
    names: set[str] = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


def test_all_that_is_imported_is_declared() -> None:
    (folder,) = lightning_symmetry.__path__
    distributions = packages_distributions()
    foreign = imported_packages(Path(folder)) - sys.stdlib_module_names - {"lightning_symmetry"}
    declared = requirements("demo", "merge", "plot", "test-core", "test").keys() | {
        "pytorch-lightning"
    }  # a part of lightning
    undeclared = {
        name for name in foreign if not {canonicalize_name(found) for found in distributions[name]} & declared
    }
    assert undeclared == set()


def test_the_lowest_versions_are_those_that_are_tested() -> None:
    allowed = requirements("demo", "merge", "test-core")
    lines = (_ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    pins = in_force(Requirement(line) for line in lines if line and not line.startswith("#"))
    tested: dict[str, str] = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    lowest = {
        name: specifier.version
        for name, requirement in allowed.items()
        for specifier in requirement.specifier
        if specifier.operator == ">="
    }
    assert lowest.keys() == allowed.keys()
    # Older releases of torch are large CUDA builds, and setuptools is what old versions of TensorBoard need to start.
    del lowest["torch"], tested["torch"], tested["setuptools"]
    assert tested == lowest
