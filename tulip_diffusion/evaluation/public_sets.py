"""Published sets of prompts as they lie on disk, and where each set's own scorer looks for pictures.

A set is read whole or it is an error: one prompt less would change the figure. Blank lines and prompts that come twice
under the same name are the exceptions.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One prompt. `name` is unique in its set and names its pictures; `record` is the set's own entry."""

    name: str
    text: str
    record: dict[str, Any] = field(default_factory=dict)


def numbered(name: str, number: int, ending: str = ".png") -> str:
    """File of picture `number`, from 0: the first one has the plain name."""
    return f"{name}{ending}" if number == 0 else f"{name}-{number + 1}{ending}"


def plain_file(prompt: Prompt, encoder: str, number: int) -> str:
    """ENCODER/NAME.png."""
    return f"{encoder}/{numbered(prompt.name, number)}"


def no_index(prompts: Sequence[Prompt], encoder: str, pictures: int, out: Path) -> dict[str, Any]:
    """For scorers that go by the pictures' names alone."""
    return {}


@dataclass(frozen=True)
class PublicSet:
    """How one set is read and laid out.

    `read` takes the file or folder; `file` gives a picture's path below --out, of a prompt, an encoder and a number;
    `index` the JSON files that the scorer reads beside the pictures, by their paths below --out. `grid` is whether one
    file holds all pictures of a prompt, two in a row. `scorer` is the program that makes the score.
    """

    read: Callable[[Path], list[Prompt]]
    scorer: str
    file: Callable[[Prompt, str, int], str] = plain_file
    index: Callable[[Sequence[Prompt], str, int, Path], dict[str, Any]] = no_index
    grid: bool = False


def read_set(entry: str) -> tuple[str, list[Prompt]]:
    """The set and its prompts that one NAME=PATH names.

    Raises:
        ValueError: no such set, an entry without a prompt, or two prompts of one name.
        FileNotFoundError: there is nothing at the path.
    """
    name, _, path = entry.partition("=")
    if name not in PUBLIC_SETS or not path:
        raise ValueError(f"--data {entry}: give NAME=PATH, where NAME is one of {', '.join(PUBLIC_SETS)}.")
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file or folder {path}.")
    prompts: dict[str, Prompt] = {}
    for prompt in PUBLIC_SETS[name].read(Path(path)):
        if prompts.setdefault(prompt.name, prompt).text != prompt.text:
            raise ValueError(f"{path} has two different prompts called {prompt.name}.")
    if not prompts:
        raise ValueError(f"{path} holds no prompt.")
    return name, list(prompts.values())


def entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each JSON object of a file stands, and the object: of a JSON list or of JSON lines, blank ones left out.

    Raises:
        ValueError: the file is neither.
    """
    text = path.read_text(encoding="utf-8-sig")
    try:
        if text.lstrip().startswith("["):
            found = [(f"{path}, entry {number}", value) for number, value in enumerate(json.loads(text), 1)]
        else:
            lines = enumerate(text.splitlines(), 1)
            found = [(f"{path}, line {number}", json.loads(line)) for number, line in lines if line.strip()]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is neither a JSON list nor JSON lines: {error}.") from error
    for place, value in found:
        if not isinstance(value, dict):
            raise ValueError(f"{place} is a {type(value).__name__}, expected an object with a prompt.")
        yield place, value


def text_of(place: str, entry: dict[str, Any], *keys: str) -> str:
    """The prompt under the first of `keys` that `entry` has."""
    key = next((key for key in keys if key in entry), None)
    value = None if key is None else entry[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{place} has no prompt: expected a text under {' or '.join(map(repr, keys))}.")
    return value.strip()


def needed(place: str, entry: dict[str, Any], key: str) -> str:
    """The entry's value under `key`, as text.

    Raises:
        ValueError: there is none.
    """
    if key not in entry:
        raise ValueError(f"{place} has no {key!r}.")
    return str(entry[key])


def file_in(path: Path, *usual: str) -> Path:
    """`path`, or the first of its `usual` members."""
    if path.is_file():
        return path
    for member in usual:
        if found := sorted(path.glob(member)):
            return found[0]
    raise FileNotFoundError(f"{path} holds none of {', '.join(usual)}.")


def detailmaster(path: Path) -> list[Prompt]:
    """DetailMaster's prompts."""
    prompts = []
    for place, entry in entries(file_in(path, "*.json")):
        name = f"{needed(place, entry, 'dataset_target')}_{needed(place, entry, 'image_id')}"
        prompts.append(Prompt(name, text_of(place, entry, "polished_prompt"), entry))
    return prompts


def detailmaster_index(prompts: Sequence[Prompt], encoder: str, pictures: int, out: Path) -> dict[str, Any]:
    """What its scorer takes as --image_info_json, beside --image_folder OUT/ENCODER."""
    listed = [
        {"output_image_name": numbered(prompt.name, number), "image_id": prompt.name}
        for prompt in prompts
        for number in range(pictures)
    ]
    return {f"{encoder}.json": listed}


def tiif(path: Path) -> list[Prompt]:
    """Both forms of every line, numbered within their `type` in the files' order."""
    prompts, counts = [], dict[str, int]()
    for file in [path] if path.is_file() else sorted(path.glob("*.jsonl")):
        for place, entry in entries(file):
            kind = needed(place, entry, "type")
            number = counts[kind] = counts.get(kind, -1) + 1
            for form in ("short_description", "long_description"):
                name = f"{kind}/{form}/{number}"
                prompts.append(Prompt(name, text_of(place, entry, form), {"type": kind, "form": form}))
    return prompts


def tiif_file(prompt: Prompt, encoder: str, number: int) -> str:
    """Its scorer knows one picture a prompt; further ones count as further models, ENCODER-2 and so on."""
    kind, form, index = prompt.name.rsplit("/", 2)
    return f"{kind}/{numbered(encoder, number, '')}/{form}/{index}.png"


def longbench(path: Path) -> list[Prompt]:
    """LongBench-T2I's instructions."""
    found = entries(file_in(path, "instruction.jsonl", "data/instruction.jsonl"))
    return [Prompt(str(n), text_of(place, entry, "instruction"), entry) for n, (place, entry) in enumerate(found)]


def longbench_file(prompt: Prompt, encoder: str, number: int) -> str:
    """Its scorer takes the last picture of the last step below outputs/METHOD/INDEX."""
    return f"{numbered(encoder, number, '')}/{prompt.name}/step1/generated_image_1.jpg"


def text_folder(path: Path) -> list[Prompt]:
    """One prompt a .txt file, called as the file is."""
    files = sorted(file for file in path.glob("*.txt") if not file.name.startswith("._"))
    return [Prompt(file.stem, text_of(str(file), {"": file.read_text(encoding="utf-8-sig")}, "")) for file in files]


def dpg(path: Path) -> list[Prompt]:
    """DPG-Bench's prompts, one text file each."""
    return text_folder(path / "prompts" if (path / "prompts").is_dir() else path)


def geneval2(path: Path) -> list[Prompt]:
    """GenEval 2's prompts."""
    found = list(entries(file_in(path, "geneval2_data.jsonl")))
    names: dict[str, str] = {}  # a prompt that comes twice has one picture, since its scorer goes by the prompt
    for place, entry in found:
        names.setdefault(text_of(place, entry, "prompt"), str(len(names)))
    return [Prompt(names[entry["prompt"].strip()], entry["prompt"].strip(), entry) for _, entry in found]


def geneval2_file(prompt: Prompt, encoder: str, number: int) -> str:
    """ENCODER/NAME.png, with the picture's number at the folder."""
    return f"{numbered(encoder, number, '')}/{prompt.name}.png"


def geneval2_index(prompts: Sequence[Prompt], encoder: str, pictures: int, out: Path) -> dict[str, Any]:
    """What its scorer takes as --image_filepath_data: from every prompt to its picture."""
    return {
        f"{numbered(encoder, number, '')}.json": {
            prompt.record["prompt"]: str((out / geneval2_file(prompt, encoder, number)).resolve())
            for prompt in prompts
        }
        for number in range(pictures)
    }


def own(path: Path) -> list[Prompt]:
    """A folder of .txt files, a .txt file with one prompt a line, or JSON with "prompt" (or "text", "caption")."""
    if path.is_dir():
        return text_folder(path)
    if path.suffix == ".txt":
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        return [Prompt(str(number), line) for number, line in enumerate(filter(None, lines))]
    prompts = []
    for number, (place, entry) in enumerate(entries(path)):
        name = str(entry.get("id", number))
        if "/" in name or name.startswith("."):
            raise ValueError(f"{place} has the id {name!r}, which cannot be the name of a picture.")
        prompts.append(Prompt(name, text_of(place, entry, "prompt", "text", "caption"), entry))
    return prompts


def own_index(prompts: Sequence[Prompt], encoder: str, pictures: int, out: Path) -> dict[str, Any]:
    """A JSON list of every picture with its prompt."""
    listed = [
        {"image": plain_file(prompt, encoder, number), "prompt": prompt.text}
        for prompt in prompts
        for number in range(pictures)
    ]
    return {f"{encoder}.json": listed}


PUBLIC_SETS = {
    "detailmaster": PublicSet(
        detailmaster, "DetailMaster's own: YOLOE-11L, Qwen2.5-VL-7B and BLIP-ITM", index=detailmaster_index
    ),
    "tiif": PublicSet(tiif, "TIIF-Bench's eval_with_vlm.py: GPT-4o or Qwen2.5-VL-72B", tiif_file),
    "longbench-t2i": PublicSet(
        longbench, "LongBench-T2I's evaluate.py: Gemini 2.0 Flash or InternVL3-78B", longbench_file
    ),
    "lpg": PublicSet(own, "TIT-Score: a description by Qwen2.5-VL, compared by Qwen3-Embedding", index=own_index),
    "dpg": PublicSet(dpg, "DPG-Bench's compute_dpg_bench.py: mPLUG", grid=True),
    "geneval2": PublicSet(geneval2, "GenEval 2's evaluation.py: soft TIFA", geneval2_file, geneval2_index),
    "jsonl": PublicSet(own, "a program of your own", index=own_index),
}
