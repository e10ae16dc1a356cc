"""The bus's part of the schema: servers, bounds of the streams, and the weight log in one of them."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from configs.section import Section


class TlsConfig(Section):
    """TLS of the bus. Roles prove who they are by their keys; TLS adds secrecy and proves who the servers are."""

    ca: str | None = None
    """PEM file of the authority that signed the servers' certificates, under the same path on every host; without it, no
    TLS."""
    certificate: str | None = None
    """PEM file of a client certificate, for servers that ask for one."""
    key: str | None = None
    """PEM file of its key."""
    server_certificate: str | None = None
    """PEM file of the server's certificate, under the same path on every server's host."""
    server_key: str | None = None
    """PEM file of its key."""

    @model_validator(mode="after")
    def pairs(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        if (self.server_certificate is None) != (self.server_key is None):
            raise ValueError("server_certificate and server_key belong together")
        if self.ca is None and (self.certificate is not None or self.server_certificate is not None):
            raise ValueError("certificates need ca, the file of the authority that signed them")
        return self


class BusConfig(Section):
    """NATS and the streams of a run."""

    host: str = "127.0.0.1"
    """Address on which the embedded server listens."""
    port: NonNegativeInt = 0
    """Port of the embedded server; 0 takes a free one, and on resume the one that the run had."""
    url: str | None = None
    """Addresses of the servers that `zerotir bus CONFIG --init DIR` writes the files of, separated by commas, such as
    `nats://a:4222,nats://b:4222,nats://c:4222`; without it, the bus is an embedded server."""
    tls: TlsConfig = TlsConfig()
    replicas: Literal[1, 3, 5] = 1
    """Copies of each stream in a NATS cluster."""
    max_results_bytes: PositiveInt = 2 * 1024**3
    """Size at which the result stream refuses more and actors wait."""
    metrics_age_s: PositiveFloat = 7 * 86400.0
    """Seconds that metrics stay on the bus."""
    max_metrics_bytes: PositiveInt = 512 * 1024**2
    """Size at which the oldest metrics leave the bus before their time. The server reserves this and `max_results_bytes`."""
    timeout_s: PositiveFloat = 30.0
    """Bound of one request to the bus."""
    reconnect_s: PositiveFloat = 120.0
    """Seconds that a role tries to reach a lost bus before it gives up."""


class WeightsConfig(Section):
    """The weight log."""

    snapshot_every: PositiveInt = 20
    """Versions between two snapshots; one is written earlier once the deltas since the last outweigh it."""
    snapshot_location: str | None = None
    """Folder or URL (as fsspec takes it, such as `s3://bucket/run`) where snapshots lie instead of on the bus. Every actor
    must reach it under the same name."""
    chunk_bytes: Annotated[int, Field(ge=64 * 1024, le=4 * 1024**2)] = 1024**2
    """Size of one message of a snapshot or delta, about."""
