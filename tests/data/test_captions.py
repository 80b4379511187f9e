"""Captions as they stand in people's files: read as they are, or skipped and named."""

import gzip
import json

import pytest

from tulip_diffusion.data import open_captions

NAMES = ["a", "b", "c"]


def opened(path, content, share=1.0, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_captions(str(path), max_bad_share=share, **options)


def captions(path, content, **options):
    return list(opened(path, content, **options).captions)


def skipped(data):
    return [reason.split(": ")[0].split()[-1] for reason in data.skipped.reasons]


HEADERS = {
    "tabs": "filepath\ttitle\na.jpg\tA boat, red; old\n",
    "quoted": '"filepath","title"\n"a.jpg","A boat, red; old"\n',
    "spaced": 'filepath , title\na.jpg , "A boat, red; old"\n',
    "capitalised": 'FilePath,Title\na.jpg,"A boat, red; old"\n',
    "semicolons": 'image;Caption\na.jpg;"A boat, red; old"\n',
    "bars": "Image Path | Text\na.jpg | A boat, red; old\n",
    "another order": 'id,caption,width,image\n7,"A boat, red; old",64,a.jpg\n',
    "Excel's first line": 'sep=;\nimage;caption\na.jpg;"A boat, red; old"\n',
    "a mark": "\ufefffilepath\ttitle\na.jpg\tA boat, red; old\n",
    "a mark and quotes": '\ufeff"filepath"\t"title"\n"a.jpg"\t"A boat, red; old"\n',
    "blank lines": "\n\nfilepath\ttitle\n\na.jpg\tA boat, red; old\n\n",
    "empty fields at the end": 'filepath,title\na.jpg,"A boat, red; old",,\n',
}


@pytest.mark.parametrize("kind", HEADERS)
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_table_is_read_however_its_header_is_written(kind, suffix, tmp_path):
    data = opened(tmp_path / f"t.{suffix}", HEADERS[kind], share=0, with_images=True)
    assert list(data.captions) == ["A boat, red; old"] and data.images[0] == str(tmp_path / "a.jpg")


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lines_end_and_begin_as_any_system_writes_them(ending, encoding, tmp_path):
    table = ending.join(["filepath\ttitle", "a.jpg\tÉtude", "b.jpg\t海の犬", ""])
    records = ending.join(json.dumps({"caption": c}, ensure_ascii=False) for c in ("Étude", "海の犬"))
    assert captions(tmp_path / "t.tsv", table.encode(encoding)) == ["Étude", "海の犬"]
    assert captions(tmp_path / "t.jsonl", records.encode(encoding)) == ["Étude", "海の犬"]
    assert captions(tmp_path / "t.txt", ending.join(["Étude", "", "海の犬"]).encode(encoding)) == ["Étude", "海の犬"]
    assert captions(tmp_path / "t.json", json.dumps([{"caption": "海の犬"}], ensure_ascii=False).encode(encoding)) == [
        "海の犬"
    ]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_other_separators_are_part_of_a_caption(mark, tmp_path):
    text = f"A boat{mark}at sea"
    assert captions(tmp_path / "t.jsonl", json.dumps({"text": text}, ensure_ascii=False) + "\n") == [text]
    assert captions(tmp_path / "t.tsv", f"filepath\ttitle\na.jpg\t{text}\n") == [text]
    assert captions(tmp_path / "t.txt", f"{text}\n") == [text]


UNCLOSED = {
    "tabs": 'filepath\ttitle\na.jpg\t"A boat\nb.jpg\tA dog\nc.jpg\tA "red" cat\n',
    "tabs, closing by chance": 'filepath\ttitle\na.jpg\t"A boat\nb.jpg\tA dog\nc.jpg\tA "red" cat\n',
    "commas": 'filepath,title\na.jpg,"A boat\nb.jpg,A dog\nc.jpg,A "red" cat\n',
    "semicolons": 'image;caption\na.jpg;"A boat\nb.jpg;A dog\nc.jpg;A "red" cat\n',
    "a later quoted field": 'image,caption\na.jpg,"A boat\nb.jpg,"A dog"\nc.jpg,"A ""red"" cat"\n',
    "the first field": 'caption,image\n"A boat,a.jpg\nA dog,b.jpg\nA "red" cat,c.jpg\n',
}


@pytest.mark.parametrize("kind", UNCLOSED)
def test_an_unclosed_quote_takes_no_other_row_with_it(kind, tmp_path):
    data = opened(tmp_path / "t.csv", UNCLOSED[kind])
    assert list(data.captions) == ["A dog", 'A "red" cat']
    assert data.skipped.reasons == ["t.csv line 2: it has a quote that does not close"]


def test_an_unclosed_quote_at_the_end_of_the_next_row_does_not_join_the_two(tmp_path):
    data = opened(tmp_path / "t.tsv", 'filepath\ttitle\na.jpg\t"A nail\nb.jpg\tOne of 5"\nc.jpg\tA cat\n')
    assert list(data.captions) == ['One of 5"', "A cat"] and skipped(data) == ["2"]


@pytest.mark.parametrize(
    ("table", "caption"),
    [
        ('image,caption\na.jpg,"A boat.\n\nAt sea, alone."\nb.jpg,x\n', "A boat.\n\nAt sea, alone."),
        ('image\tcaption\na.jpg\t"A boat.\nAt sea."\nb.jpg\tx\n', "A boat.\nAt sea."),
        ('caption\n"A boat.\nAt sea."\nx\n', "A boat.\nAt sea."),
        ('image,caption\r\na.jpg,"A boat.\r\nAt sea."\r\nb.jpg,x\r\n', "A boat.\nAt sea."),
        ('id,caption\n1,"A boat,\nat sea, alone"\n2,x\n', "A boat,\nat sea, alone"),
        ('image,caption\na.jpg,"A ""red"" boat,\nsays ""we"""\nb.jpg,x\n', 'A "red" boat,\nsays "we"'),
    ],
)
def test_quoted_captions_may_have_several_lines(table, caption, tmp_path):
    assert captions(tmp_path / "t.csv", table, share=0) == [caption, "x"]


def test_quotes_inside_a_caption_stay(tmp_path):
    rows = ['"Stop" says the sign', 'A 12" nail', "'Yes'", 'He said "no".', '""']
    table = "filepath\ttitle\n" + "".join(f"{n}.jpg\t{row}\n" for n, row in enumerate(rows))
    assert captions(tmp_path / "t.tsv", table) == rows[:4]


@pytest.mark.parametrize("row", ["a.jpg,A boat, red", "a.jpg", '"a.jpg,A boat"', "a.jpg,A boat,x,y"])
def test_a_row_that_does_not_fit_the_header_is_skipped_and_named(row, tmp_path):
    data = opened(tmp_path / "t.csv", f"image,caption\nz.jpg,A dog\n{row}\ny.jpg,A cat\n")
    assert list(data.captions) == ["A dog", "A cat"] and skipped(data) == ["3"]


@pytest.mark.parametrize("header", ["a.jpg,A boat", "", "filepath\tkeywords", "caption,Caption,image"])
def test_a_table_without_one_column_of_captions_is_one_sentence(header, tmp_path):
    with pytest.raises(ValueError, match=r"t\.csv"):
        opened(tmp_path / "t.csv", f"{header}\nb.jpg,x\n")


@pytest.mark.parametrize("value", ["", "   ", "nan", "NaN", "None", "null", "N/A"])
def test_missing_values_of_a_table_are_no_captions(value, tmp_path):
    data = opened(tmp_path / "t.tsv", f"filepath\ttitle\na.jpg\tNone of them\nb.jpg\t{value}\n")
    assert list(data.captions) == ["None of them"] and skipped(data) == ["3"]


NO_CAPTIONS = [
    "null",
    "NaN",
    "7",
    "1.5",
    "true",
    '["a", "b"]',
    '{"en": "a"}',
    '""',
    '"  "',
    '"a\\u0000b"',
    '"\\ud83d"',
]


@pytest.mark.parametrize("value", NO_CAPTIONS)
def test_what_is_no_text_is_skipped_and_named(value, tmp_path):
    lines = f'{{"caption": "fine"}}\n{{"caption": {value}}}\n'
    data = opened(tmp_path / "t.jsonl", lines)
    assert list(data.captions) == ["fine"] and skipped(data) == ["2"]
    data = opened(tmp_path / "t.json", f"[{','.join(lines.strip().splitlines())}]")
    assert list(data.captions) == ["fine"] and skipped(data) == ["1"]


@pytest.mark.parametrize("bad", [b"caf\xe9", b"\xff\xfe", b"\xc3(", b"half \xe6\xb5"])
def test_bytes_that_are_not_utf_8_are_skipped_and_named(bad, tmp_path):
    for name, before, after in (
        ("t.jsonl", b'{"caption": "fine"}\n{"caption": "', b'"}\n{"caption": "too"}\n'),
        ("t.tsv", b"title\tfilepath\nfine\ta\n", b"\tb\ntoo\tc\n"),
        ("t.txt", b"fine\n", b"\ntoo\n"),
        ("t.json", b'[{"caption": "fine"}, {"caption": "', b'"}, {"caption": "too"}]'),
    ):
        data = opened(tmp_path / name, before + bad + after)
        assert list(data.captions) == ["fine", "too"] and data.skipped.skipped == 1
        assert "not UTF-8" in data.skipped.reasons[0]


def test_captions_are_never_changed_but_for_outer_white_space(tmp_path):
    rows = ["<image> is an HTML tag", "a  b", "tab\there", "½ “quoted” – ﬁ 🌷", "A\nB", "\ufffd is a mark", "a,b;c|d"]
    lines = "".join(json.dumps({"caption": f"  {row}\n"}) + "\n" for row in rows)
    assert captions(tmp_path / "t.jsonl", lines, share=0) == rows


JSON_LINES = {
    "a comma behind each": '{"caption": "a"},\n{"caption": "b"},\n{"caption": "c"}\n',
    "a list, one entry a line": '[\n{"caption": "a"},\n{"caption": "b"},\n{"caption": "c"}\n]\n',
    "blank lines": '\n\n{"caption": "a"}\n \n{"caption": "b"}\n\t\n{"caption": "c"}\n\n',
    "capitals": '{"Caption": "a"}\n{"CAPTION": "b"}\n{"Text": "c"}\n',
    "other keys": '{"text": "a"}\n{"title": "b"}\n{"prompt": "c", "negative_prompt": "x"}\n',
    "two files joined": '{"caption": "a"}\n{"caption": "b"}\n\ufeff{"caption": "c"}\n',
}


@pytest.mark.parametrize("kind", JSON_LINES)
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "jsonlines", "jsonl.gz"])
def test_json_lines_are_read_as_people_write_them(kind, suffix, tmp_path):
    content = JSON_LINES[kind].encode()
    assert captions(tmp_path / f"t.{suffix}", gzip.compress(content) if suffix.endswith("gz") else content) == NAMES


ENTRIES = [{"image": f"{name}.jpg", "caption": name} for name in NAMES]
JSON_FILES = {
    "a list": ENTRIES,
    "splits": {"train": ENTRIES, "test": [{"caption": "another"}]},
    "COCO": {
        "images": [{"id": number, "file_name": f"{name}.jpg"} for number, name in enumerate(NAMES)],
        "annotations": [{"image_id": number, "caption": name} for number, name in enumerate(NAMES)],
    },
    "captions by image": {f"{name}.jpg": name for name in NAMES},
    "objects by image": {f"{name}.jpg": {"caption": name, "tags": "x"} for name in NAMES},
    "conversations": [
        {"image": f"{name}.jpg", "conversations": [{"value": "<image>\nDescribe."}, {"value": name}]} for name in NAMES
    ],
}


@pytest.mark.parametrize("kind", JSON_FILES)
def test_json_is_read_as_people_write_it(kind, tmp_path):
    data = opened(tmp_path / "t.json", json.dumps(JSON_FILES[kind], indent=1), share=0, with_images=True)
    assert list(data.captions) == NAMES
    assert list(data.images) == [str(tmp_path / f"{name}.jpg") for name in NAMES]


def test_json_lines_under_the_name_of_json_are_read(tmp_path):
    assert captions(tmp_path / "t.json", "".join(json.dumps(entry) + "\n" for entry in ENTRIES)) == NAMES


def test_another_split_is_never_taken_for_the_asked_one(tmp_path):
    with pytest.raises(ValueError, match=r"'train'.*'test'.*--data-split"):
        opened(tmp_path / "t.json", '{"test": [{"caption": "a"}]}')
    assert captions(tmp_path / "t.json", '{"test": [{"caption": "a"}]}', split="test") == ["a"]


@pytest.mark.parametrize(
    "content", ['[{"caption": "a"}', '[{"caption": "a"} {"caption": "b"}]', "[1, 2] [3]", "nul", '"a"', "[" * 9999]
)
def test_broken_json_is_one_sentence(content, tmp_path):
    with pytest.raises(ValueError, match=r"t\.json is not valid JSON"):
        opened(tmp_path / "t.json", content)


def test_a_long_list_is_read_in_pieces_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("tulip_diffusion.data.text.CHUNK", 37)
    rows = [f"caption {number}" + "x" * (number % 90) for number in range(300)]
    assert captions(tmp_path / "t.json", json.dumps([{"caption": row} for row in rows], indent=2)) == rows


def turn(speaker, value):
    return {"from": speaker, "value": value}


TALKS = {
    "as published": [turn("human", "<image>\nDescribe."), turn("gpt", "a")],
    "a system turn": [turn("system", "You are kind."), turn("human", "Describe."), turn("gpt", "a")],
    "several answers": [turn("human", "Describe."), turn("gpt", "a"), turn("human", "And?"), turn("gpt", "b")],
    "an answer first": [turn("gpt", "a"), turn("human", "Thanks.")],
    "no speakers": [{"value": "Describe."}, {"value": "a"}],
    "messages": [
        {"role": "system", "content": "x"},
        {"role": "user", "content": "y"},
        {"role": "assistant", "content": "a"},
    ],
    "the mark in the answer": [turn("human", "Describe."), turn("gpt", "<image>\na")],
}


@pytest.mark.parametrize("kind", TALKS)
def test_the_caption_of_a_conversation_is_the_models_first_turn(kind, tmp_path):
    key = "messages" if kind == "messages" else "conversations"
    entry = json.dumps({"id": 1, "image": "a.jpg", key: TALKS[kind]})
    assert captions(tmp_path / "t.json", f"[{entry}]", share=0) == ["a"]
    assert captions(tmp_path / "t.jsonl", f"{entry}\n", share=0) == ["a"]


@pytest.mark.parametrize(
    "talk",
    [[], [turn("human", "Describe.")], [turn("system", "x"), turn("human", "y")], [{"value": "y"}], "text", None, [1]],
)
def test_a_conversation_without_an_answer_is_skipped(talk, tmp_path):
    entries = [{"conversations": TALKS["as published"]}, {"conversations": talk}]
    data = opened(tmp_path / "t.json", json.dumps(entries))
    assert list(data.captions) == ["a"] and skipped(data) == ["1"]


@pytest.mark.parametrize("line", ['{"caption": "a", "caption": "b"}', '{"Caption": "a", "CAPTION": "b"}'])
def test_a_key_that_stands_twice_decides_nothing(line, tmp_path):
    data = opened(tmp_path / "t.jsonl", f'{{"caption": "fine"}}\n{line}\n')
    assert list(data.captions) == ["fine"] and skipped(data) == ["2"]


@pytest.mark.parametrize("image", ['["a.jpg"]', '{"url": "a.jpg"}', "7", "true", "null", '""', '"a\\u0000.jpg"', "{}"])
def test_an_image_that_is_no_path_skips_its_row(image, tmp_path):
    lines = f'{{"caption": "fine", "image": "a.jpg"}}\n{{"caption": "b", "image": {image}}}\n'
    data = opened(tmp_path / "t.jsonl", lines, with_images=True)
    assert list(data.captions) == ["fine"] and skipped(data) == ["2"]
    assert captions(tmp_path / "t.jsonl", lines) == ["fine", "b"]  # without images nobody looks


def test_an_image_as_datasets_writes_it_is_its_path(tmp_path):
    line = '{"caption": "a", "image": {"bytes": null, "path": "a.jpg"}}\n'
    assert list(opened(tmp_path / "t.jsonl", line, with_images=True).images) == [str(tmp_path / "a.jpg")]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_packed_file_that_is_cut_off_is_one_sentence(cut, tmp_path):
    packed = gzip.compress("".join(json.dumps(entry) + "\n" for entry in ENTRIES).encode())
    with pytest.raises((ValueError, OSError), match=r"t\.jsonl\.gz"):
        opened(tmp_path / "t.jsonl.gz", packed[:-cut])
