"""What a key costs a request: the decision beside the SHA-256 that it can't do without.

Run by hand: ``python tests/benchmarks/bench_access.py``. Prints medians of microseconds.
"""

import hashlib
import statistics
import timeit
from datetime import UTC, datetime

from experiment_service.api.access import Access
from experiment_service.domain.key import ApiKey, Permission, Scope, hash_secret

REPEATS, CALLS = 15, 20_000


def microseconds(call) -> float:
    times = timeit.repeat(call, repeat=REPEATS, number=CALLS)
    return 1e6 * statistics.median(times) / CALLS


def main() -> None:
    secret = b"s" * 43
    by_id = {
        f"{n:012x}": ApiKey(
            id=f"{n:012x}",
            name="bench",
            scopes=(Scope.STOREFRONT,),
            hash=hash_secret(secret),
            per_second=100_000.0 if n == 1 else None,
            created_at=datetime.now(UTC),
        )
        for n in range(50)
    }
    now = datetime.now(UTC).timestamp()
    common = [
        (b"host", b"127.0.0.1:8000"),
        (b"accept", b"*/*"),
        (b"user-agent", b"bench"),
        (b"content-type", b"application/json"),
        (b"content-length", b"60"),
    ]
    opened, closed = Access(dict, loopback=True), Access(lambda: by_id, loopback=True)

    def asks(access, *more):
        headers = [*common, *more]
        return lambda: access.check(headers, Permission.RECOMMEND, now)

    def bearer(n):
        return (b"authorization", f"Bearer es_{n:012x}_".encode() + secret)

    floor = microseconds(lambda: hashlib.sha256(secret).hexdigest())
    print(f"SHA-256 of the secret     {floor:6.2f} us")
    for name, call in (
        ("open, no key", asks(opened)),
        ("a key", asks(closed, bearer(7))),
        ("a key with a limit", asks(closed, bearer(1))),
        ("no key, refused", asks(closed)),
    ):
        took = microseconds(call)
        print(f"{name:<25} {took:6.2f} us  {took / floor:5.1f} times the SHA-256")


if __name__ == "__main__":
    main()
