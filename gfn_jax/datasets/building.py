"""Building a TFDS data set once: aside, without TensorFlow, and moved into place whole."""

import contextlib
import errno
import io
import os
import pathlib
import tempfile
from collections.abc import Callable

import tensorflow_datasets as tfds


def cache_root() -> pathlib.Path:
    """Where what can be made again is kept: `$GFN_JAX_CACHE`, or ~/.cache/gfn_jax."""
    root = os.environ.get("GFN_JAX_CACHE")
    return pathlib.Path(root) if root else pathlib.Path.home() / ".cache" / "gfn_jax"


def default_cache() -> pathlib.Path:
    """Where data sets are kept: the folder tfds of `cache_root()`."""
    return cache_root() / "tfds"


def build_once(
    make_builder: Callable[[str], tfds.core.DatasetBuilder],
    folder: pathlib.Path,
    manual_dir: pathlib.Path | None = None,
) -> None:
    """Leaves the built data set in `folder`; of two processes that race, either one's result stands.

    Args:
        make_builder: the builder, given the `data_dir` to build in; its file format must be array_record.
        folder: where the data set is found again.
        manual_dir: the files that the user brought.
    """
    if (folder / "dataset_info.json").is_file():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        builder = make_builder(aside)
        config = tfds.download.DownloadConfig(manual_dir=manual_dir)
        quiet = io.StringIO()  # seconds of work need no progress bars
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            builder.download_and_prepare(download_config=config)
        try:
            os.rename(builder.data_path, folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first
                raise
