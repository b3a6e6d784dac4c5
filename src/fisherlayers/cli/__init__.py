"""The command ``fisherlayers``. Heavy imports happen inside the commands, so that the help appears at once."""

import contextlib
import os
import sys
from typing import Annotated

import typer

from fisherlayers import __version__
from fisherlayers.cli import demo, evaluate, evidence, fit, predict, race
from fisherlayers.cli.errors import INTERRUPTED, USER_ERROR
from fisherlayers.cli.streams import prepare_streams

HELP = """Fisher layers: classify images by Deep Fisher Networks, and train networks by natural gradient.

\b
Examples:
  fisherlayers fit flowers/train -o flowers-model
  fisherlayers predict flowers-model photo.jpg
  fisherlayers evaluate flowers-model flowers/test
  fisherlayers evidence flowers-model photo.jpg -o evidence
  fisherlayers race --task digits
  fisherlayers demo

Exit codes: 0 done, 2 something to put right (one message says what), 130 interrupted.
"""

app = typer.Typer(
    name="fisherlayers",
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
app.command(help=fit.HELP)(fit.fit)
app.command(help=predict.HELP)(predict.predict)
app.command(help=evaluate.HELP)(evaluate.evaluate)
app.command(help=evidence.HELP)(evidence.evidence)
app.command(help=race.HELP)(race.race)
app.command(help=demo.HELP)(demo.demo)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fisherlayers {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command line.

    After an error or Ctrl-C the process ends at once: worker threads may still be computing, and nobody waits for them.

    Raises:
        SystemExit: the exit code of a command that ended otherwise.
    """
    # Read once, when torch is imported: waiting threads that spin make a busy machine many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare_streams()
    try:
        app()
    except KeyboardInterrupt:  # outside a command
        code = INTERRUPTED
    except SystemExit as end:
        if end.code not in {USER_ERROR, INTERRUPTED}:
            raise
        code = int(end.code)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(code)
