"""Races: optimizers trained on one task from the same weights with the same batches, compared by steps and seconds."""

from fisherlayers.race.contest import Contest, Organizer, Plan
from fisherlayers.race.journal import Journal
from fisherlayers.race.methods import BASES, CONTENDERS, PEERS, Method, make_method
from fisherlayers.race.muon import Muon, orthogonalize
from fisherlayers.race.results import (
    Comparison,
    Point,
    Race,
    Run,
    compare,
    compare_pairs,
    race_from_json,
    race_to_json,
    seconds_to,
    steps_to,
)
from fisherlayers.race.runner import Progress, run_race, train
from fisherlayers.race.summary import Summary, summarize
from fisherlayers.race.tasks import TASKS, Examples, Task, load_task
from fisherlayers.race.tuning import Criterion, Trial, Tuning, draw_learning_rates, tune, tune_to_target
from fisherlayers.race.verdict import Standing, standings

__all__ = [
    "BASES",
    "CONTENDERS",
    "PEERS",
    "TASKS",
    "Comparison",
    "Contest",
    "Criterion",
    "Examples",
    "Journal",
    "Method",
    "Muon",
    "Organizer",
    "Plan",
    "Point",
    "Progress",
    "Race",
    "Run",
    "Standing",
    "Summary",
    "Task",
    "Trial",
    "Tuning",
    "compare",
    "compare_pairs",
    "draw_learning_rates",
    "load_task",
    "make_method",
    "orthogonalize",
    "race_from_json",
    "race_to_json",
    "run_race",
    "seconds_to",
    "standings",
    "steps_to",
    "summarize",
    "train",
    "tune",
    "tune_to_target",
]
