"""Files of transcripts, read back by FFmpeg where it knows the format."""

import csv
import io
import json
from fractions import Fraction

import av
import pytest

from soundwave_hf.transcripts import FORMATS, Segment, Transcript, Word, as_json, read_formats


SPOKEN = "Fish & chips <now> --> go"
TRANSCRIPT = Transcript.of_segments(
    [
        Segment(0.0, 1.5, SPOKEN),
        Segment(1.5, 2.25, ""),  # nothing said
        Segment(2.25, 3723.0046, "Of a sentence that has more than forty-two\ncharacters there are two lines."),
    ],
    seconds=3723.0046,
)


def read_by_ffmpeg(content: str, kind: str) -> list[tuple[int, int, str]]:
    """Start and end in ms and the text of each cue."""
    with av.open(io.BytesIO(content.encode()), format=kind) as file:
        (stream,) = file.streams
        assert stream.time_base == Fraction(1, 1000)
        return [
            (packet.pts, packet.pts + packet.duration, stream.codec_context.decode2(packet)[0].dialogue.decode())
            for packet in file.demux(stream)
            if packet.size
        ]


@pytest.mark.parametrize(
    ("kind", "demuxer", "spoken"),
    [("srt", "srt", "Fish & chips  -> go"), ("vtt", "webvtt", SPOKEN)],  # FFmpeg takes `<now>` of SubRip for a tag
)
def test_another_program_reads_the_cues_and_their_times(kind, demuxer, spoken):
    found = read_by_ffmpeg(FORMATS[kind](TRANSCRIPT), demuxer)
    second = "Of a sentence that has more than\nforty-two characters there are two lines."
    assert [(start, end) for start, end, _ in found] == [(0, 1500), (2250, 3_723_005)]
    assert [" ".join(text.split()) for *_, text in found] == [" ".join(spoken.split()), second.replace("\n", " ")]


def test_subrip_is_numbered_and_has_hours():
    assert FORMATS["srt"](TRANSCRIPT) == (
        "1\n00:00:00,000 --> 00:00:01,500\nFish & chips <now> -> go\n\n"
        "2\n00:00:02,250 --> 01:02:03,005\n"
        "Of a sentence that has more than forty-two\ncharacters there are two lines.\n"
    )


def test_webvtt_escapes_what_it_would_take_for_a_tag_or_a_time():
    first = FORMATS["vtt"](TRANSCRIPT).split("\n\n")[:2]
    assert first == ["WEBVTT", "00:00:00.000 --> 00:00:01.500\nFish &amp; chips &lt;now&gt; --&gt; go"]


def test_a_blank_line_in_a_text_ends_no_cue():
    spoken = Transcript.of_segments([Segment(0, 1, "one\n\ntwo\tthree ")], 1)
    assert FORMATS["srt"](spoken).endswith("one two three\n")
    assert FORMATS["tsv"](spoken) == "start\tend\ttext\n0\t1000\tone two three\n"
    assert FORMATS["txt"](spoken) == "one two three\n"


def test_a_text_without_blanks_is_broken_too():
    spoken = Transcript.of_segments([Segment(0, 1, "字" * 50)], 1)
    assert [len(line) for line in FORMATS["srt"](spoken).splitlines()[2:]] == [42, 8]


def test_columns_are_whole_milliseconds():
    rows = list(csv.DictReader(io.StringIO(FORMATS["tsv"](TRANSCRIPT)), delimiter="\t"))
    assert [(row["start"], row["end"]) for row in rows] == [("0", "1500"), ("2250", "3723005")]


def test_json_has_every_segment_and_no_field_without_a_value():
    found = json.loads(FORMATS["json"](TRANSCRIPT))
    assert found["seconds"] == 3723.005 and found["text"].startswith(f"{SPOKEN} Of a")
    assert found["segments"][1] == {"start": 1.5, "end": 2.25, "text": "", "finished": True}
    line = as_json(TRANSCRIPT, audio="a.wav", indent=None)
    assert line.count("\n") == 1 and json.loads(line) == {"audio": "a.wav", **found}


def test_silence_makes_files_without_cues():
    silence = Transcript.of_segments([Segment(0, 2, "")], 2)
    files = {name: write(silence) for name, write in FORMATS.items() if name != "json"}
    assert files == {"txt": "\n", "srt": "", "vtt": "WEBVTT\n", "tsv": "start\tend\ttext\n"}
    assert json.loads(FORMATS["json"](silence))["segments"][0]["text"] == ""


def test_no_cue_is_without_length():
    short = Transcript.of_segments([Segment(1.0001, 1.0002, "now")], 2)
    assert FORMATS["tsv"](short).splitlines()[1] == "1000\t1001\tnow"


@pytest.mark.parametrize(("start", "end"), [(1, 1), (2, 1), (-1, 1), (float("nan"), 1)])
def test_times_that_are_none_are_refused(start, end):
    for make in (Segment, lambda start, end, text: Word(text, start, end)):
        with pytest.raises(ValueError, match="expected 0 <= start < end"):
            make(start, end, "x")


def test_words_with_times_make_cues_of_two_lines():
    words = [Word(f"word{number:02}", number, number + 0.5, 0.9) for number in range(20)]
    words[12] = Word("word12")  # not aligned
    text = " ".join(word.text for word in words)
    spoken = Transcript.of_segments([Segment(0, 30, text, tuple(words), 0.8)], 30)
    # 12 words of six letters are 83 characters; the one without times stays with those before it.
    rows = [line.split("\t") for line in FORMATS["tsv"](spoken).splitlines()[1:]]
    assert [(start, end, len(text.split())) for start, end, text in rows] == [
        ("0", "11500", 13),
        ("13000", "19500", 7),
    ]
    segment = json.loads(FORMATS["json"](spoken))["segments"][0]
    assert segment["confidence"] == 0.8
    assert segment["words"][0] == {"word": "word00", "start": 0, "end": 0.5, "confidence": 0.9}
    assert segment["words"][12] == {"word": "word12", "start": None, "end": None}


def test_json_tells_words_that_nobody_said_and_segments_without_any():
    invented = Segment(0, 1, "x", (Word("x", supported=False), Word("y", 0, 1, supported=True)))
    segments = [invented, Segment(1, 2, "", ()), Segment(2, 3, "not asked")]
    found = json.loads(FORMATS["json"](Transcript.of_segments(segments, 3)))["segments"]
    assert [word["supported"] for word in found[0]["words"]] == [False, True]
    assert found[1]["words"] == [] and "words" not in found[2]


def test_words_without_any_times_are_shown_as_long_as_their_segment():
    spoken = Transcript.of_segments([Segment(1, 3, "a b", (Word("a"), Word("b")))], 3)
    assert FORMATS["tsv"](spoken).splitlines()[1] == "1000\t3000\ta b"
    later = Transcript.of_segments([Segment(1, 3, "a b", (Word("a" * 84), Word("b", 2, 2.5)))], 3)
    assert FORMATS["tsv"](later).splitlines()[1:] == [f"1000\t2000\t{'a' * 84}", "2000\t2500\tb"]


def test_a_word_with_one_time_is_refused():
    with pytest.raises(ValueError, match="'hello' has one time"):
        Word("hello", start=1.0)


def test_formats_are_named_alone_together_or_all():
    assert read_formats("srt") == ("srt",)
    assert read_formats(" .SRT, txt,srt") == ("srt", "txt")
    assert read_formats(["vtt", "tsv"]) == ("vtt", "tsv")
    assert read_formats("txt,all") == ("txt", "json", "srt", "vtt", "tsv")


@pytest.mark.parametrize(
    ("written", "hint"), [("jsn", "Did you mean `json`"), ("subrip,txt", "no format `subrip`"), ("", "no format ``")]
)
def test_an_unknown_format_is_refused_with_the_closest(written, hint):
    with pytest.raises(ValueError, match=rf"{hint}.*Choose from txt, json, srt, vtt, tsv, or `all`"):
        read_formats(written)


def test_texts_of_languages_without_spaces_are_joined_without_them():
    segments = [Segment(0, 1, "今天天气"), Segment(1, 2, "很好。"), Segment(2, 3, "Hello"), Segment(3, 4, "再见")]
    assert Transcript.of_segments(segments, 4).text == "今天天气很好。 Hello 再见"
    assert Transcript.of_segments([Segment(0, 1, "สวัสดี"), Segment(1, 2, "ครับ")], 2).text == "สวัสดีครับ"
    assert Transcript.of_segments([Segment(0, 1, "안녕"), Segment(1, 2, "하세요")], 2).text == "안녕 하세요"


def test_words_are_joined_as_in_the_text_of_their_segment():
    def shown(text: str, *words: str) -> str:
        timed = tuple(Word(word, number, number + 0.5) for number, word in enumerate(words))
        return FORMATS["tsv"](Transcript.of_segments([Segment(0, 9, text, timed)], 9)).splitlines()[1].split("\t")[2]

    assert shown("我用Python写 代码。", "我", "用", "Python", "写", "代", "码。") == "我用Python写 代码。"
    assert shown("Ann  is\nhere", "Ann", "is", "here") == "Ann is here"
    assert shown("x", "我", "很", "ok", "ja") == "我很 ok ja"  # other words than the text's
    many = tuple(Word("字", number / 10, number / 10 + 0.05) for number in range(100))
    rows = FORMATS["tsv"](Transcript.of_segments([Segment(0, 10, "字" * 100, many)], 10)).splitlines()[1:]
    assert [len(row.split("\t")[2]) for row in rows] == [84, 16]
