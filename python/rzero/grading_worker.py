# SPDX-License-Identifier: Apache-2.0
"""A grading process: reads pairs of answers as JSON lines, writes one verdict a line.

`python -m rzero.grading_worker module:function cpu_seconds memory_mib`. The kernel ends it when a comparison
takes more processor time than that (SIGPROF), it ends itself when its input does, and it may be killed at any
moment. Processor time and not the clock decides, so a busy machine changes no verdict. No import of rzero
here.
"""

import ctypes
import json
import resource
import signal
import sys
from importlib import import_module

PR_SET_PDEATHSIG = 1


def main() -> None:
    target, cpu_s, memory_mib = sys.argv[1:]
    if sys.platform == "linux":
        # A worker that is busy when its parent is killed would go on until it reads its input again.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    module_name, _, function_name = target.partition(":")
    same = vars(import_module(module_name))[function_name]
    limit = int(memory_mib) << 20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The first comparison loads what the judge loads late.
    same("1/2", "x=2")
    print("ready", flush=True)
    for line in sys.stdin:
        a, b = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, float(cpu_s))
        try:
            verdict = "1" if same(a, b) else "0"
        except (MemoryError, RecursionError):
            verdict = "?"
        print(verdict, flush=True)


if __name__ == "__main__":
    main()
