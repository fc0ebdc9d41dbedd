"""Heads of attention that are copies of one another, found from groups of units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Units = tuple[int, ...]


@dataclass(frozen=True)
class Heads:
    """Which units of a layer make up the heads of an attention module."""

    module: str  # name of the attention module
    role: str  # "query", "key" or "value"
    starts: tuple[int, ...]  # the first unit of each head
    size: int  # number of units per head

    def whole(self, groups: Sequence[Units]) -> dict[tuple[int, ...], list[Units]]:
        """Map the numbers of heads that agree unit by unit to their groups of units.

        Example:
            >>> heads = Heads("attn", "key", (0, 2, 4), 2)
            >>> heads.whole([(0, 4), (1, 5), (2, 3)])
            {(0, 2): [(0, 4), (1, 5)]}
        """
        if not groups:  # most layers of a large model have none
            return {}
        places = {start + i: (head, i) for head, start in enumerate(self.starts) for i in range(self.size)}
        alike: dict[tuple[int, ...], list[Units]] = {}
        for units in groups:
            if all(unit in places for unit in units):
                heads, offsets = zip(*(places[unit] for unit in units), strict=True)
                if len(set(offsets)) == 1:
                    alike.setdefault(heads, []).append(units)
        return {heads: several for heads, several in alike.items() if len(several) == self.size}


@dataclass(frozen=True)
class CopiedHeads:
    """Heads of an attention module that agree in queries, keys and values."""

    module: str  # name of the module
    heads: tuple[int, ...]  # numbers of the heads
    groups: frozenset[tuple[str, Units]]  # pairs of the name of a layer and some of its units that agree
    roles: tuple[str, ...]  # the roles of these units; keys and values are omitted if the heads share them


def copied_heads(heads: Mapping[str, Sequence[Heads]], groups: Mapping[str, Sequence[Units]]) -> list[CopiedHeads]:
    """Find the heads that agree in queries, keys and values, given the heads and the agreeing units of each layer.

    Example:
        >>> heads = {role: [Heads("attn", role, (0, 2), 2)] for role in ("query", "key", "value")}
        >>> [found.heads for found in copied_heads(heads, dict.fromkeys(heads, [(0, 2), (1, 3)]))]
        [(0, 1)]
    """
    modules: dict[str, dict[str, tuple[str, Heads]]] = {}
    for layer, parts in heads.items():
        for part in parts:
            modules.setdefault(part.module, {})[part.role] = layer, part
    return [found for name, parts in modules.items() for found in _copied_in(name, parts, groups)]


def _copied_in(
    name: str, parts: Mapping[str, tuple[str, Heads]], groups: Mapping[str, Sequence[Units]]
) -> Iterator[CopiedHeads]:
    whole = {role: part.whole(groups.get(layer, ())) for role, (layer, part) in parts.items()}
    num_heads, num_key_heads = (len(parts[role][1].starts) for role in ("query", "key"))
    for heads, units in whole["query"].items():
        # With grouped queries, several heads read the same keys and values.
        read = tuple(sorted({head * num_key_heads // num_heads for head in heads}))
        by_role = {"query": units}
        if len(read) > 1:
            by_role |= {role: whole[role].get(read, []) for role in ("key", "value")}
        if not all(by_role.values()):
            continue
        places = frozenset((parts[role][0], each) for role, several in by_role.items() for each in several)
        yield CopiedHeads(name, heads, places, tuple(by_role))
