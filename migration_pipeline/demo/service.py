"""A child process that belongs to the local stack: its session, its log, and its end.

Each service has a session of its own. Ctrl-C in the terminal reaches the stack alone, which ends its services
one after the other; and all that a service started, such as Dagster's run workers, ends with it.

The service's log is locked for as long as a process of the service has it open: the kernel drops a lock with
the last holder. So a log that nobody holds says that the service is gone to its last process, and a log that
is held by what a killed stack left behind proves that the noted process number is still the service's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from migration_pipeline.demo import LocalError

END_SECONDS = 15  # a run worker leaves its batch and reports to Dagster before it ends, which takes seconds


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Hold back signals that raise an exception until the context ends.

    An exception in the middle of `subprocess.Popen` leaves a child that runs and that nobody knows.
    """
    held: list[int] = []
    handlers = {}
    try:
        if threading.current_thread() is threading.main_thread():  # no other thread gets their exceptions
            for sign in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                if callable(handler := signal.getsignal(sign)):
                    handlers[sign] = handler
                    signal.signal(sign, lambda number, _frame: held.append(number))
        yield
    finally:
        for sign, handler in handlers.items():
            signal.signal(sign, handler)
        if held:
            signal.raise_signal(held[0])


class Service:
    """A child process; `name` is its name in messages, and that of its log in `log_dir`."""

    def __init__(self, name: str, log_dir: Path) -> None:
        self.name = name
        self.log = log_dir / f"{name}.log"
        self._pid_file = log_dir / f"{name}.pid"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start the process with an empty log. Its standard input is open, until `go`."""
        with self.log.open("ab") as log, signals_held_back():
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            log.truncate(0)
            self._pid_file.unlink(missing_ok=True)
            self._process = subprocess.Popen(  # noqa: S603
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            self._pid_file.write_text(str(self._process.pid))

    def go(self) -> None:
        """Let a service that was loaded ahead begin."""
        if self._process and self._process.stdin:
            with contextlib.suppress(BrokenPipeError):  # it has ended: `check` says why
                self._process.stdin.write(b"go\n")
                self._process.stdin.close()

    def check(self) -> None:
        """Raise `LocalError`, with the end of the log, if the process has ended."""
        if self._process and self._process.poll() is not None:
            raise LocalError.with_log(f"{self.name} has ended, status {self._process.returncode}", self.log)

    def stop(self) -> None:
        """End the process and all that it started; also what a stack that was killed left of the service."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self._is_running():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._group(), sign)
                self._await_end()
        if self._is_running():
            raise LocalError(f"a process of {self.name} does not end; see its log {self.log}")
        if self._process:
            with self._process:  # closes its input, and reaps it
                self._process = None
        self._pid_file.unlink(missing_ok=True)

    def _is_running(self) -> bool:
        with self.log.open("ab") as log:
            try:
                fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def _await_end(self) -> None:
        deadline = time.monotonic() + END_SECONDS
        while self._is_running() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _group(self) -> int:
        """The process group: the process that was started leads it, and the number lasts as long as a member."""
        if self._process:
            return self._process.pid
        try:
            return int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            raise LocalError(
                f"a process of {self.name} is left over from an earlier stack; see its log {self.log}, and end it"
            ) from None
