"""``fisherlayers fit``: learn a Deep Fisher Network from labelled images."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from fisherlayers.cli.errors import Debug, Jobs, guarded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HELP: Final = """Learn to classify images from a folder of class folders or a CSV table.

Grey and colour images of different sizes may be mixed. The model is saved as safetensors and JSON, all or nothing.

\b
Examples:
  fisherlayers fit flowers/train -o flowers-model
  fisherlayers fit labels.csv -o model --depth 1 --validation 0.1
  fisherlayers fit photos -o model --preset paper --jobs 4 --no-refit
  fisherlayers fit many -o model --memory 4GB --workspace finished
  torchrun --nproc-per-node 2 -m fisherlayers fit many -o model --jobs 1
"""


class Preset(StrEnum):
    """The presets of `DeepFisherNetwork`."""

    AUTO = "auto"
    PHOTOS = "photos"
    SMALL = "small"
    PAPER = "paper"


@guarded
def fit(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER_OR_CSV", help="A folder of class folders, or a CSV table path,label.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="MODEL", help="The model folder to write.")],
    depth: Annotated[
        int, typer.Option(min=1, max=5, help="Fisher layers: 1 is the shallow Fisher vector, 2 the deep network.")
    ] = 2,
    components: Annotated[
        int | None, typer.Option(min=1, help="Components of each layer's mixture; the preset's if not given.")
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(help="Settings for a kind of images; auto goes by their size."),
    ] = Preset.AUTO,
    validation: Annotated[
        float,
        typer.Option(min=0.0, max=0.9, help="Share of the images held out to estimate the accuracy; 0 for none."),
    ] = 0.2,
    refit: Annotated[
        bool, typer.Option(help="After the estimate, fit again on all images; otherwise save the first model.")
    ] = True,
    seed: Annotated[
        int,
        typer.Option(min=0, max=2**32 - 1, help="Of every random choice; the same seed gives the same model."),
    ] = 0,
    balanced: Annotated[
        bool, typer.Option("--balanced", help="Let classes weigh the same, however many images each has.")
    ] = False,
    jobs: Jobs = -1,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Memory for what grows with the images, such as 4GB; more goes to disk."),
    ] = None,
    workspace: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Keep finished work here: after a crash or Ctrl-C, the same command goes on from it. Remove it later.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Where encodings are computed, as PyTorch names it.")] = "cpu",
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave unreadable images out instead of stopping.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Fit, estimate the accuracy, and save."""
    started = time.perf_counter()
    from fisherlayers.cli.output import check_model_place, check_writable

    check_model_place(output, source)
    if workspace is not None:
        check_writable(workspace)
    import numpy as np

    from fisherlayers.cli.console import Stages
    from fisherlayers.cli.image_inputs import by_parts, list_images, read_labelled
    from fisherlayers.cli.launch import started_processes

    with started_processes() as (group, is_first):
        images, names, classes = read_labelled(list_images(source, min_classes=2), skip_unreadable=skip_unreadable)
        from scipy.stats import binomtest

        from fisherlayers.fisher_vectors import DeepFisherNetwork

        def train(members: "NDArray[np.intp]", prefix: str = "") -> DeepFisherNetwork:
            model = DeepFisherNetwork(
                depth=depth,
                components=components,
                preset=preset.value,
                class_weight="balanced" if balanced else None,
                random_state=seed,
                n_jobs=jobs,
                memory=memory,
                workspace=workspace,
                device=device,
            )
            with Stages(prefix) as stages:
                chosen = [images[index] for index in members]
                return model.fit(chosen, names[members], progress=stages, process_group=group)

        everything = np.arange(len(names))
        held_out = hold_out(names, validation, seed)
        used, estimate = everything, "not estimated"
        if len(held_out):
            prefix = "estimate: " if refit else ""
            used = np.setdiff1d(everything, held_out)
            model = train(used, prefix)
            if is_first:
                predicted = by_parts(model.predict, [images[index] for index in held_out], prefix=prefix)
                right = predicted == names[held_out]
                low, high = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
                interval = f"95 % interval {_percent(low)} to {_percent(high)}, {len(right)} held out"
                estimate = f"{_percent(right.mean())} ({interval})"
        elif validation:
            typer.echo("note: the classes have too few images to hold any out; the accuracy is not estimated", err=True)
        if refit or not len(held_out):
            used, model = everything, train(everything)
        if is_first:
            output.absolute().parent.mkdir(parents=True, exist_ok=True)
            model.save(output)
        typer.echo(f"classes   {len(classes)}")
        typer.echo(f"images    {len(used)}")
        typer.echo(f"accuracy  {estimate}")
        typer.echo(f"time      {time.perf_counter() - started:.1f} s")
        typer.echo(f"model     {output}")


def hold_out(names: "NDArray[np.str_]", share: float, seed: int) -> "NDArray[np.intp]":
    """Choose images to hold out: the same share of every class, rounded, and never a class's last two images.

    Args:
        names: (n,) class of each image.
        share: in [0, 1).
        seed: of the choice.

    Returns:
        Sorted positions.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    chosen = [np.empty(0, np.intp)]
    for name in np.unique(names):
        members = generator.permutation(np.flatnonzero(names == name))
        chosen.append(members[: min(round(share * len(members)), max(0, len(members) - 2))])
    return np.sort(np.concatenate(chosen))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
