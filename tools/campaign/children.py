"""Tasks in forked children: what they answer, how long they take, and how much memory."""

import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

MOST_SECONDS, MOST_BYTES = 20, 1_000_000_000
_FORBIDDEN = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "socket.connect"}
_FORBIDDEN |= {"exec", "pickle.find_class"}


@dataclass(frozen=True)
class Outcome:
    """Answer of a task, or what went wrong, and what it took."""

    answer: str
    seconds: float
    num_bytes: int = 0


def start(task: Callable[[], object]) -> int:
    """Run `task` in a silent child; return its process id."""
    if child := os.fork():
        return child
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(silence, stream)
        task()
        code = 0
    finally:
        os._exit(code)


def finish(task: Callable[[], object]) -> None:
    """Run `task` in a child to its end.

    Raises:
        ChildProcessError: if it fails.
    """
    _, status = os.waitpid(start(task), 0)
    if status:
        raise ChildProcessError(f"the child ended with {os.waitstatus_to_exitcode(status)}")


def watched(tasks: Sequence[Callable[[], str]]) -> list[Outcome]:
    """Run tasks in children that may neither start anything nor use much time and memory."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(tasks):  # a child that was ended is followed by another
        reading, writing = os.pipe()
        began, child = time.monotonic(), start(partial(_answer, tasks[len(outcomes) :], writing))
        os.close(writing)
        with os.fdopen(reading) as pipe:
            outcomes += [Outcome(*json.loads(line)) for line in pipe]
        _, status = os.waitpid(child, 0)
        if code := os.waitstatus_to_exitcode(status):
            outcomes.append(Outcome(f"died with {code}", time.monotonic() - began))
    return outcomes


def _answer(tasks: Sequence[Callable[[], str]], writing: int) -> None:
    """Write a line for each task, up to the first that takes too much memory."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    executed = _audited()
    _limit_memory()
    before = num_bytes = _most_bytes()
    for task in tasks:
        signal.alarm(MOST_SECONDS)
        began = time.monotonic()
        try:
            answer = task()
        except BaseException as error:
            answer = f"{type(error).__name__}: {str(error)[:300]}"
        answer = f"executed {executed.pop()}" if executed else answer
        if (num_bytes := _most_bytes() - before) > MOST_BYTES:
            answer = f"took {num_bytes / 1e9:.1f} GB"
        os.write(writing, (json.dumps([answer, time.monotonic() - began, num_bytes]) + "\n").encode())
        if num_bytes > MOST_BYTES:
            return


def _audited() -> list[str]:
    """Return a list that grows by whatever this process executes from now on, but for the code of modules."""
    executed: list[str] = []

    def note(event: str, args: tuple) -> None:
        if event in _FORBIDDEN and not (event == "exec" and _is_importing()):
            executed.append(event)

    sys.addaudithook(note)
    return executed


def _is_importing() -> bool:
    frame = sys._getframe()
    while frame and "importlib" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def _limit_memory() -> None:
    """Let the machine survive what needs several times too much: it gets a MemoryError."""
    with open("/proc/self/statm") as file:
        reserved = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (reserved + 4 * MOST_BYTES, resource.RLIM_INFINITY))


def _most_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
