"""Tokens of real credentials, on a channel like the one to the service."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

ROOT = Path(__file__).parents[2]


def private_key(key: rsa.RSAPrivateKey) -> bytes:
    encoding, style = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, style, serialization.NoEncryption())


@pytest.fixture
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture
def folder(tmp_path: Path, key: rsa.RSAPrivateKey) -> Path:
    """A certificate of localhost, signed by itself."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "key.pem").write_bytes(private_key(key))
    (tmp_path / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return tmp_path


class Metadata(BaseHTTPRequestHandler):
    """The server that tells a virtual machine about itself, and gives it tokens."""

    numbers = itertools.count(1)

    def do_GET(self) -> None:
        if self.path.partition("?")[0].endswith("/token"):
            token = {"access_token": f"token-{next(self.numbers)}", "expires_in": 3600, "token_type": "Bearer"}
            self._answer(json.dumps(token), "application/json")
        elif "recursive" in self.path:
            self._answer(json.dumps({"email": "default", "scopes": [], "aliases": []}), "application/json")
        else:
            self._answer("googleapis.com" if "universe" in self.path else "events-test", "text/plain")

    def _answer(self, text: str, kind: str) -> None:
        self.send_response(200)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(text)),
            "Metadata-Flavor": "Google",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def metadata() -> Iterator[str]:
    """The address of such a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def tokens(folder: Path, **environment: str) -> list[str]:
    """The tokens that a client shows to a server that does not accept the first one."""
    inherited = {name: value for name, value in os.environ.items() if name != "GOOGLE_APPLICATION_CREDENTIALS"}
    configured = {
        **inherited,
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(folder / "certificate.pem"),
        "CLOUDSDK_CONFIG": str(folder),
        **environment,
    }
    configured.pop("PUBSUB_EMULATOR_HOST", None)
    command = [sys.executable, "-m", "tests.gcp.renewing", str(folder)]
    ended = subprocess.run(command, env=configured, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    shown: list[str] = json.loads(ended.stdout)
    return shown


def test_a_service_account_signs_a_new_token(folder: Path, key: rsa.RSAPrivateKey) -> None:
    """F1: when the service refuses the first token, the repeated request carries another one."""
    account = {
        "type": "service_account",
        "client_email": "sender@events-test.iam.gserviceaccount.com",
        "private_key_id": "1",
        "private_key": private_key(key).decode(),
        "token_uri": "http://127.0.0.1:1/never-asked",
    }
    (folder / "account.json").write_text(json.dumps(account))
    first, second = tokens(folder)
    assert first != second


def test_a_virtual_machine_fetches_a_new_token(folder: Path, metadata: str) -> None:
    """F1: the same with tokens from the metadata server of a machine."""
    assert tokens(folder, GCE_METADATA_HOST=metadata, GCE_METADATA_IP=metadata, NO_GCE_CHECK="false") == [
        "Bearer token-1",
        "Bearer token-2",
    ]
