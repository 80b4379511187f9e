"""Training from streams: every process its own rows, and runs that go on as if they had never stopped."""

import json
import os
import random
import signal

import pytest
import torch
from safetensors.torch import load_file

from tulip_diffusion.data import CaptionData, CaptionStream, open_captions, open_stream
from tulip_diffusion.training import batches, commands
from tulip_diffusion.training.config import DistillArguments
from tulip_diffusion.training.distill import distill
from tulip_diffusion.training.streams import workers_that_share

from ..data.test_tars import packed, picture
from .conftest import make_caption
from .test_processes import PROCESSES, finish, flags, free_port, history, start, start_pair, train, wait_for

pytest.importorskip("datasets")


def caption(shard, row):
    return make_caption(100 * shard + row, 3 + row % 12)


@pytest.fixture
def shards(tmp_path):
    """Four tars and four files of JSON lines, 20 captions with pictures each."""
    for shard in range(4):
        members = []
        for row in range(20):
            members += [(f"{row:02}.png", picture(20 * shard + row)), (f"{row:02}.txt", caption(shard, row).encode())]
        (tmp_path / f"shard-{shard}.tar").write_bytes(packed(members))
        lines = [json.dumps({"caption": caption(shard, row)}) for row in range(20)]
        (tmp_path / f"shard-{shard}.jsonl").write_text("\n".join(lines))
    return tmp_path


def stream_flags(workplace, stage, name, kind="tar", **changes):
    return [*flags(workplace, stage, name, data=workplace / f"shard-{{0..3}}.{kind}", **changes), "--stream"]


def note_captions(arguments, environment, errors, noted):
    """A training process that writes every caption which it cuts to the file `noted`."""
    cut = batches.CutRows.of

    def noting(self, row, epoch):
        with open(noted, "a") as file:
            file.write(json.dumps([epoch, row.caption]) + "\n")
        return cut(self, row, epoch)

    batches.CutRows.of = noting
    train(arguments, environment, errors, None)


@pytest.mark.parametrize("count", [4, 3])  # shards that two processes can share, and that they cannot
def test_two_processes_train_on_rows_of_their_own(workplace, shards, count):
    arguments = stream_flags(workplace, "distill", "out", "jsonl", steps=2 * count, batch_size=10, save_every=3)
    arguments[arguments.index("--data") + 1] = str(workplace / f"shard-{{0..{count - 1}}}.jsonl")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    pair = []
    for rank in range(2):
        environment = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        given = (arguments, environment, workplace / f"errors-{rank}", workplace / f"noted-{rank}")
        pair.append(PROCESSES.Process(target=note_captions, args=given))
        pair[-1].start()
    finish(*pair)
    seen = [[json.loads(line) for line in (workplace / f"noted-{rank}").read_text().splitlines()] for rank in range(2)]
    assert [len(mine) for mine in seen] == [10 * count, 10 * count]  # half of the one epoch that the steps take
    assert {epoch for mine in seen for epoch, _ in mine} == {0}
    together = [text for mine in seen for _, text in mine]
    assert sorted(together) == sorted(caption(shard, row) for shard in range(count) for row in range(20))
    progress = json.loads((workplace / "out/checkpoints" / f"step-{2 * count:08d}" / "progress.json").read_text())
    assert set(progress["readers"]) == {"0", "1"} and progress["processes"] == 2


@pytest.mark.parametrize(("stage", "kind", "workers"), [("expand", "tar", 2), ("distill", "jsonl", 0)])
def test_a_stream_that_was_stopped_and_killed_gives_the_batches_of_an_unbroken_one(
    workplace,
    shards,
    stage,
    kind,
    workers,
):
    changes = {"steps": 31, "save_every": 3, "resume": "auto", "num_workers": workers, "shuffle_rows": 15}
    finish(start(stream_flags(workplace, stage, "unbroken", kind, **changes), start_method="fork"))
    broken, folder = stream_flags(workplace, stage, "broken", kind, **changes), workplace / "broken"
    stopped = start(broken, start_method="fork")
    wait_for(stopped, folder, 4)
    os.kill(stopped.pid, signal.SIGTERM)
    finish(stopped, status=128 + signal.SIGTERM)
    killed = start(broken, start_method="fork")
    wait_for(killed, folder, 17)  # in the second epoch
    os.killpg(killed.pid, signal.SIGKILL)
    killed.join(60)
    finish(start(broken, start_method="fork"))
    assert history(folder) == history(workplace / "unbroken") and len(history(folder)) == 31
    expected = load_file(workplace / "unbroken" / "model.safetensors")
    assert all(torch.equal(weight, expected[name]) for name, weight in load_file(folder / "model.safetensors").items())


def test_two_processes_go_on_with_a_stream_bit_for_bit(workplace, shards):
    changes = {"batch_size": 4, "save_every": 5, "resume": "auto"}
    finish(*start_pair(stream_flags(workplace, "distill", "unbroken", "jsonl", steps=15, **changes)))
    broken = stream_flags(workplace, "distill", "broken", "jsonl", steps=15, **changes)
    stopped = start_pair(broken)
    wait_for(stopped[0], workplace / "broken", 7)
    for process in stopped:
        os.kill(process.pid, signal.SIGTERM)
    finish(*stopped, status=128 + signal.SIGTERM)
    finish(*start_pair(broken))
    assert history(workplace / "broken") == history(workplace / "unbroken")


def test_bad_rows_of_a_stream_are_counted_named_and_stop_a_run_that_meets_too_many(
    tmp_path, shards, tokenizer, teacher
):
    for shard in range(4):
        with (tmp_path / f"shard-{shard}.jsonl").open("a") as file:
            file.write('\n{"caption": "  "}\n{"words": "none"}')
    given = {"batch_size": 20, "warmup_steps": 1, "num_workers": 0, "chunk_size": 8}
    stream = open_stream(str(tmp_path / "shard-*.jsonl"), max_bad_share=0.1)
    distill(teacher, tokenizer, stream, DistillArguments(output_dir=str(tmp_path / "out"), steps=4, **given))
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["data"]["rows"] == "streamed" and 6 <= run["data"]["unreadable_images"] <= 8
    assert any("its caption is empty" in line for line in run["data"]["named"])
    assert "captions | streamed" in (tmp_path / "out" / "README.md").read_text()
    strict = open_stream(str(tmp_path / "shard-*.jsonl"), max_bad_share=0.01)
    with pytest.raises(ValueError, match="max_bad_share"):
        distill(teacher, tokenizer, strict, DistillArguments(output_dir=str(tmp_path / "b"), steps=20, **given))
    (tmp_path / "bad.jsonl").write_text("no JSON\n" * 300)
    useless = open_stream(str(tmp_path / "bad.jsonl"), max_bad_share=1)
    with pytest.raises(ValueError, match="None of 100 rows one after the other"):
        distill(teacher, tokenizer, useless, DistillArguments(output_dir=str(tmp_path / "c"), steps=1, **given))


def test_a_stream_takes_the_same_captions_through_the_same_loss_as_listed_data(tmp_path, shards, tokenizer, teacher):
    """One step on all rows: the draws of a caption's cut aside, the order of rows is all that differs."""
    given = {"steps": 1, "batch_size": 80, "warmup_steps": 1, "num_workers": 0, "objective": "paper"}
    texts = [caption(shard, row) for shard in range(4) for row in range(20)]
    random.Random(0).shuffle(texts)
    distill(teacher, tokenizer, CaptionData(texts), DistillArguments(output_dir=str(tmp_path / "listed"), **given))
    stream = open_stream(str(tmp_path / "shard-*.jsonl"))
    assert isinstance(stream, CaptionStream)
    distill(teacher, tokenizer, stream, DistillArguments(output_dir=str(tmp_path / "streamed"), **given))
    assert history(tmp_path / "streamed")[0] == pytest.approx(history(tmp_path / "listed")[0], rel=1e-4)


def test_what_a_stream_cannot_do_is_refused_in_one_sentence(workplace, shards, capsys, monkeypatch):
    cases = (
        ({"epochs": 2}, "there are no epochs to count: give --steps"),
        ({"steps": 2, "teacher_cache": workplace / "cache"}, "which a stream's have not: leave it out"),
    )
    for changes, message in cases:
        arguments = stream_flags(workplace, "distill", "out", "jsonl", **changes)
        if "steps" not in changes:
            place = arguments.index("--steps")
            del arguments[place : place + 2]
        monkeypatch.setattr("sys.argv", ["tulip-diffusion", "train", *arguments])
        with pytest.raises(SystemExit) as stopped:
            commands.main()
        assert stopped.value.code == 2 and message in capsys.readouterr().err
        assert not (workplace / "out").exists()


def test_a_checkpoint_of_another_stream_is_refused(tmp_path, shards, tokenizer, teacher):
    given = {
        "batch_size": 8,
        "warmup_steps": 1,
        "save_every": 1,
        "num_workers": 0,
        "output_dir": str(tmp_path / "out"),
    }
    pattern = str(tmp_path / "shard-*.jsonl")
    distill(teacher, tokenizer, open_stream(pattern), DistillArguments(steps=1, **given))
    given |= {"resume": "auto", "steps": 2}
    for data, changes, named in (
        (open_stream(pattern), {"num_workers": 2}, "workers 1"),
        (open_stream(pattern, shuffle_rows=7), {}, "shuffle_rows 1000"),
        (open_stream(str(tmp_path / "shard-0.jsonl")), {}, "shards 4"),
        (open_captions(pattern), {}, "rows streamed"),
    ):
        with pytest.raises(ValueError, match=f"The checkpoint was made with {named}"):
            distill(teacher, tokenizer, data, DistillArguments(**(given | changes)))


def test_as_many_workers_read_as_can_share_the_shards():
    assert [workers_that_share(shards, 2, 4) for shards in (8, 4, 12, 6, 2, 3, 1, 16)] == [4, 2, 3, 3, 1, 1, 1, 4]
    assert workers_that_share(8, 1, 0) == 1


def test_a_picture_that_is_broken_is_skipped_and_named(workplace, shards):
    for shard in range(4):
        members = [("a.png", b"no picture"), ("a.txt", b"A broken one.")]
        for row in range(9):
            members += [(f"b{row}.png", picture(row)), (f"b{row}.txt", caption(shard, row).encode())]
        (workplace / f"shard-{shard}.tar").write_bytes(packed(members))
    finish(start(stream_flags(workplace, "finetune-clip", "out", steps=9, max_bad_share=0.5)))
    run = json.loads((workplace / "out" / "run.json").read_text())
    assert run["data"]["unreadable_images"] in (7, 8)  # of two epochs
    assert all(" a: " in line and "cannot identify image file" in line for line in run["data"]["named"])
