"""A whole run over three servers of its own, encrypted, one of which is killed: it goes on and loses nothing."""

from pathlib import Path

import pytest

from tests.chaos.run import Run, playing
from tests.integration.servers import free_ports, make_certificates, servers


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_a_run_loses_one_of_its_three_servers_and_nothing_else(tmp_path: Path):
    make_certificates(tmp_path)
    url = ",".join(f"nats://localhost:{port}" for port in free_ports(3))
    files = {"ca": "ca.pem", "server_certificate": "server.pem", "server_key": "server.key"}
    tls = [f"bus.tls.{name}={tmp_path / file}" for name, file in files.items()]
    # An election takes its seconds.
    run = Run(tmp_path, 16, 1, [f"bus.url={url}", "bus.replicas=3", "bus.timeout_s=10", *tls])
    async with servers(run.folder, run.config.bus) as processes, playing(run):
        await run.until(lambda: len(run.logs("step done")) >= 4, "the fourth step")
        info = await run.observer.js.stream_info(run.observer.names.stream("RESULTS"))
        assert info.cluster is not None
        assert len(info.cluster.replicas or []) == 2
        processes[str(info.cluster.leader)].kill()
        assert len(run.logs("step done")) < 12
        await run.finish()
    run.check()
