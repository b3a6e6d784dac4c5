"""From exceptions to exit codes: 2 with one message for what the user can put right, 130 for Ctrl-C."""

import contextlib
import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Final, ParamSpec

import typer

Parameters = ParamSpec("Parameters")


def _check_jobs(jobs: int) -> int:
    if jobs == 0:
        raise typer.BadParameter("0 threads do no work: give 1 or more, or -1 for all cores")
    return jobs


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
# Whether they can be read is seen image by image: one that cannot must not keep the others.
Images = Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.", readable=False)]
Jobs = Annotated[int, typer.Option(callback=_check_jobs, help="Threads over images; -1 for all cores.")]

USER_ERROR: Final = 2
INTERRUPTED: Final = 130


class UserError(Exception):
    """Something that the user can put right; the message says what was found and what to do."""


def guarded(command: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Make a command end with an exit code and one message instead of a traceback.

    Errors of values, files, memory and missing extras are the user's to put right; every other exception is a bug and
    keeps its traceback. With ``--debug`` the former show theirs too. Warnings become one line each.

    Args:
        command: has the parameter `debug`.

    Returns:
        The command with the same parameters.
    """

    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _show_warning
                command(*args, **kwargs)
            sys.stdout.flush()
        except KeyboardInterrupt as interrupt:
            kept = (
                f"finished work is kept in {kwargs['workspace']}" if kwargs.get("workspace") else "nothing was written"
            )
            typer.echo(f"\ninterrupted; {str(interrupt) or kept}", err=True)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:  # the reader, such as head, has seen enough
            raise
        except (UserError, ValueError, OSError, ImportError, MemoryError) as error:
            _drop_unwritable_output()
            if kwargs.get("debug"):
                raise
            typer.echo(f"error: {_message(error)}", err=True)
            raise typer.Exit(USER_ERROR) from None
        except RuntimeError as error:
            if "allocate memory" not in str(error) or kwargs.get("debug"):  # torch's way to say it
                raise
            typer.echo(f"error: {_message(MemoryError())}", err=True)
            raise typer.Exit(USER_ERROR) from None

    return run


def _message(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "the memory does not suffice: fewer --components, fewer --jobs or smaller images need less"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error) or type(error).__name__


def _drop_unwritable_output() -> None:
    """Send the rest of the output nowhere if it cannot be written, so that its failure is reported once."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {message}", err=True)
