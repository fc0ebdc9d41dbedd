"""Take the pictures of README.md and docs/ out of a run of the demo: ``python docs/pictures.py symmetry_demo``."""

from __future__ import annotations

import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PICTURES = {
    "heatmap.png": ("copied_half", "symmetry/heatmap/fc1"),
    "overview.png": ("copied_half", "symmetry/overview"),
    "heatmap-locked.png": ("constant_0.02", "symmetry/heatmap/fc2"),
}


def main(logdir: Path) -> None:
    """Write the second picture under each tag, or the only one, as it stands in the event file."""
    folder = Path(__file__).parent / "images"
    folder.mkdir(exist_ok=True)
    for name, (run, tag) in PICTURES.items():
        events = EventAccumulator(str(logdir / run))
        events.Reload()
        (folder / name).write_bytes(events.Images(tag)[:2][-1].encoded_image_string)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
