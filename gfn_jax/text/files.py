"""Text files that a person brings: what cannot be read is said with the file's name."""

import os
import pathlib


def read_text(path: str | os.PathLike) -> str:
    """A UTF-8 file, with or without a byte order mark.

    Raises:
        OSError: it is not there, or may not be read.
        ValueError: it is not UTF-8.
    """
    try:
        return pathlib.Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, byte {error.start}: not UTF-8 text") from None


def read_lines(path: str | os.PathLike) -> list[str]:
    r"""The lines of a UTF-8 file, which "\n" and "\r\n" end: U+2028, a form feed and their like are text.

    Raises:
        OSError, ValueError: as `read_text`.
    """
    return read_text(path).split("\n")
