"""Standard streams that take whatever is printed: closed ones, and names that they cannot spell."""

import io
import os
import sys


def prepare_streams() -> None:
    """Make a closed stream lead nowhere, and let any file or class name be printed.

    Python has None for a stream that the caller closed, and prints what is meant for the error stream to the output.
    A file name that is not UTF-8 comes out with the bytes that it has; what another encoding lacks comes out escaped.
    """
    # In this order, the order of their numbers: an open file takes the lowest free one.
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115  (as long as the process)
    output = sys.stdout
    if isinstance(output, io.TextIOWrapper) and output.errors == "strict":
        unicode = output.encoding.lower().replace("-", "") == "utf8"
        output.reconfigure(errors="surrogateescape" if unicode else "backslashreplace")
