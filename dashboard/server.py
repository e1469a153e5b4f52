"""The dashboard as a process: Streamlit with our settings."""

import signal
import socket
import subprocess
import sys
from pathlib import Path

from experiment_service.config import Settings, variables
from experiment_service.errors import Unavailable


def run(settings: Settings) -> None:
    """Run the dashboard until SIGINT or SIGTERM.

    Raises
    ------
    Unavailable
        When its port is in use, or it ends by itself.
    """
    _check_port(settings)
    options = {
        "server.address": settings.host,
        "server.port": str(settings.dashboard_port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
    }
    command = [sys.executable, "-m", "streamlit", "run"]
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
