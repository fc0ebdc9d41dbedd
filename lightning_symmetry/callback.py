"""SymmetryMonitor: when to look, and what follows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, ParamSpec, TypeVar, get_args

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter
from typing_extensions import override

from lightning_symmetry.arguments import check_choice, check_count, check_patterns, check_tolerance
from lightning_symmetry.outputs.console import print_summary
from lightning_symmetry.outputs.tab import TabWriter
from lightning_symmetry.outputs.tensorboard import write_findings, write_heatmap, write_scalars
from lightning_symmetry.ranks.team import Team, TeamError, attempt, describe
from lightning_symmetry.units.copies import Copies, find_copies
from lightning_symmetry.units.finding import Found, find_layers, structure_of
from lightning_symmetry.units.layers import Layer
from lightning_symmetry.units.lookup import FindLayers, rows_by_name
from lightning_symmetry.verdicts.advice import copies_text, messages
from lightning_symmetry.verdicts.evidence import Comparable, Look, look
from lightning_symmetry.verdicts.history import History
from lightning_symmetry.verdicts.judging import copy_groups
from lightning_symmetry.verdicts.report import Finding, LayerDiagnosis, SymmetryReport, under_all_names

P = ParamSpec("P")
T = TypeVar("T")
Heatmaps = Literal["findings", "all", "none"]
OnSymmetry = Literal["warn", "stop", "raise", "ignore"]


class SymmetryWarning(UserWarning):
    """Units that train as one, or do not train at all."""


class SymmetryError(RuntimeError):
    """Raised by ``SymmetryMonitor(on_symmetry="raise")``.

    Attributes:
        report: the report of the check that raised.
        findings: what the check found for the first time.
    """

    def __init__(self, message: str, report: SymmetryReport, findings: Sequence[Finding]) -> None:
        super().__init__(message, report, findings)  # all of them, so that it can travel between processes
        self.report = report
        self.findings = list(findings)

    def __str__(self) -> str:
        return str(self.args[0])


# By default Python shows a warning once per process: a second training in a notebook would look healed.
warnings.filterwarnings("always", category=SymmetryWarning, append=True)


@dataclass(frozen=True)
class _Conclusion:
    """What the first rank tells the others of a check.

    Attributes:
        report: the report.
        history: the state of the records; empty if there are no others.
        news: what is found for the first time.
        texts: the news in words.
    """

    report: SymmetryReport
    history: dict[str, Any]
    news: list[Finding]
    texts: list[str]


class _Schedule:
    """Which steps of which optimizer are checked: the first ones at 0, 1, 3, 7, ..., then every so many."""

    def __init__(self) -> None:
        # By place of the optimizer: the steps it has made, and the global step of its latest one.
        self.num_steps: dict[int, int] = {}
        self._latest: dict[int, int] = {}

    def is_due(self, place: int, global_step: int, every_n_steps: int) -> bool:
        """Count this step; whether to check it. With ``every_n_steps`` 0 only the first ones are."""
        if self._latest.get(place) == global_step:  # LBFGS calls several times within one step
            return False
        self._latest[place] = global_step
        step = self.num_steps.get(place, 0)
        self.num_steps[place] = step + 1
        if every_n_steps and step >= every_n_steps:
            return step % every_n_steps == 0
        return step & (step + 1) == 0


class SymmetryMonitor(Callback):
    """Watch a training for units that are updated as one.

    The weights and gradients of all supported layers are looked at before the optimizer steps 0, 1, 3, 7, ... and then
    every ``every_n_steps``; with several optimizers the steps of each are counted for themselves. What is found is
    warned of once, and written to the loggers of the Trainer. The training itself is not touched: with and without the
    callback, weights, optimizer states and random numbers are the same to the last bit.

    Args:
        every_n_steps: optimizer steps between checks after the first ones; None: ``Trainer.log_every_n_steps``.
        tolerance: relative L2 distance of rows that count as equal; None: by dtype.
        patience: checks in a row that must agree before units are called frozen or lockstep, or locked if they were
            distinct at first.
        include: patterns (:mod:`fnmatch`) of layer names to look at; None: all.
        exclude: patterns of layer names to leave out.
        heatmaps: pictures of layers in TensorBoard: of those with findings, when these change; of all, at every
            check; or none.
        on_symmetry: what a new finding leads to: a warning; a warning and the clean end of the training; a warning
            and a :class:`SymmetryError`; or nothing but the records.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if an argument is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_symmetry import SymmetryMonitor
        >>> monitor = SymmetryMonitor()
        >>> trainer = Trainer(callbacks=[monitor], logger=False, enable_checkpointing=False, accelerator="cpu")
        >>> monitor.findings
        []
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        tolerance: float | None = None,
        patience: int = 3,
        include: Sequence[str] | None = None,
        exclude: Sequence[str] = (),
        heatmaps: Heatmaps = "findings",
        on_symmetry: OnSymmetry = "warn",
    ) -> None:
        super().__init__()
        self._team: Team | None = None
        self._agreed: tuple[SymmetryReport | None, dict[str, Any]] = (None, {})  # by all ranks, at the latest check
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps)
        check_tolerance(tolerance)
        check_count("patience", patience)
        check_patterns(include=include, exclude=exclude)
        check_choice("heatmaps", heatmaps, get_args(Heatmaps))
        check_choice("on_symmetry", on_symmetry, get_args(OnSymmetry))
        self.every_n_steps = every_n_steps
        self.tolerance = tolerance
        self.patience = patience
        self.include = None if include is None else list(include)
        self.exclude = list(exclude)
        self.heatmaps = heatmaps
        self.on_symmetry = on_symmetry
        self._reset()

    def _reset(self) -> None:
        self._end_step = 0  # at which the training last ended
        self._is_resumed = False
        self._report: SymmetryReport | None = None
        self._history = History(self.patience)
        self._schedule = _Schedule()
        self._failed_layers: dict[str, str] = {}
        self._failed_tasks: set[str] = set()
        self._has_warned_of_no_layers = False
        self._seen: dict[str, tuple[int, ...]] = {}  # by layer, the identities of its parameters at the latest look
        self._found: tuple[object, Found] | None = None  # the layers, and of which structure
        self._copies: list[Copies] | None = None
        self._diagnoses: dict[str, LayerDiagnosis] = {}  # the latest of all layers and copies
        self._written: dict[str, object] = {}  # by subject, what was written last
        self._tab = TabWriter()

    @property
    def report(self) -> SymmetryReport | None:
        """The latest report; None before the first check."""
        return self._report

    @property
    def findings(self) -> list[Finding]:
        """Every group that was warned of, with layer, units, verdict, and when it was seen and broken."""
        return self._history.findings

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(include=self.include, exclude=self.exclude)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history.state_dict(), "num_steps": dict(self._schedule.num_steps)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._attempt("resume", self._load, state_dict)

    def _load(self, state_dict: dict[str, Any]) -> None:
        self._take_over(state_dict)
        self._is_resumed = True

    def _take_over(self, state_dict: dict[str, Any]) -> None:
        history = History(self.patience)
        history.load_state_dict(state_dict["history"])
        self._reset()
        self._history = history
        self._schedule.num_steps = dict(state_dict["num_steps"])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_continued = self._is_resumed or trainer.global_step == self._end_step
        if trainer.global_step == 0 or not is_continued:  # perhaps of another model
            self._reset()
        self._is_resumed = False

        # A rank that could not load the state, or loaded another one, would look at other steps than the rest.
        self._team = _team_of(trainer)
        if self._team is not None:
            self._attempt("check", self._team.run, self.state_dict, self._take_over, lambda name: None)
            self._agreed = self._report, self._history.state_dict()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end_step = trainer.global_step

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._is_due(trainer, optimizer):
            return
        conclusion = self._attempt("check", self._check, trainer, pl_module, optimizer)
        if conclusion is not None and conclusion.news:
            self._act(trainer, conclusion)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._report is not None and self.on_symmetry != "ignore" and trainer.is_global_zero:
            self._attempt("summary", print_summary, self._report)

    def _is_due(self, trainer: Trainer, optimizer: Optimizer) -> bool:
        place = next((i for i, other in enumerate(trainer.optimizers) if other is optimizer), -1)
        return self._schedule.is_due(place, trainer.global_step, self.every_n_steps or _log_every_n_steps(trainer))

    def _check(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> _Conclusion:
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        # On all ranks at once: adapters are other people's code, and may well communicate.
        find = attempt(self._find_layers, pl_module)
        think = partial(self._think, trainer, pl_module, find, trained)
        if self._team is None:
            return think()
        try:
            conclusion = self._team.run(think, self._follow, rows_by_name(pl_module, find, trained))
        except TeamError:  # on all ranks, which shall go on agreeing
            self._report = self._agreed[0]
            self._history.load_state_dict(self._agreed[1])
            raise
        self._agreed = conclusion.report, conclusion.history
        return conclusion

    def _think(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        find: FindLayers,
        trained: Set[int],
    ) -> _Conclusion:
        layers, skipped, *_ = find()
        self._warn_if_no_layers(layers, skipped)
        is_first = self._copies is None
        if self._copies is None:  # what starts apart does not become a copy
            self._copies = find_copies(pl_module, layers, self._team)
        looks = self._look([*layers, *self._copies], trained)
        news = self._conclude(layers, skipped, looks, trainer.global_step)
        if is_first and self.on_symmetry != "ignore":
            self._tell_of_copies()
        if trainer.is_global_zero:
            self._attempt("writing", self._write, trainer, looks)
        assert self._report is not None
        history = {} if self._team is None else self._history.state_dict()
        return _Conclusion(self._report, history, news, messages(news, self._report))

    def _follow(self, conclusion: _Conclusion) -> None:
        """Take over what the first rank has concluded."""
        self._report = conclusion.report
        self._history.load_state_dict(conclusion.history)

    def _find_layers(self, model: LightningModule) -> Found:
        """What :func:`find_layers` says, asked again only when the model has changed."""
        structure = structure_of(model)
        if self._found is None or structure is None or structure != self._found[0]:
            self._found = (structure, find_layers(model, self.include, self.exclude))
        return self._found[1]

    def _look(self, layers: Sequence[Layer | Copies], trained: Set[int]) -> list[Look]:
        chosen = [
            layer
            for layer in layers
            if layer.name not in self._failed_layers
            and (layer.is_trained_by(trained) or self._seen.get(layer.name) != layer.identity)
        ]
        self._seen.update({layer.name: layer.identity for layer in chosen})
        return look(
            chosen,
            tolerance=self.tolerance,
            trained=trained,
            known={layer.name: self._history.known(layer.name) for layer in chosen},
            on_error=self._give_up_layer,
            team=self._team,
        )

    def _conclude(
        self, layers: Sequence[Layer], skipped: dict[str, str], looks: Sequence[Look], step: int
    ) -> list[Finding]:
        """Bring history and report up to date; returns the new findings."""
        diagnoses = dict(self._diagnoses)  # those of layers that this optimizer does not train stand
        news: list[Finding] = []
        is_fresh = self._history.is_fresh(looks)
        for seen in looks:
            diagnoses[seen.layer.name], new = self._history.update(seen, step, is_fresh)
            news += new
        present = [layer.name for layer in layers if layer.name not in self._failed_layers]
        in_order = under_all_names(diagnoses[name] for name in present if name in diagnoses)
        copies_now = {
            found: copy_groups(found, diagnoses[found.name]) for found in self._copies or () if found.name in diagnoses
        }
        # Copies that have parted need not be read again: that would double the cost of every later check.
        self._copies = [found for found in self._copies or () if copies_now.get(found) != []]
        copies = [group for groups in copies_now.values() for group in groups]
        self._report = SymmetryReport(step, in_order, {**skipped, **self._failed_layers}, copies)
        self._diagnoses = diagnoses
        return news

    def _write(self, trainer: Trainer, looks: Sequence[Look]) -> None:
        report = self._report
        assert report is not None
        metrics = report.metrics()
        writers: list[SummaryWriter] = []
        for logger in trainer.loggers:
            # Not by the logger's class: `pytorch_lightning` has a TensorBoardLogger of its own.
            experiment = getattr(logger, "experiment", None)
            if isinstance(experiment, SummaryWriter):
                writers.append(experiment)
            else:
                logger.log_metrics(metrics, step=report.step)
        if not writers:
            return
        write_scalars(writers, metrics, report.step)
        findings = self.findings
        self._attempt("Symmetry tab", self._tab.write, writers, report, findings, looks, self.heatmaps)
        # What is worth another picture: units and ends; not the change between locked and frozen as ReLUs open.
        news_of: dict[str, list[object]] = {finding.layer: [] for finding in findings}
        for finding in findings:
            news_of[finding.layer].append((finding.units, finding.broken_step))
        groups = {name: [group.units for group in layer.groups] for name, layer in report.layers.items()}
        if self._is_news("findings", (groups, news_of)):
            write_findings(writers, findings, report, report.step)
        for seen in looks:
            name = seen.layer.name
            if name not in groups:  # whole modules have no picture
                continue
            has_news = name in news_of and self._is_news(f"layer {name}", (groups[name], news_of[name]))
            if self.heatmaps == "all" or (self.heatmaps == "findings" and has_news):
                write_heatmap(writers, report.layers[name], seen, report.step)

    def _is_news(self, subject: str, content: object) -> bool:
        """Whether this content was not the last to be written on the subject."""
        is_news = self._written.get(subject) != content
        self._written[subject] = content
        return is_news

    def _act(self, trainer: Trainer, conclusion: _Conclusion) -> None:
        if self.on_symmetry == "ignore":
            return
        for text in conclusion.texts:
            rank_zero_warn(text, category=SymmetryWarning)
        if self.on_symmetry == "stop":
            rank_zero_info("SymmetryMonitor stops the training.")
            trainer.should_stop = True
        elif self.on_symmetry == "raise":
            raise SymmetryError("\n".join(conclusion.texts), conclusion.report, conclusion.news)

    def _warn_if_no_layers(self, layers: Sequence[Layer], skipped: dict[str, str]) -> None:
        if layers or self._has_warned_of_no_layers:
            return
        self._has_warned_of_no_layers = True
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:5]) or "it has no parameters"
        rank_zero_warn(f"SymmetryMonitor finds no layer to inspect in this model ({reasons}). Training goes on.")

    def _tell_of_copies(self) -> None:
        for group in self._report.copies if self._report else ():
            if not group.verdict.is_warning:
                rank_zero_info(copies_text(group))

    def _give_up_layer(self, layer: Comparable, error: Exception) -> None:
        reason = f"the check failed with {describe(error)}"
        self._failed_layers[layer.name] = reason
        rank_zero_warn(f"SymmetryMonitor leaves out {layer.name}: {reason}. Training goes on.")

    def _attempt(self, task: str, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """A monitor must never end a training: what fails here is said once and not tried again."""
        if task in self._failed_tasks:
            return None
        try:
            return step(*args, **kwargs)
        except Exception as error:
            self._failed_tasks.add(task)
            rank_zero_warn(
                f"SymmetryMonitor switches off its {task}, which failed with {describe(error)}. Training goes on."
            )
            return None


def _team_of(trainer: Trainer) -> Team | None:
    """The ranks of a training; None if they have no common group, as a process by itself has none."""
    has_group = dist.is_available() and dist.is_initialized() and dist.get_world_size() == trainer.world_size
    return Team(trainer.strategy.root_device) if has_group else None


def _log_every_n_steps(trainer: Trainer) -> int:
    steps: int = trainer.log_every_n_steps  # type: ignore[attr-defined] # set by a connector; 0 in barebones mode
    return steps
