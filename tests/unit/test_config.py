"""Settings: each read from its variable, every problem told at once."""

from pathlib import Path

import pytest

from experiment_service.config import Settings, variables
from experiment_service.errors import InvalidRequest
from experiment_service.passwords import hash_password

OIDC = {
    "EXPERIMENT_SERVICE_OIDC_METADATA_URL": "https://id.example/.well-known/openid",
    "EXPERIMENT_SERVICE_OIDC_CLIENT_ID": "dashboard",
    "EXPERIMENT_SERVICE_OIDC_CLIENT_SECRET": "very secret",
    "EXPERIMENT_SERVICE_OIDC_REDIRECT_URL": "https://shop.example/oauth2callback",
    "EXPERIMENT_SERVICE_OIDC_ALLOWED": "@shop.example",
}
PASSWORD_HASH = "EXPERIMENT_SERVICE_DASHBOARD_PASSWORD_HASH"
ALL = {
    "DATABASE_URL": "postgresql://host/shop",
    "EXPERIMENT_SERVICE_READER_URL": "postgresql://reader@host/shop",
    "EXPERIMENT_SERVICE_UNIT_KEY": "0123456789abcdef0123456789abcdef",
    "EXPERIMENT_SERVICE_DATA_DIR": "/data",
    "EXPERIMENT_SERVICE_HOST": "0.0.0.0",
    "EXPERIMENT_SERVICE_PORT": "9000",
    "EXPERIMENT_SERVICE_API_URL": "http://api:8000/",
    "EXPERIMENT_SERVICE_DASHBOARD_PORT": "9001",
    "EXPERIMENT_SERVICE_JOURNAL_MAX_BYTES": "2097152",
    "EXPERIMENT_SERVICE_RETENTION_DAYS": "400",
    "EXPERIMENT_SERVICE_ARCHIVE_DIR": "/archive",
    "EXPERIMENT_SERVICE_SNAPSHOT_POLL_SECONDS": "0.5",
    **OIDC,
    "EXPERIMENT_SERVICE_OFREP_EXPOSURES": "single",
    "EXPERIMENT_SERVICE_REFUSALS_PER_SECOND": "2.5",
    "EXPERIMENT_SERVICE_TRUSTED_PROXIES": "10.0.0.5, fd00::/8",
    "EXPERIMENT_SERVICE_NOTIFY_URLS": "json://hook/s3cret mailto://shop?to=a@b,c@d",
    "EXPERIMENT_SERVICE_MONITOR_THRESHOLDS": "fallback_share=0.3 list_age=30.0",
    "EXPERIMENT_SERVICE_MLFLOW_TRACKING_URI": "https://mlflow.example:5000/base",
    "EXPERIMENT_SERVICE_PIPELINES": "/etc/pipelines",
    "EXPERIMENT_SERVICE_LOG_FORMAT": "json",
}


def test_each_setting_is_read_from_its_variable():
    assert {*ALL, PASSWORD_HASH} == set(variables().values())
    assert Settings.from_environment(ALL) == Settings(
        database_url="postgresql://host/shop",
        reader_url="postgresql://reader@host/shop",
        unit_key="0123456789abcdef0123456789abcdef",
        data_dir=Path("/data"),
        host="0.0.0.0",
        port=9000,
        api_url="http://api:8000/",
        dashboard_port=9001,
        journal_max_bytes=2_097_152,
        retention_days=400,
        archive_dir=Path("/archive"),
        snapshot_poll_seconds=0.5,
        oidc_metadata_url="https://id.example/.well-known/openid",
        oidc_client_id="dashboard",
        oidc_client_secret="very secret",
        oidc_redirect_url="https://shop.example/oauth2callback",
        oidc_allowed="@shop.example",
        ofrep_exposures="single",
        refusals_per_second=2.5,
        trusted_proxies="10.0.0.5, fd00::/8",
        notify_urls=("json://hook/s3cret", "mailto://shop?to=a@b,c@d"),
        monitor_thresholds={"fallback_share": 0.3, "list_age": 30},
        mlflow_tracking_uri="https://mlflow.example:5000/base",
        pipelines=Path("/etc/pipelines"),
        log_format="json",
    )


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:8000"),
        ({"host": "::", "port": 81}, "http://[::1]:81"),
        ({"host": "shop.example"}, "http://shop.example:8000"),
        ({"host": "0.0.0.0", "api_url": "http://api:8000/"}, "http://api:8000"),
    ],
)
def test_the_dashboard_finds_the_api(given, address):
    assert Settings(**given).api_address == address


def test_an_address_of_the_api_must_be_one():
    with pytest.raises(InvalidRequest, match="API_URL is 'api:8000'; it must start"):
        Settings.from_environment({"EXPERIMENT_SERVICE_API_URL": "api:8000"})


@pytest.mark.parametrize(
    "uri",
    ["sqlite:///s3cret", "/s3cret", "http://", "http://[s3cret", "https://s3cret:0"],
)
def test_a_tracking_server_is_one(uri):
    with pytest.raises(InvalidRequest, match="it must be http:// or https://") as told:
        Settings.from_environment({"EXPERIMENT_SERVICE_MLFLOW_TRACKING_URI": uri})
    assert "s3cret" not in told.value.message


@pytest.mark.parametrize(
    "uri", ["http://ana:s3cret@host", "http://s3cret@host", "http://host?token=s3cret"]
)
def test_a_tracking_server_is_named_without_secrets(uri):
    with pytest.raises(InvalidRequest, match="MLFLOW_TRACKING_PASSWORD") as told:
        Settings.from_environment({"EXPERIMENT_SERVICE_MLFLOW_TRACKING_URI": uri})
    assert "s3cret" not in told.value.message


def test_what_is_not_set_or_empty_has_its_default():
    assert Settings.from_environment({}) == Settings()
    assert Settings.from_environment(dict.fromkeys(ALL, "")) == Settings()


@pytest.mark.parametrize("port", ["0", "65536", "-1", "80.0", "http", "8_000", "²"])
def test_a_port_is_a_port(port):
    with pytest.raises(InvalidRequest) as refusal:
        Settings.from_environment({"EXPERIMENT_SERVICE_PORT": port})
    assert f"EXPERIMENT_SERVICE_PORT is {port!r}; it must be a whole number from 1" in (
        refusal.value.message
    )


def test_a_choice_names_the_others():
    with pytest.raises(InvalidRequest) as refusal:
        Settings.from_environment({"EXPERIMENT_SERVICE_LOG_FORMAT": "xml"})
    assert "LOG_FORMAT is 'xml'; it must be one of text, json" in refusal.value.message


@pytest.mark.parametrize("seconds", ["0", "3601", "nan", "inf", "soon"])
def test_a_poll_is_some_seconds(seconds):
    variable = "EXPERIMENT_SERVICE_SNAPSHOT_POLL_SECONDS"
    with pytest.raises(InvalidRequest, match=r"it must be seconds from 0\.1 to 3600"):
        Settings.from_environment({variable: seconds})


def test_a_hash_is_one_of_ours_and_no_message_repeats_it():
    stored = hash_password("a good password")
    settings = Settings.from_environment({PASSWORD_HASH: stored})
    assert settings.dashboard_password_hash == stored
    assert stored not in repr(settings)
    for wrong in ("a good password", stored[:-8], stored.replace("16384", "2")):
        with pytest.raises(InvalidRequest, match="hash-password") as refusal:
            Settings.from_environment({PASSWORD_HASH: wrong})
        assert wrong not in refusal.value.message


def test_the_login_of_a_provider_needs_all_its_settings():
    incomplete = dict(OIDC)
    del incomplete["EXPERIMENT_SERVICE_OIDC_ALLOWED"]
    with pytest.raises(InvalidRequest, match="OIDC_ALLOWED must be set too"):
        Settings.from_environment(incomplete)
    with pytest.raises(InvalidRequest, match="one kind of login"):
        Settings.from_environment({**OIDC, PASSWORD_HASH: hash_password("long enough")})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("METADATA_URL", "http://id.example", "must start with https://"),
        ("REDIRECT_URL", "https://shop.example", "with /oauth2callback"),
        ("REDIRECT_URL", "shop.example/oauth2callback", "dashboard's own address"),
    ],
)
def test_addresses_of_the_login_are_checked(name, value, rule):
    variable = f"EXPERIMENT_SERVICE_OIDC_{name}"
    with pytest.raises(InvalidRequest, match=rule):
        Settings.from_environment({**OIDC, variable: value})


def test_all_problems_are_told_at_once_and_other_programs_are_left_alone():
    environ = {
        "EXPERIMENT_SERVICE_PORT": "99999",
        "EXPERIMENT_SERVICE_JOURNAL_MAX_BYTES": "1",
        "EXPERIMENT_SERVICE_PROT": "8000",
        "EXPERIMENT_SERVICE_TEST_DATABASE_URL": "x",
        "SOMETHING_ELSE": "y",
    }
    with pytest.raises(InvalidRequest) as refusal:
        Settings.from_environment(environ)
    message = refusal.value.message
    assert message.count("; it must be") == 2
    assert "EXPERIMENT_SERVICE_PROT is not a setting; the settings are " in message
    assert "TEST_DATABASE_URL" not in message
    assert "SOMETHING_ELSE" not in message


def test_a_child_process_reads_the_same_settings(monkeypatch):
    for variable, value in ALL.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.from_environment()
    child = settings.environment(database_url="postgresql://elsewhere/shop")
    assert child["DATABASE_URL"] == "postgresql://elsewhere/shop"
    assert {name: child[name] for name in ALL} == ALL | {
        "DATABASE_URL": "postgresql://elsewhere/shop"
    }


def test_secrets_are_shown_nowhere():
    settings = Settings.from_environment(ALL)
    assert "postgresql" not in repr(settings)
    assert "s3cret" not in repr(settings)
    assert ALL["EXPERIMENT_SERVICE_UNIT_KEY"] not in repr(settings)
    short = {"EXPERIMENT_SERVICE_UNIT_KEY": "hunter2"}
    with pytest.raises(
        InvalidRequest, match="is set, but not well; it must have 32"
    ) as refusal:
        Settings.from_environment(short)
    assert "hunter2" not in refusal.value.message
    with pytest.raises(InvalidRequest, match=r"number 1 \(without a scheme\) is none"):
        Settings.from_environment({"EXPERIMENT_SERVICE_NOTIFY_URLS": "s3cret"})


def test_a_reader_needs_a_database():
    reader = {"EXPERIMENT_SERVICE_READER_URL": "postgresql://reader@host/shop"}
    with pytest.raises(InvalidRequest, match="DATABASE_URL is not; set both"):
        Settings.from_environment(reader)
    assert Settings().reading_url is None
    assert Settings(database_url="a").reading_url == "a"
    assert Settings(database_url="a", reader_url="b").reading_url == "b"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("", False),
    ],
)
def test_loopback_is_what_only_this_machine_reaches(host, loopback):
    assert Settings(host=host).is_loopback is loopback
