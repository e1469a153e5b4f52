"""I12 by schemathesis: what the live OpenAPI document says is what the service does."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url

from experiment_service import keys
from experiment_service.domain.key import Scope
from experiment_service.storage import database
from tests.conftest import admin
from tests.integration.serving.conftest import (
    bandit,
    declaration,
    launch,
    now,
    open_shop,
    run_experiment,
)

CONFIG = Path(__file__).with_name("schemathesis.toml")
SECONDS = 20


@pytest.fixture(scope="module")
def tested(server_url, template_database, tmp_path_factory):
    """A server that asks for keys, and a key that may do everything."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    directory = tmp_path_factory.mktemp("schemathesis")
    with admin(server_url) as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
    engine = database.create_engine(url, name="test")
    open_shop(engine, directory / "data")
    run_experiment(engine, declaration("home-carousel", layer="a"))
    run_experiment(
        engine, bandit("cart-carousel", layer="b", placement="cart", mode="sticky")
    )
    with database.transaction(engine) as connection:
        made = keys.create(connection, "test", list(Scope), actor="test", now=now())
    server = launch(directory, directory / "data", url)
    server.key = made.written
    yield server
    server.stop()
    engine.dispose()
    with admin(server_url) as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


def test_the_service_does_what_its_document_says(tested, tmp_path):
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        "--config-file",
        str(CONFIG),
        "run",
        f"{tested.address}/openapi.json",
        "--max-time",
        str(SECONDS),
        "--continue-on-failure",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"KEY": tested.key, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=10 * SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert "Traceback" not in tested.log.read_text()
    assert tested.get("/health/ready").json()["status"] == "ready"
