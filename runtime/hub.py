"""The Hugging Face hub, and whether this network has it."""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies


def look_for_hub() -> None:
    """Has the hub's libraries look into their caches alone where this network does not know the hub's name.

    They would try to reach it for half a minute, whatever name of a model is asked for. It has to be called before they are
    imported. Says nothing where a proxy or the user decides (`HF_HUB_OFFLINE`), or where names cannot be looked up just now.
    """
    if "HF_HUB_OFFLINE" in os.environ or getproxies():
        return
    try:
        host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname
        if host is not None:
            socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            os.environ["HF_HUB_OFFLINE"] = "1"
    except ValueError:
        # No address, or no name of a host: the libraries say so.
        pass
