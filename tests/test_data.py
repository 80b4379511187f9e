import csv
import io
import json
import logging
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from tulip_diffusion.data import BadRow, CaptionData, open_captions


def picture(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"{number}.png").write_bytes(picture(number))
    return tmp_path


def red(data: CaptionData, index: int) -> int:
    return np.asarray(data.image(index))[0, 0, 0]


def write_sharegpt4v(path):
    entries = [
        {"image": f"images/{n}.png", "conversations": [{"value": "<image>\nDescribe."}, {"value": f"caption {n}"}]}
        for n in range(4)
    ]
    path.write_text(json.dumps(entries))


def write_csv(path):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerows([("filepath", "title"), *((f"images/{n}.png", f"caption {n}") for n in range(4))])


def write_jsonl(path):
    path.write_text(
        "".join(json.dumps({"caption": f"caption {n}", "image": f"images/{n}.png"}) + "\n" for n in range(4))
    )


def write_tar(path):
    with tarfile.open(path, "w") as tar:
        for n in range(4):
            text = (
                {"txt": f"caption {n}".encode()}
                if n % 2
                else {"json": json.dumps({"caption": f"caption {n}"}).encode()}
            )
            for suffix, content in {"png": picture(n), **text}.items():
                info = tarfile.TarInfo(f"part/{n}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


WRITERS = {"data.json": write_sharegpt4v, "data.csv": write_csv, "data.jsonl": write_jsonl, "data.tar": write_tar}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_captions_and_images(folder, name):
    WRITERS[name](folder / name)
    data = open_captions(str(folder / name), with_images=True)
    assert data.captions == [f"caption {n}" for n in range(4)]
    assert [red(data, n) for n in range(4)] == [0, 1, 2, 3]
    assert data.skipped.skipped == 0


def test_a_folder_of_shards_is_read_in_the_order_of_their_names(folder):
    for name in ("00001.tar", "00000.tar"):
        write_tar(folder / name)
    data = open_captions(str(folder), with_images=True)
    assert len(data) == 8 and red(data, 5) == 1 and data.name(5).startswith("00001.tar")


def test_hugging_face_data_sets_are_read_from_disk(folder):
    datasets = pytest.importorskip("datasets")
    rows = {
        "text": [f"caption {n}" for n in range(4)],
        "image": [str(folder / "images" / f"{n}.png") for n in range(4)],
    }
    dataset = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    dataset.save_to_disk(str(folder / "saved"))
    data = open_captions(str(folder / "saved"), with_images=True)
    assert data.captions == rows["text"] and [red(data, n) for n in range(4)] == [0, 1, 2, 3]


def test_caption_only_data_never_looks_for_images(folder):
    (folder / "data.jsonl").write_text('{"caption": "a", "image": "images/missing.png"}\n{"caption": "b"}\n')
    data = open_captions(str(folder / "data.jsonl"))
    assert data.captions == ["a", "b"]
    with pytest.raises(ValueError, match="captions alone"):
        data.image(0)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "images/../../x.png"])
def test_an_image_path_that_leaves_the_root_is_refused(folder, path):
    (folder / "data.jsonl").write_text(json.dumps({"caption": "a", "image": path}) + "\n")
    with pytest.raises(ValueError, match="leaves the image root"):
        open_captions(str(folder / "data.jsonl"), with_images=True)


def test_absolute_paths_and_links_inside_the_root_are_read(folder):
    os.symlink(folder / "images", folder / "linked")
    paths = ["linked/3.png", str(folder / "images" / "2.png")]
    (folder / "data.jsonl").write_text("".join(json.dumps({"caption": "a", "image": p}) + "\n" for p in paths))
    data = open_captions(str(folder / "data.jsonl"), with_images=True)
    assert [red(data, 0), red(data, 1)] == [3, 2]


def test_bad_lines_are_skipped_counted_and_named(folder, caplog):
    lines = [json.dumps({"caption": f"caption {n}"}) for n in range(80)]
    lines[5:5] = ["{broken", '{"caption": "  "}']
    lines.append('["a", "list"]')
    (folder / "data.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"caption": "odd \xff byte"}\n')
    with caplog.at_level(logging.WARNING):
        data = open_captions(str(folder / "data.jsonl"))
    assert data.captions == [f"caption {n}" for n in range(80)]
    assert data.skipped.skipped == 4
    assert "data.jsonl line 6" in caplog.text and "data.jsonl line 7: its caption" in caplog.text
    assert "data.jsonl line 84" in caplog.text and "0xff" in caplog.text


def test_more_bad_rows_than_the_stated_share_stop_the_run(folder):
    lines = [json.dumps({"caption": "fine" if n % 10 else ""}) for n in range(100)]
    (folder / "data.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"10 of 100 rows cannot be used.*0\.05.*line 1"):
        open_captions(str(folder / "data.jsonl"))
    assert len(open_captions(str(folder / "data.jsonl"), max_bad_share=0.1)) == 90


def test_a_broken_image_is_a_bad_row(folder):
    (folder / "images" / "0.png").write_bytes(picture()[:30])
    (folder / "images" / "1.png").write_text("<html>not found</html>")
    (folder / "images" / "2.png").unlink()
    write_jsonl(folder / "data.jsonl")
    data = open_captions(str(folder / "data.jsonl"), with_images=True)
    for row in range(3):
        with pytest.raises(BadRow, match=f"line {row + 1}"):
            data.image(row)
    assert data.image(3).mode == "RGB"


def test_missing_data_is_said_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no caption data"):
        open_captions(str(tmp_path / "none.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="no usable caption"):
        open_captions(str(tmp_path / "empty.jsonl"))
