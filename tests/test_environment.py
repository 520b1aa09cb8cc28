"""What a run says about its surroundings is enough to repeat it, and names nobody."""

from __future__ import annotations

import getpass
import json
import os
import platform
import subprocess

import numpy as np
import pytest
import torch

from besskge_core.environment import describe, version_of


def git(folder, *arguments):
    settings = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=folder, check=True, stdout=subprocess.PIPE
    )
    return done.stdout.decode().strip()


def test_versions_threads_and_devices_are_told():
    facts = describe()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["numpy"] == np.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["devices"][0] == "cpu"
    assert facts["n_cpu"] >= 1


def test_it_can_be_stored_as_json():
    assert json.loads(json.dumps(describe())) == describe()


def test_it_names_no_host_no_user_and_no_folder():
    text = json.dumps(describe())
    for secret in (platform.node(), os.path.expanduser("~"), os.getcwd()):
        assert not secret or len(secret) < 4 or secret not in text
    assert f"/{getpass.getuser()}" not in text


def test_the_commit_of_the_working_directory_is_told(tmp_path, monkeypatch):
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "m")
    monkeypatch.chdir(tmp_path)
    facts = describe()
    assert (facts["git_commit"], facts["git_modified"]) == (
        git(tmp_path, "rev-parse", "HEAD"),
        False,
    )
    (tmp_path / "file").write_text("2")
    assert describe()["git_modified"]


def test_no_repository_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert (describe()["git_commit"], describe()["git_modified"]) == (None, False)


@pytest.mark.parametrize("path", ["", "nowhere"])
def test_no_git_is_no_commit(monkeypatch, path):
    monkeypatch.setenv("PATH", path)
    assert describe()["git_commit"] is None


def test_a_package_that_is_missing_has_no_version():
    assert version_of("numpy") == np.__version__
    assert version_of("besskge-no-such-package") is None
