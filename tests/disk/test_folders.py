from __future__ import annotations

from pathlib import Path

import pytest

from lightning_symmetry.disk.files import CheckpointError
from lightning_symmetry.disk.folders import checkpoints_at


def files_in(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return [str(path.relative_to(folder)) for path in checkpoints_at(folder)]


def test_all_checkpoints_of_a_folder_and_the_folders_below(tmp_path: Path) -> None:
    names = ("b.ckpt", "a.safetensors", "runs/1/last.ckpt", "runs/2/net.pth", "weights.bin", "c.pt")
    assert files_in(tmp_path, "notes.txt", "config.json", *names) == [
        *("a.safetensors", "b.ckpt", "c.pt", "weights.bin", "runs/1/last.ckpt", "runs/2/net.pth"),
    ]


@pytest.mark.parametrize("main", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_folder_of_the_hub_is_one_checkpoint(main: str, tmp_path: Path) -> None:
    others = ("training_args.bin", "optimizer.pt", "rng_state.pth", "checkpoint-5/model.safetensors")
    assert files_in(tmp_path, main, *others) == [main]
    assert checkpoints_at(tmp_path / "optimizer.pt") == [tmp_path / "optimizer.pt"]


def test_what_trainers_leave_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    beside = [
        *("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_3.pth", "training_args.bin"),
        *("optimizer.bin", "optimizer_1.bin", "scheduler.bin", "sampler.bin", "lr_scheduler.pt", "optimizer_state.pt"),
        *("zero_pp_rank_0_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    ]
    models = [
        "adapter_model.bin",
        "mp_rank_00_model_states.pt",
        "net_without_optim.pt",
        "optimizer_net.pt",
        "sampler_net.pth",
    ]
    hostile = "optimizer" + "1" * 200 + ".pt_.bin"  # must not make the regular expression slow
    assert files_in(tmp_path, *beside, *models, hostile) == sorted([*models, hostile])


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    assert files_in(tmp_path, "pytorch_model.bin", "model.safetensors") == ["model.safetensors"]


def test_shards_belong_to_their_index(tmp_path: Path) -> None:
    shards = [f"net-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = (*shards, "net.safetensors.index.json", "net-of-another.safetensors")
    assert files_in(tmp_path, *names) == ["net-of-another.safetensors", "net.safetensors.index.json"]


def test_an_empty_folder_and_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"to hold a file that ends in \.safetensors"):
        checkpoints_at(tmp_path)
    with pytest.raises(FileNotFoundError, match="to be a file or a folder but there is no"):
        checkpoints_at(tmp_path / "nowhere")
