"""The commands that documents name: those of this package run, of the others their targets, files and extras exist."""

from __future__ import annotations

import io
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement
from sybil import Example

from lightning_symmetry.cli import main

ROOT = Path(__file__).parents[2]
Words = Sequence[str]


def run_commands(example: Example) -> str | None:
    """Run or check a block of commands, one a line; what is wrong with them, or None."""
    commands = [words for line in example.parsed.splitlines() if (words := shlex.split(line, comments=True))]
    return "\n".join(filter(None, map(_run, commands))) or None


def _run(words: Words) -> str | None:
    problem = problem_with(words)
    is_cheap = words[0] == "lightning-symmetry" and words[1] != "demo"
    if problem or not is_cheap:
        return problem
    status = main(words[1:])
    # A scan that finds something ends with 1, and a file that is not there with 2.
    return None if status in (0, 1) else f"`{shlex.join(words)}` ends with {status}."


def problem_with(words: Words) -> str | None:
    """What is wrong with a command, as far as it can be seen without running it; None: nothing."""
    check = _CHECKS.get(Path(words[0]).name)
    problem = check(words[1:]) if check else "nothing runs or checks such a command"
    return f"`{shlex.join(words)}`: {problem}." if problem else None


def _make(words: Words) -> str | None:
    targets, variables = _makefile()
    missing = [word for word in words if word not in targets and word.partition("=")[0] not in variables]
    return f"the Makefile has no {', '.join(missing)}" if missing else None


@cache
def _makefile() -> tuple[set[str], set[str]]:
    """The targets and the variables of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rules = re.findall(r"^([^\s#:=][^#:=\n]*):(?!=)", text, re.MULTILINE)
    targets = {target for rule in rules for target in rule.split()} - {".PHONY"}
    return targets, set(re.findall(r"^(?:export )?(\w+) *[:?]?=", text, re.MULTILINE))


def _ours(words: Words) -> str | None:
    subcommand = [word for word in words[:1] if not word.startswith("-")]
    flags = {word for word in words if word.startswith("-")}
    if subcommand and subcommand[0] not in re.findall(r"^ {4}(\w+)", _help(), re.MULTILINE):
        return f"there is no command {subcommand[0]}"
    unknown = sorted(flags - set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", _help(*subcommand))))
    return f"there is no option {', '.join(unknown)}" if unknown else None


@cache
def _help(*subcommand: str) -> str:
    text = io.StringIO()
    with redirect_stdout(text):
        try:
            main([*subcommand, "--help"])
        except SystemExit:
            return text.getvalue()
    raise AssertionError("--help ends the command")


def _python(words: Words) -> str | None:
    if words[:1] != ["-m"]:
        return "only modules are checked"
    module, *arguments = words[1:]
    if find_spec(module) is None:
        return f"there is no module {module}"
    files = [word.split("::")[0] for word in arguments if not word.startswith("-")] if module == "pytest" else []
    missing = [file for file in files if not (ROOT / file).exists()]
    return f"there is no {', '.join(missing)}" if missing else None


def _pip(words: Words) -> str | None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in words[1:]:
        if word != "." and not word.startswith("-") and (required := Requirement(word)).name == project["name"]:
            unknown = required.extras - project["optional-dependencies"].keys()
            if unknown:
                return f"there is no extra {', '.join(unknown)}"
    return None if words[:1] == ["install"] else "only installations are checked"


def _tensorboard(words: Words) -> str | None:
    return None if words[:1] == ["--logdir"] else "only `--logdir` is checked"


_CHECKS: dict[str, Callable[[Words], str | None]] = {
    "lightning-symmetry": _ours,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "tensorboard": _tensorboard,
}
