"""An open-loop HTTP client in one process: requests leave when they are due.

They are due at random instants of a given mean rate, whether or not earlier ones are
answered, as shoppers do; a latency counts from the instant a request was due, so it holds up to a
tick of the client's own. Sends the lines of a file as bodies in turn; prints answers per
second and latencies.
"""

import argparse
import asyncio
import json
import time
from collections import deque
from pathlib import Path

import numpy as np
import uvloop

# What the loop's timers can tell apart: with less it would spin and take a core.
TICK = 0.001


class Connection(asyncio.Protocol):
    """Carries one request at a time; tells its pool when it is free again."""

    def __init__(self, pool):
        self.pool = pool
        self.received = b""

    def connection_made(self, transport):
        self.transport = transport
        self.pool.free.append(self)

    def send(self, due, request):
        self.due = due
        self.transport.write(request)

    def data_received(self, data):
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        if not separator or len(body) < length:
            return
        self.pool.latencies.append(time.perf_counter() - self.due)
        if head.split(b" ", 2)[1] != b"200":
            self.pool.bad += 1
        self.received = b""
        self.pool.release(self)


class Pool:
    """Free connections, and requests that wait for one."""

    def __init__(self, requests):
        self.requests = requests
        self.next = 0
        self.free, self.waiting = deque(), deque()
        self.latencies, self.bad = [], 0

    def ask(self, due):
        if self.free:
            self.send(self.free.popleft(), due)
        else:
            self.waiting.append(due)

    def release(self, connection):
        if self.waiting:
            self.send(connection, self.waiting.popleft())
        else:
            self.free.append(connection)

    def send(self, connection, due):
        self.next = (self.next + 1) % len(self.requests)
        connection.send(due, self.requests[self.next])


async def run_client(arguments):
    address = arguments.address.removeprefix("http://")
    host, _, path = address.partition("/")
    requests = []
    for line in arguments.bodies.read_bytes().splitlines():
        head = (
            f"{arguments.method} /{path} HTTP/1.1\r\nHost: {host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(line)}\r\n\r\n"
        )
        requests.append(head.encode() + line)
    pool = Pool(requests)
    loop = asyncio.get_running_loop()
    name, port = host.split(":")
    for _ in range(arguments.connections):
        await loop.create_connection(lambda: Connection(pool), name, int(port))
    rng = np.random.default_rng(arguments.seed)
    count = int(arguments.rate * arguments.seconds)
    begin = time.perf_counter() + 0.05
    dues = (begin + rng.exponential(1 / arguments.rate, count).cumsum()).tolist()
    for due in dues:
        while time.perf_counter() < due:
            await asyncio.sleep(TICK)
        pool.ask(due)
    for _ in range(200):
        if len(pool.latencies) == count:
            break
        await asyncio.sleep(0.05)
    latencies = pool.latencies
    p50, p99 = 1000 * np.quantile(latencies, [0.5, 0.99])
    result = {
        "rate": len(latencies) / (time.perf_counter() - begin),
        "p50": p50,
        "p99": p99,
        "bad": pool.bad + count - len(latencies),
    }
    print("RESULT", json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--method", required=True)
    parser.add_argument("--bodies", required=True, type=Path)
    parser.add_argument("--connections", required=True, type=int)
    parser.add_argument("--seconds", required=True, type=float)
    parser.add_argument("--rate", required=True, type=float)
    parser.add_argument("--seed", type=int, default=0)
    uvloop.run(run_client(parser.parse_args()))


if __name__ == "__main__":
    main()
