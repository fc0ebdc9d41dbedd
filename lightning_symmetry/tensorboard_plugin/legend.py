"""What the page has to know of verdicts: it names none itself, so that each is described in one place."""

from __future__ import annotations

from typing import Any

from lightning_symmetry.verdicts.verdict import Verdict


def verdicts_to_json() -> list[dict[str, Any]]:
    """The traits of all verdicts that a page shows, the most serious verdict first; ready for JSON.

    Example:
        >>> [verdict["name"] for verdict in verdicts_to_json()][:2]
        ['locked', 'frozen']
    """
    return [
        {
            "name": str(verdict),
            "is_warning": verdict.traits.is_warning,
            "is_redundant": verdict.traits.is_redundant,
            "colour": verdict.traits.colour,
            "dark_colour": verdict.traits.dark_colour,
            "mark": verdict.traits.mark,
            "meaning": verdict.traits.meaning,
            "gone": verdict.traits.gone,
        }
        for verdict in Verdict
    ]
