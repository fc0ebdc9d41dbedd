"""The command ``lightning-symmetry``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_symmetry import __version__
from lightning_symmetry.verdicts.verdict import Verdict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return its exit status."""
    parser = argparse.ArgumentParser(prog="lightning-symmetry", description="Find neurons that train as one.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="train one small network from ten initialisations and compare them")
    where = "where the TensorBoard runs go (default: %(default)s)"
    demo.add_argument("--logdir", type=Path, default=Path("symmetry_demo"), help=where)
    demo.add_argument(
        "--repair",
        action="store_true",
        help="train from five seeds with and without on_symmetry='break', and merge what trained as copies",
    )
    report = commands.add_parser("report", help="write the Symmetry tab of TensorBoard as one HTML file")
    report.add_argument("logdir", type=Path, metavar="LOGDIR", help="directory of TensorBoard runs")
    where = "where the report goes (default: %(default)s)"
    report.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help=where)
    _add_scan(commands)
    options = parser.parse_args(arguments)
    run = {"demo": _demo, "report": _report, "scan": _scan}[options.command]
    return run(options)


def _add_scan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    scan = commands.add_parser(
        "scan",
        help="find duplicate units in checkpoints on disk",
        description="Find duplicate units in checkpoints on disk, without running any code that they bring along.",
        epilog="exit status: 0 if nothing was found, 1 if something was, 2 if a checkpoint could not be read or "
        "nothing in it could be inspected; with several checkpoints, the highest of theirs",
    )
    scan.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a .safetensors, .ckpt, .pt, .pth or .bin file, an index of shards, or a folder of them",
    )
    scan.add_argument(
        "--details",
        action="store_true",
        help="show the layers of every checkpoint (default: only of a single one; several get a row each)",
    )
    scan.add_argument("--json", action="store_true", help="print one JSON object per checkpoint, each on a line")
    scan.add_argument(
        "--fail-on",
        type=_verdicts,
        default=[verdict for verdict in Verdict if verdict not in (Verdict.BREAKING, Verdict.IDLE)],
        metavar="VERDICT,...",
        help=f"the verdicts that make the exit status 1, of {', '.join(Verdict)} (default: all but breaking and idle)",
    )
    scan.add_argument(
        "--model",
        metavar="PACKAGE.MODULE:CLASS",
        help="builds the model, whose layers then define the units (default: names and shapes of tensors define them)",
    )


def _verdicts(names: str) -> list[Verdict]:
    try:
        return [Verdict(name.strip()) for name in names.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; choose from {', '.join(Verdict)}") from error


def _demo(options: argparse.Namespace) -> int:
    try:
        from lightning_symmetry.demo import gallery, repairs
    except ModuleNotFoundError as error:
        print(f"The demo needs {error.name}: pip install 'lightning-symmetry[demo]'", file=sys.stderr)
        return 1
    (repairs if options.repair else gallery).run(options.logdir)
    return 0


def _report(options: argparse.Namespace) -> int:
    from lightning_symmetry.tensorboard_plugin.report import build_report

    output: Path = options.output
    try:
        output.write_text(build_report(options.logdir), encoding="utf-8")
    except (OSError, LookupError) as error:
        print(f"lightning-symmetry report: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {output} ({output.stat().st_size / 1024:,.0f} KiB).")
    return 0


def _scan(options: argparse.Namespace) -> int:
    from lightning_symmetry.disk.command import run

    return run(
        options.paths, as_json=options.json, fail_on=options.fail_on, model=options.model, with_details=options.details
    )
