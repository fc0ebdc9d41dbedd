"""The Symmetry tab in a real browser while runs grow, requests fail, and drawing fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import SymmetryReport
from lightning_symmetry.units.discovery import find_layers
from lightning_symmetry.verdicts.evidence import look
from lightning_symmetry.verdicts.judging import to_diagnosis
from lightning_symmetry.verdicts.look import Look
from tests.browsing import Page
from tests.serving import Server, tensorboard, wait_for
from tests.tab_runs import TabWriter
from tests.tensorboard_plugin.test_page import chosen_step

STOP_POLLING = "for (let id = 0; id < 100000; id++) clearInterval(id)"
TRY_AGAIN = "document.querySelector('.error button').click()"


@contextmanager
def blocked(page: Page, *patterns: str) -> Iterator[None]:
    """Requests to these addresses fail in the browser itself."""
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": list(patterns)})
    try:
        yield
    finally:
        page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})


class LiveRun:
    """A run with one layer of random weights, whose checks are written one by one."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self._writer, self._tab = SummaryWriter(str(folder)), TabWriter()
        self._looks: list[Look] = look(find_layers(torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 8)}), None, ())[0])
        self._layers = {seen.layer.name: to_diagnosis(seen, ()) for seen in self._looks}

    def write(self, step: int) -> None:
        self._tab.write([self._writer], SymmetryReport(step, self._layers), [], self._looks, "findings")
        self._writer.flush()

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def wait_until_drawn(page: Page) -> None:
    wait_for(lambda: any("groups first" in text for text in page.texts(".figure .caption")))


def matrices_asked_for(page: Page) -> list[str]:
    """Return the steps of the matrices that the page has requested."""
    script = (
        "return performance.getEntriesByType('resource').map(({name}) => new URL(name))"
        ".filter(({pathname}) => pathname.endsWith('/matrix')).map(({searchParams}) => searchParams.get('step'))"
    )
    steps: list[str] = page.run(script)
    return steps


def pixels_of_heatmap(page: Page) -> list[tuple[int, ...]]:
    canvas = page.wait("canvas.heatmap")
    return page.pixels(canvas, [(36 + 56 * (j + 0.5), 6 + 56 * (i + 0.5)) for i in range(8) for j in range(8)])


@pytest.mark.parametrize("route", ["layer", "matrix"])
def test_try_again_asks_again_for_what_failed(page: Page, fast_server: Server, route: str) -> None:
    page.open(fast_server, {"run": "constant_0.02", "layer": "fc2"})
    page.wait('[data-run="constant_0.02"] [data-layer="fc2"]')
    page.run(STOP_POLLING)
    with blocked(page, f"*/{route}?*"):
        page.run("document.querySelectorAll('nav button')[1].click()")
        page.wait(".error", "TensorBoard does not answer")
    page.run(TRY_AGAIN)
    wait_until_drawn(page)
    wait_for(lambda: page.texts(".groups td")[:2] == ["1", "locked"])
    wait_for(lambda: not any("does not answer" in text for text in page.texts(".error p")))
    page.clear()  # the browser logs failed requests


def test_what_failed_is_asked_for_again_by_itself(page: Page, fast_server: Server) -> None:
    with page.asking_often():
        page.open(fast_server, {"run": "constant_0.02", "layer": "fc2"})
        page.wait('[data-run="constant_0.02"] [data-layer="fc2"]')
        with blocked(page, "*/matrix?*"):
            page.run("document.querySelectorAll('nav button')[1].click()")
            page.wait(".error", "TensorBoard does not answer")
        wait_until_drawn(page)
    page.clear()


def test_after_a_drawing_error_the_next_refresh_works(page: Page, tmp_path: Path) -> None:
    with LiveRun(tmp_path / "live") as run:
        run.write(0)
        with tensorboard(tmp_path) as server, page.asking_often():
            page.open(server)
            wait_for(lambda: page.texts(".totals dd")[-1:] == ["0"])
            page.run(
                "const {prototype} = CanvasRenderingContext2D; window.fillRect = prototype.fillRect;"
                "prototype.fillRect = () => { throw new Error('out of paint'); };"
            )
            run.write(10)
            page.wait(".error", "out of paint")
            page.run("CanvasRenderingContext2D.prototype.fillRect = window.fillRect")
            run.write(20)
            wait_for(lambda: page.texts(".totals dd")[-1:] == ["20"])
            wait_for(lambda: page.run("return document.querySelector('.error').hidden"))


def test_a_new_version_fetches_only_matrices_that_are_new(page: Page, tmp_path: Path) -> None:
    with LiveRun(tmp_path / "live") as run:
        run.write(0)
        with tensorboard(tmp_path) as server, page.asking_often():
            page.open(server, {"view": "layer", "run": "live", "layer": "fc"})
            wait_until_drawn(page)
            for step in (10, 20, 30):
                run.write(step)
                wait_for(lambda step=step: chosen_step(page) == step)
                wait_for(lambda step=step: server.json("runs")["runs"][0]["version"].startswith(f"{step}@"))
            wait_until_drawn(page)
            first = pixels_of_heatmap(page)
            assert matrices_asked_for(page) == ["0"]
            # The run starts again, with other weights under the same steps.
            with LiveRun(tmp_path / "live", seed=1) as again:
                again.write(0)
                wait_for(lambda: chosen_step(page) == 0)
                wait_for(lambda: pixels_of_heatmap(page) != first)
            assert matrices_asked_for(page) == ["0", "0"]


def test_the_page_keeps_what_was_used_last(page: Page, fast_server: Server) -> None:
    page.open(fast_server)
    script = """
        const done = arguments[0];
        import('./static/details.js').then(({Recent}) => {
          const kept = new Recent(2);
          kept.set('a', 1);
          kept.set('b', 2);
          kept.get('a');
          kept.set('c', 3);
          kept.set('a', 4);
          done(['a', 'b', 'c'].map((key) => kept.get(key) ?? null));
        });
    """
    kept: Any = page.driver.execute_async_script(script)
    assert kept == [4, None, 3]
