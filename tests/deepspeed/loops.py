"""DeepSpeed in the trainers of Lightning and of Hugging Face."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from lightning_symmetry.integrations.transformers import SymmetryCallback
from tests.deepspeed.training import OPTIONS, batch, built, config, start
from tests.distributed import NETWORKS, Layout, Task, conclusions, train
from tests.training import quiet


class OnCPU(DeepSpeedStrategy):
    """Lightning's strategy without its refusal of CPUs and its GPU indices."""

    def setup_environment(self) -> None:
        super(DeepSpeedStrategy, self).setup_environment()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", 0)

    def setup_distributed(self) -> None:
        self.set_world_ranks()
        self._init_deepspeed_distributed()


def with_lightning(stage: int, network: str, precision: str = "32-true", **options: Any) -> dict[str, Any]:
    """Return the monitor's findings on each rank in the trainings of :mod:`tests.distributed`."""
    start()

    def strategy() -> OnCPU:
        settings = {key: value for key, value in config(stage).items() if key not in ("bf16", "gradient_clipping")}
        return OnCPU(config=settings, process_group_backend="gloo")  # because Lightning changes it

    layout = Layout(2, strategy, None, 2)
    ends, monitors = [], (None, quiet(every_n_steps=2))
    for monitor in monitors:
        task = Task(NETWORKS[network], None)
        train(task, layout, monitor, precision, **options)
        ends.append(task.losses)
    assert monitor is not None
    return {**conclusions(monitor), "is_same": ends[0] == ends[1], "warned": task.warned}


class Model(nn.Module):
    """A model that returns a dictionary with the loss, as the Hugging Face Trainer expects."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.net = built(network)

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        outputs = self.net(inputs)
        return {"loss": (outputs - inputs[:, : outputs.shape[1]]).square().mean(), "logits": outputs}


def with_hugging_face(stage: int, network: str) -> dict[str, Any]:
    """Return the callback's findings on each rank."""
    start()
    ends = []
    for callback in (None, SymmetryCallback(**OPTIONS)):
        settings = {**config(stage), "train_micro_batch_size_per_gpu": "auto", "gradient_clipping": "auto"}
        model = Model(network)
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                max_steps=8,
                per_device_train_batch_size=8,
                gradient_accumulation_steps=1,
                learning_rate=1e-2,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1,
                deepspeed=settings,
            )
            data = [{"inputs": each} for step in range(8) for each in batch(step)]
            trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback] if callback else [])
            trainer.train()
        ends.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert callback is not None
    assert callback._tracker is not None
    return {**conclusions(callback._tracker), "is_same": ends[0] == ends[1]}
