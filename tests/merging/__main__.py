"""Print a table of the merges in each architecture: ``python -m tests.merging``."""

from __future__ import annotations

from tests.merging.evidence import cases, digits


def main() -> None:
    """Print a row per network, the reasons why layers were left, and the merge of the digits network."""
    print("| architecture | dtype | copied half | parameters | units removed | relative error | layers left |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    left: dict[str, dict[str, str]] = {}
    for case in cases():
        merged = case.merged
        dtype = str(case.dtype).removeprefix("torch.")
        numbers = f"{merged.parameters_before:,} -> {merged.parameters_after:,}"
        removed = sum(map(len, merged.removed.values()))
        print(
            f"| {case.architecture} | {dtype} | {case.planted} | {numbers} | {removed} | {merged.error:.1e} "
            f"| {len(merged.left)} |",
            flush=True,
        )
        left.setdefault(case.architecture, {}).update(merged.left)
    print("\nleft:")
    for architecture, reasons in left.items():
        for layer, reason in reasons.items():
            print(f"  {architecture}, {layer}: {reason}")
    result = digits()
    before, after = result.widths
    print(f"\ndigits: widths {before} -> {after}, {sum(before)} -> {sum(after)} units")
    print(f"  parameters: {result.merged.parameters_before:,} -> {result.merged.parameters_after:,}")
    print(
        f"  same digit for {result.num_equal} of {result.num_images} test images, {result.accuracy:.1%} of them right"
    )
    print(f"  relative error {result.merged.error:.1e}, left {result.merged.left}")


if __name__ == "__main__":
    main()
