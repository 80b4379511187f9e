"""The report: what stands in it, that it traces to records, and that a browser shows it without asking anybody."""

import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from tulip_diffusion import evaluate
from tulip_diffusion.embedded import ENCODERS
from tulip_diffusion.evaluation import plan, report
from tulip_diffusion.evaluation.prompts import prompts_of
from tulip_diffusion.evaluation.provenance import command_line, commit, read_provenance, write_provenance

MEAN = {"mean": 0.9375, "low": 0.9, "high": 0.96, "values": 64}


APART = {"all", "report", "prompts", "ablation", "finelip"}  # these need data of your own, or train models


@pytest.fixture
def results(tmp_path):
    """Two records as evaluations leave them: one alone, one with tables, provenance and a picture."""
    drawn = {"all": MEAN, "position": {"0-77": MEAN, "77-154": MEAN}, "distance": {}}
    write(tmp_path / "generation-full/generation.json", {"command": {"count": 4}, "results": {"tulip": drawn}})
    found = tmp_path / "retrieval"
    write(found / "retrieval.json", {"command": {"count": 7}, "results": {"measured": {"world-long": {"<b>": 0.5}}}})
    (found / "retrieval.md").write_text("## world-long\n\n| | R@1 |\n|---|---|\n| tulip | 50.0 |\n")
    write(found / "provenance.json", {"command": "tulip-diffusion evaluate retrieval", "commit": "abc", "seed": 2000})
    Image.new("RGB", (30, 20), "red").save(found / "retrieval.png")
    write(tmp_path / "other/settings.json", {"anything": 1})
    return tmp_path


def write(file, record):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record))


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps cells, addresses and preformatted text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.addresses, self.records = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)
        if self.open and self.open[-1] == "pre":
            self.records.append(json.loads(data))


def test_the_page_holds_tables_pictures_and_the_records_themselves(results):
    assert [section.name for section in report.write_report(results, results / "report.html")] == [
        "generation",
        "retrieval",
    ]
    page = Page((results / "report.html").read_text(encoding="utf-8"))
    assert {"tulip", "50.0"} <= set(page.cells)
    assert [record["command"]["count"] for record in page.records] == [4, 7]
    assert page.records[1]["results"]["measured"]["world-long"] == {"<b>": 0.5}
    assert all(address.startswith(("#", "data:image/webp;base64,")) for address in page.addresses)
    assert sum(address.startswith("data:") for address in page.addresses) == 1


def test_results_in_markdown_say_command_commit_and_seed_and_show_plots(results):
    report.write_report(results, results / "report.html", results / "results.md")
    text = (results / "results.md").read_text(encoding="utf-8")
    assert "command `tulip-diffusion evaluate retrieval`; commit `abc`; seed `2000`" in text
    assert re.search(r"^## Retrieval$", text, re.MULTILINE) and re.search(r"^#### world-long$", text, re.MULTILINE)
    assert "![retrieval](retrieval/retrieval.png)" in text
    assert "| tulip | 50.0 |" in text and re.search(r"^## Summary$", text, re.MULTILINE)


def test_the_summary_has_a_figure_of_every_record_and_explains_columns_and_names(results):
    write(results / "fidelity/fidelity.json", {"command": {}, "results": {"tulip": {"near": {}}}})
    shares = (("clip", 0.4), ("tulip", 0.6))
    drawn = {name: {"all": MEAN, "far references": MEAN | {"mean": share}} for name, share in shares}
    write(results / "generation-references/generation.json", {"command": {}, "results": drawn})
    report.write_report(results, results / "report.html", results / "results.md")
    text = (results / "results.md").read_text(encoding="utf-8")
    assert "|  | 225 tokens | far references |" in text
    assert "| clip | – | 0.40 |" in text and "| tulip | **0.94** | **0.60** |" in text
    assert text.count("- **far references**: Things drawn right whose colour") == 1
    assert f"- **clip**: {ENCODERS['clip'].description}." in text and "- **tulip-l**" not in text
    assert "far references" in Page((results / "report.html").read_text(encoding="utf-8")).cells


def test_a_folder_without_results_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no results"):
        report.write_report(tmp_path, tmp_path / "report.html")


def test_a_command_line_gives_the_same_options_again(parsers):
    parser = parsers["retrieval"]
    options = parser.parse_args(["--encoders", "clip", "a file.pt", "--count", "9", "--out", "some where"])
    line = command_line(parser, options)
    assert line == "tulip-diffusion evaluate retrieval --encoders clip 'a file.pt' --count 9 --out 'some where'"
    assert parser.parse_args(shlex.split(line)[3:]) == options


def test_the_commit_is_gits():
    folder = Path(evaluate.__file__).parent
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=folder)
    if head.returncode:
        pytest.skip("not a checkout")
    assert commit().split(" + ")[0] == head.stdout[:12]


@pytest.mark.parametrize("size", plan.SIZES)
def test_everything_planned_is_a_command_that_parses(size, parsers):
    commands = plan.evaluations(size, ["clip", "tulip"])
    assert {line[0] for line in commands.values()} == set(parsers) - APART
    for name, *line in commands.values():
        parsers[name].parse_args(line)


def test_all_runs_what_is_not_there_yet_and_reports_everything(parsers, family, tmp_path, capsys):
    ran = []

    def record(name):
        def run(options):
            ran.append((name, getattr(options, "count", None)))
            write(options.out / f"{name}.json", {"command": {}, "results": {}})
            write_provenance(parsers[name], options, 0.0)

        return run

    for name in set(parsers) - APART:
        parsers[name].parse_args([])  # now it has its options
        parsers[name].set_defaults(run=record(name))
    line = ["--size", "quick", "--encoders", "clip", "tulip", "--assets", str(family), "--out", str(tmp_path)]
    options = parsers["all"].parse_args(line)
    options.run(options)
    assert len(ran) == len(plan.evaluations("quick", ["clip"])) and ("retrieval", 62) in ran
    assert (tmp_path / "report.html").exists()
    announced = (
        r"quick: 14 evaluations, about \d+ minutes here: [\d,]+ denoising steps, and texts and pictures to read"
    )
    assert re.match(announced, capsys.readouterr().out)
    shutil.rmtree(tmp_path / "reading")
    ran.clear()
    options.run(options)
    assert ran == [("reading", 12)]
    ran.clear()
    found = read_provenance(tmp_path / "attention")
    write(tmp_path / "attention/provenance.json", found | {"weights": "of another family"})
    options.run(options)
    assert ran == [("attention", 4)]
    assert "--encoders clip tulip" in read_provenance(tmp_path / "reading")["command"]


def test_strips_show_the_same_prompt_under_each_encoder_with_its_share_of_details(command):
    out = command("strips", "--encoders", "clip", "tulip", "--prompts", "full", "--count", 2, "--steps", 1)
    found = json.loads((out / "strips.json").read_text())["results"]
    assert found["full-1"]["prompt"] == prompts_of("full", 2)[1].text
    assert set(found["full-1"]["right"]) == {"clip", "tulip"}
    assert Image.open(out / "full-0.png").width == Image.open(out / "full-1.png").width > 2 * 384


@pytest.mark.browser
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_browser_shows_the_page_and_asks_nobody_for_anything(results, colours, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.skip("Chromium is not installed (apt-get install chromium)")
    report.write_report(results, results / "report.html")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=executable, args=["--headless", "--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme=colours)
        asked, complaints = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.goto((results / "report.html").as_uri())
        assert page.locator("img").evaluate("image => image.naturalWidth") == 30
        assert page.locator("td", has_text="50.0").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 300) == (colours == "dark")
        browser.close()
    assert not complaints and all(url.startswith(("file:", "data:")) for url in asked)
