"""The files of a run's own cluster of NATS servers, for `zerotir bus CONFIG --init DIR`.

Each server's file names its host and port (those of `bus.url`), its neighbours, and the run's accounts: public keys, and
what their roles may do. Servers find each other on the client's port + 2000 and prove by a shared secret, which only these
files hold, that they belong together.
"""

import secrets
from pathlib import Path
from shlex import quote
from urllib.parse import urlsplit

from bus.address import BusAddress
from bus.server import common_settings, run_accounts, to_configuration, write_private
from configs.bus import BusConfig
from configs.errors import UserError
from configs.names import RULE, is_name

ROUTES_ABOVE = 2000
"""A server's port for its neighbours, beyond the one for clients."""


class ClusterError(UserError):
    """The files cannot be made as asked; the text says why."""


def initialise(folder: Path, config: BusConfig, largest_message: int) -> list[Path]:
    """Makes the run's folder with bus.json, credentials/ and a file a server in servers/; returns the servers' files.

    They take messages of `largest_message` bytes at least. The run's id is the folder's name. Raises ClusterError for what
    the configuration lacks and where a run is there already.
    """
    if not is_name(folder.name):
        raise ClusterError(f"{folder}: its name becomes the run's id: {RULE}")
    if (folder / "bus.json").exists():
        raise ClusterError(f"{folder} holds a run already; its keys would be lost: name a new folder")
    hosts, tls = _hosts(config), _tls(config)
    folder.mkdir(parents=True, exist_ok=True)
    servers = folder / "servers"
    servers.mkdir(mode=0o700, exist_ok=True)
    master = BusAddress.new(folder.name, config.url or "", config.tls)
    secret = secrets.token_urlsafe(24)
    written = []
    for number, (host, port) in enumerate(hosts, start=1):
        name = f"server-{number}"
        settings = {
            "server_name": f"{folder.name}-{name}",
            "host": host,
            "port": port,
            **common_settings(f"nats-{folder.name}-{name}", largest_message),
            "accounts": run_accounts(master),
        }
        if tls:
            settings["tls"] = tls | {"handshake_first": True}
        if len(hosts) > 1:
            settings["cluster"] = {
                "name": folder.name,
                "host": host,
                "port": port + ROUTES_ABOVE,
                "authorization": {"user": "route", "password": secret},
                "routes": [
                    f"nats-route://route:{secret}@{other}:{other_port + ROUTES_ABOVE}"
                    for other, other_port in hosts
                    if (other, other_port) != (host, port)
                ],
            }
            if tls:
                settings["cluster"]["tls"] = tls
        path = servers / f"{name}.conf"
        write_private(path, _header(path, host, port, config) + to_configuration(settings) + "\n")
        written.append(path)
    master.write_all(folder)
    return written


def _hosts(config: BusConfig) -> list[tuple[str, int]]:
    if config.url is None:
        raise ClusterError(
            "bus.url names the servers to be, such as nats://a:4222,nats://b:4222,nats://c:4222: set it in the "
            "configuration or with --set bus.url=..."
        )
    hosts = []
    for url in config.url.split(","):
        parts = urlsplit(url.strip())
        if parts.scheme != "nats" or not parts.hostname:
            raise ClusterError(f"bus.url: {url!r} is not of the form nats://host:port")
        hosts.append((parts.hostname, parts.port or 4222))
    if len(hosts) < config.replicas or len(hosts) == 2:
        raise ClusterError(
            f"bus.url names {len(hosts)} servers: bus.replicas: {config.replicas} needs at least {config.replicas}, and two "
            "servers cannot go on without each other"
        )
    if len(set(hosts)) < len(hosts):
        raise ClusterError("bus.url names a server twice")
    return hosts


def _tls(config: BusConfig) -> dict[str, str]:
    files = config.tls
    if files.ca is None:
        return {}
    if files.server_certificate is None or files.server_key is None:
        raise ClusterError("bus.tls.ca is set: the servers also need bus.tls.server_certificate and server_key")
    return {"cert_file": files.server_certificate, "key_file": files.server_key, "ca_file": files.ca}


def _header(path: Path, host: str, port: int, config: BusConfig) -> str:
    run = path.parent.parent
    lines = (
        f"NATS server {path.stem} of run {run.name}.",
        "",
        f"1. Copy this file to {host}, readable by the server's user alone: it holds the secret by which the servers know",
        "   each other. The clients' keys in it are public.",
        *([f"   Its certificates lie under the paths in `tls` ({config.tls.ca}, ...)."] if config.tls.ca else []),
        f"2. Start it in a folder with room for the streams:  nats-server -c {path.name}",
        f"   Clients reach port {port}, the other servers port {port + ROUTES_ABOVE}.",
        f"3. Once all are up, make the streams:  zerotir bus CONFIG --folder {quote(str(run))}",
        "   (with the same bus section in CONFIG; it stays as the run's anchor and can be stopped afterwards).",
        "4. Give each role's host its own file of credentials/, and no other:  zerotir actor CONFIG --bus actor.json",
        "   bus.json holds the keys to everything: keep it where `zerotir bus` runs.",
    )
    return "".join(f"# {line}".rstrip() + "\n" for line in lines) + "\n"
