"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from jobs.whole_file import check_folder, write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    write_whole(file, "a long first text\n")
    found: list[str] = []
    replace = os.replace

    def look(aside: Path, path: Path) -> None:
        found.extend([file.read_text("utf-8"), aside.read_text("utf-8")])
        replace(aside, path)

    monkeypatch.setattr(os, "replace", look)
    write_whole(file, "né\n")
    assert found == ["a long first text\n", "né\n"]
    assert file.read_text("utf-8") == "né\n"
    assert list(tmp_path.iterdir()) == [file]


def test_the_old_file_is_kept_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "record.json"
    write_whole(file, "old")
    # A lone surrogate has no bytes in UTF-8, which is found with the file aside open.
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "new \ud800")

    def full(aside: Path, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, "new")
    assert file.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "none" / "plan.toml"
    sentence = f"--output is {missing}: its folder must exist"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        check_folder("--output", missing)
    monkeypatch.chdir(tmp_path)
    check_folder("--output", Path("plan.toml"))
    check_folder("--output", None)
