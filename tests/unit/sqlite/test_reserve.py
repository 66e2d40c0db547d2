"""Room that is kept free on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from lockgate.sqlite.reserve import Reserve


def test_it_is_given_up_piece_by_piece_and_made_again(tmp_path: Path) -> None:
    reserve = Reserve(tmp_path)
    assert reserve.keep()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"lockgate.reserve": reserve.size_bytes, "lockgate.reserve-2": reserve.size_bytes}
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) >= 2 * reserve.size_bytes  # no holes
    assert reserve.release()
    assert os.listdir(tmp_path) == ["lockgate.reserve-2"]  # the last resort stays
    assert reserve.release()
    assert not reserve.release()
    assert reserve.keep()


def test_its_size_stays_that_of_the_first_start(tmp_path: Path) -> None:
    (tmp_path / "lockgate.reserve-2").write_bytes(bytes(8192))
    reserve = Reserve(tmp_path)
    assert reserve.size_bytes == 8192
    assert reserve.keep()
    assert (tmp_path / "lockgate.reserve").stat().st_size == 8192


def test_it_takes_little_of_a_large_disk(tmp_path: Path) -> None:
    assert 4096 <= Reserve(tmp_path).size_bytes <= 8 * 1024 * 1024
