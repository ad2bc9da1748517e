"""The page of `soundwave-hf app`: its parts, and what happens when they are used."""

import html
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import torch

from ..secret_values import hide_secrets
from ..transcribe_files import message_of
from .html import answer_html, facts_html, live_html, picture_html, text_html, transcript_html
from .speech import Clock, LiveTalk, SpeechModel, read_block, start_talk


TITLE = "Talk to a Soundwave model"
LIVE_TALKS = 4  # microphones at once; another one waits
STREAM_SECONDS = 0.5  # between two blocks of the microphone
KEPT_SECONDS = 3600  # how long the page's temporary files are kept
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}  # requests wait for each other
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
REASONS = (ValueError, TypeError, OSError, ImportError)  # errors whose message is for the user

logger = logging.getLogger(__name__)


@contextmanager
def sentences(path: str | None = None) -> Iterator[None]:
    """Shows an error as one sentence on the page. An unexpected one also goes to the log, with its traceback."""
    try:
        yield
    except REASONS as error:
        text = message_of(error, path).replace(path, Path(path).name) if path else str(error)
        raise refusal(hide_secrets(text)) from error
    except torch.OutOfMemoryError as error:
        logger.exception("Out of memory")
        raise refusal("The clip needs more memory than there is. Give a shorter one.") from error
    except Exception as error:
        logger.exception("The model failed")
        raise refusal(
            f"The model failed ({type(error).__name__}), so there is no answer. The log of the server says more. "
            "You can try again."
        ) from error


def refusal(text: str) -> gr.Error:
    return gr.Error(html.escape(text), duration=None, title="This did not work", print_exception=False)


@dataclass
class Panel:
    """A part of the page that shows something about a clip. Each session has its own."""

    path: str | None = None  # of the clip

    def show(self, path: str | None, steps: Iterator[tuple], outputs: int) -> Iterator[tuple]:
        """The steps of a request about a clip, until another clip is chosen."""
        self.path = path
        with closing(steps):
            for step in steps:
                if self.path != path:
                    yield (gr.skip(),) * outputs  # Gradio shows the last step once more at the end
                    return
                yield step

    def choose(self, path: str | None, empty: tuple) -> tuple:
        """Empties the panel for another clip. A request about the new clip may have begun before."""
        if self.path == path:
            return (gr.skip(),) * len(empty)
        self.path = path
        return empty


class Page:
    """What the page does. It holds nothing of a session: that is in `gr.State`."""

    def __init__(self, speech: SpeechModel):
        self.speech = speech

    def transcribe(self, path: str | None, hotwords: str, language: str) -> Iterator[tuple]:
        """Yield transcript, facts and picture as HTML."""
        with sentences(path):
            clip, clock = self._read(path), Clock()
            for found in self.speech.transcribe(clip, hotwords, language):
                if isinstance(found, str):
                    yield text_html(found), "", ""
            shown, taken = transcript_html(found), clock.seconds
            yield shown, facts_html(found.seconds, taken, self.speech.place), ""
            picture = self.speech.look(clip)
            facts = facts_html(found.seconds, taken, self.speech.place, self.speech.saved(picture))
            yield shown, facts, picture_html(picture)

    def ask(self, path: str | None, question: str, turns: Sequence[tuple[str, str]]) -> Iterator[tuple]:
        """Yield the chat, the turns of the talk, the question's box and facts as HTML."""
        with sentences(path):
            clip, clock = self._read(path), Clock()
            box = ""  # emptied once, so that the next question can be typed while this one is answered
            for found in self.speech.ask(clip, turns, question):
                if isinstance(found, str):
                    yield messages([*turns, (question, found)]), turns, box, ""
                    box = gr.skip()
            turns = [*turns, (question.strip(), found.text)]
            yield messages(turns), turns, box, answer_html(clock.seconds, self.speech.place, found.finished)

    def _read(self, path: str | None) -> dict:
        if not path:
            raise ValueError("There is no clip yet. Choose a file or an example, or record one.")
        return self.speech.read(path)

    def hear(self, path: str | None, talk: LiveTalk | None, recording: int, hotwords: str, language: str) -> tuple:
        """One block of the microphone. Returns: the talk, and its text as HTML.

        Args: talk: that of the recording before, if the server was behind when this recording began.
        """
        if path is None:
            return talk, live_html(talk)
        with sentences():
            samples, rate = read_block(path)
            os.unlink(path)
            if talk is None or talk.recording != recording:
                talk = start_talk(self.speech, rate, hotwords, language, recording)
            talk.hear(samples)
            return talk, live_html(talk)

    def finish(self, talk: LiveTalk | None) -> tuple:
        """The microphone stopped. Returns: the last text as HTML, and the recording as a file."""
        with sentences():
            if talk is None or talk.is_finished or not talk.blocks:  # a finished one is the recording before
                raise ValueError("The microphone gave no sound. Check that the browser may use it.")
            talk.finish()
            folder = tempfile.mkdtemp(dir=os.environ.get("GRADIO_TEMP_DIR"))
            path = os.path.join(folder, "recording.wav")
            talk.save(path)
            return live_html(talk), path


def messages(turns: Sequence[tuple[str, str]]) -> list[dict]:
    """Questions and answers for `gr.Chatbot`, which reads HTML, so that `<` is escaped."""
    shown = []
    for question, answered in turns:
        texts = {"user": question.strip() or "(The clip itself asks.)", "assistant": answered or "(no answer)"}
        shown += [{"role": role, "content": html.escape(text, quote=False)} for role, text in texts.items()]
    return shown


def close_talk(talk: LiveTalk | None):
    """The browser left: end the thread of the talk."""
    if talk is not None:
        talk.finish()


def build_page(speech: SpeechModel, name: str, examples: Sequence[str] = ()) -> gr.Blocks:
    """The page of a model. Args: name: of the model; examples: audio files to choose from."""
    page = Page(speech)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as blocks:
        gr.HTML(f"<h1>{TITLE}</h1><p>{html.escape(name)} on {html.escape(speech.place)}</p>")
        with gr.Row():
            with gr.Column(min_width=300):
                clip = add_clip(examples, speech.max_seconds)
            with gr.Column(min_width=300):
                microphone = gr.Audio(
                    **{"sources": ["microphone"], "streaming": True, "type": "filepath", "buttons": []},
                    **{"label": "Microphone, with live text", "elem_id": "microphone"},
                )
                live = gr.HTML(elem_id="live")
        with gr.Row():
            hotwords = gr.Textbox(
                **{"label": "Names and terms to favour", "info": "With commas between them.", "min_width": 300}
            )
            language = gr.Textbox(
                **{"label": "Language of the speech", "info": "Code or English name.", "min_width": 300},
                placeholder="English",
            )
        add_transcript(page, clip, hotwords, language)
        add_questions(page, clip)
        add_microphone(page, microphone, live, clip, hotwords, language)
    return blocks


def add_clip(examples: Sequence[str], max_seconds: float) -> gr.Audio:
    """The clip that is transcribed and asked about. The browser's own player plays it."""
    clip = gr.Audio(
        **{"sources": ["upload"], "type": "filepath", "editable": False, "buttons": [], "elem_id": "clip"},
        label=f"Audio file of up to {max_seconds:g} s",
        waveform_options=gr.WaveformOptions(show_recording_waveform=False),
    )
    if examples:
        gr.Examples([[path] for path in examples], [clip], label="Examples", cache_examples=False)
    return clip


def add_transcript(page: Page, clip: gr.Audio, hotwords: gr.Textbox, language: gr.Textbox):
    """The button that transcribes, and what it shows. Another clip ends the request and clears it."""
    with gr.Row():
        button = gr.Button("Transcribe", variant="primary", elem_id="transcribe")
        stop = gr.Button("Stop")
    gr.HTML("<h2>Transcript</h2><p>A word plays the clip from there.</p>")
    shown = [gr.HTML(elem_id="transcript"), gr.HTML(elem_id="facts"), gr.HTML(elem_id="picture")]
    panel = gr.State(Panel())

    def transcribe(panel: Panel, path, *options):
        yield from panel.show(path, page.transcribe(path, *options), len(shown))

    event = button.click(transcribe, [panel, clip, hotwords, language], shown, **PRIVATE, **ONE_AT_A_TIME)
    stop.click(None, cancels=[event], **PRIVATE)
    clip.change(lambda panel, path: panel.choose(path, ("", "", "")), [panel, clip], shown, queue=False, **PRIVATE)


def add_questions(page: Page, clip: gr.Audio):
    """The talk about the clip. Another clip begins a new one."""
    gr.HTML("<h2>Questions about the clip</h2>")
    turns = gr.State([])
    chat = gr.Chatbot(label="Questions and answers", elem_id="chat", render_markdown=False, height=320, buttons=[])
    question = gr.Textbox(
        **{"label": "Question", "info": "Leave it empty if the clip itself asks.", "elem_id": "question"},
        max_length=2_000,
    )
    with gr.Row():
        button = gr.Button("Ask", variant="primary", elem_id="ask")
        again = gr.Button("New talk")
    facts = gr.HTML(elem_id="answer-facts")
    panel, shown = gr.State(Panel()), [chat, turns, question, facts]
    empty = ([], [], gr.skip(), "")  # a question that is typed already stays

    def ask(panel: Panel, path, *asked):
        yield from panel.show(path, page.ask(path, *asked), len(shown))

    given = ([panel, clip, question, turns], shown)
    events = [on(ask, *given, **PRIVATE, **ONE_AT_A_TIME) for on in (button.click, question.submit)]
    clip.change(lambda panel, path: panel.choose(path, empty), [panel, clip], shown, queue=False, **PRIVATE)
    for on in (again.click, chat.clear):
        on(lambda: empty, None, shown, cancels=events, queue=False, **PRIVATE)


def add_microphone(page: Page, microphone: gr.Audio, live: gr.HTML, clip: gr.Audio, hotwords, language):
    """Live text while someone speaks. At the end the recording becomes the clip."""
    talk = gr.State(None, delete_callback=close_talk)
    # The talk is not emptied here: a block of the recording before, which is still in work, would put it back.
    recording = gr.State(0)
    microphone.start_recording(lambda number: (number + 1, ""), recording, [recording, live], queue=False, **PRIVATE)
    microphone.stream(
        page.hear,
        [microphone, talk, recording, hotwords, language],
        [talk, live],
        stream_every=STREAM_SECONDS,
        time_limit=None,
        concurrency_limit=LIVE_TALKS,
        **PRIVATE,
    )
    microphone.stop_recording(page.finish, [talk], [live, clip], concurrency_limit=LIVE_TALKS, **PRIVATE)


__all__ = ["Page", "build_page"]
