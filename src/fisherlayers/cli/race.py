"""``fisherlayers race``: optimizers against their reconstructed selves on one task, with a live table and a figure."""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fisherlayers.cli.errors import Debug, UserError, guarded

if TYPE_CHECKING:
    from fisherlayers.race import Method, Race, Task

HELP: Final = """Race optimizers, each plain and on the reconstructed network (SNGD).

All start from the same weights and see the same batches. The table says in how many steps and seconds the
reconstructed run reaches the plain run's final training loss.

\b
Examples:
  fisherlayers race
  fisherlayers race --optimizer SGD --optimizer Adam --seeds 5 --tune 6
  fisherlayers race --task shakespeare --optimizer AdamW --tune 4
  fisherlayers race --task fashion-mnist -o fashion.svg --json fashion.json
"""


class TaskName(StrEnum):
    """The keys of `fisherlayers.race.TASKS`."""

    DIGITS = "digits"
    MNIST = "mnist"
    MNIST_TAPERED = "mnist-tapered"
    MNIST_NARROW = "mnist-narrow"
    MNIST_DEEP = "mnist-deep"
    FASHION_MNIST = "fashion-mnist"
    AUTOENCODER = "autoencoder"
    CIFAR10 = "cifar10"
    PTB = "ptb"
    SHAKESPEARE = "shakespeare"


class Optimizer(StrEnum):
    """The keys of `fisherlayers.race.CONTENDERS`."""

    SGD = "SGD"
    ADAM = "Adam"
    MUON = "Muon"
    ADAMW = "AdamW"
    SOAP = "SOAP"
    SHAMPOO = "Shampoo"
    PSGD_KRON = "PSGD-Kron"
    K_FAC = "K-FAC"


USUAL: Final = (Optimizer.SGD, Optimizer.ADAM, Optimizer.MUON)


@guarded
def race(
    task: Annotated[TaskName, typer.Option(help="What is trained; digits needs no download.")] = TaskName.DIGITS,
    optimizer: Annotated[
        list[Optimizer] | None,
        typer.Option(
            case_sensitive=False,
            help="May be repeated; SGD, Adam and Muon if not given. The last four need the extra 'bench'.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each method, from different initial weights.")] = 3,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps of a run; the task's if not given.")] = None,
    tune: Annotated[
        int, typer.Option(min=0, metavar="TRIALS", help="Learning rates to try for each method first; 0: usual ones.")
    ] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.svg", help="The figure.")] = Path("race.svg"),
    results: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Write every evaluation of every run.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Run the race, then write its figure and print its table.

    Raises:
        UserError: A file cannot be written, both would have one name, or the figure that of another format.
    """
    from fisherlayers.cli.output import check_file
    from fisherlayers.files import write_file

    if output.suffix.lower() not in {".svg", ""}:
        raise UserError(f"--output {output}: the figure is an SVG document, give a name that ends in .svg")
    check_file(output)
    if results is not None:
        check_file(results)
        if results.resolve() == output.resolve():
            raise UserError(f"--output and --json both name {output}: give two files")
    from fisherlayers import race as races
    from fisherlayers.cli.standings import Standings
    from fisherlayers.race.figures import race_picture

    contest = races.load_task(task.value)
    bases = list(dict.fromkeys(optimizer or USUAL))
    methods = [races.make_method(base.value, reconstructed=again) for base in bases for again in (False, True)]
    rates = tuned_learning_rates(contest, methods, trials=tune, steps=steps)
    with Standings(contest.metric_name) as standings:
        finished = races.run_race(
            contest, methods, seeds=range(seeds), steps=steps, learning_rates=rates, on_progress=standings
        )
    write_file(output, race_picture(finished).content)
    if results is not None:
        write_file(results, json.dumps(races.race_to_json(finished), allow_nan=False) + "\n")
    _print_summary(finished)
    typer.echo(f"figure  {output}")


def tuned_learning_rates(task: "Task", methods: "list[Method]", *, trials: int, steps: int | None) -> dict[str, float]:
    """Search the learning rate of each method with the same budget.

    Args:
        task: what is trained.
        methods: the contenders.
        trials: learning rates a method; 0 searches nothing.
        steps: of a run.

    Returns:
        Method name -> learning rate; empty without trials.

    Raises:
        UserError: every trial of a method diverged.
    """
    from fisherlayers.cli.console import Stages
    from fisherlayers.race import Trial, tune
    from fisherlayers.race.methods import rehearse

    rates: dict[str, float] = {}
    if trials:
        rehearse(task, methods, {method.name: method.optimizer.usual_rate(task.loss_scale) for method in methods})
        with Stages("tune ") as stages:
            for method in methods:
                done: list[Trial] = []

                def report(trial: Trial, done: list[Trial] = done, name: str = method.name) -> None:
                    done.append(trial)
                    stages(name, len(done), trials)

                tuning = tune(task, method, trials=trials, steps=steps, on_trial=report)
                if all(trial.validation_loss is None for trial in tuning.trials):
                    raise UserError(f"all {trials} trials of {method.name} diverged: give more by --tune")
                rates[method.name] = tuning.learning_rate
    return rates


def _print_summary(race: "Race") -> None:
    from fisherlayers.cli.output import show_table
    from fisherlayers.race import summarize

    rows = summarize(race)
    seeds = len({run.seed for run in race.runs})
    typer.echo(
        f"{race.title}: plain -> reconstructed, to the plain run's final training loss; "
        f"medians of {seeds} {'seed' if seeds == 1 else 'seeds'}"
    )
    show_table(
        ["optimizer", "loss", "steps", "ratio", "seconds", "ratio", race.metric_name],
        [
            [
                row.base,
                f"{row.loss:.3g}",
                _pair(row.plain_steps, row.steps, "g"),
                _ratio(row.steps_ratio),
                _pair(row.plain_seconds, row.seconds, ".2f"),
                _ratio(row.seconds_ratio),
                f"{row.plain_metric:.1f} -> {row.metric:.1f}",
            ]
            for row in rows
        ],
    )
    bases = dict.fromkeys(run.base for run in race.runs)
    if without := [base for base in bases if base not in {row.base for row in rows}]:
        typer.echo(f"no target, as no plain run ends lower than it began: {', '.join(without)}")
    if diverged := sorted({run.method for run in race.runs if run.diverged}):
        typer.echo(f"diverged at least once: {', '.join(diverged)}")


def _pair(plain: float, reconstructed: float, form: str) -> str:
    return f"{plain:{form}} -> " + (format(reconstructed, form) if math.isfinite(reconstructed) else "never")


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"
