from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_symmetry import SymmetryReport, Verdict
from lightning_symmetry.cli import main
from lightning_symmetry.disk.command import as_text, run
from lightning_symmetry.disk.scanning import Scan
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin
from tests.disk.networks import copy_half, save_torch
from tests.training import MLP, Classifier, batches, fill, make_trainer, quiet


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    (tmp_path / "clean").mkdir()
    return save_torch(MLP(), tmp_path / "clean")


@pytest.fixture
def sick(tmp_path: Path) -> Path:
    (tmp_path / "sick").mkdir()
    return save_torch(copy_half(MLP()), tmp_path / "sick")


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "broken").mkdir()
    path = tmp_path / "broken" / "model.pt"
    path.write_bytes(b"nothing")
    return path


def test_exit_statuses(
    clean: Path, sick: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", str(clean)]) == 0
    assert main(["scan", str(sick)]) == 1
    assert main(["scan", str(broken)]) == 2
    assert main(["scan", str(tmp_path / "nowhere")]) == 2
    assert main(["scan", str(sick), str(clean)]) == 1
    capsys.readouterr()
    assert main(["scan", str(broken), str(sick), str(clean)]) == 2
    out, err = capsys.readouterr()
    assert out.count("Symmetry at step 0") == 2
    assert str(broken) in err
    assert main(["scan", str(tmp_path)]) == 2  # all three of them
    assert {str(sick), str(clean)} < set(capsys.readouterr().out.splitlines())


def test_text(sick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["scan", str(sick)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(sick)
    assert lines[1] == "Symmetry at step 0: 14 of 28 units of 3 layers are working (14 redundant)."
    assert lines[2].split() == ["layer", "units", "working", "groups"]
    assert lines[4].startswith("    0     16        8  duplicate: all 16 units in 8 groups (units 8-15 match")
    assert [line.split()[0] for line in lines[4:7]] == ["0", "2", "4"]  # most redundant first


def test_long_lists_are_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)) for _ in range(300))
    for i in range(30):
        fill(net[i][0], 0.5 + i)  # type: ignore[index]
    main(["scan", str(save_torch(net, tmp_path))])
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 35
    assert "and 10 more layers with groups; --json lists all of them" in out
    assert "and 270 layers without groups" in out
    assert "not inspected: 0.1, 1.1, 2.1 and 297 more (its tensors have one number per unit at most)" in out


def test_json_is_one_object_per_line_and_nothing_else(
    clean: Path, sick: Path, broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scan", "--json", str(clean), str(broken), str(sick)]) == 2
    first, second, third = map(json.loads, capsys.readouterr().out.splitlines())
    assert [first["path"], second["path"], third["path"]] == [str(clean), str(broken), str(sick)]
    assert set(second) == {"path", "error"}
    assert (first["working_units"], first["redundant_units"]) == (28, 0)
    assert first["findings"] == []
    assert third["report"]["layers"]["0"]["groups"][0]["units"] == [0, 8]


def test_the_verdicts_that_count(clean: Path, sick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(sick), "--fail-on", "duplicate"]) == 1
    assert main(["scan", str(sick), "--fail-on", "locked,frozen"]) == 0
    with pytest.raises(SystemExit) as stopped:
        main(["scan", str(sick), "--fail-on", "duplicate,looked"])
    assert stopped.value.code == 2
    assert "'looked' is not a valid Verdict; choose from locked, frozen" in capsys.readouterr().err


def test_findings_of_the_monitor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = Classifier(fill(nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)), 0.1))
    trainer = make_trainer([quiet(on_symmetry="ignore")], max_steps=4)
    trainer.fit(model, batches())
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    assert main(["scan", str(path), "--fail-on", "locked"]) == 1
    out = capsys.readouterr().out
    assert "Symmetry at step 4" in out
    assert "SymmetryMonitor: net.0: all 6 units, locked since step 0, last seen at step 3" in out
    assert main(["scan", str(path), "--json"]) == 1
    (finding, *_) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["layer"], finding["verdict"], finding["first_step"]) == ("net.0", "locked", 0)


def test_findings_that_are_gone_are_told_and_do_not_count(tmp_path: Path) -> None:
    gone = Finding("fc", (0, 1), Verdict.LOCKED, Cause.COPIED, None, 0, 7, 15, Origin.START)
    text = as_text(Scan(tmp_path, SymmetryReport(), [gone]))
    assert "SymmetryMonitor: fc: 2 units, {0, 1}, locked since step 0, gone at step 15" in text


def test_a_model_from_the_current_directory(
    sick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "my_net.py").write_text("from tests.training import MLP as Net\nnothing = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["scan", str(sick), "--model", "my_net:Net"]) == 1
    (tmp_path / "broken_net.py").write_text("1 / 0")
    for wrong, message in {
        "broken_net:Net": "ZeroDivisionError: division by zero",
        "my_net": "Expected package.module:Class but got 'my_net'",
        "my_net:Other": "has no attribute 'Other'",
        "no_net:Net": "No module named 'no_net'",
        "my_net:nothing": "but got 3",
    }.items():
        capsys.readouterr()
        assert main(["scan", str(sick), "--model", wrong]) == 2
        out, err = capsys.readouterr()
        assert message in err
        assert out == ""


def test_as_a_program_that_imports_no_lightning(sick: Path) -> None:
    code = f"""
import sys
from lightning_symmetry.cli import main
status = main(["scan", {str(sick)!r}, "--json"])
assert "lightning.pytorch" not in sys.modules
sys.exit(status)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (1, "")
    assert json.loads(result.stdout)["path"] == str(sick)


def test_a_mistake_of_this_package_is_no_finding(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Strange(MLP):
        def load_state_dict(self, *args: object, **options: object) -> None:
            raise ArithmeticError("nobody thought of this")

    monkeypatch.setattr("tests.training.Strange", Strange, raising=False)
    assert main(["scan", str(clean), "--model", "tests.training:Strange"]) == 2
    assert "nobody thought of this" in capsys.readouterr().err


def test_nothing_to_scan_is_clean() -> None:
    assert run([], as_json=False, fail_on=[Verdict.DUPLICATE]) == 0


def test_a_terminal_shows_how_far_it_is(
    clean: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["scan", str(clean)])
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["scan", str(clean)])
    out, err = capsys.readouterr()
    assert "model.pt" in err
    assert "100%" not in out
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    main(["scan", str(clean)])
    assert capsys.readouterr().err == ""


def test_float8_is_left_out_with_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pt"
    quantised = {"b.weight": torch.ones(4, 4, dtype=torch.int8)}
    torch.save({"a.weight": torch.randn(4, 4).to(torch.float8_e4m3fn), **quantised}, path)
    assert main(["scan", str(path)]) == 0
    out = capsys.readouterr().out
    assert "no layer was inspected" in out
    assert "not inspected: a (its dtype torch.float8_e4m3fn is not a floating point type this package reads)" in out
    assert "not inspected: b (its dtype torch.int8 is not a floating point type this package reads)" in out
