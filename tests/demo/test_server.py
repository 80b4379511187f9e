"""The running server, through gradio's own client and plain HTTP, as strangers would use and abuse it."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from PIL import Image

from tests.demo.test_studio import LONG, finished
from tulip_diffusion.cli import main
from tulip_diffusion.demo.app import build
from tulip_diffusion.demo.server import launch
from tulip_diffusion.demo.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def test_ten_calls_from_four_threads_each_get_their_own_prompt_and_seed(url, client, studio):
    def compare(number):
        return client.predict(f"Lower second cup number {number}. {LONG}", seed=number, steps=2, api_name="/compare")

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(compare, range(10)))
    for number, answer in enumerate(answers):
        assert (answer["status"], answer["seed"]) == ("done", number)
        expected = finished(studio, Settings(f"Lower second cup number {number}. {LONG}", seed=number, steps=2))
        for picture in answer["pictures"]:
            drawn = np.asarray(Image.open(picture["file"])).astype(int)
            assert np.array_equal(drawn, expected[picture["encoder"]])
        assert Image.open(answer["strip"]).info["tulip-diffusion"]


def test_a_cancelled_run_stops_and_frees_the_queue(client, studio):
    steps = []
    hook = studio.pipelines["CLIP"].unet.register_forward_hook(lambda *_: steps.append(1))
    job = client.submit(LONG, steps=100, api_name="/compare")
    while not steps:
        time.sleep(0.05)
    job.cancel()
    answer = client.predict("Top first red tulip.", steps=1, api_name="/compare")
    hook.remove()
    assert answer["status"] == "done"
    assert len(steps) < 60


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [("x" * 100_000, "Shorten it"), ("", "The prompt is empty"), (None, "must be text"), ("a " * 9_000, "tokens")],
    ids=["100,000 characters", "empty", "null", "9,000 tokens"],
)
def test_prompts_beyond_the_bounds_get_a_sentence(client, prompt, sentence):
    with pytest.raises(AppError, match=sentence) as told:
        client.predict(prompt, api_name="/compare")
    assert "Traceback" not in str(told.value) and "File " not in str(told.value)


@pytest.mark.parametrize(
    "prompt", ["🌷🌷 🏡", "<script>alert(1)</script>", "東京 \x00 \u202e", "(((:1.3)", "<|endoftext|>"]
)
def test_strange_prompts_get_pictures(client, prompt):
    answer = client.predict(prompt, steps=1, api_name="/compare")
    assert len(answer["pictures"]) == 3


def test_describe_answers_while_others_wait(client):
    description = client.predict(LONG, api_name="/describe")
    assert [encoder["encoder"] for encoder in description["encoders"]] == ["CLIP", "Long-CLIP", "TULIP"]
    assert description["tokens"] > 248 and LONG.rstrip().endswith(description["encoders"][1]["cannot_see"])


def test_endpoints_have_names_types_and_descriptions(client, url):
    named = client.view_api(return_format="dict")["named_endpoints"]
    assert set(named) == {"/compare", "/describe"}
    types = {p["parameter_name"]: p["python_type"]["type"] for p in named["/compare"]["parameters"]}
    assert types["prompt"] == "str" and types["seed"] == "int"
    assert "same noise" in named["/compare"]["description"]


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "../../../../etc/passwd", "/tmp"])
def test_no_file_but_the_pages_own_is_served(url, path):
    assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404)


def test_nothing_is_monitored_recorded_uploaded_or_fetched_from_elsewhere(url):
    assert httpx.get(f"{url}monitoring").status_code in (403, 404)
    page = httpx.get(url).text
    assert "fonts.googleapis.com" not in page
    answer = httpx.post(f"{url}gradio_api/upload", files={"files": ("large.bin", b"0" * 100_000)})
    assert answer.status_code >= 400


def test_with_auth_nobody_gets_in_without_the_password_and_mcp_offers_both_tools(studio, own_folder):
    pytest.importorskip("mcp", reason="gradio[mcp] is not installed")
    demo = launch(build(studio), auth=("ada", "secret"))
    try:
        assert httpx.get(f"{demo.local_url}gradio_api/info").status_code == 401
        with pytest.raises(Exception, match=r"401|[Ll]ogin|auth"):
            Client(demo.local_url, verbose=False).predict("A tulip.", api_name="/describe")
        known = Client(demo.local_url, auth=("ada", "secret"), verbose=False)
        assert known.predict("A tulip.", api_name="/describe")["tokens"] == 5
    finally:
        demo.close()
    demo = launch(build(studio), mcp=True)
    try:
        tools = {tool["name"]: tool for tool in httpx.get(f"{demo.local_url}gradio_api/mcp/schema").json()}
        assert set(tools) == {"compare", "describe"}
        assert tools["compare"]["inputSchema"]["properties"]["seed"]["type"] == "integer"
    finally:
        demo.close()


@pytest.fixture
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--device", "nope"], "got 'nope'"),
        (["--device", "cuda:77"], "Device 'cuda:77' cannot be used"),
        (["--assets", "/nowhere"], "got '/nowhere'"),
        (["--assets", "EMPTY"], "is missing"),
        (["--host", "no such host"], "Cannot listen on host 'no such host'"),
        (["--host", "203.0.113.7"], "cannot listen on host '203.0.113.7'"),
        (["--port", "99999"], "99999"),
        (["--port", "TAKEN"], "in use. Choose another with --port"),
        (["--model", "./nope", "--tulip", "EMPTY"], "got './nope'"),
        (["--model", "nobody/nothing", "--tulip", "EMPTY"], "--model nobody/nothing is no file or folder"),
        (["--tulip", "EMPTY"], "--tulip needs --model"),
        (["--auth", "ada"], "USER:PASSWORD"),
    ],
)
def test_what_cannot_work_ends_the_command_with_one_sentence_before_anything_opens(
    arguments, sentence, taken_port, assets, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "--model" not in arguments and "--assets" not in arguments:
        arguments = [*arguments, "--assets", str(assets)]
    meant = {"TAKEN": str(taken_port), "EMPTY": str(tmp_path)}
    try:
        status = main(["demo", *(meant.get(word, word) for word in arguments)])
    except SystemExit as ended:  # argparse's way
        status = ended.code
    told = capsys.readouterr()
    assert status == 2 and told.out == ""
    assert sentence in told.err and len(told.err.strip().splitlines()) == 1


def test_the_page_opens_behind_a_proxy_that_knows_nothing_of_this_machine(studio, own_folder, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.com")
    demo = launch(build(studio))
    try:
        assert httpx.get(demo.local_url, trust_env=False).status_code == 200
    finally:
        demo.close()
