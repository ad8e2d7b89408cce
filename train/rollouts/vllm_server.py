"""Rollouts by trl's `use_vllm`: what has to be there for them, told before a model is loaded.

trl 1.16 sends prompts as ids to a server that `vllm serve` has started, and hands it the weights before, over a group of NCCL that vLLM's own code opens.
"""

import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException, InvalidURL
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

from ...data.errors import UserError

COMMAND = """VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config '{"backend": "nccl"}' --logprobs-mode processed_logprobs --max-logprobs -1"""
LONGEST = 500  # characters of what trl's client says
PAUSE = 2.0  # seconds between two questions whether it is there


def check_vllm(args: Any) -> None:
    """Raise UserError where trl's `use_vllm`, if `args` ask for it, could not work: without vLLM, without CUDA, without a server that takes weights.

    A server may take `vllm_server_timeout` seconds to come. The first process alone asks it, as it will in training.
    """
    if not args.use_vllm:
        return
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "use_vllm needs vLLM in this environment, which trl's client hands weights over by: pip install 'trl[vllm]' (which pip refuses where vLLM wants an older "
            "transformers), or leave it out, and our own engine answers"
        )
    if args.vllm_mode != "server":
        return
    if args.device.type != "cuda":
        raise UserError(f"use_vllm hands weights to the server by NCCL, which needs a CUDA device, and this is {args.device}: leave it out, and our own engine answers")
    if args.process_index == 0:
        check_server(args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}", args.vllm_server_timeout)


def check_server(address: str, seconds: float) -> None:
    """Raise UserError for an address at which no vLLM server that takes weights answers within so many seconds."""
    if not 0 <= seconds < float("inf"):
        raise UserError(f"vllm_server_timeout must be seconds from 0 on, got {seconds}")
    address = address.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise UserError(f"vllm_server_base_url must be an address as http://localhost:8000, got {address!r}")
    _wait(address, seconds)
    try:
        transfer = json.loads(_asked(f"{address}/server_info?config_format=json"))["vllm_config"]["weight_transfer_config"]
    except HTTPError as error:
        raise UserError(f"the server at {address} tells nothing of itself ({error}): start vLLM with its developer's endpoints, {COMMAND}") from None
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        raise UserError(f"what answers at {address} is no vLLM server ({type(error).__name__}: {error}): start one, {COMMAND}") from None
    if not transfer:
        raise UserError(f"the vLLM server at {address} takes no weights: start it with a way to, {COMMAND}")


@contextmanager
def told_of_server() -> Iterator[None]:
    """Raise UserError for what trl's client says, within, of a server that is gone or refuses what it is asked."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error) is not Exception:  # its library's errors are the former, its own word on a status the latter
            raise
        raise UserError(f"the vLLM server failed in a rollout: {' '.join(str(error).split())[:LONGEST]}; see what it says, and go on from the last checkpoint") from error


def _wait(address: str, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            _asked(f"{address}/health")
            return
        except InvalidURL as error:  # no time mends it
            raise UserError(f"vllm_server_base_url {address!r} is no address: {error}") from None
        except (OSError, HTTPException, ValueError) as error:
            why = getattr(error, "reason", error)
        left = until - time.monotonic()
        if left <= 0:
            raise UserError(
                f"no vLLM server has answered at {address} within {seconds:g} seconds ({why}): start one, {COMMAND}, name its address by --vllm_server_base_url, or "
                "give it more --vllm_server_timeout"
            )
        time.sleep(min(PAUSE, left))


def _asked(address: str) -> bytes:
    with urlopen(address, timeout=10) as answer:
        return answer.read()
