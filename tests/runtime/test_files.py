"""The lock of a folder that cannot be one."""

import os

import pytest

from qkv_jax.config import ConfigError
from qkv_jax.runtime.files import folder_lock


@pytest.mark.parametrize("below", ["", "/run"])
def test_a_link_to_a_disk_that_is_not_there_is_called_so(below, tmp_path):
    """As `runs -> /scratch/me/runs` on a machine without it; "File exists" helps nobody."""
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    folder = tmp_path / f"runs{below}"
    with pytest.raises(ConfigError) as error, folder_lock(folder):
        pass
    message = f"{tmp_path / 'runs'} is a link to what is not there"
    assert str(error.value) == f"workdir: given {str(folder)!r}; {message}"


def test_a_file_is_no_folder_to_write_in(tmp_path):
    (tmp_path / "file").write_text("mine\n")
    with pytest.raises(ConfigError, match="file is no folder"), folder_lock(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine\n"


def test_a_pipe_is_no_lock(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ConfigError, match=r"its \.lock is no file"), folder_lock(tmp_path):
        pass
    assert (tmp_path / ".lock").is_fifo()
