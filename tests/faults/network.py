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
    """A TCP proxy that delivers each piece some seconds late, in both directions.

    Its first `prompt_connections` are not delayed.
    """

    def __init__(self, port, *, seconds, prompt_connections=0):
        self._target, self._seconds = port, seconds
        self._prompt_connections = prompt_connections
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
        self._serving = set()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopping.wait()
        server.close()
        for each in self._serving:
            each.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    def _accept(self, client, answer):
        seconds = 0 if self._prompt_connections > 0 else self._seconds
        self._prompt_connections -= 1
        serving = self._loop.create_task(self._serve(client, answer, seconds))
        self._serving.add(serving)
        serving.add_done_callback(self._serving.discard)

    async def _serve(self, client, answer, seconds):
        server, request = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            await asyncio.gather(
                self._pass_on(client, request, seconds),
                self._pass_on(server, answer, seconds),
            )
        finally:
            request.close()
            answer.close()

    async def _pass_on(self, reader, writer, seconds):
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
                pieces.put_nowait((self._loop.time() + seconds, data))
        except ConnectionError:
            pass
        pieces.put_nowait(None)
        await asyncio.gather(delivering, return_exceptions=True)
