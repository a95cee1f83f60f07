"""The settings of librdkafka: those that follow from the options, and those that the option ``librdkafka`` may add.

A setting that a promise of this backend depends on, such as ``acks`` or ``enable.auto.commit``, cannot be given.  This
module does not import confluent-kafka.
"""

from __future__ import annotations

import importlib
import logging
import shlex
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

from events_core.options import did_you_mean

if TYPE_CHECKING:
    from events_kafka.options import KafkaOptions

__all__ = ["Role", "given", "problems", "settings"]

Role = Literal["admin", "consumer", "producer"]
"""The kinds of clients that librdkafka has."""

_log = logging.getLogger("events_kafka")

_FOR_ALL = """
    api.version.request.timeout.ms broker.address.family broker.address.ttl client.dns.lookup client.id
    connections.max.idle.ms debug enable.metrics.push enable.random.seed enable.ssl.certificate.verification
    https.ca.location https.ca.pem log_level log.connection.close max.in.flight max.in.flight.requests.per.connection
    metadata.max.age.ms metadata.recovery.rebootstrap.trigger.ms metadata.recovery.strategy
    receive.message.max.bytes reconnect.backoff.max.ms reconnect.backoff.ms retry.backoff.max.ms retry.backoff.ms
    sasl.kerberos.keytab sasl.kerberos.kinit.cmd sasl.kerberos.min.time.before.relogin sasl.kerberos.principal
    sasl.kerberos.service.name sasl.oauthbearer.assertion.algorithm sasl.oauthbearer.assertion.claim.aud
    sasl.oauthbearer.assertion.claim.exp.seconds sasl.oauthbearer.assertion.claim.iss
    sasl.oauthbearer.assertion.claim.jti.include sasl.oauthbearer.assertion.claim.nbf.seconds
    sasl.oauthbearer.assertion.claim.sub sasl.oauthbearer.assertion.file
    sasl.oauthbearer.assertion.jwt.template.file sasl.oauthbearer.assertion.private.key.file
    sasl.oauthbearer.assertion.private.key.passphrase sasl.oauthbearer.assertion.private.key.pem
    sasl.oauthbearer.client.credentials.client.id sasl.oauthbearer.client.credentials.client.secret
    sasl.oauthbearer.client.id sasl.oauthbearer.client.secret sasl.oauthbearer.config sasl.oauthbearer.extensions
    sasl.oauthbearer.grant.type sasl.oauthbearer.metadata.authentication.type sasl.oauthbearer.method
    sasl.oauthbearer.scope sasl.oauthbearer.sub.claim.name sasl.oauthbearer.token.endpoint.url
    socket.connection.setup.timeout.ms socket.keepalive.enable socket.max.fails socket.nagle.disable
    socket.receive.buffer.bytes socket.send.buffer.bytes socket.timeout.ms ssl.ca.certificate.stores ssl.ca.pem
    ssl.certificate.pem ssl.cipher.suites ssl.crl.location ssl.curves.list ssl.endpoint.identification.algorithm
    ssl.engine.id ssl.engine.location ssl.key.pem ssl.keystore.location ssl.keystore.password ssl.providers
    ssl.sigalgs.list topic.metadata.refresh.fast.interval.ms topic.metadata.refresh.interval.ms
    topic.metadata.refresh.sparse
"""
_FOR_CONSUMERS = """
    check.crcs fetch.error.backoff.ms fetch.max.bytes fetch.message.max.bytes fetch.min.bytes fetch.queue.backoff.ms
    fetch.wait.max.ms group.remote.assignor heartbeat.interval.ms max.partition.fetch.bytes
    partition.assignment.strategy queued.max.messages.kbytes queued.min.messages
"""
_FOR_PRODUCERS = """
    batch.num.messages batch.size compression.level linger.ms queue.buffering.backpressure.threshold
    queue.buffering.max.kbytes queue.buffering.max.messages queue.buffering.max.ms request.timeout.ms
    sticky.partitioning.linger.ms
"""

_SCOPES: dict[str, tuple[Role, ...]] = {
    **dict.fromkeys(_FOR_ALL.split(), ("admin", "consumer", "producer")),
    **dict.fromkeys(_FOR_CONSUMERS.split(), ("consumer",)),
    **dict.fromkeys(_FOR_PRODUCERS.split(), ("producer",)),
}
"""The settings that the option ``librdkafka`` may have, and the clients that take each."""


def given(options: KafkaOptions) -> dict[str, str]:
    """Return the settings in the option ``librdkafka``.

    :raises ValueError: if it cannot be read.  The text repeats no value, because one may be a secret.
    """
    found: dict[str, str] = {}
    for word in shlex.split(options.librdkafka or ""):
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError("write it as name=value, separated by spaces; quote a value with spaces, as in a shell")
        found[name.strip()] = value
    return found


def problems(options: KafkaOptions) -> Iterable[str]:
    """Yield what is wrong with the option ``librdkafka``, without a value."""
    try:
        names = given(options)
    except ValueError as reason:
        yield f"option 'librdkafka': {reason}"
        return
    for name in names:
        if name not in _SCOPES:
            yield f"option 'librdkafka' may not have {name!r:.80}{did_you_mean(name, _SCOPES)}"


def settings(options: KafkaOptions, role: Role) -> dict[str, Any]:
    """Return the settings of every client with this *role*: where and how to connect, and what the user gave.

    Pass them to the constructor of a client of confluent-kafka, not at home: with OAUTHBEARER it waits for a token.

    :raises ValueError: if there is no function ``oauth_callback``.
    """
    found: dict[str, Any] = {
        "bootstrap.servers": options.bootstrap_servers,
        "client.id": "events-core",
        "security.protocol": _protocol(options),
        "logger": _log_of_librdkafka(),
        # The client notices a broker that went away at once, and the brokers' own time limits do not apply to it.
        "socket.keepalive.enable": True,
        # librdkafka waits up to 10 s before it connects again; receivers should be back soon after the broker.
        "reconnect.backoff.max.ms": 2000,
    }
    found.update({name: value for name, value in _account(options).items() if value is not None})
    if options.oauth_callback is not None:
        found["oauth_cb"] = _token_callback(options.oauth_callback)
    found.update({name: value for name, value in given(options).items() if role in _SCOPES[name]})
    return found


def _protocol(options: KafkaOptions) -> str:
    transport = "ssl" if options.tls else "plaintext"
    return transport if options.sasl_mechanism is None else f"sasl_{transport}"


def _account(options: KafkaOptions) -> dict[str, str | None]:
    return {
        "ssl.ca.location": options.tls_ca_file,
        "ssl.certificate.location": options.tls_cert_file,
        "ssl.key.location": options.tls_key_file or options.tls_cert_file,
        "ssl.key.password": options.tls_key_password,
        "sasl.mechanisms": options.sasl_mechanism,
        "sasl.username": options.username,
        "sasl.password": options.password,
        "client.rack": options.rack,
    }


def _token_callback(target: str) -> Callable[[str], tuple[str, float]]:
    """Return the function that *target* names, which librdkafka calls in a thread of its own.

    :raises ValueError: if there is no such function.
    """
    module, _, name = target.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"option 'oauth_callback': {error}") from error

    def new_token(config: str) -> tuple[str, float]:
        try:
            token: tuple[str, float] = function(config)
        except Exception:
            # confluent-kafka tells only that there is no token.
            _log.warning("%s, the option 'oauth_callback', has failed", target, exc_info=True)
            raise
        return token

    return new_token


def _log_of_librdkafka() -> logging.Logger:
    """Return the logger for librdkafka's own lines.

    librdkafka reports each connection that fails, and the engine reports outages itself, once.
    """
    log = logging.getLogger("events_kafka.librdkafka")
    if log.level == logging.NOTSET:
        log.setLevel(logging.CRITICAL)
    return log
