"""Settings, read once from the environment at the entry points.

`DATABASE_URL` has its usual name; the others start with `EXPERIMENT_SERVICE_`. The
README lists each; a test demands that.
"""

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from experiment_service.domain.monitor import parse_thresholds
from experiment_service.errors import InvalidRequest
from experiment_service.notification import split_urls
from experiment_service.passwords import check_hash

PREFIX = "EXPERIMENT_SERVICE_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator may set.

    Attributes
    ----------
    database_url : str or None
        PostgreSQL 14 or newer; None runs the embedded server under `data_dir`.
    reader_url : str or None
        The same database by a role that can only read, for the dashboard and reports.
    unit_key : str or None
        Secret; with it, pseudonyms stand for unit ids everywhere behind the door.
    data_dir : Path
        Embedded database, journals, published lists, snapshot.
    host, port : str, int
        Where the API listens.
    api_url : str or None
        Where the dashboard reaches the API; None is `port` of this machine.
    dashboard_port : int
        Where the dashboard listens, on the same host.
    journal_max_bytes : int
        Accepted events that may wait for the database before the API answers 503.
    retention_days : int or None
        Age of raw events from which whole months of them go; None keeps them for ever.
    archive_dir : Path or None
        Where they go; None keeps no copy.
    snapshot_poll_seconds : float
        Longest time until a change is seen when its notification was lost.
    dashboard_password_hash : str or None
        Of the dashboard's password, as the command hash-password prints it.
    oidc_metadata_url, oidc_client_id, oidc_client_secret, oidc_redirect_url : str or None
        Of the OpenID Connect provider that the dashboard's users log in with.
    oidc_allowed : str or None
        Addresses (ana@shop.example) and domains (@shop.example) that may enter, with
        commas between; * for all that the provider knows.
    ofrep_exposures : str
        ``single``: evaluating one flag over OFREP records an exposure; or ``never``.
    refusals_per_second : float or None
        Requests without a good key that an address may send; None for no limit.
    trusted_proxies : str or None
        Addresses and networks whose X-Forwarded-For is believed, with commas between.
    notify_urls : tuple of str
        Where alerts and failed releases are told, as addresses of apprise.
    monitor_thresholds : mapping of str to float
        Those of monitors that are not the default.
    mlflow_tracking_uri : str or None
        MLflow tracking server that model versions are mirrored to; None for none.
    pipelines : Path or None
        Folder of the pipelines that the worker releases on their schedules.
    log_format : str
        ``text`` or ``json``.
    """

    database_url: str | None = field(default=None, repr=False)
    reader_url: str | None = field(default=None, repr=False)
    unit_key: str | None = field(default=None, repr=False)
    data_dir: Path = Path(".experiment-service")
    host: str = "127.0.0.1"
    port: int = 8000
    api_url: str | None = None
    dashboard_port: int = 8501
    journal_max_bytes: int = 1 << 30
    retention_days: int | None = None
    archive_dir: Path | None = None
    snapshot_poll_seconds: float = 5.0
    dashboard_password_hash: str | None = field(default=None, repr=False)
    oidc_metadata_url: str | None = None
    oidc_client_id: str | None = None
    oidc_client_secret: str | None = field(default=None, repr=False)
    oidc_redirect_url: str | None = None
    oidc_allowed: str | None = None
    ofrep_exposures: str = "never"
    refusals_per_second: float | None = None
    trusted_proxies: str | None = None
    notify_urls: tuple[str, ...] = field(default=(), repr=False)
    monitor_thresholds: Mapping[str, float] = field(default_factory=dict)
    mlflow_tracking_uri: str | None = None
    pipelines: Path | None = None
    log_format: str = "text"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read settings; all problems are reported at once.

        Raises
        ------
        InvalidRequest
            Names each variable, its value and the rule.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        problems: list[str] = []
        for name, variable in variables().items():
            raw = environ.get(variable, "")
            if not raw:
                continue
            try:
                values[name] = _READERS.get(name, str)(raw)
            except ValueError as error:
                shown = "set, but not well" if name in _SECRET else repr(raw)
                problems.append(f"{variable} is {shown}; {error}")
        if values.get("reader_url") and not values.get("database_url"):
            problems.append(
                f"{variables()['reader_url']} is set and DATABASE_URL is not; set both"
            )
        known = set(variables().values())
        problems += [
            f"{variable} is not a setting; the settings are {', '.join(sorted(known))}"
            for variable in environ
            if variable.startswith(PREFIX)
            and not variable.startswith(f"{PREFIX}TEST_")
            and variable not in known
        ]
        problems += _login_problems(values)
        if problems:
            raise InvalidRequest("; ".join(problems))
        return cls(**values)

    @property
    def reading_url(self) -> str | None:
        """URL for programs that only read."""
        return self.reader_url or self.database_url

    @property
    def api_address(self) -> str:
        """Where this machine reaches the API."""
        if self.api_url is not None:
            return self.api_url.rstrip("/")
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - not listened on
        host = anywhere.get(self.host, self.host)
        return f"http://{f'[{host}]' if host.count(':') > 1 else host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether `host` is one that only this machine can reach."""
        return is_loopback(self.host)

    def environment(self, **changes: str) -> dict[str, str]:
        """Return this process's environment with these settings, for a child."""
        given = {each.name: getattr(self, each.name) for each in fields(self)} | changes
        given["notify_urls"] = " ".join(self.notify_urls)
        given["monitor_thresholds"] = " ".join(
            f"{name}={value}" for name, value in self.monitor_thresholds.items()
        )
        return dict(os.environ) | {
            variable: str(given[name])
            for name, variable in variables().items()
            if given[name] is not None
        }


def is_loopback(name: str) -> bool:
    """Whether a name or address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def variables() -> dict[str, str]:
    """Return the environment variable of each setting."""
    names = [each.name for each in fields(Settings)]
    return {
        name: "DATABASE_URL" if name == "database_url" else PREFIX + name.upper()
        for name in names
    }


def _login_problems(values: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with the settings of the login taken together."""
    names = [name for name in variables() if name.startswith("oidc_")]
    given = [name for name in names if name in values]
    missing = [variables()[name] for name in names if name not in values]
    problems = []
    if given and missing:
        problems.append(
            f"{', '.join(missing)} must be set too, as {variables()[given[0]]} is"
        )
    if given and "dashboard_password_hash" in values:
        problems.append(
            f"{variables()['dashboard_password_hash']} and {variables()[given[0]]} are "
            "both set; the dashboard has one kind of login"
        )
    return problems


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(raw: str) -> int:
        rule = f"it must be a whole number from {low} to {high}"
        if not raw.isdecimal() or not low <= int(raw) <= high:
            raise ValueError(rule)
        return int(raw)

    return read


def _seconds(raw: str) -> float:
    rule = "it must be seconds from 0.1 to 3600"
    try:
        value = float(raw)
    except ValueError:
        raise ValueError(rule) from None
    if not 0.1 <= value <= 3600:
        raise ValueError(rule)
    return value


def _rate(raw: str) -> float:
    rule = "it must be requests a second from 0.01 to 100000"
    try:
        value = float(raw)
    except ValueError:
        raise ValueError(rule) from None
    if not 0.01 <= value <= 100_000:
        raise ValueError(rule)
    return value


def _networks(raw: str) -> str:
    try:
        for each in raw.split(","):
            ipaddress.ip_network(each.strip())
    except ValueError:
        rule = "it must be addresses or networks, such as 10.0.0.5,192.168.0.0/16"
        raise ValueError(rule) from None
    return raw


def _http_url(raw: str) -> str:
    if not raw.startswith(("https://", "http://")):
        raise ValueError("it must start with https:// or http://")
    return raw


def tracking_uri(raw: str) -> str:
    """Return the address of a tracking server, which may be logged.

    Raises
    ------
    ValueError
        With the rule, and without the address.
    """
    rule = "it must be http:// or https:// and a host"
    try:
        parts = urlsplit(raw)
        has_port = parts.port != 0
    except ValueError:
        raise ValueError(rule) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not has_port:
        raise ValueError(rule)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "it must hold no user, password or token; MLFLOW_TRACKING_USERNAME, "
            "MLFLOW_TRACKING_PASSWORD and MLFLOW_TRACKING_TOKEN are for them"
        )
    return raw.rstrip("/")


def _metadata_url(raw: str) -> str:
    if not raw.startswith(("https://", "http://localhost", "http://127.0.0.1")):
        raise ValueError("it must start with https://")
    return raw


def _redirect_url(raw: str) -> str:
    if not raw.startswith(("https://", "http://")) or not raw.endswith(_CALLBACK):
        raise ValueError(f"it must be the dashboard's own address with {_CALLBACK}")
    return raw


_CALLBACK = "/oauth2callback"
#: Settings whose value no message repeats.
_SECRET = frozenset(
    {
        "database_url",
        "reader_url",
        "unit_key",
        "dashboard_password_hash",
        "oidc_client_secret",
        "notify_urls",
        "mlflow_tracking_uri",
    }
)


def _long_secret(raw: str) -> str:
    if not 32 <= len(raw) <= 256:
        raise ValueError(
            "it must have 32 to 256 characters; `openssl rand -hex 32` makes one"
        )
    return raw


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(raw: str) -> str:
        if raw not in choices:
            raise ValueError(f"it must be one of {', '.join(choices)}")
        return raw

    return read


_READERS: Mapping[str, Callable[[str], Any]] = {
    "unit_key": _long_secret,
    "data_dir": Path,
    "pipelines": Path,
    "port": _whole(1, 65_535),
    "api_url": _http_url,
    "dashboard_port": _whole(1, 65_535),
    "journal_max_bytes": _whole(1 << 20, 1 << 40),
    "retention_days": _whole(30, 36_500),
    "archive_dir": Path,
    "snapshot_poll_seconds": _seconds,
    "dashboard_password_hash": check_hash,
    "oidc_metadata_url": _metadata_url,
    "oidc_redirect_url": _redirect_url,
    "refusals_per_second": _rate,
    "trusted_proxies": _networks,
    "ofrep_exposures": _one_of("never", "single"),
    "notify_urls": split_urls,
    "monitor_thresholds": parse_thresholds,
    "mlflow_tracking_uri": tracking_uri,
    "log_format": _one_of("text", "json"),
}
