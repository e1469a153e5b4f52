"""Networks between the service and its database that are slow or fall silent."""

import asyncio
import subprocess
import threading
from contextlib import contextmanager

#: An address of this machine that nothing else uses.
LONELY_ADDRESS = "127.0.0.9"


@contextmanager
def silence(address):
    """Drop every packet to an address of this machine, without a word to the sender."""
    route = ["blackhole", address, "table", "local"]
    subprocess.run(["ip", "route", "add", *route], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "route", "del", *route], check=True)


class SlowProxy:
    """A TCP proxy that delivers each piece some seconds late, in both directions."""

    def __init__(self, port, *, seconds):
        self._target, self._seconds = port, seconds
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self):
        self._thread.start()
        self._started.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()

    async def _run(self):
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()

    async def _serve(self, client, answer):
        server, request = await asyncio.open_connection("127.0.0.1", self._target)
        await asyncio.gather(
            self._pass_on(client, request), self._pass_on(server, answer)
        )

    async def _pass_on(self, reader, writer):
        pieces = asyncio.Queue()

        async def deliver():
            while (piece := await pieces.get()) is not None:
                due, data = piece
                await asyncio.sleep(due - self._loop.time())
                writer.write(data)
                await writer.drain()
            writer.close()

        delivering = asyncio.create_task(deliver())
        try:
            while data := await reader.read(1 << 16):
                pieces.put_nowait((self._loop.time() + self._seconds, data))
        except ConnectionError:
            pass
        pieces.put_nowait(None)
        await asyncio.gather(delivering, return_exceptions=True)
