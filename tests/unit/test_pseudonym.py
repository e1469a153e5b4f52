"""Pseudonyms: HMAC-SHA256 of the unit, the same at every door."""

import pandas as pd
import pytest

from experiment_service.domain.pseudonym import Pseudonyms
from experiment_service.training import pseudonymised


def test_a_pseudonym_is_the_published_hmac():
    """RFC 4231, test cases 2 and 1: the first 128 bits of HMAC-SHA-256."""
    jefe = Pseudonyms("Jefe").of("what do ya want for nothing?")
    assert jefe == "h_5bdcc146bf60754e6a042426089575c7"
    assert (
        Pseudonyms("\x0b" * 20).of("Hi There") == "h_b0344c61d8db38535ca8afceaf0bf12b"
    )


def test_without_a_key_units_stay_as_they_are():
    assert Pseudonyms(None).of("ana") == "ana"
    assert Pseudonyms(None).all_of("ana") == ["ana"]


def test_a_pseudonym_stays_as_it_is():
    pseudonyms = Pseudonyms("k" * 32)
    ana = pseudonyms.of("ana")
    assert pseudonyms.of(ana) == ana != pseudonyms.of("bob")
    assert pseudonyms.of_keys({"ana": "new"}) == {ana: "new"}
    assert pseudonyms.all_of("ana") == [ana, "ana"]
    assert pseudonyms.all_of(ana) == [ana]


@pytest.mark.parametrize("unit", ["h_", "h_" + "A" * 32, "h_" + "a" * 33, "ünit"])
def test_what_only_looks_like_one_is_hashed(unit):
    assert Pseudonyms("k" * 32).of(unit) != unit


def test_the_key_is_shown_nowhere():
    assert "kkk" not in repr(Pseudonyms("k" * 32))


def test_training_sees_what_requests_will_bring():
    frame = pd.DataFrame({"unit_id": ["ana", "bob", "ana"], "item_id": ["i", "j", "k"]})
    pseudonyms = Pseudonyms("k" * 32)
    for kind in (object, "category", "string"):
        hashed = pseudonymised(frame.astype({"unit_id": kind}), pseudonyms)
        assert list(hashed["unit_id"]) == [pseudonyms.of(u) for u in frame["unit_id"]]
    assert list(frame["unit_id"]) == ["ana", "bob", "ana"]
