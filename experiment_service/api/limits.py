"""Rates that are held to: of a key, and of an address without one."""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

# Addresses remembered at a time; the one that was quiet for longest goes first.
_ADDRESSES = 10_000


@dataclass(slots=True)
class Bucket:
    """Requests that are left: it fills by its rate, up to those of one second."""

    left: float
    at: float

    @classmethod
    def full(cls, per_second: float, now: float) -> "Bucket":
        """Return one that nothing was taken from."""
        return cls(max(1.0, per_second), now)

    def take(self, per_second: float, now: float) -> float:
        """Take one; return the seconds to wait for it, 0 when there was one."""
        full = max(1.0, per_second)
        # A clock that is set back gives nothing and takes nothing.
        self.left = min(full, self.left + max(0.0, now - self.at) * per_second)
        self.at = now
        if self.left >= 1:
            self.left -= 1
            return 0.0
        return (1 - self.left) / per_second


class AddressLimit:
    """A bucket for each address, of which many are forgotten and few kept.

    Parameters
    ----------
    per_second : float
        What each may take.
    """

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def take(self, address: str, now: float) -> float:
        """Take one; return the seconds to wait for it, 0 when there was one."""
        name = _network(address)
        bucket = self._buckets.get(name)
        if bucket is None:
            if len(self._buckets) >= _ADDRESSES:
                self._buckets.popitem(last=False)
            bucket = self._buckets[name] = Bucket.full(self.per_second, now)
        self._buckets.move_to_end(name)
        return bucket.take(self.per_second, now)


@lru_cache(maxsize=1024)
def _network(address: str) -> str:
    """Return whose address it is: of IPv6 a customer has 2**64 at least."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), 64), strict=False))
