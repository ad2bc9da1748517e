"""The page in a real browser: Debian's `chromium`, driven by playwright, with a tiny random model."""

import re
import shutil
import tempfile

import pytest

from soundwave_hf.app import page as page_module
from soundwave_hf.app import serve
from soundwave_hf.app import speech as speech_module
from soundwave_hf.app.html import picture_html
from soundwave_hf.evaluation.shipped import ENCODER, LLM
from tests.app.tiny_page import load_tiny, save_tiny, served, write_noise
from tests.evaluation.test_shipped import backbone_on_disk


pytestmark = pytest.mark.slow

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("There is no `chromium`: `apt-get install chromium`.", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

PATIENCE = 90_000  # ms, for a machine that does other things
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
# Faults of Gradio's own parts, which this package cannot change: its message box is a button with a button in it.
GRADIOS = {"nested-interactive"}


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    loaded = load_tiny(save_tiny(folder))
    picture_html(loaded.look(loaded.read(write_noise(folder / "first.wav", 1.0))))  # imports matplotlib
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech_module, "MOST_TOKENS", 6)  # a random model does not stop by itself
        yield loaded


@pytest.fixture(scope="module")
def address(speech):
    with tempfile.TemporaryDirectory() as temporary, served(speech, temporary) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    spoken = write_noise(tmp_path_factory.mktemp("spoken") / "spoken.wav", 4.0)
    fake = ("use-fake-device-for-media-stream", "use-fake-ui-for-media-stream", "no-sandbox")
    arguments = [f"--{name}" for name in fake] + [f"--use-file-for-fake-audio-capture={spoken}"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Opens the page in a session of its own."""
    contexts = []

    def open_page(url=address, **options):
        contexts.append(browser.new_context(permissions=["microphone"], **options))
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(url, timeout=PATIENCE)
        page.get_by_role("button", name="Transcribe").wait_for()
        page.locator("#transcript[aria-live]").wait_for(state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def clip(tmp_path) -> str:
    return write_noise(tmp_path / "clip.wav", 1.5)


def choose(page, path: str):
    page.set_input_files("#clip input[type=file]", path)
    page.locator("#clip audio").wait_for(state="attached")


def transcribe(page):
    page.get_by_role("button", name="Transcribe").click()
    page.locator("#picture img").wait_for()


def question_of(page):
    return page.get_by_role("textbox", name=re.compile("^Question"))


def ask(page, question: str):
    question_of(page).fill(question)
    page.get_by_role("button", name="Ask").click()
    playwright.expect(page.locator("#chat")).to_contain_text(question.strip(), timeout=PATIENCE)
    playwright.expect(page.locator("#answer-facts")).to_contain_text("The answer took", timeout=PATIENCE)


def scrolls_sideways(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > window.innerWidth")


def test_a_file_becomes_words_that_play_facts_and_a_picture(visit, clip, address):
    page = visit()
    choose(page, clip)
    transcribe(page)
    words = page.locator("#transcript button.word")
    assert words.count() == 6 and words.first.inner_text().startswith("w")
    facts = page.locator("#facts").inner_text()
    assert "1.5 s of sound were transcribed in" in facts and "on cpu, float32" in facts
    assert "positions are saved" in facts
    assert "CTC peaks" in page.locator("#picture img").get_attribute("alt")
    word = words.nth(5)
    word.click()
    page.wait_for_function("document.querySelector('#clip audio').currentTime > 0")
    assert page.evaluate("document.querySelector('#clip audio').currentTime") >= float(
        word.get_attribute("data-start")
    )
    others = [url for url in page.requested if not url.startswith((address, "data:", "blob:"))]
    assert others == []  # no fonts, no counters


def test_questions_and_answers_are_kept_until_another_clip_comes(visit, clip, tmp_path):
    page = visit()
    choose(page, clip)
    ask(page, "w4")
    ask(page, "w5 <b>")
    chat = page.locator("#chat").inner_text()
    assert "w4" in chat and "w5 <b>" in chat and chat.count("w5 <b>") == 1
    page.get_by_role("button", name="New talk").click()
    playwright.expect(page.locator("#chat")).not_to_contain_text("w5 <b>", timeout=PATIENCE)
    ask(page, "w6")
    transcribe(page)
    page.locator("#clip").get_by_label("Clear").click()
    playwright.expect(page.locator("#chat")).not_to_contain_text("w6", timeout=PATIENCE)
    playwright.expect(page.locator("#transcript button.word")).to_have_count(0, timeout=PATIENCE)


def test_two_people_at_once_see_their_own_talk(visit, clip, tmp_path):
    first, second = visit(), visit()
    choose(first, clip)
    choose(second, write_noise(tmp_path / "other.wav", 1.0, seed=5))
    ask(first, "w7")
    ask(second, "w8")
    assert "w8" not in first.locator("#chat").inner_text().split("\n")
    assert "w7" not in second.locator("#chat").inner_text().split("\n")
    first.get_by_role("button", name="Transcribe").click()
    second.get_by_role("button", name="Transcribe").click()
    for page, seconds in ((first, "1.5"), (second, "1.0")):
        page.locator("#picture img").wait_for()
        assert f"{seconds} s of sound were transcribed" in page.locator("#facts").inner_text()


def test_the_microphone_shows_text_while_it_runs_and_its_recording_becomes_the_clip(visit):
    page = visit()
    page.locator("#microphone").get_by_text("Record").click()
    page.wait_for_function("document.querySelector('#live .partial')?.innerText.includes('w')")
    page.wait_for_timeout(1_500)
    page.locator("#microphone").get_by_text("Stop").click()
    page.locator("#clip audio").wait_for(state="attached")
    page.wait_for_function("document.querySelector('#live .words').innerText.startsWith('w')")
    page.wait_for_function("document.querySelector('#clip audio').duration > 1")
    transcribe(page)


def test_a_second_recording_has_a_text_and_a_clip_of_its_own(visit, speech, monkeypatch):
    begun, start = [], page_module.start_talk
    monkeypatch.setattr(page_module, "start_talk", lambda *words: begun.append(start(*words)) or begun[-1])
    page = visit()
    for number in (1, 2):
        page.locator("#microphone").get_by_text("Record").click()
        page.wait_for_function("document.querySelector('#live .partial')?.innerText.includes('w')")
        page.locator("#microphone").get_by_text("Stop").click()
        page.wait_for_function("document.querySelector('#live .words')?.innerText.startsWith('w')")
        page.locator("#clip audio").wait_for(state="attached")
        playwright.expect(page.locator("#live")).to_contain_text("did not end within", timeout=PATIENCE)
        assert len(begun) == number
    assert [talk.recording for talk in begun] == [1, 2] and all(talk.is_finished for talk in begun)


def test_a_file_that_is_no_audio_gets_a_sentence_and_the_next_one_works(visit, clip, tmp_path):
    page = visit()
    (tmp_path / "notes.wav").write_text("not audio")
    choose(page, str(tmp_path / "notes.wav"))
    page.get_by_role("button", name="Transcribe").click()
    message = page.get_by_test_id("toast-body")
    playwright.expect(message).to_contain_text("notes.wav", timeout=PATIENCE)
    assert "Traceback" not in page.content() and str(tmp_path) not in message.inner_text()
    page.locator("#clip").get_by_label("Clear").click()
    choose(page, clip)
    transcribe(page)


def test_a_recording_that_is_too_long_and_no_recording_get_a_sentence(visit, tmp_path):
    page = visit()
    page.get_by_role("button", name="Transcribe").click()
    playwright.expect(page.get_by_test_id("toast-body")).to_contain_text("There is no clip yet", timeout=PATIENCE)
    choose(page, write_noise(tmp_path / "long.wav", 9.0))
    page.get_by_role("button", name="Ask").click()
    expected = "The recording lasts 9.0 s, and this page takes at most 8 s"
    playwright.expect(page.get_by_text(expected)).to_be_visible(timeout=PATIENCE)


def test_after_a_fault_of_the_model_the_next_request_works(visit, clip, speech, monkeypatch):
    generate, calls = type(speech.model).generate, []

    def breaks_once(self, *args, **options):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("broken")
        return generate(self, *args, **options)

    monkeypatch.setattr(type(speech.model), "generate", breaks_once)
    page = visit()
    choose(page, clip)
    page.get_by_role("button", name="Transcribe").click()
    playwright.expect(page.get_by_test_id("toast-body")).to_contain_text(
        "The model failed (RuntimeError)", timeout=PATIENCE
    )
    transcribe(page)


def test_a_phone_has_no_sideways_scroll_at_any_step(visit, clip):
    page = visit(**PHONE)
    assert not scrolls_sideways(page)
    choose(page, clip)
    transcribe(page)
    ask(page, "w4 " * 40)
    assert not scrolls_sideways(page)
    width = page.locator("#transcript button.word").first.bounding_box()["width"]
    assert width >= 24  # px; WCAG 2.2, target size


def test_the_keyboard_alone_is_enough(visit, clip):
    page = visit()
    choose(page, clip)  # the system's file dialog
    page.keyboard.press("Tab")
    order = []
    for _ in range(40):
        order.append(page.evaluate("document.activeElement.innerText || document.activeElement.ariaLabel || ''"))
        if order[-1].strip() == "Transcribe":
            break
        page.keyboard.press("Tab")
    assert order[-1].strip() == "Transcribe"
    page.keyboard.press("Enter")
    page.locator("#picture img").wait_for()
    for _ in range(4):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "word":
            break
    assert page.evaluate("document.activeElement.className") == "word"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the second word, which is not at 0 s
    page.wait_for_function("document.querySelector('#clip audio').currentTime > 0")
    question_of(page).focus()
    page.keyboard.type("w4")
    page.keyboard.press("Enter")
    playwright.expect(question_of(page)).to_have_value("", timeout=PATIENCE)
    assert "w4" in page.locator("#chat").inner_text()


def test_axe_finds_no_fault_that_shuts_people_out(visit, clip):
    from axe_playwright_python.sync_playwright import Axe

    page = visit()
    choose(page, clip)
    transcribe(page)
    ask(page, "w4")
    found = Axe().run(page).response["violations"]
    serious = {fault["id"] for fault in found if fault["impact"] in ("serious", "critical")}
    assert serious <= GRADIOS, [(fault["id"], fault["nodes"][0]["html"]) for fault in found]


def test_a_screen_reader_hears_what_comes(visit):
    page = visit()
    for region in ("#transcript", "#live"):
        assert page.locator(region).get_attribute("aria-live") == "polite"
    assert page.locator("#chat [aria-live]").count() >= 1
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("heading", level=1).count() == 1


def test_the_files_of_a_session_are_in_the_folder_of_the_page(visit, clip):
    page = visit()
    choose(page, clip)
    source = page.locator("#clip audio").get_attribute("src")
    assert source.split("file=")[1].startswith(tempfile.gettempdir())


def test_the_shipped_weights_transcribe_an_example(visit, monkeypatch, tmp_path):
    for name in (ENCODER, LLM):
        backbone_on_disk(name)
    monkeypatch.setattr(speech_module, "MOST_TOKENS", 60)
    shipped, _ = serve.load_speech(None, 60, None, None)
    with served(shipped, str(tmp_path)) as url:
        page = visit(url)
        page.get_by_text("sense_and_sensibility_01_austen-0880.flac").click()
        page.locator("#clip audio").wait_for(state="attached")
        transcribe(page)
        assert "young man" in page.locator("#transcript").inner_text().lower()
        assert "1,500 encoder frames" in page.locator("#facts").inner_text()
