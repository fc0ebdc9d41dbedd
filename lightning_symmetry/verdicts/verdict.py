"""The verdicts, with all that is shown of each: severity, colours, mark and words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


@dataclass(frozen=True)
class Traits:
    """The appearance and the words of a verdict."""

    name: str  # the verdict as a string
    colour: str  # on a light background, `#rrggbb`
    dark_colour: str  # on a dark background
    mark: str  # outline of a symbol, as SVG path data in a square of 12 by 12, filled by the even-odd rule
    meaning: str  # the observation and its consequence, for legends
    is_warning: bool = False  # whether the user is warned of it
    is_redundant: bool = False  # whether the layer would compute the same with one unit of the group
    # What happens to the units of a finding: a sentence without its subject. `{since}` stands for the verdict and the
    # step of the first check that saw it, `{as_units}` for `1 unit` or `3 units`.
    effect: str = ""
    note: str = ""  # an explanation for readers of a table; empty if the name is enough
    # What became of units that no longer have the verdict: a sentence without its subject and its step.
    gone: str = "have parted"


class Verdict(StrEnum):
    """What becomes of a group of units; the most serious verdict comes first.

    Attributes:
        traits: the appearance and the words of the verdict.

    Example:
        >>> Verdict.LOCKED == "locked"
        True
        >>> Verdict.LOCKED.traits.meaning
        'equal weights, equal gradients: they train as one'
    """

    traits: Traits

    LOCKED = Traits(
        name="locked",
        is_warning=True,
        is_redundant=True,
        colour="#d1495b",
        dark_colour="#f07c8a",
        mark="M2 2h8v8h-8z",
        meaning="equal weights, equal gradients: they train as one",
        effect="are identical in weights and gradients ({since}): they train as {as_units}.",
    )
    FROZEN = Traits(
        name="frozen",
        is_warning=True,
        is_redundant=True,
        colour="#2e86de",
        dark_colour="#6fb4f7",
        mark="M6 0.5L11.5 6L6 11.5L0.5 6z",
        meaning="equal weights, zero gradients: they do not train at all",
        effect="have equal weights and exactly zero gradients ({since}): they do not train at all.",
    )
    LOCKSTEP = Traits(
        name="lockstep",
        is_warning=True,
        colour="#8e5bb5",
        dark_colour="#c39be2",
        mark="M1.5 1h3.4v10h-3.4zM7.1 1h3.4v10h-3.4z",
        meaning="different weights, equal gradients: they move in parallel",
        effect="have different weights but identical gradients ({since}): they move in parallel.",
    )
    DEAD = Traits(
        name="dead",
        is_warning=True,
        colour="#b07d12",
        dark_colour="#e3b34a",
        mark="M4.6 .5h2.8v3h3.2v2.6h-3.2v5.9h-2.8v-5.9h-3.2v-2.6h3.2z",
        meaning="weights of their own, zero gradients: they do no work and do not train",
        effect="have gradients of exactly zero, though weights of their own ({since}): they do not train.",
        gone="were found to train again",
    )
    BREAKING = Traits(
        name="breaking",
        is_redundant=True,
        colour="#2f8a50",
        dark_colour="#6cc58d",
        mark="M6 1a5 5 0 1 0 .01 0zM6 3.2a2.8 2.8 0 1 1 -.01 0z",
        meaning="equal weights, different gradients: the symmetry breaks by itself",
    )
    DUPLICATE = Traits(
        name="duplicate",
        is_redundant=True,
        colour="#7b828d",
        dark_colour="#a5acb8",
        mark="M1 4h10v1.8h-10zM1 7.4h10v1.8h-10z",
        meaning="equal weights; the gradients are inconclusive so far",
        note="equal units whose gradients are inconclusive so far: none, zero, rounding noise, or too few checks.",
    )
    IDLE = Traits(
        name="idle",
        colour="#5f7f95",
        dark_colour="#9dbccf",
        mark="M2.5 1h7v1.6h-7zM2.5 9.4h7v1.6h-7zM3.4 3.2h5.2l-1.9 2.8l1.9 2.8h-5.2l1.9 -2.8z",
        meaning="zero gradients for a reason outside the units: nobody reads them, or the loss gives none",
        note="units without a gradient for a reason outside of them: nobody reads their outputs, or the loss "
        "gives no gradient.",
        gone="have a gradient now",
    )

    def __new__(cls, traits: Any) -> Verdict:
        """Make a string that carries its traits; ``Verdict("locked")`` looks one up."""
        verdict = str.__new__(cls, traits.name)
        verdict._value_, verdict.traits = traits.name, traits
        return verdict

    @property
    def is_warning(self) -> bool:
        """Whether the user is warned of it."""
        return self.traits.is_warning
