"""What every logger shows in every loop, by trying: ``python -m tests.integrations.grid`` prints the table of the docs.

Each cell is a training of a network whose weights are all the same number, and what is found in its logger afterwards.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as current
import pytorch_lightning as old
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_symmetry import SymmetryMonitor, SymmetryTracker
from lightning_symmetry.tensorboard_plugin.events import SUMMARY_TAG
from tests.integrations.test_lightning import model_of
from tests.integrations.test_transformers import DATA, Model
from tests.test_tracker import endless, loss_of, sgd, train
from tests.training import fill, mlp

LOGGERS = ("TensorBoard", "W&B", "MLflow", "CSV", "no logger")
START, END = "<!-- table -->", "<!-- /table -->"
NONE = "none"


# ----------------------------------------------------------------- trainings, by loop


def by_trainer(namespace: Any, logger: str, folder: Path) -> None:
    loggers = namespace.loggers
    made: dict[str, Callable[[], Any]] = {
        "TensorBoard": lambda: loggers.TensorBoardLogger(folder, name="", version=""),
        "W&B": lambda: loggers.WandbLogger(save_dir=folder),
        "MLflow": lambda: loggers.MLFlowLogger(
            "symmetry", tracking_uri=mlflow_uri(), artifact_location=artifacts(folder)
        ),
        "CSV": lambda: loggers.CSVLogger(folder, name="", version=""),
        "no logger": lambda: False,
    }
    trainer = namespace.Trainer(
        callbacks=[SymmetryMonitor()],
        logger=made[logger](),
        accelerator="cpu",
        max_steps=8,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model_of(namespace, 0.5))


@contextlib.contextmanager
def opened(logger: str, folder: Path) -> Iterator[Any]:
    """Open a logger for a plain loop."""
    if logger == "TensorBoard":
        with SummaryWriter(str(folder)) as writer:
            yield writer
    elif logger == "W&B":
        import wandb

        with wandb.init(project="symmetry", dir=folder) as run:
            yield run
    elif logger == "MLflow":
        import mlflow

        name = f"symmetry of {folder.name}"
        with mlflow.start_run(experiment_id=mlflow.create_experiment(name, artifact_location=artifacts(folder))) as run:
            yield run
    elif logger == "CSV":
        yield current.loggers.CSVLogger(folder, name="", version="")
    else:
        yield folder


def by_plain_loop(logger: str, folder: Path) -> None:
    net = fill(mlp(), 0.5)
    optimizer = sgd(net)
    with opened(logger, folder) as output, SymmetryTracker(net, optimizer, output=output):
        train(net, optimizer)


def by_fabric(logger: str, folder: Path) -> None:
    from lightning.fabric import Fabric
    from lightning.fabric.loggers.csv_logs import CSVLogger
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger

    own: dict[str, Callable[[], Any]] = {
        "TensorBoard": lambda: TensorBoardLogger(folder, name="", version=""),
        "CSV": lambda: CSVLogger(folder, name="", version=""),
    }
    fabric = Fabric(accelerator="cpu", devices=1, loggers=own[logger]() if logger in own else None)
    net = fill(mlp(), 0.5)
    model, optimizer = fabric.setup(net, sgd(net))
    outside = contextlib.nullcontext(fabric.loggers) if logger in own else opened(logger, folder)
    with outside as output, SymmetryTracker(model, optimizer, output=output):
        for _, batch in zip(range(8), endless(), strict=False):
            optimizer.zero_grad()
            fabric.backward(loss_of(model, batch))
            optimizer.step()


def by_accelerate(logger: str, folder: Path) -> None:
    from accelerate import Accelerator

    kinds = {"TensorBoard": "tensorboard", "W&B": "wandb", "MLflow": "mlflow"}
    accelerator = Accelerator(cpu=True, log_with=kinds.get(logger), project_dir=str(folder))
    if logger in kinds:
        accelerator.init_trackers("symmetry")
    net = fill(mlp(), 0.5)
    model, optimizer = accelerator.prepare(net, sgd(net))
    output = accelerator.get_tracker(kinds[logger], unwrap=True) if logger in kinds else None
    outside = contextlib.nullcontext(output) if logger in kinds else opened(logger, folder)
    with outside as target, SymmetryTracker(model, optimizer, output=target):
        for _, batch in zip(range(8), endless(), strict=False):
            optimizer.zero_grad()
            accelerator.backward(loss_of(model, batch))
            optimizer.step()
    accelerator.end_training()


def by_hugging_face(logger: str, folder: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from lightning_symmetry.integrations.transformers import SymmetryCallback

    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        per_device_train_batch_size=32,
        use_cpu=True,
        report_to={"TensorBoard": "tensorboard", "W&B": "wandb", "MLflow": "mlflow"}.get(logger, "none"),
        save_strategy="no",
        disable_tqdm=True,
    )
    Trainer(Model(0.5), arguments, train_dataset=DATA, callbacks=[SymmetryCallback()]).train()
    with contextlib.suppress(ImportError):
        import mlflow

        mlflow.end_run()


LOOPS: dict[str, Callable[[str, Path], None]] = {
    "Lightning": lambda logger, folder: by_trainer(current, logger, folder),
    "`pytorch_lightning`": lambda logger, folder: by_trainer(old, logger, folder),
    "plain loop": by_plain_loop,
    "Fabric": by_fabric,
    "accelerate": by_accelerate,
    "Hugging Face": by_hugging_face,
}


def without(loop: str, logger: str) -> bool:
    """Return whether a loop does not support a logger."""
    return (loop, logger) == ("Hugging Face", "CSV")


# ----------------------------------------------------------------- what is there afterwards


def shown(logger: str, folder: Path) -> list[str]:
    """The contents of a logger after a training."""
    if logger == "TensorBoard":
        return in_tensorboard(folder)
    if logger == "W&B":
        return in_wandb(folder)
    if logger == "MLflow":
        return in_mlflow()
    return in_folder(folder)


def in_tensorboard(folder: Path) -> list[str]:
    (file,) = folder.rglob("*tfevents*")
    events = EventAccumulator(str(file))
    events.Reload()
    tags = events.Tags()
    found = {
        "scalars": "symmetry/redundant_units" in tags["scalars"],
        "findings": "symmetry/findings/text_summary" in tags["tensors"],
        "pictures": "symmetry/overview" in tags["images"],
        "tab": SUMMARY_TAG in tags["tensors"],
    }
    return [name for name, is_there in found.items() if is_there]


def in_wandb(folder: Path) -> list[str]:
    import wandb

    from tests.integrations.test_wandb import media_of, rows_of

    wandb.finish()
    keys = {key for row in rows_of(folder)[0] for key in row}
    pictures = [path for path in media_of(folder) if path.suffix == ".png"]
    found = {
        "scalars": "symmetry/redundant_units" in keys,
        "findings": "symmetry/findings.nrows" in keys,
        "pictures": len(pictures) > 2,
    }
    return [name for name, is_there in found.items() if is_there]


def in_mlflow() -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(mlflow_uri())
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    run = client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0]
    files = {file.path for file in client.list_artifacts(run.info.run_id, "symmetry")}
    found = {
        "scalars": "symmetry/redundant_units" in run.data.metrics,
        "findings": "symmetry/findings.json" in files,
        "pictures": {"symmetry/overview.png", "symmetry/heatmaps"} <= files,
    }
    return [name for name, is_there in found.items() if is_there]


def in_folder(folder: Path) -> list[str]:
    numbers = "".join(path.read_text() for path in folder.rglob("metrics.csv"))
    events = [tag for file in folder.rglob("*tfevents*") for tag in tags_of(file)]
    names = {path.name for path in folder.rglob("*")}
    found = {
        "scalars": "symmetry/redundant_units" in numbers or "symmetry/redundant_units" in events,
        "findings": "findings.json" in names,
        "pictures": {"overview.png", "heatmaps"} <= names,
        "tab": SUMMARY_TAG in events,
        "report": "report.html" in names,
    }
    return [name for name, is_there in found.items() if is_there]


def tags_of(file: Path) -> list[str]:
    events = EventAccumulator(str(file))
    events.Reload()
    tags = events.Tags()
    return [*tags["scalars"], *tags["tensors"]]


def mlflow_uri() -> str:
    return os.environ["MLFLOW_TRACKING_URI"]


def artifacts(folder: Path) -> str:
    return str(folder / "artifacts")


# ----------------------------------------------------------------- the table


def cell(loop: str, logger: str, root: Path) -> list[str]:
    """Train, and return the contents of the logger."""
    folder = root / f"{list(LOOPS).index(loop)}_{LOGGERS.index(logger)}"
    folder.mkdir()
    os.environ |= {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(folder),
        "MLFLOW_TRACKING_URI": f"sqlite:///{root}/runs.db",
        "MLFLOW_ARTIFACT_ROOT": str(root / "artifacts"),
    }
    if logger == "W&B":
        import wandb

        wandb.teardown()  # it reads its environment once
    if logger == "MLflow":
        import mlflow

        mlflow.set_tracking_uri(mlflow_uri())  # an earlier training may have set another
    torch.manual_seed(0)
    LOOPS[loop](logger, folder)
    return shown(logger, folder)


def table(root: Path) -> str:
    """The table in Markdown."""
    lines = [f"| | {' | '.join(LOGGERS)} |", f"| --- |{' --- |' * len(LOGGERS)}"]
    for loop in LOOPS:
        cells = [NONE if without(loop, logger) else ", ".join(cell(loop, logger, root)) for logger in LOGGERS]
        lines.append(f"| {loop} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.chdir(folder)
        with contextlib.redirect_stdout(io.StringIO()):
            text = table(Path(folder))
    print(text)


if __name__ == "__main__":
    main()
