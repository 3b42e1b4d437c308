"""The store on disk: what is got is what was put or nothing, whatever happens to its files, and whoever shares it."""

import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from fresco_dist.runtime import store as store_module
from fresco_dist.runtime.store import Store

CANVAS = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "timestep": np.array(999, dtype=np.int64)}
FACTS = {"step": 3, "indices": [None, 1.5, "a"], "is_last": False}
DTYPES = [np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8, np.bool_]
SMALL = arrays(st.sampled_from(DTYPES), array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
CONTENTS = st.dictionaries(st.text("abc._é", min_size=1, max_size=4), SMALL, max_size=3)
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)
ACTION = st.tuples(
    st.sampled_from(["put", "put", "get", "get", "remove", "flip", "cut", "kill"]),
    st.sampled_from(["one", "two", "three"]),
    st.floats(0, 1, exclude_max=True),
)
FLUSH = store_module.flush


@pytest.fixture(scope="module", autouse=True)
def unflushed() -> Iterator[None]:
    """Tests are about what other processes see, not about a loss of power."""
    with mock.patch.object(store_module, "flush"):
        yield


def opened(path: Path, max_gb: float | None = None, numerics: str = "here") -> Store:
    """A store in use."""
    store = Store(path, max_gb)
    store.use(numerics)
    return store


@pytest.fixture
def store(tmp_path) -> Store:
    return opened(tmp_path / "store")


def is_same(entry: tuple | None, arrays: dict, facts: dict) -> bool:
    """Whether what was got is that, bit by bit."""
    got, got_facts = entry
    assert got_facts == facts and got.keys() == arrays.keys()
    return all(
        got[name].dtype == array.dtype and got[name].shape == array.shape and got[name].tobytes() == array.tobytes()
        for name, array in arrays.items()
    )


def files_in(path: Path) -> list[str]:
    """Everything in a store, by relative name."""
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file() or "partial" in file.name)


def entry_file(store: Store, key: str) -> Path:
    return store.folder / f"{key}.safetensors"


def flip_bit(path: Path, place: float) -> None:
    """One bit of a file, at this share of it."""
    content = bytearray(path.read_bytes())
    bit = int(place * 8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_entry_is_got_as_it_was_put(store):
    turned = {"turned": CANVAS["x"].transpose(2, 1, 0)[::-1]}
    assert store.get("canvas") is None and not store.has("canvas")
    assert store.put("canvas", CANVAS | turned, FACTS)
    assert is_same(store.get("canvas"), CANVAS | turned, FACTS)
    assert store.keys() == ["canvas"] and store.has("canvas") and not store.damaged
    assert files_in(store.path) == ["here/canvas.safetensors"]
    store.get("canvas")[0]["x"][:] = 0  # the caller's own
    assert is_same(opened(store.path).get("canvas"), CANVAS | turned, FACTS)


def test_entry_that_is_there_is_not_written_again(store):
    store.put("canvas", CANVAS, FACTS)
    assert store.put("canvas", {}, {})
    assert is_same(store.get("canvas"), CANVAS, FACTS)


def test_other_numerics_have_other_entries(store):
    store.put("canvas", CANVAS, FACTS)
    store.use("there")
    assert store.get("canvas") is None and store.keys() == []
    store.put("canvas", CANVAS, {})
    store.use("here")
    assert is_same(store.get("canvas"), CANVAS, FACTS)


def test_removed_entry_is_a_miss_and_nothing_to_tell(store):
    store.put("canvas", CANVAS, FACTS)
    assert store.has("canvas")
    opened(store.path).remove("canvas")
    opened(store.path).remove("canvas")
    assert store.get("canvas") is None and not store.damaged


def test_entry_under_another_name_is_damaged(store):
    store.put("canvas", CANVAS, FACTS)
    entry_file(store, "canvas").rename(entry_file(store, "other"))
    assert store.get("other") is None and not store.has("other")
    assert "digest" in store.damaged[0]


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"\xff" * 100, b"\x02" + b"\0" * 7 + b"{}", b"text"],
    ids=["empty", "0", "1", "{}", "t"],
)
def test_file_that_is_no_entry_is_removed_and_told(store, content):
    store.put("canvas", CANVAS, FACTS)
    entry_file(store, "canvas").write_bytes(content)
    assert store.get("canvas") is None and not store.has("canvas")
    (line,) = store.damaged
    assert "here/canvas.safetensors was damaged and is removed" in line


def test_entry_of_another_dtype_is_damaged(store):
    """Bytes as before, read as something else: the format cannot tell."""
    store.put("canvas", {"x": np.ones(4, dtype=np.uint32)}, {})
    file = entry_file(store, "canvas")
    file.write_bytes(file.read_bytes().replace(b'"U32"', b'"I32"'))
    assert store.get("canvas") is None and "digest" in store.damaged[0]


@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans(), contents=CONTENTS)
@settings(max_examples=300)
def test_any_flipped_bit_and_any_missing_end_is_found(place, cut, contents):
    with TemporaryDirectory() as folder:
        store = opened(Path(folder))
        store.put("canvas", contents, FACTS)
        file = entry_file(store, "canvas")
        if cut:
            os.truncate(file, int(place * file.stat().st_size))
        else:
            flip_bit(file, place)
        assert store.get("canvas") is None
        assert len(store.damaged) == 1 and not store.has("canvas")


@given(st.lists(ACTION, max_size=12), st.data())
def test_what_is_got_was_put_or_is_missing(actions, data):
    """Random histories of a store that damage, removals and killed writers befall."""
    with TemporaryDirectory() as folder:
        store, expected = opened(Path(folder)), {}
        for kind, key, place in actions:
            file = entry_file(store, key)
            if kind == "put":
                content = data.draw(CONTENTS), {"fact": data.draw(JSON)}
                store.put(key, *content)
                expected.setdefault(key, content)
            elif kind == "kill":
                killed_before_rename(store, key, data.draw(CONTENTS))
            elif kind == "remove":
                store.remove(key)
                expected.pop(key, None)
            elif kind == "flip" and file.is_file() and file.stat().st_size:
                flip_bit(file, place)
                expected[key] = None
            elif kind == "cut" and file.is_file():
                os.truncate(file, int(place * file.stat().st_size))
                expected[key] = None
            elif kind == "get":
                got, content = store.get(key), expected.get(key)
                assert got is None if content is None else is_same(got, *content)
                if content is None:
                    expected.pop(key, None)  # and may be put again
        assert store.keys() == sorted(expected)


def killed_before_rename(store: Store, key: str, contents: dict) -> None:
    """What a writer that is killed at the worst moment leaves."""
    stopped = mock.patch.object(Path, "replace", side_effect=KeyboardInterrupt)
    left = mock.patch.object(store_module.shutil, "rmtree")
    with stopped, left:
        try:
            store.put(key, contents, {})
        except KeyboardInterrupt:
            assert not store.has(key)


def killed_writer(path: Path) -> Path:
    """A process that is killed while it writes an entry; what it has left."""
    code = f"""
import os, signal
from pathlib import Path
import numpy as np
from fresco_dist.runtime.store import Store
store = Store(Path({str(path)!r}))
store.use("here")
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
store.put("canvas", {{"x": np.zeros(100)}}, {{}})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    (left,) = (path / "here").glob(".partial-*")
    return left


def test_opening_removes_what_a_killed_writer_left(store):
    left = killed_writer(store.path)
    assert not store.has("canvas") and store.keys() == []
    opened(store.path)
    assert files_in(store.path) == [] and not left.exists()


def test_opening_leaves_what_others_are_writing(store):
    left = killed_writer(store.path)
    names = [f".partial-{platform.node()}.{os.getpid()}.ab", ".partial-another-node.1.ab", ".partial-whatever"]
    for name in names:
        left.with_name(name).mkdir()
    opened(store.path)
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(names)
    for name in names:
        os.utime(left.with_name(name), (time.time() - 4000,) * 2)
    opened(store.path)
    assert files_in(store.path) == []


def test_store_is_no_larger_than_it_may_be_and_keeps_what_was_used_last(tmp_path):
    one = {"x": np.zeros(2500, dtype=np.float32)}  # 10 kB
    store = opened(tmp_path, max_gb=35e-6)
    for age, key in enumerate(["a", "b", "c"]):
        assert store.put(key, one, {})
        os.utime(entry_file(store, key), (1000 + age,) * 2)
    store.get("a")
    store.use("there")
    assert store.put("d", one, {})
    assert files_in(tmp_path) == ["here/a.safetensors", "here/c.safetensors", "there/d.safetensors"]
    assert not store.put("huge", {"x": np.zeros(9000, dtype=np.float32)}, {})
    assert files_in(tmp_path) == ["here/a.safetensors", "here/c.safetensors", "there/d.safetensors"]


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3000)), max_size=20), st.integers(500, 8000))
def test_no_sequence_of_entries_exceeds_the_limit(entries, max_bytes):
    with TemporaryDirectory() as folder:
        path = Path(folder)
        for numerics, num_bytes in entries:
            store = opened(path, max_bytes / 1e9, numerics)
            is_there = store.put(f"size-{num_bytes}", {"x": np.zeros(num_bytes, dtype=np.uint8)}, {})
            assert is_there == store.has(f"size-{num_bytes}")
            assert is_there or num_bytes > max_bytes - 1000
            assert sum(file.stat().st_size for file in path.rglob("*.safetensors")) <= max_bytes


@pytest.mark.parametrize("ndim", [0, 1, 4])
def test_size_is_bounded_before_it_is_written(store, ndim):
    contents = {f'a " long name é {i}': np.zeros((1,) * ndim + (10,), dtype=np.float64) for i in range(50)}
    facts = {"text": 'with "quotes"' * 30}
    store.put("canvas", contents, facts)
    text = json.dumps(facts)
    bound = store_module._size_bound(contents, {"facts": text, "sha256": "0" * 64})
    assert 0 <= bound - entry_file(store, "canvas").stat().st_size < 50 * 200


def test_full_disk_leaves_nothing(store):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(OSError, match="canvas.safetensors cannot be written.*too large"):
            store.put("canvas", {"x": np.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files_in(store.path) == [] and not store.has("canvas")
    assert store.put("canvas", CANVAS, FACTS)


def test_file_that_may_not_be_read_is_told_and_stays():
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        store, user = opened(Path(folder)), os.geteuid()
        store.put("canvas", CANVAS, FACTS)
        entry_file(store, "canvas").chmod(0)
        try:
            if user == 0:  # who may read all
                os.seteuid(65534)
            assert store.get("canvas") is None
        finally:
            os.seteuid(user)
        (line,) = store.damaged
        assert "canvas.safetensors cannot be read" in line and "ermission" in line
        entry_file(store, "canvas").chmod(0o600)
        assert is_same(store.get("canvas"), CANVAS, FACTS)


def test_damage_that_cannot_be_removed_is_told(store, monkeypatch):
    store.put("canvas", CANVAS, FACTS)
    entry_file(store, "canvas").write_bytes(b"")
    monkeypatch.setattr(Path, "unlink", mock.Mock(side_effect=PermissionError("read-only")))
    assert store.get("canvas") is None
    assert "is damaged" in store.damaged[0] and "cannot be removed: read-only" in store.damaged[0]


def test_entry_is_on_the_disk_before_it_has_its_name_and_the_name_after(store):
    events, replace = [], Path.replace
    flushed = mock.patch.object(store_module, "flush", lambda path: events.append(path.name))
    renamed = mock.patch.object(Path, "replace", lambda *paths: (events.append("rename"), replace(*paths)))
    with flushed, renamed:
        store.put("canvas", CANVAS, FACTS)
    assert events == ["canvas.safetensors", "rename", "here"]
    with mock.patch.object(os, "fsync") as fsync:
        FLUSH(entry_file(store, "canvas"))
    assert fsync.call_count == 1


def test_others_may_read_what_the_umask_lets_them(store):
    before = os.umask(0o027)
    try:
        store.put("canvas", CANVAS, FACTS)
    finally:
        os.umask(before)
    assert entry_file(store, "canvas").stat().st_mode & 0o777 == 0o640


def test_numerics_used_last_are_remembered(store):
    assert store.last_numerics() is None
    store.record_numerics({"torch": "2.13"})
    assert opened(store.path).last_numerics() == ("here", {"torch": "2.13"})
    store.use("there")
    store.record_numerics({"torch": "2.14"})
    assert store.last_numerics() == ("there", {"torch": "2.14"}) and not store.damaged
    assert files_in(store.path) == ["numerics.json"]
    for content in ("", "[]", '{"numerics": "there"}', "\0"):
        (store.path / "numerics.json").write_text(content)
        assert store.last_numerics() is None and "numerics.json cannot be read" in store.damaged.pop()


def share(path: Path, seed: int) -> None:
    """One of several processes at a store that is too small for all keys."""
    random = np.random.default_rng(seed)
    for _ in range(100):
        store = opened(path, max_gb=100e-6)
        store.record_numerics({})
        number = int(random.integers(8))
        content = {"x": np.full(5000, number, dtype=np.float32)}, {"number": number}
        if random.random() < 0.1:
            store.remove(f"key-{number}")
        store.put(f"key-{number}", *content)
        got = store.get(f"key-{number}")
        assert got is None or is_same(got, *content)
        assert store.last_numerics() and not store.damaged, store.damaged


def test_processes_share_a_store(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=share, args=(tmp_path, seed)) for seed in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert opened(tmp_path).keys() and not list(tmp_path.glob("*/.partial-*"))


def test_store_needs_neither_tensors_nor_a_cluster():
    code = "import sys, fresco_dist.runtime.store; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "diffusers"} & set(done.stdout.split())
