"""A log has what happened, once, also when a run was killed in between."""

from __future__ import annotations

import csv
import io
import json
import math
import sys

import pytest
from rich.console import Console

from besskge_core.errors import ConfigError, DataError
from besskge_core.training.tracker import TRACKERS, ConsoleTracker, make_trackers

RECORDS = [
    {"epoch": 1, "loss": 2.5, "lr": 0.1},
    {"epoch": 2, "loss": 1 / 3, "lr": 0.1, "valid_mrr": 0.25},
    {"epoch": 3, "loss": 0.125, "lr": 0.05, "note": 'with "quotes", commas'},
    {"epoch": 4, "loss": 1e-9, "lr": 0.05, "valid_mrr": 0.5},
]
#: torch 2.0 looks at the version of TensorBoard in a way that its Python deprecates.
old_torch = pytest.mark.filterwarnings("ignore:distutils Version classes:DeprecationWarning")
FILES = {"jsonl": "log.jsonl", "csv": "log.csv"}


def log(folder, records, names="jsonl,csv", first_epoch=1):
    trackers = make_trackers(names, folder, first_epoch)
    for record in records:
        for tracker in trackers:
            tracker.log(record, epoch=record["epoch"])
    for tracker in trackers:
        tracker.close()


def test_json_lines_hold_the_records_to_the_last_bit(tmp_path):
    log(tmp_path, RECORDS)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == RECORDS


def test_csv_has_one_header_though_columns_appear_later(tmp_path):
    log(tmp_path, RECORDS)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "log.csv").read_text())))
    assert list(rows[0]) == ["epoch", "loss", "lr", "valid_mrr", "note"]
    assert [{k: v for k, v in row.items() if v} for row in rows] == [
        {name: str(value) for name, value in record.items()} for record in RECORDS
    ]


def test_a_record_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    trackers = make_trackers("jsonl,csv", tmp_path, 1)
    for tracker in trackers:
        tracker.log(RECORDS[0], epoch=1)
    assert '"loss": 2.5' in (tmp_path / "log.jsonl").read_text()
    assert "1,2.5,0.1" in (tmp_path / "log.csv").read_text()
    for tracker in trackers:
        tracker.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("killed_after", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("first_epoch", [1, 2, 4])
def test_a_resumed_log_is_that_of_a_run_that_was_not_killed(
    tmp_path, name, killed_after, first_epoch
):
    log(tmp_path / "whole", RECORDS, name)
    log(tmp_path / "killed", RECORDS[:killed_after], name)
    first_epoch = min(first_epoch, killed_after + 1)  # no checkpoint is newer than the log
    log(tmp_path / "killed", RECORDS[first_epoch - 1 :], name, first_epoch)
    whole, killed = ((tmp_path / x / FILES[name]).read_bytes() for x in ("whole", "killed"))
    assert whole == killed
    assert [path.name for path in (tmp_path / "killed").iterdir()] == [FILES[name]]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("cut", [1, 5, 9])
def test_a_torn_last_line_is_dropped(tmp_path, name, cut):
    log(tmp_path / "whole", RECORDS, name)
    log(tmp_path / "torn", RECORDS, name)
    path = tmp_path / "torn" / FILES[name]
    path.write_bytes(path.read_bytes()[:-cut])
    log(tmp_path / "torn", RECORDS[3:], name, first_epoch=4)
    assert path.read_bytes() == (tmp_path / "whole" / FILES[name]).read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_a_log_that_is_all_torn_begins_anew(tmp_path, name):
    (tmp_path / FILES[name]).write_text('{"epo')
    log(tmp_path, RECORDS[:1], name)
    assert (tmp_path / FILES[name]).read_text().count("2.5") == 1


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (
            "log.jsonl",
            '{"epoch": 1}\nnonsense\n',
            r"log\.jsonl:2: not a record with an epoch; mend",
        ),
        ("log.jsonl", '{"loss": 1}\n', r"log\.jsonl:1: not a record with an epoch"),
        ("log.csv", "epoch,loss\n1,2\nx,3\n", r"log\.csv:3: not a record with an epoch; mend"),
        ("log.csv", "loss\n2\n", r"log\.csv:2: not a record with an epoch"),
    ],
)
def test_a_damaged_log_is_named_with_its_line(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=message):
        make_trackers("jsonl,csv", tmp_path, 5)


def test_what_is_no_number_is_null_in_json(tmp_path):
    log(tmp_path, [{"epoch": 1, "amri": math.nan, "loss": math.inf}])
    line = (tmp_path / "log.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"epoch": 1, "amri": None, "loss": None}
    assert (tmp_path / "log.csv").read_text() == "epoch,amri,loss\n1,nan,inf\n"


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown tracker 'cvs'; expected some of \['console'"):
        make_trackers("jsonl, cvs", tmp_path)


def test_no_trackers_are_none_and_each_is_made_once(tmp_path):
    assert make_trackers(" ,", tmp_path) == []
    (tracker,) = make_trackers("csv, csv", tmp_path / "new")
    assert isinstance(tracker, TRACKERS["csv"])


@old_torch
def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, RECORDS, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "lr", "valid_mrr"]
    assert [(e.step, e.value) for e in events.Scalars("valid_mrr")] == [(2, 0.25), (4, 0.5)]


@old_torch
def test_tensorboard_forgets_the_epochs_done_again(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log(tmp_path, RECORDS, "tensorboard")
    log(tmp_path, [{"epoch": 3, "loss": 7.0}], "tensorboard", first_epoch=3)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3]
    assert events.Scalars("loss")[-1].value == 7.0


def test_a_missing_tensorboard_is_said_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="not installed: pip install tensorboard"):
        make_trackers("tensorboard", tmp_path)


def test_the_console_shows_a_line_for_each_record():
    out = io.StringIO()
    tracker = ConsoleTracker(console=Console(file=out, width=20))
    tracker.log({"epoch": 3, "loss": 0.123456, "note": "[b]"}, epoch=3)
    tracker.close()
    assert out.getvalue() == "epoch 3  loss 0.1235  note [b]\n"


def test_a_console_tracker_can_be_named(tmp_path, capsys):
    log(tmp_path, RECORDS[:1], "console")
    assert capsys.readouterr().out == "epoch 1  loss 2.5  lr 0.1\n"
