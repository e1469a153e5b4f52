"""The dashboard as a process: Streamlit with our settings, never open to a network."""

import hashlib
import hmac
import ipaddress
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

from experiment_service.config import Settings, variables
from experiment_service.errors import InvalidRequest, Unavailable
from experiment_service.files import open_private


def run(settings: Settings) -> None:
    """Run the dashboard until SIGINT or SIGTERM.

    Raises
    ------
    InvalidRequest
        When it would listen beyond loopback without a login.
    Unavailable
        When its port is in use, its data directory can't be written, or it ends by
        itself.
    """
    check_login(settings)
    _check_port(settings)
    options = {
        "server.address": settings.host,
        "server.port": str(settings.dashboard_port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
    }
    secrets = None
    if settings.oidc_client_secret is not None:
        secrets = write_secrets(settings, settings.oidc_client_secret)
        options["secrets.files"] = str(secrets)
    try:
        _run(settings, options)
    finally:
        if secrets is not None:
            secrets.unlink(missing_ok=True)


def _run(settings: Settings, options: dict[str, str]) -> None:
    command = [sys.executable, "-m", "dashboard.process", "run"]
    command.append(str(Path(__file__).with_name("app.py")))
    command += [
        part for name, value in options.items() for part in (f"--{name}", value)
    ]
    process = subprocess.Popen(command, env=settings.environment())  # noqa: S603

    def hand_on(number: int, _: object) -> None:
        process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    status = process.wait()
    if status not in (0, -signal.SIGINT, -signal.SIGTERM):
        raise Unavailable(f"the dashboard ended with status {status}; see above")


def check_login(settings: Settings) -> None:
    """Refuse to show experiments to a network without asking who looks.

    Raises
    ------
    InvalidRequest
        Says what to set.
    """
    if has_login(settings) or _is_loopback(settings.host):
        return
    names = variables()
    raise InvalidRequest(
        f"the dashboard has no login and {names['host']} is {settings.host!r}, which is "
        f"not loopback; set {names['dashboard_password_hash']} (`experiment-service "
        "hash-password` makes it) or the EXPERIMENT_SERVICE_OIDC_ settings, or listen "
        "on 127.0.0.1"
    )


def has_login(settings: Settings) -> bool:
    """Whether people must log in."""
    return bool(settings.dashboard_password_hash or settings.oidc_client_id)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def write_secrets(settings: Settings, client_secret: str) -> Path:
    """Write what Streamlit's login needs to a file that only we can read.

    The secret of its cookies follows from the client's, so that a restart and other
    replicas take the same cookies.

    Raises
    ------
    Unavailable
        When the data directory can't be written.
    """
    cookies = hmac.new(
        client_secret.encode(), b"experiment-service dashboard", hashlib.sha256
    )
    values = {
        "redirect_uri": settings.oidc_redirect_url,
        "cookie_secret": cookies.hexdigest(),
        "client_id": settings.oidc_client_id,
        "client_secret": client_secret,
        "server_metadata_url": settings.oidc_metadata_url,
    }
    # A text of JSON is one of TOML too.
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = settings.data_dir.absolute() / f"dashboard-{settings.dashboard_port}.toml"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open_private(path) as file:
            file.write("\n".join(["[auth]", *lines, ""]).encode())
    except OSError as error:
        raise Unavailable(
            f"the login's settings can't be written to {path}: {error}"
        ) from error
    return path


def _check_port(settings: Settings) -> None:
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.dashboard_port))
    except OSError as error:
        raise Unavailable(
            f"the dashboard can't listen on {settings.host} port "
            f"{settings.dashboard_port} ({error.strerror}); stop what uses it, or set "
            f"{variables()['dashboard_port']}"
        ) from error
