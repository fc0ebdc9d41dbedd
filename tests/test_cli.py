from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_symmetry import Verdict, __version__
from lightning_symmetry.cli import main
from tests.outputs.test_tensorboard import read


def test_demo_tells_the_sick_from_the_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_symmetry.demo import gallery

    monkeypatch.setenv("COLUMNS", "120")
    monitors = gallery.run(tmp_path)
    verdicts = {name: {(f.layer, f.verdict) for f in monitor.findings} for name, monitor in monitors.items()}
    hidden = ("fc1", "fc2")
    assert verdicts["zeros"] == {(layer, Verdict.FROZEN) for layer in hidden}
    assert verdicts["constant 0.02"] == {(layer, Verdict.LOCKED) for layer in hidden}
    assert verdicts["constant -0.02"] == {(layer, Verdict.FROZEN) for layer in hidden}
    assert {f.cause for f in monitors["constant -0.02"].findings} == {"dead"}
    assert verdicts["bias -10"] == {(layer, Verdict.DEAD) for layer in hidden}
    assert verdicts["normal, std 0.001"] == {("fc2", Verdict.DEAD)}
    assert verdicts["tiny, tanh, Adam"] == verdicts["PyTorch default"] == verdicts["He normal"] == set()
    report = monitors["tiny, tanh, Adam"].report
    assert report is not None
    assert all(layer.is_condensed for layer in report.layers.values())
    assert not any(layer.is_condensed for layer in monitors["PyTorch default"].report.layers.values())  # type: ignore[union-attr]
    copied = {(f.layer, f.units) for f in monitors["copied half"].findings}
    mirrored = {(f.layer, f.units) for f in monitors["mirrored half, tanh"].findings if f.mirrored == f.units[1:]}
    assert mirrored == copied
    assert copied == {("fc1", (i, i + 32)) for i in range(32)} | {("fc2", (i, i + 16)) for i in range(16)}

    out = capsys.readouterr().out
    assert "frozen: fc1, fc2" in out
    assert "locked: fc1, fc2" in out
    assert out.count("no symmetry") == 2
    assert out.count("condensed: fc1") == 1
    assert f"--logdir {tmp_path}" in out
    for folder in ("zeros", "constant_0.02", "constant_-0.02", "copied_half", "normal_std_0.001", "He_normal"):
        events = read(tmp_path / folder)
        assert "symmetry/overview" in events.Tags()["images"]
        assert "loss" in events.Tags()["scalars"]
    assert "symmetry/heatmap/fc1" in read(tmp_path / "copied_half").Tags()["images"]


def test_demo_of_the_repairs_comes_close_to_the_healthy_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_symmetry.demo import repairs

    monkeypatch.setenv("COLUMNS", "120")
    outcomes, smaller = repairs.run(tmp_path, num_seeds=1)
    [healthy] = outcomes["PyTorch default"].left
    assert outcomes["PyTorch default"].broken == [healthy]  # nothing was changed
    for name in ("zeros", "constant 0.02", "constant -0.02"):
        assert outcomes[name].left[0] < 0.5
    for outcome in outcomes.values():
        assert outcome.broken[0] > healthy - 0.04  # of one seed; of five, the median is closer
    assert smaller is not None
    assert smaller.num_units == (106, 58)
    assert smaller.num_equal == smaller.num_images == 450
    assert "symmetry/overview" in read(tmp_path / "zeros_broken").Tags()["images"]

    out = capsys.readouterr().out
    assert "10 of fc3" in out
    assert "106 units become 58" in out


def test_demo_without_its_extra_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith("lightning_symmetry.demo")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["demo"]) == 1
    out, err = capsys.readouterr()
    assert "pip install 'lightning-symmetry[demo]'" in err
    assert out == ""


def test_version_and_usage() -> None:
    command = [sys.executable, "-m", "lightning_symmetry"]
    result = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"lightning-symmetry {__version__}\n"
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "demo" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
