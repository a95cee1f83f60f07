"""As whom to speak to the service.  What is here reads files, and may ask a server of the machine: it blocks."""

from __future__ import annotations

import warnings
from typing import Any

import google.auth
from google.auth import impersonated_credentials, load_credentials_from_file
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport

from events_gcp.endpoint import Endpoint

__all__ = ["load_credentials"]

_SCOPES = PublisherGrpcAsyncIOTransport.AUTH_SCOPES


def load_credentials(endpoint: Endpoint) -> Any:
    """The credentials that *endpoint* names: a file's or the application's default ones, or those of another account.

    :raises google.auth.exceptions.GoogleAuthError: where there are none.
    :raises OSError: for a file that cannot be read.
    """
    credentials = _own(endpoint.credentials_file)
    if endpoint.impersonate_service_account:
        credentials = impersonated_credentials.Credentials(  # type: ignore[no-untyped-call]
            source_credentials=credentials,
            target_principal=endpoint.impersonate_service_account,
            target_scopes=list(_SCOPES),
        )
    if endpoint.quota_project_id:
        credentials = credentials.with_quota_project(endpoint.quota_project_id)
    return credentials


def _own(path: str | None) -> Any:
    if path is None:
        return google.auth.default(default_scopes=_SCOPES)[0]
    with warnings.catch_warnings():
        # It warns of files from strangers; this one is named by whoever configures the client.
        warnings.simplefilter("ignore", DeprecationWarning)
        return load_credentials_from_file(path, default_scopes=_SCOPES)[0]  # type: ignore[no-untyped-call]
