"""The user's own folder for what is kept: where it is, and when it is refused."""

import os
import stat
from pathlib import Path

import pytest

from ssd300_vgg16.errors import UserError
from ssd300_vgg16.folders import own_cache_folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What SSD_CACHE names; nothing is there yet."""
    monkeypatch.setenv("SSD_CACHE", str(tmp_path / "a cache"))
    return tmp_path / "a cache"


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("SSD_CACHE", "here", "here"),
        ("SSD_CACHE", "~/there", "there"),
        ("XDG_CACHE_HOME", "{home}", "ssd300_vgg16"),
        ("HOME", "{home}", ".cache/ssd300_vgg16"),
    ],
)
def test_where_it_is_and_that_it_is_only_the_users(monkeypatch, tmp_path, name, value, path):
    for other in ("SSD_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(other, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(name, value.format(home=tmp_path))
    monkeypatch.chdir(tmp_path)
    former = os.umask(0)
    try:
        assert own_cache_folder() == tmp_path / path
    finally:
        os.umask(former)
    assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o555])
def test_a_folder_that_others_may_only_read_is_taken_and_left_as_it_is(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    assert own_cache_folder() == folder and stat.S_IMODE(folder.stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o770, 0o1777, 0o702])
def test_a_folder_that_others_may_write_in_is_refused_until_they_may_not(folder, mode):
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(UserError, match=r"can be written by other users.*: look through it, and chmod 700 '.*cache'"):
        own_cache_folder()
    folder.chmod(0o700)
    assert own_cache_folder() == folder


def test_a_folder_of_another_user_is_refused_and_one_of_roots_is_not(folder, monkeypatch):
    folder.mkdir()
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:
        assert own_cache_folder() == folder
        os.chown(folder, 12345, -1)
    with pytest.raises(UserError, match=r"belongs to another user \(number \d+\).*: set SSD_CACHE to a folder of your"):
        own_cache_folder()


@pytest.mark.parametrize("target", ["elsewhere", "nowhere"])
def test_a_link_is_refused_but_not_one_on_the_way(folder, monkeypatch, target):
    (folder.parent / "elsewhere").mkdir()
    folder.symlink_to(target)
    with pytest.raises(UserError, match=rf"a cache is a link to {target}: set SSD_CACHE to the folder itself"):
        own_cache_folder()
    monkeypatch.setenv("SSD_CACHE", str(folder / "inner"))
    if target == "elsewhere":
        assert own_cache_folder() == folder / "inner"


def test_what_keeps_it_from_being_made_is_told_in_one_sentence(folder, monkeypatch):
    folder.touch()
    with pytest.raises(UserError, match="a cache is a file: set SSD_CACHE to a folder of your own"):
        own_cache_folder()
    monkeypatch.setenv("SSD_CACHE", str(folder / "inner"))
    with pytest.raises(UserError, match=r"inner cannot be made \(Not a directory\): set SSD_CACHE"):
        own_cache_folder()
    monkeypatch.setenv("SSD_CACHE", "~nobody_of_this_name/cache")
    with pytest.raises(UserError, match=r"cannot be made \(Could not determine home directory\.\): set SSD_CACHE"):
        own_cache_folder()
    assert Path(folder).read_bytes() == b""
