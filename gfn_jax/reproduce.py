r"""The paper's tables and figures by one command: every job that they need, and a report of what came out.

    python -m gfn_jax.reproduce --list                                  # what would run, in seconds and gigabytes
    python -m gfn_jax.reproduce --what=table4,fig3 --seeds=0,1,2 --workdir=runs/reproduce
    python -m gfn_jax.reproduce --what=all --seeds=0,1,2                # also goes on with what was interrupted

What is finished and still belongs to its config is used again, what is missing is run, as many jobs at once as there
are cores. One that fails is named, and the others go on. The report (Markdown, CSV, figures, one HTML page) is of what
is there in the end, also after Ctrl-C or SIGTERM, which have the jobs save and stop; a second one stops them at once.

Every job's folder WORKDIR/JOB has its output.txt, its results.json and job.json: what was run, how long, in how much
memory. Where the config of a job has changed, its old folder is moved to WORKDIR/.aside, and found there again if the
change is taken back.

--preset=paper is the same with the paper's models and data: it needs accelerators, and nobody has run it as a whole.

What is wrong with the command or a job's arguments ends in one line `error: ...` and exit code 2, before anything runs;
if a job failed the exit code is 1, after a signal 128 + its number. --debug shows tracebacks, and so does
GFN_JAX_DEBUG=1.
"""

import sys

from gfn_jax.commands import reproduce


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return reproduce.main(argv or sys.argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
