"""Names on the hub: refused at once where they cannot be one, or where the hub does not answer and its cache has nothing of the name."""

import logging
import os
import re
import socket
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from .errors import UserError

NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
SECONDS = 3.0  # a connection that is not there by then, name look-up included, will not come; what is read over it may take its time

_silent: set[str] = set()  # the hub, where this process was taken offline because it does not answer

logger = logging.getLogger(__name__)


def check_hub_name(name: str, kind: str = "model") -> None:
    """Raise UserError for a name, of no folder, that a hub's model or dataset (`kind`) cannot have, and for one that cannot be fetched now.

    The hub's library would try again and again for more than a minute. What its cache has stays usable: where the hub does not answer, this
    process is taken offline, so that nothing waits for it any more.
    """
    if kind == "model" and name.lower().endswith(".gguf"):
        raise UserError(f"there is no file {name}: name a GGUF file, a checkpoint's folder, a hub name, or default")
    missing = f"{kind} {name!r} is {'no file or folder' if kind == 'dataset' else 'not a folder'}"
    if not NAME.fullmatch(name):
        raise UserError(f"{missing}, nor a name on the hub, which would be as owner/name")
    from huggingface_hub import constants  # a few milliseconds: what its environment variables come to

    asks = not constants.is_offline_mode()
    if asks and answers(constants.ENDPOINT):
        return
    if not in_cache(name, kind):
        silent = f"{constants.ENDPOINT} does not answer: check the name, or the connection"
        forbidden = "HF_HUB_OFFLINE forbids asking the hub: check the name, or unset it"
        raise UserError(f"{missing}, nor in the hub's cache, and {silent if asks or constants.ENDPOINT in _silent else forbidden}")
    if asks:
        logger.warning("%s does not answer: %s is read from the hub's cache", constants.ENDPOINT, name)
        go_offline()


def in_cache(name: str, kind: str) -> bool:
    """Whether something of that name has been fetched before; a dataset may lie prepared in a cache of its own."""
    from huggingface_hub import constants

    flat = name.replace("/", "--")
    places = [Path(constants.HF_HUB_CACHE) / f"{kind}s--{flat}" / "snapshots"]
    if kind == "dataset":
        places.append(Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets") / name.replace("/", "___"))
    return any(place.is_dir() and any(place.iterdir()) for place in places)


@cache
def answers(endpoint: str) -> bool:
    """Whether a connection can be had to the hub, or to the proxy on the way to it; tried once a process, for `SECONDS` at most."""
    from urllib.request import getproxies, proxy_bypass  # longer to import than all else here

    url = urlsplit(endpoint)
    proxies = {} if proxy_bypass(url.hostname or "") else getproxies()
    if proxy := proxies.get(url.scheme) or proxies.get("all"):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    place, connected = (url.hostname, url.port or (443 if url.scheme == "https" else 80)), threading.Event()

    def connect() -> None:
        with suppress(OSError):
            socket.create_connection(place, timeout=SECONDS).close()
            connected.set()

    attempt = threading.Thread(target=connect, daemon=True)  # on the side, for the look-up of a name knows no time limit
    attempt.start()
    attempt.join(SECONDS)
    return connected.is_set()


def go_offline() -> None:
    """Let no library of this process ask the hub any more."""
    from huggingface_hub import constants

    _silent.add(constants.ENDPOINT)
    os.environ["HF_HUB_OFFLINE"] = "1"  # which is read on import
    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:
        sys.modules["datasets"].config.HF_HUB_OFFLINE = True
