"""What the six races share: contenders, budget, command line, figures and the result file.

Contenders: SGD, AdamW and Muon, plain and reconstructed with the library's defaults; SOAP, Shampoo, PSGD-Kron and
K-FAC with the settings that their authors recommend (`fisherlayers.race.PEERS`). Every method tries as many learning
rates, one drawn at random from each equal part of its logarithmic range, on half of the steps and a seed of its own;
the lowest validation loss decides. Then every method runs on three other seeds with the full number of steps, and with
a third of them (a user who is content with AdamW's loss plans a shorter run); the learning rate falls linearly to zero
over the run. A run that has taken the seconds of AdamW's run of the same seed before its last step ends there, and its
schedule with it: methods with dear steps take fewer (in the search, where half of the seconds would be too few for
them, 1.5 times as many).

Target: the validation loss with which AdamW's full run of the same seed ends. Steps and seconds until an evaluation (a
full run has 48) is as low, over AdamW's own, median over the seeds; a method is judged on the horizon on which it
arrives soonest. Seeds that never arrive are counted; where most do not, the ratio is null. Figures named "training
loss" take that instead. "Ours" and "best peer" are each the best of their side, found on the same runs; "steps over
best peer" is for the base optimizer of our soonest, or where no rival of that base arrives, the worst of the others.
Seconds are CPU seconds of training steps on one thread, contenders in turn, evaluation excluded; a step's
preconditioner updates count where they happen.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Figure, command_line, write_results
from fisherlayers.race import CONTENDERS, Contest, Journal, Method, Organizer, Plan, Run, load_task, make_method
from fisherlayers.race.contest import effective_options
from fisherlayers.race.verdict import Measure, Standing, best, standings

OURS = ("SGD", "AdamW", "Muon")
PEERS = ("SGD", "AdamW", "Muon", "SOAP", "Shampoo", "PSGD-Kron", "K-FAC")
MEASURES: dict[str, Measure] = {"": "validation_loss", ", training loss": "train_loss"}
BUDGET: dict[str, Any] = {"trial_share": 0.5, "evaluations": 48, "trial_evaluations": 16}
FLOOR = 1e-2
"""Losses below this, in nats, are no further progress."""


def contenders(*, left_out: Sequence[str] = ()) -> list[Method]:
    """Return the peers and ours, but for those named in ``left_out``."""
    methods = [make_method(base) for base in PEERS] + [make_method(base, reconstructed=True) for base in OURS]
    return [method for method in methods if method.name not in left_out]


def main(name: str, task_name: str, *, steps: int, left_out: Sequence[str] = (), notes: str = "") -> None:
    """Run a race from the command line, or the part of it that is asked for, and write its result file.

    Args:
        name: of the benchmark.
        task_name: a key of `fisherlayers.race.TASKS`.
        steps: of a full run.
        left_out: contenders that do not run here.
        notes: why, and what else is particular to this race.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=steps, help=f"steps of a full run (default: {steps})")
    parser.add_argument("--trials", type=int, default=3, help="learning rates a method (default: 3)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method and horizon (default: 3)")
    parser.add_argument("--journal", type=Path, help="file that keeps finished runs: a stopped race goes on from it")
    parser.add_argument(
        "--search", metavar="METHOD", nargs="+", help="search these methods' learning rates (_ for a space), no more"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)

    methods = contenders(left_out=left_out)
    plan = Plan(chosen.steps, trials=chosen.trials, seeds=tuple(range(chosen.seeds)), **BUDGET)
    organizer = Organizer(load_task(task_name), plan, Journal(chosen.journal), on_run=tell)
    wanted = [name.replace("_", " ") for name in chosen.search or ()]
    if wanted:
        reference = make_method(plan.reference)
        for method in methods:
            if method.name in wanted:
                organizer.search(method, reference)
        return
    contest = organizer.race(methods)
    found = figures(contest)
    command = command_line().split(" --journal")[0]
    write_results(name, found, command=command, threads=1, details=describe(contest, methods, notes))
    for figure in found:
        value = "never" if figure.value is None else f"{figure.value:.3f}"
        print(f"{figure.name:50} {value:>10} {figure.unit}  {figure.spread or ''}")


def tell(run: Run) -> None:
    """Print one line about a run."""
    point = run.final
    print(
        f"{run.method:20} lr {run.learning_rate:<9.3g} seed {run.seed:<4} {point.step:>5} steps {point.seconds:7.1f} s "
        f"train {point.train_loss:.4f}  validation {point.validation_loss:.4f}  {point.validation_metric:.2f}"
        + ("  diverged" if run.diverged else ""),
        flush=True,
    )


def figures(contest: Contest) -> list[Figure]:
    """Return the figures of a contest: seconds and steps for both losses, the validation margin, who arrived."""
    found: list[Figure] = []
    for suffix, measure in MEASURES.items():
        found += _arrivals(contest, standings(contest, measure=measure, floor=FLOOR), suffix)
    table = standings(contest, floor=FLOOR)
    ours, peers = sides(table)
    first, second = best(ours, lambda entry: -entry.metric), best(peers, lambda entry: -entry.metric)
    spread = max(second.metrics) - min(second.metrics)
    seeds = contest.plan.seeds
    found.append(Figure("validation margin", first.metric - second.metric + spread, "points", None, seeds))
    found += [
        Figure(f"validation metric, {entry.method}", entry.metric, "%", (min(entry.metrics), max(entry.metrics)), seeds)
        for entry in table.values()
        if all(math.isfinite(metric) for metric in entry.metrics)
    ]
    found += [
        Figure(f"validation loss, {entry.method}", statistics.median(entry.losses), "nats", None, seeds)
        for entry in table.values()
        if all(math.isfinite(loss) for loss in entry.losses)
    ]
    return found


def sides(table: dict[str, Standing]) -> tuple[list[Standing], list[Standing]]:
    """Return the standings of the reconstructed methods, and of the others."""
    ours = [entry for entry in table.values() if entry.method.endswith(" reconstructed")]
    return ours, [entry for entry in table.values() if entry not in ours]


def _arrivals(contest: Contest, table: dict[str, Standing], suffix: str) -> list[Figure]:
    ours, peers = sides(table)
    seeds = contest.plan.seeds
    first = best(ours, lambda entry: entry.seconds_ratio)
    rival = best(peers, lambda entry: entry.seconds_ratio)
    fewest = best(ours, lambda entry: entry.steps_ratio)
    found = [
        _ratio(f"seconds over AdamW{suffix}", first.seconds_ratio, first.seconds, seeds),
        _ratio(f"steps over AdamW{suffix}", fewest.steps_ratio, fewest.steps, seeds),
        _ratio(f"seconds over best peer{suffix}", first.seconds_ratio / rival.seconds_ratio, (), seeds),
    ]
    by_base = {base: _same_base(table, base) for base in OURS if f"{base} reconstructed" in table}
    by_base = {base: value for base, value in by_base.items() if value > 0}  # where a rival arrives
    headline = by_base.get(first.method.removesuffix(" reconstructed"), max(by_base.values(), default=math.inf))
    found.append(_ratio(f"steps over best peer{suffix}", headline, (), seeds))
    found += [_ratio(f"steps over best peer, {base}{suffix}", value, (), seeds) for base, value in by_base.items()]
    for entry in table.values():
        found += [
            _ratio(f"seconds over AdamW, {entry.method}{suffix}", entry.seconds_ratio, entry.seconds, seeds),
            _ratio(f"steps over AdamW, {entry.method}{suffix}", entry.steps_ratio, entry.steps, seeds),
            Figure(f"arrived, {entry.method}{suffix}", entry.arrived, f"of {entry.seeds}", None, seeds),
        ]
    return found


def _same_base(table: dict[str, Standing], base: str) -> float:
    """Return the reconstructed base's steps over those of the best peer of the same base; 0 where no peer arrives."""
    rivals = [table[name].steps_ratio for name in PEERS if name in table and base in {name, CONTENDERS[name].builds_on}]
    best_rival = min(rivals)
    return 0.0 if math.isinf(best_rival) else table[f"{base} reconstructed"].steps_ratio / best_rival


def _ratio(name: str, value: float, values: Sequence[float], seeds: Sequence[int]) -> Figure:
    if not math.isfinite(value):
        return Figure(name, None, "x", None, seeds)
    spread = (min(values), max(values)) if values and math.isfinite(max(values)) else None
    return Figure(name, value, "x", spread, seeds)


def describe(contest: Contest, methods: Sequence[Method], notes: str) -> dict[str, Any]:
    """Return the protocol, the searches, the standings and the median curves, as JSON can hold them."""
    able = contest.races[1.0].methods
    return {
        "protocol": __doc__,
        "notes": notes,
        "task": contest.task,
        "metric": contest.races[1.0].metric_name,
        "batch_size": contest.races[1.0].batch_size,
        "plan": {
            "steps": contest.plan.steps,
            "trials": contest.plan.trials,
            "horizons": list(contest.plan.horizons),
            "most seconds over AdamW's": contest.plan.most_seconds,
        },
        "optimizers": {method.base: method.optimizer.settings for method in methods},
        "learning_rate_ranges": {method.base: method.optimizer.learning_rates for method in methods},
        "reconstruct": effective_options(make_method("SGD", reconstructed=True)),
        "steps": {name: statistics.median(run.final.step for run in contest.races[1.0].of(name)) for name in able},
        "searches": {
            name: [[trial.learning_rate, trial.validation_loss] for trial in tuning.trials]
            for name, tuning in contest.searches.items()
        },
        "horizons": {entry.method: entry.horizon for entry in standings(contest, floor=FLOOR).values()},
        "curves": {name: curve(contest.races[1.0].of(name)) for name in able},
    }


def curve(runs: Sequence[Run]) -> dict[str, list[float | None]]:
    """Return the median curves over the seeds of one method's full runs; None where a loss is not finite."""
    rows = list(zip(*(run.points for run in runs if not run.diverged), strict=False))
    read = {
        "steps": lambda point: point.step,
        "seconds": lambda point: point.seconds,
        "train_loss": lambda point: point.train_loss,
        "validation_loss": lambda point: point.validation_loss,
        "metric": lambda point: point.validation_metric,
    }
    return {
        name: [float(f"{statistics.median(get(point) for point in row):.5g}") for row in rows]
        for name, get in read.items()
    }
