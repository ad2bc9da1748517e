"""`soundwave-hf app`: values, addresses, files of a Space."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from soundwave_hf import __version__, cli
from soundwave_hf.app import serve
from tests.app.tiny_page import load_tiny, save_tiny, served


REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(capsys, monkeypatch):
    def app(*words):
        code = cli.main(["app", *words])
        printed = capsys.readouterr()
        return code, printed.out.strip(), printed.err.strip()

    return app


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "0"], "`--port` is 0; expected 1 to 65535"),
        (["--port", "70000"], "`--port` is 70000; expected 1 to 65535"),
        (["--host", " "], "`--host` is ' '; expected an address"),
        (["--host", "203.0.113.7"], "The page cannot listen on 203.0.113.7, port 7860"),
        (["--host", "no.such.host.invalid"], "The page cannot listen on no.such.host.invalid"),
        (["--max-seconds", "0"], "`--max-seconds` is 0; expected 1 or more"),
        (["--max-seconds", "inf"], "`--max-seconds` is inf; expected 1 or more"),
        (["--device", "gpu"], "The device is 'gpu'"),
        (["nowhere"], "nowhere"),
    ],
)
def test_bad_values_are_one_sentence(run, words, message):
    code, _, err = run(*words)
    assert code == 2 and message in err and err.count("\n") == 0


def test_a_port_that_is_taken_is_named_before_a_model_is_loaded(run):
    with serve.listen(serve.LOOPBACK, None) as taken:
        port = serve.port_of(taken)
        code, out, err = run("--port", str(port))
        assert (code, out) == (2, "") and f"The page cannot listen on 127.0.0.1, port {port}: " in err
        with serve.listen(serve.LOOPBACK, None) as free:
            assert serve.port_of(free) > port


def test_without_gradio_it_says_how_to_install_it(run, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "gradio" else object())
    assert run()[::2] == (2, "soundwave-hf app: The page needs gradio: `pip install 'soundwave-hf[app]'`.")


def test_the_verb_hands_its_options_on(run, monkeypatch):
    seen = []
    monkeypatch.setattr(serve, "run_app", lambda **given: seen.append(given))
    run()
    run("mine", "--host", "::1", "--port", "8000", "--max-seconds", "60", "--device", "cpu", "--dtype", "bfloat16")
    options = {"folder": "mine", "host": "::1", "port": 8000, "max_seconds": 60, "device": "cpu", "dtype": "bfloat16"}
    assert seen == [{}, options]


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_a_page_that_others_reach_warns(host, is_loopback, capsys):
    serve.announce(host, 7860)
    printed = capsys.readouterr()
    assert ("Warning: the page listens on" in printed.err) is not is_loopback
    assert f"http://{f'[{host}]' if ':' in host else host}:7860 (Ctrl-C" in printed.out


def test_adapters_and_whole_checkpoints_are_told_apart(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "soundwave_hf.evaluation.shipped.load_weights", lambda *given, **placing: seen.append(given) or (None, None)
    )
    save_tiny(tmp_path / "whole")
    for folder, is_adapter in ((str(tmp_path / "whole"), False), (None, True), ("weights/soundwave-small", True)):
        serve.load_speech(folder, 60, None, None)
        assert seen[-1][1] is is_adapter


def test_examples_are_those_of_the_checkout(monkeypatch, tmp_path):
    assert [Path(path).suffix for path in serve.shipped_examples()] == [".flac"] * 6
    monkeypatch.setattr("soundwave_hf.evaluation.shipped.EXAMPLES", tmp_path)  # an installed package has none
    assert serve.shipped_examples() == []


def test_a_served_page_connects_to_nobody(tmp_path, monkeypatch):
    connected = []
    connect = socket.socket.connect

    def record(self, address):
        connected.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", record)
    speech = load_tiny(save_tiny(tmp_path / "saved"))
    with served(speech, str(tmp_path / "temporary")) as url:
        import httpx

        page = httpx.get(url, timeout=60).text
    assert "Talk to a Soundwave model" in page and "fonts.googleapis" not in page
    assert {address[0] for address in connected if isinstance(address, tuple)} == {"127.0.0.1"}


# ---- a Space ----


def test_a_space_is_written_for_a_model_of_the_hub(run, tmp_path):
    out = tmp_path / "space"
    assert run("who/what", "--write-space", str(out), "--max-seconds", "60")[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    assert (out / "requirements.txt").read_text() == f"soundwave-hf[app]=={__version__}\n"
    app = (out / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "folder='who/what'," in app and "max_seconds=60.0," in app
    front = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (front["sdk"], front["app_file"], front["models"]) == ("gradio", "app.py", ["who/what"])
    assert front["sdk_version"].startswith("6.") and len(front["short_description"]) <= 60


@pytest.mark.parametrize("given", [["--max-seconds", "nan"], ["--max-seconds", "0"], ["--dtype", "float99"]])
def test_a_space_is_not_written_with_values_that_its_page_refuses(run, tmp_path, given):
    code, _, message = run("who/what", "--write-space", str(tmp_path / "space"), *given)
    assert code == 2 and given[1] in message and not (tmp_path / "space").exists()


def test_a_space_of_the_shipped_weights_names_their_backbones(run, tmp_path):
    assert run("--write-space", str(tmp_path / "space"))[0] == 0
    front = yaml.safe_load((tmp_path / "space" / "README.md").read_text().split("---")[1])
    assert len(front["models"]) == 2 and "folder=" not in (tmp_path / "space" / "app.py").read_text()


def test_a_space_is_not_written_over_files_nor_for_a_folder_of_this_machine(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "`FOLDER`" not in run("--write-space", str(tmp_path / "mine"))[2]
    code, _, err = run("--write-space", str(tmp_path / "mine"))
    assert code == 2 and "exists and is not an empty folder" in err
    code, _, err = run(str(tmp_path / "mine"), "--write-space", str(tmp_path / "new"))
    assert code == 2 and "a Space loads its model from the hub" in err and not (tmp_path / "new").exists()
    code, _, err = run("--write-space", str(tmp_path / "new"), "--port", "8000")
    assert code == 2 and "`--port` is chosen by the Space" in err


@pytest.mark.slow
def test_the_app_of_a_space_starts_in_a_fresh_process(run, tmp_path):
    assert run("who/tiny", "--write-space", str(tmp_path / "space"))[0] == 0
    save_tiny(tmp_path / "space" / "who" / "tiny")  # in place of the hub, which tests cannot reach
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        [sys.executable, "app.py"], cwd=tmp_path / "space", env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "The page is at http://127.0.0.1:" in line:
                break
        assert lines and "The page is at" in lines[-1]
        import httpx

        assert httpx.get(lines[-1].split()[4], timeout=60).status_code == 200
        assert len(list(temporary.glob("soundwave-app-*"))) == 1
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 143
    assert list(temporary.glob("soundwave-app-*")) == []
