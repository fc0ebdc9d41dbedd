"""The command ``lightning-symmetry``."""

from __future__ import annotations

import argparse
import sys
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
    report = commands.add_parser("report", help="write the Symmetry tab of TensorBoard as one HTML file")
    report.add_argument("logdir", type=Path, metavar="LOGDIR", help="directory of TensorBoard runs")
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="where the report goes (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    return _demo(options.logdir) if options.command == "demo" else _report(options.logdir, options.output)


def _demo(logdir: Path) -> int:
    try:
        from lightning_symmetry.demo import run
    except ModuleNotFoundError as error:
        print(f"The demo needs {error.name}: pip install 'lightning-symmetry[demo]'", file=sys.stderr)
        return 1
    run(logdir)
    return 0


def _report(logdir: Path, output: Path) -> int:
    from lightning_symmetry.tensorboard_plugin.report import build_report

    try:
        output.write_text(build_report(logdir), encoding="utf-8")
    except (OSError, LookupError) as error:
        print(f"lightning-symmetry report: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {output} ({output.stat().st_size / 1024:,.0f} KiB).")
    return 0
