"""A command as one of several processes: how it meets the others, and how it ends when one of them does.

Every process but the first holds a TCP connection to the first for as long as it lives. The system closes what a dead
process held, so that its end is known at once, however busy the machines are, and the others end too, with one line.
A process that ends well says so first. Of a host that vanishes TCP's keepalive knows in half a minute.
"""

import contextlib
import logging
import os
import secrets
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NoReturn, TextIO

from gfn_jax.commands import cli
from gfn_jax.commands.progress import note
from gfn_jax.errors import first_line

WATCH = "gfn_jax/watch"  # in jax's table that all processes read: where the first listens
CONNECTING = 60.0  # seconds
# Seconds for what went wrong there to be found here, too: both may end for one reason, each in its own words.
PATIENCE = 3.0
# Seconds of silence before the system asks whether the other host is there, between two questions, and how many.
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
DONE, DIED, FAILED = "done", "died", "failed"  # last words, the latter two of whom, and how
TOGETHER = (0, 143)  # exit codes that all processes have agreed on: done, or stopped by SIGTERM
GO_ON = "the same command goes on from what was saved"

_log = logging.getLogger("gfn_jax")
_peers: "Peers | None" = None


def run(
    argv: list[str],
    doc: str | None,
    parse: Callable[[list[str]], Any],
    prepare: Callable[[Any], Iterable[str]],
    **settings: Any,
) -> int:
    """`cli.run` of a command that may join others in `prepare`: the first speaks for all, and none outlives another."""

    def prepared(values: Any) -> Iterable[str]:
        with _blaming():
            texts = prepare(values)
        return said(texts)

    def said(texts: Iterable[str]) -> Iterator[str]:
        with _blaming():
            for text in texts:
                if _peers is None or _peers.rank == 0:
                    yield text

    if in_cluster(os.environ):
        _set_apart()
    try:
        code = cli.run(argv, doc, parse, prepared, **settings)
    except BaseException:
        if _peers is None:
            raise
        traceback.print_exc()
        code = cli.FAILED
    return code if _peers is None else _peers.leave(code)


def in_cluster(environ: Mapping[str, str]) -> bool:
    """Whether the environment says that this is one of several processes."""
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    # SLURM_STEP_NODELIST is there only in what srun starts, not in the batch script around it.
    tasks = int(environ.get("SLURM_NTASKS", "1")) if "SLURM_STEP_NODELIST" in environ else 1
    ranks = int(environ.get("OMPI_COMM_WORLD_SIZE", "1"))
    return "JAX_COORDINATOR_ADDRESS" in environ or len(hosts) > 1 or tasks > 1 or ranks > 1


def alone() -> None:
    """Raises ValueError in a cluster, for a command that would do all of its work once a process."""
    if in_cluster(os.environ):
        raise ValueError(
            "the environment says that there are several processes, and this command is for one: start it alone"
        )


def join_if_any() -> None:
    """Meets the other processes where the environment says that there are some."""
    if in_cluster(os.environ):
        join(os.environ)


def join(environ: Mapping[str, str]) -> None:
    """Meets the other processes, whose number and places jax finds out by itself in a cluster it knows.

    Elsewhere set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        ConnectionError: they have not met.
        ValueError: the environment names no place.
    """
    global _peers
    import jax

    place: dict[str, Any] = {}
    if "JAX_NUM_PROCESSES" in environ:
        place = {
            "num_processes": int(environ["JAX_NUM_PROCESSES"]),
            "process_id": int(environ["JAX_PROCESS_ID"]),
        }
    try:
        jax.distributed.initialize(**place)
    except RuntimeError as error:
        raise ConnectionError(f"the processes have not met: {first_line(error)}") from error
    rank, count = jax.process_index(), jax.process_count()
    if rank != 0:  # the first speaks for all
        _log.setLevel(logging.WARNING)
    if count > 1:
        _peers = Peers(rank, count)
        if jax.default_backend() == "cpu":
            from gfn_jax.training.mesh import keep_no_programs

            keep_no_programs()


class Peers:
    """The other processes of a job, as this one hears of them.

    Args:
        rank: of this process; 0 listens, the others call.
        count: processes.
    """

    def __init__(self, rank: int, count: int):
        from jax._src.distributed import global_state  # what `jax.distributed.initialize` has made

        self.rank, self.count = rank, count
        self.lost: str | None = None  # who has ended before it was done, and how
        self._links: dict[int, socket.socket] = {}
        self._done: set[int] = set()
        self._closed: set[int] = set()
        self._leaving = False
        self._news = threading.Condition()
        client, address = global_state.client, global_state.coordinator_address
        assert client is not None
        assert address is not None
        if rank == 0:
            server = _listen()
            word = secrets.token_hex(8)  # what the others begin with, and nobody else
            client.key_value_set(WATCH, f"{server.getsockname()[1]} {word}")
            _thread(self._accept, server, word)
            return
        port, word = client.blocking_key_value_get(WATCH, int(1000 * CONNECTING)).split()
        host = address.rpartition(":")[0].strip("[]")
        try:
            connection = socket.create_connection((host, int(port)), CONNECTING)
        except OSError as error:
            _log.warning("process %d cannot reach process 0 (%s): when one dies, others may wait for it", rank, error)
            return
        self._links[0] = connection
        self._tell(f"{word} {rank} {os.getpid()} {socket.gethostname()}")
        _thread(self._hear, 0, _lines(connection), f"process 0 of {count}")

    def leave(self, code: int) -> int:
        """Ends together with the others where all of them end, else at once; returns the exit code.

        With a code that only this process has it does not return: jax would wait for the others, who wait for this one.
        """
        together = code in TOGETHER
        own = f"process {self.rank} of {self.count} (id {os.getpid()} on {socket.gethostname()})"
        with self._news:
            if together and self.rank != 0:
                self._tell(DONE)
            if together:
                self._news.wait_for(lambda: self.lost is not None or self._done == self._links.keys())
            self._leaving = self.lost is None or not together  # else the loss is what ends this process
            if together and self.rank == 0 and self._leaving:
                self._tell(DONE)
            if not together and self.lost is None:
                self._tell(f"{FAILED} {own} ended with exit code {code}")
            self._news.notify_all()
        if not self._leaving:
            _wait()
        if not together:
            self._end(code)
        return code

    def failed(self) -> bool:
        """Whether another process has ended before it was done; waits a little for the news."""
        with self._news:
            return self._news.wait_for(lambda: self.lost is not None, PATIENCE)

    def _accept(self, server: socket.socket, word: str) -> None:
        """Answers whoever calls."""
        while True:
            connection, _ = server.accept()
            _thread(self._greet, connection, word)

    def _greet(self, connection: socket.socket, word: str) -> None:
        """Hears one of the other processes out; a stranger is not listened to."""
        lines = _lines(connection)
        said, _, who = _line(lines).partition(" ")
        if said != word:
            return connection.close()
        rank, pid, host = who.split()
        with self._news:
            self._links[int(rank)] = connection
        self._hear(int(rank), lines, f"process {rank} of {self.count} (id {pid} on {host})")

    def _hear(self, rank: int, lines: TextIO, name: str) -> None:
        """Waits for a process's last word, or for its end without one."""
        said = _line(lines)
        with self._news:
            if said == DONE:
                self._done.add(rank)
                self._news.notify_all()
            elif self.lost is None and not self._leaving:
                word, _, text = said.partition(" ")
                word, self.lost = (word, text) if text else (DIED, f"{name} has died")
                self._news.notify_all()
                if self.rank == 0:
                    self._tell(f"{word} {self.lost}")
                if word == DIED or not self._news.wait_for(lambda: self._leaving, PATIENCE):
                    _thread(self._give_up)
        while said:
            said = _line(lines)
        with self._news:
            self._closed.add(rank)
            self._news.notify_all()

    def _give_up(self) -> None:
        note(f"PeerLost: {self.lost}\n")
        print(f"error: {self.lost}; {GO_ON}", file=sys.stderr, flush=True)
        self._end(cli.ANOTHER)

    def _end(self, code: int) -> None:
        """Ends this process without the others: not by way of jax, which would wait for them.

        The first is the last: where it ends, jax ends the others with a page of C++.
        """
        if self.rank == 0:
            with self._news:
                self._news.wait_for(lambda: self._closed == self._links.keys(), 2 * PATIENCE)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    def _tell(self, word: str) -> None:
        for link in self._links.values():
            with contextlib.suppress(OSError):
                link.sendall(f"{word}\n".encode())


@contextlib.contextmanager
def _blaming() -> Iterator[None]:
    """Where a collective fails because a process has ended, that is what is said, not jax's word on connections."""
    try:
        yield
    except Exception as error:
        if _peers is not None and _of_jax(error) and _peers.failed():
            _wait()
        raise


def _wait() -> NoReturn:
    """Until the thread that has heard of a loss ends this process."""
    threading.Event().wait()
    raise AssertionError


def _of_jax(error: BaseException | None) -> bool:
    import jax

    while error is not None and not isinstance(error, jax.errors.JaxRuntimeError):
        error = error.__cause__ or error.__context__
    return error is not None


def _set_apart() -> None:
    """What C++ prints on standard output (gloo: that it is connected) goes to standard error, not between results."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", encoding="utf-8", buffering=1)


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _line(lines: TextIO) -> str:
    """The next line; none where the other end is closed."""
    with contextlib.suppress(OSError, ValueError):
        return lines.readline().strip()
    return ""


def _lines(connection: socket.socket) -> TextIO:
    """What comes over a connection, which is lost once the other host is."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection.makefile("r", encoding="utf-8")


def _thread(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()
