# SPDX-License-Identifier: Apache-2.0
"""A grading process: reads batches of pairs, a JSON list a line, and writes "begin", then one verdict a line.

`python -m rzero.grading_worker module:function cpu_seconds memory_mib` loads the judge and forks a child that
does the comparing. The kernel ends the child when a comparison takes more processor time than that (SIGPROF);
then this process says so and forks the next one, which takes milliseconds where loading takes seconds.
Processor time and not the clock decides, so a busy machine changes no verdict. No import of rzero here.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from importlib import import_module

PR_SET_PDEATHSIG = 1


def main() -> None:
    target, cpu_s, memory_mib = sys.argv[1:]
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module_name, _, function_name = target.partition(":")
    same = vars(import_module(module_name))[function_name]
    limit = int(memory_mib) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The first comparison loads what the judge loads late.
    same("1/2", "x=2")
    say("ready")
    while True:
        child = os.fork()
        if child == 0:
            die_with_parent()
            judge(same, float(cpu_s))
            return
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        is_timeout = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
        say("timeout" if is_timeout else "crash")


def judge(same: Callable[[str, str], bool], cpu_s: float) -> None:
    """Compare until the input ends. Reads line by line: what the next child is to read must stay unread."""
    while line := sys.stdin.readline():
        # Else a child that died before it read a batch would look like one that died at the first pair of it.
        say("begin")
        for a, b in json.loads(line):
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            try:
                verdict = "1" if same(a, b) else "0"
            except (MemoryError, RecursionError):
                verdict = "?"
            say(verdict)
        signal.setitimer(signal.ITIMER_PROF, 0)


def say(word: str) -> None:
    """Written at once: a verdict that waits in a buffer would be lost with the process."""
    print(word, flush=True)


def die_with_parent() -> None:
    """A process that is busy when its parent is killed would go on until it reads its input again."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
