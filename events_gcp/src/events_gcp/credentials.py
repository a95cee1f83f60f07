"""As whom to speak to the service.  What is here reads files, and may ask a server of the machine: it blocks."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from typing import Any

import google.auth
import grpc  # type: ignore[import-untyped]
from google.auth import impersonated_credentials, load_credentials_from_dict, load_credentials_from_file
from google.auth.credentials import with_scopes_if_required
from google.auth.environment_vars import CREDENTIALS
from google.auth.exceptions import DefaultCredentialsError, InvalidValue
from google.auth.transport.grpc import AuthMetadataPlugin
from google.auth.transport.requests import Request
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

from events_gcp.endpoint import Endpoint
from events_gcp.options import is_content

__all__ = ["channel_credentials", "load_credentials"]

_SCOPES = PublisherGrpcAsyncIOTransport.AUTH_SCOPES

_AUDIENCE = PublisherGrpcAsyncIOTransport.DEFAULT_HOST
"""For whom the key of a service account signs tokens."""

_AGENT = "x-goog-api-client"
"""A header that a request has already.  Google's packages would add one that counts kinds of credentials."""


def load_credentials(endpoint: Endpoint) -> Any:
    """Return the credentials that *endpoint* names: given, a file's, the default ones, or another account's.

    :raises google.auth.exceptions.GoogleAuthError: where there are none.
    :raises OSError: for a file that cannot be read.
    """
    try:
        credentials = _own(endpoint)
    except DefaultCredentialsError as error:
        if any(isinstance(part, InvalidValue) for part in error.args):  # it shows the value, perhaps the private key
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
    """Return what gRPC needs to encrypt a channel and to have each request carry a token of *credentials*.

    ``create_channel`` of Google's packages does the same with a copy of *credentials*, whose token nobody can renew.
    """
    plugin = AuthMetadataPlugin(credentials, Request(), default_host=_AUDIENCE)  # type: ignore[no-untyped-call]

    def authorize(context: Any, callback: Callable[[Any, Exception | None], None]) -> None:
        plugin(context, lambda headers, error: callback([pair for pair in headers if pair[0] != _AGENT], error))

    return grpc.compute_engine_channel_credentials(grpc.metadata_call_credentials(authorize))


def _own(endpoint: Endpoint) -> Any:
    with warnings.catch_warnings():
        # Google's packages warn of credentials from strangers; these come from the person who configures the client.
        warnings.simplefilter("ignore", DeprecationWarning)
        if endpoint.credentials is not None:
            info = json.loads(endpoint.credentials.removeprefix("\ufeff"))
            return load_credentials_from_dict(info, default_scopes=_SCOPES)[0]  # type: ignore[no-untyped-call]
        if endpoint.credentials_file is not None:
            return load_credentials_from_file(  # type: ignore[no-untyped-call]
                endpoint.credentials_file, default_scopes=_SCOPES
            )[0]
    if is_content(os.environ.get(CREDENTIALS, "")):  # the error of Google's packages would show it
        text = f"{CREDENTIALS} has the content of a file (not shown), where a path belongs"
        raise DefaultCredentialsError(text)  # type: ignore[no-untyped-call]
    return google.auth.default(default_scopes=_SCOPES)[0]
