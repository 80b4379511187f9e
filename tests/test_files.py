"""What is written is there whole or not at all."""

import pytest

from tulip_diffusion.files import replacing, write_text


def test_a_file_appears_only_when_the_block_ends_well(tmp_path):
    target = tmp_path / "new" / "picture.png"
    with replacing(target) as unfinished:
        unfinished.write_text("whole")
        assert not target.exists() and unfinished.suffix == ".png"
    assert [path.name for path in target.parent.iterdir()] == ["picture.png"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "run.json"
    write_text(target, "old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as unfinished:
        unfinished.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "encoder"
    for name in ("first", "second"):
        with replacing(target) as unfinished:
            unfinished.mkdir()
            write_text(unfinished / name, name)
    assert [path.name for path in target.iterdir()] == ["second"] and list(tmp_path.iterdir()) == [target]


def test_the_commit_is_not_that_of_a_repository_the_environment_lies_in(tmp_path):
    import shutil
    import subprocess
    import sys
    from pathlib import Path

    from tulip_diffusion import provenance

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(provenance.__file__, tmp_path / "provenance.py")
    program = "import provenance; print(provenance.commit())"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tulip-diffusion "), Path(provenance.__file__)
