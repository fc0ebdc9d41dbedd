"""The command ``lightning-symmetry``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_symmetry import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="lightning-symmetry", description="Find neurons that train as one.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="train one small network from seven initialisations and compare them")
    demo.add_argument(
        "--logdir",
        type=Path,
        default=Path("symmetry_demo"),
        help="where the TensorBoard runs go (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    return _demo(options.logdir)


def _demo(logdir: Path) -> int:
    try:
        from lightning_symmetry.demo import run
    except ModuleNotFoundError as error:
        print(f"The demo needs {error.name}: pip install 'lightning-symmetry[demo]'")
        return 1
    run(logdir)
    return 0
