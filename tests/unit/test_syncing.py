"""Making files safe beside the caller: by the kernel, and by a thread where it can't."""

import os
import resource
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


@pytest.fixture(params=[KernelSync, ThreadSync])
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
    with closing(KernelSync()) as sync:
        assert sync.fileno > 1024
        sync_whole(sync, file, folder)
    for each in taken:
        os.close(each)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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
        with closing(KernelSync()) as sync:
            sync_whole(sync, file, None)
    make_sync(tmp_path).close()
    assert open_files() == before


def test_kernel_does_it_here(tmp_path):
    with closing(make_sync(tmp_path)) as sync:
        assert isinstance(sync, KernelSync)


@pytest.mark.parametrize("known", [{}, dict.fromkeys(syncing._CALLS, (9999,) * 4)])
def test_thread_does_it_where_the_kernel_has_no_such_calls(
    tmp_path, file, folder, known, monkeypatch
):
    monkeypatch.setattr(syncing, "_CALLS", known)
    before = open_files()
    with closing(make_sync(tmp_path)) as sync:
        assert isinstance(sync, ThreadSync)
        sync_whole(sync, file, folder)
    assert open_files() == before


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_sync(tmp_path / "missing")
