"""The demo, as `scripts/demo` runs it."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import av


def test_demo_ends_with_shards_whose_every_mp4_has_picture_and_sound(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "acavdl", "demo", "--output-folder", "made"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tar tf made/dataset/00000.tar" in done.stderr
    clips = 0
    for path in (tmp_path / "made/dataset").glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".mp4"):
                    file = tar.extractfile(member)
                    assert file is not None
                    with av.open(io.BytesIO(file.read())) as container:
                        assert len(container.streams.video) == 1
                        assert len(container.streams.audio) == 1
                    clips += 1
    assert clips == 64
    assert "64 of 70 clips" in done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("dataset: /")]
    assert max(map(len, lines)) <= 80
