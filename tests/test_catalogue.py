"""Benchmarks are found by name, fetched whole and checked, or not at all."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import lzma
import os
import re
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from besskge_core.catalogue import BENCHMARKS, benchmarks, hard_negatives, load_dataset
from besskge_core.catalogue.download import Benchmark, SourceFile, fetch
from besskge_core.errors import ConfigError, DataError, DatasetNotFoundError, DownloadError

REAL = os.environ.get("BESSKGE_DATA")
needs_data = pytest.mark.skipif(not REAL, reason="BESSKGE_DATA names no folder of benchmarks")
needs_pooch = functools.partial(pytest.importorskip, "pooch", reason="downloads need pooch")

PARTS = {"train": "a\tr\tb\nb\tr\tc\n", "valid": "b\tr\ta\n", "test": "c\tr\td\n"}
COUNTS = (4, 1, 2, 1, 1)


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, path to content; `cut` paths break off after half of what was announced."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.cut, self.asked = {}, set(), []


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path[1:]
        self.server.asked.append(path)
        content = self.server.files.get(path)
        if content is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if path in self.server.cut else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    needs_pooch()
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("BESSKGE_MIRROR", f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.delenv("BESSKGE_DATA", raising=False)
    monkeypatch.setenv("BESSKGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def tar(members):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz", compresslevel=1) as archive:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return sink.getvalue()


def zipped(members):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return sink.getvalue()


def text_files(texts, folder="", end="\n"):
    return {f"{folder}{part}.txt": text.replace("\n", end) for part, text in texts.items()}


def toy(url="toy.tar.gz", **changes):
    files = [
        SourceFile(f"{part}.tsv", url, sha256(text), f"{part}.txt") for part, text in PARTS.items()
    ]
    return Benchmark("toy", "Toy", changes.get("counts", COUNTS), "none", tuple(files))


@pytest.fixture
def known_toy(monkeypatch):
    monkeypatch.setitem(BENCHMARKS, "toy", toy())


def left_in(cache):
    return sorted(path.name for path in cache.iterdir())


# -- by name ---------------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_the_counts_are_those_of_the_benchmarks_own_page(monkeypatch, name):
    monkeypatch.setenv("BESSKGE_DATA", REAL)
    page = Path(REAL, BENCHMARKS[name].folder, "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    said = {what: int(count.replace(",", "")) for what, count in rows}
    summary = load_dataset(name.upper()).summary()
    assert summary["n_entity"] == said["entities (all splits)"]
    assert summary["n_relation_type"] == said["relations (all splits)"]
    for part in ("train", "valid", "test"):
        assert summary["n_triple"][part] == said[f"{part} triples"]
        assert summary["n_repeated"][part] == said[f"duplicate lines in {part}"]
    for part in ("valid", "test"):
        assert (
            summary["n_unseen_entity"][part]
            == said[f"{part} triples with an entity unseen in train"]
        )
        assert summary["n_also_in_train"][part] == said[f"train∩{part}"]


@needs_data
def test_leading_zeros_and_names_survive(monkeypatch):
    monkeypatch.setenv("BESSKGE_DATA", REAL)
    dataset = load_dataset("wn18rr")
    assert dataset.entity_dict[0] == "00260881"
    assert dataset.entity_names[0].startswith("land reform, ")


@needs_data
@pytest.mark.parametrize("name, n_type", [("codex-s", 91), ("kg20c", 5), ("wn18rr", 5)])
def test_types_are_given_on_request(monkeypatch, name, n_type):
    monkeypatch.setenv("BESSKGE_DATA", REAL)
    typed, plain = load_dataset(name, types=True), load_dataset(name)
    assert len(typed.type_offsets) == n_type
    assert plain.type_offsets is None
    assert sorted(typed.entity_dict) == sorted(plain.entity_dict)


@needs_data
def test_hard_negatives_are_no_triples_of_the_graph(monkeypatch):
    monkeypatch.setenv("BESSKGE_DATA", REAL)
    dataset = load_dataset("codex-s")
    negatives = hard_negatives("CoDEx-S", dataset)
    assert {part: len(rows) for part, rows in negatives.items()} == {"valid": 1827, "test": 1828}
    true = {tuple(row) for rows in dataset.triples.values() for row in rows.tolist()}
    assert not true & {tuple(row) for rows in negatives.values() for row in rows.tolist()}
    with pytest.raises(DatasetNotFoundError, match="umls has no hard negatives; codex-s has"):
        hard_negatives("umls", dataset)


def test_family_takes_its_options_by_name():
    dataset = load_dataset("Family", n_person=64, seed=1, noise=0.1, types=True)
    assert dataset.type_offsets["place"] == 64


def test_an_unknown_name_gets_the_list_and_the_nearest():
    message = (
        r"no data set 'WN18R': neither .* one of \['codex-s', .*'yago3-10'\]; did you mean 'wn18rr'"
    )
    with pytest.raises(DatasetNotFoundError, match=message):
        load_dataset("WN18R")
    with pytest.raises(DatasetNotFoundError, match=r"'yago3-10'\]$"):
        load_dataset("quite another")


def test_a_benchmark_takes_no_options():
    with pytest.raises(ConfigError, match=r"umls takes no options, got \['seed'\]"):
        load_dataset("umls", seed=1)


def test_a_path_is_a_folder_or_a_file_of_triples_or_a_saved_one(tmp_path):
    for part, text in PARTS.items():
        (tmp_path / f"{part}.tsv").write_text(text)
    folder = load_dataset(tmp_path)
    assert {p: len(t) for p, t in folder.triples.items()} == {"train": 2, "valid": 1, "test": 1}
    folder.save(tmp_path / "saved")
    assert load_dataset(str(tmp_path / "saved")).entity_dict == folder.entity_dict
    split = load_dataset(tmp_path / "train.tsv", split=(0.5, 0.5, 0))
    assert {p: len(t) for p, t in split.triples.items()} == {"train": 1, "valid": 1, "test": 0}
    with pytest.raises(ConfigError, match="types=True needs a folder that has entity_types"):
        load_dataset(tmp_path / "train.tsv", types=True)


def test_another_graph_under_the_name_of_a_benchmark_is_refused(monkeypatch, tmp_path, known_toy):
    monkeypatch.setenv("BESSKGE_DATA", str(tmp_path))
    (tmp_path / "Toy").mkdir()
    for part, text in PARTS.items():
        (tmp_path / "Toy" / f"{part}.tsv").write_text(text)
    assert load_dataset("toy").n_entity == 4
    (tmp_path / "Toy" / "test.tsv").write_text("c\tr\ta\n")
    message = re.escape(
        "not toy: it has (3, 1, 2, 1, 1) entities, relations, train, valid and test"
    )
    with pytest.raises(DataError, match=message):
        load_dataset("toy")


# -- downloads -------------------------------------------------------------------------------------


def test_a_benchmark_is_fetched_once_and_then_found_in_the_cache(server, cache, known_toy, capfd):
    server.files["toy.tar.gz"] = tar(text_files(PARTS, end="\r\n"))
    first, again = load_dataset("toy"), load_dataset("Toy")
    assert first.entity_dict == again.entity_dict == ["a", "b", "c", "d"]
    assert server.asked == ["toy.tar.gz"]
    assert left_in(cache) == ["Toy"]
    assert (cache / "Toy" / "train.tsv").read_text() == PARTS["train"]
    assert capfd.readouterr().err == "fetching Toy (licence: none)\n"


def test_given_data_comes_before_the_cache(server, tmp_path, monkeypatch, known_toy):
    server.files["toy.tar.gz"] = tar(text_files(PARTS))
    load_dataset("toy")
    monkeypatch.setenv("BESSKGE_DATA", str(tmp_path))
    (tmp_path / "Toy").mkdir()
    with pytest.raises(DataError, match="no file of training triples"):
        load_dataset("toy")


def test_a_wrong_checksum_leaves_nothing_behind(server, cache, known_toy):
    changed = {**PARTS, "test": "c\tr\te\n"}
    server.files["toy.tar.gz"] = tar(text_files(changed))
    message = f"toy.tar.gz: test.tsv has the SHA-256 {sha256(changed['test'])}, expected"
    with pytest.raises(DownloadError, match=message):
        load_dataset("toy")
    assert left_in(cache) == []
    server.files["toy.tar.gz"] = tar(text_files(PARTS))
    assert load_dataset("toy").n_entity == 4


def test_a_broken_connection_leaves_nothing_behind(server, cache, known_toy):
    server.files["toy.tar.gz"] = tar(text_files(PARTS))
    server.cut.add("toy.tar.gz")
    with pytest.raises(DownloadError, match=r"toy.tar.gz: (cannot be downloaded|.*cut short)"):
        load_dataset("toy")
    assert left_in(cache) == []


@pytest.mark.parametrize("kind, pack", [("tar.gz", tar), ("zip", zipped)])
def test_an_archive_cut_short_leaves_nothing_behind(server, cache, kind, pack):
    long = {**PARTS, "train": "".join(f"{i * i}\tr\t{i}\n" for i in range(1000))}
    content = pack(text_files(long))
    server.files[f"toy.{kind}"] = content[: len(content) // 2]
    with pytest.raises(DownloadError, match=rf"toy.{kind}: train.tsv cannot be read .* cut short"):
        fetch(toy(f"toy.{kind}"), str(cache))
    assert left_in(cache) == []


@pytest.mark.parametrize("member", ["train.txt", "test.txt"])
def test_an_archive_that_lacks_a_file_is_refused(server, cache, member):
    texts = text_files(PARTS)
    del texts[member]
    server.files["toy.tar.gz"] = tar(texts)
    with pytest.raises(DownloadError, match=rf"{member[:-4]}.tsv cannot be read .*{member}"):
        fetch(toy(), str(cache))
    assert left_in(cache) == []


def test_a_missing_source_says_where_files_can_be_put(server, cache):
    message = r"toy.tar.gz: cannot be downloaded \(404 .* of toy into \$BESSKGE_DATA/Toy"
    with pytest.raises(DownloadError, match=message):
        fetch(toy(), str(cache))


def test_two_processes_may_fetch_the_same(server, cache):
    server.files["toy.tar.gz"] = tar(text_files(PARTS))
    threads = [threading.Thread(target=fetch, args=(toy(), str(cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert left_in(cache) == ["Toy"]
    assert load_dataset(cache / "Toy").n_entity == 4


def test_without_pooch_it_says_what_to_install(monkeypatch, cache):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DownloadError, match="toy is not on this machine and .*`pip install pooch`"):
        fetch(toy(), str(cache))
    assert left_in(cache) == []


def test_the_cache_is_where_the_platform_wants_it(monkeypatch, tmp_path):
    monkeypatch.delenv("BESSKGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.setenv("HOME", "/home/ada")
    where = {}
    for platform in ("linux", "darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        where[platform] = Path(benchmarks.cache_folder())
    assert where["linux"] == where["win32"] == tmp_path / "besskge"
    assert where["darwin"] == Path("/home/ada/Library/Caches/besskge")


def published(benchmark):
    """The sources of a benchmark, URL to content, in the form in which they are published."""
    texts = {
        path.name[: -len(".tsv.xz")]: lzma.decompress(path.read_bytes()).decode()
        for path in Path(REAL, benchmark.folder).glob("*.tsv.xz")
    }
    parts = {part: texts[part] for part in ("train", "valid", "test")}
    labels = [line.split("\t") for line in texts.get("entity_labels", "").splitlines()]
    types = [line.split("\t") for line in texts.get("entity_types", "").splitlines()]
    sources = {}
    for file in benchmark.files:
        if file.url.endswith(".tar.gz"):
            sources[file.url] = tar(text_files(parts, end="\r\n"))
        elif file.url.endswith(".zip"):
            rows = [f"{e}\t{name}\t{kind}\n" for (e, name), (_, kind) in zip(labels, types)]
            info = {"KG20C/all_entity_info.txt": "id\tname\ttype\n" + "".join(rows)}
            sources[file.url] = zipped({**text_files(parts, "KG20C/"), **info})
        elif file.form == "known entities":
            sources[file.url] = (texts["entity_labels"] + "/m/unknown\tsomething\n").encode()
        elif file.form == "sorted":
            sources[file.url] = "".join(texts["entity_labels"].splitlines(True)[::-1]).encode()
        elif file.form == "json types":
            of_entity = {"Q0": ["Q1"]}
            for entity, kind in reversed(types):
                of_entity.setdefault(entity, []).insert(0, kind)
            sources[file.url] = json.dumps(of_entity).encode()
        else:
            sources[file.url] = texts[file.name[: -len(".tsv")]].encode()
    return sources


@needs_data
@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_each_benchmark_is_made_from_its_published_files(server, monkeypatch, name):
    server.files.update(published(BENCHMARKS[name]))
    fetched = load_dataset(name)
    monkeypatch.setenv("BESSKGE_DATA", REAL)
    given = load_dataset(name)
    assert fetched.entity_dict == given.entity_dict
    assert fetched.entity_names == given.entity_names
    for part, triples in given.triples.items():
        assert fetched.triples[part].tolist() == triples.tolist()


@needs_data
def test_types_that_no_public_source_has_are_missed_by_name(server):
    server.files.update(published(BENCHMARKS["wn18rr"]))
    with pytest.raises(DataError, match="WN18RR: no entity_types file; expected entity_types.tsv"):
        load_dataset("wn18rr", types=True)


def test_a_zip_archive_of_text_is_no_saved_graph(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.tsv", "w") as archive:
        archive.writestr("train.tsv", PARTS["train"])
    with pytest.raises(DataError, match="train.tsv: not a file of KGDataset.save"):
        load_dataset(tmp_path / "train.tsv")
