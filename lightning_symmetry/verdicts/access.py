"""How a line of code reaches the layer or module that a report names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from keyword import iskeyword

# More targets make the line too long to read.
_MAX_TARGETS = 8


@dataclass(frozen=True)
class Access:
    """How code reaches a module, or the part of one that is a layer."""

    module: str = ""  # an expression for the module, or for the one that a layer is part of; empty if unknown
    weights: tuple[str, ...] = ()  # expressions for the parameters of two or more dimensions that feed its units
    biases: tuple[str, ...] = ()  # expressions for its biases
    # Whether the module has the `reset_parameters` of its class in torch, which initialises all of its parameters anew.
    can_reset: bool = False


def module_expression(name: str) -> str:
    """Return an expression for the module of this path in ``model``; empty if a component is no name and no number.

    It does not check that the module exists, nor that the parent of a numbered module can be indexed.

    Example:
        >>> module_expression("net.0.fc"), module_expression("0"), module_expression(""), module_expression("q (part)")
        ('model.net[0].fc', 'model[0]', 'model', '')
    """
    expression = "model"
    for step in name.split(".") if name else []:
        if step.isdecimal() and step.isascii():
            expression += f"[{int(step)}]"
        elif step.isidentifier() and not iskeyword(step):
            expression += f".{step}"
        else:
            return ""
    return expression


def line_for(call: str, targets: Sequence[str], *, each: str) -> str:
    """Return a line of code that applies ``call`` to each target; empty if there are none, or too many for a line.

    ``{}`` in ``call`` stands for a target. In a loop over several targets, ``each`` is the name of one.

    Example:
        >>> print(line_for("{}.reset_parameters()", ["model.a", "model.b"], each="module"))
        for module in (model.a, model.b): module.reset_parameters()
    """
    distinct = list(dict.fromkeys(targets))
    if not distinct or len(distinct) > _MAX_TARGETS:
        return ""
    if len(distinct) == 1:
        return call.format(distinct[0])
    return f"for {each} in ({', '.join(distinct)}): {call.format(each)}"
