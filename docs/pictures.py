"""Take the pictures of README.md and docs/ out of a run of the demo: ``python docs/pictures.py symmetry_demo``.

That of the losses is drawn from the runs of ``lightning-symmetry demo --repair --logdir symmetry_demo``.
That of the notebook is made of the example in docs/notebooks.md. It and those of the Symmetry tab need what the tests
of the tab need: Chromium with its driver.
"""

from __future__ import annotations

import doctest
import html
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from selenium.webdriver.common.by import By
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_symmetry.demo.digits import run_name
from lightning_symmetry.demo.repairs import HEALTHY, SICK
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
# A cell as JupyterLab lays it out, with its rules for tables and code, which the output has to get along with.
NOTEBOOK = """<!doctype html><meta charset="utf-8"><style>
body { margin: 0; padding: 14px 18px; width: 964px; font: 14px/1.5 sans-serif; background: #fff; color: #1f1f1f }
pre { margin: 0 0 10px; padding: 8px 10px; border: 1px solid #bdbdbd; background: #f5f5f5; font: 13px/1.4 monospace }
.out table { border-collapse: collapse; border: none; font-size: 13px; table-layout: fixed; margin: 0 auto 1em }
.out td, .out th, .out tr { vertical-align: middle; padding: .5em; line-height: normal; border: 0; text-align: right }
.out tr:nth-child(odd) { background: #eee }
.out code { background: #eee; padding: 1px 5px }
</style><body><pre>CODE</pre><div class="out">OUTPUT</div></body>"""


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


def take_notebook() -> None:
    """Write what a notebook shows of the report in docs/notebooks.md."""
    text = (FOLDER.parent / "notebooks.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for example in doctest.DocTestParser().get_examples(text):
        exec(example.source, names)
        if "report" in names:
            break
    page = NOTEBOOK.replace("CODE", html.escape(example.source.removeprefix("report = ").strip()))
    with TemporaryDirectory() as folder, open_browser(Path(folder), 1000, 1000) as browser:
        file = Path(folder) / "notebook.html"
        file.write_text(page.replace("OUTPUT", names["report"]._repr_html_()), encoding="utf-8")
        browser.driver.get(file.as_uri())
        name = FOLDER / "notebook.png"
        browser.driver.find_element(By.TAG_NAME, "body").screenshot(str(name))
        Image.open(name).convert("RGB").save(name, optimize=True)


def take_losses(logdir: Path) -> None:
    """Draw the losses of the demo of the repairs, with and without one, beside that of the healthy start."""

    def losses(run: str) -> tuple[list[int], list[float]]:
        events = EventAccumulator(str(logdir / run))
        events.Reload()
        scalars = events.Scalars("loss")
        return [scalar.step for scalar in scalars], [scalar.value for scalar in scalars]

    figure = Figure(figsize=(9, 5), layout="constrained")
    plots = list(figure.subplots(2, 3, sharex=True, sharey=True).flat)
    for plot, name in zip(plots, SICK, strict=True):
        run = run_name(name)
        plot.plot(*losses(run_name(HEALTHY)), color="#b8bec8", label="healthy start")
        plot.plot(*losses(run), color="#d9480f", label="left alone")
        plot.plot(*losses(f"{run}_broken"), color="#1c6dd0", label='on_symmetry="break"')
        plot.set_title(name, fontsize=10)
        plot.set_ylim(0, 2.6)
        plot.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("optimizer step")
    figure.supylabel("training loss of one batch")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(FOLDER / "repair-losses.png", dpi=110)


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
    take_losses(Path(sys.argv[1]))
    take_notebook()
