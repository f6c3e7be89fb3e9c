"""What the machine tells, read from made-up systems: limits of control groups count, unknown stays unknown."""

from pathlib import Path

import pytest

from cueva.study import machine


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n", encoding="utf-8")


def test_the_tightest_quota_on_the_way_up_binds_version_2(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/batch/job\n", encoding="utf-8")
    root = tmp_path / "cgroup"
    group(root / "batch" / "job", cpu__max="max 100000", memory__max="max")
    group(root / "batch", cpu__max="150000 100000", memory__max="2147483648")
    assert machine.cpu_quota(root, own) == 1.5
    assert machine.memory_limit(root, own) == 2 << 30


def test_version_1_has_a_mount_for_each_controller(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("9:name=systemd:/\n5:cpu,cpuacct:/a\n4:memory:/b\n", encoding="utf-8")
    root = tmp_path / "cgroup"
    group(root / "cpu" / "a", cpu__cfs_quota_us="50000", cpu__cfs_period_us="100000")
    group(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    group(root / "memory" / "b", memory__limit_in_bytes="1073741824")
    group(root / "memory", memory__limit_in_bytes="9223372036854771712")
    assert machine.cpu_quota(root, own) == 0.5
    assert machine.memory_limit(root, own) == 1 << 30


@pytest.mark.parametrize("text", ["", "0::/\n", "nonsense\n", "0::/../../escape\n"])
def test_no_limit_and_no_control_groups_are_none(tmp_path: Path, text: str) -> None:
    own = tmp_path / "own"
    own.write_text(text, encoding="utf-8")
    assert machine.cpu_quota(tmp_path / "absent", own) is None
    assert machine.memory_limit(tmp_path / "absent", tmp_path / "absent too") is None


def test_a_quota_below_one_core_still_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert machine.cores()["usable"] == 1
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    assert machine.cores()["usable"] == min(machine.cores()["machine"] or 0, machine.cores()["allowed"] or 0)


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    free = machine.free_bytes(tmp_path / "not" / "made" / "yet")
    assert free is not None
    assert free > 0
