"""A race's loss curves. Imported apart from the package, as it needs the extra `report`."""

import statistics

from fisherlayers.race.results import Race, Run
from fisherlayers.report import Curve, Picture, curves


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
