"""The MLflow tracking server; MLflow itself is loaded here, and when it is needed only."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from experiment_service.errors import NotFound, Unavailable
from experiment_service.lazy import require

if TYPE_CHECKING:
    from mlflow import MlflowClient

#: How MLflow behaves where the environment does not say otherwise. By itself it tries each
#: request eight times for two minutes, waits as long as a server asks, reports its use
#: over the internet, and prints.
_ENVIRONMENT: Mapping[str, str] = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

#: Seconds in which the server has to answer at all, before anything is sent.
_KNOCK_SECONDS = 5.0

_MOST_CHARACTERS = 500

#: Where errors come from that are no trouble of a server.
_OURS = ("builtins", __name__.partition(".")[0])


def connect(uri: str) -> "MlflowClient":
    """Return a client of a tracking server that answers.

    Who may enter is MLflow's to know: ``MLFLOW_TRACKING_USERNAME`` and
    ``MLFLOW_TRACKING_PASSWORD``, or ``MLFLOW_TRACKING_TOKEN``.

    Raises
    ------
    InvalidRequest
        When MLflow is not installed.
    Unavailable
        When nothing answers there within some seconds.
    """
    require("mlflow", extra="mlflow", why="a tracking server is given")
    try:
        # Who it is, by MLflow's own certificates, is for MLflow to check.
        httpx.get(f"{uri}/health", timeout=_KNOCK_SECONDS, verify=False)  # noqa: S501
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise Unavailable(
            f"tracking server {uri} does not answer ({_short(error)})"
        ) from error
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)  # noqa: TID251 - MLflow reads it from there
    from mlflow import MlflowClient  # noqa: PLC0415 - takes seconds

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def known_failures(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into errors of the service.

    Raises
    ------
    NotFound
        When the server knows no such thing.
    Unavailable
        When it does not answer, or refuses.
    """
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - takes seconds
    from requests import RequestException  # noqa: PLC0415 - comes with MLflow

    try:
        yield
    except MlflowException as error:
        # An alias that is not there has a code of its own, a file none.
        missing = "RESOURCE_DOES_NOT_EXIST" in f"{error.error_code} {error}"
        missing |= str(error).endswith("not found.")
        kind = NotFound if missing else Unavailable
        raise kind(f"tracking server {uri}: {_short(error)}") from error
    except (RequestException, ImportError) as error:
        # An artifact store of its own kind, such as S3, wants a client library.
        raise Unavailable(f"tracking server {uri}: {_short(error)}") from error
    except Exception as error:
        # Such a library has errors of its own.
        if type(error).__module__.partition(".")[0] in _OURS:
            raise
        raise Unavailable(f"tracking server {uri}: {_short(error)}") from error


def all_pages(search: Callable[..., Any], *given: Any, **options: Any) -> list[Any]:  # noqa: ANN401 - MLflow's
    """Return what a search of MLflow finds, over all pages."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(*given, **options, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
