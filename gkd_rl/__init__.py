"""gkd-rl: align and compress a language model in one run."""

import os
from pathlib import Path


def _others_run() -> bool:
    """Whether another process wants a processor at this moment, as far as the system says."""
    try:
        running, _, _ = Path("/proc/loadavg").read_text().split()[3].partition("/")
    except (OSError, IndexError):
        return True
    return int(running) > 1


# How threads wait for their next piece of work. To spin for some microseconds saves a small model a third of its time, but starves
# whatever shares the machine, and is starved by it: then they sleep. Read when torch is first imported.
if "OMP_WAIT_POLICY" not in os.environ and "GOMP_SPINCOUNT" not in os.environ:
    if _others_run():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    else:
        os.environ["GOMP_SPINCOUNT"] = "3000"
