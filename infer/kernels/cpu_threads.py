"""The threads that compute on a CPU: how many, how they wait for each other, and whether the machine has room for them."""

import os

import psutil
import torch

LOOK = 0.1  # seconds


def threads_line() -> str:
    """How many threads compute and what an idle one does, in words; where other programs leave too few cores for them, what to do.

    Threads that share a core with another program keep the others waiting, so that fewer of them may be faster. Takes `LOOK` seconds.
    """
    count, policy = torch.get_num_threads(), os.environ.get("OMP_WAIT_POLICY", "").upper()
    idle = {"PASSIVE": "sleeps", "ACTIVE": "spins"}.get(policy, "spins for a while")
    line = f"{count}, an idle one {idle} ({f'OMP_WAIT_POLICY={policy}' if policy else 'OMP_WAIT_POLICY is not set'})"
    cores = os.cpu_count() or 1
    taken = psutil.cpu_percent(LOOK) / 100 * cores  # by others: ours sleep meanwhile
    if count > 1 and count > cores - taken + 0.5:
        line += f"; other programs keep {taken:.1f} of {cores} cores busy: OMP_NUM_THREADS={max(1, round(cores - taken))} may be faster"
    return line
