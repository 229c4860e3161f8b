"""What a report is made of, as one file beside it: unpacked in a workdir, its jobs need not be run again.

    mkdir -p runs/reproduce && tar -xf OUT/jobs.tar.xz -C runs/reproduce

Numbers and samples are in it, adapters and checkpoints are not: a job that starts with another one's adapter can be
reported from it, but not run.
"""

import io
import tarfile
from collections.abc import Sequence

from gfn_jax.evaluation.report import QUESTIONS, RESULTS, SAMPLES
from gfn_jax.studies.plan import RECORD
from gfn_jax.studies.section import WORKDIR
from gfn_jax.studies.study import Results

NAME = "jobs.tar.xz"
KEPT = (RECORD, RESULTS, QUESTIONS, SAMPLES)


def packed(results: Results) -> bytes:
    """The files of finished jobs that a report reads; equal files make equal bytes, wherever the jobs ran."""
    found = io.BytesIO()
    with tarfile.open(fileobj=found, mode="w:xz") as archive:
        for name, one in sorted(results.items()):
            for file in (file for file in KEPT if (one.folder / file).exists()):
                workdir = workdir_of(name, one.job["arguments"])
                text = (one.folder / file).read_text(encoding="utf-8").replace(workdir, WORKDIR).encode()
                entry = tarfile.TarInfo(f"{name}/{file}")
                entry.size = len(text)
                archive.addfile(entry, io.BytesIO(text))
    return found.getvalue()


def workdir_of(job: str, arguments: Sequence[str]) -> str:
    """The workdir of all jobs, of what one was run with."""
    return arguments[-1].removeprefix("--workdir=").removesuffix(f"/{job}")
