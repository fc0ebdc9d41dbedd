"""The monitor itself: when to look, what was found, what is news, and agreement of all ranks."""

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
from lightning_symmetry.engine.schedule import Schedule
from lightning_symmetry.engine.steps import updated_by
from lightning_symmetry.outputs.output import Output
from lightning_symmetry.randomness import preserved_random_numbers
from lightning_symmetry.ranks.board import Board
from lightning_symmetry.ranks.sketches import has_group, is_replicated, team_of
from lightning_symmetry.ranks.team import Team, TeamError, attempt, describe
from lightning_symmetry.repair.breaking import Change, repaired
from lightning_symmetry.repair.writing import CannotChangeError
from lightning_symmetry.tracing.trace import GradientTrace
from lightning_symmetry.units.comparable import Comparable
from lightning_symmetry.units.discovery import Found
from lightning_symmetry.units.imprint import Imprint
from lightning_symmetry.units.lookup import FindLayers, rows_by_name
from lightning_symmetry.units.patterns import unmatched_text
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
# A trace whose optimizer has not stepped after so many steps of others is given up.
_MAX_STEPS_OF_A_TRACE = 20
# A step that is traced takes longer than others, so in one training there are not more of them.
_MAX_TRACES = 100


@dataclass(frozen=True)
class Conclusion:
    """What a check has come to.

    Attributes:
        report: the state of the model.
        news: what is found for the first time.
        texts: the news in words.
        state: what the examiner of the first rank knows, for the other ranks of a sharded model; else empty.
    """

    report: SymmetryReport
    news: list[Finding]
    texts: list[str]
    state: dict[str, Any]


class SymmetryEngine:
    """Watches a model through the steps of its optimizers.

    Whoever drives a training calls :meth:`start` once, :meth:`before_step` before every step of every optimizer, and
    :meth:`finish` at the end, each through :meth:`guarded`, so that nothing that fails in here ends the training.

    Where every rank has the whole model, each looks at its own, and asks the others nothing. The ranks of a sharded
    model answer one another's questions, for which all of them have to make the same steps.

    Args:
        options: the options of the monitor.
        who: the name under which messages speak of it.
        tell: says a text that is no warning to the user.

    Attributes:
        options: the options.
        changes: what was changed in the model, with ``on_symmetry="break"``.
    """

    def __init__(self, options: Options, who: str, tell: Callable[[str], None]) -> None:
        self.options = options
        self._who = who
        self._tell_user = tell
        self._is_speaking = True
        self._is_running = False
        self._board: Board | None = None  # where ranks leave notes for one another, if there are several
        self._imprint: Imprint | None = None  # until the first check, if other ranks may turn out to train as this one
        self._shares_decisions = False  # whether ranks that have a model each agree what to do about it
        self._optimizers: list[weakref.ref[Any]] = []  # in the order of their places
        self._updated: dict[int, set[int]] = {}  # by identity of an optimizer, of the parameters that it updates
        self.reset()

    def reset(self) -> None:
        """Forget everything, as before the first check of a new training."""
        self._guard = Guard(self._warn, self._who)
        self._delivery = Delivery(self._warn, self._who)
        self._examiner = Examiner(self.options, self._leave_out)
        self._schedule = Schedule()
        self.changes: list[Change] = []
        self._never_stepped: list[str] = []  # the optimizers of which the training that has ended made no step
        self._known_idle: set[tuple[str, str]] = set()  # the layers of which it was said that units are idle, and why
        self._team: Team | None = None
        self._is_settled = False  # whether it is known who holds the model
        self._is_compared = False  # whether this training was compared with those of the other ranks
        for trace in getattr(self, "_traces", {}).values():
            trace.abandon()
        self._traces: dict[int, GradientTrace] = {}  # by place of an optimizer, until its next step
        self._begun: dict[int, int] = {}  # by place, after how many steps of all optimizers the latest one was begun
        self._num_traces = 0
        self._has_failed_to_hand_on = False  # whether it was said that `on_finding` has failed
        # By all ranks of a sharded model, at the latest check.
        self._agreed: tuple[SymmetryReport | None, dict[str, Any]] = (None, self._examiner.state_dict())

    def __getstate__(self) -> dict[str, Any]:
        # Optimizers and processes stay where they are.
        here: dict[str, Any] = {
            "_optimizers": [],
            "_updated": {},
            "_team": None,
            "_board": None,
            "_imprint": None,
            "_is_settled": False,
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
        """Every group that was warned of, with layer, units, verdict, and when it was seen and broken."""
        return self._examiner.history.findings

    @property
    def num_steps(self) -> int:
        """How many steps of all optimizers have begun, also before a training that was resumed."""
        return sum(self._schedule.num_steps.values())

    def guarded(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what a step of the monitor returns; None if it fails, which ends the watch and not the training.

        Raises:
            SymmetryError: if the user wants the training to fail.
        """
        return self._guard.run("watch", step, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts."""
        return {**self._examiner.state_dict(), "num_steps": dict(self._schedule.num_steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> bool:
        """Take over what :meth:`state_dict` wrote; returns whether that worked. If not, the user is warned."""
        examiner, schedule = Examiner(self.options, self._leave_out), Schedule()
        try:
            examiner.load_state_dict(state)
            schedule.load(state["num_steps"])
        except Exception as error:  # the state may come from any file
            self._warn(
                f"{self._who} cannot read its state in the checkpoint ({describe(error)}), and does without it. "
                "Training goes on."
            )
            return False
        self.reset()
        self._examiner, self._schedule = examiner, schedule
        return True

    # ---------------------------------------------------------------- what a training calls

    def meet(self, model: nn.Module) -> None:
        """Get ready to hear of other ranks; to be called before the first backward pass.

        Args:
            model: the model, as it is called: with what wraps it, if anything does.
        """
        if not has_group() or self._board is not None:
            return
        self._board = self._guard.run(_AGREEMENT, Board)
        if not self._is_compared and self.options.on_symmetry != "ignore":
            self._imprint = self._guard.run(_COMPARISON, _imprint_of, model)

    def start(self, optimizers: Sequence[Any], *, num_ranks: int = 1, is_speaking: bool = True) -> None:
        """Begin a training, or go on with one.

        Args:
            optimizers: those of the training, in an order that is the same when it is resumed, and on all ranks.
            num_ranks: how many processes train this model together.
            is_speaking: whether this process writes and warns; one of all ranks should.
        """
        self._is_running = True
        self._is_settled = False
        self._is_speaking = is_speaking
        self.place(optimizers)
        self._shares_decisions = num_ranks > 1 and self.options.on_symmetry in ("stop", "raise", "break")

    def place(self, optimizers: Sequence[Any]) -> None:
        """Say which optimizers the training has now; each is scheduled by its place among them.

        Args:
            optimizers: those of the training, also if some of them are new.
        """
        self._optimizers = [weakref.ref(optimizer) for optimizer in optimizers]

    def before_step(
        self, model: nn.Module, optimizer: Any, step: int, every_n_steps: int, outputs: Sequence[Output]
    ) -> Conclusion | None:
        """Look at a model before a step of an optimizer, if the schedule says so.

        Args:
            model: the model, with the gradients of this step.
            optimizer: what updates it, or a part of it; one that has no place yet gets the next.
            step: completed optimizer steps of the training.
            every_n_steps: the optimizer's own steps between checks after the first ones.
            outputs: where to write.

        Returns:
            What the check has come to; None if this step is not checked, or if the check has failed.
        """
        place = self._place_of(optimizer)
        if self._schedule.is_repeated(place, step):
            return None
        if not self._is_settled:
            self._is_settled = True
            self._guard.run("check", self._settle, model)
            self._guard.run(_COMPARISON, self._compare, step)
        # A training that is resumed has no report yet, but whoever watches its numbers expects them.
        is_first = self.report is None and not self._guard.is_off("check")
        is_due = self._schedule.is_due(place, every_n_steps) or is_first
        self._schedule.count(place, step)
        self._guard.run(_TRACE, self._end_trace, place, step)
        if self._guard.is_off(_TRACE):
            self._drop_traces()
        if not is_due:
            self._guard.run("check", self._watch, model, optimizer, step)
            if self._schedule.is_due(place, every_n_steps):
                self._guard.run(_TRACE, self._begin_trace, model, optimizer, step)
            return None
        conclusion = self._guard.run("check", self._check, model, optimizer, step, outputs)
        if self._schedule.is_due(place, every_n_steps):
            self._guard.run(_TRACE, self._begin_trace, model, optimizer, step)
        if self._board is None or self._team is not None or not self._shares_decisions:
            return conclusion
        return self._decided_by_all(conclusion, self._board)

    def before_backward(self, loss: Tensor) -> None:
        """Take notice of a loss before its backward pass; to be called if it is known.

        Args:
            loss: the loss.
        """
        for trace in self._traces.values():
            self._guard.run(_TRACE, trace.expect, loss)

    def act(self, conclusion: Conclusion, model: nn.Module) -> bool:
        """Hand new findings to ``on_finding`` and do what ``on_symmetry`` asks for; whether the training should stop.

        Args:
            conclusion: what the check has come to.
            model: the model, which is changed if the user wants its symmetries broken.

        Raises:
            SymmetryError: if there is news, and the user wants the training to fail.
        """
        choice = self.options.on_symmetry
        for text in conclusion.texts if choice != "ignore" else ():
            self._warn(text, SymmetryWarning)
        self._hand_on(conclusion.news)
        if choice == "ignore" or not conclusion.news:
            return False
        if choice == "raise":
            raise SymmetryError("\n".join(conclusion.texts), conclusion.report, conclusion.news)
        if choice == "break":
            self._guard.run("repair", self._break, conclusion, model)
        if choice == "stop":
            self._tell(f"{self._who} stops the training.")
        return choice == "stop"

    def _hand_on(self, news: Sequence[Finding]) -> None:
        """Call ``on_finding`` with findings; one that it fails at does not keep it from the next."""
        on_finding = self.options.on_finding
        if on_finding is None or not self._is_speaking or not news:
            return
        with preserved_random_numbers():
            for finding in news:
                try:
                    on_finding(finding)
                except Exception as error:
                    if not self._has_failed_to_hand_on:
                        self._has_failed_to_hand_on = True
                        self._warn(f"The on_finding of {self._who} failed with {describe(error)}. Training goes on.")

    def _break(self, conclusion: Conclusion, model: nn.Module) -> None:
        """Part the units that are found for the first time; on all ranks, which draw the same."""
        self._drop_traces()  # whose hooks would be taken for the user's own
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
        """Return the outputs of a target, made when it is first met; none if that fails, which may be tried again.

        Args:
            target: a logger or the like, told from others by its identity.
            task: what messages call the making of its outputs.
            make: makes them.
        """
        return self._delivery.outputs_of(target, task, make)

    def finish(self, outputs: Sequence[Output]) -> None:
        """End a training: let the outputs say what became of the model, and let go of the model."""
        # A Trainer that has reached its last step before ends a fit that it never started.
        was_running, self._is_running = self._is_running, False
        if self._team is None or self._team.is_first:
            self._examiner.bring_up_to_date()
        if was_running and self._is_speaking:
            self._never_stepped = [
                f"optimizer {place} ({type(optimizer).__name__})"
                for place, each in enumerate(self._optimizers)
                if (optimizer := each()) is not None and not self._schedule.num_steps.get(place)
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
        """Return why nothing can be concluded of the model; empty if it is known to be healthy, or symmetric."""
        for task in ("check", "watch"):
            if self._guard.is_off(task):
                return [f"the {task} failed with {self._guard.reason(task)}"]
        if self.report is None:
            return ["no optimizer step was checked"]
        return self.report.reasons if self.report.status == "inconclusive" else []

    def confirm(self) -> None:
        """Say what was not seen; to be called once a training has ended by itself.

        Raises:
            SymmetryError: if there is no conclusion, and the user requires one.
        """
        if self._never_stepped:
            who = ", ".join(self._never_stepped)
            self._warn(f"{self._who} saw no step of {who}: what it updates was not judged.")
        untold = self._untrained_but_for_findings()
        if untold and self.options.on_symmetry != "ignore":
            self._warn(f"{self._who}: parts of the model do not train. {untrained_text(untold)}.")
        doubts = self.doubts()
        if not doubts or not (self.options.require_conclusion or self.options.on_symmetry == "raise"):
            return
        text = f"{self._who} comes to no conclusion ({'; '.join(doubts)})."
        if self.options.require_conclusion:
            raise SymmetryError(text, self.report or SymmetryReport(reasons=doubts), [])
        self._warn(f"{text} That nothing was raised does not mean that the model is healthy.", SymmetryWarning)

    def _untrained_but_for_findings(self) -> dict[str, str]:
        """Return what does not train at the end, without what the user was warned of, and what follows from it."""
        if self.report is None:
            return {}
        told = {finding.layer for finding in self.report.findings}
        # Weights that get nothing but zeros from units without a gradient have none either.
        has_idle = any(finding.verdict in (Verdict.DEAD, Verdict.FROZEN) for finding in self.report.findings)
        followed = [Untrained.NO_GRADIENT] if has_idle else []
        return {
            name: reason
            for name, reason in self.report.untrained.items()
            if name not in told and (name in self.report.layers or reason not in followed)
        }

    # ---------------------------------------------------------------- one traced step

    def _begin_trace(self, model: nn.Module, optimizer: Any, step: int) -> None:
        """Trace the next step of an optimizer, which is checked, if it may be called dead what has no gradient then."""
        answers_others = self._team is not None and not self._team.is_first
        place, known = self._place_of(optimizer), self._updated.get(id(optimizer))
        is_enough = place in self._traces or self._num_traces >= _MAX_TRACES
        if is_enough or answers_others or self._guard.is_off("check"):
            return
        trained = updated_by([optimizer]) if known is None else known
        trace = self._examiner.trace(model, trained, step + 1)
        if trace is not None:
            self._traces[place] = trace
            self._begun[place] = self.num_steps
            self._num_traces += 1

    def _end_trace(self, place: int, step: int) -> None:
        for other, begun in self._begun.items():
            if other in self._traces and self.num_steps > begun + _MAX_STEPS_OF_A_TRACE:
                self._traces.pop(other).abandon()  # its optimizer steps no more
        trace = self._traces.pop(place, None)
        if trace is not None:
            self._examiner.end_trace(trace, step)

    def _drop_traces(self) -> None:
        for trace in self._traces.values():
            trace.abandon()
        self._traces = {}

    # ---------------------------------------------------------------- one check

    def _place_of(self, optimizer: Any) -> int:
        for place, other in enumerate(self._optimizers):
            if other() is optimizer:
                return place
        self._optimizers.append(weakref.ref(optimizer))
        return len(self._optimizers) - 1

    def _present_optimizers(self) -> list[Any]:
        return [optimizer for each in self._optimizers if (optimizer := each()) is not None]

    def _settle(self, model: nn.Module) -> None:
        """Find out who holds the model; the ranks of a sharded one agree when to look."""
        self._team = team_of(model)
        if self._team is None:
            return
        if self._board is None or not self._board.all_are_here():
            raise TeamError(
                "it takes a monitor or tracker on every rank to look at a sharded model, and some have none"
            )
        # A rank that could not load the state, or loaded another one, would look at other steps than the rest.
        self._team.run(self.state_dict, self._follow_state, lambda name: None)
        self._agreed = self.report, self._examiner.state_dict()

    def _compare(self, step: int) -> None:
        """See whether another rank has the same weights and gradients; warn on this one, since no other may know."""
        imprint = self._drop_imprint()
        if imprint is None or self._board is None or self._team is not None:
            return
        self._is_compared = True
        digest = imprint.digest()
        other = None if digest is None else self._board.other_with(digest)
        if other is not None:
            warn(f"{self._who}: {equal_ranks_text((other, dist.get_rank()), step)}", SymmetryWarning)

    def _drop_imprint(self) -> Imprint | None:
        """Note no more gradients; returns what has noted them."""
        imprint, self._imprint = self._imprint, None
        if imprint is not None:
            imprint.end()
        return imprint

    def _decided_by_all(self, conclusion: Conclusion | None, board: Board) -> Conclusion | None:
        """Return a conclusion whose news, which lead to actions, are those of the first rank."""
        note = pickle.dumps(conclusion) if conclusion is not None and conclusion.news else b""
        said = self._guard.run(_AGREEMENT, board.next_of_first, note)
        if said:
            decided: Conclusion = pickle.loads(said)
            return decided if conclusion is None else replace(conclusion, news=decided.news, texts=decided.texts)
        return conclusion if conclusion is None else replace(conclusion, news=[], texts=[])

    def _check(self, model: nn.Module, optimizer: Any, step: int, outputs: Sequence[Output]) -> Conclusion:
        trained = self._updated[id(optimizer)] = updated_by([optimizer])
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

    def _watch(self, model: nn.Module, optimizer: Any, step: int) -> None:
        """See at a step between two checks whether gradients are still zero where they were."""
        ledger, suspects = self._examiner.ledger, self._examiner.suspects
        if not suspects and not ledger.lacks_gradients:
            return
        known = self._updated.get(id(optimizer))
        trained = updated_by([optimizer]) if known is None else known
        ledger.watch(trained)
        if not suspects:
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
        """Look and conclude; if the model is sharded, on the first rank only."""
        found = find()
        is_first = self.report is None
        if is_first:
            self._warn_of_what_is_not_looked_at(found)
        updates = Updates(self._present_optimizers())
        report, looks, news = self._examiner.examine(
            model, found, trained=trained, updates=updates, step=step, team=self._team
        )
        if is_first and self.options.on_symmetry != "ignore":
            self._tell_of_copies(report)
        self._tell_of_idle_units(report)
        if self._is_speaking and outputs:
            self._delivery.write(outputs, report, self.findings, looks)
        state = {} if self._team is None else self._examiner.state_dict()
        return Conclusion(report, news, messages(news, report), state)

    def _follow(self, conclusion: Conclusion) -> None:
        self._examiner.follow(conclusion.report, conclusion.state)

    def _follow_state(self, state: dict[str, Any]) -> None:
        self._examiner.follow(self.report, state)
        self._schedule.load(state["num_steps"])

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

    def _tell_of_idle_units(self, report: SymmetryReport) -> None:
        """Say of each layer once why units of it have no gradient that are not to blame for it."""
        if self.options.on_symmetry == "ignore":
            return
        idle = [
            (layer, group)
            for layer in report.distinct_layers
            for group in layer.groups
            if group.verdict is Verdict.IDLE
        ]
        news = {layer.name: layer for layer, group in idle if (layer.name, group.code) not in self._known_idle}
        for text in idle_texts(news.values()):
            self._tell(text)
        self._known_idle |= {(layer.name, group.code) for layer, group in idle}

    def _leave_out(self, layer: Comparable, reason: str) -> None:
        self._warn(f"{self._who} leaves out {layer.name}: {reason}. Training goes on.")


def _imprint_of(model: nn.Module) -> Imprint | None:
    """Return what compares a model with those of other ranks; None where ranks hold parts or copies by design."""
    is_known = is_replicated(model) or team_of(model) is not None
    return None if is_known or dist.get_world_size() == 1 else Imprint(model)
