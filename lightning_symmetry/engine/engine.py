"""The monitor itself: when to check, what is new, what follows, and how ranks agree."""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from lightning_symmetry.engine.delivery import Delivery
from lightning_symmetry.engine.examiner import Examiner
from lightning_symmetry.engine.guard import Guard
from lightning_symmetry.engine.messages import SymmetryError, SymmetryWarning, warn
from lightning_symmetry.engine.options import Options
from lightning_symmetry.engine.steps import Schedule, updated_by
from lightning_symmetry.outputs.output import Output
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.ranks.board import Board
from lightning_symmetry.ranks.sketches import has_group, is_replicated, team_of
from lightning_symmetry.ranks.team import Team, TeamError, attempt, describe
from lightning_symmetry.repair.breaking import Change, repaired
from lightning_symmetry.repair.writing import CannotChangeError
from lightning_symmetry.tracing.trace import GradientTrace
from lightning_symmetry.units.comparable import Comparable, FindLayers, rows_by_name
from lightning_symmetry.units.discovery import Found
from lightning_symmetry.units.imprint import Imprint
from lightning_symmetry.units.naming import unmatched_text
from lightning_symmetry.units.updates import Updates
from lightning_symmetry.verdicts.advice import copies_text, equal_ranks_text, idle_texts, messages
from lightning_symmetry.verdicts.diagnoses import Finding
from lightning_symmetry.verdicts.doubts import Untrained, untrained_text
from lightning_symmetry.verdicts.report import SymmetryReport
from lightning_symmetry.verdicts.verdict import Verdict

P = ParamSpec("P")
T = TypeVar("T")

_AGREEMENT = "agreement with the other ranks"
_COMPARISON = "comparison with the other ranks"
_TRACE = "trace of gradients"
# A trace is abandoned when other optimizers have made this many steps and its own has made none.
_MAX_STEPS_OF_A_TRACE = 20
_MAX_TRACES = 100  # per training, because a traced step is slow


@dataclass(frozen=True)
class Conclusion:
    """The result of a check."""

    report: SymmetryReport  # the state of the model
    news: list[Finding]
    texts: list[str]  # the new findings in words
    state: dict[str, Any]  # the state of the first rank's examiner, for the other ranks of a sharded model; else empty


class SymmetryEngine:
    """Watches a model through the steps of its optimizers.

    The training code calls :meth:`start` once, :meth:`before_step` before every step of every optimizer, and
    :meth:`finish` at the end, each through :meth:`guarded`: a failure of the engine must not end the training.

    Where every rank has the whole model, each checks its own copy without communication. The ranks of a sharded model
    exchange rows, so all of them must make the same steps.

    Args:
        options: the options of the monitor.
        who: the name of the monitor in messages.
        notify: shows the user a text that is not a warning.

    Attributes:
        options: the options.
        changes: what was changed in the model, with ``on_symmetry="break"``.
    """

    def __init__(self, options: Options, who: str, notify: Callable[[str], None]) -> None:
        self.options = options
        self._who = who
        self._notify_user = notify
        self._is_speaking = True
        self._is_running = False
        self._board: Board | None = None  # exchanges notes between ranks, if there are several
        self._imprint: Imprint | None = None  # records gradients until the first check, to find equal ranks
        self._shares_decisions = False  # whether ranks that have the whole model follow the decisions of the first
        self._optimizers: list[weakref.ref[Any]] = []
        self._updated: dict[int, set[int]] = {}  # by `id` of an optimizer, the ids of the parameters that it updates
        self.reset()

    def reset(self) -> None:
        """Return to the state before the first check."""
        self._guard = Guard(self._warn, self._who)
        self._delivery = Delivery(self._warn, self._who)
        self._examiner = Examiner(self.options, self._leave_out)
        self._schedule = Schedule()
        self.changes: list[Change] = []
        self._never_stepped: list[str] = []  # the optimizers without a step in the training that has ended
        self._reported_idle: set[tuple[str, str]] = set()  # name and code of layers whose idle units the user knows
        self._team: Team | None = None
        self._is_team_known = False
        self._is_compared = False  # whether this training was compared with those of the other ranks
        for trace in getattr(self, "_traces", {}).values():
            trace.abandon()
        self._traces: dict[int, GradientTrace] = {}  # by index of the optimizer, until its next step
        self._traced_since: dict[int, int] = {}  # by index, `num_steps` when the latest trace began
        self._num_traces = 0
        self._has_on_finding_failed = False
        # The report and state that all ranks of a sharded model share since the latest check.
        self._agreed: tuple[SymmetryReport | None, dict[str, Any]] = (None, self._examiner.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        # Optimizers and process groups cannot be pickled.
        here: dict[str, Any] = {
            "_optimizers": [],
            "_updated": {},
            "_team": None,
            "_board": None,
            "_imprint": None,
            "_is_team_known": False,
            "_is_running": False,
            "_traces": {},
        }
        return {**self.__dict__, **here}

    @property
    def report(self) -> SymmetryReport | None:
        """The latest report; None before the first check."""
        return self._examiner.report

    @property
    def findings(self) -> list[Finding]:
        """Every group that the user was warned of, with layer, units, verdict, and when it was seen and broken."""
        return self._examiner.history.findings

    @property
    def num_steps(self) -> int:
        """The number of steps that all optimizers have begun, including those before a resume."""
        return sum(self._schedule.num_steps.values())

    def guarded(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Call a function of the monitor. If it fails, return None and end the watch, but not the training.

        Raises:
            SymmetryError: if the user wants the training to fail.
        """
        return self._guard.run("watch", step, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain numbers, strings, lists and dicts."""
        return {**self._examiner.state_dict(), "num_steps": dict(self._schedule.num_steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Restore what :meth:`state_dict` returned. Return whether that worked; if not, warn the user."""
        examiner, schedule = Examiner(self.options, self._leave_out), Schedule()
        try:
            examiner.load_state_dict(state)
            schedule.load(state["num_steps"])
        except Exception as error:  # the state may come from any file
            self._warn(
                f"{self._who} cannot read its state in the checkpoint ({describe(error)}) and starts without it. "
                "Training goes on."
            )
            return False
        self.reset()
        self._examiner, self._schedule = examiner, schedule
        return True

    # ---------------------------------------------------------------- called by the training

    def prepare(self, model: nn.Module) -> None:
        """Prepare communication with other ranks; called before the first backward pass.

        Args:
            model: the model with its wrapper, if it has one.
        """
        if not has_group() or self._board is not None:
            return
        self._board = self._guard.run(_AGREEMENT, Board)
        if not self._is_compared and self.options.on_symmetry != "ignore":
            self._imprint = self._guard.run(_COMPARISON, _imprint_of, model)

    def start(self, optimizers: Sequence[Any], *, num_ranks: int = 1, is_speaking: bool = True) -> None:
        """Begin a training, or continue one.

        Args:
            optimizers: the optimizers of the training, in the same order on all ranks and after a resume.
            num_ranks: how many processes train this model together.
            is_speaking: whether this process writes and warns; exactly one rank should.
        """
        self._is_running = True
        self._is_team_known = False
        self._is_speaking = is_speaking
        self.set_optimizers(optimizers)
        self._shares_decisions = num_ranks > 1 and self.options.on_symmetry in ("stop", "raise", "break")

    def set_optimizers(self, optimizers: Sequence[Any]) -> None:
        """Set the optimizers of the training; each is scheduled by its index in this list."""
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]

    def before_step(
        self, model: nn.Module, optimizer: Any, step: int, every_n_steps: int, outputs: Callable[[], Sequence[Output]]
    ) -> Conclusion | None:
        """Check a model before a step of an optimizer, if a check is due.

        Args:
            model: the model, with the gradients of this step.
            optimizer: updates the model or a part of it; a new one is appended to the known ones.
            step: completed optimizer steps of the training.
            every_n_steps: the optimizer's own steps between checks after the first ones.
            outputs: returns where to write; called at a check only.

        Returns:
            The conclusion; None if this step is not checked, or if the check has failed.
        """
        index = self._index_of(optimizer)
        if self._schedule.is_repeated(index, step):
            return None
        if not self._is_team_known:
            self._is_team_known = True
            self._guard.run("check", self._find_team, model)
            self._guard.run(_COMPARISON, self._compare, step)
        # A resumed training has no report yet, but its metrics are expected at once.
        is_first = self.report is None and not self._guard.is_off("check")
        is_due = self._schedule.is_due(index, every_n_steps) or is_first
        self._schedule.count(index, step)
        if self._traces:
            self._guard.run(_TRACE, self._end_trace, index, step)
            if self._guard.is_off(_TRACE):
                self._drop_traces()
        if not is_due:
            if self._examiner.has_questions:
                self._guard.run("check", self._watch, model, optimizer, step)
            if self._schedule.is_due(index, every_n_steps):
                self._guard.run(_TRACE, self._begin_trace, model, optimizer, step)
            return None
        conclusion = self._guard.run("check", self._check, model, optimizer, step, outputs())
        if self._schedule.is_due(index, every_n_steps):
            self._guard.run(_TRACE, self._begin_trace, model, optimizer, step)
        if self._board is None or self._team is not None or not self._shares_decisions:
            return conclusion
        return self._agree(conclusion, self._board)

    def before_backward(self, loss: Tensor) -> None:
        """Pass a loss to the running traces; called before its backward pass where the loss is known."""
        for trace in self._traces.values():
            self._guard.run(_TRACE, trace.expect, loss)

    def act(self, conclusion: Conclusion, model: nn.Module) -> bool:
        """Pass new findings to ``on_finding`` and act as ``on_symmetry`` demands. Return whether training should stop.

        Args:
            conclusion: the result of the check.
            model: the model, which ``on_symmetry="break"`` changes.

        Raises:
            SymmetryError: if there are new findings and ``on_symmetry`` is ``"raise"``.
        """
        choice = self.options.on_symmetry
        for text in conclusion.texts if choice != "ignore" else ():
            self._warn(text, SymmetryWarning)
        self._call_on_finding(conclusion.news)
        if choice == "ignore" or not conclusion.news:
            return False
        if choice == "raise":
            raise SymmetryError("\n".join(conclusion.texts), conclusion.report, conclusion.news)
        if choice == "break":
            self._guard.run("repair", self._break, conclusion, model)
        if choice == "stop":
            self._notify(f"{self._who} stops the training.")
        return choice == "stop"

    def _call_on_finding(self, news: Sequence[Finding]) -> None:
        """Call ``on_finding`` with each finding, even if it fails for some."""
        on_finding = self.options.on_finding
        if on_finding is None or not self._is_speaking or not news:
            return
        with preserved_random_numbers():
            for finding in news:
                try:
                    on_finding(finding)
                except Exception as error:
                    if not self._has_on_finding_failed:
                        self._has_on_finding_failed = True
                        self._warn(f"The on_finding of {self._who} failed with {describe(error)}. Training goes on.")

    def _break(self, conclusion: Conclusion, model: nn.Module) -> None:
        """Re-initialise the units of new findings, with the same random numbers on all ranks."""
        self._drop_traces()  # a repair would mistake their hooks for the user's
        found = {finding.layer for finding in conclusion.news if not finding.modules}
        modules = {finding.modules for finding in conclusion.news}
        report = conclusion.report
        part = replace(
            report,
            layers={name: layer for name, layer in report.layers.items() if layer.name in found},
            copies=[group for group in report.copies if any(set(group.modules) <= set(names) for names in modules)],
        )
        try:
            changes, left = repaired(model, part, optimizer=self._present_optimizers())
        except CannotChangeError as error:
            self._warn(f"{self._who} cannot break the symmetry. {error} Training goes on.", SymmetryWarning)
            return
        self.changes += changes
        nothing = [] if changes or left else ["re-initialising these units would not separate them."]
        what = " ".join([*map(str, changes), *map(str, left), *nothing])
        self._warn(f"{self._who} breaks the symmetry, as on_symmetry='break' asks: {what}", SymmetryWarning)

    def outputs_of(self, target: object, task: str, make: Callable[[], Sequence[Output]]) -> Sequence[Output]:
        """Return the outputs of a logger or other target, as :meth:`Delivery.outputs_of` does."""
        return self._delivery.outputs_of(target, task, make)

    def finish(self, outputs: Sequence[Output]) -> None:
        """End a training: close the outputs and release the model."""
        # A Trainer that was already at its last step ends a fit that it never started.
        was_running, self._is_running = self._is_running, False
        if self._team is None or self._team.is_first:
            self._examiner.bring_up_to_date()
        if was_running and self._is_speaking:
            self._never_stepped = [
                f"optimizer {index} ({type(optimizer).__name__})"
                for index, each in enumerate(self._optimizers)
                if (optimizer := each()) is not None and not self._schedule.num_steps.get(index)
            ]
            if self.report is not None:
                self._delivery.close(outputs, self.report)
        self._optimizers, self._updated = [], {}
        self._team = self._board = None
        self._delivery.release()
        self._drop_imprint()
        self._drop_traces()
        self._examiner.release()

    def doubts(self) -> list[str]:
        """Return the reasons why there is no conclusion; empty if the model is healthy or symmetric."""
        for task in ("check", "watch"):
            if self._guard.is_off(task):
                return [f"the {task} failed with {self._guard.reason(task)}"]
        if self.report is None:
            return ["no optimizer step was checked"]
        return self.report.reasons if self.report.status == "inconclusive" else []

    def confirm(self) -> None:
        """Warn of what was not checked or does not train; called when a training has ended normally.

        Raises:
            SymmetryError: if there is no conclusion and ``require_conclusion`` is set.
        """
        if self._never_stepped:
            optimizers = ", ".join(self._never_stepped)
            self._warn(f"{self._who} saw no step of {optimizers}: what it updates was not judged.")
        unreported = self._unreported_untrained()
        if unreported and self.options.on_symmetry != "ignore":
            self._warn(f"{self._who}: parts of the model do not train. {untrained_text(unreported)}.")
        doubts = self.doubts()
        if not doubts or not (self.options.require_conclusion or self.options.on_symmetry == "raise"):
            return
        text = f"{self._who} comes to no conclusion ({'; '.join(doubts)})."
        if self.options.require_conclusion:
            raise SymmetryError(text, self.report or SymmetryReport(reasons=doubts), [])
        self._warn(f"{text} That nothing was raised does not mean that the model is healthy.", SymmetryWarning)

    def _unreported_untrained(self) -> dict[str, str]:
        """Return the untrained parts that the findings neither name nor explain, with reasons."""
        if self.report is None:
            return {}
        reported = {finding.layer for finding in self.report.findings}
        # Dead and frozen units leave parameters downstream without a gradient.
        has_silent = any(finding.verdict in (Verdict.DEAD, Verdict.FROZEN) for finding in self.report.findings)
        explained = [Untrained.NO_GRADIENT] if has_silent else []
        return {
            name: reason
            for name, reason in self.report.untrained.items()
            if name not in reported and (name in self.report.layers or reason not in explained)
        }

    # ---------------------------------------------------------------- one traced step

    def _begin_trace(self, model: nn.Module, optimizer: Any, step: int) -> None:
        """Trace the next step, which is checked, if that check may bring a verdict on zero gradients."""
        answers_others = self._team is not None and not self._team.is_first
        index, known = self._index_of(optimizer), self._updated.get(id(optimizer))
        is_enough = index in self._traces or self._num_traces >= _MAX_TRACES
        if is_enough or answers_others or self._guard.is_off("check"):
            return
        trained = updated_by([optimizer]) if known is None else known
        trace = self._examiner.trace(model, trained, step + 1)
        if trace is not None:
            self._traces[index] = trace
            self._traced_since[index] = self.num_steps
            self._num_traces += 1

    def _end_trace(self, index: int, step: int) -> None:
        for other, since in self._traced_since.items():
            if other in self._traces and self.num_steps > since + _MAX_STEPS_OF_A_TRACE:
                self._traces.pop(other).abandon()
        trace = self._traces.pop(index, None)
        if trace is not None:
            self._examiner.end_trace(trace, step)

    def _drop_traces(self) -> None:
        for trace in self._traces.values():
            trace.abandon()
        self._traces = {}

    # ---------------------------------------------------------------- one check

    def _index_of(self, optimizer: Any) -> int:
        for index, other in enumerate(self._optimizers):
            if other() is optimizer:
                return index
        self._optimizers.append(weakref.ref(optimizer))
        return len(self._optimizers) - 1

    def _present_optimizers(self) -> list[Any]:
        return [optimizer for each in self._optimizers if (optimizer := each()) is not None]

    def _find_team(self, model: nn.Module) -> None:
        """Find the ranks that hold the model. If it is sharded, all adopt the state of the first rank."""
        self._team = team_of(model)
        if self._team is None:
            return
        if self._board is None or not self._board.all_are_here():
            raise TeamError(
                "it takes a monitor or tracker on every rank to look at a sharded model, and some have none"
            )
        # A rank that could not load the state, or loaded another one, would check other steps than the rest.
        self._team.run(self.state_dict, self._follow_state, lambda name: None)
        self._agreed = self.report, self._examiner.state_dict()

    def _compare(self, step: int) -> None:
        """Warn, on this rank, if another one has the same weights and gradients."""
        imprint = self._drop_imprint()
        if imprint is None or self._board is None or self._team is not None:
            return
        self._is_compared = True
        digest = imprint.digest()
        other = None if digest is None else self._board.other_with(digest)
        if other is not None:
            warn(f"{self._who}: {equal_ranks_text((other, dist.get_rank()), step)}", SymmetryWarning)

    def _drop_imprint(self) -> Imprint | None:
        """Stop recording gradients. Return the recorder."""
        imprint, self._imprint = self._imprint, None
        if imprint is not None:
            imprint.end()
        return imprint

    def _agree(self, conclusion: Conclusion | None, board: Board) -> Conclusion | None:
        """Return a conclusion with the news of the first rank, so that all ranks act alike."""
        note = pickle.dumps(conclusion) if conclusion is not None and conclusion.news else b""
        decision = self._guard.run(_AGREEMENT, board.next_of_first, note)
        if decision:
            decided: Conclusion = pickle.loads(decision)
            return decided if conclusion is None else replace(conclusion, news=decided.news, texts=decided.texts)
        return conclusion if conclusion is None else replace(conclusion, news=[], texts=[])

    def _check(self, model: nn.Module, optimizer: Any, step: int, outputs: Sequence[Output]) -> Conclusion:
        trained = self._updated[id(optimizer)] = updated_by([optimizer])
        # All ranks do this at once, because adapters of users may communicate.
        find = attempt(self._examiner.find, model)
        conclude = partial(self._conclude, model, find, trained, step, outputs)
        if self._team is None:
            return conclude()
        try:
            conclusion = self._team.run(conclude, self._follow, rows_by_name(model, find, trained))
        except TeamError:  # raised on all ranks: all return to the state that they share
            self._examiner.follow(*self._agreed)
            raise
        self._agreed = conclusion.report, conclusion.state
        return conclusion

    def _watch(self, model: nn.Module, optimizer: Any, step: int) -> None:
        """Check, at a step between two checks, whether gradients that were zero still are."""
        known = self._updated.get(id(optimizer))
        trained = updated_by([optimizer]) if known is None else known
        self._examiner.ledger.watch(trained)
        if not self._examiner.suspects:
            return
        watch = partial(self._watch_here, trained, step)
        if self._team is None:
            watch()
            return
        found = self._examiner.layers
        self._team.run(watch, self._examiner.follow_suspects, rows_by_name(model, lambda: found, trained))
        self._agreed = self.report, {**self._agreed[1], "suspects": sorted(self._examiner.suspects)}

    def _watch_here(self, trained: set[int], step: int) -> Set[str]:
        self._examiner.watch(trained, step, self._team)
        return set(self._examiner.suspects)

    def _conclude(
        self, model: nn.Module, find: FindLayers, trained: set[int], step: int, outputs: Sequence[Output]
    ) -> Conclusion:
        """Examine the model, write to the outputs, and conclude; if the model is sharded, on the first rank only."""
        found = find()
        is_first = self.report is None
        if is_first:
            self._warn_of_skipped_layers(found)
        updates = Updates(self._present_optimizers())
        report, looks, news = self._examiner.examine(
            model, found, trained=trained, updates=updates, step=step, team=self._team
        )
        for group in report.copies if is_first and self.options.on_symmetry != "ignore" else ():
            if not group.verdict.is_warning:
                self._notify(copies_text(group))
        self._notify_of_idle_units(report)
        if self._is_speaking and outputs:
            self._delivery.write(outputs, report, self.findings, looks)
        state = {} if self._team is None else self._examiner.state_dict()
        return Conclusion(report, news, messages(news, report), state)

    def _follow(self, conclusion: Conclusion) -> None:
        self._examiner.follow(conclusion.report, conclusion.state)

    def _follow_state(self, state: dict[str, Any]) -> None:
        self._examiner.follow(self.report, state)
        self._schedule.load(state["num_steps"])

    # ---------------------------------------------------------------- messages

    def _warn(self, text: str, category: type[Warning] = UserWarning) -> None:
        if self._is_speaking:
            warn(text, category)

    def _notify(self, text: str) -> None:
        if self._is_speaking:
            self._notify_user(text)

    def _warn_of_skipped_layers(self, found: Found) -> None:
        if found.unmatched:
            self._warn(f"{self._who}: {unmatched_text(found.unmatched, found.names)}")
        if not found.layers:
            skipped = list(found.skipped.items())[:5]
            reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped) or "it has no parameters"
            self._warn(f"{self._who} finds no layer to inspect in this model ({reasons}). Training goes on unchecked.")

    def _notify_of_idle_units(self, report: SymmetryReport) -> None:
        """Notify once per layer why its units are idle; the cause lies outside the layer."""
        if self.options.on_symmetry == "ignore":
            return
        idle = [
            (layer, group)
            for layer in report.distinct_layers
            for group in layer.groups
            if group.verdict is Verdict.IDLE
        ]
        news = {layer.name: layer for layer, group in idle if (layer.name, group.code) not in self._reported_idle}
        for text in idle_texts(news.values()):
            self._notify(text)
        self._reported_idle |= {(layer.name, group.code) for layer, group in idle}

    def _leave_out(self, layer: Comparable, reason: str) -> None:
        self._warn(f"{self._who} leaves out {layer.name}: {reason}. Training goes on.")


def _imprint_of(model: nn.Module) -> Imprint | None:
    """Return the recorder to compare a model across ranks; None where ranks hold parts or copies by design."""
    is_known = is_replicated(model) or team_of(model) is not None
    return None if is_known or dist.get_world_size() == 1 else Imprint(model)
