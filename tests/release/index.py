"""A package index on this machine, which has only our own distributions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving import serving

ROOT = Path(__file__).parents[2]
DISTRIBUTIONS = ROOT / "dist"


def wheel() -> Path:
    """The wheel that ``make dist`` has built.

    Raises:
        FileNotFoundError: if there is none.
    """
    found = sorted(DISTRIBUTIONS.glob("lightning_symmetry-*.whl"))
    if len(found) != 1:
        raise FileNotFoundError(f"Expected one wheel in {DISTRIBUTIONS} but found {len(found)}: run `make dist` first.")
    return found[0]


@contextmanager
def package_index(folder: Path) -> Iterator[str]:
    """Serve the distributions as a simple index (PEP 503) while the context lasts.

    Args:
        folder: an empty folder, in which the pages of the index are made.

    Yields:
        The address for pip's ``--index-url`` or ``--extra-index-url``.
    """
    project = folder / "simple" / "lightning-symmetry"
    project.mkdir(parents=True)
    for file in (wheel(), *DISTRIBUTIONS.glob("lightning_symmetry-*.tar.gz")):
        shutil.copy(file, project)  # the server lists a folder as links to what is in it, which is what pip reads
    with serving(folder) as address:
        yield f"{address}/simple/"
