"""What goes wrong on one rank ends the run soon, with a reason; going on gives the same bits.

Ranks are real processes, and so are the faults: signals, full disks, loops without an end. Each case
is a run of `besskge train` on which a fault falls, and a run that goes on with what it left.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, NamedTuple, Tuple

import pytest
import torch
from fault_support import Ended, assert_same_run, command, forked, records, torchrun
from torch.testing import assert_close

from besskge_core.catalogue import load_dataset
from besskge_core.config import load
from besskge_core.errors import CheckpointError
from besskge_core.training import TrainingConfig, load_run
from besskge_core.training.build import build
from besskge_core.training.checkpoint import find_checkpoints, load_checkpoint

#: Seconds until all ranks have ended: 4 to find out who is silent, the rest for a busy machine.
BOUND = 30.0
LOST = "rank {} died or cannot be reached: no sign of life for 3.5 s"
STORE_GONE = "rank 0, or the agent that keeps the store, is gone or hangs"


class Case(NamedTuple):
    """A fault, and what the other ranks say of it; `code`: with which they end."""

    faults: Dict[int, str]
    told: str
    n_rank: int = 2
    flags: Tuple[str, ...] = ()
    code: int = 2


CASES = {
    **{f"kill {rank} of 4": Case({rank: "kill step 9"}, LOST.format(rank), 4) for rank in (1, 2, 3)},
    "kill the first": Case({0: "kill step 9"}, STORE_GONE),
    "kill in an exchange": Case({1: "kill exchange 12"}, LOST.format(1)),
    "kill in the loader": Case({1: "kill draw 7"}, LOST.format(1)),
    "kill in a validation": Case({1: "kill evaluate 1"}, LOST.format(1)),
    "kill before a file": Case({1: "kill write 8"}, LOST.format(1)),
    "kill between files": Case({0: "kill write 8"}, STORE_GONE),
    "kill before the rename": Case({0: "kill rename 4"}, STORE_GONE),
    "kill after the rename": Case({0: "kill renamed 4"}, STORE_GONE),
    "kill in a removal": Case({0: "kill prune 4"}, STORE_GONE),
    "kill at the end": Case({1: "kill conclude 1"}, LOST.format(1)),
    "stop": Case({1: "stop step 9"}, LOST.format(1), flags=("--timeout", "5")),
    "stop the first": Case({0: "stop step 9"}, STORE_GONE, flags=("--timeout", "5")),
    "hang": Case({1: "hang step 9"}, "rank 1 hangs, 1 ", flags=("--timeout", "5")),
    "hang in the loader": Case({1: "hang draw 7"}, "rank 1 hangs, 1 ", flags=("--timeout", "5")),
    "no space, first": Case({0: "fill write 8"}, "rank 0: StorageError: .*File too large"),
    "no space, other": Case({1: "fill write 8"}, "rank 1: StorageError: .*File too large"),
    "terminate": Case({1: "term step 9"}, "", code=130),
    "interrupt": Case({0: "int step 9"}, "", code=130),
}  # fmt: skip


#: Under torchrun: faults, its options, and its exit status.
LAUNCHED = {
    "torchrun": ({1: "kill step 9"}, (), 1),
    "torchrun, terminated": ({}, (), 1),
    "torchrun, restarts": (
        {0: "kill settings 1", "1 1": "kill write 8", "0 2": "kill conclude 1"},
        ("--max-restarts", "3"), 0,
    ),
}  # fmt: skip


def launched(name: str, folder: Path) -> Ended:
    faults, options, _ = LAUNCHED[name]
    ask = folder / "best" if "terminated" in name else None
    return torchrun(2, command(folder), faults, *options, signal_after=ask)


def fault_and_resumption(name: str, folder: Path) -> Ended:
    case = CASES[name]
    ended = forked(case.n_rank, command(folder, *case.flags), case.faults, BOUND)
    again = forked(case.n_rank, command(folder, "--resume"))
    assert again.codes == [0] * case.n_rank, again.errors
    return ended


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Any:
    """Number of ranks -> folder of a run without a fault."""
    made: Dict[int, Path] = {}

    def run(n_rank: int) -> Path:
        if n_rank not in made:
            made[n_rank] = tmp_path_factory.mktemp("undisturbed") / str(n_rank)
            ended = forked(n_rank, command(made[n_rank]))
            assert ended.codes == [0] * n_rank, ended.errors
        return made[n_rank]

    return run


@pytest.fixture(scope="module")
def cases(request, tmp_path_factory) -> Any:
    """Name -> folder and how its run ended; those that tests ask for run at once, for most wait."""
    chosen = {
        item.callspec.params["name"]
        for item in request.session.items
        if "cases" in getattr(item, "fixturenames", ())
    }
    pool, running = ThreadPoolExecutor(4), {}
    for name in sorted(chosen, key=[*LAUNCHED, *CASES].index):
        folder = tmp_path_factory.mktemp("case") / "run"
        start = launched if name in LAUNCHED else fault_and_resumption
        running[name] = (folder, pool.submit(start, name, folder))
    yield lambda name: (running[name][0], running[name][1].result())
    pool.shutdown()


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_end_and_name_the_lost_one_and_the_resumed_run_has_the_same_bits(
    cases, undisturbed, name
):
    case, (folder, ended) = CASES[name], cases(name)
    deadly = [rank for rank, fault in case.faults.items() if fault.split()[0] in
              ("kill", "stop", "hang")]  # fmt: skip
    for rank, (code, text) in enumerate(zip(ended.codes, ended.errors)):
        if rank in deadly:
            assert code == -9
            continue
        assert code == case.code, text
        lines = Ended([], [text], 0.0).lines()
        if case.code == 2:
            assert len(lines) == 1 and lines[0].endswith(f" [told by rank {rank}]"), text
            own = rank in case.faults  # who could not write says why, not who
            told = "could not be written" if own else case.told
            assert re.search(told, lines[0]), text
    assert_same_run(folder, undisturbed(case.n_rank))


@pytest.mark.parametrize("name", LAUNCHED)
def test_torchrun_ends_soon_or_starts_the_ranks_again(cases, undisturbed, name):
    folder, ended = cases(name)
    assert ended.codes == [LAUNCHED[name][2]], ended.errors
    if name == "torchrun":
        assert re.search(LOST.format(1) + ".*told by rank 0", ended.lines()[0])
    if name == "torchrun, terminated":
        assert f"interrupted; go on with: besskge train --out {folder}" in ended.errors[0]
    if ended.codes != [0]:
        again = forked(2, command(folder, "--resume"))
        assert again.codes == [0, 0], again.errors
    assert_same_run(folder, undisturbed(2))


# -- disks -----------------------------------------------------------------------------------------


@pytest.fixture
def volume(tmp_path):
    """A small disk of its own."""
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    "fault, why", [("flood", "No space left on device"), ("read-only", "Read-only file system")]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_disk_that_takes_no_more_is_named_and_the_run_goes_on_when_it_does(
    volume, undisturbed, fault, why, rank
):
    folder = volume / "run"
    ended = forked(2, command(folder), {rank: f"{fault} write 8"})
    subprocess.run(["mount", "-o", "remount,rw", str(volume)], check=True)
    assert ended.codes == [2, 2], ended.errors
    assert any("could not be written" in line and why in line for line in ended.lines())
    assert len(ended.lines()) == 2 and "Traceback" not in "".join(ended.errors)
    (folder / "ballast").unlink(missing_ok=True)
    assert find_checkpoints(folder / "checkpoints")
    again = forked(2, command(folder, "--resume"))
    assert again.codes == [0, 0], again.errors
    assert_same_run(folder, undisturbed(2))


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    arguments = command(tmp_path / "run")
    ended = forked(2, [*arguments[:-1], str(tmp_path / "file" / "run")])
    assert ended.codes == [2, 2]
    assert all("Not a directory" in error for error in ended.errors)
    assert len(ended.lines()) == 2 and "Traceback" not in "".join(ended.errors)


# -- numbers ---------------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_ends_all_ranks_and_leaves_the_checkpoint_before(tmp_path):
    flags = ("--lr", "1e30", "--optimizer", "sgd", "--loss", "marginranking")
    ended = forked(2, command(tmp_path / "run", *flags))
    assert ended.codes == [2, 2]
    for rank, line in enumerate(ended.lines()):
        assert re.match(rf"Error: the loss is (nan|inf); .* \[told by rank {rank}\]$", line)
    assert load_run(tmp_path / "run", "last").description == "last weights, epoch-00000-step-000001"


def test_a_run_that_had_stopped_early_is_not_trained_on_after_a_kill_at_its_end(tmp_path):
    flags = ("--lr", "10", "--patience", "1", "--epochs", "12")
    assert forked(2, command(tmp_path / "run", *flags)).codes == [0, 0]
    assert len(records(tmp_path / "run")) < 12
    killed = Path(shutil.copytree(tmp_path / "run", tmp_path / "killed"))
    (killed / "metrics.json").unlink()
    assert forked(2, command(killed, *flags, "--resume")).codes == [0, 0]
    assert_same_run(killed, tmp_path / "run")


@pytest.mark.parametrize("n_rank", [1, 2, 4])
def test_a_run_goes_on_with_another_number_of_ranks(undisturbed, tmp_path, n_rank):
    folder = tmp_path / "run"
    ended = forked(2, command(folder), {1: "term step 9"})
    assert ended.codes == [130, 130]
    again = forked(n_rank, command(folder, "--resume"))
    assert again.codes == [0] * n_rank, again.errors
    for found, expected in zip(records(folder), records(undisturbed(2))):
        assert_close(found["loss"], expected["loss"], rtol=1e-5, atol=0.0)


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(undisturbed):
    """A model of the run, its optimiser, and the two checkpoints."""
    folder = undisturbed(2)
    config = load(TrainingConfig, folder / "config.toml")
    parts = build(config, load_dataset("family", n_person=128))
    return parts.model.score_fn, parts.optimizer, find_checkpoints(folder / "checkpoints")


def cut(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path, other: Path) -> None:
    """One bit of a byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap(path: Path, other: Path) -> None:
    shutil.copy(other / path.name, path)


def remove(path: Path, other: Path) -> None:
    path.unlink()


def empty(path: Path, other: Path) -> None:
    path.write_bytes(b"")


FILES = [*(f"shard-{i:05d}.safetensors" for i in range(4)), "replicated.safetensors",
         "manifest.json"]  # fmt: skip


@pytest.mark.parametrize("damage", [cut, flip, swap, remove, empty])
@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_with_any_file_damaged_is_refused_and_the_model_untouched(
    model, tmp_path, name, damage
):
    score_fn, optimizer, (other, last) = model
    path = Path(shutil.copytree(last, tmp_path / last.name))
    damage(path / name, other)
    assert_refused(path, score_fn, optimizer, r"damaged|incomplete|not a checkpoint")


@pytest.mark.parametrize(
    "key, value", [("n_shard", 2), ("state", {}), ("files", {}), ("format", 1), ("sha256", None)]
)
def test_an_edited_manifest_is_refused(model, tmp_path, key, value):
    score_fn, optimizer, (_, last) = model
    path = Path(shutil.copytree(last, tmp_path / last.name))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, key: value}))
    assert_refused(
        path, score_fn, optimizer, "manifest.json: its sha256 is not that of its content"
    )


def assert_refused(path: Path, score_fn: Any, optimizer: Any, why: str) -> None:
    before = {name: x.clone() for name, x in score_fn.state_dict().items()}
    with pytest.raises(CheckpointError, match=why):
        load_checkpoint(path, score_fn, optimizer)
    assert all(torch.equal(x, before[name]) for name, x in score_fn.state_dict().items())
    assert not any(optimizer.state.values())


def test_ranks_refuse_a_damaged_checkpoint_together_and_say_which_one_is_left(
    undisturbed, tmp_path
):
    folder = Path(shutil.copytree(undisturbed(2), tmp_path / "run"))
    before, last = find_checkpoints(folder / "checkpoints")
    flip(last / "shard-00003.safetensors", before)
    ended = forked(2, command(folder, "--resume"))
    assert ended.codes == [2, 2]
    told_by_0, told_by_1 = ended.lines()
    for line in (told_by_0, told_by_1):
        assert "shard-00003.safetensors: its sha256 is not the manifest's" in line
    assert f"remove {last} to go on from {before.name}" in told_by_1
    shutil.rmtree(last)
    assert forked(2, command(folder, "--resume")).codes == [0, 0]
    assert_same_run(folder, undisturbed(2))
