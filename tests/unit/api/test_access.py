"""Access: who gets in, who does not and why, and how many requests a second."""

from datetime import UTC, datetime, timedelta
from http import HTTPStatus

import pytest

from experiment_service.api import limits
from experiment_service.api.access import (
    Access,
    Caller,
    answer_headers,
    is_preflight,
    permission_needed,
)
from experiment_service.api.failures import Failure
from experiment_service.domain.configuration import (
    Configuration,
    configuration_document,
    parse_configuration,
)
from experiment_service.domain.key import (
    ApiKey,
    Permission,
    Scope,
    hash_secret,
    is_secret,
    parse_scopes,
    read_key,
)
from experiment_service.errors import InvalidRequest

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
AT = NOW.timestamp()
SECRET = "s" * 43
ID = "0a1b2c3d4e5f"
WRITTEN = f"es_{ID}_{SECRET}".encode()
SHOP = "https://shop.example"


def make_key(**changes):
    return ApiKey(
        **{
            "id": ID,
            "name": "shop",
            "scopes": (Scope.STOREFRONT,),
            "hash": hash_secret(SECRET.encode()),
            "created_at": NOW,
            **changes,
        }
    )


def access(*keys, loopback=True, **options):
    by_id = {key.id: key for key in keys}
    return Access(lambda: by_id, loopback=loopback, **options)


def bearer(written=WRITTEN):
    return [(b"authorization", b"Bearer " + written)]


def ask(gate, headers, needed=Permission.RECOMMEND, now=AT, query=b""):
    return gate.check(headers, needed, now, query)


def refused(answer, status, words):
    assert answer.status is status, answer
    assert words in answer.message
    assert SECRET not in answer.message
    return answer


@pytest.mark.parametrize(
    "headers",
    [
        bearer(),
        [(b"authorization", b"bearer   " + WRITTEN)],
        [(b"x-api-key", WRITTEN)],
        [(b"authorization", b"Basic of-a-gateway"), (b"x-api-key", WRITTEN)],
    ],
)
def test_a_key_is_taken_from_either_header(headers):
    assert ask(access(make_key()), headers) == Caller(actor=f"key:{ID}", key_id=ID)


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([], "a key is missing"),
        ([(b"authorization", b"Basic x")], "is not a key"),
        ([(b"authorization", WRITTEN + b"x")], "is not a key"),
        (bearer(b""), "is not a key"),
        (bearer(WRITTEN[:-1]), "is not a key"),
        (bearer(WRITTEN + b"\x00"), "is not a key"),
        (bearer(WRITTEN[:-1] + b"t"), "its secret is wrong"),
        (bearer(WRITTEN.replace(ID.encode(), b"f" * 12)), "is not known"),
    ],
)
def test_what_is_not_a_key_is_refused(headers, words):
    answer = refused(ask(access(make_key()), headers), HTTPStatus.UNAUTHORIZED, words)
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"revoked_at": NOW}, "was revoked"), ({"expires_at": NOW}, "has expired")],
)
def test_a_key_that_ended_is_refused_from_that_instant(change, words):
    gate = access(make_key(**change))
    refused(ask(gate, bearer()), HTTPStatus.UNAUTHORIZED, words)
    assert isinstance(ask(gate, bearer(), now=AT - 1), Caller)


# Every pair: what each scope is for, and no more.
MAY = {
    Scope.STOREFRONT: {"assign", "evaluate", "recommend", "send"},
    Scope.ANALYST: {"read"},
    Scope.ADMIN: {"read", "change"},
}


@pytest.mark.parametrize("needed", Permission)
@pytest.mark.parametrize("scope", Scope)
def test_a_scope_allows_what_it_is_for(scope, needed):
    answer = ask(access(make_key(scopes=(scope,))), bearer(), needed)
    if needed.value in MAY[scope]:
        assert isinstance(answer, Caller)
    else:
        refused(answer, HTTPStatus.FORBIDDEN, f"has scope {scope}, and this needs ")


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("POST", "/v1/recommendations", "recommend"),
        ("POST", "/v1/interactions", "send"),
        ("POST", "/v1/exposures", "send"),
        ("POST", "/v1/assignments", "assign"),
        ("GET", "/v1/experiments", "read"),
        ("GET", "/v1/keys", "change"),
        ("GET", "/v1/audit", "change"),
        ("POST", "/v1/keys", "change"),
        ("PUT", "/v1/placements/x", "change"),
        ("DELETE", "/v1/anything", "change"),
        ("POST", "/v1/recommendations/", "change"),
        ("GET", "/anything/new", "read"),
        ("GET", "/metrics", "read"),
        ("POST", "/ofrep/v1/evaluate/flags", "evaluate"),
        ("POST", "/ofrep/v1/evaluate/flags/home", "evaluate"),
        ("GET", "/client.js", None),
        ("GET", "/health/live", None),
    ],
)
def test_a_route_that_nobody_thought_of_is_closed(method, path, needed):
    assert permission_needed(method, path) == needed


def test_a_browser_key_is_for_its_pages_and_does_three_things():
    gate = access(make_key(origins=(SHOP,)))
    page = [*bearer(), (b"origin", SHOP.encode())]
    for needed in (Permission.EVALUATE, Permission.RECOMMEND, Permission.SEND):
        assert ask(gate, page, needed) == Caller(
            actor=f"key:{ID}", origin=SHOP, key_id=ID
        )
    for needed in (Permission.ASSIGN, Permission.READ, Permission.CHANGE):
        refused(ask(gate, page, needed), HTTPStatus.FORBIDDEN, "is a browser key")
    for origin in (b"https://evil.example", b"null", SHOP.encode() + b".evil.example"):
        headers = [*bearer(), (b"origin", origin)]
        refused(ask(gate, headers), HTTPStatus.FORBIDDEN, "is for pages of")
    refused(ask(gate, bearer()), HTTPStatus.FORBIDDEN, "has origin 'None'")
    beacon = [(b"origin", SHOP.encode())]
    assert isinstance(ask(gate, beacon, query=b"key=" + WRITTEN), Caller)


def test_a_key_in_the_address_is_for_pages_only():
    refused(
        ask(access(make_key()), [], query=b"key=" + WRITTEN),
        HTTPStatus.UNAUTHORIZED,
        "a key is missing",
    )


def preflight(origin, method=b"POST"):
    return [(b"origin", origin), (b"access-control-request-method", method)]


def test_of_a_header_that_comes_twice_the_last_counts():
    local, remote = (b"host", b"localhost:8000"), (b"host", b"shop.example")
    gate = access()
    assert isinstance(gate.check([remote, local], Permission.READ, AT), Caller)
    assert isinstance(gate.check([local, remote], Permission.READ, AT), Failure)


def test_a_preflight_is_answered_for_pages_that_have_a_key():
    ended = make_key(id="f" * 12, origins=("https://old.example",), revoked_at=NOW)
    gate = access(make_key(origins=(SHOP,)), ended)
    assert is_preflight(preflight(SHOP.encode()))
    assert not is_preflight([(b"origin", SHOP.encode())])
    headers = gate.preflight(preflight(SHOP.encode()), "/v1/interactions", AT)
    assert headers.items() >= answer_headers(SHOP).items()
    assert headers["access-control-allow-methods"] == "POST"
    for origin in (b"https://evil.example", b"https://old.example", b"null", b""):
        refused(
            gate.preflight(preflight(origin), "/v1/interactions", AT),
            HTTPStatus.FORBIDDEN,
            "is not allowed",
        )
    for path in ("/v1/keys", "/v1/assignments", "/v1/experiments"):
        refused(
            gate.preflight(preflight(SHOP.encode()), path, AT),
            HTTPStatus.FORBIDDEN,
            "is not for pages",
        )


def host(name, *more):
    return [(b"host", name), *more]


@pytest.mark.parametrize(
    "name",
    [b"localhost:8000", b"127.0.0.1", b"[::1]:8000", b"LOCALHOST", b"a.localhost"],
)
def test_without_keys_the_programs_of_this_machine_get_in(name):
    assert ask(access(), host(name), Permission.CHANGE) == Caller(actor="api")


def test_without_keys_no_web_site_gets_in_by_a_visitors_browser():
    gate = access()
    rebound = host(b"evil.example:8000", (b"origin", b"http://evil.example:8000"))
    refused(ask(gate, rebound), HTTPStatus.FORBIDDEN, "loopback names only")
    for origin in (b"https://evil.example", b"null", b"", b"file://localhost"):
        headers = host(b"localhost:8000", (b"origin", origin))
        refused(ask(gate, headers), HTTPStatus.FORBIDDEN, "a page from elsewhere")
        refused(
            gate.preflight([*headers, *preflight(origin)], "/v1/interactions", AT),
            HTTPStatus.FORBIDDEN,
            "a page from elsewhere",
        )
    own = host(b"localhost:8000", (b"origin", b"http://localhost:8000"))
    assert isinstance(ask(gate, own, Permission.CHANGE), Caller)
    neighbour = host(b"localhost:8000", (b"origin", b"http://localhost:3000"))
    assert ask(gate, neighbour).origin == "http://localhost:3000"
    refused(ask(gate, neighbour, Permission.CHANGE), HTTPStatus.FORBIDDEN, "elsewhere")


def test_open_is_only_without_any_key_and_on_loopback():
    assert access().is_open
    assert not access(loopback=False).is_open
    ended = make_key(revoked_at=NOW)
    assert not access(ended).is_open
    local = host(b"localhost")
    refused(ask(access(ended), local), HTTPStatus.UNAUTHORIZED, "a key is missing")
    refused(
        ask(access(loopback=False), local), HTTPStatus.UNAUTHORIZED, "a key is missing"
    )


@pytest.mark.parametrize("rate", [0.5, 1.0, 7.0, 250.0])
def test_a_bucket_lets_through_its_rate(rate):
    """In T seconds after a full bucket: burst + rate * T, whatever the load."""
    gate = access(make_key(per_second=rate))
    seconds, step = 40, 1 / 512  # exact in binary, so sums are
    taken = sum(
        isinstance(ask(gate, bearer(), now=AT + n * step), Caller)
        for n in range(seconds * 512)
    )
    burst = max(1.0, rate)
    assert taken == pytest.approx(burst + rate * (seconds - step), abs=1)


def test_a_refused_request_is_told_when_to_come_again():
    gate = access(make_key(per_second=0.5, origins=(SHOP,)))
    page = [*bearer(), (b"origin", SHOP.encode())]
    assert isinstance(ask(gate, page), Caller)
    answer = refused(ask(gate, page), HTTPStatus.TOO_MANY_REQUESTS, "0.5 requests a")
    assert answer.headers["retry-after"] == "2"
    # The page must be able to read it.
    assert answer.headers["access-control-allow-origin"] == SHOP
    assert not isinstance(ask(gate, page, now=AT + 1.9), Caller)
    assert isinstance(ask(gate, page, now=AT + 4), Caller)


def test_a_wrong_secret_spends_nothing_and_a_clock_set_back_harms_nobody():
    gate = access(make_key(per_second=1.0))
    for _ in range(10):
        ask(gate, bearer(WRITTEN[:-1] + b"t"))
    assert isinstance(ask(gate, bearer()), Caller)
    assert not isinstance(ask(gate, bearer(), now=AT - 3600), Caller)
    assert isinstance(ask(gate, bearer(), now=AT - 3598), Caller)


def test_an_address_without_a_good_key_is_held_to_its_rate():
    gate = access(make_key(), refusals_per_second=2.0)
    wrong = bearer(WRITTEN[:-1] + b"t")

    def status(headers, address, now=AT):
        return gate.check(headers, Permission.RECOMMEND, now, b"", address).status

    tried = [status(wrong if n % 2 else [], "192.0.2.1") for n in range(4)]
    assert tried == [HTTPStatus.UNAUTHORIZED] * 2 + [HTTPStatus.TOO_MANY_REQUESTS] * 2
    answer = gate.check(wrong, Permission.RECOMMEND, AT, b"", "192.0.2.1")
    assert answer.headers == {"retry-after": "1"}
    # Its good key works on, and so do others; a wrong scope is no guess.
    good = gate.check(bearer(), Permission.RECOMMEND, AT, b"", "192.0.2.1")
    assert isinstance(good, Caller)
    assert status(wrong, "192.0.2.2") is HTTPStatus.UNAUTHORIZED
    for _ in range(5):
        answer = gate.check(bearer(), Permission.CHANGE, AT, b"", "192.0.2.3")
        assert answer.status is HTTPStatus.FORBIDDEN
    assert status(wrong, "192.0.2.1", AT + 0.5) is HTTPStatus.UNAUTHORIZED


def test_a_network_of_ipv6_is_one_address_and_memory_has_a_bound(monkeypatch):
    limit = limits.AddressLimit(1.0)
    assert limit.take("2001:db8::1", AT) == 0
    assert limit.take("2001:db8::ffff:2", AT) == 1
    assert limit.take("2001:db8:0:1::1", AT) == 0
    assert limit.take("192.0.2.1", AT) == 0
    assert limit.take("::ffff:192.0.2.1", AT) == 1
    monkeypatch.setattr(limits, "_ADDRESSES", 3)
    limit = limits.AddressLimit(1.0)
    for name in ("a", "b", "c", "a", "d"):
        limit.take(name, AT)
    assert limit.take("a", AT) > 0
    assert limit.take("b", AT) == 0


def test_the_day_of_use_is_told_once():
    gate = access(make_key())
    assert gate.take_used() == {}
    ask(gate, bearer())
    ask(gate, bearer())
    days = gate.take_used()
    assert days == {ID: NOW.date()}
    assert gate.take_used() == {}
    gate.give_back(days)
    assert gate.take_used() == days
    ask(gate, bearer(), now=AT + 86_400)
    assert gate.take_used() == {ID: NOW.date() + timedelta(days=1)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scopes": ()}, "give at least one"),
        ({"scopes": (Scope.ADMIN, Scope.ADMIN)}, "each once"),
        ({"name": ""}, "name has 0 characters"),
        ({"name": "a\nb"}, "control character"),
        ({"per_second": 0.0}, "per_second is 0.0"),
        ({"per_second": float("nan")}, "per_second is nan"),
        ({"origins": ("*",)}, "origin '*' is not one"),
        ({"origins": ("https://shop.example/",)}, "without a path"),
        ({"origins": ("https://SHOP.example",)}, "small letters"),
        ({"origins": ("https://a.example\r\nx: y",)}, "is not one"),
        ({"origins": (SHOP,) * 21}, "at most 20"),
        ({"origins": (SHOP,), "scopes": (Scope.ADMIN,)}, "storefront only"),
    ],
)
def test_a_key_obeys_its_rules(change, words):
    with pytest.raises(InvalidRequest) as refusal:
        make_key(**change)
    assert words in refusal.value.message


def test_scopes_are_read_by_name():
    assert parse_scopes(["admin", "analyst"]) == (Scope.ADMIN, Scope.ANALYST)
    for wrong in (["root"], [1], "admin", [["admin"]]):
        with pytest.raises(InvalidRequest, match="scopes"):
            parse_scopes(wrong)


def test_a_secret_is_told_by_its_hash():
    """SHA-256 of "abc": FIPS 180-2, appendix B.1."""
    kept = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert is_secret(b"abc", kept)
    assert not is_secret(b"abd", kept)
    assert read_key(WRITTEN) == (ID, SECRET.encode())


def test_keys_and_erased_units_outlive_the_database_in_the_copy():
    keys = [
        make_key(origins=(SHOP,), expires_at=NOW, per_second=2.5),
        make_key(id="f" * 12, revoked_at=NOW),
    ]
    configuration = Configuration(
        placements={},
        running={},
        states={},
        models={},
        loaded_at=NOW,
        keys={key.id: key for key in keys},
        erased=frozenset({"ab" * 32}),
    )
    document = configuration_document(configuration)
    assert parse_configuration(document) == configuration
    del document["keys"], document["erased"]
    assert parse_configuration(document).keys == {}
