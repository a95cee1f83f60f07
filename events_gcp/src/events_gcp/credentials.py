"""The account that a client uses.

These functions block: they read files, and may ask the metadata server of the machine.  So a thread calls them.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import google.auth
import grpc  # type: ignore[import-untyped]
from google.auth import impersonated_credentials, load_credentials_from_dict
from google.auth.credentials import with_scopes_if_required
from google.auth.environment_vars import CREDENTIALS
from google.auth.exceptions import DefaultCredentialsError, InvalidValue
from google.auth.transport.grpc import AuthMetadataPlugin
from google.auth.transport.requests import Request
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

from events_core.engine import read_bounded
from events_gcp.endpoint import Endpoint
from events_gcp.options import is_content

__all__ = ["channel_credentials", "load_credentials"]

_SCOPES = PublisherGrpcAsyncIOTransport.AUTH_SCOPES

_AUDIENCE = PublisherGrpcAsyncIOTransport.DEFAULT_HOST
"""The audience of a token that the key of a service account signs."""

_AGENT = "x-goog-api-client"
"""A header that each request has already.  Google's packages would add a second one, which names the kind of
credentials."""


def load_credentials(endpoint: Endpoint) -> Any:
    """Return the credentials that *endpoint* names.

    They come from the configuration, from a file, or from the environment (Application Default Credentials), and may
    then impersonate another account.

    :raises google.auth.exceptions.GoogleAuthError: if there are none, or their file cannot be read.
    """
    try:
        credentials = _own(endpoint)
    except DefaultCredentialsError as error:
        if any(isinstance(part, InvalidValue) for part in error.args):
            # Its text shows the value, which may be the private key.
            text = f"{error.args[0]}: a field has a value of the wrong type (not shown)"
            raise DefaultCredentialsError(text) from None  # type: ignore[no-untyped-call]
        raise
    if endpoint.impersonate_service_account:
        credentials = impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
            source_credentials=credentials,
            target_principal=endpoint.impersonate_service_account,
            target_scopes=list(_SCOPES),
        )
    if endpoint.quota_project_id:
        credentials = credentials.with_quota_project(endpoint.quota_project_id)
    return with_scopes_if_required(credentials, None, default_scopes=_SCOPES)  # type: ignore[no-untyped-call]


def channel_credentials(credentials: Any) -> Any:
    """Return gRPC's credentials for a channel: it is encrypted, and each request carries a token of *credentials*.

    ``create_channel`` of Google's packages uses a copy of *credentials*, whose token could not be renewed from here.
    """
    plugin = AuthMetadataPlugin(credentials, Request(), default_host=_AUDIENCE)  # type: ignore[no-untyped-call]

    def authorize(context: Any, callback: Callable[[Any, Exception | None], None]) -> None:
        plugin(context, lambda headers, error: callback([pair for pair in headers if pair[0] != _AGENT], error))

    return grpc.compute_engine_channel_credentials(grpc.metadata_call_credentials(authorize))


def _own(endpoint: Endpoint) -> Any:
    with warnings.catch_warnings():
        # Google's packages warn about credentials from untrusted sources.  These come from the configuration.
        warnings.simplefilter("ignore", DeprecationWarning)
        if endpoint.credentials is not None:
            info = json.loads(endpoint.credentials.removeprefix("\ufeff"))
            return load_credentials_from_dict(info, default_scopes=_SCOPES)[0]  # type: ignore[no-untyped-call]
        path = endpoint.credentials_file or os.environ.get(CREDENTIALS)
        if not path:
            return google.auth.default(default_scopes=_SCOPES)[0]
        if is_content(path):
            # Google's packages would show the content in an error.
            text = f"{CREDENTIALS} must be the path of a file, but it has the content of one (not shown)"
            raise DefaultCredentialsError(text)  # type: ignore[no-untyped-call]
        return _of_file(path)


def _of_file(path: str) -> Any:
    # Google's packages would read a file without an end until the memory is full, and wait for a FIFO without a bound.
    try:
        info = json.loads(read_bounded(path))
    except OSError as error:
        text = f"cannot read the file {path!r}: {error.strerror}"
        raise DefaultCredentialsError(text) from error  # type: ignore[no-untyped-call]
    except (ValueError, RecursionError):  # without the cause, which has the content
        raise DefaultCredentialsError(f"the file {path!r} is not JSON") from None  # type: ignore[no-untyped-call]
    try:
        return load_credentials_from_dict(info, default_scopes=_SCOPES)[0]  # type: ignore[no-untyped-call]
    except DefaultCredentialsError as error:
        text, *more = error.args
        error.args = (f"in the file {path!r}: {text}", *more)
        raise
