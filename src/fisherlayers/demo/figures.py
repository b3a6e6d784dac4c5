"""The demo's figures: a race's loss curves, accuracies, and test images with predictions."""

import statistics

from fisherlayers.data import TrainTest
from fisherlayers.demo.contest import Entry, choose_shown
from fisherlayers.race import Race, Run
from fisherlayers.report import Curve, Picture, bars, curves, image_grid


def race_picture(race: Race) -> Picture:
    """Draw the training loss of each method against steps and seconds, the median over its seeds.

    Args:
        race: its runs; diverged ones are left out.

    Returns:
        Two panels; plain methods are dashed.
    """
    finished = {method: [run for run in race.of(method) if not run.diverged] for method in race.methods}
    by_step = [_median_curve(runs, seconds=False) for runs in finished.values() if runs]
    by_second = [_median_curve(runs, seconds=True) for runs in finished.values() if runs]
    svg = curves({"by steps": by_step, "by time": by_second}, xlabel=["steps", "seconds"], ylabel="training loss")
    return Picture(
        svg,
        alt=f"Training loss of {', '.join(race.methods)} against steps and against seconds",
        caption=f"Loss over all training examples on {race.title}; median of the seeds. Dashed: the plain optimizer.",
    )


def _median_curve(runs: list[Run], *, seconds: bool) -> Curve:
    rows = list(zip(*(run.points for run in runs), strict=True))
    x = [statistics.median(point.seconds if seconds else point.step for point in row) for row in rows]
    y = [statistics.median(point.train_loss for point in row) for row in rows]
    return Curve(runs[0].method, x, y, runs[0].base, dashed=not runs[0].reconstructed)


def accuracy_picture(entries: list[Entry]) -> Picture:
    """Draw the test accuracies, the first contender's bar standing out.

    Args:
        entries: the network's first.

    Returns:
        Bars.
    """
    svg = bars(
        {entry.name: round(entry.accuracy, 1) for entry in entries},
        xlabel="test accuracy (%)",
        highlight=[entries[0].name],
        limits=(0, 100),
    )
    return Picture(svg, alt="Test accuracy of " + ", ".join(f"{entry.name} {entry.accuracy:.1f}" for entry in entries))


def prediction_picture(entry: Entry, data: TrainTest, *, shown: int = 24) -> Picture:
    """Draw test images with the predicted class above each.

    Args:
        entry: whose predictions.
        data: the images and the class names.
        shown: how many images.

    Returns:
        A grid: right answers first, then mistakes.
    """
    chosen = choose_shown(entry.predicted, data.test_labels, shown=shown)
    svg = image_grid(
        [data.test_images[index] for index in chosen],
        [data.classes[entry.predicted[index]] for index in chosen],
        [data.classes[data.test_labels[index]] for index in chosen],
    )
    return Picture(
        svg,
        alt=f"{len(chosen)} test images with the class that the {entry.name} gives each",
        caption="Test images with the predicted class; mistakes last, in red, with the right class in brackets.",
    )
