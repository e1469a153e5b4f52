"""Making files safe on disk while the caller goes on.

Linux does it by itself and tells by a descriptor (`io_submit(2)`), which spares a serving
process a thread that it would have to wait for again and again, as Python runs one at
once. Where the kernel or a sandbox has no such calls, a thread waits for the disk.
"""

import ctypes
import errno
import logging
import os
import platform
import select
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

log = logging.getLogger(__name__)

# Numbers of io_setup, io_destroy, io_getevents and io_submit (asm/unistd.h).
_CALLS = {"x86_64": (206, 207, 208, 209), "aarch64": (0, 1, 4, 2)}

# linux/aio_abi.h: struct iocb, two of its commands and a flag; struct io_event.
_REQUEST = struct.Struct("<QIIHhIQQqQII")
_SYNC_ALL, _SYNC_CONTENT = 2, 3
_TELL_BY_DESCRIPTOR = 1
_EVENT = struct.Struct("<QQqq")

# A file and a folder.
_MOST_AT_ONCE = 2
_PROBE_SECONDS = 10  # more, when it is the disk that hangs


class Sync(Protocol):
    """Makes files safe for one caller, who begins the next when the last has ended.

    Attributes
    ----------
    fileno : int
        A descriptor that can be read once what was begun has ended.
    """

    fileno: int

    def begin(self, file: int, folder: int | None) -> None:
        """Begin to make the content of a file safe, and the names in a folder.

        Raises
        ------
        OSError
            When it can't be begun; nothing will be told of it.
        """

    def has_ended(self) -> bool:
        """Whether what was begun has ended; never waits, and says so once.

        Raises
        ------
        OSError
            When all of it has ended, and the disk failed.
        """

    def close(self) -> None:
        """Free what it holds, when nothing is under way."""


def wait_for(sync: Sync, seconds: float | None = None) -> bool:
    """Wait until something may have ended; False when nothing has by then."""
    poll = select.poll()  # `select` knows no descriptors above 1023
    poll.register(sync.fileno, select.POLLIN)
    return bool(poll.poll(None if seconds is None else 1000 * seconds))


def make_sync(folder: Path) -> Sync:
    """Return the best way that this machine has.

    Raises
    ------
    OSError
        When the folder can't be read, or there are too many open files.
    """
    file = os.open(folder, os.O_RDONLY)
    try:
        return _probed(file)
    except OSError as error:
        log.info("files are synced by a thread reason=%s", error)
        return ThreadSync()
    finally:
        os.close(file)


def _probed(folder: int) -> "KernelSync":
    sync = KernelSync()
    try:
        sync.begin(folder, folder)
        while not sync.has_ended():
            if not wait_for(sync, _PROBE_SECONDS):
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
    except OSError:
        sync.close()
        raise
    return sync


class KernelSync:
    """As of `Sync`, by Linux's asynchronous I/O.

    Raises
    ------
    OSError
        When this machine has none, or no more of it.
    """

    def __init__(self) -> None:
        numbers = _CALLS.get(platform.machine())
        if sys.platform != "linux" or numbers is None or sys.maxsize < 1 << 32:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        setup, *others = map(ctypes.c_long, numbers)
        self._destroy, self._get_events, self._submit = others
        self._function = ctypes.CDLL(None, use_errno=True).syscall
        self._function.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        self.fileno = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._call(setup, ctypes.c_long(_MOST_AT_ONCE), ctypes.byref(self._context))
        except OSError:
            os.close(self.fileno)
            raise
        self._request = ctypes.create_string_buffer(_REQUEST.size)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._events = ctypes.create_string_buffer(_MOST_AT_ONCE * _EVENT.size)
        self._awaited = 0
        self._failure: OSError | None = None

    def begin(self, file: int, folder: int | None) -> None:
        """As of `Sync`."""
        self._failure = None
        self._begin(_SYNC_CONTENT, file)
        if folder is not None:
            try:
                self._begin(_SYNC_ALL, folder)
            except OSError as error:
                self._failure = error  # told when the file's has ended

    def _begin(self, command: int, file: int) -> None:
        _REQUEST.pack_into(
            self._request,
            0,
            *(0, 0, 0, command, 0, file, 0, 0, 0, 0),
            *(_TELL_BY_DESCRIPTOR, self.fileno),
        )
        self._call(self._submit, self._context, ctypes.c_long(1), self._requests)
        self._awaited += 1

    def has_ended(self) -> bool:
        """As of `Sync`."""
        _drain(self.fileno)
        if not self._awaited:
            return False
        try:
            count = self._call(
                self._get_events,
                self._context,
                ctypes.c_long(0),
                ctypes.c_long(_MOST_AT_ONCE),
                self._events,
                None,
            )
        except InterruptedError:
            return False  # by a signal, which it is only when there are none
        for number in range(count):
            *_, result, _ = _EVENT.unpack_from(self._events, number * _EVENT.size)
            if result < 0:
                self._failure = OSError(-result, os.strerror(-result))
        self._awaited -= count
        if self._awaited:
            return False
        if self._failure is not None:
            raise self._failure
        return True

    def _call(self, *arguments: object) -> int:
        result: int = self._function(*arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def close(self) -> None:
        """As of `Sync`."""
        self._call(self._destroy, self._context)
        os.close(self.fileno)


class ThreadSync:
    """As of `Sync`, by a thread."""

    def __init__(self) -> None:
        self.fileno = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._asked: SimpleQueue[tuple[int, int | None] | None] = SimpleQueue()
        self._ended: SimpleQueue[OSError | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sync", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            file, folder = asked
            failure = None
            try:
                os.fdatasync(file)
                if folder is not None:
                    os.fsync(folder)
            except OSError as error:
                failure = error
            self._ended.put(failure)
            os.eventfd_write(self.fileno, 1)

    def begin(self, file: int, folder: int | None) -> None:
        """As of `Sync`."""
        self._asked.put((file, folder))

    def has_ended(self) -> bool:
        """As of `Sync`."""
        _drain(self.fileno)
        try:
            failure = self._ended.get_nowait()
        except Empty:
            return False
        if failure is not None:
            raise failure
        return True

    def close(self) -> None:
        """As of `Sync`."""
        self._asked.put(None)
        self._thread.join()
        os.close(self.fileno)


def _drain(fileno: int) -> None:
    with suppress(BlockingIOError):
        os.eventfd_read(fileno)
