"""What a report is made of, as one file beside it: unpacked in a workdir, its jobs need not be run again.

    mkdir -p runs/reproduce && tar -xf OUT/jobs.tar.xz -C runs/reproduce

Numbers and samples are in it, adapters and checkpoints are not: a job that starts with another one's adapter can be
reported from it, but not run.
"""

import io
import tarfile
from collections.abc import Callable

from gfn_jax.evaluation.report import QUESTIONS, RESULTS, SAMPLES
from gfn_jax.studies.plan import RECORD
from gfn_jax.studies.study import Results

NAME = "jobs.tar.xz"
KEPT = (RECORD, RESULTS, QUESTIONS, SAMPLES)


def packed(results: Results, written: Callable[[str], str]) -> bytes:
    """The files of finished jobs that a report reads; equal files make equal bytes.

    Args:
        results: of the jobs.
        written: what becomes of a file's text.
    """
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:xz") as archive:
        for name, one in sorted(results.items()):
            for file in KEPT:
                if (one.folder / file).exists():
                    text = written((one.folder / file).read_text(encoding="utf-8")).encode()
                    entry = tarfile.TarInfo(f"{name}/{file}")
                    entry.size = len(text)
                    archive.addfile(entry, io.BytesIO(text))
    return found.getvalue()
