"""``fisherlayers predict``: classify images by a saved model."""

import csv
import json
import sys
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from fisherlayers.cli.errors import Debug, Images, Jobs, UserError, guarded

HELP: Final = """Classify images.

Unreadable images are reported and the others still classified; the exit code is then 2.

\b
Examples:
  fisherlayers predict flowers-model photo.jpg
  fisherlayers predict flowers-model *.jpg --top 1 --csv > predictions.csv
  fisherlayers predict flowers-model photo.jpg --json
"""


class Answer(NamedTuple):
    """An image and its most probable classes, the first first, with their probabilities."""

    image: str
    ranking: list[tuple[str, float]]


@guarded
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder that fit wrote.")],
    images: Images,
    top: Annotated[int, typer.Option(min=1, help="Classes to show for each image, the most probable first.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV: image,rank,class,probability.")] = False,
    jobs: Jobs = -1,
    debug: Debug = False,
) -> None:
    """Print the most probable classes of each image.

    Raises:
        UserError: two formats are asked for, or images are unreadable.
    """
    if as_json and as_csv:
        raise UserError("--json and --csv exclude each other: choose one")
    import numpy as np

    from fisherlayers.cli.image_inputs import by_parts, read_images
    from fisherlayers.fisher_vectors import DeepFisherNetwork

    network = DeepFisherNetwork.load(model)
    network.n_jobs = jobs
    reading = read_images(images)
    answers = []
    if reading.images:
        probabilities = by_parts(network.predict_proba, reading.images)
        for position, row in zip(reading.kept, probabilities, strict=True):
            order = np.argsort(-row, kind="stable")[:top]
            ranking = [(str(network.classes_[index]), float(row[index])) for index in order]
            answers.append(Answer(str(images[position]), ranking))
    (_print_json if as_json else _print_csv if as_csv else _print_table)(answers)
    if reading.problems:
        raise UserError("\n  ".join([f"unreadable images: {len(reading.problems)}", *reading.problems]))


def _print_json(answers: list[Answer]) -> None:
    records = [
        {"image": image, "classes": [{"class": name, "probability": share} for name, share in ranking]}
        for image, ranking in answers
    ]
    typer.echo(json.dumps(records, indent=1))


def _print_csv(answers: list[Answer]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["image", "rank", "class", "probability"])
    for image, ranking in answers:
        writer.writerows([image, rank, name, f"{share:.6f}"] for rank, (name, share) in enumerate(ranking, 1))


def _print_table(answers: list[Answer]) -> None:
    from fisherlayers.cli.output import show_table

    if answers:
        ranks = [f"{rank}." for rank in range(1, len(answers[0].ranking) + 1)]
        rows = [[image, *(f"{name} {100 * share:.1f} %" for name, share in ranking)] for image, ranking in answers]
        show_table(["image", *ranks], rows)
