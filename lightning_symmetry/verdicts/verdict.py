"""The verdicts, with all that is shown of each: severity, colours, mark and words.

Nothing here imports torch: TensorBoard loads this module at every start.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True)
class Traits:
    """The appearance and the words of a verdict.

    Attributes:
        is_warning: whether the user is warned of it.
        is_redundant: whether the layer would compute the same with one unit of the group.
        colour: on a light background, ``#rrggbb``.
        dark_colour: on a dark background.
        mark: outline of a symbol in a square of 12 by 12, as the path data of an SVG, filled by the even-odd rule.
        meaning: the observation and its consequence, for legends.
        effect: what happens to the units of a finding: a sentence without its subject. ``{since}`` stands for the
            verdict and the step of the first check that saw it, ``{as_units}`` for ``1 unit`` or ``3 units``.
        note: an explanation for readers of a table; empty if the name is enough.
        gone: what became of units that no longer have the verdict: a sentence without its subject and its step.
    """

    is_warning: bool
    is_redundant: bool
    colour: str
    dark_colour: str
    mark: str
    meaning: str
    effect: str = ""
    note: str = ""
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

    LOCKED = (
        "locked",
        Traits(
            is_warning=True,
            is_redundant=True,
            colour="#d1495b",
            dark_colour="#f07c8a",
            mark="M2 2h8v8h-8z",
            meaning="equal weights, equal gradients: they train as one",
            effect="are identical in weights and gradients ({since}): they train as {as_units}.",
        ),
    )
    FROZEN = (
        "frozen",
        Traits(
            is_warning=True,
            is_redundant=True,
            colour="#2e86de",
            dark_colour="#6fb4f7",
            mark="M6 0.5L11.5 6L6 11.5L0.5 6z",
            meaning="equal weights, zero gradients: they do not train at all",
            effect="have equal weights and exactly zero gradients ({since}): they do not train at all.",
        ),
    )
    LOCKSTEP = (
        "lockstep",
        Traits(
            is_warning=True,
            is_redundant=False,
            colour="#8e5bb5",
            dark_colour="#c39be2",
            mark="M1.5 1h3.4v10h-3.4zM7.1 1h3.4v10h-3.4z",
            meaning="different weights, equal gradients: they move in parallel",
            effect="have different weights but identical gradients ({since}): they move in parallel.",
        ),
    )
    DEAD = (
        "dead",
        Traits(
            is_warning=True,
            is_redundant=False,
            colour="#b07d12",
            dark_colour="#e3b34a",
            mark="M4.6 .5h2.8v3h3.2v2.6h-3.2v5.9h-2.8v-5.9h-3.2v-2.6h3.2z",
            meaning="weights of their own, zero gradients: they do no work and do not train",
            effect="have gradients of exactly zero, though weights of their own ({since}): they do not train.",
            gone="were found to train again",
        ),
    )
    BREAKING = (
        "breaking",
        Traits(
            is_warning=False,
            is_redundant=True,
            colour="#2f8a50",
            dark_colour="#6cc58d",
            mark="M6 1a5 5 0 1 0 .01 0zM6 3.2a2.8 2.8 0 1 1 -.01 0z",
            meaning="equal weights, different gradients: the symmetry breaks by itself",
        ),
    )
    DUPLICATE = (
        "duplicate",
        Traits(
            is_warning=False,
            is_redundant=True,
            colour="#7b828d",
            dark_colour="#a5acb8",
            mark="M1 4h10v1.8h-10zM1 7.4h10v1.8h-10z",
            meaning="equal weights; the gradients are inconclusive so far",
            note="equal units whose gradients are inconclusive so far: none, zero, rounding noise, or too few checks.",
        ),
    )
    IDLE = (
        "idle",
        Traits(
            is_warning=False,
            is_redundant=False,
            colour="#5f7f95",
            dark_colour="#9dbccf",
            mark="M2.5 1h7v1.6h-7zM2.5 9.4h7v1.6h-7zM3.4 3.2h5.2l-1.9 2.8l1.9 2.8h-5.2l1.9 -2.8z",
            meaning="zero gradients for a reason outside the units: nobody reads them, or the loss gives none",
            note="units without a gradient for a reason outside of them: nobody reads their outputs, or the loss "
            "gives no gradient.",
            gone="have a gradient now",
        ),
    )

    def __new__(cls, name: str, traits: Traits | None = None) -> Verdict:
        """Make a string that carries its traits; ``Verdict("locked")`` looks one up."""
        assert traits is not None
        verdict = str.__new__(cls, name)
        verdict._value_ = name
        verdict.traits = traits
        return verdict

    @property
    def is_warning(self) -> bool:
        """Whether the user is warned of it."""
        return self.traits.is_warning
