"""A closed-loop HTTP client in one process: each connection waits for its answer.

Sends the lines of a file as bodies in turn; prints answers per second and latencies.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import numpy as np
import uvloop


class Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last one is complete."""

    def __init__(self, requests, latencies, bad):
        self.requests, self.latencies, self.bad = requests, latencies, bad
        self.received = b""

    def connection_made(self, transport):
        self.transport = transport
        self.send()

    def send(self):
        self.sent_at = time.perf_counter()
        self.transport.write(next(self.requests))

    def data_received(self, data):
        self.received += data
        head, separator, body = self.received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
        if not separator or len(body) < length:
            return
        self.latencies.append(time.perf_counter() - self.sent_at)
        if head.split(b" ", 2)[1] != b"200":
            self.bad.append(head)
        self.received = b""
        self.send()


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

    def endless(start):
        while True:
            start = (start + 1) % len(requests)
            yield requests[start]

    latencies, bad = [], []
    loop = asyncio.get_running_loop()
    name, port = host.split(":")
    transports = []
    for number in range(arguments.connections):
        transport, _ = await loop.create_connection(
            lambda number=number: Connection(endless(97 * number), latencies, bad),
            name,
            int(port),
        )
        transports.append(transport)
    await asyncio.sleep(arguments.seconds)
    for transport in transports:
        transport.abort()
    p50, p99 = 1000 * np.quantile(latencies, [0.5, 0.99])
    result = {
        "rate": len(latencies) / arguments.seconds,
        "p50": p50,
        "p99": p99,
        "bad": len(bad),
    }
    print("RESULT", json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--method", required=True)
    parser.add_argument("--bodies", required=True, type=Path)
    parser.add_argument("--connections", required=True, type=int)
    parser.add_argument("--seconds", required=True, type=float)
    uvloop.run(run_client(parser.parse_args()))


if __name__ == "__main__":
    main()
