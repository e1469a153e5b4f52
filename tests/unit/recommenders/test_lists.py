import errno
import hashlib
import json
import resource
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recommenders import folders, list_format, publishing
from recommenders.folders import PARTIAL_SUFFIX
from recommenders.list_format import manifest_files
from recommenders.lists import PublishedLists, is_open
from recommenders.publishing import publish_lists, relabel

UNITS = ["ada", "bob", "ćwikła"]
ITEMS = ["apple", "brød", "çay", "🍣"]
LISTS = np.array([[0, 1], [3, -1], [-1, -1]], dtype=np.int32)
DEFAULT = np.array([2, 3], dtype=np.int32)
RELATED = np.array([[1, 2], [0, -1], [3, 0], [2, 1]], dtype=np.int32)


def publish(directory, **changes):
    values = {
        "name": "als",
        "version": 1,
        "unit_ids": UNITS,
        "lists": LISTS,
        "item_ids": ITEMS,
        "default": DEFAULT,
        "related": RELATED,
    }
    return publish_lists(directory, **{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    directory = tmp_path / "models" / "als" / "1"
    publish(directory)
    return directory


def test_what_was_published_is_read_back(folder):
    lists = PublishedLists.open(folder)
    assert lists.for_unit("ada") == ["apple", "brød"]
    assert lists.for_unit("bob") == ["🍣"]
    assert lists.for_unit("ćwikła") == []
    assert lists.for_unit("eve") is None
    assert lists.default == ["çay", "🍣"]
    assert lists.related("çay") == ["🍣", "apple"]
    assert lists.related("brød") == ["apple"]
    assert lists.related("rice") is None
    assert (lists.name, lists.version, lists.depth) == ("als", 1, 2)
    assert (lists.units, lists.items) == (3, 4)
    lists.verify()


def test_an_id_is_one_text_however_often_it_is_read(folder, monkeypatch):
    lists = PublishedLists.open(folder)
    (first, _), (again, _) = lists.for_unit("ada"), lists.for_unit("ada")
    assert first is again
    assert lists.related("çay")[1] is first
    monkeypatch.setattr("recommenders.lists._KEPT_IDS", 0)  # as of a huge catalogue
    unkept = PublishedLists.open(folder)
    assert unkept.for_unit("ada") == unkept.for_unit("ada") == ["apple", "brød"]
    assert unkept.for_unit("ada")[1] is not unkept.for_unit("ada")[1]


def test_related_is_optional(tmp_path):
    publish(tmp_path / "1", related=None)
    assert PublishedLists.open(tmp_path / "1").related("apple") is None


def test_an_unknown_unit_may_be_any_text(folder):
    lists = PublishedLists.open(folder)
    for unit_id in ("", "\ud800", "x" * 10_000):
        assert lists.for_unit(unit_id) is None
        assert lists.related(unit_id) is None


@st.composite
def published(draw):
    text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
    units = draw(st.lists(text, min_size=1, max_size=20, unique=True))
    items = draw(st.lists(text, min_size=1, max_size=20, unique=True))
    depth = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, len(items) - 1), max_size=depth).map(
        lambda rows: rows + [-1] * (depth - len(rows))
    )
    table = draw(st.lists(row, min_size=len(units), max_size=len(units)))
    return units, items, np.array(table, dtype=np.int32), draw(row), depth


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(published(), st.text(min_size=1, max_size=8))
def test_any_lists_are_read_back(tmp_path_factory, values, stranger):
    units, items, table, default, depth = values
    directory = tmp_path_factory.mktemp("lists") / "1"
    publish_lists(
        directory,
        name="any",
        version=1,
        unit_ids=units,
        lists=table,
        item_ids=items,
        default=np.array(default, dtype=np.int32),
    )
    lists = PublishedLists.open(directory)
    lists.verify()
    for unit_id, row in zip(units, table.tolist(), strict=True):
        assert lists.for_unit(unit_id) == [items[i] for i in row if i >= 0]
    assert lists.default == [items[i] for i in default if i >= 0]
    assert lists.depth == depth
    if stranger not in units:
        assert lists.for_unit(stranger) is None


SOURCES = {
    "sources": np.array([[0, 2], [1, 0], [0, 0]], dtype=np.int8),
    "labels": ("", "known", "explored"),
}


def test_items_of_units_have_labels_where_they_were_given(tmp_path, folder):
    publish(tmp_path / "2", **SOURCES)
    lists = PublishedLists.open(tmp_path / "2")
    assert lists.labels == ("", "known", "explored")
    assert lists.for_unit_labelled("ada") == (["apple", "brød"], ["", "explored"])
    assert lists.for_unit_labelled("ada", 1) == (["apple"], [""])
    assert lists.for_unit_labelled("bob") == (["🍣"], ["known"])
    assert lists.for_unit_labelled("ćwikła") == ([], [])
    assert lists.for_unit_labelled("eve") is None
    assert lists.for_unit("ada") == ["apple", "brød"]
    lists.verify()
    assert PublishedLists.open(folder).labels == ()


@pytest.mark.parametrize(
    ("sources", "labels", "message"),
    [
        (np.zeros((3, 2), np.int32), ("",), "sources is int32 of shape"),
        (np.zeros((2, 2), np.int8), ("",), r"int8 of shape \(3, 2\)"),
        (np.ones((3, 2), np.int8), ("",), "sources hold 1 to 1; there are 1 labels"),
        (-np.ones((3, 2), np.int8), ("",), "sources hold -1 to -1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, sources, labels, message):
    with pytest.raises(ValueError, match=message):
        publish(tmp_path / "1", sources=sources, labels=labels)
    assert not list(tmp_path.iterdir())


def test_damaged_labels_are_found(tmp_path):
    publish(tmp_path / "1", **SOURCES)
    PublishedLists.open(tmp_path / "1").check_content()
    assert "sources.npy" in manifest_files(tmp_path / "1")
    manifest = tmp_path / "1" / "manifest.json"
    whole = json.loads(manifest.read_text())
    for labels, files, message in (
        ([1], whole["files"], "has labels"),
        (["a\n"], whole["files"], "has labels .*, not plain texts"),
        (["x"], {}, "the manifest says None"),
    ):
        manifest.write_text(json.dumps({**whole, "labels": labels, "files": files}))
        with pytest.raises(ValueError, match=message):
            PublishedLists.open(tmp_path / "1")
    manifest.write_text(json.dumps({**whole, "labels": [""]}))
    with pytest.raises(ValueError, match=r"sources\.npy is wrong: sources hold 0 to 2"):
        PublishedLists.open(tmp_path / "1").check_content()
    (tmp_path / "1" / "sources.npy").unlink()
    with pytest.raises(ValueError, match=r"sources\.npy can't be read"):
        PublishedLists.open(tmp_path / "1")


SESSIONS = {
    "related_scores": np.array(
        [[0.5, 0.25], [0.5, -np.inf], [0.75, 0.5], [0.5, 0.25]], dtype=np.float32
    ),
    "session_fade": (1.0, 0.5),
}


@pytest.mark.parametrize(
    ("recent", "expected"),
    [
        (["çay"], ["🍣", "apple"]),
        # 0.75 and 0.5 of çay, half of 0.5 and 0.25 of apple.
        (["apple", "çay"], ["🍣", "apple", "brød", "çay"]),
        # 0.75 each: of çay, and of çay and half of brød's.
        (["brød", "çay"], ["apple", "🍣"]),
        # brød has 0.5 + 0.125, çay 0.25 + 0.25; the first one is too long ago.
        (["çay", "🍣", "apple"], ["brød", "çay"]),
        # apple has 0.25, what 🍣 gives twice 0.25 and 0.5.
        (["🍣", "unheard of", "🍣", "unheard of"], ["çay", "brød"]),
        (["unheard of"], []),
        ([], []),
    ],
)
def test_a_session_sums_up_the_scores_of_its_latest_items(tmp_path, recent, expected):
    publish(tmp_path / "1", **SESSIONS)
    lists = PublishedLists.open(tmp_path / "1")
    assert lists.session_fade == (1.0, 0.5)
    assert lists.for_session(recent, 4) == expected
    assert lists.for_session(recent, 1) == expected[:1]
    lists.verify()


def test_lists_without_scores_know_no_sessions(folder):
    lists = PublishedLists.open(folder)
    assert lists.session_fade == ()
    assert lists.for_session(["çay"], 2) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"related": None}, "go together"),
        ({"session_fade": ()}, "go together"),
        ({"related_scores": None}, "go together"),
        (
            {"session_fade": (1.0, 0.0)},
            r"\[1.0, 0.0\]; it must be of numbers in \(0, 1\]",
        ),
        ({"session_fade": (float("nan"),)}, r"numbers in \(0, 1\]"),
        ({"related_scores": np.zeros((4, 2))}, "related_scores is float64 of shape"),
        (
            {"related_scores": np.zeros((4, 1), np.float32)},
            r"float32 of shape \(4, 2\)",
        ),
        (
            {"related_scores": np.full((4, 2), np.nan, np.float32)},
            "scores of 7 related items are no finite numbers",
        ),
    ],
)
def test_scores_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        publish(tmp_path / "1", **{**SESSIONS, **changes})
    assert not list(tmp_path.iterdir())


def test_damaged_scores_are_found(tmp_path):
    publish(tmp_path / "1", **SESSIONS)
    PublishedLists.open(tmp_path / "1").check_content()
    assert "related_scores.npy" in manifest_files(tmp_path / "1")
    manifest = tmp_path / "1" / "manifest.json"
    whole = json.loads(manifest.read_text())
    for fade in ([2], ["1"], 1, [True]):
        manifest.write_text(json.dumps({**whole, "session_fade": fade}))
        with pytest.raises(ValueError, match="has session_fade"):
            PublishedLists.open(tmp_path / "1")
    manifest.write_text(json.dumps(whole))
    scores = tmp_path / "1" / "related_scores.npy"
    np.save(scores, np.full((4, 2), np.inf, np.float32))
    with pytest.raises(ValueError, match=r"scores\.npy is wrong: scores of 7 related"):
        PublishedLists.open(tmp_path / "1").check_content()
    scores.unlink()
    with pytest.raises(ValueError, match=r"related_scores\.npy can't be read"):
        PublishedLists.open(tmp_path / "1")


def test_blocks_join(tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "_BLOCK_ROWS", 7)
    units = [f"unit-{n}" for n in range(100)]
    items = [f"item-{n}" for n in range(30)]
    table = np.arange(500, dtype=np.int32).reshape(100, 5) % 30
    publish(
        tmp_path / "1",
        unit_ids=units,
        item_ids=items,
        lists=table,
        default=table[0],
        related=table[:30],
    )
    lists = PublishedLists.open(tmp_path / "1")
    for number in range(100):
        expected = [items[row] for row in table[number]]
        assert lists.for_unit(units[number]) == expected
        if number < 30:
            assert lists.related(items[number]) == expected


def test_hash_is_of_the_manifest_and_covers_every_file(folder):
    content = (folder / "manifest.json").read_bytes()
    manifest = json.loads(content)
    assert PublishedLists.open(folder).sha256 == hashlib.sha256(content).hexdigest()
    on_disk = {path.name for path in folder.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == on_disk
    for name, facts in manifest["files"].items():
        content = (folder / name).read_bytes()
        assert facts == {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }


def test_same_content_has_the_same_hash(tmp_path):
    one, other = publish(tmp_path / "1"), publish(tmp_path / "2")
    assert one == other
    assert publish(tmp_path / "3", default=DEFAULT[::-1].copy()) != one


def test_an_existing_version_is_never_changed(folder):
    before = (folder / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match="versions never change"):
        publish(folder, default=DEFAULT[::-1].copy())
    assert (folder / "manifest.json").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lists": LISTS.astype(np.int64)}, r"lists is int64 .* it must be int32"),
        ({"lists": LISTS[:2]}, r"lists is .* shape \(2, 2\).* shape \(3, 2\)"),
        ({"lists": LISTS + 1}, r"lists holds rows outside -1 to 3"),
        ({"lists": LISTS - 1}, r"lists holds rows outside -1 to 3"),
        ({"default": DEFAULT[:1]}, r"lists is .* shape \(3, 1\)"),
        ({"default": DEFAULT[None]}, r"default is .* shape \(1, 2\)"),
        ({"related": RELATED[:3]}, r"related is .* shape \(4, 2\)"),
        ({"unit_ids": [], "lists": LISTS[:0]}, r"none of them 0"),
        ({"unit_ids": ["a", "b", "a"]}, r"unit id 'a' is given twice"),
        ({"unit_ids": ["a", "b", ""]}, r"an empty unit id"),
        ({"unit_ids": ["a", "b", "\ud800"]}, r"is not valid text"),
        ({"item_ids": ["a", "b", "c", "b"]}, r"item id 'b' is given twice"),
        ({"version": 0}, r"version is 0; it must be 1 or more"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        publish(tmp_path / "1", **changes)
    assert list(tmp_path.iterdir()) == []


def test_two_ids_of_one_hash_are_refused(tmp_path, monkeypatch):
    # Two texts of equal 64 bits of SHA-256 are not known, so all hashes are made equal.
    monkeypatch.setattr(list_format, "hash_of", lambda _: np.uint64(7))
    with pytest.raises(ValueError, match="'ada' and 'bob' have one hash"):
        publish(tmp_path / "1")


@contextmanager
def file_size_limit(size):
    """Let writes beyond `size` bytes of a file fail, as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(tmp_path):
    units = [f"unit-{n}" for n in range(1000)]
    with (
        file_size_limit(5_000),
        pytest.raises(OSError, match="could not be") as caught,
    ):
        publish(
            tmp_path / "1", unit_ids=units, lists=np.zeros((1000, 2), dtype=np.int32)
        )
    assert caught.value.errno == errno.EFBIG
    assert "lists als/1 could not be written" in str(caught.value)
    assert "nothing was published" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_named(tmp_path):
    (tmp_path / "models").write_text("not a folder")
    with pytest.raises(OSError, match="could not be written"):
        publish(tmp_path / "models" / "1")


def test_the_folder_appears_whole(tmp_path, monkeypatch):
    seen = []
    write = folders.write_file

    def watched(path, parts):
        seen.append((tmp_path / "1").exists())
        assert path.parent.name.endswith(PARTIAL_SUFFIX)
        return write(path, parts)

    for module in (folders, publishing):
        monkeypatch.setattr(module, "write_file", watched)
    publish(tmp_path / "1")
    assert len(seen) == 8
    assert not any(seen)


FILES = [
    "manifest.json",
    "units.npy",
    "lists.npy",
    "items.npy",
    "item_ids.bin",
    "item_offsets.npy",
    "default.npy",
    "related.npy",
]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} can't be read"):
        PublishedLists.open(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_cut_off_file_is_named(folder, file, keep):
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=file):
        PublishedLists.open(folder)


@pytest.mark.parametrize("file", FILES[1:])
def test_one_changed_bit_is_found_by_verify(folder, file):
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(bytes(content))
    if file in ("default.npy", "item_offsets.npy"):
        with pytest.raises(ValueError, match=f"{file}|item_ids.bin"):
            PublishedLists.open(folder)
        return
    lists = PublishedLists.open(folder)
    with pytest.raises(ValueError, match=rf"{file} has SHA-256"):
        lists.verify()


def test_verify_names_a_file_that_went_away(folder):
    lists = PublishedLists.open(folder)
    (folder / "units.npy").unlink()
    with pytest.raises(ValueError, match=r"units\.npy can't be read"):
        lists.verify()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing/manifest\.json can't be read"):
        PublishedLists.open(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "has format"),
        ({"format_version": 2}, "has format .* this program reads"),
        ({"units": 4}, r"units\.npy is uint64 of shape \(3,\)"),
        ({"units": True}, "has units True"),
        ({"depth": 0}, "has depth 0"),
        ({"items": "4"}, "has items '4'"),
        ({"items": 3}, r"item_offsets\.npy"),
        ({"name": None}, "lacks the name"),
        ({"files": {}}, "the manifest says None"),
        ({"files": []}, "lacks the name, or the size"),
        ({"files": {"units.npy": 3}}, "lacks the name, or the size"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(folder, change, message):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        PublishedLists.open(folder)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "3", "{}"])
def test_a_manifest_that_is_none_is_refused(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"is not a manifest"):
        PublishedLists.open(folder)


def test_other_content_of_the_same_size_is_refused(folder):
    for file, other in (("lists.npy", "related.npy"), ("units.npy", "default.npy")):
        kept = (folder / file).read_bytes()
        content = (folder / other).read_bytes()
        size = len(kept)
        (folder / file).write_bytes((content + bytes(size))[:size])
        with pytest.raises(ValueError, match=rf"{file} is"):
            PublishedLists.open(folder)
        (folder / file).write_bytes(kept)


def swap(path, size):
    """Swap the first two rows of an array."""
    content = bytearray(path.read_bytes())
    start = len(content) - size * len(np.load(path))
    one, other = content[start : start + size], content[start + size : start + 2 * size]
    content[start : start + 2 * size] = other + one
    path.write_bytes(content)


def overwrite(path, old, new):
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("lists.npy", lambda p: np.save(p, LISTS + 2), "lists.npy names an item that"),
        ("lists.npy", lambda p: np.save(p, LISTS - 1), "lists.npy names an item that"),
        ("related.npy", lambda p: np.save(p, RELATED + 1), "related.npy names an item"),
        ("units.npy", lambda p: swap(p, 8), "units.npy is not in ascending order"),
        ("items.npy", lambda p: swap(p, 8), "items.npy is not in ascending order"),
        (
            "item_ids.bin",
            lambda p: overwrite(p, b"pp", b"pq"),
            "is not of the item ids",
        ),
        ("item_ids.bin", lambda p: overwrite(p, b"pp", b"p\xff"), "can't decode byte"),
    ],
)
def test_what_a_writer_is_trusted_with_is_checked_when_asked(
    folder, file, change, message
):
    assert sorted(PublishedLists.open(folder).check_content()) == sorted(ITEMS)
    change(folder / file)
    with pytest.raises(ValueError, match=message):
        PublishedLists.open(folder).check_content()


def test_lists_get_another_name_and_number(folder, tmp_path):
    other = publish(tmp_path / "2", name="bpr", version=7)
    assert relabel(folder, name="bpr", version=7) == other
    lists = PublishedLists.open_verified(folder, other)
    assert (lists.name, lists.version) == ("bpr", 7)


def test_a_manifest_names_the_files_of_lists_and_no_others(folder):
    there = {path.name for path in folder.iterdir()}
    assert {*manifest_files(folder), "manifest.json"} == there
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../evil"] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"names the file '\.\./evil'"):
        manifest_files(folder)


def test_an_open_version_outlives_its_folder(folder):
    lists = PublishedLists.open(folder)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert lists.for_unit("ada") == ["apple", "brød"]
    assert lists.related("çay") == ["🍣", "apple"]


def test_threads_read_the_same(folder):
    lists = PublishedLists.open(folder)
    wrong = []

    def read():
        wrong.extend(
            unit
            for unit in UNITS * 300
            if lists.for_unit(unit)
            != [ITEMS[row] for row in LISTS[UNITS.index(unit)] if row >= 0]
        )

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_names_of_items_are_kept_beside_the_lists(tmp_path):
    names = ["Käse", "", "Tea", "lone \ud800"]
    publish(tmp_path / "1", item_names=names)
    lists = PublishedLists.open(tmp_path / "1")
    lists.verify()
    assert [lists.name_of(item) for item in ITEMS] == ["Käse", "", "Tea", "lone ?"]
    assert lists.name_of("nobody knows") == ""
    publish(tmp_path / "2", item_names=[""] * 4)
    assert PublishedLists.open(tmp_path / "2").name_of(ITEMS[0]) == ""
    with pytest.raises(ValueError, match="item_names are 1; there are 4 items"):
        publish(tmp_path / "3", item_names=["x"])
    assert not (tmp_path / "3").exists()


def test_open_lists_are_told(folder):
    assert not is_open(folder)
    lists = PublishedLists.open(folder)
    assert is_open(folder)
    assert lists.version
    del lists
    assert not is_open(folder)
    assert not is_open(folder / "nothing")
