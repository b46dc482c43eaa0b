"""The bundle of CORE: strictly read, and fetched whole or not at all."""

import gzip
import hashlib
import http.server
import json
import lzma
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from segpt.errors import DataError, SegptError
from segpt.tasks import core_bundle as bundles
from segpt.tasks import fetch as fetching
from segpt.tasks.core import TASKS, MultipleChoice, task
from segpt.tasks.core_bundle import read_bundle, read_items
from segpt.tasks.fetch import fetch
from tests.bundles import SHARED, listed, write_archive, write_bundle, write_list, write_table

COPA = task("copa")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", items=3)


def test_every_task_is_read_from_its_file(bundle: Path) -> None:
    found = read_bundle(bundle)
    assert found.labels == tuple(t.label for t in TASKS)
    assert found.baselines == "v1"
    for each in TASKS:
        items, source = read_items(found, each)
        assert len(items) == source.items == 3
        assert source.path == bundle / "eval_data" / each.path
        assert source.sha256 == hashlib.sha256(source.path.read_bytes()).hexdigest()
        assert not source.verbatim


def test_the_bundle_may_lie_below_and_its_files_be_compressed(bundle: Path, tmp_path: Path) -> None:
    items, source = read_items(read_bundle(bundle), COPA)
    raw = source.path.read_bytes()
    source.path.unlink()
    for ending, compress in ((".xz", lzma.compress), (".gz", gzip.compress)):
        packed = source.path.with_name(source.path.name + ending)
        packed.write_bytes(compress(raw))
        again, other = read_items(read_bundle(bundle), COPA)
        assert (again, other.sha256) == (items, source.sha256)
        packed.unlink()
    (tmp_path / "above").mkdir()
    bundle.rename(tmp_path / "above" / "eval_bundle")
    assert read_bundle(tmp_path / "above").place == tmp_path / "above" / "eval_bundle"


def test_paths_as_datacomp_lm_writes_them(tmp_path: Path) -> None:
    place = write_bundle(tmp_path, prefix="local_data/", folder="local_data")
    assert len(read_items(read_bundle(place), COPA)[0]) == 12


def test_originals_are_known_by_their_digest(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle / "eval_data" / COPA.path
    raw = path.read_bytes()
    blob = hashlib.sha1(f"blob {len(raw)}\0".encode() + raw).hexdigest()
    for facts in ({"sha256": hashlib.sha256(raw).hexdigest()}, {"sha256": "", "blob": blob}):
        fields = {name: getattr(COPA, name) for name in COPA.__dataclass_fields__}
        original = type(COPA)(**{**fields, **facts})
        assert read_items(read_bundle(bundle), original)[1].verbatim
        path.write_bytes(raw + b"\n")
        assert not read_items(read_bundle(bundle), original)[1].verbatim
        path.write_bytes(raw)


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "core.yaml").exists(), reason="no CORE bundle at hand")
def test_the_real_bundle() -> None:
    found = read_bundle(SHARED)
    assert (len(found.labels), found.baselines) == (22, "v1")
    for each in TASKS:
        if each.path.split("/")[1] in ("coqa.jsonl", "bigbench_qa_wikidata.jsonl"):
            continue  # large
        items, source = read_items(found, each)
        altered = each.label in ("hellaswag", "hellaswag_zeroshot", "squad")
        assert source.verbatim is not altered
        assert len(items) == each.items or each.label == "squad"
        if isinstance(items[0], MultipleChoice):
            assert len(items[0].choices) in (2, 4)


def test_a_table_of_baselines_is_recognised(bundle: Path) -> None:
    write_table(bundle, "v2")
    assert read_bundle(bundle).baselines == "v2"
    write_table(bundle, "v2", copa="49")
    assert read_bundle(bundle).baselines is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_fewshot": [5]}, ("copa has num_fewshot 5, which is 0 in CORE",)),
        ({"icl_task_type": "schema"}, ("icl_task_type 'schema'", "'multiple_choice'")),
        ({"continuation_delimiter": ""}, ("continuation_delimiter ''",)),
        ({"dataset_uri": "../../etc/passwd"}, ("dataset_uri '../../etc/passwd'",)),
    ],
)
def test_a_task_that_is_another_is_refused(
    bundle: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    write_list(bundle, [listed(COPA) | changes])
    with pytest.raises(DataError) as error:
        read_bundle(bundle)
    for word in ("core.yaml: copa has", "segpt data fetch core", *words):
        assert word in str(error.value)


def test_a_list_of_some_tasks_runs_these(bundle: Path) -> None:
    write_list(bundle, [listed(COPA)])
    found = read_bundle(bundle)
    assert found.labels == ("copa",)
    with pytest.raises(DataError, match=r"core\.yaml: does not list piqa"):
        read_items(found, task("piqa"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("core.yaml", b"icl_tasks: 3", "core.yaml: no list of tasks"),
        ("core.yaml", b"[\xff", "core.yaml: no list of tasks"),
        ("core.yaml", b"icl_tasks: [{label: mmlu}]", "lists none of the 22"),
        ("core.yaml", b"icl_tasks: [{label: copa}, {label: copa}]", "lists copa twice"),
        ("core.yaml", None, "core.yaml: cannot be read"),
        ("eval_meta_data.csv", None, "eval_meta_data.csv: cannot be read"),
        ("eval_meta_data.csv", b"a,b\n1,2\n", "no baseline for each task"),
        ("eval_meta_data.csv", b'Eval Task,Random baseline\n"copa', "no baseline for each task"),
    ],
)
def test_a_damaged_description_is_named(
    bundle: Path, name: str, content: bytes | None, words: str
) -> None:
    (bundle / name).unlink()
    if content is not None:
        (bundle / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as error:
        read_bundle(bundle)
    assert "segpt data fetch core" in str(error.value)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "copa.jsonl:2: not a JSON object"),
        (b"[1]", "copa.jsonl:2: not a JSON object"),
        (b'"\xff"', "copa.jsonl:2: not a JSON object"),
        (b'{"query": "q", "choices": ["a", "b"]}', "copa.jsonl:2: missing key 'gold'"),
        (b'{"query": 1, "choices": ["a", "b"], "gold": 0}', r"copa.jsonl:2.query: expected text"),
        (b'{"query": "q", "choices": ["a", 2], "gold": 0}', r"choices\[1\]: expected text"),
        (b'{"query": "q", "choices": ["a", "b"], "gold": true}', "gold: expected a whole number"),
        (b'{"query": "q", "choices": ["a", "b"], "gold": 2}', "gold is 2, with 2 choices"),
    ],
)
def test_a_damaged_item_is_named_by_its_line(bundle: Path, line: bytes, words: str) -> None:
    path = bundle / "eval_data" / COPA.path
    good = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(good + line + b"\n" + good)
    with pytest.raises(DataError, match=words):
        read_items(read_bundle(bundle), COPA)


def test_files_that_are_not_there_or_too_large(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = bundle / "eval_data" / COPA.path, read_bundle(bundle)
    path.write_bytes(b"\n")
    with pytest.raises(DataError, match=r"copa\.jsonl: no items in it"):
        read_items(found, COPA)
    path.unlink()
    with pytest.raises(DataError, match=r"copa\.jsonl: not there, so copa cannot run; name only"):
        read_items(found, COPA)
    path.with_suffix(".jsonl.xz").write_bytes(lzma.compress(b" " * 5000)[:60])
    with pytest.raises(DataError, match=r"copa\.jsonl\.xz: cannot be read"):
        read_items(found, COPA)
    monkeypatch.setattr(bundles, "LARGEST", 100)
    path.with_suffix(".jsonl.xz").write_bytes(lzma.compress(b" " * 5000))
    with pytest.raises(DataError, match="more than 100 bytes"):
        read_items(found, COPA)


# Fetching.


@pytest.fixture
def archive(bundle: Path, tmp_path: Path) -> Path:
    return write_archive(tmp_path / "eval_bundle.zip", bundle, **{"__MACOSX/._core.yaml": b"x"})


@pytest.mark.parametrize("form", ["path", "url"])
def test_a_local_archive_is_put_in_place(archive: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / "runs" / "core"
    (archive.parent / "eval_bundle").mkdir()
    found = fetch(str(archive) if form == "path" else archive.as_uri(), out)
    assert found.archive == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert len(found.sources) == 21
    assert len(read_items(read_bundle(out), COPA)[0]) == 3
    record = json.loads((out / "fetched.json").read_text())
    assert record["sha256"] == found.archive
    assert record["files"][COPA.path]["sha256"] == found.sources[COPA.path].sha256
    assert {p.name for p in out.iterdir()} == {
        *("core.yaml", "eval_meta_data.csv", "eval_data", "fetched.json")
    }
    fetch(str(archive), out)  # replaces it


def test_what_is_no_bundle_is_not_replaced(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "diary").write_text("dear")
    with pytest.raises(SegptError, match="home is there and is not a CORE bundle that"):
        fetch(str(archive), tmp_path / "home")
    assert (tmp_path / "home" / "diary").read_text() == "dear"
    fetch(str(archive), tmp_path / "core")
    (tmp_path / "core" / "diary").write_text("dear")
    with pytest.raises(SegptError, match="core is there and is not a CORE bundle that"):
        fetch(str(archive), tmp_path / "core")
    assert (tmp_path / "core" / "diary").read_text() == "dear"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("nowhere.zip", "nowhere.zip: no such file; give the URL or path"),
        (".", "a directory, not an archive; use it as it is"),
        ("ftp://host/eval_bundle.zip", "of an unknown kind"),
    ],
)
def test_a_source_that_is_none(tmp_path: Path, source: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fetch(source, tmp_path / "core")
    assert not (tmp_path / "core").exists()


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "/tmp/evil.txt", "eval_bundle/../../evil.txt", "eval_bundle\\..\\evil.txt"],
)
def test_names_that_leave_the_bundle_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    path = write_archive(tmp_path / "evil.zip", bundle, **{name: b"evil"})
    with pytest.raises(DataError, match="outside the bundle; do not trust"):
        fetch(str(path), tmp_path / "core")
    assert not (tmp_path / "core").exists()
    assert not list(tmp_path.rglob("evil.txt"))


@pytest.mark.slow
def test_an_archive_that_expands_too_far_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "LARGEST", 1_000_000)
    (bundle / "eval_data" / COPA.path).write_bytes(b" " * 50_000_000)
    path = write_archive(tmp_path / "bomb.zip", bundle)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match=r"copa\.jsonl has more than 1,000,000 bytes"):
        fetch(str(path), tmp_path / "core")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (None, "not the archive of a bundle"),
        (["a.txt"], "holds 0 files core.yaml, not one"),
        (["core.yaml", "b/core.yaml"], "holds 2 files core.yaml, not one"),
        (["b/core.yaml"], "holds no eval_meta_data.csv"),
        (["core.yaml", "core.yaml"], "holds 'core.yaml' twice"),
    ],
)
def test_an_archive_that_is_not_a_bundle(
    tmp_path: Path, names: list[str] | None, words: str
) -> None:
    path = tmp_path / "a.zip"
    if names is None:
        path.write_bytes(b"not a zip")
    else:
        with zipfile.ZipFile(path, "w") as packed:
            for name in names:
                packed.writestr(name, "a")
    with pytest.raises(DataError, match=words):
        fetch(str(path), tmp_path / "core")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip"]


def test_damage_inside_the_archive_keeps_the_old_bundle(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "core"
    fetch(str(archive), out)
    raw = bytearray(archive.read_bytes())
    raw[len(raw) // 2] ^= 0x55
    archive.write_bytes(raw)
    with pytest.raises(DataError):
        fetch(str(archive), out)
    assert len(read_items(read_bundle(out), COPA)[0]) == 3


class Server:
    """Serves one file; ``plan`` says what goes wrong with each request in turn."""

    def __init__(self, content: bytes) -> None:
        self.content, self.etag = content, '"one"'
        self.plan: list[int | str] = []
        self.asked: list[str | None] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/eval_bundle.zip"

    def answer(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        span = handler.headers["Range"]
        self.asked.append(span)
        fault = self.plan.pop(0) if self.plan else "none"
        if isinstance(fault, int):
            handler.send_error(fault)
            return
        begin = int(span[6:-1]) if span and handler.headers["If-Range"] == self.etag else 0
        rest = self.content[begin:]
        handler.send_response(206 if begin else 200)
        if begin:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {begin}-{last}/{last + 1}")
        handler.send_header("Content-Length", str(len(rest)))
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.end_headers()
        handler.wfile.write(rest[: len(rest) // 2] if fault == "cut" else rest)
        if fault == "cut":
            handler.close_connection = True


@pytest.fixture
def server(archive: Path) -> Iterator[Server]:
    found = Server(archive.read_bytes())
    thread = threading.Thread(target=found.http.serve_forever, args=(0.01,))
    thread.start()
    yield found
    found.http.shutdown()
    thread.join()
    found.http.server_close()


WAITS = (0.0, 0.0, 0.0)


def test_a_broken_transfer_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut", "cut", 503]
    seen: list[tuple[int, int]] = []
    found = fetch(server.url, tmp_path / "core", waits=WAITS, report=lambda *p: seen.append(p))
    half, size = len(server.content) // 2, len(server.content)
    begins = [None, half, half + (size - half) // 2]
    assert server.asked[:3] == [b and f"bytes={b}-" for b in begins]
    assert found.archive == hashlib.sha256(server.content).hexdigest()
    assert seen[-1] == (size, size)


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_version_a_transfer_begins_again(
    server: Server, tmp_path: Path, etag: str
) -> None:
    server.plan, server.etag = ["cut"], etag
    fetch(server.url, tmp_path / "core", waits=WAITS)
    assert server.asked == [None, None]


def test_another_version_is_fetched_from_its_beginning(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut"]

    def changed(done: int, total: int) -> None:
        server.etag = '"two"'

    found = fetch(server.url, tmp_path / "core", waits=WAITS, report=changed)
    assert server.asked == [None, f"bytes={len(server.content) // 2}-"]
    assert found.archive == hashlib.sha256(server.content).hexdigest()


def test_what_the_server_refuses_is_not_asked_again(server: Server, tmp_path: Path) -> None:
    server.plan = [404]
    with pytest.raises(DataError, match=r"cannot be fetched .*Not Found.*--url FILE") as error:
        fetch(server.url, tmp_path / "core", waits=WAITS)
    assert len(server.asked) == 1
    assert f"unpack it into {tmp_path / 'core'}" in str(error.value)


def test_trying_ends(server: Server, tmp_path: Path) -> None:
    server.plan = [503] * 9
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(server.url, tmp_path / "core", waits=WAITS)
    assert len(server.asked) == 4
    assert not list(tmp_path.glob(".core*"))


def test_an_endless_download_is_cut_off(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MOST", 1000)
    with pytest.raises(DataError, match="more than 1,000 bytes; not the bundle"):
        fetch(server.url, tmp_path / "core", waits=WAITS)
