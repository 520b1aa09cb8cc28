"""Files become columns of strings, exactly; bad files are explained."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from besskge_core.errors import ConfigError, DataError, DatasetNotFoundError, DataWarning
from besskge_core.reading.files import (
    TableFile,
    as_strings,
    encode,
    locate,
    read_integers,
    read_strings,
)

ROWS = [("a", "likes", "b"), ("007", 'say "hi"', '"NA"'), ("ü, ö", " x", "null")]
TSV = "".join("\t".join(row) + "\n" for row in ROWS)
CSV = 'a,likes,b\n007,"say ""hi""","""NA"""\n"ü, ö"," x",null\n'


def zstd(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


def rows_of(table):
    return list(zip(*(column.to_pylist() for column in read_strings(table))))


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("kind, text", [("tsv", TSV), ("txt", TSV), ("csv", CSV), ("del", TSV)])
def test_labels_come_back_as_they_are_written(write, kind, text, ending):
    path = write(f"train.{kind}{ending}", COMPRESS[ending](text.encode()))
    assert rows_of(TableFile(path)) == ROWS


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_any_line_end_will_do_and_the_last_may_lack(write, end, last):
    text = TSV.replace("\n", end)
    path = write("x.tsv", text if last else text[: -len(end)])
    assert rows_of(TableFile(path)) == ROWS
    assert locate(TableFile(path), 2) == f"{path}:3"


def test_a_byte_order_mark_is_no_part_of_a_label(write):
    assert rows_of(TableFile(write("x.tsv", "\ufeff" + TSV))) == ROWS
    table = TableFile(write("y.tsv", "\ufeffh\tr\tt\n" + TSV), columns=("h", "r", "t"))
    assert rows_of(table) == ROWS


def test_a_csv_label_may_hold_a_line_end(write):
    path = write("x.csv", '"a\nb",likes,c\nd,likes,e\nf,,g\n')
    with pytest.raises(DataError, match=re.escape(f"{path}:4: column 1 is empty")):
        read_strings(TableFile(path))
    path = write("y.csv", '"a\nb",likes,c\nd,likes,e\n')
    assert rows_of(TableFile(path)) == [("a\nb", "likes", "c"), ("d", "likes", "e")]


def test_a_line_end_in_a_label_may_stand_anywhere_in_a_large_file(write):
    rows = [("a\nb" * 20, "likes", str(i)) for i in range(40_000)]  # more than a block of pyarrow
    path = write("x.csv", "".join(f'"{h}",{r},{t}\n' for h, r, t in rows))
    assert rows_of(TableFile(path)) == rows


def test_columns_are_chosen_by_position_or_by_name(write):
    path = write("x.csv", "time,tail,head,relation\n1,b,a,likes\n")
    by_name = TableFile(path, columns=("head", "relation", "tail"))
    assert rows_of(by_name) == [("a", "likes", "b")]
    path = write("y.tsv", "1\tb\ta\tlikes\n")
    assert rows_of(TableFile(path, columns=(2, 3, 1))) == [("a", "likes", "b")]


def test_another_delimiter_can_be_named(write):
    assert rows_of(TableFile(write("x.txt", "a likes b\n"), delimiter=" ")) == [ROWS[0]]


def test_parquet_gives_strings_of_strings_integers_and_dictionaries(tmp_path):
    path = str(tmp_path / "x.parquet")
    columns = {
        "h": pa.array(["a", "007"]),
        "r": pa.array(["likes", "likes"]).dictionary_encode(),
        "t": pa.array([7, 8]),
    }
    pq.write_table(pa.table(columns), path)
    assert rows_of(TableFile(path)) == [("a", "likes", "7"), ("007", "likes", "8")]
    assert rows_of(TableFile(path, columns=("t", "r", "h")))[0] == ("7", "likes", "a")
    assert locate(TableFile(path), 1) == f"{path}: row 1"


@pytest.mark.parametrize(
    "column, message",
    [
        (pa.array(["b", None]), "row 1: column 't' is empty; remove the row"),
        (pa.array(["b", ""]), "row 1: column 't' is empty; remove the row"),
        (pa.array([0.5, 1.0]), "column 't' holds double, expected strings or integers"),
    ],
)
def test_a_bad_parquet_column_is_explained(tmp_path, column, message):
    path = str(tmp_path / "x.parquet")
    table = pa.table({"h": ["a", "a"], "r": ["likes", "likes"], "t": column})
    pq.write_table(table, path)
    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_strings(TableFile(path))


@pytest.mark.parametrize("keep", [0, 10, 100])
def test_a_parquet_file_cut_short_is_explained(tmp_path, keep):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"h": ["a"], "r": ["likes"], "t": ["b"]}), str(path))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="not a Parquet file, or one cut short .* write it again"):
        read_strings(TableFile(str(path)))


GOOD = "a\tlikes\tb\n" * 3
BAD_FILES = {
    "no row": ("x.tsv", "", "x.tsv:1: the file is empty; expected 3 columns"),
    "only empty lines": ("x.tsv", "\n\n", "x.tsv:1: the file is empty; expected 3 columns"),
    "a column short": ("x.tsv", GOOD + "a\tb\n", r"x.tsv:4: 2 columns separated by '\t', expected"),
    "a column over": ("x.tsv", GOOD + "a\tb\tc\td\n", r"x.tsv:4: 4 columns separated by '\t', exp"),
    "four columns": ("x.tsv", "a\tb\tc\td\n", "expected 3; choose some with columns=(...), or"),
    "spaces": ("x.tsv", "a likes b\n", "x.tsv:1: 1 columns separated by"),
    "spaces, remedy": ("x.tsv", "a likes b\n", "expected 3; pass another delimiter"),
    "no head": ("x.tsv", GOOD + "\tlikes\tb\n", "x.tsv:4: column 0 is empty; write a label there"),
    "no tail": ("x.csv", "a,likes,b\na,likes,\n", "x.csv:2: column 2 is empty; write a label"),
    "latin-1": (
        "x.tsv",
        GOOD.encode() + b"a\tlikes\tBj\xf6rk\n",
        "x.tsv:4: byte 11 (0xf6) is not UTF-8; convert the file, for example with iconv",
    ),
    "utf-16": ("x.tsv", GOOD.encode("utf-16"), "x.tsv:1: byte 1 (0xff) is not UTF-8; convert"),
    "header": (
        "x.tsv",
        "Head\trelation\ttail\n" + GOOD,
        "x.tsv:1: ['Head', 'relation', 'tail'] looks like a header; pass its names, columns=('Head'",
    ),
    "no archive": ("x.tsv.gz", GOOD, "x.tsv.gz:1: the .gz archive cannot be read on from here"),
    "other kind": ("x.xlsx", "a", "x.xlsx: unknown kind of file; expected a name ending in .tsv"),
    "no kind": ("gz", "a", "gz: unknown kind of file; expected a name ending in .tsv, .txt"),
}


@pytest.mark.parametrize("name, content, message", BAD_FILES.values(), ids=list(BAD_FILES))
def test_a_bad_file_is_explained(write, name, content, message):
    path = write(name, content)
    with pytest.raises(DataError, match=re.escape(message)):
        read_strings(TableFile(path))


@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz", ".zst"])
def test_an_archive_cut_short_is_explained(write, ending):
    rows = np.random.default_rng(0).integers(0, 1000, (5000, 3))
    text = "".join("\t".join(map(str, row)) + "\n" for row in rows.tolist())
    content = COMPRESS[ending](text.encode())
    path = write(f"x.tsv{ending}", content[: len(content) // 2])
    with pytest.raises(DataError, match=rf"x.tsv{ending}:\d+: the {ending} archive .* download it"):
        read_strings(TableFile(path))


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_empty_lines_are_skipped_and_counted(write, name):
    text = "\n" + GOOD.replace("\n", "\n\n")
    path = write(name, text.replace("\t", ",") if name == "x.csv" else text)
    with pytest.warns(DataWarning, match=re.escape(f"{path}:1: empty line, skipped (4 in the")):
        columns = read_strings(TableFile(path))
    assert [len(column) for column in columns] == [3, 3, 3]
    assert locate(TableFile(path), 2) == f"{path}:6"


def test_what_cannot_be_explained_is_passed_on(write):
    huge = "x" * 3_000_000  # beyond the blocks that pyarrow reads
    path = write("x.tsv", GOOD + f"{huge}\tlikes\tb\n" + GOOD)
    with pytest.raises(DataError, match="x.tsv: .*block"):
        read_strings(TableFile(path))


def test_empty_lines_may_stand_above_a_header(write):
    path = write("x.tsv", "\nh\tr\tt\na\tlikes\tb\n")
    table = TableFile(path, columns=("h", "r", "t"))
    assert rows_of(table) == [ROWS[0]]
    assert locate(table, 0) == f"{path}:3"


def test_a_header_alone_is_no_data(write):
    table = TableFile(write("x.tsv", "h\tr\tt\n"), columns=("h", "r", "t"))
    with pytest.raises(DataError, match="x.tsv: there is no row in it; leave the file out"):
        read_strings(table)


def test_a_missing_column_is_named(write):
    table = TableFile(write("x.csv", "h,r,t\na,likes,b\n"), columns=("h", "r", "object"))
    with pytest.raises(DataError, match=r"x.csv:1: no column 'object'; the columns are \['h', 'r'"):
        read_strings(table)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetNotFoundError, match=r"x.tsv: no such file"):
        read_strings(TableFile(str(tmp_path / "x.tsv")))


@pytest.mark.parametrize("columns", [("h", "r"), (0, 1, "t"), (0, 1)])
def test_columns_must_be_three_of_one_kind(columns):
    with pytest.raises(ConfigError, match="columns is .*, expected 3 positions or 3 names"):
        TableFile("x.tsv", columns=columns)


def test_a_delimiter_is_one_character():
    with pytest.raises(ConfigError, match="delimiter is '::', expected one character"):
        TableFile("x.tsv", delimiter="::")


def test_integers_are_read_as_they_are_up_to_int64(write):
    path = write("x.tsv", f"0\t1\t{2**63 - 1}\n-1\t2\t3\n")
    assert read_integers(TableFile(path)).tolist() == [[0, 1, 2**63 - 1], [-1, 2, 3]]


@pytest.mark.parametrize("field", ["/m/027rn", "1.5", str(2**63)])
def test_what_is_no_integer_is_explained(write, field):
    path = write("x.tsv", f"0\t1\t2\n0\t1\t{field}\n")
    message = re.escape(f"{path}:2: {field!r} is not an integer ID; files of labels are read by")
    with pytest.raises(DataError, match=message):
        read_integers(TableFile(path))


def test_ids_are_given_by_first_appearance_over_all_chunks():
    columns = [pa.chunked_array([["b", "a"], ["b"]]), pa.chunked_array([["c", "a"]])]
    ids, labels = encode(columns)
    assert [part.tolist() for part in ids] == [[0, 1, 0], [2, 1]]
    assert labels == ["b", "a", "c"]
    assert {part.dtype for part in ids} == {np.dtype(np.int32)}


def test_known_labels_keep_their_ids_and_others_get_minus_one():
    ids, labels = encode([pa.chunked_array([["b", "x", "a"]])], ["a", "b"])
    assert (ids[0].tolist(), labels) == ([1, -1, 0], ["a", "b"])


@pytest.mark.parametrize(
    "values",
    [[7, 8], np.array([7, 8], np.uint8), ["7", "8"], np.array([7, "8"], object)],
)
def test_strings_and_integers_of_a_frame_become_strings(values):
    assert as_strings(values, "head").to_pylist() == ["7", "8"]


@pytest.mark.parametrize("missing", [None, float("nan")])
@pytest.mark.parametrize("other", ["a", 7])
def test_a_missing_value_of_a_frame_is_explained(missing, other):
    values = np.array([other, "b", missing], object)
    with pytest.raises(DataError, match=r"head, row 2: the value is missing \(1 in the column\)"):
        as_strings(values, "head")


def test_floats_of_a_frame_are_refused():
    with pytest.raises(DataError, match="head holds float64, expected strings or integers"):
        as_strings([0.5], "head")
