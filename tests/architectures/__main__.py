"""What is found in each family of networks, as a table: ``python -m tests.architectures``."""

from __future__ import annotations

import contextlib
import io

import tests.architectures.operators  # noqa: F401
from tests.architectures.families import TIMM, TRANSFORMERS
from tests.architectures.training import healthy, planted, share_in


def main() -> None:
    """Print a row per family."""
    print("| family | coverage | healthy: findings | half of the units copied: found in layers | redundant units |")
    print("| --- | --- | --- | --- | --- |")
    for family in (*TRANSFORMERS, *TIMM):
        with contextlib.redirect_stdout(io.StringIO()):
            as_it_is = healthy(family)
            of_copies = None if family.cannot_plant else planted(family).report
        assert as_it_is.report is not None
        found = f"not planted: {family.cannot_plant} | "
        if of_copies is not None:
            found = f"{share_in(of_copies):.0%} | {1 - of_copies.effective_width_fraction:.0%}"
        coverage = f"{as_it_is.report.coverage:.1%}"
        print(f"| {family.name} | {coverage} | {len(as_it_is.findings)} | {found} |", flush=True)


if __name__ == "__main__":
    main()
