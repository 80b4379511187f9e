import argparse
import json

import pytest
from PIL import Image

from tulip_diffusion.training.commands import STAGES, main, register

from .conftest import make_caption

GIVEN = ("--teacher", "a/b", "--data", "captions.jsonl", "--output-dir", "x")  # what every stage asks for


def parse(*arguments):
    parser = argparse.ArgumentParser()
    register(parser.add_subparsers())
    return parser.parse_args(["train", *map(str, arguments)])


def run(*arguments):
    namespace = parse(*arguments)
    namespace.run(namespace)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_explains_all_its_flags(stage, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(stage, "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0
    assert "--batch-size" in text and "over all processes" in text and "--teacher" in text


def test_flags_become_the_stages_arguments():
    namespace = parse("distill", *GIVEN, "--objective", "paper", "--no-freeze-token-embedding")
    assert namespace.objective == "paper" and not namespace.freeze_token_embedding and namespace.batch_size == 640


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distill", "--output-dir", "x"], "required: --teacher, --data"),
        (["distill", "--output-dir", "x", "--teacher", "y"], "required: --data"),
        (["distill", "--output-dir", "x", "--teacher", "a/b", "--data", ""], "needs --data"),
        (["expand", *GIVEN, "--batch-size", "0"], "batch_size must be a whole number, 1 or more"),
        (["distill", "--output-dir", "x", "--teacher", "a/b", "--data", "/none.jsonl"], "no caption data"),
    ],
)
def test_wrong_input_ends_with_one_clear_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tulip-diffusion", "train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_expand_asks_for_stage_1(tmp_path, load_towers):
    load_towers()
    Image.new("RGB", (32, 32)).save(tmp_path / "0.png")
    (tmp_path / "data.jsonl").write_text('{"caption": "a", "image": "0.png"}')
    flags = ["--teacher", tmp_path / "clip", "--data", tmp_path / "data.jsonl", "--output-dir", tmp_path / "out"]
    with pytest.raises(ValueError, match="goes on from stage 1"):
        run("expand", *flags)
    with pytest.raises(ValueError, match="not an encoder that `train distill` made"):
        run("expand", *flags, "--student", tmp_path / "clip")


def test_data_with_every_kind_of_damage_trains_to_the_end_and_is_reported(tmp_path, load_towers, caplog):
    """3 % broken images, empty captions, captions far too long, odd encodings; through both stages."""
    load_towers()
    rows = []
    for number in range(101):
        Image.new("RGB", (40, 30), (2 * number, 0, 0)).save(tmp_path / f"{number}.png")
        caption = make_caption(number, 200 if number % 10 == 0 else 3 + number % 12)
        rows.append({"image": f"{number}.png", "conversations": [{"value": "?"}, {"value": caption}]})
    for number in (11, 42, 77):
        (tmp_path / f"{number}.png").write_bytes(b"\x89PNG broken")
    rows[5]["conversations"][1]["value"] = "   "
    rows[6]["conversations"] = []
    rows[7]["conversations"][1]["value"] = "Ünïcodé 花 🌷. " + "word " * 300
    rows[9]["conversations"][1]["value"] = "A wörd in another encoding."
    rows[8]["conversations"][1]["value"] = "no_stop_and_no_space" * 200
    (tmp_path / "data.json").write_bytes(json.dumps(rows, ensure_ascii=False).encode().replace("ö".encode(), b"\xf6"))

    common = ["--data", tmp_path / "data.json", "--teacher", tmp_path / "clip", "--batch-size", 7, "--steps", 14]
    common += ["--warmup-steps", 1, "--num-workers", 0]
    run("distill", *common, "--output-dir", tmp_path / "1")
    run("expand", *common, "--student", tmp_path / "1", "--output-dir", tmp_path / "2")
    assert len((tmp_path / "2" / "metrics.jsonl").read_text().splitlines()) == 14
    report = json.loads((tmp_path / "2" / "run.json").read_text())["data"]
    assert report["rows"] == 98 and report["skipped"] == 3 and report["unreadable_images"] == 3
    for named in (
        "entry 5: its caption is empty",
        "entry 6: it has no conversations",
        "entry 9: its text holds the byte 0xf6",
        "entry 11",
        "entry 42",
        "entry 77",
    ):
        assert named in caplog.text
