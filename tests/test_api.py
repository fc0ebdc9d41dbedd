"""The complete public interface: names, signatures, commands, tags and the fields of the report.

A change of ``tests/golden/api.txt`` is a change of the public interface; ``docs/stability.md`` says which are allowed.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

import lightning_symmetry
from tests import golden
from tests.outputs.test_tensorboard import read
from tests.patient import monitored

# The documented modules beside the top one.
MODULES = (
    "lightning_symmetry.functional",
    "lightning_symmetry.integrations.transformers",
    "lightning_symmetry.metrics",
    "lightning_symmetry.outputs.output",
)


def test_the_public_interface_is_what_it_was(tmp_path: Path) -> None:
    report = monitored(
        options={"heatmaps": "all", "scalars": "layers"},
        logger=TensorBoardLogger(tmp_path, name="run"),
    ).report
    assert report is not None
    sections = {
        "Names of lightning_symmetry": names(lightning_symmetry),
        **{f"Names of {module}": names(import_module(module)) for module in MODULES},
        "Commands": commands(),
        "Entry points": sorted(
            f"{point.group}: {point.name} = {point.value}" for point in distribution("lightning-symmetry").entry_points
        ),
        "TensorBoard": sorted(tags(tmp_path, list(report.layers))),
        "report.to_dict()": sorted(shape(report.to_dict())),
    }
    golden.check("api.txt", "\n\n".join(f"{title}\n\n" + "\n".join(lines) for title, lines in sections.items()) + "\n")


def names(module: Any) -> list[str]:
    """Return a line for each public name of a module, and for each public member of its classes."""
    return [line for name in sorted(module.__all__) for line in described(name, getattr(module, name))]


def described(name: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{name}{signature(value)}"
    elif issubclass(value, enum.Enum):
        yield f"{name}: " + ", ".join(f"{member.name} = {member.value!r}" for member in value)
    else:
        yield f"{name}{'' if issubclass(value, Exception) else signature(value)}"
        for member in sorted({*own_members(value), *fields(value)}):
            attribute = inspect.getattr_static(value, member, None)
            yield f"  .{member}{signature(attribute) if inspect.isfunction(attribute) else ''}"


def signature(function: Any) -> str:
    """The signature of a function or class, with annotations as the source has them, not as quoted strings."""
    return re.sub(r"""(: |-> )(["'])(.*?)\2""", r"\1\3", str(inspect.signature(function)))


def own_members(cls: type) -> set[str]:
    """The public attributes that our own classes define, without what they inherit from other libraries."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("lightning_symmetry")]
    return {member for base in ours for member in vars(base) if not member.startswith("_")}


def fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()


def commands() -> list[str]:
    """Each subcommand with its options, as its help names them."""
    listed = re.search(r"^ {2}COMMAND\n((?: {4}.*\n)+)", helped(), re.MULTILINE)
    assert listed is not None
    subcommands = re.findall(r"^ {4}(\w+)", listed[1], re.MULTILINE)
    options = {name: sorted(set(re.findall(r"--[a-z][a-z-]*", helped(name)))) for name in subcommands}
    return [f"lightning-symmetry {name}: {', '.join(found)}" for name, found in options.items()]


def helped(*arguments: str) -> str:
    command = [sys.executable, "-m", "lightning_symmetry", *arguments, "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def tags(folder: Path, layers: list[str]) -> set[str]:
    """The tags in the event files of a run, with ``<layer>`` in place of the names of layers."""
    (events,) = folder.rglob("events.out.*")
    found = read(events.parent).Tags()
    kinds = {kind: found[kind] for kind in ("scalars", "images", "tensors")}
    layer = re.compile("/(" + "|".join(map(re.escape, sorted(layers, key=len, reverse=True))) + ")$")
    return {
        f"{layer.sub('/<layer>', tag)}: {kind}" for kind, group in kinds.items() for tag in group if "symmetry" in tag
    }


def shape(value: Any, path: str = "") -> set[str]:
    """The paths of a JSON document with the types that are found there; ``*`` is any name and ``[]`` any place."""
    if isinstance(value, Mapping):
        named = path in {".layers", ".skipped"}
        return {line for key, part in value.items() for line in shape(part, f"{path}.{'*' if named else key}")}
    if isinstance(value, (list, tuple)):
        return {line for part in value for line in shape(part, f"{path}[]")} or {f"{path}[]: empty"}
    return {f"{path}: {type(value).__name__}"}
