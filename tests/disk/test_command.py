from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_symmetry import SymmetryReport, Verdict, scan
from lightning_symmetry.cli import main
from lightning_symmetry.disk.command import as_text, run
from lightning_symmetry.disk.scanning import Scan
from lightning_symmetry.verdicts.diagnoses import Cause, Finding, Origin
from lightning_symmetry.verdicts.tables import shorten
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
    assert [line.split()[-1] for line in out.splitlines()[2:5]] == [str(broken), str(sick), str(clean)]
    assert str(broken) in err
    assert main(["scan", str(tmp_path)]) == 2  # all three of them
    assert main(["scan", str(tmp_path), "--details"]) == 2
    assert {str(sick), str(clean)} < set(capsys.readouterr().out.splitlines())


def test_several_checkpoints_get_a_row_each_and_totals(
    clean: Path, sick: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"epoch": 3, "mean": torch.ones(3)}, tmp_path / "epoch.pt")
    torch.save({"scale.weight": torch.ones(4, 4, dtype=torch.int8)}, tmp_path / "whole_numbers.pt")
    assert main(["scan", str(tmp_path)]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "     units     working  seen  found                             checkpoint",
        "----------  ----------  ----  --------------------------------  ----------",
        f"         -           -    0%  no layer could be scanned         {tmp_path / 'whole_numbers.pt'}",
        f"         -           -     -  could not be scanned              {broken}",
        f"        28          28  100%  nothing                           {clean}",
        f"        28          14  100%  duplicate: 28 units in 3 layers   {sick}",
        "",
        "4 checkpoints: 1 clean, 1 with findings, 2 that could not be scanned (--details shows the layers)",
        f"Passed over 1 file without weights: {shorten(str(tmp_path / 'epoch.pt'))}",
    ]


def test_what_a_trainer_leaves_beside_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(4, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    torch.save(model.state_dict(), tmp_path / "adapter_model.bin")
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    torch.save({"python": random.getstate(), "cpu": torch.random.get_rng_state()}, tmp_path / "rng_state_0.pth")
    torch.save(Fraction(1, 2), tmp_path / "training_args.bin")  # which it is not safe to load
    assert main(["scan", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "all 8 units of 1 layer are working" in out
    assert err == ""
    other = tmp_path / "state_of_another.pt"
    torch.save({"last_epoch": 3}, other)
    assert main(["scan", str(tmp_path), "--details"]) == 0
    assert capsys.readouterr().err == f"lightning-symmetry scan: passed over '{other}', which holds no weights\n"
    assert main(["scan", str(tmp_path), "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["scan", str(tmp_path / "optimizer.pt")]) == 2  # named by the user
    (tmp_path / "adapter_model.bin").unlink()
    assert main(["scan", str(tmp_path)]) == 2  # nothing was scanned


def test_whoever_reads_the_output_may_stop(
    clean: Path, sick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["scan", str(clean), str(sick), str(clean)]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_output_that_cannot_be_written_is_no_finding(
    sick: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as stopped:
            main(["scan", str(sick)])
    assert stopped.value.code == 2
    assert "the results cannot be written" in capsys.readouterr().err


def test_a_terminal_of_another_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "möbel.pt"
    torch.save({"größe.weight": torch.ones(8, 4)}, path)
    with open(tmp_path / "out", "w", encoding="ascii") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["scan", str(path)]) == 1
    out = (tmp_path / "out").read_text(encoding="ascii")
    assert out.splitlines()[0].endswith(r"m\xf6bel.pt")
    assert r"gr\xf6\xdfe" in out


def test_text_of_a_file_is_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "fc\x1b[2J\x1b]0;title\x07\nSymmetry at step 0: 8 of 8 units of 1 layer are distinct.\u202e"
    norm = {f"{name}.norm.weight": torch.ones(4), f"{name}\r.weight": torch.ones(3, 4, dtype=torch.int64)}
    copies = {f"{name}{side}.fc.weight": torch.arange(12.0).view(3, 4) for side in "ab"}
    torch.save({f"{name}.weight": torch.ones(8, 4), **norm, **copies}, tmp_path / "a\nb.pt")
    torch.save({"\x1b[2J": 3}, tmp_path / "none.pt")
    main(["scan", str(tmp_path / "a\nb.pt")])
    main(["scan", str(tmp_path), "--details"])
    main(["scan", str(tmp_path)])
    print(scan(tmp_path / "a\nb.pt"))
    for text in capsys.readouterr():
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "\nSymmetry at step 0: 8 of 8" not in text
        assert "\nb.pt" not in text


def test_names_that_are_long_do_not_fill_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({f"{'x' * 10_000}{i}.weight": torch.ones(8, 4) for i in range(3)}, tmp_path / "model.pt")
    main(["scan", str(tmp_path)])
    assert max(map(len, capsys.readouterr().out.splitlines())) < 200


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
    (tmp_path / "my_net.py").rename(tmp_path / "01-net.py")
    assert main(["scan", str(sick), "--model", "01-net:Net"]) == 1
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


def test_nothing_to_scan_is_not_clean() -> None:
    assert run([], as_json=False, fail_on=[Verdict.DUPLICATE]) == 2


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
    assert main(["scan", str(path)]) == 2  # which does not mean that it is clean
    out = capsys.readouterr().out
    assert "no layer was inspected" in out
    assert "not inspected: a (its dtype torch.float8_e4m3fn is not a floating point type this package reads)" in out
    assert "not inspected: b (its dtype torch.int8 is not a floating point type this package reads)" in out
