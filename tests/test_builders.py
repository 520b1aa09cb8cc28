"""The four data sets of upstream's builders are read from their own files, or fetched whole."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_catalogue import Server, left_in, needs_pooch, tar, zipped

from besskge_core.catalogue import ARCHIVES, load_dataset
from besskge_core.dataset import KGDataset
from besskge_core.errors import ConfigError, DataError, DatasetNotFoundError, DownloadError
from besskge_core.reading import remote, torch_files

BUILDERS = {
    "ogbl-biokg": KGDataset.build_ogbl_biokg,
    "ogbl-wikikg2": KGDataset.build_ogbl_wikikg2,
    "yago3-10": KGDataset.build_yago310,
    "openbiolink": KGDataset.build_openbiolink,
}
SERIALIZATIONS = {"zip": True, "stream": False}

# entities of each type; C1 is a disease and a side effect, as in the real one
TYPES = {
    "disease": ["C1", "C2"],
    "drug": ["D1", "D2", "D3"],
    "function": ["F1"],
    "protein": ["P1", "P2"],
    "sideeffect": ["C1", "C3"],
}
BIOKG = {
    "train": [("drug", 2, 0, "disease", 1), ("protein", 0, 1, "protein", 1)],
    "valid": [("function", 0, 1, "protein", 0), ("drug", 0, 0, "sideeffect", 1)],
    "test": [("drug", 1, 2, "drug", 2)],
}
WIKI = {"train": [(0, 0, 1), (3, 1, 2)], "valid": [(1, 0, 0)], "test": [(2, 1, 3), (0, 0, 3)]}
TEXT = {"train": "a\tr\tb\nc\ts\ta\n", "valid": "b\tr\ta\n", "test": 'c\tr\t"d\n'}
SAMPLE = {
    "train": "GO:1\tPART_OF\tGO:2\t\t1\tGO\nNCBIGENE:7\tGENE_GO\tGO:1\t900\t1\tGOA\n",
    "val": "NCBIGENE:7\tGENE_GO\tGO:2\t850.0\t1\tGOA\n",
    "test": "HP:3\tPART_OF\tGO:2\t\t1\tHPO\n",
}
NODES = "NCBIGENE:7\tGENE\nGO:2\tGO\nGO:1\tGO\nHP:3\tPHENOTYPE\nGO:9\tGO\n"


def save(path, content, kind="zip", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, _use_new_zipfile_serialization=SERIALIZATIONS[kind], **options)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mapping(header, labels):
    """A file of labels; not in the order of the IDs, as pandas may have left it."""
    rows = [f"{i},{label}\n" for i, label in enumerate(labels)]
    return "".join([f"{header}\n", *rows[1:], *rows[:1]])


def negatives(n, seed, sizes, k=4):
    return np.random.default_rng(seed).integers(0, np.reshape(sizes, (-1, 1)), (n, k))


def write_biokg(root, kind="zip"):
    folder = root / "ogbl_biokg"
    for name, labels in TYPES.items():
        write(folder / f"mapping/{name}_entidx2name.csv.gz", mapping("ent idx,ent name", labels))
    write(folder / "mapping/relidx2relname.csv.gz", mapping("rel idx,rel name", "uvw"))
    for part, rows in BIOKG.items():
        head_type, head, relation, tail_type, tail = map(list, zip(*rows))
        columns = {"head_type": head_type, "tail_type": tail_type}
        columns.update(head=np.array(head), relation=np.array(relation), tail=np.array(tail))
        if part != "train":
            for side, types in (("head", head_type), ("tail", tail_type)):
                sizes = [len(TYPES[name]) for name in types]
                columns[f"{side}_neg"] = negatives(len(rows), len(side + part), sizes)
        save(folder / f"split/random/{part}.pt", columns, kind)


def write_wikikg2(root, kind="zip"):
    folder = root / "ogbl_wikikg2"
    labels = mapping("node idx,entity id", ["Q5", "Q1", "Q9", "Q2"])
    write(folder / "mapping/nodeidx2entityid.csv.gz", labels)
    write(folder / "mapping/reltype2relid.csv.gz", mapping("reltype,rel id", ["P31", "P17"]))
    for part, rows in WIKI.items():
        columns = dict(zip(("head", "relation", "tail"), np.array(rows).T))
        if part != "train":
            columns.update(head_neg=negatives(len(rows), 0, 4), tail_neg=negatives(len(rows), 1, 4))
        save(folder / f"split/time/{part}.pt", columns, kind)


def write_yago(root):
    for part, text in TEXT.items():
        write(root / f"{part}.txt", text)


def write_openbiolink(root):
    folder = root / "HQ_DIR/train_test_data"
    for part, text in SAMPLE.items():
        write(folder / f"{part}_sample.csv", text)
    write(folder / "train_val_nodes.csv", NODES)


WRITERS = dict(zip(BUILDERS, (write_biokg, write_wikikg2, write_yago, write_openbiolink)))
COUNTS = dict(
    zip(BUILDERS, ((10, 3, 2, 2, 1), (4, 2, 2, 1, 2), (4, 2, 2, 1, 1), (4, 2, 2, None, None)))
)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.delenv("BESSKGE_DATA", raising=False)
    monkeypatch.setenv("BESSKGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=list(BUILDERS))
def name(request):
    return request.param


@pytest.fixture(params=list(SERIALIZATIONS))
def kind(request):
    return request.param


# -- biokg -----------------------------------------------------------------------------------------


def test_local_ids_become_global_type_by_type(tmp_path, kind):
    write_biokg(tmp_path, kind)
    dataset = KGDataset.build_ogbl_biokg(tmp_path)
    assert dataset.type_offsets == dict(zip(TYPES, (0, 2, 5, 6, 8)))
    assert dataset.triples["train"].tolist() == [[4, 0, 1], [6, 1, 7]]
    assert dataset.triples["valid"].tolist() == [[5, 1, 6], [2, 0, 9]]
    assert dataset.ht_types["valid"].tolist() == [[2, 3], [1, 4]]
    assert dataset.triples["test"].dtype == np.int32
    assert dataset.original_triple_ids["valid"].tolist() == [0, 1]


def test_one_name_of_two_types_is_two_entities(tmp_path):
    write_biokg(tmp_path)
    dataset = KGDataset.build_ogbl_biokg(tmp_path)
    assert (dataset.entity_dict[0], dataset.entity_dict[8]) == ("disease:C1", "sideeffect:C1")
    assert dataset.entity_names == ["C1", "C2", "D1", "D2", "D3", "F1", "P1", "P2", "C1", "C3"]
    assert dataset.relation_dict == ["u", "v", "w"]


def test_negatives_have_the_type_of_what_they_replace(tmp_path):
    write_biokg(tmp_path)
    dataset = KGDataset.build_ogbl_biokg(tmp_path)
    offsets = np.array(list(dataset.type_offsets.values()))
    for side, given in enumerate((dataset.neg_heads, dataset.neg_tails)):
        assert sorted(given) == ["test", "valid"]
        for part, ids in given.items():
            types = np.searchsorted(offsets, ids, side="right") - 1
            assert (types == dataset.ht_types[part][:, side, None]).all()
            local = ids - offsets[types]
            sizes = np.array([len(labels) for labels in TYPES.values()])
            seed = len(("head", "tail")[side] + part)
            assert (local == negatives(len(ids), seed, sizes[types[:, 0]])).all()


@pytest.mark.parametrize(
    "column, wrong, message",
    [
        ("head", [0, 3], r"head has the ID 3 in row 1, expected 0 to 2, the IDs in the folder map"),
        ("tail", [-1, 0], r"tail has the ID -1 in row 0, expected 0 to 1"),
        ("tail_neg", [[0, 1], [0, 2]], r"tail_neg has the ID 2 in row 1, expected 0 to 1"),
        ("relation", [0, 3], r"relation has the ID 3 in row 1, expected 0 to 2"),
        ("tail", [0], r"tail is int64 of shape \(1,\), expected integer IDs of shape \(2,\)"),
        ("head_neg", [0, 0], r"head_neg is int64 of shape \(2,\), .* of shape \(2, k\)"),
        ("head", [0.0, 1.0], r"head is float64 of shape \(2,\)"),
    ],
)
def test_ids_that_would_be_of_another_type_are_refused(tmp_path, column, wrong, message):
    write_biokg(tmp_path)
    path = tmp_path / "ogbl_biokg/split/random/valid.pt"
    columns = torch_files.read(str(path))
    save(path, {**columns, column: np.array(wrong)})
    with pytest.raises(DataError, match=rf"valid\.pt: {message}"):
        KGDataset.build_ogbl_biokg(tmp_path)


def test_an_entity_of_an_unknown_type_is_refused(tmp_path):
    write_biokg(tmp_path)
    path = tmp_path / "ogbl_biokg/split/random/train.pt"
    columns = torch_files.read(str(path))
    save(path, {**columns, "head_type": ["drug", "gene"]})
    with pytest.raises(DataError, match=r"head_type has 2 rows and the unknown types \['gene'\]"):
        KGDataset.build_ogbl_biokg(tmp_path)
    save(path, {**columns, "head_type": ["drug"]})
    with pytest.raises(DataError, match=r"head_type has 1 rows .* expected 2 rows"):
        KGDataset.build_ogbl_biokg(tmp_path)
    del columns["head_type"]
    save(path, columns)
    with pytest.raises(
        DataError, match=r"train\.pt: no 'head_type'; it has \['tail_type', 'head',"
    ):
        KGDataset.build_ogbl_biokg(tmp_path)


def test_a_mapping_without_an_id_is_refused(tmp_path):
    write_biokg(tmp_path)
    path = tmp_path / "ogbl_biokg/mapping/drug_entidx2name.csv.gz"
    write(path, "ent idx,ent name\n0,D1\n2,D3\n")
    with pytest.raises(DataError, match="drug_entidx2name.csv.gz: the ID 1 is missing"):
        KGDataset.build_ogbl_biokg(tmp_path)
    write(path, "ent idx,name\n0,D1\n")
    with pytest.raises(DataError, match="no column 'ent name'"):
        KGDataset.build_ogbl_biokg(tmp_path)


# -- the others ------------------------------------------------------------------------------------


def test_wikikg2_has_its_ids_and_negatives_as_they_are(tmp_path, kind):
    write_wikikg2(tmp_path, kind)
    dataset = KGDataset.build_ogbl_wikikg2(str(tmp_path))
    assert {part: rows.tolist() for part, rows in dataset.triples.items()} == {
        part: [list(row) for row in rows] for part, rows in WIKI.items()
    }
    assert dataset.entity_dict == ["Q5", "Q1", "Q9", "Q2"]
    assert dataset.relation_dict == ["P31", "P17"]
    assert dataset.type_offsets is None
    assert (dataset.neg_tails["test"] == negatives(2, 1, 4)).all()
    assert dataset.neg_heads["valid"].dtype == np.int32


def test_yago_is_read_from_its_three_files_only(tmp_path):
    write_yago(tmp_path)
    write(tmp_path / "train.tsv", "another\tgraph\there\n")
    dataset = KGDataset.build_yago310(tmp_path)
    assert dataset.entity_dict == ["a", "c", "b", '"d']
    assert dataset.triples["test"].tolist() == [[1, 0, 3]]


def test_openbiolink_has_types_and_only_entities_of_triples(tmp_path):
    write_openbiolink(tmp_path)
    dataset = KGDataset.build_openbiolink(tmp_path)
    assert dataset.type_offsets == {"GENE": 0, "GO": 1, "PHENOTYPE": 3}
    assert dataset.entity_dict == ["NCBIGENE:7", "GO:1", "GO:2", "HP:3"]
    assert dataset.triples["train"].tolist() == [[1, 0, 2], [0, 1, 1]]
    assert dataset.ht_types["test"].tolist() == [[2, 1]]


def test_openbiolink_entities_without_a_type_or_with_two_are_refused(tmp_path):
    write_openbiolink(tmp_path)
    folder = tmp_path / "HQ_DIR/train_test_data"
    write(folder / "train_val_nodes.csv", NODES.replace("HP:3\tPHENOTYPE\n", ""))
    with pytest.raises(DataError, match=r"train_val_nodes.csv: 1 of 4 .* no type, .* \['HP:3'\]"):
        KGDataset.build_openbiolink(tmp_path)
    write(folder / "test_nodes.csv", "HP:3\tPHENOTYPE\n")
    assert KGDataset.build_openbiolink(tmp_path).type_offsets["PHENOTYPE"] == 3
    write(folder / "train_val_nodes.csv", f"{NODES}HP:3\tGENE\n")
    with pytest.raises(DataError, match="'HP:3' has two types, 'PHENOTYPE' and 'GENE'"):
        KGDataset.build_openbiolink(tmp_path)


# -- all four --------------------------------------------------------------------------------------


def test_half_a_data_set_is_neither_read_nor_written_over(tmp_path, name):
    WRITERS[name](tmp_path)
    (tmp_path / ARCHIVES[name].files[1]).unlink()
    before = sorted(tmp_path.rglob("*"))
    message = f"{name} is not complete, {re.escape(ARCHIVES[name].files[1])} is missing"
    with pytest.raises(DataError, match=message):
        BUILDERS[name](tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_published_counts_are_wanted_under_the_name(monkeypatch, tmp_path, name):
    archive = ARCHIVES[name]
    WRITERS[name](tmp_path / archive.home)
    monkeypatch.setenv("BESSKGE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=f"not {name}: it has .* expected .{archive.counts[0]}, "):
        load_dataset(name)
    monkeypatch.setitem(ARCHIVES, name, replace(archive, counts=COUNTS[name]))
    dataset = load_dataset(name.upper())
    assert dataset.triples.keys() == {"train", "valid", "test"}
    with pytest.raises(ConfigError, match="takes no options"):
        load_dataset(name, seed=1)
    if dataset.type_offsets is None:
        with pytest.raises(ConfigError, match=f"{name} has no entity types"):
            load_dataset(name, types=True)
    else:
        assert load_dataset(name, types=True).type_offsets == dataset.type_offsets


def test_a_built_data_set_survives_saving(tmp_path, name):
    WRITERS[name](tmp_path)
    built = BUILDERS[name](tmp_path)
    built.save(tmp_path / "saved")
    again = KGDataset.load(tmp_path / "saved")
    assert again.summary() == built.summary()
    assert again.entity_dict == built.entity_dict and again.type_offsets == built.type_offsets


# -- downloads -------------------------------------------------------------------------------------


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


PATHS = {
    "ogbl-biokg": "ogb/data/linkproppred/biokg.zip",
    "ogbl-wikikg2": "ogb/data/linkproppred/wikikg-v2.zip",
    "yago3-10": "TimDettmers/ConvE/f3c0eb286025410fa5b4c04696c918264163d0ca/YAGO3-10.tar.gz",
    "openbiolink": "record/3834052/files/HQ_DIR.zip",
}
PUBLISHED_AS = {"ogbl_biokg": "biokg", "ogbl_wikikg2": "wikikg-v2"}


def packed(folder, suffix):
    """The archive that is unpacked to the folder."""
    sink = io.BytesIO()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix().split("/") for path in files]
    names = ["/".join([PUBLISHED_AS.get(top, top), *rest]) for top, *rest in names]
    if suffix == ".zip":
        with zipfile.ZipFile(sink, "w") as archive:
            for path, name in zip(files, names):
                archive.writestr(name, path.read_bytes())
    else:
        with tarfile.open(fileobj=sink, mode="w:gz") as archive:
            for path, name in zip(files, names):
                archive.add(path, f"./{name}")
    return sink.getvalue()


@pytest.fixture
def published(server, monkeypatch, tmp_path, name):
    """A server that has the small data set, and an entry that knows its counts."""
    WRITERS[name](tmp_path / "source")
    content = packed(tmp_path / "source", Path(PATHS[name]).suffix)
    server.files[PATHS[name]] = content
    changes = {"counts": COUNTS[name]}
    if ARCHIVES[name].git_id:
        changes["git_id"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    monkeypatch.setitem(ARCHIVES, name, replace(ARCHIVES[name], **changes))
    return server


def test_what_is_not_there_is_fetched_once(published, tmp_path, name, capfd):
    root = tmp_path / "new" / "root"
    first, again = BUILDERS[name](root), BUILDERS[name](root)
    assert published.asked == [PATHS[name]]
    assert first.triples["train"].tolist() == again.triples["train"].tolist()
    assert left_in(root) == sorted(ARCHIVES[name].entries.values())
    said = f"fetching {name} (licence: {ARCHIVES[name].licence})\n"
    assert capfd.readouterr().err == said


def test_the_name_is_fetched_into_the_cache(published, cache, name):
    assert load_dataset(name).entity_dict == load_dataset(name).entity_dict
    assert published.asked == [PATHS[name]]
    assert not ARCHIVES[name].missing(str(cache / ARCHIVES[name].home))


def test_given_data_comes_before_the_cache(published, monkeypatch, tmp_path, name):
    load_dataset(name)
    monkeypatch.setenv("BESSKGE_DATA", str(tmp_path / "given"))
    WRITERS[name](tmp_path / "given" / ARCHIVES[name].home)
    (tmp_path / "given" / ARCHIVES[name].home / ARCHIVES[name].files[0]).unlink()
    with pytest.raises(DataError, match=f"given.*{name} is not complete"):
        load_dataset(name)


def test_a_broken_connection_leaves_nothing_behind(published, tmp_path, name):
    published.cut.add(PATHS[name])
    with pytest.raises(DownloadError, match=f"{PATHS[name]}: .*(be downloaded|cut short)"):
        BUILDERS[name](tmp_path / "root")
    assert left_in(tmp_path / "root") == []
    published.cut.clear()
    assert BUILDERS[name](tmp_path / "root").n_entity == COUNTS[name][0]


def test_half_an_archive_leaves_nothing_behind(published, tmp_path, name):
    content = published.files[PATHS[name]]
    published.files[PATHS[name]] = content[: len(content) // 2]
    with pytest.raises(DownloadError, match=rf"{name} cannot be read from it \(.*cut short.*root"):
        BUILDERS[name](tmp_path / "root")
    assert left_in(tmp_path / "root") == []


def test_another_graph_at_the_source_leaves_nothing_behind(published, monkeypatch, tmp_path, name):
    other = replace(ARCHIVES[name], counts=(11, *COUNTS[name][1:]))
    monkeypatch.setitem(ARCHIVES, name, other)
    with pytest.raises(DownloadError, match=f"not {name}: it has .* expected .11, "):
        BUILDERS[name](tmp_path / "root")
    assert left_in(tmp_path / "root") == []


def test_an_archive_without_a_file_is_refused(published, tmp_path, name):
    (tmp_path / "source" / ARCHIVES[name].files[2]).unlink()
    content = packed(tmp_path / "source", Path(PATHS[name]).suffix)
    published.files[PATHS[name]] = content
    with pytest.raises(DownloadError, match=r"\.\w+ is missing|its git ID is"):
        BUILDERS[name](tmp_path / "root")
    assert left_in(tmp_path / "root") == []


def test_a_missing_source_says_where_files_can_be_put(server, tmp_path, name):
    file = re.escape(ARCHIVES[name].files[0])
    with pytest.raises(DownloadError, match=rf"be downloaded \(404 .* into .*root, as {file}"):
        BUILDERS[name](tmp_path / "root")
    assert left_in(tmp_path / "root") == []


@pytest.mark.parametrize("name", ["yago3-10"], indirect=True)
def test_an_archive_of_another_id_in_git_is_not_even_unpacked(published, monkeypatch, tmp_path):
    monkeypatch.setitem(ARCHIVES, "yago3-10", replace(ARCHIVES["yago3-10"], git_id="0" * 40))
    with pytest.raises(DownloadError, match=r"its git ID is \w{40}, expected 0{40}"):
        KGDataset.build_yago310(tmp_path / "root")
    assert left_in(tmp_path / "root") == []


@pytest.mark.parametrize("file", ["../out.txt", "a/../../out.txt", "/tmp/besskge-out.txt"])
@pytest.mark.parametrize("suffix, pack", [("zip", zipped), ("tar.gz", tar)])
def test_no_archive_writes_outside_its_folder(tmp_path, suffix, pack, file):
    (tmp_path / f"bad.{suffix}").write_bytes(pack({"good.txt": "", file: "out"}))
    with pytest.raises(ValueError, match="leads out of the folder"):
        remote.unpack(str(tmp_path / f"bad.{suffix}"), str(tmp_path / "goal"))
    assert left_in(tmp_path) == [f"bad.{suffix}", "goal"]
    assert not os.path.exists("/tmp/besskge-out.txt")


def test_links_in_an_archive_are_refused(tmp_path):
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(ValueError, match="'link' is neither a file nor a folder"):
        remote.unpack(str(tmp_path / "bad.tar.gz"), str(tmp_path / "goal"))


# -- torch.save ------------------------------------------------------------------------------------

ARRAYS = {
    "integers": np.arange(6).reshape(2, 3),
    "column order": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i8"),
    "no row": np.empty((0, 500), np.int64),
    "one byte": np.array([True, False]),
    "strings": np.array(["drug", "side effect"]),
    "objects": np.array(["drug", None], object),
    "numbers": np.array(1.5),
}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_and_lists_come_back_as_torch_load_gives_them(tmp_path, kind, protocol):
    plain = {"list": ["a", "b"] * 3, "nested": {"k": (1, 2.5, None)}, "scalars": [np.int32(4)]}
    save(tmp_path / "x.pt", {**ARRAYS, **plain}, kind, pickle_protocol=protocol)
    read = torch_files.read(str(tmp_path / "x.pt"))
    assert list(read) == [*ARRAYS, *plain]
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        assert (read[name] == array).all()
    assert {name: read[name] for name in plain} == plain


@pytest.mark.parametrize("path", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_either_spelling_are_read(tmp_path, path):
    save(tmp_path / "x.pt", ARRAYS, "stream")
    content = (tmp_path / "x.pt").read_bytes()
    respelt = re.sub(rb"cnumpy\._?core\.multiarray\n", f"c{path}\n".encode(), content)
    (tmp_path / "x.pt").write_bytes(respelt)
    assert (torch_files.read(str(tmp_path / "x.pt"))["strings"] == ARRAYS["strings"]).all()


class Command:
    """A pickle that runs a command when an ordinary unpickler loads it."""

    def __init__(self, line):
        self.line = line

    def __reduce__(self):
        return os.system, (self.line,)


def test_a_pickle_that_runs_a_command_is_refused_before_it_does(tmp_path, kind):
    mark = tmp_path / "it ran"
    write_wikikg2(tmp_path)
    path = tmp_path / "ogbl_wikikg2/split/time/valid.pt"
    save(path, {"head": Command(f"touch '{mark}'")}, kind)
    with pytest.raises(
        DataError, match=rf"valid.pt: refused, it holds {os.name}\.system; expected"
    ):
        KGDataset.build_ogbl_wikikg2(tmp_path)
    assert not mark.exists()
    torch.load(path, **({"weights_only": False} if torch.__version__ >= "1.13" else {}))
    assert mark.exists()


@pytest.mark.parametrize(
    "content, what",
    [
        ({"head": torch.zeros(2)}, r"torch\._utils\._rebuild_tensor_v2"),
        ({"head": np.array(["2020-01-01"], "M8[D]")}, "an array of dtype 'M8'"),
        ({"head": np.zeros(2, [("a", int)])}, "an array of dtype 'V8'"),
        ({"head": Path("x")}, r"pathlib.*Path"),
        ({"head": eval}, r"(__builtin__|builtins)\.eval"),
    ],
)
def test_what_is_not_known_is_refused_by_name(tmp_path, kind, content, what):
    save(tmp_path / "x.pt", content, kind)
    with pytest.raises(DataError, match=rf"x.pt: refused, it holds {what}; expected"):
        torch_files.read(str(tmp_path / "x.pt"))


def test_a_byte_order_cannot_smuggle_in_a_dtype(tmp_path):
    save(tmp_path / "x.pt", {"head": np.arange(3)}, "stream")
    content = (tmp_path / "x.pt").read_bytes()
    smuggled = content.replace(b"X\x01\x00\x00\x00<", b"X\x02\x00\x00\x00O,")
    assert smuggled != content
    (tmp_path / "x.pt").write_bytes(smuggled)
    with pytest.raises(DataError, match="refused, it holds an array of byte order 'O,'"):
        torch_files.read(str(tmp_path / "x.pt"))


def test_damage_is_noticed_wherever_it_is(tmp_path, kind):
    save(tmp_path / "x.pt", {"head": np.arange(100), "head_type": ["drug"] * 100}, kind)
    content = (tmp_path / "x.pt").read_bytes()
    for end in range(0, len(content), 37):
        (tmp_path / "x.pt").write_bytes(content[:end])
        with pytest.raises(DataError, match="x.pt: not a file of torch.save, or damaged or cut"):
            torch_files.read(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("n_after", [0, 2**20])
def test_a_changed_byte_in_an_array_is_noticed(tmp_path, n_after):
    save(tmp_path / "x.pt", {"head": np.full(100, 0x41)}, "zip", pickle_protocol=4)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        content = archive.read("x/data.pkl") + bytes(n_after)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", content)
    changed = bytearray((tmp_path / "x.pt").read_bytes())
    changed[changed.rindex(b"A" + bytes(7))] = 0x42
    (tmp_path / "x.pt").write_bytes(changed)
    with pytest.raises(DataError, match=r"damaged or cut short \(Bad CRC-32"):
        torch_files.read(str(tmp_path / "x.pt"))


def test_other_files_are_not_of_torch_save(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="x.pt: no such file"):
        torch_files.read(str(tmp_path / "x.pt"))
    for content in (b"", b"a\tr\tb\n", pickle.dumps({"head": 1}), zipped({"a": "b"})):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(DataError, match="x.pt: not a file of torch.save"):
            torch_files.read(str(tmp_path / "x.pt"))


def test_a_file_that_is_no_dict_is_refused(tmp_path):
    write_wikikg2(tmp_path)
    save(tmp_path / "ogbl_wikikg2/split/time/train.pt", [1, 2])
    with pytest.raises(DataError, match="train.pt: holds a list, expected a dict of columns"):
        KGDataset.build_ogbl_wikikg2(tmp_path)
