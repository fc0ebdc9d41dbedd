"""Take the pictures of README.md and docs/ out of a run of the demo: ``python docs/pictures.py symmetry_demo``.

That of the losses is drawn from the runs of ``lightning-symmetry demo --repair --logdir symmetry_demo``.
That of the notebook is made of the example in docs/notebooks.md. It and those of the Symmetry tab need what the tests
of the tab need: Chromium with its driver.

``python docs/pictures.py`` runs the demo itself, and makes of it the pictures and figures of docs/gallery.md alone.
"""

from __future__ import annotations

import doctest
import html
import io
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from selenium.webdriver.common.by import By
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_symmetry.demo.digits import run_name
from lightning_symmetry.demo.repairs import HEALTHY, SICK
from lightning_symmetry.outputs.heatmap import colours
from lightning_symmetry.tensorboard_plugin.events import MATRIX_TAG, unpack_matrix
from tests.browsing import Page, open_browser
from tests.serving import tensorboard, wait_for

FOLDER = Path(__file__).parent / "images"
PICTURES = {
    "heatmap.png": ("copied_half", "symmetry/heatmap/fc1"),
    "overview.png": ("copied_half", "symmetry/overview"),
    "heatmap-locked.png": ("constant_0.02", "symmetry/heatmap/fc2"),
}
# Shades that can be read on white as well as on the dark pages of the documentation.
GREY, INK, ORANGE = "#9aa1ac", "#7b828d", "#e8590c"
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
    figure = Figure(figsize=(9, 5), layout="constrained")
    plots = list(figure.subplots(2, 3, sharex=True, sharey=True).flat)
    for plot, name in zip(plots, SICK, strict=True):
        run = run_name(name)
        plot.plot(*_losses(logdir / run_name(HEALTHY)), color="#b8bec8", label="healthy start")
        plot.plot(*_losses(logdir / run), color="#d9480f", label="left alone")
        plot.plot(*_losses(logdir / f"{run}_broken"), color="#1c6dd0", label='on_symmetry="break"')
        plot.set_title(name, fontsize=10)
        plot.set_ylim(0, 2.6)
        plot.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("optimizer step")
    figure.supylabel("training loss of one batch")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(FOLDER / "repair-losses.png", dpi=110)


def take_gallery() -> None:
    """Run the demo; write a picture of each of its runs, and what it prints into docs/gallery.md."""
    page = FOLDER.parent / "gallery.md"
    (FOLDER / "gallery").mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lightning_symmetry", "demo", "--logdir", folder]
        wide = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}
        said = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, env=wide).stdout
        rows = _table_rows(said)
        for name, *cells in rows:
            _draw_run(Path(folder), name, working=cells[1:3])
    # The last layer is left out: all its units work, whatever the start.
    kept = [["initialisation", "test accuracy", "fc1", "fc2", "verdict"], ["---", "---:", "---:", "---:", "---"]]
    kept += [[name, accuracy, fc1, fc2, verdict] for name, accuracy, fc1, fc2, _, verdict in rows]
    text = page.read_text(encoding="utf-8")
    text = _filled_in(text, "figures", "\n".join(f"| {' | '.join(cells)} |" for cells in kept))
    for name, *_ in rows:
        messages = re.findall(rf"^  \[{re.escape(name)}\] (.+)$", said, re.MULTILINE)
        if messages:
            lines = [textwrap.fill(message, 80) for message in messages]
            text = _filled_in(text, f"said: {name}", "\n".join(["```text", *lines, "```"]))
    page.write_text(text, encoding="utf-8")


def _table_rows(said: str) -> list[list[str]]:
    """The cells of the table that the demo prints, without its head."""
    edge = "\N{BOX DRAWINGS LIGHT VERTICAL}"
    lines = [line.strip().strip(edge) for line in said.splitlines() if line.startswith(edge)]
    return [[cell.strip() for cell in line.split(edge)] for line in lines]


def _filled_in(text: str, mark: str, content: str) -> str:
    """Text of a page in which something else stands between two comments."""
    begin, end = f"<!-- {mark} -->\n", "\n<!-- end -->"
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"Expected {begin!r} and {end!r} in the page.")
    return f"{before}{begin}\n{content}\n{end}{rest.partition(end)[2]}"


def _draw_run(logdir: Path, name: str, working: list[str]) -> None:
    """Draw the loss of a run of the demo, over that of the healthy start, and what its hidden layers look like."""
    figure = Figure(figsize=(7.4, 2.3), layout="constrained")
    loss, *squares = figure.subplots(1, 3, width_ratios=[1.5, 1, 1])
    loss.plot(*_losses(logdir / run_name(HEALTHY)), color=GREY, linewidth=4, alpha=0.6, solid_capstyle="round")
    loss.plot(*_losses(logdir / run_name(name)), color=ORANGE, linewidth=1.8)
    loss.set(xlim=(0, 260), ylim=(0, 2.6), xticks=[0, 100, 200], yticks=[0, 1, 2])
    loss.set_title("training loss by step", fontsize=9, color=INK)
    loss.spines[["top", "right"]].set_visible(False)
    events = _events(logdir / run_name(name))
    for plot, layer, units in zip(squares, ("fc1", "fc2"), working, strict=True):
        _draw_square(plot, events.Tensors(MATRIX_TAG + layer)[-1].tensor_proto.string_val[0])
        plot.set_title(f"{layer}: {units.replace('/', ' of ')} working", fontsize=9, color=INK)
    for plot in (loss, *squares):
        plot.tick_params(colors=INK, labelsize=8, length=2)
        for spine in plot.spines.values():
            spine.set_color(INK)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, transparent=True)
    Image.open(drawn).quantize(96).save(FOLDER / "gallery" / f"{run_name(name)}.png", optimize=True)


def _draw_square(plot: Axes, data: bytes) -> None:
    """Draw the similarities of the units of a layer, as the Symmetry tab does."""
    units, cells = unpack_matrix(data)
    levels = np.frombuffer(cells, dtype=np.uint8).reshape(len(units), len(units)).astype(float)
    plot.imshow(colours(np.where(levels == 0, np.nan, (levels - 128) / 127)), interpolation="nearest")
    plot.set(xticks=[], yticks=[])


def _events(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def _losses(run: Path) -> tuple[list[int], list[float]]:
    """The steps and the losses that were logged at them."""
    scalars = _events(run).Scalars("loss")
    return [scalar.step for scalar in scalars], [scalar.value for scalar in scalars]


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
    take_gallery()
    for logdir in map(Path, sys.argv[1:2]):
        take_images(logdir)
        take_views(logdir)
        take_losses(logdir)
        take_notebook()
