"""The file ``server.properties`` of a broker of the tests, and the certificates that it names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from .server import PASSWORD, USER

LISTENERS = ("PLAINTEXT", "PROXIED", "SASL", "SASLTLS", "TLS", "CONTROLLER")
"""The names of a broker's listeners.  Each has a port of its own."""

_PROTOCOLS = {
    "PLAINTEXT": "PLAINTEXT",
    "PROXIED": "PLAINTEXT",
    "SASL": "SASL_PLAINTEXT",
    "SASLTLS": "SASL_SSL",
    "TLS": "SSL",
    "CONTROLLER": "PLAINTEXT",
}
_SECURITY = "org.apache.kafka.common.security"

_QUICK = """
# A test broker starts quickly and takes little of the machine.
num.network.threads=1
num.io.threads=4
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=1
share.coordinator.state.topic.num.partitions=1
log.cleaner.dedupe.buffer.size=2097152
log.index.size.max.bytes=1048576
# A group is complete at once, and a member may have a short session.
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
group.consumer.min.session.timeout.ms=500
group.consumer.min.heartbeat.interval.ms=100
# What is due is deleted and compacted within about a second.
log.initial.task.delay.ms=0
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=1000
log.segment.delete.delay.ms=1000
# A broker that was killed is admitted again when its old session is over.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
# Only what a client creates is there.
auto.create.topics.enable=false
"""


def settings(
    *,
    node: int,
    voters: Mapping[int, str],
    bound: Mapping[str, str],
    advertised: Mapping[str, str],
    data: str,
    certificates: str,
) -> str:
    """Return the text of ``server.properties``.

    :param voters: the ``host:port`` of each node's listener CONTROLLER.
    :param bound: the ``host:port`` where each of :data:`LISTENERS` listens.
    :param advertised: the ``host:port`` that clients of a listener are told, where it differs.
    :param data: the folder of the data.
    :param certificates: the folder that :func:`write_certificates` filled, as the broker sees it.
    """
    told = {name: advertised.get(name, address) for name, address in bound.items() if name != "CONTROLLER"}
    copies = min(len(voters), 3)
    lines = [
        "process.roles=broker,controller",
        f"node.id={node}",
        f"controller.quorum.voters={_joined(voters, '@')}",
        "controller.listener.names=CONTROLLER",
        f"listeners={_joined(bound, '://')}",
        f"advertised.listeners={_joined(told, '://')}",
        f"listener.security.protocol.map={_joined(_PROTOCOLS, ':')}",
        "inter.broker.listener.name=PLAINTEXT",
        f"log.dirs={data}",
        f"offsets.topic.replication.factor={copies}",
        f"transaction.state.log.replication.factor={copies}",
        f"transaction.state.log.min.isr={(copies + 1) // 2}",
        f"share.coordinator.state.topic.replication.factor={copies}",
        f"share.coordinator.state.topic.min.isr={(copies + 1) // 2}",
        _QUICK,
        *_logins(),
        *_tls(certificates),
    ]
    return "\n".join(lines) + "\n"


def _joined(pairs: Mapping[int, str] | Mapping[str, str], by: str) -> str:
    return ",".join(f"{name}{by}{value}" for name, value in pairs.items())


def _logins() -> Sequence[str]:
    """Return the mechanisms of the listeners SASL and SASLTLS, and who may do what.

    Those who do not log in may do everything, and so may all others where no rule (ACL) says otherwise.
    """
    lines = [
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users=User:ANONYMOUS",
        "allow.everyone.if.no.acl.found=true",
    ]
    for listener in ("sasl", "sasltls"):
        start = f"listener.name.{listener}"
        lines += [
            f'{start}.plain.sasl.jaas.config={_SECURITY}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";',
            f"{start}.scram-sha-256.sasl.jaas.config={_SECURITY}.scram.ScramLoginModule required;",
            f"{start}.scram-sha-512.sasl.jaas.config={_SECURITY}.scram.ScramLoginModule required;",
            # Without settings for signatures, the broker accepts unsigned tokens.
            f"{start}.oauthbearer.sasl.jaas.config={_SECURITY}.oauthbearer.OAuthBearerLoginModule required"
            ' unsecuredLoginStringClaim_sub="broker";',
        ]
    return lines


def _tls(certificates: str) -> Sequence[str]:
    return [
        line
        for listener in ("tls", "sasltls")
        for line in (
            f"listener.name.{listener}.ssl.keystore.type=PEM",
            f"listener.name.{listener}.ssl.keystore.location={certificates}/server.pem",
            f"listener.name.{listener}.ssl.truststore.type=PEM",
            f"listener.name.{listener}.ssl.truststore.location={certificates}/ca.pem",
            f"listener.name.{listener}.ssl.client.auth={'requested' if listener == 'tls' else 'none'}",
        )
    ]


def write_certificates(folder: Path) -> None:
    """Write an authority, the server's key and certificate in one file, and a client's in two."""
    folder.mkdir()
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    server = authority.issue_cert("127.0.0.1", "localhost")
    chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
    (folder / "server.pem").write_bytes(_pkcs8(server.private_key_pem.bytes()) + chain)
    client = authority.issue_cert("client@example.org", common_name="client")
    (folder / "client.key").write_bytes(_pkcs8(client.private_key_pem.bytes()))
    (folder / "client.pem").write_bytes(client.cert_chain_pems[0].bytes())


def _pkcs8(key: bytes) -> bytes:
    """Return a key in the only form that Java reads."""
    return load_pem_private_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
