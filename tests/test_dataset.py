"""A KGDataset holds what its source says, and refuses what cannot be true."""

from __future__ import annotations

import gzip
import pickle
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from besskge_core.counting import triple_keys
from besskge_core.dataset import KGDataset
from besskge_core.errors import (
    ConfigError,
    DataError,
    DatasetNotFoundError,
    DataWarning,
    ShapeError,
)

TRAIN = [("ada", "knows", "bob"), ("bob", "knows", "ada"), ("cy", "lives_in", "rome")]
TEST = [("cy", "knows", "dan"), ("ada", "lives_in", "rome")]
TYPES = {"ada": "person", "bob": "person", "cy": "person", "dan": "person", "rome": "place"}


def lines(rows, separator="\t"):
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


def frame(rows):
    return dict(zip("hrt", np.array(rows, dtype=object).T))


def labelled(dataset, part):
    entity, relation = dataset.entity_dict, dataset.relation_dict
    return [(entity[h], relation[r], entity[t]) for h, r, t in dataset.triples[part].tolist()]


def small(**changes):
    fields = {
        "n_entity": 3,
        "n_relation_type": 2,
        "triples": {"train": [[0, 0, 1], [1, 1, 2]]},
        "original_triple_ids": {"train": [0, 1]},
        **changes,
    }
    return KGDataset(**fields)


def same(a, b):
    assert (a.n_entity, a.n_relation_type) == (b.n_entity, b.n_relation_type)
    for name in ("entity_dict", "relation_dict", "entity_names", "type_offsets"):
        assert getattr(a, name) == getattr(b, name)
    for name in ("triples", "original_triple_ids", "neg_heads", "neg_tails"):
        ours, theirs = getattr(a, name), getattr(b, name)
        assert (ours is None) == (theirs is None)
        for part in ours or {}:
            np.testing.assert_array_equal(ours[part], theirs[part])
            assert ours[part].dtype == theirs[part].dtype
        assert list(ours or {}) == list(theirs or {})


@pytest.fixture
def folder(tmp_path):
    def folder(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_del", ".del").replace(
                "_tsv", ".tsv"
            )
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text, encoding="utf-8")
        return tmp_path

    return folder


# -- triples of IDs --------------------------------------------------------------------------------


def test_a_split_has_each_triple_once_and_the_shares_asked_for():
    data = np.random.default_rng(0).integers(0, 50, (200, 3))
    dataset = KGDataset.from_triples(data, split=(0.5, 0.25, 0.25), seed=7)
    assert {p: len(t) for p, t in dataset.triples.items()} == {
        "train": 100,
        "valid": 50,
        "test": 50,
    }
    for part, rows in dataset.original_triple_ids.items():
        np.testing.assert_array_equal(dataset.triples[part], data[rows])
    assert sorted(np.concatenate(list(dataset.original_triple_ids.values()))) == list(range(200))


def test_a_split_depends_on_the_seed_alone():
    data = np.random.default_rng(0).integers(0, 50, (200, 3))
    first, again, other = (KGDataset.from_triples(data, seed=seed) for seed in (1, 1, 2))
    same(first, again)
    assert not np.array_equal(first.triples["train"], other.triples["train"])


def test_sizes_come_from_the_labels_where_there_are_some():
    dataset = KGDataset.from_triples([[0, 0, 1]], entity_dict=["a", "b", "c"])
    assert (dataset.n_entity, dataset.n_relation_type) == (3, 1)


@pytest.mark.parametrize("shape", [(0, 3), (4, 2), (3,)])
def test_triples_have_three_columns(shape):
    with pytest.raises(ShapeError, match=re.escape(f"data has shape {shape}, expected (n, 3)")):
        KGDataset.from_triples(np.zeros(shape, int))


@pytest.mark.parametrize("split", [(0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.2, 0.2)])
def test_shares_add_up_to_one(split):
    with pytest.raises(ConfigError, match="expected 3 shares >= 0 that add up to 1"):
        KGDataset.from_triples([[0, 0, 1]], split=split)


def test_dtypes_are_fixed_whatever_comes():
    dataset = small(neg_tails={"train": np.array([[2, 1]], np.int64)})
    assert dataset.triples["train"].dtype == dataset.neg_tails["train"].dtype == np.int32
    assert dataset.original_triple_ids["train"].dtype == np.int64


def test_types_of_heads_and_tails_follow_the_offsets_in_any_order():
    dataset = small(type_offsets={"b": 2, "a": 0})
    assert dataset.type_offsets == {"a": 0, "b": 2}
    assert dataset.ht_types["train"].tolist() == [[0, 0], [0, 1]]
    assert dataset.ht_types["train"].dtype == np.int32
    assert small().ht_types is None


def test_it_says_its_sizes():
    assert repr(small()) == "KGDataset(n_entity=3, n_relation_type=2, triples={'train': 2})"


MISTAKES = {
    "no entity": ({"n_entity": 0}, "n_entity is 0, expected 1 to 2147483647"),
    "too many": (
        {"n_entity": 2**31},
        "n_entity is 2147483648, expected 1 to 2147483647: entity ID",
    ),
    "entity": (
        {"n_entity": 2},
        "triples['train'][:, 2] has the ID 2 at position 1, expected 0 to 1",
    ),
    "relation": ({"n_relation_type": 1}, "triples['train'][:, 1] has the ID 1 at position 1, exp"),
    "negative": ({"triples": {"train": [[0, 0, 1], [-1, 0, 1]]}}, "has the ID -1 at position 1"),
    "beyond int32": (
        {"triples": {"train": [[0, 0, 1], [2**32, 0, 1]]}},
        "has the ID 4294967296 at",
    ),
    "floats": (
        {"triples": {"train": [[0, 0, 1.5]]}},
        "dtype float64, expected integer IDs; labels",
    ),
    "width": (
        {"triples": {"train": [[0, 0]]}},
        "triples['train'] has shape (1, 2), expected (n, 3)",
    ),
    "rows": (
        {"original_triple_ids": {"train": [0]}},
        "has shape (1,), expected (2,): one for each",
    ),
    "parts": (
        {"original_triple_ids": {"test": []}},
        "has the parts ['test'], expected those of tri",
    ),
    "labels": (
        {"entity_dict": ["a", "b"]},
        "entity_dict has 2 labels, expected 3, one for each ID",
    ),
    "names": ({"entity_names": ["a"]}, "entity_names has 1 labels, expected 3"),
    "twice": (
        {"entity_dict": ["a", "b", "a"]},
        "entity_dict has 'a' more than once; two IDs cannot",
    ),
    "relations": ({"relation_dict": ["a", "a"]}, "relation_dict has 'a' more than once"),
    "first type": ({"type_offsets": {"a": 1}}, "type_offsets is {'a': 1}, expected 0 first, then"),
    "empty type": ({"type_offsets": {"a": 0, "b": 0}}, "leave out types that have no entity"),
    "last type": ({"type_offsets": {"a": 0, "b": 3}}, "rising values below n_entity=3; leave out"),
    "neg part": (
        {"neg_heads": {"test": [[0]]}},
        "neg_heads has a part 'test'; the parts are ['tra",
    ),
    "neg rows": (
        {"neg_tails": {"train": [[0]] * 3}},
        "neg_tails['train'] has shape (3, 1), expected",
    ),
    "neg IDs": (
        {"neg_tails": {"train": [[0, 3]]}},
        "neg_tails['train'] has the ID 3 at position 1",
    ),
}


@pytest.mark.parametrize("changes, message", MISTAKES.values(), ids=list(MISTAKES))
def test_what_cannot_be_true_is_refused(changes, message):
    with pytest.raises((DataError, ShapeError), match=re.escape(message)):
        small(**changes)


# -- labels ----------------------------------------------------------------------------------------


def test_ids_are_given_by_first_appearance_heads_before_tails_of_each_part():
    dataset = KGDataset.from_dataframe({"train": frame(TRAIN), "test": frame(TEST)}, "h", "r", "t")
    assert dataset.entity_dict == ["ada", "bob", "cy", "rome", "dan"]
    assert dataset.relation_dict == ["knows", "lives_in"]
    assert labelled(dataset, "train") == TRAIN
    assert labelled(dataset, "test") == TEST
    assert dataset.original_triple_ids["test"].tolist() == [0, 1]


def test_with_entity_types_ids_are_given_type_by_type():
    parts = {"train": frame(TRAIN), "test": frame(TEST)}
    dataset = KGDataset.from_dataframe(parts, "h", "r", "t", entity_types=TYPES)
    assert dataset.entity_dict == ["ada", "bob", "cy", "dan", "rome"]
    assert dataset.type_offsets == {"person": 0, "place": 4}
    assert labelled(dataset, "train") == TRAIN
    assert dataset.ht_types["train"].tolist() == [[0, 0], [0, 0], [0, 1]]


def test_one_frame_is_split_and_remembers_its_rows():
    rows = [("e1", "r", "e2"), *((f"e{i}", "r", f"e{i + 1}") for i in range(1, 21))]
    options = {"split": (0.5, 0.3, 0.2), "deduplicate": True}
    dataset = KGDataset.from_dataframe(frame(rows), "h", "r", "t", **options)
    assert 1 not in np.concatenate(list(dataset.original_triple_ids.values()))
    for part, size in (("train", 10), ("valid", 6), ("test", 4)):
        origin = dataset.original_triple_ids[part].tolist()
        assert labelled(dataset, part) == [rows[i] for i in origin]
        assert len(origin) == size


def test_a_pandas_frame_gives_the_same_as_arrays():
    pandas = pytest.importorskip("pandas", reason="pandas is optional")
    df = pandas.DataFrame(TRAIN, columns=["h", "r", "t"], index=[7, 8, 9])
    ours = KGDataset.from_dataframe({"train": frame(TRAIN)}, "h", "r", "t", TYPES)
    theirs = KGDataset.from_dataframe({"train": df}, "h", "r", "t", pandas.Series(TYPES))
    same(ours, theirs)
    with pytest.raises(DataError, match=r"train: no column 'x'; the columns are \['h', 'r', 't'\]"):
        KGDataset.from_dataframe(df, "x", "r", "t")
    df.loc[8, "t"] = None
    with pytest.raises(DataError, match="train, column 't', row 1: the value is missing"):
        KGDataset.from_dataframe(df, "h", "r", "t")


def test_an_entity_without_a_type_is_an_error():
    types = {label: kind for label, kind in TYPES.items() if label != "rome"}
    message = re.escape("1 of 4 entities have no type, for example ['rome']; add them to")
    with pytest.raises(DataError, match=message):
        KGDataset.from_dataframe(frame(TRAIN), "h", "r", "t", entity_types=types)


def test_columns_of_unequal_length_are_refused():
    uneven = {"h": ["a"], "r": ["r", "r"], "t": ["b"]}
    with pytest.raises(DataError, match=r"have \[1, 2, 1\] rows, expected equal and > 0"):
        KGDataset.from_dataframe(uneven, "h", "r", "t")


def test_repeated_triples_stay_with_a_warning_or_go_on_request():
    parts = {"train": frame([*TRAIN, TRAIN[0], TRAIN[2], TRAIN[0]])}
    with pytest.warns(DataWarning, match="train: 3 of 6 triples are repeated; pass deduplicate=Tr"):
        dataset = KGDataset.from_dataframe(parts, "h", "r", "t")
    assert len(dataset.triples["train"]) == 6
    dataset = KGDataset.from_dataframe(parts, "h", "r", "t", deduplicate=True)
    assert labelled(dataset, "train") == TRAIN
    assert dataset.original_triple_ids["train"].tolist() == [0, 1, 2]


def test_files_give_the_same_as_frames(tmp_path):
    (tmp_path / "a.csv").write_text("r,h,t\n" + lines([(r, h, t) for h, r, t in TRAIN], ","))
    (tmp_path / "b.csv.gz").write_bytes(
        gzip.compress(("t,h,r\n" + lines([(t, h, r) for h, r, t in TEST], ",")).encode())
    )
    files = {"train": tmp_path / "a.csv", "test": str(tmp_path / "b.csv.gz")}
    from_files = KGDataset.from_files(files, columns=("h", "r", "t"), entity_types=TYPES)
    parts = {"train": frame(TRAIN), "test": frame(TEST)}
    same(from_files, KGDataset.from_dataframe(parts, "h", "r", "t", TYPES))


def test_one_file_is_split(folder):
    rows = [(f"e{i}", "r", f"e{i + 1}") for i in range(20)]
    path = folder(all_tsv=lines(rows)) / "all.tsv"
    ours = KGDataset.from_files(path, split=(0.5, 0.3, 0.2), seed=3)
    same(ours, KGDataset.from_dataframe(frame(rows), "h", "r", "t", None, (0.5, 0.3, 0.2), 3))


def test_known_labels_fix_the_ids_and_others_are_explained(folder):
    path = folder(train_tsv=lines(TRAIN), test_tsv=lines(TEST))
    entities, relations = ["rome", "cy", "bob", "ada"], ["lives_in", "knows"]
    known = {"entity_dict": entities, "relation_dict": relations}
    dataset = KGDataset.from_files({"train": path / "train.tsv"}, **known)
    assert dataset.entity_dict == entities
    assert labelled(dataset, "train") == TRAIN
    message = "test.tsv:1: unknown entity 'dan'; entity_dict has 4 labels and 1 such rows are here"
    with pytest.raises(DataError, match=message):
        KGDataset.from_files({"test": path / "test.tsv"}, **known)
    with pytest.raises(
        DataError, match=r"train.tsv:1: unknown relation 'knows'; relation_dict has"
    ):
        KGDataset.from_files({"train": path / "train.tsv"}, relation_dict=["lives_in"])
    with pytest.raises(
        ConfigError, match="entity_dict fixes the IDs and entity_types would change"
    ):
        KGDataset.from_files({"train": path / "train.tsv"}, **known, entity_types=TYPES)


def test_no_part_is_no_data():
    with pytest.raises(DataError, match="no part given; expected at least one"):
        KGDataset.from_files({})


# -- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("train", "valid", "test"), ("training", "validation", "testing")]
)
def test_a_folder_of_labels_is_read(folder, names):
    files = {f"{name}_tsv": lines(rows) for name, rows in zip(names, (TRAIN, TEST, TEST[:1]))}
    dataset = KGDataset.from_folder(folder(**files))
    assert [labelled(dataset, p) for p in ("train", "valid", "test")] == [TRAIN, TEST, TEST[:1]]
    assert dataset.entity_names is dataset.type_offsets is None


def test_names_and_types_of_a_folder_are_read(folder):
    types = [*TYPES.items(), ("ada", "poet"), ("rome", "person"), ("someone else", "poet")]
    names = [("ada", "Ada Lovelace"), ("someone else", "x")]
    path = folder(
        train_tsv=lines(TRAIN), entity_types_tsv=lines(types), entity_labels_tsv=lines(names)
    )
    dataset = KGDataset.from_folder(path, types=True)
    assert dataset.type_offsets == {"person": 0}  # the most frequent type of each
    assert dataset.entity_names == ["Ada Lovelace", "bob", "cy", "rome"]
    assert KGDataset.from_folder(path).type_offsets is None


def test_a_folder_without_types_has_none_to_give(folder):
    with pytest.raises(
        DataError, match=r"no entity_types file; expected entity_types.tsv with two"
    ):
        KGDataset.from_folder(folder(train_tsv=lines(TRAIN)), types=True)


def test_a_folder_must_be_one(tmp_path):
    with pytest.raises(DatasetNotFoundError, match="nowhere: no such folder"):
        KGDataset.from_folder(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"no file of training triples, such as train.tsv .* has \[\]"
    ):
        KGDataset.from_folder(tmp_path)


def test_two_files_of_one_part_are_refused(folder):
    path = folder(train_tsv=lines(TRAIN), training_tsv=lines(TEST))
    with pytest.raises(
        DataError, match=r"\['train.tsv', 'training.tsv'\] are the same table; keep"
    ):
        KGDataset.from_folder(path)


LIBKGE = {
    "entity_ids_del": "0\tada\n1\tbob\n2\trome\n",
    "relation_ids_del": "0\tknows\n1\tlives_in\n",
    "train_del": "0\t0\t1\n1\t1\t2\n",
}
LIBKGE_ROWS = [("ada", "knows", "bob"), ("bob", "lives_in", "rome")]


def test_a_folder_of_libkge_is_read(folder):
    dataset = KGDataset.from_folder(folder(**LIBKGE, valid_del="2\t0\t0\n"))
    assert labelled(dataset, "train") == LIBKGE_ROWS
    assert labelled(dataset, "valid") == [("rome", "knows", "ada")]


def test_the_yaml_file_of_libkge_may_name_other_files(folder):
    path = folder(**LIBKGE, other_del="2\t0\t0\n")
    yaml = "dataset:\n  files.train.filename: other.del\n  files.train.type: triples\n"
    (path / "dataset.yaml").write_text(yaml)
    assert labelled(KGDataset.from_folder(path), "train") == [("rome", "knows", "ada")]


def test_an_id_that_is_not_listed_is_explained(folder):
    path = folder(**LIBKGE, test_del="0\t0\t1\n0\t2\t1\n0\t3\t1\n")
    message = re.escape("test.del:2: relation ID 2, but ") + ".*relation_ids.del lists 0 to 1; add"
    with pytest.raises(DataError, match=message):
        KGDataset.from_folder(path)
    path = folder(test_del=f"0\t0\t{2**40}\n")
    with pytest.raises(DataError, match=f"test.del:1: entity ID {2**40}, but .* lists 0 to 2"):
        KGDataset.from_folder(path)


def test_a_gap_in_the_list_of_ids_is_explained(folder):
    path = folder(**{**LIBKGE, "entity_ids_del": "0\tada\n1\tbob\n3\trome\n"})
    with pytest.raises(
        DataError, match="entity_ids.del: the ID 2 is missing; expected 0 to 2, each"
    ):
        KGDataset.from_folder(path)


def test_a_folder_of_ids_has_no_types(folder):
    with pytest.raises(ConfigError, match="types=True needs a folder of labels with entity_types"):
        KGDataset.from_folder(folder(**LIBKGE), types=True)


def test_a_folder_of_pykeen_is_read(tmp_path):
    heads = {"entity_to_id": "id\tlabel\n", "relation_to_id": "id\tlabel\n"}
    ids = {"entity_to_id": LIBKGE["entity_ids_del"], "relation_to_id": LIBKGE["relation_ids_del"]}
    for part, triples in (("training", LIBKGE["train_del"]), ("validation", "2\t0\t0\n")):
        (tmp_path / part).mkdir()
        texts = {name: heads[name] + ids[name] for name in heads}
        texts["numeric_triples"] = "head\trelation\ttail\n" + triples
        for name, text in texts.items():
            (tmp_path / part / f"{name}.tsv.gz").write_bytes(gzip.compress(text.encode()))
    dataset = KGDataset.from_folder(tmp_path)
    assert labelled(dataset, "train") == LIBKGE_ROWS
    assert labelled(dataset, "valid") == [("rome", "knows", "ada")]


# -- what it says about itself ---------------------------------------------------------------------


def test_the_summary_counts_what_an_evaluation_should_know():
    unseen = [("dan", "knows", "ada"), ("dan", "owns", "car"), ("ada", "owns", "bob")]
    parts = {"train": frame([*TRAIN, TRAIN[0]]), "test": frame([*unseen, TRAIN[1]])}
    with pytest.warns(DataWarning, match="repeated"):
        dataset = KGDataset.from_dataframe(parts, "h", "r", "t")
    assert dataset.summary() == {
        "n_entity": 6,
        "n_relation_type": 3,
        "n_triple": {"train": 4, "test": 4},
        "n_repeated": {"train": 1, "test": 0},
        "n_also_in_train": {"test": 1},
        "n_unseen_entity": {"test": 2},
        "n_unseen_relation": {"test": 2},
    }


@pytest.mark.parametrize("n_relation_type", [3, 2**30])
def test_triples_have_equal_keys_only_if_they_are_equal(n_relation_type):
    rows = [[h, r, t] for h in (0, 1, 2**31 - 2) for r in (0, 2) for t in (0, 1, 2**31 - 2)]
    keys = triple_keys(np.array([*rows, *rows], np.int32), 2**31 - 1, n_relation_type)
    assert len(np.unique(keys)) == len(rows)
    np.testing.assert_array_equal(keys[: len(rows)], keys[len(rows) :])


# -- storage ---------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path):
    parts = {"train": frame(TRAIN), "test": frame(TEST)}
    dataset = KGDataset.from_dataframe(parts, "h", "r", "t", entity_types=TYPES)
    dataset.neg_heads = {"test": np.array([[0], [1]], np.int32)}
    dataset.entity_names = [label.upper() for label in dataset.entity_dict]
    dataset.save(tmp_path / "graph")
    same(KGDataset.load(tmp_path / "graph"), dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


@given(st.lists(st.text(st.characters()), min_size=2, max_size=2, unique=True))
def test_any_label_survives(tmp_path_factory, labels):
    path = tmp_path_factory.mktemp("labels") / "graph.npz"
    KGDataset.from_triples([[0, 0, 1]], entity_dict=labels, relation_dict=["\ud800\x00"]).save(path)
    loaded = KGDataset.load(path)
    assert (loaded.entity_dict, loaded.relation_dict) == (labels, ["\ud800\x00"])


class FullDisk:
    def __array__(self, *args, **kwargs):
        raise OSError("no space left")


def test_a_failing_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "graph"
    small().save(path)
    broken = small(type_offsets={"a": 0})
    broken.type_offsets = {"a": object()}
    with pytest.raises(TypeError, match="JSON"):
        broken.save(path)
    broken.type_offsets, broken.triples["train"] = None, FullDisk()
    with pytest.raises(OSError, match="no space left"):
        broken.save(path)
    same(KGDataset.load(path), small())
    assert [path.name for path in tmp_path.iterdir()] == ["graph"]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_file_cut_short_is_explained(tmp_path, share):
    path = tmp_path / "graph"
    small().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match="graph: not a file of KGDataset.save, or cut short"):
        KGDataset.load(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "graph"
    small(entity_dict=["some", "long", "label"]).save(path)
    path.write_bytes(path.read_bytes().replace(b"somelonglabel", b"somelonglabem"))
    with pytest.raises(DataError, match="graph: damaged, or cut short .*CRC"):
        KGDataset.load(path)


def test_foreign_files_are_refused_and_pickles_never_read(tmp_path):
    path = tmp_path / "graph"
    path.write_bytes(pickle.dumps({"n_entity": 3}))
    with pytest.raises(DataError, match="not a file of KGDataset.save.*Pickles are never read"):
        KGDataset.load(path)
    with path.open("wb") as file:
        np.savez(file, triples=np.zeros((1, 3)))
    with pytest.raises(DataError, match="not a file of KGDataset.save"):
        KGDataset.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match="not a file of KGDataset.save"):
        KGDataset.load(path)
    with pytest.raises(DatasetNotFoundError, match="nothing: no such file"):
        KGDataset.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    "manifest, message",
    [
        (b'{"format": "another"}', "format 'another', expected 'besskge_core.KGDataset'"),
        (
            b'{"format": "besskge_core.KGDataset", "version": 2}',
            "written as version 2 of the format, this besskge_core reads up to 1; upgrade",
        ),
        (b'{"format": "besskge_core.KGDataset", "version": 1}', "graph: damaged, or cut short"),
    ],
)
def test_other_formats_are_named(tmp_path, manifest, message):
    path = tmp_path / "graph"
    with path.open("wb") as file:
        np.savez(file, manifest=np.frombuffer(manifest, np.uint8))
    with pytest.raises(DataError, match=message):
        KGDataset.load(path)
