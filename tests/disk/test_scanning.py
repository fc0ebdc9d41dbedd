from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_symmetry import Verdict, diagnose, scan
from lightning_symmetry.disk.checkpoints import CheckpointError
from lightning_symmetry.disk.scanning import scan_checkpoint
from tests.disk.networks import FORMATS, NETWORKS, build, copy_half, groups_of, save_safetensors, save_torch
from tests.training import MLP, Classifier, batches, fill, make_trainer, quiet

Save = Callable[[nn.Module, Path], Path]


@pytest.mark.parametrize("is_sick", [False, True], ids=["healthy", "half copied"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_shows_what_the_live_network_shows(name: str, is_sick: bool, tmp_path: Path) -> None:
    net = copy_half(build(name)) if is_sick else build(name)
    live, seen = diagnose(net), scan(save_safetensors(net, tmp_path))
    assert groups_of(seen) == groups_of(live)
    assert any(groups_of(seen).values()) or not is_sick
    assert seen.copies == live.copies
    assert seen.coverage == live.coverage
    assert (seen.step, seen.status) == (0, "inconclusive")
    assert seen.reasons[0] == "a file has no gradients, which determine the verdict on equal units"


@pytest.mark.parametrize("name", ["MLP", "GRU", "GPT-2"])
@pytest.mark.parametrize("save", FORMATS)
def test_all_formats_and_the_model_itself_say_the_same(save: Save, name: str, tmp_path: Path) -> None:
    net = copy_half(build(name))
    live, path = diagnose(net), save(net, tmp_path)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    for model in (None, net, lambda: build(name)):
        seen = scan(path, model=model)
        assert groups_of(seen) == groups_of(live)
        if model is not None:
            assert (seen.coverage, seen.copies) == (live.coverage, live.copies)
            assert seen.skipped == live.skipped
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    net = copy_half(build("MLP")).to(dtype)
    assert groups_of(scan(save_safetensors(net, tmp_path))) == groups_of(diagnose(net))


def test_causes(tmp_path: Path) -> None:
    net = fill(MLP(), 0.5)
    nn.init.zeros_(net.linear(2).weight)
    report = scan(save_torch(net, tmp_path))
    groups = {
        name: [(group.cause, group.value, group.verdict) for group in layer.groups]
        for name, layer in report.layers.items()
    }
    assert groups["0"] == [("constant", 0.5, Verdict.DUPLICATE)]
    assert groups["2"] == [("zero", 0.0, Verdict.DUPLICATE)]
    assert "0: all 16 units are equal; call `diagnose(model)` during a training" in report.reasons


def test_modules_that_are_copies(tmp_path: Path) -> None:
    first = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    net = nn.ModuleDict({"student": first, "teacher": nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))})
    net["teacher"].load_state_dict(first.state_dict())
    (group,) = scan(save_torch(net, tmp_path)).copies
    assert group.modules == ("student", "teacher")
    assert group.verdict is Verdict.DUPLICATE


def test_shared_weights_are_one(tmp_path: Path) -> None:
    net = nn.ModuleDict({"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)})
    net["second"].weight = net["first"].weight
    report = scan(save_torch(net, tmp_path))
    assert report.layers["second"] is report.layers["first"]
    assert report.num_units == 4


def test_a_checkpoint_of_lightning_with_its_monitor(tmp_path: Path) -> None:
    class Net(Classifier):
        def __init__(self, width: int, unknown: int = 0) -> None:
            super().__init__(fill(nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 4)), 0.1))
            self.save_hyperparameters()

    trainer = make_trainer([quiet(on_symmetry="ignore")], max_steps=4)
    trainer.fit(Net(width=6), batches())
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    for model in (None, Net):
        seen = scan_checkpoint(path, model)
        assert seen.report.step == 4
        assert seen.report.layers["net.0"].effective_width == 1
        (finding,) = [finding for finding in seen.findings if finding.layer == "net.0"]
        assert (finding.verdict, finding.first_step, finding.broken_step) == (Verdict.LOCKED, 0, None)
        assert len(finding.units) == 6


def test_a_monitor_of_another_version_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": MLP().state_dict(), "callbacks": {"SymmetryMonitor": {"history": {"units": 3}}}}, path)
    with pytest.raises(CheckpointError, match=r"SymmetryMonitor in '.*model.ckpt'"):
        scan(path)


def test_shards_of_the_hub(tmp_path: Path) -> None:
    net = copy_half(build("BERT"))
    net.save_pretrained(tmp_path, max_shard_size="50KB")  # type: ignore[operator]
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    (tmp_path / "training_args.bin").write_bytes(b"another program's")
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert groups_of(scan(path)) == groups_of(diagnose(net))


def test_the_tensors_of_a_module_may_lie_in_different_shards(tmp_path: Path) -> None:
    net = copy_half(MLP())
    names = list(net.state_dict())
    places = {name: f"pytorch_model-0000{i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for shard in set(places.values()):
        torch.save({name: net.state_dict()[name] for name in names if places[name] == shard}, tmp_path / shard)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(f'{{"weight_map": {str(places).replace(chr(39), chr(34))}}}')
    assert groups_of(scan(tmp_path)) == groups_of(diagnose(net))
    (tmp_path / "pytorch_model-00001-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-00001"):
        scan(index)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../secret.safetensors"}}'),
        '{"weight_map": {"a": "model.safetensors.index.json"}}',
    ],
)
def test_an_index_that_is_none(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json' to be the index"):
        scan(index)


def test_a_folder_with_several_checkpoints(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_torch(MLP(), tmp_path / name)
    with pytest.raises(ValueError, match=r"there are 2 in .*: a/model.pt, b/model.pt. Name one"):
        scan(tmp_path)
    assert scan(tmp_path / "a").num_units == 28
    for i in range(100):
        (tmp_path / f"{i}.pt").touch()
    with pytest.raises(ValueError, match=r"there are 102 in .*: 0.pt, 1.pt, 10.pt, 11.pt, 12.pt and 97 more. Name one"):
        scan(tmp_path)


@pytest.mark.parametrize("place", ["state_dict", "model", "module", "model_state_dict"])
def test_where_a_state_dict_may_be(place: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3, place: MLP().state_dict()}, path)
    assert list(scan(str(path)).layers) == ["0", "2", "4"]


def test_several_models_in_one_file(tmp_path: Path) -> None:
    path, net, optimizer = tmp_path / "model.pt", MLP(), torch.optim.AdamW(MLP().parameters())
    other = copy_half(MLP()).state_dict()
    beside = {
        "optim_G": {0: torch.ones(3, 3)},
        "optimizerD": {0: torch.ones(3, 3)},
        "rng_states": {"cpu": torch.ones(9)},
    }
    torch.save({"target": net.state_dict(), "nets": {"conformer": other}, **beside}, path)
    report = scan(path)
    assert list(report.layers) == [f"{name}.{i}" for name in ("target", "nets.conformer") for i in (0, 2, 4)]
    assert (report.redundant_units, report.skipped) == (14, {})
    torch.save({"opt": optimizer.state_dict(), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        scan(path)


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"epoch": 3}, path)
    with pytest.raises(CheckpointError, match=r"'state_dict', 'model', .*, but got a dict with the keys 'epoch'"):
        scan(path)
    torch.save([1], path)
    with pytest.raises(CheckpointError, match=r"but got a list"):
        scan(path)


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"argument `path` to be a path, .* but got 3"):
        scan(3)  # type: ignore[arg-type]
    for model in (MLP(), MLP, MLP().state_dict()):
        with pytest.raises(TypeError, match=r"For a model in memory, .* use lightning_symmetry.diagnose\(model\)"):
            scan(model)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError, match=r"there is no '/no/such/file.pt'"):
        scan("/no/such/file.pt")
    with pytest.raises(CheckpointError, match=r"to hold a file that ends in .safetensors"):
        scan(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=re.escape("Expected a file that ends in .safetensors")):
        scan(tmp_path / "model.onnx")
    path = save_torch(MLP(), tmp_path)
    with pytest.raises(TypeError, match=r"argument `model` to be a torch.nn.Module, or a class .* but got 3"):
        scan(path, model=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"called without arguments, failed with TypeError: .*in_features"):
        scan(path, model=nn.Linear)
    with pytest.raises(TypeError, match=r"makes 3\."):
        scan(path, model=lambda: 3)  # type: ignore[arg-type]


def test_the_random_numbers_of_the_user_stay_as_they_are(tmp_path: Path) -> None:
    path = save_torch(MLP(), tmp_path)
    state = torch.get_rng_state()
    scan(path)
    scan(path, model=MLP)
    assert torch.equal(torch.get_rng_state(), state)
