"""A prepared folder is what the memory would hold, however little memory there was."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from besskge_core.catalogue import load_dataset
from besskge_core.cli import cli
from besskge_core.dataset import KGDataset
from besskge_core.errors import (
    ConfigError,
    DataError,
    DatasetNotFoundError,
    PreparationError,
)
from besskge_core.preparation import (
    add_buckets,
    open_prepared,
    prepare,
    prepared_triple_set,
)
from besskge_core.preparation.scanning import hashes
from besskge_core.sharding import PartitionedTripleSet, Sharding

TINY = 20_000  # bytes: labels are spilled to many partitions, sources read in many pieces
REPOSITORY = Path(__file__).parent.parent


def rows(n, seed, n_entity=3_000):
    """Labelled triples; a few entities are frequent, labels have all lengths and alphabets."""
    rng = np.random.default_rng(seed)
    h, t = (rng.integers(n_entity, size=4 * n) * rng.integers(4, size=4 * n) for _ in range(2))
    r = rng.integers(40, size=4 * n)
    found = dict.fromkeys(zip(h.tolist(), r.tolist(), t.tolist()))
    label = "/entité/{0}{1}".format
    return [(label("x" * (i % 12), i), f"rel {j}", label("x" * (k % 12), k))
            for i, j, k in list(found)[:n]]  # fmt: skip


PARTS = {"train": rows(9_000, 0), "valid": rows(500, 1), "test": rows(700, 2, 5_000)}


def write_table(path, triples):
    """Write a file of the kind that its name says."""
    name = str(path)
    if name.endswith(".parquet"):
        columns = dict(zip(("h", "r", "t"), zip(*triples)))
        pq.write_table(
            pa.table({k: list(v) for k, v in columns.items()}), name, row_group_size=2_000
        )
        return
    if ".csv" in name:
        text = "h,time,r,t\n" + "".join(f'"{h}",1,"{r}","{t}"\n' for h, r, t in triples)
    else:
        text = "".join("\t".join(row) + "\n" for row in triples)
    raw = text.encode()
    Path(path).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of train, valid and test."""
    folder = tmp_path_factory.mktemp("labels")
    for part, triples in PARTS.items():
        write_table(folder / f"{part}.tsv", triples)
    return folder


@pytest.fixture(scope="module")
def in_memory(folder):
    return KGDataset.from_folder(folder)


@pytest.fixture
def small(tmp_path):
    """A file of a few triples."""
    path = tmp_path / "small.tsv"
    write_table(path, rows(300, 5, 60))
    return path


def contents(folder):
    """File name to bytes, of all files but the manifest."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def assert_same_graph(a, b):
    assert (a.n_entity, a.n_relation_type) == (b.n_entity, b.n_relation_type)
    assert list(a.triples) == list(b.triples)
    for part, triples in a.triples.items():
        assert triples.dtype == b.triples[part].dtype and (triples == b.triples[part]).all()
        assert (a.original_triple_ids[part] == b.original_triple_ids[part]).all()
    assert list(a.entity_dict) == list(b.entity_dict)
    assert list(a.relation_dict) == list(b.relation_dict)


def assert_same_buckets(mapped, made):
    assert mapped.triples.dtype == made.triples.dtype and (mapped.triples == made.triples).all()
    assert (mapped.triple_counts == made.triple_counts).all()
    assert (mapped.triple_offsets == made.triple_offsets).all()
    assert mapped.sharding.same_rows(made.sharding)
    for name in ("inverse_triples", "partition_mode", "dummy"):
        assert getattr(mapped, name) == getattr(made, name)


# -- what is written -------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [TINY, 10 * TINY, 2**30])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_prepared_folder_is_the_data_set_that_memory_would_hold(
    folder, in_memory, tmp_path, memory, threads
):
    prepare(folder, tmp_path / "out", 4, seed=3, memory_limit=memory, threads=threads)
    assert_same_graph(open_prepared(tmp_path / "out", verify=True), in_memory)
    made = PartitionedTripleSet.create_from_dataset(
        in_memory, "train", Sharding.create(in_memory.n_entity, 4, 3), add_inverse_triples=True
    )
    assert_same_buckets(prepared_triple_set(tmp_path / "out", 3, 4, True, verify=True), made)


def test_the_files_do_not_depend_on_memory_or_threads(folder, tmp_path):
    options = [(TINY, 1), (TINY, 4), (5 * TINY, 2), (2**30, 2)]
    for i, (memory, threads) in enumerate(options):
        prepare(folder, tmp_path / f"{i}", 3, memory_limit=memory, threads=threads)
    first = contents(tmp_path / "0")
    assert len(first) == 8 and all(contents(tmp_path / f"{i}") == first for i in range(1, 4))


def test_labels_are_stored_in_row_groups_of_equal_size(folder, in_memory, tmp_path, monkeypatch):
    monkeypatch.setattr("besskge_core.preparation.numbering.ROW_GROUP", 1_000)
    for memory in (TINY, 2**30):
        prepare(folder, tmp_path / f"{memory}", None, memory_limit=memory)
        file = pq.ParquetFile(tmp_path / f"{memory}" / "entities.parquet")
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        assert sizes == [1_000] * (len(sizes) - 1) + [in_memory.n_entity % 1_000]
        assert list(open_prepared(tmp_path / f"{memory}").entity_dict) == in_memory.entity_dict


KINDS = {
    "tsv": ("x.tsv", {}),
    "compressed": ("x.txt.gz", {}),
    "csv": ("x.csv", {"columns": ("h", "r", "t")}),
    "parquet": ("x.parquet", {}),
    "parquet by name": ("x.parquet", {"columns": ("t", "r", "h")}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", [TINY, 2**30])
def test_every_kind_of_file_is_prepared_as_it_is_read(tmp_path, kind, memory):
    name, options = KINDS[kind]
    write_table(tmp_path / name, PARTS["train"])
    files = {"train": tmp_path / name}
    prepare(files, tmp_path / "out", None, memory_limit=memory, **options)
    assert_same_graph(open_prepared(tmp_path / "out"), KGDataset.from_files(files, **options))


def test_many_files_of_a_part_are_read_one_after_the_other(folder, in_memory, tmp_path):
    (tmp_path / "train").mkdir()
    for i in range(3):
        triples = PARTS["train"][3_000 * i : 3_000 * (i + 1)]
        write_table(tmp_path / "train" / f"part-{i}.parquet", triples)
    sources = {
        "train": tmp_path / "train",
        "valid": [folder / "valid.tsv"],
        "test": folder / "test.tsv",
    }
    prepare(sources, tmp_path / "out", None, memory_limit=TINY)
    assert_same_graph(open_prepared(tmp_path / "out"), in_memory)


@pytest.mark.parametrize("n_shard", [1, 2, 16])
@pytest.mark.parametrize("inverse", [True, False])
def test_buckets_can_be_added_for_other_numbers_of_shards(small, tmp_path, n_shard, inverse):
    prepare(small, tmp_path / "out", None)
    for _ in range(2):  # the second time there is nothing to do
        add_buckets(tmp_path / "out", n_shard, 7, inverse)
    graph = open_prepared(tmp_path / "out", verify=True)
    made = PartitionedTripleSet.create_from_dataset(
        graph, "train", Sharding.create(graph.n_entity, n_shard, 7), add_inverse_triples=inverse
    )
    assert_same_buckets(prepared_triple_set(tmp_path / "out", 7, n_shard, inverse), made)


def test_labels_are_dealt_to_partitions_by_all_their_bytes():
    labels = [f"{'prefix' * k}{i}{'suffix' * m}" for i in range(500) for k, m in ((0, 3), (9, 0))]
    found = hashes(pa.array([*labels, "", *labels]))
    assert len(set(found.tolist())) == len(set(labels)) + 1
    assert (found[: len(labels)] == found[len(labels) + 1 :]).all()
    assert (hashes(pa.array(["x", *labels])[1:]) == found[: len(labels)]).all()
    counts = np.bincount((found % np.uint64(8)).astype(int))
    assert counts.min() > 0.7 * counts.mean()


# -- how it is opened ------------------------------------------------------------------------------


def test_a_prepared_folder_is_mapped_and_trains_like_its_source(folder, in_memory, tmp_path):
    prepare(folder, tmp_path / "out", 2)
    graph = load_dataset(tmp_path / "out")
    assert_same_graph(graph, in_memory)
    assert all(isinstance(x.base, np.memmap) or isinstance(x.base.base, np.memmap)
               for x in graph.triples.values())  # fmt: skip
    graph.triples["train"][0] = 1  # stays in this process
    assert_same_graph(load_dataset(tmp_path / "out"), in_memory)
    outcome = []
    for source in (folder, tmp_path / "out"):
        run = tmp_path / f"run-{len(outcome)}"
        arguments = ["train", "--dataset", source, "--out", run, "--dim", 4, "--epochs", 1,
                     "--n-negative", 8, "--batch-size", 512, "--threads", 1, "--n-shard", 2]  # fmt: skip
        done = CliRunner().invoke(cli, [str(x) for x in arguments])
        assert done.exit_code == 0, done.output
        outcome.append((run / "metrics.json").read_text())
    assert outcome[0] == outcome[1]


def test_labels_are_read_when_one_is_asked_for(small, tmp_path):
    prepare(small, tmp_path / "out", None)
    graph = open_prepared(tmp_path / "out")
    content = (tmp_path / "out" / "entities.parquet").read_bytes()
    (tmp_path / "out" / "entities.parquet").write_bytes(b"x" * len(content))
    assert len(graph.entity_dict) == graph.n_entity and repr(graph)
    with pytest.raises(DataError, match="entities.parquet: damaged"):
        graph.entity_dict[0]
    (tmp_path / "out" / "entities.parquet").write_bytes(content)
    every = list(graph.entity_dict)
    assert graph.entity_dict[-1] == every[-1] and graph.entity_dict[2:4] == every[2:4]
    with pytest.raises(IndexError):
        graph.entity_dict[len(every)]


def test_a_mapped_graph_can_be_stored_in_one_file(small, tmp_path):
    prepare(small, tmp_path / "out", None)
    graph = open_prepared(tmp_path / "out")
    graph.save(tmp_path / "graph.npz")
    assert_same_graph(KGDataset.load(tmp_path / "graph.npz"), graph)


def test_a_manifest_alone_makes_no_prepared_folder(folder, in_memory, tmp_path):
    shutil.copytree(folder, tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").write_text("{}")
    assert_same_graph(load_dataset(tmp_path / "mine"), in_memory)


def test_a_prepared_folder_takes_no_options(small, tmp_path):
    prepare(small, tmp_path / "out", None)
    with pytest.raises(ConfigError, match="a prepared folder takes no options"):
        load_dataset(tmp_path / "out", types=True)


def test_buckets_that_a_folder_lacks_are_listed(small, tmp_path):
    prepare(small, tmp_path / "out", 2)
    for wanted in ((0, 4, True), (1, 2, True), (0, 2, False)):
        with pytest.raises(
            ConfigError, match=r"no buckets for .* it has \['2 shards, seed 0, with"
        ):
            prepared_triple_set(tmp_path / "out", *wanted)
    with pytest.raises(ConfigError, match="has buckets for 2 shards, seed 0, .* in another folder"):
        add_buckets(tmp_path / "out", 2, seed=1)


# -- what is refused -------------------------------------------------------------------------------


def change(path, at=-1):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "missing": (lambda f: (f / "train.npy").unlink(), "train.npy: missing", False),
    "cut short": (lambda f: os.truncate(f / "valid.npy", 200), "valid.npy: 200 bytes, the man", False),
    "changed": (lambda f: change(f / "train.npy"), "train.npy: its checksum is not that", True),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: damaged", False),
    "no counts": (lambda f: edit(f, pop="parts"), "manifest.json: damaged", False),
    "later": (lambda f: edit(f, version=9), "of version 9, this besskge_core reads", False),
    "another": (lambda f: edit(f, format="x"), "'x' of version 1, this besskge_core reads", False),
    "other count": (lambda f: edit(f, parts={"train": 3}), r"expected int32 \(3, 3\)", False),
    "other entities": (lambda f: edit(f, n_entity=5), "ID [0-9]+, expected 0 to 4", True),
}  # fmt: skip


def edit(folder, pop=None, **changes):
    manifest = {**json.loads((folder / "manifest.json").read_text()), **changes}
    manifest.pop(pop, None)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_reason(small, tmp_path, damage):
    harm, message, only_verified = DAMAGES[damage]
    prepare({"train": small, "valid": small}, tmp_path / "out", 2)
    open_prepared(tmp_path / "out", verify=True)
    harm(tmp_path / "out")
    if only_verified:
        open_prepared(tmp_path / "out")
    with pytest.raises(DataError, match=message):
        open_prepared(tmp_path / "out", verify=True)


@pytest.mark.parametrize("name", ["triples.npy", "counts.npy", "sharding.npz"])
def test_damaged_buckets_are_refused_with_the_reason(small, tmp_path, name):
    prepare(small, tmp_path / "out", 2)
    path = tmp_path / "out" / "buckets-2" / name
    content = path.read_bytes()
    change(path)
    with pytest.raises(DataError, match=f"{name}: its checksum"):
        prepared_triple_set(tmp_path / "out", 0, 2, True, verify=True)
    with pytest.raises(DataError, match=f"{name}: its checksum"):
        prepare(small, tmp_path / "out", 2, resume=True)
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{name}: .* bytes, the manifest says"):
        prepared_triple_set(tmp_path / "out", 0, 2, True)


GOOD = "a\tlikes\tb\n" * 5_000
BAD_FILES = {
    "a column short": (GOOD + "a\tb\n", r"x.tsv:5001: 2 columns separated by '\\t', expected 3"),
    "a column more": (GOOD + "a\tb\tc\td\n", "x.tsv:5001: 4 columns"),
    "no label": (GOOD + "a\t\tb\n" + GOOD, "x.tsv:5001: column 1 is empty"),
    "latin 1": (GOOD.encode() + b"caf\xe9\tr\tb\n", r"x.tsv:5001: byte 4 \(0xe9\) is not UTF-8"),
    "nothing": ("", "x.tsv:1: the file is empty"),
    "a header": ("head\trelation\ttail\n" + GOOD, "x.tsv:1: .* looks like a header"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_source_is_refused_with_its_line(tmp_path, kind):
    content, message = BAD_FILES[kind]
    path = tmp_path / "x.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        prepare(path, tmp_path / "out", 2, memory_limit=TINY)
    with pytest.raises(DatasetNotFoundError, match="preparing it has not ended"):
        load_dataset(tmp_path / "out")


def test_empty_lines_are_skipped(tmp_path):
    (tmp_path / "x.tsv").write_text("\na\tr\tb\n\n\nb\tr\tc\n\n")
    assert prepare(tmp_path / "x.tsv", tmp_path / "out", None).parts == {"train": 2}


def test_a_bad_row_of_parquet_is_counted_over_all_pieces(tmp_path):
    triples = [*PARTS["train"][:5_000], ("a", "", "b")]
    write_table(tmp_path / "x.parquet", triples)
    with pytest.raises(DataError, match="x.parquet: row 5000: column 'r' is empty"):
        prepare(tmp_path / "x.parquet", tmp_path / "out", 2, memory_limit=TINY)


def test_folders_that_hold_something_are_left_alone(small, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    for resume in (False, True):
        with pytest.raises(ConfigError, match="mine is not empty; prepare in an empty folder"):
            prepare(small, tmp_path / "mine", resume=resume)
    prepare(small, tmp_path / "out", None)
    with pytest.raises(ConfigError, match="go on with resume=True"):
        prepare(small, tmp_path / "out", None)
    other = tmp_path / "other.tsv"
    shutil.copy(small, other)
    with pytest.raises(ConfigError, match="was prepared from .*small.tsv.* not from .*other.tsv"):
        prepare(other, tmp_path / "out", None, resume=True)


WRONG = {
    "no train": ({"valid": "{small}"}, {}, "buckets are of the part 'train'"),
    "no part": ({}, {}, "no part given"),
    "bad name": ({"train/x": "{small}"}, {}, "part 'train/x': expected letters"),
    "no file": ({"train": []}, {}, "part 'train' has no file"),
    "too many shards": ("{small}", {"n_shard": 10**6}, r"n_shard must be in \[1, "),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_are_refused(small, tmp_path, case):
    sources, options, message = WRONG[case]
    if isinstance(sources, str):
        sources = small
    sources = {k: v and small for k, v in sources.items()} if isinstance(sources, dict) else sources
    with pytest.raises(ConfigError, match=message):
        prepare(sources if case != "no file" else {"train": []}, tmp_path / "out", **options)


def test_sources_that_are_not_there_are_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="x.tsv: no such file"):
        prepare({"train": tmp_path / "x.tsv"}, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file of labelled training triples"):
        prepare(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(DataError, match="no file in it ends in one of"):
        prepare({"train": tmp_path / "empty"}, tmp_path / "out")


# -- kills and full disks --------------------------------------------------------------------------

PROGRAM = """
import resource, sys
from besskge_core.preparation import prepare
if sys.argv[3] == "limited":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
    import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
told = lambda stage, n: print(stage, flush=True)
prepare(sys.argv[1], sys.argv[2], 3, memory_limit=20_000, resume=True, progress=told)
"""


def start(folder, out, *more):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(out), *(str(x) for x in more or ("-",))],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=REPOSITORY, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """What a call leaves that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare(folder, out, 3, memory_limit=TINY)
    return {**contents(out), "manifest.json": (out / "manifest.json").read_bytes()}


def test_killed_at_any_moment_it_goes_on_and_leaves_the_same_files(folder, whole, tmp_path):
    out, rng, stages = tmp_path / "out", np.random.default_rng(), set()
    for n_line in sorted(rng.integers(1, 60, size=5).tolist()):
        process = start(folder, out)
        for _ in range(n_line):
            stages.add(process.stdout.readline().strip())
        time.sleep(0.02 * rng.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if not (out / "manifest.json").exists() and out.exists():
            with pytest.raises(
                DatasetNotFoundError, match="preparing it has not ended|not prepared"
            ):
                open_prepared(out)
    prepare(folder, out, 3, memory_limit=10 * TINY, resume=True)
    assert {**contents(out), "manifest.json": (out / "manifest.json").read_bytes()} == whole
    assert stages


def journal(out):
    return json.loads((out / "unfinished" / "journal.json").read_text())


def interrupt(folder, out, stage):
    """Prepare until a stage tells of itself for the first time."""

    class Stop(Exception):
        pass

    def told(name, n):
        if name.startswith(stage):
            raise Stop

    with pytest.raises(Stop):
        prepare(folder, out, 3, memory_limit=TINY, progress=told)


STAGES = ["reading train", "reading test", "numbering entity", "numbering relation", "translating",
          "sorting"]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_stages_that_have_ended_are_not_done_again(folder, whole, tmp_path, stage):
    out, seen = tmp_path / "out", []
    interrupt(folder, out, stage)
    with pytest.raises(
        DatasetNotFoundError, match="preparing it has not ended; go on with --resume"
    ):
        load_dataset(out)
    prepare(folder, out, 3, resume=True, progress=lambda name, n: seen.append(name))
    assert seen[0].startswith(stage)
    assert {**contents(out), "manifest.json": (out / "manifest.json").read_bytes()} == whole


@pytest.mark.parametrize("harm", [lambda path: path.unlink(), change])
def test_stages_whose_files_are_damaged_are_done_again(folder, whole, tmp_path, harm):
    interrupt(folder, tmp_path / "out", "sorting")
    for name in journal(tmp_path / "out")["done"]["number entity"]["files"]:
        harm(tmp_path / "out" / name)
    prepare(folder, tmp_path / "out", 3, resume=True)
    assert contents(tmp_path / "out") == {k: v for k, v in whole.items() if k != "manifest.json"}


def test_a_source_that_has_changed_since_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "source")
    interrupt(tmp_path / "source", tmp_path / "out", "translating")
    with (tmp_path / "source" / "train.tsv").open("a") as file:
        file.write("a\tb\tc\n")
    with pytest.raises(ConfigError, match="what was begun there had other sources"):
        prepare(tmp_path / "source", tmp_path / "out", 3, resume=True)


@pytest.mark.parametrize("limit", [600, 3_000, 20_000, 100_000, 150_000])
def test_a_full_disk_is_named_and_leaves_nothing_that_looks_complete(
    folder, whole, tmp_path, limit
):
    process = start(folder, tmp_path / "out", "limited", limit)
    error = process.communicate()[1]
    assert process.returncode and "PreparationError" in error and "the file grows larger" in error
    with pytest.raises(DatasetNotFoundError, match="preparing it has not ended"):
        load_dataset(tmp_path / "out")
    prepare(folder, tmp_path / "out", 3, resume=True)
    assert contents(tmp_path / "out") == {k: v for k, v in whole.items() if k != "manifest.json"}


def test_no_room_is_an_error_of_ours(small, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("besskge_core.preparation.making.write_buckets", full)
    with pytest.raises(PreparationError, match=r"the disk is full; .*\(--resume\)"):
        prepare(small, tmp_path / "out", 2)


def test_a_folder_that_cannot_be_made_is_an_error_of_ours(small, tmp_path):
    with pytest.raises(PreparationError, match="Not a directory"):
        prepare(small, small / "out", 2)


# -- the command -----------------------------------------------------------------------------------


def run(*arguments, expect=0):
    done = CliRunner().invoke(cli, ["prepare", *(str(x) for x in arguments)])
    assert done.exit_code == expect, done.output
    return done.output


def test_the_command_prepares_a_folder_and_says_what_is_in_it(folder, in_memory, tmp_path):
    text = run(folder, "--out", tmp_path / "out", "--n-shard", 2, "--memory", "1MB")
    assert f"{in_memory.n_entity:,} entities, 40 relations, triples: 9,000 train" in text
    assert "buckets-2: 18,000 triples for 2 shards, seed 0, with inverse ones" in text
    assert "reading train.tsv: 9,000, after" in text
    assert f"next: besskge train --dataset {tmp_path / 'out'}" in text
    text = run("--out", tmp_path / "out", "--n-shard", 4, "--no-inverse", "--seed", 5)
    assert "buckets-4: 9,000 triples for 4 shards, seed 5, without inverse ones" in text
    assert "reading" not in run(folder, "--out", tmp_path / "out", "--n-shard", 2, "--resume")
    assert_same_graph(load_dataset(tmp_path / "out"), in_memory)


def test_the_command_takes_a_file_for_each_part(tmp_path):
    for part, triples in PARTS.items():
        write_table(tmp_path / f"{part}.csv", triples)
    parts = [x for part in PARTS for x in (f"--{part}", tmp_path / f"{part}.csv")]
    run(*parts, "--columns", "h,r,t", "--out", tmp_path / "out", "--n-shard", 0)
    files = {part: tmp_path / f"{part}.csv" for part in PARTS}
    expected = KGDataset.from_files(files, columns=("h", "r", "t"))
    assert_same_graph(open_prepared(tmp_path / "out"), expected)


def test_the_command_joins_several_files(tmp_path):
    names = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for name, head in zip(names, "ac"):
        name.write_text(f"1,b,likes,{head}\n")
    run(*names, "--columns", "3,2,1", "--out", tmp_path / "out", "--n-shard", 0)
    assert open_prepared(tmp_path / "out").triples["train"].tolist() == [[0, 0, 2], [1, 0, 2]]


REFUSED = {
    "nothing": ([], "give a SOURCE or --train FILE"),
    "both": (["{small}", "--train", "{small}"], "give SOURCE or --train, not both"),
    "no size": (["{small}", "--memory", "much"], "--memory 'much' is not a size such as 4GB"),
    "no bytes": (["{small}", "--memory", "0"], "'0' is not a size"),
    "two columns": (["{small}", "--columns", "h,t"], "expected 3 positions or 3 names"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_says_in_one_line_what_it_cannot_do(small, tmp_path, case):
    arguments, message = REFUSED[case]
    given = [x.format(small=small) for x in arguments]
    assert re.search(re.escape(message), run(*given, "--out", tmp_path / "out", expect=2))


def test_preparing_needs_no_torch():
    program = "import sys, besskge_core.preparation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY)
    assert done.stdout.decode().strip() == "False"
