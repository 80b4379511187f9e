"""What a set's own scorer has written, placed by prompt, by kind and by token position."""

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tulip_diffusion.tokenization import load_tokenizer

from .prompts import POSITIONS, bin_means, pick
from .public_sets import PUBLIC_SETS, Prompt, entries
from .records import Mean, mean_over

LITERAL = "character attributes"  # of DetailMaster: they stand word for word in the prompt
FORMS = ("short_description", "long_description")  # of TIIF: the same content twice


@dataclass(frozen=True)
class Score:
    """One figure of a scorer. `position` is the tokens of the prompt up to what was asked, None where unknown."""

    prompt: str
    value: float
    kind: str = ""
    position: int | None = None


def positions_in(text: str) -> Callable[[str], int | None]:
    """Finds phrases in a prompt: the tokens of the prompt up to the phrase's end, BOS and EOS included.

    None for a phrase that does not stand literally in the prompt; case does not count.
    """
    tokenizer = load_tokenizer()

    def position(phrase: str) -> int | None:
        found = (
            re.search(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text, re.IGNORECASE) if phrase.strip() else None
        )
        return len(tokenizer(text[: found.end()], verbose=False).input_ids) if found else None

    return position


def detailmaster_scores(file: Path, prompts: Sequence[Prompt], files: Mapping[str, Prompt]) -> Iterator[Score]:
    """Its …_detail_score.json: every attribute of a character stands literally in the prompt; the rest has none."""
    by_name = {prompt.name: prompt for prompt in prompts}
    for place, entry in entries(file):
        asked = entry.get("prompt_info", {})
        name = f"{asked.get('dataset_target')}_{asked.get('image_id')}"
        prompt = known(name, by_name, place)
        position = positions_in(prompt.text)
        for character in entry.get("character_attributes_detail_score", []):
            for found in character["attributes_list"]:
                yield Score(name, float(found["score"]), LITERAL, position(found["attribute"]))
        located = entry.get("character_location_all"), entry.get("character_location_success")
        yield from counted(name, "character locations", *located)
        for kind, count in entry.get("scene_attributes_all", {}).items():
            yield from counted(name, kind, count, entry["scene_attributes_success"][kind])


def counted(name: str, kind: str, count: int | None, right: int | None) -> Iterator[Score]:
    """Scores of `count` questions of one kind, the first `right` of them 1 and the others 0."""
    for number in range(count or 0):
        yield Score(name, float(number < (right or 0)), kind)


def known(name: str, prompts: Mapping[str, Prompt], place: str) -> Prompt:
    """The prompt called `name`.

    Raises:
        ValueError: the set has none of that name.
    """
    if name not in prompts:
        raise ValueError(f"{place} scores {name!r}, which is no prompt of this set.")
    return prompts[name]


def longbench_scores(file: Path, prompts: Sequence[Prompt], files: Mapping[str, Prompt]) -> Iterator[Score]:
    """Its eval_….jsonl: one line a prompt with a score of 0 to 5 for each dimension, and two lines of summary."""
    by_name = {prompt.name: prompt for prompt in prompts}
    for place, entry in entries(file):
        if "idx" in entry:
            name = known(str(entry["idx"]), by_name, place).name
            for found in entry["objects"]:
                if int(found["score"]) >= 0:  # -1: the judge's answer could not be read
                    yield Score(name, float(found["score"]), found["category_name"])


def dpg_scores(file: Path, prompts: Sequence[Prompt], files: Mapping[str, Prompt]) -> Iterator[Score]:
    """Its …_results.txt: "path, one score for each picture, their mean" on a line, and a summary behind."""
    by_name = {prompt.name: prompt for prompt in prompts}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        path, *figures = [part.strip() for part in line.split(", ")]
        if len(figures) >= 2 and all(re.fullmatch(r"[\d.]+", figure) for figure in figures):
            name = known(Path(path).name.split(".")[0], by_name, f"{file}, line {number}").name
            yield Score(name, float(figures[-1]))


def geneval2_scores(file: Path, prompts: Sequence[Prompt], files: Mapping[str, Prompt]) -> Iterator[Score]:
    """Its score_lists.json: a list of scores for each prompt, in the set's order or by the prompt; one an atom."""
    lists = json.loads(file.read_text(encoding="utf-8"))
    by_text = {prompt.record["prompt"]: prompt for prompt in prompts}
    if isinstance(lists, list) and len(lists) != len(prompts):
        raise ValueError(f"{file} has scores for {len(lists)} prompts, expected {len(prompts)}.")
    pairs = lists.items() if isinstance(lists, dict) else zip(by_text, lists, strict=True)
    for text, values in pairs:
        prompt = known(text, by_text, str(file))
        for kind, value in zip(prompt.record["skills"], values, strict=True):
            yield Score(prompt.name, float(value), kind)


def table_scores(file: Path, prompts: Sequence[Prompt], files: Mapping[str, Prompt]) -> Iterator[Score]:
    """Any scorer: a CSV with the columns image and score, or JSON with these keys; a column "kind" if you like.

    `image` is a picture's path below --out.
    """
    if file.suffix == ".csv":
        with file.open(encoding="utf-8-sig", newline="") as lines:
            rows: list[tuple[str, dict[str, Any]]] = [
                (f"{file}, row {number}", row) for number, row in enumerate(csv.DictReader(lines), 1)
            ]
    else:
        rows = list(entries(file))
    for place, row in rows:
        if not {"image", "score"} <= row.keys():
            raise ValueError(f"{place} must have an image and a score, got {', '.join(row) or 'nothing'}.")
        prompt = known(str(row["image"]), files, place)
        yield Score(prompt.name, float(row["score"]), row.get("kind") or "")


SCORES: dict[str, Callable[[Path, Sequence[Prompt], Mapping[str, Prompt]], Iterator[Score]]] = {
    "detailmaster": detailmaster_scores,
    "longbench-t2i": longbench_scores,
    "dpg": dpg_scores,
    "geneval2": geneval2_scores,
}


def read_scores(name: str, file: Path, prompts: Sequence[Prompt], encoder: str, pictures: int) -> list[Score]:
    """The scores in `file` of one encoder's pictures, in the layout that the scorer of set `name` writes.

    Raises:
        ValueError: the file is damaged, scores something else, or holds no score.
    """
    numbers = range(pictures)
    files = {PUBLIC_SETS[name].file(prompt, encoder, number): prompt for prompt in prompts for number in numbers}
    try:
        found = list(SCORES.get(name, table_scores)(file, prompts, files))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not what the scorer of {name} writes: {error!r}.") from error
    if not found:
        raise ValueError(f"{file} holds no score.")
    return found


def summarize_scores(scores: Sequence[Score], prompts: Sequence[Prompt], tokens: Mapping[str, int]) -> dict[str, Any]:
    """Means over all, by kind, by the prompts' tokens, by position in them, and by form where a set has two.

    `tokens` are those of each prompt by its name. Intervals are drawn over prompts.
    """
    numbers = {prompt.name: number for number, prompt in enumerate(prompts)}
    values, groups = [score.value for score in scores], [numbers[score.prompt] for score in scores]

    def mean_of(chosen: Iterable[bool]) -> Mean | None:
        inside = [index for index, is_in in enumerate(chosen) if is_in]
        return mean_over(pick(values, inside), pick(groups, inside))

    kinds = list(dict.fromkeys(score.kind for score in scores if score.kind))
    forms = {prompt.name: prompt.record.get("form", "") for prompt in prompts}
    summary: dict[str, Any] = {
        "all": mean_over(values, groups),
        "kind": {kind: mean_of(score.kind == kind for score in scores) for kind in kinds},
        "tokens": bin_means([tokens[score.prompt] for score in scores], values, groups, POSITIONS),
        "position": bin_means([score.position for score in scores], values, groups, POSITIONS),
    }
    placed = [score for score in scores if score.kind == LITERAL]
    if placed:
        summary["placed"] = sum(score.position is not None for score in placed) / len(placed)
    if any(forms.values()):
        short, long = (mean_of(forms[score.prompt] == form for score in scores) for form in FORMS)
        summary |= {"short": short, "long": long}
        summary["fall"] = None if short is None or long is None else short.mean - long.mean
    return summary
