"""Instruction rows (Stage III): requests about a clip whose answers are known by construction.

Four kinds: transcribe (many wordings), questions that code answers from the transcript, who speaks, and spoken
questions. Answers are full sentences; some quote the transcript first, which lets a small language model read before
it replies.
"""

import random
import re
from collections.abc import Callable

from sentences import TENS, UNITS, number_words, ordinal_words


NUMBER_WORDS = frozenset([*UNITS, *TENS, "hundred", "thousand", "million", "billion", "oh"])

ASR_QUESTION = "What does the person say?"

TRANSCRIBE_REQUESTS = (
    ASR_QUESTION,
    "What is said in this clip?",
    "What is the speaker saying?",
    "What do you hear?",
    "What was said?",
    "What are the words spoken here?",
    "What words does the person say?",
    "What did the person say?",
    "What does the voice say?",
    "What is being said?",
    "Transcribe the speech.",
    "Transcribe this audio.",
    "Transcribe what you hear.",
    "Transcribe this recording, please.",
    "Please transcribe the clip.",
    "Please write a transcript.",
    "Give me the transcript.",
    "Give a transcription of this audio.",
    "Provide a transcript of the recording.",
    "Produce the transcript of this speech.",
    "Write down what is said.",
    "Write down the spoken words.",
    "Write out what the person says.",
    "Write the words that you hear.",
    "Please write down what you hear.",
    "Put the speech into text.",
    "Turn this speech into text.",
    "Convert the speech to text.",
    "Convert this audio into written words.",
    "Could you transcribe this?",
    "Could you write down what is said?",
    "Could you tell me what the person says?",
    "Can you transcribe the audio?",
    "Can you tell me what is said?",
    "Can you write out this recording?",
    "Would you transcribe this for me?",
    "Would you please write down these words?",
    "Tell me what the speaker says.",
    "Tell me what is said in the recording.",
    "Tell me the exact words.",
    "Repeat what the person says.",
    "Repeat the words of the speaker.",
    "Listen and write what you hear.",
    "Listen to the clip and transcribe it.",
    "Recognize the speech.",
    "Perform speech recognition on this clip.",
    "I need the text of this recording.",
    "I would like a transcript of this clip.",
    "I cannot listen to it now. What does it say?",
    "Show me the speech as text.",
    "Type out the words of this message.",
    "Spell out what was said, word for word.",
    "Report the exact words of the speaker.",
    "Read me the words of this audio clip.",
)
SPOKEN_QUESTION_REQUESTS = (
    "",  # the clip alone
    "",
    "",
    "Answer the question.",
    "Answer the spoken question.",
    "Please reply to the speaker.",
    "What is the answer to this question?",
)


def spoken_words(text: str) -> list[str]:
    """Words of a transcript without punctuation, in their own spelling: "Hello, Mr. Fox!" -> Hello, Mr, Fox."""
    return re.findall(r"[^\W_]+(?:['’.-][^\W_]+)*", text)


def quoted(text: str) -> str:
    """The opening of an answer that quotes the transcript."""
    return f'The speaker says: "{text.strip()}"'


# ---- questions that code answers from the transcript ----
# Each: (transcript, words of other clips, random numbers) -> (question, answer), or None where it does not fit.


def first_word(text: str, others: list[str], rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        ["What is the first word?", "Which word does the speaker say first?", "How does the clip begin?"]
    )
    return question, f'The first word is "{spoken_words(text)[0].lower()}".'


def last_word(text: str, others: list[str], rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        ["What is the last word?", "Which word does the speaker say last?", "With which word does it end?"]
    )
    return question, f'The last word is "{spoken_words(text)[-1].lower()}".'


def nth_word(text: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    words = spoken_words(text)
    if len(words) < 3:
        return None
    place = rng.randint(2, min(4, len(words)))
    question = f"What is the {ordinal_words(place)} word?"
    return question, f'{quoted(text)} The {ordinal_words(place)} word is "{words[place - 1].lower()}".'


def says_word(text: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    said = [word.lower() for word in spoken_words(text)]
    candidates = said if rng.random() < 0.5 else [word for word in others if word not in said]
    candidates = [word for word in candidates if len(word) > 3]
    if not candidates:
        return None
    word = rng.choice(candidates)
    frame = rng.choice(
        ['Does the speaker say the word "{0}"?', 'Is the word "{0}" said?', 'Do you hear the word "{0}"?']
    )
    answer = f'Yes, the speaker says "{word}".' if word in said else f'No, the speaker does not say "{word}".'
    return frame.format(word), f"{quoted(text)} {answer}" if rng.random() < 0.5 else answer


def word_count(text: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    count = len(spoken_words(text))
    if count > 8:
        return None
    question = rng.choice(["How many words are said?", "How many words does the speaker say?", "Count the words."])
    noun = "word" if count == 1 else "words"
    return question, f"{quoted(text)} That is {number_words(count)} {noun}."


def is_question(text: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    asks = text.rstrip().endswith("?")
    if not asks and rng.random() < 0.75:  # few sentences are questions; keep yes and no about even
        return None
    question = rng.choice(
        ["Is this a question?", "Does the speaker ask a question?", "Is the person asking something?"]
    )
    answer = "Yes, the speaker asks a question." if asks else "No, the speaker does not ask a question."
    return question, f"{quoted(text)} {answer}"


def mentions_number(text: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    words = [word.lower() for word in spoken_words(text)]
    said = [all(part in NUMBER_WORDS for part in word.split("-")) for word in words]
    # "one" is often no number ("no one"), and neighbours are parts of a longer number.
    if "one" in words or any(first and second for first, second in zip(said, said[1:], strict=False)):
        return None
    numbers = [word for word, is_number in zip(words, said, strict=True) if is_number]
    if not numbers and rng.random() < 0.85:
        return None
    listed = numbers[0] if len(numbers) == 1 else f"{', '.join(numbers[:-1])} and {numbers[-1]}" if numbers else ""
    question = rng.choice(
        ["Which numbers are mentioned?", "Does the speaker say a number?", "What numbers do you hear?"]
    )
    if not numbers:
        return question, "The speaker says no number."
    return question, f"{quoted(text)} The {'number is' if len(numbers) == 1 else 'numbers are'} {listed}."


def which_key(text: str, others: list[str], rng: random.Random) -> tuple[str, str] | None:
    """Telephone menus: the key of the first option."""
    found = re.match(r"(?:please )?press (\w+|the \w+ key) to ([^,.]+)[,.]", text, re.IGNORECASE)
    turned = re.match(r"to ([^,.]+), press (\w+|the \w+ key)[,.]", text, re.IGNORECASE)
    if not found and not turned:
        return None
    key, action = found.groups() if found else reversed(turned.groups())
    return f"Which key do I press to {action}?", f"{quoted(text)} To {action}, press {key}."


def quote(text: str, others: list[str], rng: random.Random) -> tuple[str, str]:
    question = rng.choice(
        ["Quote the speaker.", "What is the message?", "What are you told?", "What does the recording say?"]
    )
    return question, quoted(text)


TRANSCRIPT_QUESTIONS: tuple[Callable[[str, list[str], random.Random], tuple[str, str] | None], ...] = (
    first_word, last_word, nth_word, says_word, says_word, word_count, is_question, mentions_number, which_key, quote,
)  # fmt: skip


# ---- who speaks ----


WHO_SPEAKS = ("Who speaks, a man or a woman?", "Is a man or a woman speaking?", "Is the speaker a woman or a man?")
WOMEN = ("slt", "allison", "pico-us", "pico-gb")
MEN = ("rms", "joe")  # not kal16: its pitch is raised by up to 1.4, and one cannot always tell


def speaker_of(voice: str) -> str | None:
    """Return "woman" or "man", or None for an unknown voice. A mixture of Kokoro's: `af_sky:0.40+af_bella:0.60`.

    The second letter of Kokoro's names tells: `af_sky` is an American woman, `bm_lewis` a British man.
    """
    if voice in WOMEN + MEN:
        return "woman" if voice in WOMEN else "man"
    kinds = {part[1] for part in voice.split("+") if re.match("[ab][fm]_", part)}
    return {"f": "woman", "m": "man"}[kinds.pop()] if len(kinds) == 1 else None


def who_speaks_rows(clips: list[dict], rng: random.Random, most: int) -> list[dict]:
    """Whether a woman or a man speaks, for up to `most` clips of known voices; as many women as men."""
    speakers = {clip["audio"]: speaker_of(clip.get("voice") or "") for clip in clips}
    by_speaker = [[clip for clip in clips if speakers[clip["audio"]] == one] for one in ("woman", "man")]
    count = min(most // 2, *map(len, by_speaker))
    rows = []
    for clip in (clip for own in by_speaker for clip in rng.sample(own, count)):
        question, answer = rng.choice(WHO_SPEAKS), f"A {speakers[clip['audio']]} speaks."
        rows.append({**clip, "question": question, "answer": answer, "task": "who_speaks"})
    return rows


# ---- rows ----


def transcribe_rows(clips: list[dict], rng: random.Random) -> list[dict]:
    """A transcription request for each clip; the standard wording for most of them, the others by chance."""
    rows = []
    for clip in clips:
        question = ASR_QUESTION if rng.random() < 0.7 else rng.choice(TRANSCRIBE_REQUESTS)
        rows.append({**clip, "question": question, "answer": clip["text"], "task": "transcribe"})
    return rows


def transcript_question_rows(clips: list[dict], rng: random.Random) -> list[dict]:
    """A question for each clip, of the kinds that fit its transcript."""
    others = sorted({word.lower() for clip in clips for word in spoken_words(clip["text"])})
    rows = []
    for clip in clips:
        for make in rng.sample(TRANSCRIPT_QUESTIONS, len(TRANSCRIPT_QUESTIONS)):
            made = make(clip["text"], others, rng)
            if made is not None:
                rows.append({**clip, "question": made[0], "answer": made[1], "task": make.__name__})
                break
    return rows


def last_word_rows(clips: list[dict], rng: random.Random) -> list[dict]:
    """The question about the last word for each clip, whose transcript must have a word."""
    pairs = [last_word(clip["text"], [], rng) for clip in clips]
    return [
        {**clip, "question": question, "answer": answer, "task": "last_word"}
        for clip, (question, answer) in zip(clips, pairs, strict=True)
    ]


def spoken_question_rows(clips: list[dict], rng: random.Random) -> list[dict]:
    """Spoken questions: the clip alone or with a short request; the answer is the clip's own."""
    return [{**clip, "question": rng.choice(SPOKEN_QUESTION_REQUESTS), "task": "spoken_question"} for clip in clips]


def instruction_rows(train: list[dict], questions: list[dict], rng: random.Random, each: int = 1200) -> list[dict]:
    """All rows in random order: `each` questions about clips, four times as many transcripts, every spoken question.

    If the voices are known, up to a tenth of the questions about clips ask who speaks.

    A large part are transcripts, so that a model which learns to answer does not forget to write down. Of the
    telephone prompts, which are short and few, each comes five times.

    Args: train: rows of clips with a transcript.
          questions: rows of spoken questions with `answer`.
    """
    spoken = [clip for clip in train if clip["text"]]
    human = [clip for clip in spoken if clip["source"] == "human-prompt"]
    others = [clip for clip in spoken if clip["source"] != "human-prompt"]
    asked = rng.sample(others, min(each, len(others)))
    places = {clip["audio"] for clip in asked}
    others = [clip for clip in others if clip["audio"] not in places]
    rows = transcribe_rows(5 * human + rng.sample(others, min(4 * each, len(others))), rng)
    about_voices = who_speaks_rows(human + asked, rng, each // 10)
    places = {row["audio"] for row in about_voices}
    rows += about_voices
    rows += transcript_question_rows([clip for clip in human + asked if clip["audio"] not in places], rng)
    rows += spoken_question_rows(questions, rng)
    return rng.sample(rows, len(rows))
