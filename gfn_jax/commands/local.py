"""Several processes of a command on this machine: `launch/local.py`, whose flags are described there."""

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from gfn_jax.commands import cli
from gfn_jax.errors import TrainingStopped
from gfn_jax.studies.pool import handling_signals

LAUNCH = "gfn_jax.launch"
EXAMPLE = "the command's own flags behind --, as in -- --config=configs/arith.py"
STOPPED = 128 + signal.SIGTERM
GRACE = 3.0  # seconds that the others have to end, once one has died, before SIGTERM and then before SIGKILL
LOOK = 0.1  # seconds between two looks at the processes


@dataclasses.dataclass(frozen=True)
class Line:
    """What a command line asks for.

    Attributes:
        processes, devices: how many, and virtual CPU devices of each.
        module: the command, as in `python -m`.
        words: its own command line.
        help: the flags for `--help`, where that is asked for.
    """

    processes: int
    devices: int
    module: str
    words: tuple[str, ...]
    help: str | None = None

    def get_help(self) -> str:
        """The flags."""
        return self.help or ""


def main(argv: list[str], doc: str | None) -> int:
    """Runs the processes and returns an exit code: 0, 143 where they were told to stop, or 1."""
    return cli.run(argv, doc, parse, complete)


def parse(argv: list[str]) -> Line:
    """The flags of a command line, and the command behind `--`.

    Raises:
        flags.Error: an unknown flag, or a value of the wrong type.
        ValueError: no command, no processes, or words that are no flag.
    """
    own, words = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    numbers: dict[str, tuple[int | None, str]] = {
        "processes": (2, "how many"),
        "devices": (1, "virtual CPU devices of each"),
    }
    values = cli.read(cli.common_flags(numbers=numbers), own, EXAMPLE)
    if values.help:
        return Line(0, 0, "", (), values.get_help())
    cli.check_counts(values, *numbers)
    module = LAUNCH
    if words[:1] == ["-m"]:
        module, words = "".join(words[1:2]), words[2:]
    if not words or not module:
        raise ValueError(f"no command; write {EXAMPLE}")
    return Line(values.processes, values.devices, module, tuple(words))


def complete(line: Line) -> Iterator[str]:
    """Runs the processes to their end; they speak for themselves, so that no text is left to print.

    Raises:
        RuntimeError: one has died or failed; the others were ended.
        TrainingStopped: they were told to stop, and did.
    """
    with free_port() as port:
        address = f"localhost:{port}"
    processes: list[subprocess.Popen] = []
    readers: list[threading.Thread] = []
    try:
        with passing_on(processes) as all_started:
            for rank in range(line.processes):
                process, reader = start(line, rank, address)
                processes.append(process)
                readers.append(reader)
            all_started()
            failed = first_failure(processes)
    finally:
        end(processes)
        for reader in readers:
            reader.join(GRACE)
    if failed is not None:
        raise RuntimeError(f"{failed}, and the others were ended; the same command goes on from what was saved")
    if any(process.returncode for process in processes):
        raise TrainingStopped(f"all {line.processes} processes have stopped", exit_code=STOPPED)
    yield from ()


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody listens at."""
    with socket.create_server(("localhost", 0)) as server:
        yield server.getsockname()[1]


def start(line: Line, rank: int, address: str) -> tuple[subprocess.Popen, threading.Thread]:
    """Starts a process, and a thread that passes on what it says, with its rank in front but for the first's."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={line.devices}"
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(line.processes),
        "JAX_PROCESS_ID": str(rank),
        "XLA_FLAGS": flags,
        "PYTHONUNBUFFERED": "1",
    }
    # Virtual devices wait for each other in threads. XLA makes no more than there are cores: all of them would wait.
    threads = str(max(8 * line.devices, os.cpu_count() or 1))
    own |= {"NPROC": threads, "PJRT_NPROC": threads}
    command = [sys.executable, "-m", "gfn_jax.studies.process", str(os.getpid()), line.module, *line.words]
    # A session of its own: Ctrl-C is passed on by this process alone.
    stdout, stderr = (None, subprocess.PIPE) if rank == 0 else (subprocess.PIPE, subprocess.STDOUT)
    process = subprocess.Popen(
        command, env=os.environ | own, start_new_session=True, text=True, errors="replace", stdout=stdout, stderr=stderr
    )
    stream, prefix = (process.stderr, "") if rank == 0 else (process.stdout, f"[{rank}] ")
    assert stream is not None
    reader = threading.Thread(target=pass_on, args=(stream, prefix), daemon=True)
    reader.start()
    return process, reader


def pass_on(stream: Iterable[str], prefix: str) -> None:
    """Prints lines to standard error, but for gloo's, which says of every group of devices that it is connected."""
    for line in stream:
        if not line.startswith("[Gloo]") and "peer ranks" not in line:  # its threads write into each other's lines
            print(f"{prefix}{line}", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def passing_on(processes: Sequence[subprocess.Popen]) -> Iterator[Callable[[], None]]:
    """Passes the first SIGTERM or Ctrl-C on as SIGTERM, upon which all save and stop; the second kills them.

    Gives what is to be called once all are started: a signal that comes before is passed on then.
    """
    came: list[int] = []
    started = False

    def react(number: int) -> None:
        came.append(number)
        if started:
            tell(processes, signal.SIGTERM if len(came) == 1 else signal.SIGKILL)

    def all_started() -> None:
        nonlocal started
        waiting, started = bool(came), True
        if waiting:
            tell(processes, signal.SIGTERM)

    with handling_signals(react):
        yield all_started


def tell(processes: Sequence[subprocess.Popen], number: int) -> None:
    """Sends a signal to those that run."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def first_failure(processes: Sequence[subprocess.Popen]) -> str | None:
    """Waits for the end of all, or until one has neither finished nor stopped when told to: which, and how it ended."""
    while True:
        codes = [process.poll() for process in processes]
        # Who ends because of another only shows that there is one.
        blameless = (None, 0, STOPPED, *([cli.ANOTHER] if None in codes else []))
        failed = {code: rank for rank, code in enumerate(codes) if code is not None and code not in blameless}
        if failed:
            code = min(failed)  # killed before failed: who is killed has not failed because of another
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            return f"process {failed[code]} of {len(codes)} {how}"
        if None not in codes:
            return None
        time.sleep(LOOK)


def end(processes: Sequence[subprocess.Popen]) -> None:
    """Waits for those that still run to end by themselves, then tells them to, then kills them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            time.sleep(LOOK)
        tell(processes, number)
    for process in processes:
        process.wait()
