"""The figure of docs/idea.md in a real browser, against the same network in torch."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from torch import nn

from lightning_symmetry import SymmetryTracker, Verdict
from tests.browsing import Page
from tests.serving import serving, wait_for

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT, STYLE = "worked_example.js", "worked_example.css"
SAMPLE = (0.6, -0.35)
LEARNING_RATE = 0.02
MAX_STEPS = 160
PRESETS = ["Equal", "Nearly equal", "Breaking", "Zero", "Lockstep", "Mirrored", "Healthy"]
# Where the weights w1 ... w10 lie in the matrices of the three layers, one after the other.
ORDER = (0, 2, 1, 3, 4, 6, 5, 7, 8, 9)
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>The worked example</title><link rel="icon" href="data:,"><link rel="stylesheet" href="worked_example.css">
<body data-md-color-scheme="default">CONTAINER<script>BEFORE</script><script src="worked_example.js"></script></body>"""
# Material for MkDocs tells of every page that it shows.
MATERIAL = "const tell = []; window.document$ = {subscribe: (listener) => { tell.push(listener); listener(); }};"


@dataclass
class State:
    """What the figure shows at one step."""

    weights: list[float]
    gradients: list[float]
    loss: float
    verdicts: list[str]
    widths: list[int]
    sentence: str


@pytest.fixture(scope="module")
def container() -> str:
    """The place for the figure, as docs/idea.md has it."""
    [found] = re.findall(
        r"^<div [^>]*data-worked-example.*?^</div>", (DOCS / "idea.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    return str(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, container: str) -> Iterator[str]:
    """A page with nothing but the figure, and one as Material for MkDocs shows it."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(DOCS / "javascripts" / SCRIPT, folder)
    shutil.copy(DOCS / "stylesheets" / STYLE, folder)
    page = PAGE.replace("CONTAINER", container)
    (folder / "index.html").write_text(page.replace("BEFORE", ""), encoding="utf-8")
    (folder / "material.html").write_text(page.replace("BEFORE", MATERIAL), encoding="utf-8")
    with serving(folder) as url:
        yield url


@pytest.fixture(scope="module")
def told(browser_page: Page, site: str) -> dict[str, list[State]]:
    """All that the figure shows from each preset, step by step."""
    browser_page.clear()
    browser_page.driver.get(f"{site}/index.html")
    states = {preset: follow(browser_page, preset) for preset in PRESETS}
    assert browser_page.errors() == []
    return states


@pytest.fixture
def figure(page: Page, site: str) -> Iterator[Page]:
    """The page with the figure, for a reader who wants no motion."""
    reduce_motion(page, "reduce")
    page.driver.get(f"{site}/index.html")
    yield page
    reduce_motion(page, "no-preference")


def reduce_motion(page: Page, value: str) -> None:
    features = [{"name": "prefers-reduced-motion", "value": value}]
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def button(page: Page, name: str) -> WebElement:
    return next(found for found in page.all("button") if found.text == name)


def slider(page: Page, weight: str) -> WebElement:
    return next(
        found for found in page.all("input[type=range]") if str(found.get_attribute("id")).endswith(f"-{weight}")
    )


def step(page: Page) -> int:
    return int(page.text(".we-count").removeprefix("step "))


def verdict(page: Page) -> str | None:
    return page.all(".we-status")[0].get_attribute("data-verdict")


def follow(page: Page, start: str | list[float], most: int = MAX_STEPS) -> list[State]:
    """Go from a preset, or from weights that the sliders are moved to, step by step to the end, or so many steps."""
    rows: list[dict[str, Any]] = page.run(
        """
        const [start, most] = arguments, all = (selector) => [...document.querySelectorAll(selector)];
        if (typeof start === 'string') all('.we-chip').find((chip) => chip.textContent === start).click();
        else start.forEach((value, i) => {
          const slider = all('input').find((input) => input.id.endsWith(`-w${i + 1}`));
          slider.value = value;
          slider.dispatchEvent(new Event('input'));
        });
        const step = all('.we-button').find((button) => button.textContent === 'Step');
        for (const rows = []; ; step.click()) {
          const cells = all('tbody tr').map((row) => [...row.querySelectorAll('data')].map(({value}) => Number(value)));
          rows.push({
            weights: cells.map(([, now]) => now),
            gradients: cells.map(([, , gradient]) => gradient),
            loss: Number(document.querySelector('.we-output data').value),
            verdicts: all('.we-note .we-badge').map((badge) => badge.dataset.verdict),
            widths: all('.we-width').map((width) => Number(width.textContent[0])),
            sentence: document.querySelector('.we-sentence').textContent,
          });
          if (rows.length > most || step.getAttribute('aria-disabled') === 'true') return rows;
        }
        """,
        start,
        most,
    )
    return [State(**row) for row in rows]


def network(weights: list[float]) -> nn.Sequential:
    """The network of docs/idea.md."""
    net = nn.Sequential(
        *(nn.Linear(2, size, bias=False, dtype=torch.float64) for size in (2, 2, 1)),
    )
    nn.utils.vector_to_parameters(torch.tensor(weights, dtype=torch.float64)[list(ORDER)], net.parameters())
    return net


def output(net: nn.Sequential) -> torch.Tensor:
    """The output for the one sample, which is the loss."""
    loss: torch.Tensor = net(torch.tensor([SAMPLE], dtype=torch.float64)).sum()
    return loss


def in_order(tensors: Sequence[torch.Tensor]) -> list[float]:
    """The entries of the three matrices in the order w1 ... w10."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors]).tolist()
    return [flat[ORDER.index(place)] for place in range(10)]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_step_from_a_preset_is_that_of_torch(told: dict[str, list[State]], preset: str) -> None:
    compare_with_torch(told[preset])


@pytest.mark.parametrize(
    "start",
    [
        [-0.37, 0.81, 0.12, -0.9, 0.44, -0.08, 0.63, 0.29, -0.71, 0.15],
        [1.0] * 5 + [-1.0] * 5,
        [-1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],  # starts below the loss at which others end
    ],
)
def test_every_step_from_the_sliders_is_that_of_torch(figure: Page, start: list[float]) -> None:
    states = follow(figure, start)
    assert states[0].weights == start
    compare_with_torch(states)


def compare_with_torch(states: list[State]) -> None:
    net = network(states[0].weights)
    expected = []
    for _ in states:
        weights = list(net.parameters())
        loss = output(net)
        gradients = torch.autograd.grad(loss, weights)
        expected.append([loss.item(), *in_order(weights), *in_order(gradients)])
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.sub_(gradient, alpha=LEARNING_RATE)
    shown = [[state.loss, *state.weights, *state.gradients] for state in states]
    torch.testing.assert_close(
        torch.tensor(shown, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12
    )
    assert 5 < len(states) <= MAX_STEPS + 1
    assert len(states) == MAX_STEPS + 1 or states[-1].loss < min(0, states[0].loss) - 2 < states[-2].loss


def test_what_is_equal_stays_equal_to_the_last_bit(told: dict[str, list[State]]) -> None:
    for state in told["Equal"]:
        w1, w2, w3, w4, w5, w6, w7, w8, w9, w10 = state.weights
        assert (w1, w3, w9) == (w2, w4, w10)
        assert w5 == w6 == w7 == w8
    assert w1 != w3  # the inputs are told apart, the units are not
    for state in told["Mirrored"]:
        w1, w2, w3, w4, w5, w6, w7, w8, w9, w10 = state.weights
        assert (w1, w3, w5, w7, w9) == (-w2, -w4, -w6, -w8, -w10)
    for state in told["Zero"]:
        assert state.weights == state.gradients == [0] * 10
    for state in told["Lockstep"]:
        _, _, _, _, g5, g6, g7, g8, _, _ = state.gradients
        assert (g5, g7) == (g6, g8)
        assert (state.weights[4], state.weights[6]) != (state.weights[5], state.weights[7])


# Of two mirrored units and no others the package says nothing on purpose: docs/verdicts.md says why.
@pytest.mark.parametrize("preset", [preset for preset in PRESETS if preset != "Mirrored"])
def test_verdicts_and_widths_are_those_of_the_package(told: dict[str, list[State]], preset: str) -> None:
    states = told[preset]
    net = network(states[0].weights)
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    patience = 3
    with SymmetryTracker(net, optimizer, every_n_steps=1, patience=patience, on_symmetry="ignore") as tracker:
        for number, state in enumerate(states[:30], start=1):
            optimizer.zero_grad()
            output(net).backward()
            optimizer.step()
            assert tracker.report is not None
            layers = [tracker.report.layers[name] for name in ("0", "1")]
            assert state.widths == [layer.effective_width for layer in layers]
            # The figure looks at the next step, too, and need not wait until zero or equal gradients have lasted.
            if number >= patience or preset in ("Equal", "Breaking"):
                found = [layer.groups[0].verdict if layer.groups else "distinct" for layer in layers]
                assert ["distinct" if verdict == "near" else verdict for verdict in state.verdicts] == found


def test_one_sentence_says_what_happens(told: dict[str, list[State]]) -> None:
    assert {state.sentence for state in told["Equal"]} == {
        "Units y1 and y2 are equal and get equal gradients: they train as one, and so do y3 and y4."
    }
    assert {state.sentence for state in told["Zero"]} == {"Every gradient is zero: no weight moves, now or ever."}
    assert {state.sentence for state in told["Lockstep"]} == {
        "Units y1 and y2 are equal and get equal gradients: they train as one; "
        "y3 and y4 differ but get equal gradients: they move in parallel."
    }
    assert {state.sentence for state in told["Mirrored"]} == {
        "Units y1 and y2 are mirror images and so are their gradients: up to the sign they train as one, "
        "and so do y3 and y4."
    }
    assert {state.sentence for state in told["Healthy"]} == {
        "All units differ and get gradients of their own: each of them does work of its own."
    }
    first, *_, last = told["Breaking"]
    assert first.sentence == (
        "Units y1 and y2 are equal but get different gradients: the next step parts them; "
        "y3 and y4 differ and get gradients of their own."
    )
    assert last.sentence.startswith("Units y1 and y2 started as one and have parted: they are 1.2")
    assert told["Nearly equal"][0].sentence == (
        "Nearly equal gradients part the units slowly: y1 and y2 are 0.05 apart, y3 and y4 0.05."
    )


def test_zero_gradients_say_nothing_as_long_as_other_weights_move(figure: Page) -> None:
    first, second = follow(figure, [0.5] * 8 + [0.0, 0.0], most=1)
    assert first.verdicts == ["duplicate", "duplicate"]
    assert first.sentence == "Units y1 and y2 are equal and get no gradient at this step, and so do y3 and y4."
    assert second.verdicts == ["locked", "locked"]


def test_a_slider_moved_by_a_key_starts_anew(figure: Page) -> None:
    for _ in range(3):
        button(figure, "Step").click()
    assert step(figure) == 3
    assert verdict(figure) == "locked"
    knob = slider(figure, "w2")
    assert knob.accessible_name == "w2 at the start, from x1 to y2"
    knob.send_keys(Keys.ARROW_RIGHT)
    assert step(figure) == 0
    assert figure.run("return arguments[0].nextElementSibling.textContent", knob) == "0.51"
    assert figure.texts('[aria-pressed="true"]') == []
    assert figure.texts(".we-width") == ["2 of 2 distinct", "1 of 2 distinct"]
    knob.send_keys(Keys.ARROW_LEFT)
    assert figure.texts('[aria-pressed="true"]') == ["Equal"]
    knob.send_keys(Keys.HOME)
    assert figure.run("return arguments[0].nextElementSibling.textContent", knob) == "\N{MINUS SIGN}1.00"


def test_all_is_reached_by_the_keyboard(figure: Page) -> None:
    seen: list[str] = []
    for _ in range(7 + 3 + 10 + 1):
        figure.press(Keys.TAB)
        seen.append(
            figure.run("return document.activeElement.textContent || document.activeElement.id.split('-').pop()")
        )
    sliders = ["w1", "w3", "w2", "w4", "w5", "w7", "w6", "w8", "w9", "w10"]
    assert seen == [*PRESETS, "Train", "Step", "Reset", *sliders, "All weights in numbers"]
    assert figure.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    figure.press(Keys.ENTER)
    assert figure.all("table")[0].text.splitlines()[1] == "w1 0.5000 0.5000 0.3000"
    button(figure, "Healthy").send_keys(Keys.SPACE)
    assert figure.texts('[aria-pressed="true"]') == ["Healthy"]
    button(figure, "Step").send_keys(Keys.ENTER)
    assert step(figure) == 1
    button(figure, "Train").send_keys(Keys.ENTER)
    end = step(figure)  # at once, as no motion is wanted
    assert end > 50
    single = button(figure, "Step")
    single.send_keys(Keys.ENTER)
    assert step(figure) == end
    assert figure.driver.switch_to.active_element == single
    button(figure, "Train again").send_keys(Keys.ENTER)
    assert step(figure) == end
    button(figure, "Reset").send_keys(Keys.ENTER)
    assert step(figure) == 0
    assert figure.texts('[aria-pressed="true"]') == ["Healthy"]


def test_readers_of_the_screen_are_told_what_the_pictures_show(figure: Page) -> None:
    names = wait_for(lambda: list(filter(None, (picture.accessible_name for picture in figure.all("svg[role=img]")))))
    assert names == [
        "Weights of the first hidden layer: y1 at (0.50, 0.50), y2 at (0.50, 0.50)",
        "Weights of the second hidden layer: y3 at (0.50, 0.50), y4 at (0.50, 0.50)",
        "Loss: 0.125 at the start, 0.125 at step 0",
    ]
    assert all(node.accessible_name for node in figure.all("button, input, section, .we-figure"))
    assert figure.all(".we-status")[0].get_attribute("role") == "status"


def test_training_moves_and_can_be_paused(figure: Page) -> None:
    reduce_motion(figure, "no-preference")
    # The browser itself pauses, as soon as there are some steps: from here it could be too late.
    seen = figure.driver.execute_async_script(
        """
        const [done] = arguments, find = (selector) => document.querySelector(selector);
        const train = find('.we-primary'), seen = [];
        const look = () => {
          seen.push([Number(find('.we-count').textContent.slice(5)), train.textContent, find('.we-status').ariaBusy]);
          if (seen.at(-1)[0] <= 8) return requestAnimationFrame(look);
          train.click();
          done(seen);
        };
        train.click();
        look();
        """
    )
    steps = [number for number, *_ in seen]
    assert steps == sorted(steps)
    assert max(after - before for before, after in pairwise(steps)) <= 4
    assert {tuple(rest) for _, *rest in seen} == {("Pause", "true")}
    paused = step(figure)
    assert paused == steps[-1]
    assert figure.all(".we-status")[0].get_attribute("aria-busy") == "false"
    script = "return [...document.querySelectorAll('.we-path')].map((path) => path.getAttribute('d'))"
    paths = wait_for(lambda: [path for path in figure.run(script) if path.count("L") == paused])
    assert len(paths) == 4
    assert paths[0] == paths[1]
    assert paths[2] == paths[3]
    assert step(figure) == paused


def test_training_goes_on_to_the_end_and_a_new_start_ends_it(figure: Page) -> None:
    reduce_motion(figure, "no-preference")
    button(figure, "Mirrored").click()
    button(figure, "Train").click()
    wait_for(lambda: step(figure) == 77 and button(figure, "Train again"))
    figure.run("document.querySelector('.we-primary').click(); document.querySelector('.we-chip').click()")
    assert step(figure) == 0
    assert figure.texts('[aria-pressed="true"]') == ["Equal"]
    assert figure.texts(".we-primary") == ["Train"]


@pytest.mark.parametrize("width", [400, 900, 1400])
def test_it_fits_into_narrow_and_wide_columns(figure: Page, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    figure.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert figure.run("return document.documentElement.scrollWidth") == width
        # Nothing but what is meant for readers of the screen alone is wider than its box.
        script = "return [...document.querySelectorAll('.we-figure :not(.we-hidden, svg *)')]"
        assert (
            figure.run(f"{script}.filter((node) => node.scrollWidth > node.clientWidth + 1 && node.clientWidth)") == []
        )
        sides = figure.run("return [...document.querySelectorAll('.we-plane')].map((plane) => plane.clientWidth)")
        assert min(sides) > 150
    finally:
        figure.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize(("scheme", "trait"), [("default", "colour"), ("slate", "dark_colour")])
def test_verdicts_have_the_colours_and_marks_of_the_package(figure: Page, scheme: str, trait: str) -> None:
    figure.run("document.body.dataset.mdColorScheme = arguments[0]", scheme)
    shown: dict[str, tuple[str, str]] = {}
    for start in ("Equal", "Breaking", "Zero", "Lockstep", [0.5] * 8 + [0.0, 0.0]):
        follow(figure, start, most=0)
        for name, mark, colour in figure.run(
            "return [...document.querySelectorAll('.we-badge')].map((badge) => [badge.dataset.verdict, "
            "badge.querySelector('path').getAttribute('d'), getComputedStyle(badge.querySelector('path')).fill])"
        ):
            shown[name] = (mark, colour)
    for verdict in set(Verdict) - {Verdict.DEAD, Verdict.IDLE}:
        red, green, blue = bytes.fromhex(getattr(verdict.traits, trait)[1:])
        assert shown[verdict] == (verdict.traits.mark, f"rgb({red}, {green}, {blue})")


def test_it_asks_no_other_host_and_leaves_no_names_behind(figure: Page, site: str) -> None:
    asked = figure.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert {name for name in asked if not name.startswith("data:")} == {f"{site}/{STYLE}", f"{site}/{SCRIPT}"}
    names = "const frame = document.body.appendChild(document.createElement('iframe'));"
    usual = figure.run(f"{names} return Object.getOwnPropertyNames(frame.contentWindow)")
    now = figure.run("return Object.getOwnPropertyNames(window)")
    # The driver keeps a name of its own, and the frame just made has a number.
    assert {name for name in now if not name.isdigit()} - set(usual) <= {"ret_nodes"}


def test_pages_that_come_without_being_loaded_get_their_figure(page: Page, site: str, container: str) -> None:
    page.driver.get(f"{site}/material.html")
    assert len(page.all(".we-figure")) == 1
    page.run("tell.forEach((listener) => listener())")  # the same page once more: it has its figure
    button(page, "Zero").click()
    assert verdict(page) == "frozen"
    page.run("document.body.innerHTML = arguments[0]", container * 2)
    assert page.all(".we-figure") == []
    page.run("tell.forEach((listener) => listener())")
    assert len(page.all(".we-figure")) == 2
    assert page.run("return new Set([...document.querySelectorAll('input')].map((input) => input.id)).size") == 20
