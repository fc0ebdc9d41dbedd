"""Take the pictures of README.md and docs/ out of a run of the demo: ``python docs/pictures.py symmetry_demo``.

Those of the Symmetry tab need what its tests need: Chromium with its driver.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.browsing import Page, open_browser
from tests.serving import tensorboard, wait_for

FOLDER = Path(__file__).parent / "images"
PICTURES = {
    "heatmap.png": ("copied_half", "symmetry/heatmap/fc1"),
    "overview.png": ("copied_half", "symmetry/overview"),
    "heatmap-locked.png": ("constant_0.02", "symmetry/heatmap/fc2"),
}
VIEWS: dict[str, dict[str, str | int]] = {
    "overview": {"run": "copied_half", "layer": "fc1"},
    "layer": {"view": "layer", "run": "copied_half", "layer": "fc1", "step": 7},
    "timeline": {"view": "timeline", "run": "zeros"},
}


def take_images(logdir: Path) -> None:
    """Write the second picture under each tag, or the only one, as it stands in the event file."""
    for name, (run, tag) in PICTURES.items():
        events = EventAccumulator(str(logdir / run))
        events.Reload()
        (FOLDER / name).write_bytes(events.Images(tag)[:2][-1].encoded_image_string)


def take_views(logdir: Path) -> None:
    """Write the views of the Symmetry tab, in both themes."""
    with TemporaryDirectory() as profile, tensorboard(logdir) as server, open_browser(Path(profile), 1280, 900) as page:
        for view, link in VIEWS.items():
            for theme in ("light", "dark"):
                page.open(server, link, dark=theme == "dark")
                _settle(page, view)
                name = FOLDER / f"tab-{view}-{theme}.png"
                page.driver.save_screenshot(str(name))
                Image.open(name).convert("RGB").save(name, optimize=True)


def _settle(page: Page, view: str) -> None:
    """Wait until all is drawn; on the layer, point at a cell."""
    if view == "overview":
        wait_for(lambda: len(page.all(".card .row")) == 3 * len(page.all(".picker label")))
    elif view == "timeline":
        page.wait(".chart .line")
    else:
        page.wait(".caption", "groups first")
        page.hover(page.wait("canvas.heatmap"), 36 + 20.5 * 7, 6 + 21.5 * 7)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    take_images(Path(sys.argv[1]))
    take_views(Path(sys.argv[1]))
