"""The processes of a `torchrun`: found by the environment that it sets, heard as one."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Final

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
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
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
