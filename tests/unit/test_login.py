"""Who may look: passwords, cookies, waiting after failures, and loopback."""

import hashlib
import re
import tomllib
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest

from dashboard import login, server
from experiment_service.cli import main
from experiment_service.config import Settings
from experiment_service.errors import InvalidRequest, Unavailable
from experiment_service.passwords import check_hash, hash_password, verify_password

PASSWORD = "correct horse battery"
STORED = hash_password(PASSWORD)
OIDC = {
    "oidc_metadata_url": "https://id.example/.well-known/openid-configuration",
    "oidc_client_id": 'client "1"',
    "oidc_client_secret": "sécret\\n\u2028",
    "oidc_redirect_url": "https://shop.example/oauth2callback",
    "oidc_allowed": "*",
}


def test_only_the_password_fits_its_hash():
    assert verify_password(PASSWORD, STORED)
    for wrong in ("", PASSWORD + " ", PASSWORD.upper(), "x" * 2000, "\ud800"):
        assert not verify_password(wrong, STORED)
    assert hash_password(PASSWORD) != STORED


def test_the_hash_is_scrypt_as_others_compute_it():
    _, n, r, p, salt, key = STORED.split(":")
    expected = hashlib.scrypt(
        PASSWORD.encode(),
        salt=urlsafe_b64decode(salt),
        n=int(n),
        r=int(r),
        p=int(p),
        dklen=32,
    )
    assert urlsafe_b64decode(key) == expected
    assert int(n) * int(r) * 128 >= 16 << 20


@pytest.mark.parametrize(
    "text",
    ["", "secret", "a:b:c:d:e:f", STORED[:-4], STORED + ":", "scrypt:1:1:1::"],
    # A salt is drawn anew by each process; names of tests must be the same in all.
    ids=["nothing", "a word", "no scrypt", "cut off", "too long", "bad numbers"],
)
def test_what_is_no_hash_is_refused(text):
    with pytest.raises(ValueError, match="hash-password"):
        check_hash(text)


@pytest.mark.parametrize("password", ["", "too short", "x" * 1001])
def test_a_new_password_has_a_decent_length(password):
    with pytest.raises(InvalidRequest, match="it must have 10 to 1000"):
        hash_password(password)


def test_the_command_reads_a_password_and_prints_its_hash(
    monkeypatch, capsys, tmp_path
):
    given = tmp_path / "password"
    given.write_text(f"{PASSWORD}\n")
    with given.open() as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["hash-password"]) == 0
    printed = capsys.readouterr().out.strip()
    assert verify_password(PASSWORD, printed)


def test_the_command_asks_a_terminal_twice(monkeypatch, capsys):
    answers = iter([PASSWORD, PASSWORD, PASSWORD, "another one"])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("getpass.getpass", lambda _: next(answers))
    assert main(["hash-password"]) == 0
    assert verify_password(PASSWORD, capsys.readouterr().out.strip())
    assert main(["hash-password"]) == 2
    assert "differ" in capsys.readouterr().err


def test_a_cookie_lets_in_until_its_time_and_for_its_password_only():
    token = login.make_token(STORED, 1000.0)
    assert login.is_valid(token, STORED, now=999.0)
    assert not login.is_valid(token, STORED, now=1000.0)
    assert not login.is_valid(token, hash_password(PASSWORD), now=999.0)
    until, signature = token.split(".")
    forged = (f"9999.{signature}", until, "", ".", f"{until}.", "nan.x", "ü.ü")
    assert not any(login.is_valid(each, STORED, now=0.0) for each in forged)
    assert re.fullmatch(r"\d+\.[0-9a-f]{64}", token)


def test_who_fails_often_waits_ever_longer():
    now = [0.0]
    attempts = login.Attempts(lambda: now[0])
    for _ in range(login.FREE_FAILURES):
        assert attempts.wait("a") == 0
        attempts.failed("a")
    assert attempts.wait("a") == login.FIRST_WAIT_SECONDS
    assert attempts.wait("b") == 0
    now[0] = login.FIRST_WAIT_SECONDS
    assert attempts.wait("a") == 0
    attempts.failed("a")
    assert attempts.wait("a") == 2 * login.FIRST_WAIT_SECONDS
    for _ in range(50):
        attempts.failed("a")
    assert attempts.wait("a") == login.LONGEST_WAIT_SECONDS
    attempts.succeeded("a")
    assert attempts.wait("a") == 0


def test_addresses_are_not_kept_without_end(monkeypatch):
    monkeypatch.setattr(login, "_MOST_ADDRESSES", 3)
    attempts = login.Attempts(lambda: 0.0)
    for address in "aaaaabcd":
        attempts.failed(address)
    assert attempts.wait("a") == 0
    assert len(attempts._failures) == 3


@pytest.mark.parametrize(
    ("address", "allowed", "enters"),
    [
        ("ana@shop.example", "ana@shop.example", True),
        ("Ana@Shop.Example", " @shop.example , bo@x.example", True),
        ("bo@x.example", "@shop.example,bo@x.example", True),
        ("eve@evil.example", "@shop.example", False),
        ("eve@evilshop.example", "@shop.example", False),
        ("ana@shop.example@evil.example", "@shop.example", False),
        ("shop.example", "@shop.example", False),
        ("", "", False),
        ("", "*", True),
    ],
)
def test_who_is_allowed_enters(address, allowed, enters):
    assert login.may_enter(address, allowed) is enters


@pytest.mark.parametrize("verified", [False, "false"])
def test_an_address_that_the_provider_did_not_verify_stays_outside(verified):
    assert not login.may_enter("ana@shop.example", "@shop.example", verified=verified)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_login(host):
    server.check_login(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "shop.example", ""])
def test_any_other_host_needs_one(host):
    with pytest.raises(InvalidRequest, match="DASHBOARD_PASSWORD_HASH") as refusal:
        server.check_login(Settings(host=host))
    assert "hash-password" in refusal.value.message
    server.check_login(Settings(host=host, dashboard_password_hash=STORED))
    server.check_login(Settings(host=host, **OIDC))


def test_the_command_refuses_a_network_without_a_login(monkeypatch, capsys):
    monkeypatch.setenv("EXPERIMENT_SERVICE_HOST", "0.0.0.0")
    assert main(["dashboard"]) == 2
    told = capsys.readouterr().err
    assert "the dashboard has no login" in told
    assert "Traceback" not in told


def test_secrets_are_written_for_us_alone(tmp_path):
    settings = Settings(data_dir=tmp_path / "data", **OIDC)
    written = server.write_secrets(settings, OIDC["oidc_client_secret"])
    assert written.stat().st_mode & 0o777 == 0o600
    auth = tomllib.loads(written.read_text("utf-8"))["auth"]
    assert auth["client_secret"] == OIDC["oidc_client_secret"]
    assert auth["client_id"] == OIDC["oidc_client_id"]
    assert len(auth["cookie_secret"]) == 64
    again = server.write_secrets(settings, OIDC["oidc_client_secret"])
    assert tomllib.loads(again.read_text("utf-8"))["auth"] == auth


def test_secrets_that_cannot_be_written_are_told(tmp_path):
    (tmp_path / "file").write_text("")
    settings = Settings(data_dir=Path(tmp_path / "file"), **OIDC)
    with pytest.raises(Unavailable, match="can't be written"):
        server.write_secrets(settings, "x")
