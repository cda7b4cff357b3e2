"""The map over processes: its order, what it holds, what it starts, and how it ends."""

import math
import os
import subprocess
import sys

import pytest
from tiny import have_ended, is_running

from agriclip_jax.data.parallel import FEW, batched, parallel_map
from agriclip_jax.errors import RunFailure, UserError

ASKS_AND_WAITS = """
import os, sys, time
from agriclip_jax.data.parallel import parallel_map

def process_of(item):
    return os.getpid()

if __name__ == "__main__":
    print(*set(parallel_map(process_of, range(200), processes=2)), flush=True)
    time.sleep(60)
"""


def process_of(item: int) -> int:
    return os.getpid()


def group_of(item: int) -> int:
    return os.getpgrp()


def end(item: int) -> None:
    os._exit(1)


def refuse(item: int) -> None:
    raise UserError(f"item {item} is bad")


def test_results_come_in_order_and_few_items_are_taken_ahead():
    taken = []
    results = parallel_map(math.sqrt, (taken.append(i) or i * i for i in range(1000)), processes=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(taken) < 50
    assert list(results) == list(range(3, 1000))


def test_many_items_go_to_other_processes_and_few_do_not():
    assert os.getpid() not in set(parallel_map(process_of, range(100), processes=2))
    assert set(parallel_map(process_of, range(FEW - 1), processes=2)) == {os.getpid()}
    assert set(parallel_map(process_of, range(100), processes=1)) == {os.getpid()}


def test_what_stops_a_whole_group_of_processes_leaves_its_answer_to_the_parent():
    assert os.getpgrp() not in set(parallel_map(group_of, range(100), processes=2))


def test_what_the_function_raises_is_raised():
    with pytest.raises(UserError, match=r"^item 0 is bad$"):
        list(parallel_map(refuse, range(100), processes=2))


def test_a_process_that_ends_is_one_line_and_the_next_call_works():
    with pytest.raises(RunFailure, match="for want of memory perhaps"):
        list(parallel_map(end, range(100), processes=2))
    assert list(parallel_map(math.sqrt, [4] * 100, processes=2)) == [2] * 100


def test_the_processes_end_with_the_one_that_asks_even_when_it_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ASKS_AND_WAITS, encoding="utf-8")
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as asking:
        numbers = [int(number) for number in asking.stdout.readline().split()]
        assert numbers and all(map(is_running, numbers))
        asking.kill()
    assert have_ended(numbers), "a process outlives the one that asked"


def test_batches_are_lists_of_at_most_so_many():
    assert list(batched(range(5), 2)) == [[0, 1], [2, 3], [4]]
