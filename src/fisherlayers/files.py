"""Writing files so that at no time a half-written one stands in its place."""

import secrets
import stat
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file, all or nothing; missing parents are made.

    A link stays one: the file that it names is replaced. What is no regular file, such as /dev/stdout, is written to.

    Args:
        path: replaced if it exists, with the mode that it has.
        content: its bytes, or text that is written as UTF-8.
    """
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
