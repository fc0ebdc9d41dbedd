"""``python -m lightning_symmetry``: the same as the command ``lightning-symmetry``."""

from lightning_symmetry.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
