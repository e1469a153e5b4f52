"""Making files safe beside the caller: by the kernel, and by a thread where it can't."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from experiment_service.journal import syncing
from experiment_service.journal.syncing import (
    KernelSync,
    ThreadSync,
    make_sync,
    wait_for,
)


def kernel_sync():
    try:
        return KernelSync()
    except OSError as error:
        pytest.skip(f"this machine has no asynchronous I/O: {error}")


@pytest.fixture(params=[kernel_sync, ThreadSync])
def sync(request):
    with closing(request.param()) as sync:
        yield sync


@pytest.fixture
def folder(tmp_path):
    file = os.open(tmp_path, os.O_RDONLY)
    yield file
    os.close(file)


@pytest.fixture
def file(tmp_path):
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield file
    os.close(file)


def wait_for_end(sync):
    while not sync.has_ended():
        assert wait_for(sync, 10)


def sync_whole(sync, file, folder):
    sync.begin(file, folder)
    wait_for_end(sync)


def test_end_is_told_once(sync, file, folder):
    assert not sync.has_ended()
    for number in range(200):
        os.pwrite(file, b"x" * 5000, 5000 * number)
        sync_whole(sync, file, folder if number % 3 == 0 else None)
        assert not sync.has_ended()


def test_end_is_not_told_before_the_disk_has_it(file, monkeypatch):
    held, go_on = os.pipe()
    monkeypatch.setattr(syncing.os, "fdatasync", lambda _: os.read(held, 1))
    with closing(ThreadSync()) as sync:
        sync.begin(file, None)
        assert not wait_for(sync, 0.1)
        assert not sync.has_ended()
        # What wakes those who wait says nothing of the disk.
        os.eventfd_write(sync.fileno, 1)
        assert not sync.has_ended()
        os.write(go_on, b"x")
        wait_for_end(sync)
    os.close(held)
    os.close(go_on)


def test_descriptors_may_have_large_numbers(file, folder):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    taken = [os.dup(file) for _ in range(1100)]
    try:
        with closing(kernel_sync()) as sync:
            assert sync.fileno > 1024
            sync_whole(sync, file, folder)
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_signals_are_no_failures(file, folder):
    told = []
    former = signal.signal(signal.SIGALRM, lambda *_: told.append(1))
    signal.setitimer(signal.ITIMER_REAL, 2e-5, 2e-5)
    try:
        with closing(kernel_sync()) as sync:
            for _ in range(300):
                sync.begin(file, folder)
                while not sync.has_ended():
                    pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert told


@pytest.mark.parametrize("is_folder", [False, True])
def test_failure_is_told_and_the_next_one_is_not_concerned(
    sync, file, folder, is_folder
):
    # A pipe is no file that could be synced.
    bad, other = os.pipe()
    for _ in range(3):
        with pytest.raises(OSError, match="Invalid argument"):
            sync_whole(sync, *((file, bad) if is_folder else (bad, folder)))
        assert not sync.has_ended()
        sync_whole(sync, file, folder)
    os.close(bad)
    os.close(other)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_is_left_behind(tmp_path, file):
    make_sync(tmp_path).close()
    before = open_files()
    for _ in range(20):
        with closing(kernel_sync()) as sync:
            sync_whole(sync, file, None)
    make_sync(tmp_path).close()
    assert open_files() == before


def test_kernel_does_it_where_it_can(tmp_path):
    kernel_sync().close()
    with closing(make_sync(tmp_path)) as sync:
        assert isinstance(sync, KernelSync)


def test_thread_does_it_on_other_processors(tmp_path, file, folder, monkeypatch):
    monkeypatch.setattr(syncing, "_CALLS", {})
    before = open_files()
    with closing(make_sync(tmp_path)) as sync:
        assert isinstance(sync, ThreadSync)
        sync_whole(sync, file, folder)
    assert open_files() == before


# A sandbox like those of containers: a filter that forbids one system call.
SANDBOXED = """
import ctypes, errno, logging, platform, struct, sys
from pathlib import Path
from experiment_service.journal import Journal, syncing

setup, _, _, submit = syncing._CALLS[platform.machine()]
forbidden = {"setup": setup, "submit": submit}[sys.argv[2]]
refusal, allowed = 0x00050000 | errno.EPERM, 0x7FFF0000
rules = b"".join(
    struct.pack("HBBI", *rule)
    for rule in (
        (0x20, 0, 0, 0),  # the number of the call
        (0x15, 0, 1, forbidden),
        (0x06, 0, 0, refusal),
        (0x06, 0, 0, allowed),
    )
)
content = ctypes.create_string_buffer(rules)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(content)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
no_new_privileges, set_filter, by_rules = 38, 22, 2
assert prctl(no_new_privileges, 1, 0, 0, 0) == 0
assert prctl(set_filter, by_rules, program) == 0, ctypes.get_errno()
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
journal = Journal.open(Path(sys.argv[1]), max_bytes=1 << 20)
for number in range(100):
    journal.append([b"%d" % number]).result(50)
assert [int(payload) for _, payload in journal.read(200)] == list(range(100))
journal.close()
"""


@pytest.mark.parametrize("forbidden", ["setup", "submit"])
def test_thread_does_it_in_a_sandbox_that_forbids_such_calls(tmp_path, forbidden):
    child = subprocess.run(
        [sys.executable, "-c", SANDBOXED, str(tmp_path), forbidden],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert child.stdout == (
        "files are synced by a thread reason=[Errno 1] Operation not permitted\n"
    ), child.stderr
    assert child.returncode == 0, child.stderr


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_sync(tmp_path / "missing")
