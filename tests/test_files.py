import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cueva import files
from cueva.errors import CheckpointError
from cueva.files import atomic_folder, atomic_write, recover_folder, require_space, sha256_file
from tests.checkpoint.disks import dies, fill_up, kill_me, make_read_only, small_disk

POSIX_ONLY = pytest.mark.skipif(files.fcntl is None, reason="leftovers are cleaned only where files can be locked")


def write(folder: Path, text: str) -> None:
    (folder / "a").write_text(text)
    (folder / "deep").mkdir()
    (folder / "deep" / "b").write_text(text)


def content(folder: Path) -> set[str]:
    return {(folder / "a").read_text(), (folder / "deep" / "b").read_text()}


def save(target: Path, text: str) -> None:
    with atomic_folder(target) as folder:
        write(folder, text)


# --- what is there afterwards -----------------------------------------------------------------------------------------


def test_a_written_file_holds_exactly_what_was_given(tmp_path: Path) -> None:
    atomic_write(tmp_path / "new" / "f", "línea\n")
    assert (tmp_path / "new" / "f").read_bytes() == "línea\n".encode()
    atomic_write(tmp_path / "new" / "f", b"\r\n\x00")
    assert (tmp_path / "new" / "f").read_bytes() == b"\r\n\x00"
    assert os.listdir(tmp_path / "new") == ["f"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchanged", "renamed"])
def test_a_folder_is_replaced_whole(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    save(tmp_path / "m", "one")
    (tmp_path / "m" / "only in the old one").touch()
    save(tmp_path / "m", "two")
    assert content(tmp_path / "m") == {"two"}
    assert sorted(os.listdir(tmp_path / "m")) == ["a", "deep"]
    assert os.listdir(tmp_path) == ["m"]


def test_files_of_the_old_folder_stay_readable_while_open(tmp_path: Path) -> None:
    save(tmp_path / "m", "one")
    with (tmp_path / "m" / "a").open() as old:
        save(tmp_path / "m", "two")
        assert old.read() == "one"


def test_a_symbolic_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    save(tmp_path / "real", "one")
    (tmp_path / "link").symlink_to("real")
    save(tmp_path / "link", "two")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == {"two"}
    (tmp_path / "file").write_text("old")
    (tmp_path / "to file").symlink_to("file")
    atomic_write(tmp_path / "to file", "new")
    assert (tmp_path / "to file").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_permissions_follow_the_users_mask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        atomic_write(tmp_path / "f", "x")
        save(tmp_path / "m", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "m").stat().st_mode & 0o777 == 0o750


def test_a_hash_is_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- what an error leaves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_while_filling_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    save(tmp_path / "m", "one")

    def half() -> None:
        with atomic_folder(tmp_path / "m") as folder:
            (folder / "a").write_text("half")
            raise error

    with pytest.raises(type(error)):
        half()
    assert content(tmp_path / "m") == {"one"}
    assert os.listdir(tmp_path) == ["m"]


def test_an_error_while_renaming_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "m", "one")
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    rename = os.rename
    calls: list[object] = []

    def second_fails(*args: object) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken disk")
        rename(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(OSError, match="broken disk"):
        save(tmp_path / "m", "two")
    assert content(tmp_path / "m") == {"one"}


def test_a_full_disk_is_a_sentence_and_what_was_saved_stays(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        save(disk / "m", "one")
        atomic_write(disk / "f", "one")
        fill_up(disk, 40_000)
        with pytest.raises(CheckpointError) as caught, atomic_folder(disk / "m") as folder:
            (folder / "a").write_bytes(b"x" * 100_000)
        assert str(disk / "m") in caught.value.message
        assert "bytes free" in caught.value.message
        assert caught.value.way_out is not None
        assert caught.value.way_out.startswith("try")
        with pytest.raises(CheckpointError, match="needs 100,000 bytes"):
            atomic_write(disk / "f", b"x" * 100_000)
        assert content(disk / "m") == {"one"}
        assert (disk / "f").read_text() == "one"
        assert sorted(os.listdir(disk)) == ["f", "filler", "m"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        words = r"needs 1,000,000 bytes and its disk has [\d,]+ bytes free"
        with (
            pytest.raises(CheckpointError, match=words),
            atomic_folder(disk / "deep" / "m", needed_bytes=1_000_000),
        ):
            pytest.fail("the block must not run")
        assert os.listdir(disk) == []


def test_a_read_only_disk_is_a_sentence(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        save(disk / "m", "one")
        make_read_only(disk)
        with pytest.raises(CheckpointError, match="read-only"):
            save(disk / "m", "two")
        with pytest.raises(CheckpointError, match="read-only"):
            atomic_write(disk / "f", "x")
        with pytest.raises(CheckpointError, match="read-only"):
            save(disk / "new" / "m", "two")
        assert content(disk / "m") == {"one"}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "permission is denied"),
        (errno.EROFS, "read-only"),
        (errno.ENOSPC, "no room"),
        (errno.EDQUOT, "no room"),
    ],
)
def test_refusals_of_the_system_are_sentences(
    tmp_path: Path, number: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on systems where no disk can be mounted."""

    def refuse(path: str, *_: object) -> int:
        raise OSError(number, os.strerror(number), os.fspath(path))

    (tmp_path / "f").write_text("old")
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(CheckpointError, match=words) as caught:
        atomic_write(tmp_path / "f", "new")
    assert str(tmp_path / "f") in caught.value.message
    assert caught.value.way_out is not None
    monkeypatch.undo()
    assert (tmp_path / "f").read_text() == "old"


def test_errors_about_other_files_pass_unchanged(tmp_path: Path) -> None:
    """A corpus that may not be read is not a folder that may not be written."""
    with pytest.raises(PermissionError), atomic_folder(tmp_path / "m"):
        raise PermissionError(errno.EACCES, "no", str(tmp_path / "corpus.txt"))
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(CheckpointError, match="is a file"):
        save(tmp_path / "m", "two")
    with pytest.raises(CheckpointError, match="a file is where a folder is needed"):
        save(tmp_path / "m" / "inner", "two")
    assert (tmp_path / "m").read_text() == "mine"


def test_free_space_is_asked_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(CheckpointError, match="needs 1,000,000,000,000,000,000 bytes"):
        require_space(tmp_path / "not" / "yet", 10**18)


# --- what a killed process leaves -------------------------------------------------------------------------------------


@POSIX_ONLY
def test_a_process_killed_while_filling_leaves_the_old_folder(tmp_path: Path) -> None:
    save(tmp_path / "m", "one")

    def half() -> None:
        with atomic_folder(tmp_path / "m") as folder:
            (folder / "a").write_text("half")
            kill_me()

    dies(half)
    assert content(tmp_path / "m") == {"one"}
    assert len(os.listdir(tmp_path)) == 2, "the leftover is beside it"
    save(tmp_path / "m", "two")
    assert content(tmp_path / "m") == {"two"}
    assert os.listdir(tmp_path) == ["m"], "and gone with the next save"


@POSIX_ONLY
def test_a_process_killed_between_the_two_renames_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the system cannot exchange folders is there a moment without one; the next look brings it back."""
    save(tmp_path / "m", "one")
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    rename = os.rename

    def only_the_first(*args: object) -> None:
        rename(*args)  # pyright: ignore[reportArgumentType]
        kill_me()

    def act() -> None:
        os.rename = only_the_first
        save(tmp_path / "m", "two")

    dies(act)
    assert not (tmp_path / "m").exists()
    assert recover_folder(tmp_path / "m")
    assert content(tmp_path / "m") == {"one"}
    assert not recover_folder(tmp_path / "m"), "there is nothing more to bring back"


@POSIX_ONLY
def test_a_process_killed_while_writing_a_file_leaves_the_old_file(tmp_path: Path) -> None:
    atomic_write(tmp_path / "f", "one")

    def half() -> None:
        os.replace = kill_me
        atomic_write(tmp_path / "f", "two")

    dies(half)
    assert (tmp_path / "f").read_text() == "one"
    atomic_write(tmp_path / "f", "three")
    assert os.listdir(tmp_path) == ["f"]


@POSIX_ONLY
def test_the_temporary_folder_of_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "m") as slow:
        write(slow, "slow")
        save(tmp_path / "m", "fast")
        assert content(slow) == {"slow"}
    assert content(tmp_path / "m") == {"slow"}
    assert os.listdir(tmp_path) == ["m"]


@POSIX_ONLY
def test_killed_at_random_moments_the_folder_is_of_one_save(tmp_path: Path) -> None:
    target = tmp_path / "m"
    code = (
        "import sys, itertools; from pathlib import Path; from cueva.files import atomic_folder\n"
        "for n in itertools.count():\n"
        "    with atomic_folder(sys.argv[1]) as folder:\n"
        "        for name in 'abc': (folder / name).write_text(str(n) * 2000)\n"
    )
    chance = random.Random(3)
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", code, str(target)], cwd=Path(__file__).parent.parent)
        while not target.exists():
            time.sleep(0.005)
        time.sleep(0.05 + 0.2 * chance.random())
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        texts = {(target / name).read_text() for name in "abc"}
        assert len(texts) == 1, "three files of one save"
    save(target, "end")
    assert os.listdir(tmp_path) == ["m"]
