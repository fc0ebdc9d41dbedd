"""The base of all monitors: their options, and their results so far."""

from __future__ import annotations

from functools import cached_property
from inspect import signature

from lightning_symmetry.engine.engine import SymmetryEngine
from lightning_symmetry.engine.options import Options
from lightning_symmetry.repair.breaking import Change
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport


class Watcher(Options):
    """A base of the monitor, the tracker and the Hugging Face callback, which have an engine each."""

    _engine: SymmetryEngine | None = None

    @cached_property
    def options(self) -> Options:
        """The options alone."""
        return Options(**{name: getattr(self, name) for name in signature(Options).parameters})

    @property
    def report(self) -> SymmetryReport | None:
        """The latest report; None before the first check."""
        return None if self._engine is None else self._engine.report

    @property
    def findings(self) -> list[Finding]:
        """Every group that the user was warned of, with layer, units, verdict, and when it was seen and broken."""
        return [] if self._engine is None else self._engine.findings

    @property
    def changes(self) -> list[Change]:
        """The changes of the model with ``on_symmetry="break"``."""
        return [] if self._engine is None else self._engine.changes

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report!r}>"

    def _repr_html_(self) -> str:
        return "No check so far." if self.report is None else self.report._repr_html_()
