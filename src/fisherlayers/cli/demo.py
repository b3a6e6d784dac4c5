"""``fisherlayers demo``: both halves on real data, and a report."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from fisherlayers.cli.errors import Debug, UserError, guarded

HELP: Final = """Run both halves on real data.

Optimizers race plain and reconstructed, and a Deep Fisher Network meets baselines.
It prints tables and writes index.html, one self-contained file with figures.

\b
Examples:
  fisherlayers demo
  fisherlayers demo --quick -o quick-report
  fisherlayers demo --data fashion-mnist --download
"""


class Data(StrEnum):
    """What the images of the demo are."""

    TEXTURES = "textures"
    FASHION_MNIST = "fashion-mnist"


@guarded
def demo(
    data: Annotated[Data, typer.Option(help="textures needs no download.")] = Data.TEXTURES,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the report goes.")] = Path(
        "demo-report"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small run that shows how it looks, not what it reaches.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch Fashion-MNIST from its public server to your cache first.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Run the demo.

    Raises:
        UserError: a download for data that needs none.
    """
    if download and data is not Data.FASHION_MNIST:
        raise UserError("--download is for --data fashion-mnist: the other data need none")
    from fisherlayers.cli.output import check_writable

    check_writable(output)
    from fisherlayers.cli.console import Stages
    from fisherlayers.data import FASHION_MNIST
    from fisherlayers.demo import run_demo

    if download:
        with Stages("download ") as stages:
            FASHION_MNIST.download(progress=lambda name, done, total: stages("Fashion-MNIST", done, total))
    run_demo(data=data.value, output=output, quick=quick)
