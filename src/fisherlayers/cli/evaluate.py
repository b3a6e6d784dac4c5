"""``fisherlayers evaluate``: the accuracy of a saved model on labelled images."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from fisherlayers.cli.errors import Debug, Jobs, UserError, guarded

HELP: Final = """Compare a model's predictions with the labels.

Prints the accuracy, the class-mean accuracy, and a table of the classes. The labels must be classes of the model;
not every class of the model needs images.

\b
Examples:
  fisherlayers evaluate flowers-model flowers/test
  fisherlayers evaluate flowers-model test.csv --json > evaluation.json
"""

_LARGEST_PRINTED: Final = 12


@dataclass(frozen=True)
class ClassRates:
    """How one class fares.

    Attributes:
        name: of the class.
        images: how many belong to it.
        recall: share of them that is recognised; None without images.
        precision: share of the predictions of this class that is right; None without predictions.
        most_confused_with: the class most often predicted instead; None without errors.
    """

    name: str
    images: int
    recall: float | None
    precision: float | None
    most_confused_with: str | None


@dataclass(frozen=True)
class Evaluation:
    """A model on labelled images; what ``--json`` prints.

    Attributes:
        images: how many.
        accuracy: share of right predictions.
        class_mean_accuracy: mean recall of the classes that have images.
        classes: the rates of each class.
        confusion: (C, C) counts; rows are actual classes, columns predicted ones.
    """

    images: int
    accuracy: float
    class_mean_accuracy: float
    classes: list[ClassRates]
    confusion: list[list[int]]


@guarded
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder that fit wrote.")],
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER_OR_CSV", help="A folder of class folders, or a CSV table path,label.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the confusion matrix.")] = False,
    jobs: Jobs = -1,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave unreadable images out instead of stopping.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Print the evaluation of a model.

    Raises:
        UserError: labels that the model does not know.
    """
    from fisherlayers.cli.image_inputs import by_parts, list_images, read_labelled

    listed = list_images(source, min_classes=1)
    from fisherlayers.fisher_vectors import DeepFisherNetwork

    network = DeepFisherNetwork.load(model)
    network.n_jobs = jobs
    classes = [str(name) for name in network.classes_]
    if unknown := [name for name in listed.classes if name not in classes]:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise UserError(f"{source} has labels that the model does not know: {shown}; it knows {', '.join(classes)}")
    images, names, _ = read_labelled(listed, skip_unreadable=skip_unreadable)
    predicted = [str(name) for name in by_parts(network.predict, images)]
    evaluation = compare(names.tolist(), predicted, classes)
    if as_json:
        typer.echo(json.dumps(asdict(evaluation), indent=1))
    else:
        _print_tables(evaluation)


def compare(actual: Sequence[str], predicted: Sequence[str], classes: Sequence[str]) -> Evaluation:
    """Compare predictions with labels.

    Args:
        actual: the label of each image, at least one.
        predicted: the prediction for each.
        classes: all names that may occur, in the order of the result.

    Returns:
        The counts and rates.
    """
    position = {name: index for index, name in enumerate(classes)}
    confusion = [[0] * len(classes) for _ in classes]
    for truth, guess in zip(actual, predicted, strict=True):
        confusion[position[truth]][position[guess]] += 1
    rates = [_class_rates(index, confusion, classes) for index in range(len(classes))]
    recalls = [rate.recall for rate in rates if rate.recall is not None]
    right = sum(confusion[index][index] for index in range(len(classes)))
    return Evaluation(len(actual), right / len(actual), sum(recalls) / len(recalls), rates, confusion)


def _class_rates(index: int, confusion: list[list[int]], classes: Sequence[str]) -> ClassRates:
    row, right = confusion[index], confusion[index][index]
    images, guesses = sum(row), sum(other[index] for other in confusion)
    wrong = {name: count for name, count in zip(classes, row, strict=True) if count and name != classes[index]}
    return ClassRates(
        name=classes[index],
        images=images,
        recall=right / images if images else None,
        precision=right / guesses if guesses else None,
        most_confused_with=max(wrong, key=wrong.__getitem__, default=None),
    )


def _print_tables(evaluation: Evaluation) -> None:
    from fisherlayers.cli.output import show_table

    rates = evaluation.classes
    show_table(
        ["class", "images", "recall", "precision", "most confused with"],
        [
            [
                rate.name,
                str(rate.images),
                _percent(rate.recall),
                _percent(rate.precision),
                rate.most_confused_with or "",
            ]
            for rate in rates
        ],
    )
    if len(rates) <= _LARGEST_PRINTED:
        typer.echo("confusion: rows are actual classes, columns predicted ones in the same order")
        rows = enumerate(zip(rates, evaluation.confusion, strict=True), 1)
        show_table(
            ["", *(str(number) for number in range(1, len(rates) + 1))],
            [[f"{number}. {rate.name}", *map(str, counts)] for number, (rate, counts) in rows],
        )
    typer.echo(f"images               {evaluation.images}")
    typer.echo(f"accuracy             {_percent(evaluation.accuracy)}")
    typer.echo(f"class-mean accuracy  {_percent(evaluation.class_mean_accuracy)}")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
