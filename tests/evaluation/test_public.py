"""Published prompt sets: hand-written files of the true layouts, drawn with the tiny family and laid out."""

import json

import pytest
from PIL import Image

from tulip_diffusion.evaluation.public_scores import positions_in
from tulip_diffusion.evaluation.public_sets import PUBLIC_SETS, read_set
from tulip_diffusion.tokenization import load_tokenizer

LONG = (
    "The scene shows a quiet harbour in the early morning, with wooden boats lying side by side along the quay. "
    "A fisherman in a yellow coat mends a net, and gulls circle above him in the pale light. Beyond the boats stands "
    "a row of narrow houses with tiled roofs, and in front of them a woman pushes a cart of fruit. Far to the right, "
    "a lighthouse with red stripes rises over the water, its lamp still burning."
)


def entry(number, target="object", dataset="docci", prompt=LONG):
    return {
        "image_id": f"{number}",
        "ori_prompt": "a harbour",
        "polished_prompt": prompt,
        "character_attributes": [
            {"main_character": "fisherman", "characteristics_list": ["yellow coat", "mends a net"], "cls": "person"},
            {
                "main_character": "lighthouse",
                "characteristics_list": ["red stripes", "made of glass"],
                "cls": "object",
            },
        ],
        "character_locations": [],
        "scene_attributes": [],
        "dataset_target": dataset,
        "mini_bench_target": target,
    }


@pytest.fixture
def sets(tmp_path):
    """One small file or folder a set, with the odd rows that real ones have: BOMs, blank lines, repeated entries."""
    root = tmp_path / "sets"
    root.mkdir()
    (root / "detailmaster.json").write_text(
        json.dumps([entry(1), entry(1, "person"), entry(1, dataset="dci"), entry("2_a")]), encoding="utf-8-sig"
    )
    tiif = root / "testmini_prompts"
    tiif.mkdir()
    lines = [
        {"type": t, "short_description": f"{t} {n}", "long_description": f"{t} {n}. {LONG}"}
        for t, n in (("action+3d", 0), ("action+3d", 1), ("text", 0))
    ]
    (tiif / "a.jsonl").write_text("\n\n".join(map(json.dumps, lines[:2])) + "\n", encoding="utf-8")
    (tiif / "b.jsonl").write_text(json.dumps(lines[2]), encoding="utf-8")
    (root / "longbench" / "data").mkdir(parents=True)
    labels = [{"Object": "boats", "Color": "yellow"}]
    (root / "longbench/data/instruction.jsonl").write_text(
        "".join(json.dumps({"instruction": f"{LONG} {n}", "label": labels}) + "\n" for n in range(3)), encoding="utf-8"
    )
    (root / "dpg" / "prompts").mkdir(parents=True)
    for name in ("COCOval2014000000000285", "partiprompts12"):
        (root / "dpg/prompts" / f"{name}.txt").write_text(f"{LONG}\n", encoding="utf-8")
    (root / "dpg/prompts/._partiprompts12.txt").write_bytes(b"\x00\x05\x16\x07")
    atoms = [["Is there a cat?", "Yes"], ["Is the cat red?", "Yes"]]
    geneval = [
        {"prompt": p, "atom_count": 2, "vqa_list": atoms, "skills": ["object", "attribute"]}
        for p in ("a red cat", "two blue dogs")
    ]
    (root / "geneval2_data.jsonl").write_text("\n".join(map(json.dumps, geneval)), encoding="utf-8")
    (root / "lpg.json").write_text(json.dumps([{"id": "p7", "prompt": LONG}, {"prompt": "a cat"}]), encoding="utf-8")
    (root / "own.txt").write_text("a cat\n\n  a red dog \n", encoding="utf-8")
    return {
        "detailmaster": root / "detailmaster.json",
        "tiif": tiif,
        "longbench-t2i": root / "longbench",
        "lpg": root / "lpg.json",
        "dpg": root / "dpg",
        "geneval2": root / "geneval2_data.jsonl",
        "jsonl": root / "own.txt",
    }


FILES = {
    "detailmaster": ["{e}.json", "{e}/docci_1.png", "{e}/dci_1.png", "{e}/docci_2_a.png"],
    "tiif": [
        f"{kind}/{{e}}/{form}_description/{number}.png"
        for kind, number in (("action+3d", 0), ("action+3d", 1), ("text", 0))
        for form in ("short", "long")
    ],
    "longbench-t2i": [f"{{e}}/{number}/step1/generated_image_1.jpg" for number in range(3)],
    "lpg": ["{e}.json", "{e}/p7.png", "{e}/1.png"],
    "dpg": ["{e}/COCOval2014000000000285.png", "{e}/partiprompts12.png"],
    "geneval2": ["{e}.json", "{e}/0.png", "{e}/1.png"],
    "jsonl": ["{e}.json", "{e}/0.png", "{e}/1.png"],
}
OTHERS = {"prompts.json", "prompts.md", "provenance.json", "clip.settings.json", "tulip.settings.json"}


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", PUBLIC_SETS)
def test_every_set_is_read_drawn_and_laid_out_as_its_scorer_expects(name, sets, command):
    line = ["--data", f"{name}={sets[name]}", "--encoders", "clip", "tulip", "--steps", 1]
    out = command("prompts", *line)
    expected = {file.format(e=encoder) for encoder in ("clip", "tulip") for file in FILES[name]}
    assert files_below(out) == expected | OTHERS
    results = json.loads((out / "prompts.json").read_text())["results"]
    prompts = read_set(f"{name}={sets[name]}")[1]
    assert results["prompts"] == results["tulip"]["pictures"] == len(prompts)
    counts = [len(load_tokenizer()(prompt.text, verbose=False).input_ids) for prompt in prompts]
    assert results["tokens"]["beyond 77"] == pytest.approx(sum(n > 77 for n in counts) / len(counts), abs=1e-4)
    assert results["tokens"]["most"] == max(counts)
    if name == "geneval2":
        index = json.loads((out / "tulip.json").read_text())
        assert index == {"a red cat": str(out / "tulip/0.png"), "two blue dogs": str(out / "tulip/1.png")}
    if name == "detailmaster":
        index = json.loads((out / "tulip.json").read_text())
        assert index[1] == {"output_image_name": "dci_1.png", "image_id": "dci_1"} and len(index) == 3


def test_a_killed_run_goes_on_without_drawing_again_and_refuses_other_settings(sets, command):
    line = ["--data", f"jsonl={sets['jsonl']}", "--encoders", "clip", "--steps", 1, "--batch", 1]
    out = command("prompts", *line)
    kept, lost = out / "clip/0.png", out / "clip/1.png"
    before, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    command("prompts", *line)
    assert kept.stat().st_mtime_ns == time and lost.read_bytes() == before
    with pytest.raises(ValueError, match="steps 1, and now it is 2"):
        command("prompts", *line[:-3], 2, "--batch", 1)


def test_several_pictures_of_a_prompt_differ_are_laid_out_and_their_spread_is_measured(sets, command):
    pictures = {}
    for name, files in (
        ("dpg", ["clip/partiprompts12.png"]),
        ("tiif", ["text/clip/short_description/0.png", "text/clip-2/short_description/0.png"]),
        ("detailmaster", ["clip/dci_1.png", "clip/dci_1-2.png"]),
    ):
        line = ["--data", f"{name}={sets[name]}", "--encoders", "clip", "--steps", 1, "--pictures", 2]
        out = command("prompts", *line, out=name)
        pictures[name] = [Image.open(out / file) for file in files]
        results = json.loads((out / "prompts.json").read_text())["results"]
        assert results["clip"]["diversity"]["mean"] > 0
    (sheet,) = pictures["dpg"]
    assert sheet.size == (128, 128) and sheet.crop((0, 64, 128, 128)).getextrema() == ((0, 0),) * 3
    cut = [sheet.crop((left, 0, left + 64, 64)) for left in (0, 64)]
    for first, second in (cut, pictures["tiif"], pictures["detailmaster"]):
        assert first.size == second.size == (64, 64) and first.tobytes() != second.tobytes()
    index = json.loads((out / "clip.json").read_text())
    assert [row["output_image_name"] for row in index[:2]] == ["docci_1.png", "docci_1-2.png"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("jsonl", '{"prompt": "a cat"}\n{"prompt": 3}', "line 2 has no prompt"),
        ("jsonl", '{"prompt": "a cat"}\nnot json', "neither a JSON list nor JSON lines"),
        ("jsonl", '[{"id": "../x", "prompt": "a cat"}]', "cannot be the name"),
        ("jsonl", "\n\n", "holds no prompt"),
        ("detailmaster", '[{"image_id": "1", "polished_prompt": "a"}]', "no 'dataset_target'"),
        ("tiif", '{"type": "a", "short_description": "x"}', "'long_description'"),
        ("longbench-t2i", "[3]", "is a int"),
        ("geneval2", '{"text": "a cat"}', "'prompt'"),
        ("nothing", "a", "one of detailmaster"),
    ],
)
def test_a_damaged_set_is_named_with_its_row(name, text, message, tmp_path):
    (tmp_path / "file.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_set(f"{name}={tmp_path / 'file.jsonl'}")
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        read_set(f"jsonl={tmp_path / 'elsewhere'}")


def test_a_phrase_of_a_prompt_stands_where_the_tokenizer_says():
    position = positions_in(LONG)
    assert position("the scene") == 4  # BOS, two words, EOS
    assert position("made of glass") is None and position("red") is not None and position("") is None
    assert position("light") < position("Red Stripes")  # not in "lighthouse", and case does not count
    last = len(load_tokenizer()(LONG.removesuffix("."), verbose=False).input_ids)
    assert position("still burning") == last


def scored(command, sets, name, scores, *more):
    line = ["--data", f"{name}={sets[name]}", "--score", *(f"{e}={file}" for e, file in scores.items()), *more]
    out = command("prompts", *line)
    return json.loads((out / "scores.json").read_text())["results"]["scores"], (out / "scores.md").read_text()


def test_detailmasters_scores_are_placed_by_token(sets, command, tmp_path):
    def file(name, late):
        """Everything early is right; the red stripes, far behind, only if `late`."""
        lists = [[("yellow coat", 1), ("mends a net", 1)], [("red stripes", late), ("made of glass", 0)]]
        scores = [
            {"main_character": who, "attributes_list": [{"attribute": a, "score": s} for a, s in found]}
            for who, found in zip(("fisherman", "lighthouse"), lists, strict=True)
        ]
        state = {"prompt_info": entry(1), "character_attributes_detail_score": scores}
        place = {"prompt_info": entry(1, dataset="dci"), "character_location_all": 4, "character_location_success": 3}
        scene = {
            "prompt_info": entry("2_a"),
            "scene_attributes_all": {"background": 1, "spatial": 0},
            "scene_attributes_success": {"background": 1, "spatial": 0},
        }
        path = tmp_path / name
        path.write_text(json.dumps([state, place, scene]))
        return path

    found, table = scored(command, sets, "detailmaster", {"clip": file("c.json", 0), "tulip": file("t.json", 1)})
    for encoder, late in (("clip", 0.0), ("tulip", 1.0)):
        by_position = {name: (share["mean"], share["values"]) for name, share in found[encoder]["position"].items()}
        assert by_position == {"0-77": (1.0, 2), "77-154": (late, 1)}
        assert found[encoder]["placed"] == 0.75
        assert found[encoder]["kind"]["character locations"]["mean"] == 0.75
        assert found[encoder]["kind"]["background"]["mean"] == 1.0 and "spatial" not in found[encoder]["kind"]
    assert found["tulip"]["all"]["mean"] == pytest.approx(7 / 9, abs=1e-4)
    assert "| tulip | 1.000 ± 0.000 | 1.000 ± 0.000 |" in table and "YOLOE" in table


def test_tiifs_scores_give_the_fall_from_the_short_to_the_long_form(sets, command, tmp_path):
    rows = [
        "image,score,kind",
        "action+3d/tulip/short_description/0.png,1,a",
        "text/tulip/short_description/0.png,1,b",
        "action+3d/tulip/long_description/0.png,0.5,a",
        "text/tulip/long_description/0.png,0,b",
    ]
    (tmp_path / "scores.csv").write_text("\n".join(rows))
    found, table = scored(command, sets, "tiif", {"tulip": tmp_path / "scores.csv"})
    assert (found["tulip"]["short"]["mean"], found["tulip"]["long"]["mean"]) == (1.0, 0.25)
    assert found["tulip"]["fall"] == 0.75 and "fall" in table
    assert found["tulip"]["tokens"]["0-77"]["mean"] == 1.0 and found["tulip"]["tokens"]["77-154"]["mean"] == 0.25


def test_scores_of_longbench_dpg_and_geneval_are_read_as_their_scorers_write_them(sets, command, tmp_path):
    judged = [{"category_name": "Object", "score": 4}, {"category_name": "Color", "score": -1}]
    lines = [{"idx": 2, "image": "x.jpg", "objects": judged, "average_score": 1.5}, {"samples_evaluated": 1}]
    (tmp_path / "eval.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found, _ = scored(command, sets, "longbench-t2i", {"clip": tmp_path / "eval.jsonl"})
    assert found["clip"]["all"] == pytest.approx({"mean": 4.0, "low": 4.0, "high": 4.0, "values": 1})
    text = "/a/clip/partiprompts12.png, 0.5, 1.0, 0.75\nModel: clip\nL1 category scores:\n\tentity: 91.5\n"
    (tmp_path / "dpg.txt").write_text(text)
    found, _ = scored(command, sets, "dpg", {"clip": tmp_path / "dpg.txt"})
    assert found["clip"]["all"]["mean"] == 0.75 and found["clip"]["all"]["values"] == 1
    (tmp_path / "lists.json").write_text("[[1, 0.5], [0, 1]]")
    found, _ = scored(command, sets, "geneval2", {"clip": tmp_path / "lists.json"})
    assert (found["clip"]["kind"]["object"]["mean"], found["clip"]["kind"]["attribute"]["mean"]) == (0.5, 0.75)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("jsonl", '[{"image": "clip/9.png", "score": 1}]', "no prompt of this set"),
        ("jsonl", '[{"image": "clip/0.png"}]', "must have an image and a score"),
        ("detailmaster", '[{"prompt_info": {"dataset_target": "a", "image_id": "1"}}]', "no prompt of this set"),
        ("geneval2", "[[1, 1]]", "scores for 1 prompts, expected 2"),
        ("dpg", "nothing", "holds no score"),
    ],
)
def test_scores_of_something_else_are_refused(name, text, message, sets, command, tmp_path):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        scored(command, sets, name, {"clip": tmp_path / "scores.json"})
