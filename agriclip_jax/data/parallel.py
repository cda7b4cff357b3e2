"""A map over the cores of this machine, in processes: threads that decode photos wait for Python's lock.

On 16 cores, 16 threads decoded as many small photos a second as one, and 16 processes ten times as many.
"""

import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import Any

from agriclip_jax.errors import RunFailure

FEW = 16  # items for which no process is started
_AT_ONCE = 4  # items of a task: what it costs to hand one over is shared, and few large photos are held


def cores() -> int:
    """How many cores this process may use."""
    # macOS and Windows know no affinity.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel_map(function: Callable[[Any], Any], items: Iterable[Any], *, processes: int = 0) -> Iterator[Any]:
    """`map` in other processes, in order, holding only a few items at a time.

    The processes stay for the next call and end with this one. As anywhere in Python, the script that uses them must
    hide what it runs behind `if __name__ == "__main__":`.

    Args:
      function: of a module, or a `functools.partial` of one; it, items and results are pickled.
      items: are drawn in this thread.
      processes: how many; 0: one for each core.

    Raises:
      RunFailure: a process ended, for want of memory perhaps.
      Exception: whatever `function` raised.
    """
    processes, items = processes or cores(), iter(items)
    few = list(islice(items, FEW))
    if processes == 1 or len(few) < FEW:
        yield from map(function, chain(few, items))
        return
    pool, waiting = _pool(processes), deque()
    try:
        for task in batched(chain(few, items), _AT_ONCE):
            waiting.append(pool.submit(_work, function, task))
            if len(waiting) > 2 * processes:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    except BrokenProcessPool:
        _pool.cache_clear()
        raise RunFailure(
            "a process that works on photos ended, for want of memory perhaps; close other programs, or allow fewer "
            "cores (taskset -c 0,1 before the command), and run again"
        ) from None
    finally:
        for task in waiting:
            task.cancel()


def batched(items: Iterable[Any], most: int) -> Iterator[list[Any]]:
    """Lists of at most `most` items."""
    items = iter(items)
    while batch := list(islice(items, most)):
        yield batch


def end_with_parent() -> None:
    """Has this process end with the one that started it, however that ended, and leave to it what asks both to stop."""
    if (parent := multiprocessing.parent_process()) is None:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # what stops a whole group, as `timeout` does, is for the parent to answer

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _pool(processes: int) -> ProcessPoolExecutor:
    # Not by fork: this process has threads, JAX's among them.
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=end_with_parent)


def _work(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]
