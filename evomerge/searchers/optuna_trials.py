"""The trials of an Optuna study that is asked and told in one process, kept as small as its sampler allows.

Optuna's ``InMemoryStorage`` copies a trial at each of its parameters, gives every trial distributions of its own and
never lets go of one, so that the cost of a trial grows with the square of its genes and with the trials before it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from datetime import datetime
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from evomerge.search_spaces.genes import Value


class _Trial(FrozenTrial):
    """A trial that is changed by its storage alone, so that it may stand for its copies."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Trial:
        return self


class AskedTrials(InMemoryStorage):
    """A storage of one study, whose sampler sees of its trials what it would see in Optuna's own.

    Args:
        genetic: the name of the sampler's class if it is one of Optuna's genetic ones, else None. Those never look at a
            trial that failed, nor at one of a generation before the newest that has a result, unless it is among the
            parents of that or a later one. So such trials are forgotten.
    """

    def __init__(self, genetic: str | None = None) -> None:
        super().__init__()
        self._genetic = genetic
        self._trials: dict[int, _Trial] = {}
        self._count = self._newest = 0
        self._finished: list[_Trial] = []  # since the last trial was asked

    def describe(self, number: int, params: dict[str, Value], distributions: dict[str, BaseDistribution]) -> None:
        """Give a trial its parameters; neither is copied."""
        self._trials[number].params, self._trials[number].distributions = params, distributions

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a running trial and return its id, which is its number."""
        if self._genetic is not None:
            self._forget(self._genetic)
        self._finished = []
        number, self._count = self._count, self._count + 1
        self._trials[number] = _Trial(
            number=number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=number,
        )
        return number

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Note what a sampler says of a trial."""
        self._trials[trial_id].system_attrs[key] = value

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Finish a trial."""
        trial = self._trials[trial_id]
        trial.state, trial.datetime_complete = state, datetime.now()
        if values is not None:
            trial.values = values
        self._finished.append(trial)
        return True

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial that is not forgotten."""
        return self._trials[trial_id]

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the number."""
        return trial_number

    def get_trial_number_from_id(self, trial_id: int) -> int:
        """Return the id."""
        return trial_id

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials that are not forgotten, in ask order."""
        if states == (TrialState.WAITING,):  # asked for before each trial, and there are none
            return []
        return [trial for trial in self._trials.values() if states is None or trial.state in states]

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        """Return the best trial of a study with one objective."""
        return BaseStorage.get_best_trial(self, study_id)

    def _forget(self, genetic: str) -> None:
        def generation(trial: FrozenTrial) -> int:
            return int(trial.system_attrs.get(f"{genetic}:generation", -1))

        gone = [t for t in self._finished if t.state != TrialState.COMPLETE or generation(t) < self._newest]
        newest = max((generation(t) for t in self._finished if t.state == TrialState.COMPLETE), default=0)
        if newest > self._newest:
            self._newest = newest
            attributes = self.get_study_system_attrs(0)
            parents = {
                number
                for key, numbers in attributes.items()
                if key.startswith(f"{genetic}:parent:") and int(key.rpartition(":")[2]) >= newest
                for number in numbers
            }
            finished = [trial for trial in self._trials.values() if trial.state.is_finished()]
            gone += [trial for trial in finished if generation(trial) < newest and trial.number not in parents]
        for trial in gone:
            self._trials.pop(trial.number, None)
