"""Pseudonyms: what stands for a unit everywhere behind the door, when a key is set."""

import hashlib
import hmac
import re
from collections.abc import Mapping

_PSEUDONYM = re.compile(r"h_[0-9a-f]{32}")


class Pseudonyms:
    """Turns unit ids into pseudonyms; without a key it leaves them as they are.

    A pseudonym is ``h_`` and the first 128 bits of HMAC-SHA256 of the id, hexadecimal:
    of 10**9 units, two share one with a chance below 2e-21. A pseudonym stays as it is,
    so one that was read in a report or an export can be asked for.

    Parameters
    ----------
    key : str or None
        Secret; who has it can tell which pseudonym an id has.
    """

    def __init__(self, key: str | None) -> None:
        self._key = None if key is None else key.encode()

    def __repr__(self) -> str:
        return f"Pseudonyms(on={self._key is not None})"

    def of(self, unit_id: str) -> str:
        """Return what the service knows a unit by."""
        if self._key is None or _PSEUDONYM.fullmatch(unit_id):
            return unit_id
        digest = hmac.digest(self._key, unit_id.encode(), hashlib.sha256)
        return f"h_{digest[:16].hex()}"

    def of_keys(self, by_unit: Mapping[str, str]) -> dict[str, str]:
        """Replace the units of a mapping, such as the overrides of an experiment."""
        return {self.of(unit): value for unit, value in by_unit.items()}

    def all_of(self, unit_id: str) -> list[str]:
        """Return every id under which a unit may be stored, from before the key too."""
        return list(dict.fromkeys([self.of(unit_id), unit_id]))
