"""A process that has imported what training needs and computed nothing: each script asked for is run in processes forked from it.

Reads one JSON object a line, {"script", "argv", "processes", "output", "environment", "patience"}, and answers with one line, the scripts' exit codes as a list.
Each process writes into the file `output`, its errors into `output`.err, and finds its rank and the way to the others in the environment, where torchrun leaves
them, beside what is given of it.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from time import monotonic, sleep

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported

from seodang.recipes import dpo, grpo, kto, ppo, reward, rloo, sft  # noqa: E402, F401

for late in ("matplotlib.pyplot", "torch.distributed.algorithms.join", "transformers.models.llama.modeling_llama"):  # otherwise imported when first used
    importlib.import_module(late)
gc.freeze()  # what is here is not looked through, nor copied, by the children


def start(script: str, argv: list[str], output: str, environment: dict[str, str]) -> int:
    """Run the script in a child, as the command `python script argv` would; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for stream, path in ((1, output), (2, f"{output}.err")):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.environ.update(environment)
        sys.argv[:] = [script, *argv]
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_codes(children: list[int], patience: float) -> list[int]:
    """Wait for all children; so many seconds after one has failed the others, which may wait for it, are killed."""
    codes, late = {}, None
    while len(codes) < len(children):
        child, status = os.waitpid(-1, 0 if late is None else os.WNOHANG)
        if child:
            codes[child] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            late = late or monotonic() + patience
            for other in set(children) - set(codes) if monotonic() >= late else ():
                os.kill(other, signal.SIGKILL)
            sleep(0.02)
    return [codes[child] for child in children]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


for line in sys.stdin:
    asked = json.loads(line)
    size = asked["processes"]
    world = {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())} if size > 1 else {}
    ranks = [{**asked["environment"], **world, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world else asked["environment"] for rank in range(size)]
    print(json.dumps(exit_codes([start(asked["script"], asked["argv"], asked["output"], rank) for rank in ranks], asked["patience"])), flush=True)
