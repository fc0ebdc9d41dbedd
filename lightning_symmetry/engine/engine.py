"""The monitor itself: when to look, what was found, what is news, and agreement of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_symmetry.engine.delivery import Delivery
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.engine.guard import Guard
from lightning_symmetry.engine.options import Options
from lightning_symmetry.engine.saying import SymmetryError, SymmetryWarning, warn
from lightning_symmetry.engine.schedule import Schedule
from lightning_symmetry.outputs.output import Output
from lightning_symmetry.ranks.team import Team, TeamError, attempt
from lightning_symmetry.repair.breaking import Change, break_symmetry
from lightning_symmetry.repair.writing import CannotChangeError
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.units.discovery import Found
from lightning_symmetry.units.lookup import FindLayers, rows_by_name
from lightning_symmetry.units.patterns import unmatched_text
from lightning_symmetry.verdicts.advice import copies_text, messages
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.report import SymmetryReport


@dataclass(frozen=True)
class Conclusion:
    """What a check has come to, on all ranks.

    Attributes:
        report: the state of the model.
        news: what is found for the first time.
        texts: the news in words.
        state: what the examiner of the first rank knows, for the other ranks; empty if there are none.
    """

    report: SymmetryReport
    news: list[Finding]
    texts: list[str]
    state: dict[str, Any]


class SymmetryEngine:
    """Watches a model through the steps of its optimizers.

    Whoever drives a training calls :meth:`start` once, :meth:`before_step` before every step of every optimizer, and
    :meth:`finish` at the end. Nothing that fails in here ends the training.

    Args:
        options: the options of the monitor.
        who: the name under which messages speak of it.
        tell: says a text that is no warning to the user.

    Attributes:
        options: the options.
        report: the latest report; None before the first check.
        findings: every group that was warned of.
        changes: what was changed in the model, with ``on_symmetry="break"``.
    """

    def __init__(self, options: Options, who: str, tell: Callable[[str], None]) -> None:
        self.options = options
        self._who = who
        self._tell_user = tell
        self._is_speaking = True
        self._team: Team | None = None
        self._is_running = False
        self.reset()

    def reset(self) -> None:
        """Forget everything, as before the first check of a new model."""
        self._guard = Guard(self._warn, self._who)
        self._delivery = Delivery(self._warn, self._who)
        self._examiner = Examiner(self.options, self._leave_out)
        self._schedule = Schedule()
        self._optimizers: list[Optimizer] = []  # in the order of their places
        self.changes: list[Change] = []
        # By all ranks, at the latest check.
        self._agreed: tuple[SymmetryReport | None, dict[str, Any]] = (None, self._examiner.state_dict())

    @property
    def report(self) -> SymmetryReport | None:
        """The latest report; None before the first check."""
        return self._examiner.report

    @property
    def findings(self) -> list[Finding]:
        """Every group that was warned of, with layer, units, verdict, and when it was seen and broken."""
        return self._examiner.history.findings

    @property
    def num_steps(self) -> int:
        """How many steps of all optimizers have begun, also before a training that was resumed."""
        return sum(self._schedule.num_steps.values())

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts."""
        return {**self._examiner.state_dict(), "num_steps": dict(self._schedule.num_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Take over what :meth:`state_dict` wrote; whether that worked. If not, the user is warned."""
        return self._guard.run("resume", self._take_over, state) is not None

    def _take_over(self, state: dict[str, Any]) -> bool:
        examiner = Examiner(self.options, self._leave_out)
        examiner.load_state_dict(state)
        self.reset()
        self._examiner = examiner
        # Where a checkpoint is written as JSON, the places come back as strings.
        self._schedule.num_steps = {int(place): number for place, number in state["num_steps"].items()}
        return True

    # ---------------------------------------------------------------- what a training calls

    def start(self, optimizers: Sequence[Optimizer], team: Team | None = None, *, is_speaking: bool = True) -> None:
        """Begin a training, or go on with one.

        Args:
            optimizers: those of the training, in an order that is the same when it is resumed.
            team: all ranks of the training, which then have to make the same calls; None: this process is alone.
            is_speaking: whether this process writes and warns; one of all ranks should.
        """
        self._is_running = True
        self._optimizers = list(optimizers)
        self._team = team
        self._is_speaking = is_speaking
        if team is not None:
            # A rank that could not load the state, or loaded another one, would look at other steps than the rest.
            self._guard.run("check", team.run, self.state_dict, self._follow_state, lambda name: None)
            self._agreed = self.report, self._examiner.state_dict()

    def before_step(
        self, model: nn.Module, optimizer: Optimizer, step: int, every_n_steps: int, outputs: Sequence[Output]
    ) -> Conclusion | None:
        """Look at a model before a step of an optimizer, if the schedule says so.

        Args:
            model: the model, with the gradients of this step.
            optimizer: what updates it, or a part of it; one that :meth:`start` did not name counts as the next.
            step: completed optimizer steps of the training.
            every_n_steps: the optimizer's own steps between checks after the first ones.
            outputs: where to write.

        Returns:
            What the check has come to; None if this step is not checked, or if the check has failed.
        """
        place = self._place_of(optimizer)
        if self._schedule.is_repeated(place, step):
            return None
        # A training that is resumed has no report yet, but whoever watches its numbers expects them.
        is_due = self._schedule.is_due(place, every_n_steps) or self.report is None
        self._schedule.count(place, step)
        return self._guard.run("check", self._check, model, optimizer, step, outputs) if is_due else None

    def act(self, conclusion: Conclusion, model: nn.Module) -> bool:
        """Do what ``on_symmetry`` asks for; whether the training should stop.

        Args:
            conclusion: what the check has come to.
            model: the model, which is changed if the user wants its symmetries broken.

        Raises:
            SymmetryError: if there is news, and the user wants the training to fail.
        """
        choice = self.options.on_symmetry
        if choice == "ignore" or not conclusion.news:
            return False
        for text in conclusion.texts:
            self._warn(text, SymmetryWarning)
        if choice == "raise":
            raise SymmetryError("\n".join(conclusion.texts), conclusion.report, conclusion.news)
        if choice == "break":
            self._guard.run("repair", self._break, conclusion, model)
        if choice == "stop":
            self._tell(f"{self._who} stops the training.")
        return choice == "stop"

    def _break(self, conclusion: Conclusion, model: nn.Module) -> None:
        """Part the units that are found for the first time; on all ranks, which draw the same."""
        found = {finding.layer for finding in conclusion.news if not finding.modules}
        modules = {finding.modules for finding in conclusion.news}
        report = conclusion.report
        part = replace(
            report,
            layers={name: layer for name, layer in report.layers.items() if layer.name in found},
            copies=[group for group in report.copies if any(set(group.modules) <= set(names) for names in modules)],
        )
        try:
            changes = break_symmetry(model, part, optimizer=self._optimizers)
        except CannotChangeError as error:
            self._warn(f"{self._who} cannot break the symmetry. {error} Training goes on.", SymmetryWarning)
            return
        self.changes += changes
        what = " ".join(map(str, changes)) or "there is nothing that new weights of these units would part."
        self._warn(f"{self._who} breaks the symmetry, as on_symmetry='break' asks: {what}", SymmetryWarning)

    def make_outputs(self, task: str, make: Callable[[], Sequence[Output]]) -> Sequence[Output] | None:
        """What ``make`` returns; None if that fails, in which case it may be tried again at the next check.

        Args:
            task: what messages call it.
            make: makes the outputs.
        """
        return self._delivery.make(task, make)

    def finish(self, outputs: Sequence[Output]) -> None:
        """End a training: let the outputs say what became of the model."""
        # A Trainer that has reached its last step before ends a fit that it never started.
        was_running, self._is_running, self._optimizers = self._is_running, False, []
        if was_running and self.report is not None and self._is_speaking:
            self._delivery.close(outputs, self.report)

    def doubts(self) -> list[str]:
        """Why nothing can be concluded of the model; empty if its units are known to be healthy, or symmetric."""
        if self._guard.is_off("check"):
            return [f"the check failed with {self._guard.reason('check')}"]
        if self.report is None:
            return ["no optimizer step was checked"]
        return self.report.reasons if self.report.status == "inconclusive" else []

    def confirm(self) -> None:
        """Say so if a user who wants trainings to fail gets no conclusion; to be called once a training has ended.

        Raises:
            SymmetryError: if there is no conclusion, and the user requires one.
        """
        doubts = self.doubts()
        if not doubts or not (self.options.require_conclusion or self.options.on_symmetry == "raise"):
            return
        text = f"{self._who} comes to no conclusion ({'; '.join(doubts)})."
        if self.options.require_conclusion:
            raise SymmetryError(text, self.report or SymmetryReport(reasons=doubts), [])
        self._warn(f"{text} That nothing was raised does not mean that the model is healthy.", SymmetryWarning)

    # ---------------------------------------------------------------- one check

    def _place_of(self, optimizer: Optimizer) -> int:
        for place, other in enumerate(self._optimizers):
            if other is optimizer:
                return place
        self._optimizers.append(optimizer)
        return len(self._optimizers) - 1

    def _check(self, model: nn.Module, optimizer: Optimizer, step: int, outputs: Sequence[Output]) -> Conclusion:
        trained = _parameters_of([optimizer])
        # On all ranks at once: adapters are other people's code, and may well communicate.
        find = attempt(self._examiner.find, model)
        conclude = partial(self._conclude, model, find, trained, step, outputs)
        if self._team is None:
            return conclude()
        try:
            conclusion = self._team.run(conclude, self._follow, rows_by_name(model, find, trained))
        except TeamError:  # on all ranks, which shall go on agreeing
            self._examiner.follow(*self._agreed)
            raise
        self._agreed = conclusion.report, conclusion.state
        return conclusion

    def _conclude(
        self, model: nn.Module, find: FindLayers, trained: set[int], step: int, outputs: Sequence[Output]
    ) -> Conclusion:
        """Look and conclude, on the first rank."""
        found = find()
        is_first = self._examiner.copies is None
        if is_first:
            self._warn_of_what_is_not_looked_at(found)
        report, looks, news = self._examiner.examine(
            model, found, trained=trained, trained_by_any=_parameters_of(self._optimizers), step=step, team=self._team
        )
        if is_first and self.options.on_symmetry != "ignore":
            self._tell_of_copies(report)
        if self._is_speaking and outputs:
            self._delivery.write(outputs, report, self.findings, looks)
        state = {} if self._team is None else self._examiner.state_dict()
        return Conclusion(report, news, messages(news, report), state)

    def _follow(self, conclusion: Conclusion) -> None:
        self._examiner.follow(conclusion.report, conclusion.state)

    def _follow_state(self, state: dict[str, Any]) -> None:
        self._take_over(state)

    # ---------------------------------------------------------------- what the user hears

    def _warn(self, text: str, category: type[Warning] = UserWarning) -> None:
        if self._is_speaking:
            warn(text, category)

    def _tell(self, text: str) -> None:
        if self._is_speaking:
            self._tell_user(text)

    def _warn_of_what_is_not_looked_at(self, found: Found) -> None:
        if found.unmatched:
            self._warn(f"{self._who}: {unmatched_text(found.unmatched, found.names)}")
        if not found.layers:
            skipped = list(found.skipped.items())[:5]
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "it has no parameters"
            self._warn(f"{self._who} finds no layer to inspect in this model ({reasons}). Training goes on.")

    def _tell_of_copies(self, report: SymmetryReport) -> None:
        for group in report.copies:
            if not group.verdict.is_warning:
                self._tell(copies_text(group))

    def _leave_out(self, layer: Comparable, reason: str) -> None:
        self._warn(f"{self._who} leaves out {layer.name}: {reason}. Training goes on.")


def _parameters_of(optimizers: Sequence[Optimizer]) -> set[int]:
    """The identities (``id``) of all parameters that some optimizers update."""
    return {id(parameter) for each in optimizers for group in each.param_groups for parameter in group["params"]}
