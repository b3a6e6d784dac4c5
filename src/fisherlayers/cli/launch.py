"""The processes of a `torchrun`: found by the environment that it sets, heard as one."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from fisherlayers.cli.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

LONGEST_WAIT: Final = timedelta(days=7)
"""While the first process solves or saves, the others wait for it."""


@contextlib.contextmanager
def started_processes() -> "Iterator[tuple[ProcessGroup | None, bool]]":
    """Join the processes that `torchrun` started; all but the first are silent, save for their errors.

    Yields:
        Their group, None for a process on its own, and whether this is the first process.
    """
    size = _whole_number("WORLD_SIZE", "the number of processes", 1)
    rank = _whole_number("RANK", "the number of this one, from 0", 0)
    if size in {None, 1} or rank is None:
        yield None, True
    else:
        from torch import distributed

        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        try:
            with contextlib.ExitStack() as silence:
                is_first = distributed.get_rank() == 0
                if not is_first:
                    nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
                    silence.enter_context(contextlib.redirect_stdout(nowhere))
                    silence.enter_context(contextlib.redirect_stderr(nowhere))
                yield distributed.group.WORLD, is_first
        finally:
            distributed.destroy_process_group()


def _whole_number(name: str, meaning: str, least: int) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal() or int(value) < least:
        raise UserError(
            f"the environment variable {name} must be a whole number of at least {least}, got {value!r}: torchrun sets "
            f"it to {meaning}; start the command by torchrun, or unset {name}"
        )
    return int(value)
