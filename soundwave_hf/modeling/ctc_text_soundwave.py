"""Compares an answer's text with CTC labels.

CTC targets have one of three forms. `lower`: lower case without punctuation, a space before each word.
`lower_spelled`: the same with numbers as English words. `as_written`: the text itself, a space before each word. The
LLM writes " He was not 42." in all cases, so its tokens are compared with labels by text and not by id. Texts are
bytes here, because a token may end inside a character.
"""

import codecs
import re
import unicodedata
from functools import lru_cache

from transformers import AutoTokenizer

from .ctc_scores_soundwave import CTCFrames, CTCTexts
from .folders_soundwave import locate_backbone
from .spelled_soundwave import spell_numbers, unfinished_number


CTC_FORMS = ("lower", "lower_spelled", "as_written")
# These two, and `word_pattern`, as in processing/text_soundwave.py, which makes the targets.
JOINERS = "\u200c\u200d"  # inside words of Persian and of Indian languages
UNSEEN = dict.fromkeys(map(ord, "\u00ad\u2060\ufeff"))  # soft hyphen, word joiner, byte order mark
LABEL_TOKENS = 16  # the end of an answer that decides whether the next token has a label
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # of SentencePiece vocabularies


def ctc_form(text: str, form: str) -> str:
    """A transcript in the form of the CTC targets.

    Args: form: "lower" (lower case, with apostrophes in words as the only punctuation), "lower_spelled" (the same with
    numbers as English words) or "as_written".

    All in Unicode normal form C: "é" is one character.

    Returns: the words with a space before each; "" for no words.

    Raises: `ValueError` for another form; `ImportError` if numbers are spelled and the library `num2words` is missing.
    """
    if form == "lower_spelled":
        return ctc_form(spell_numbers(text), "lower")
    if form == "lower":
        return words_of(text.lower())
    if form == "as_written":
        return "".join(f" {word}" for word in unicodedata.normalize("NFC", text).split())
    raise ValueError(f"`ctc_text` of the config is {form!r}; expected one of {CTC_FORMS}.")


def words_of(text: str) -> str:
    """A text with a space before each word and without punctuation, except apostrophes in words."""
    return "".join(f" {word}" for word in word_pattern().findall(_plain(text)))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).translate(UNSEEN).replace("’", "'")


@lru_cache(maxsize=1)
def word_pattern() -> re.Pattern:
    """Letters, digits and their combining marks, with apostrophes inside."""
    # Python's `\w` leaves combining marks out. None is below U+0300 or, except variation selectors, above U+1FFFF.
    marks = "".join(chr(code) for code in range(0x300, 0x20000) if unicodedata.category(chr(code))[0] == "M")
    letter = rf"[^\W_][{marks}{JOINERS}]*"
    return re.compile(rf"(?:{letter})+(?:'(?:{letter})+)*")


def word_prefixes(answer: str) -> tuple[list[bytes], list[bytes]]:
    """`words_of` an unfinished answer: the texts that may continue, and those that may be complete."""
    plain = _plain(answer)
    text = words_of(answer)
    last = next(iter(reversed(list(word_pattern().finditer(plain)))), None)
    behind = plain[last.end() :] if last is not None else plain
    if not behind:
        return [text.encode()], []  # the last word may continue
    prefixes = [f"{text} ".encode()]
    if behind == "'" and text:  # inside "don't", or a closing quote
        prefixes.append(f"{text}'".encode())
    return prefixes, [text.encode()]


class CTCText:
    """Converts an LLM's tokens and answers to texts that the CTC head can score.

    Args:
        tokenizer: the LLM's tokenizer.
        form: form of the CTC targets, one of `CTC_FORMS`.

    Raises: `ValueError` for another form; `ImportError` if numbers are spelled and the library `num2words` is missing.
    """

    def __init__(self, tokenizer, form: str = "lower"):
        ctc_form("1", form)
        self.tokenizer = tokenizer
        self.form = form
        self.bytes_of = vocabulary_bytes(tokenizer)  # of each token; b"" for control tokens
        self.token_of = {}
        for token, text in enumerate(self.bytes_of):
            if text:
                self.token_of.setdefault(text, token)
        self.byte_labels = [token for token, text in enumerate(self.bytes_of) if len(text) == 1]

    def texts(self, frames: CTCFrames) -> CTCTexts:
        """Scores of texts over the frames of a clip."""
        return CTCTexts(frames, self.bytes_of, self.byte_labels)

    def writes(self, token: int) -> bool:
        """Whether a token has text. Control tokens and ids beyond the vocabulary have none."""
        return token < len(self.bytes_of) and bool(self.bytes_of[token])

    def labels(self, text: str) -> list[int]:
        """CTC labels of a transcript, the same as in training."""
        return self.tokenizer(ctc_form(text, self.form), add_special_tokens=False).input_ids

    def text_of(self, tokens: list[int]) -> str:
        """Text of an answer's tokens, without an incomplete character at the end."""
        return self._bytes_written(tokens).decode(errors="ignore")

    def ends_inside_character(self, tokens: list[int]) -> bool:
        """Whether the last token of an answer writes the first bytes of a character alone."""
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        decoder.decode(self._bytes_written(tokens[-LABEL_TOKENS:]))
        return bool(decoder.getstate()[0])

    def _bytes_written(self, tokens: list[int]) -> bytes:
        return b"".join(self.bytes_of[token] for token in tokens if self.writes(token))

    def prefixes(self, answer: str) -> tuple[list[bytes], list[bytes]]:
        """Label texts of an unfinished answer: texts that may continue, and texts that may be complete."""
        if self.form == "as_written":
            text = ctc_form(answer, self.form)
            return [(text + " " if text and answer[-1].isspace() else text).encode()], []
        if self.form != "lower_spelled":
            return word_prefixes(answer.lower())
        number = unfinished_number(answer.lower())
        return word_prefixes(spell_numbers(answer).lower()) if number is None else _number_prefixes(*number)

    def whole(self, answer: str) -> bytes:
        """Label text of a finished answer."""
        return ctc_form(answer, self.form).encode()

    def has_label(self, answer: list[int], token: int) -> bool:
        """Whether a token after an answer changes the label text otherwise than by ending its last word.

        Marks and line breaks do not, except in the form "as_written". The space before a word does, once. Of tokens
        that write a letter in parts, the last one does.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        written = decoder.decode(self._bytes_written(answer[-LABEL_TOKENS:]))
        text = decoder.decode(self.bytes_of[token])  # without an incomplete character at the end
        if any(map(str.isalnum, text)):
            return True
        if text == " ":
            return not written[-1:].isspace()
        return bool(text) and self.prefixes(written + text) not in map(self.prefixes, (written, written + " "))

    def plain_word(self, word: str) -> str:
        """A word in lower case without punctuation, for comparison."""
        return ctc_form(word, "lower").strip()

    def plain_words(self, text: str) -> list[str]:
        """The words of an answer as `plain_word` gives those of a CTC transcript: one or more for "42" or "e-mail"."""
        if self.form == "as_written":
            return [self.plain_word(word) for word in text.split()]
        return ctc_form(text, self.form).split()

    def tokens_for(self, text: bytes, at_start: bool) -> set[int]:
        """Tokens by which an answer may write a label's text: the longest that begins it, also capitalised.

        Args: at_start: whether the answer is empty, so that its first word has no space.
        """
        spellings = {text}
        if self.form != "as_written":
            head = len(text) - len(text.lstrip())
            spellings.add(text[:head] + text[head : head + 1].upper() + text[head + 1 :])
        if at_start:
            spellings |= {spelling.lstrip() for spelling in spellings}
        found = set()
        for spelling in spellings:
            ends = range(len(spelling), 0, -1)
            longest = next((self.token_of[spelling[:end]] for end in ends if spelling[:end] in self.token_of), None)
            found |= set() if longest is None else {longest}
        return found


def _number_prefixes(before: str, begun: set[str], finished: set[str]) -> tuple[list[bytes], list[bytes]]:
    """`prefixes` of an answer that ends inside a number. Args: see `unfinished_number`."""
    begin = ctc_form(before, "lower_spelled")
    texts = {begin + ctc_form(text, "lower") + " " * text.endswith(" ") for text in begun}
    kept: list[str] = []
    for text in sorted(texts, key=lambda text: (len(text), text)):
        if not text.startswith(tuple(kept)):  # otherwise it would be counted twice
            kept.append(text)
    whole = [begin + ctc_form(text, "lower") for text in finished]
    return [text.encode() for text in kept], [text.encode() for text in whole if not text.startswith(tuple(kept))]


def control_tokens(tokenizer) -> dict[int, str]:
    """The text of each control token, such as the end token, by its id."""
    added = {token: added.content for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def vocabulary_bytes(tokenizer) -> list[bytes]:
    """The text of each token as bytes, b"" for control tokens.

    Raises: `ValueError` for a word-piece vocabulary, whose tokens do not contain spaces.
    """
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    control = control_tokens(tokenizer)
    plain = {token: added.content for token, added in tokenizer.added_tokens_decoder.items()}
    decode = _byte_level if any(name and name.startswith("Ġ") for name in names) else _sentence_piece
    if decode is _sentence_piece and not any(name and name.startswith("▁") for name in names):
        raise ValueError(
            f"The tokens of {tokenizer.name_or_path or type(tokenizer).__name__} do not mark where words begin: joint "
            "decoding and word times need a byte-level or SentencePiece vocabulary."
        )
    return [
        b"" if token in control or name is None else plain[token].encode() if token in plain else decode(name)
        for token, name in enumerate(names)
    ]


def _byte_level(name: str) -> bytes:
    return b"".join(BYTE_OF[character] if character in BYTE_OF else character.encode() for character in name)


def _sentence_piece(name: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()


def _bytes_of_characters() -> dict[str, bytes]:
    """The bytes of the characters in GPT-2's byte-level vocabularies: printable bytes are written as themselves, the
    others as the characters from 256 on, in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    pairs = [(byte, byte) for byte in printable] + [(256 + place, byte) for place, byte in enumerate(others)]
    return {chr(character): bytes([byte]) for character, byte in pairs}


BYTE_OF = _bytes_of_characters()


def find_bridge(model, tokenizer=None) -> CTCText:
    """The `CTCText` of a loaded model, with the given tokenizer, or the one in the folder of the model or its LLM.

    Raises: `ValueError` if there is none.
    """
    return bridge_of(find_tokenizer(model, tokenizer), model.config.ctc_text)


def find_tokenizer(model, given=None):
    """The tokenizer of a loaded model: given, from a given processor, or in the folder of the model or its LLM.

    Raises: `ValueError` if there is none.
    """
    if given is not None:
        return getattr(given, "tokenizer", given)
    llm = getattr(model.config.text_config, "name_or_path", None) or ""
    return _find_tokenizer(model.name_or_path or "", llm)


@lru_cache(maxsize=4)
def bridge_of(tokenizer, form: str) -> CTCText:
    """The `CTCText` of a tokenizer, cached because its table takes time to build."""
    return CTCText(tokenizer, form)


@lru_cache(maxsize=4)
def _find_tokenizer(*names: str):
    for name in filter(None, names):
        try:
            folder = locate_backbone(name, local_files_only=True)
            # Without the flag, transformers asks whether to run the code that the model's config names.
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError):
            continue
    raise ValueError(
        "The CTC head's labels and the answer are compared by text, and the model's tokenizer was not found: "
        "pass `tokenizer=processor.tokenizer` to `generate`."
    )


__all__ = [
    "CTC_FORMS",
    "CTCText",
    "bridge_of",
    "control_tokens",
    "ctc_form",
    "find_bridge",
    "find_tokenizer",
    "vocabulary_bytes",
    "word_pattern",
    "word_prefixes",
    "words_of",
]
