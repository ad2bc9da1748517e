"""Speech of games: the archives' formats on data made here, subtitles as normal text, what is kept."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import soundfile
from game_archives import (
    SkyDisk,
    code_tables,
    crc16,
    decode_text,
    drascula_subtitles,
    queen_subtitles,
    read_queen,
    sky_sound,
    sky_text,
    spoken_parts,
    unpack_rnc,
)
from game_speech import (
    Line,
    agreement,
    drascula_recordings,
    fits,
    game_words,
    manifest_row,
    plain_subtitle,
    stamp_recordings,
    warzone_recordings,
    without_loop,
    write_clips,
    write_manifest,
)
from sentences import HeldOut


KNOWN = ("what", "you", "want", "i", "had", "to", "inspect", "it", "the", "fire", "is", "on", "go", "now")
WORDS = {word: word for word in KNOWN} | {"joey": "Joey"}


# ---- Flight of the Amazon Queen ----


def string(text: str, offset: int, align: int) -> bytes:
    """A string with its length, filled up so that what follows starts at a multiple of `align`."""
    data = bytes([len(text)]) + text.encode()
    return data + bytes(-(offset + len(data)) % align)


def dialogue(key: int, hero: list[tuple[int, str]], person: list[tuple[int, str]], again: tuple[str, str]) -> bytes:
    """A .DOG member without branches: 20 bytes, 32 bytes of numbers, lines of both, lines at a second meeting."""
    parts, offsets = b"", []
    for lines in (hero, person):
        offsets.append(32 + len(parts))
        for number, text in lines:
            parts += struct.pack(">2H", 0, number)
            parts += string(text, 32 + len(parts), 4)
    offsets.append(32 + len(parts))
    for text in again:
        parts += string(text, 32 + len(parts), 2)
    numbers = struct.pack(">5h", 0, 0, key, len(hero), len(person)) + bytes(12)
    return bytes(20) + numbers + struct.pack(">3H", offsets[1], 0, offsets[2]) + bytes(4) + parts


def queen_file(path, members: dict[str, bytes], compression: int = 1):
    start = 15 + 21 * len(members)
    table, content = b"", b""
    for name, data in members.items():
        table += struct.pack(">12sBII", name.encode(), 1, start + len(content), len(data))
        content += data
    path.write_bytes(b"QTBL" + b"CEM10\0\0\0" + struct.pack(">BH", compression, len(members)) + table + content)
    return path


REMARKS = "\r\n".join(["It looks nice*03", "on", "to", "No way*14Why me?*24"]).encode()


def test_members_of_the_queen_are_found_by_name(tmp_path):
    path = queen_file(tmp_path / "queen.1c", {"A.SB": b"one", "B.SB": b"three"})
    assert read_queen(path) == {"A.SB": b"one", "B.SB": b"three"}


def test_a_queen_file_with_other_sound_is_refused(tmp_path):
    path = queen_file(tmp_path / "queen.1c", {"A.SB": b"one"}, compression=2)
    with pytest.raises(ValueError, match="compression 2; expected b'QTBL' and 1"):
        read_queen(path)


def test_a_line_is_cut_at_its_commands():
    assert spoken_parts("Howdy.*15Jump!*XY00(237,112)Bye") == ["Howdy.", "Jump!", "Bye"]
    assert spoken_parts("Take*GDthis*03") == [None, "this", ""]


def test_each_part_of_a_dialogue_gets_its_speech_member():
    # Key 2; number 10 = 0xa; part numbers from 1. `SSSS`: the hero's first words; `XXXX`: at a second meeting.
    script = dialogue(2, [(0, "Hi."), (10, "Odd.*04Even.*01")], [(6, "No.*02")], ("Again?", "Yes."))
    names = ["02SSSSJ1", "02000AJ1", "02000AJ2", "020006P1", "02XXXXP1", "02XXXXJ1", "020001P1"]
    members = {"AND1.DOG": script, "QUEEN2.JAS": REMARKS} | {f"{name}.SB": b"" for name in names}
    assert queen_subtitles(members) == {
        "02SSSSJ1": ("Hi.", "Joe King"),
        "02000AJ1": ("Odd.", "Joe King"),
        "02000AJ2": ("Even.", "Joe King"),
        "020006P1": ("No.", "AND"),
        "02XXXXP1": ("Again?", "AND"),
        "02XXXXJ1": ("Yes.", "Joe King"),
    }


def test_lines_of_a_cut_scene_count_its_steps():
    # Two steps; the strings start at 10: how the hero stands, then one for each step.
    script = bytes(20) + struct.pack(">5h", 0, -2, 0, 0, 10)
    for text in ("*FL", "*", "Oop oop!*04Go."):
        script += string(text, len(script) - 20, 2)
    members = {"C6C.CUT": script, "QUEEN2.JAS": REMARKS, "C6C__021.SB": b"", "C6C__022.SB": b""}
    assert queen_subtitles(members) == {"C6C__021": ("Oop oop!", "unknown"), "C6C__022": ("Go.", "unknown")}


def test_remarks_are_numbered_responses_first_and_descriptions_from_41():
    members = {"QUEEN2.JAS": REMARKS, "JOE00011.SB": b"", "JOE00012.SB": b"", "JOE00411.SB": b""}
    found = {name: text for name, (text, _) in queen_subtitles(members).items()}
    assert found == {"JOE00011": "No way", "JOE00012": "Why me?", "JOE00411": "It looks nice"}


# ---- Beneath a Steel Sky ----


def rnc(bits: str, inserted: list[tuple[int, bytes]], content: bytes) -> bytes:
    """RNC data. Args: bits: as they are read; inserted: whole bytes, each with the bits that are read before them."""
    bits = "00" + bits  # not used by this method
    words = [bits[i : i + 16].ljust(16, "0") for i in range(0, len(bits), 16)] + ["0" * 16] * 2
    data = [struct.pack("<H", int(word[::-1], 2)) for word in words]
    for count, literals in reversed(inserted):
        data.insert(-(-(count + 2) // 16), literals)  # behind the words that hold bits that were read
    packed = b"".join(data)
    return b"RNC\x01" + struct.pack(">2I2HBB", len(content), len(packed), crc16(content), 0, 0, 1) + packed


def number(value: int, bits: int) -> str:
    return f"{value:0{bits}b}"[::-1]


def one_code(value: int) -> str:
    """A table with one value, which has the code 0."""
    return number(value + 1, 5) + number(0, 4) * value + number(1, 4)


def packed_words() -> bytes:
    """`abc`, 7 bytes from 3 bytes before, `xyz`: 3 is value 2 with the bit 1, 7 - 2 = 5 is value 3 with 01."""
    tables = one_code(2) + one_code(2) + one_code(3)  # literals, distances - 1, lengths - 2
    first = tables + number(2, 16) + "0" + "1"
    second = first + "0" + "0" + "0" + number(1, 2) + "0" + "1"  # distance - 1 = 2: value 2 with the bit 0
    return rnc(second, [(len(first), b"abc"), (len(second), b"xyz")], b"abcabcabcaxyz")


def test_rnc_copies_literals_and_repetitions():
    assert unpack_rnc(packed_words()) == b"abcabcabcaxyz"


def test_damaged_rnc_data_are_refused():
    with pytest.raises(ValueError, match="13 bytes of 13 or with another checksum"):
        unpack_rnc(packed_words().replace(b"xyz", b"xyZ"))


def test_the_checksum_of_the_nine_digits():
    assert crc16(b"123456789") == 0xBB3D  # the published check value of CRC-16/ARC


def test_members_of_the_sky_disk_are_found_by_number(tmp_path):
    # Offset 32 as it is, and as 2 units of 16 bytes (top bit of 24); the flags above the size count for nothing here.
    (tmp_path / "sky.dsk").write_bytes(bytes(32) + b"sound")
    entries = struct.pack("<H", 50_001) + (32).to_bytes(3, "little") + (5).to_bytes(3, "little")
    entries += struct.pack("<H", 50_002) + (0x800002).to_bytes(3, "little") + (0xC00003).to_bytes(3, "little")
    (tmp_path / "sky.dnr").write_bytes(struct.pack("<I", 2) + entries)
    disk = SkyDisk(tmp_path)
    assert disk.member(50_001) == b"sound"
    assert disk.member(50_002) == b"sou"


def test_sound_follows_a_header_of_22_bytes_packed_or_not():
    assert sky_sound(bytes(22) + b"\x80\x81") == b"\x80\x81"
    assert sky_sound(bytes(22) + packed_words()) == b"abcabcabcaxyz"


CODES = {"0": 0, "10": ord("H"), "11": ord("i")}


def test_texts_are_decoded_up_to_the_zero():
    assert decode_text(bytes([0b00010110]), 3, CODES) == "Hi"
    with pytest.raises(IndexError):
        decode_text(bytes([0b11111111]), 0, CODES)


def test_lines_of_a_section_start_where_the_lengths_before_end():
    # 33 lines. Line 0 is `Hi` (10 11 0 and one bit to fill: 3 units), 31 lines of one unit, line 32 is `i` (11 0).
    bits = "101100" + "00" * 31 + "110"
    texts = int(bits.ljust(80, "0"), 2).to_bytes(10, "big")
    lengths = bytes([3] + [1] * 31 + [2])
    section = struct.pack("<3H", 6, 6 + len(lengths), 3 + 31) + lengths + texts
    assert sky_text(section, 0, CODES) == "Hi"
    assert sky_text(section, 1, CODES) == ""
    assert sky_text(section, 32, CODES) == "i"


def test_code_tables_are_found_in_a_program():
    tree = bytes([1, 2, 0, 0, 0, 0, 3, 4, 0, 0, 0, ord("H"), 0, 0, ord("i")])
    assert code_tables(b"\x01\x09\x00" + tree + b"rest", fewest=3) == [CODES]
    assert code_tables(tree[:-3], fewest=3) == []


# ---- Drascula ----


def texts_of_one_language(texts: list[str]) -> bytes:
    """Texts with their sizes: of each, filled up to a multiple of four bytes, and of all."""
    data = b""
    for text in texts:
        padding = 4 - (2 + len(text)) % 4
        data += struct.pack(">H", 2 + len(text) + padding) + text.encode() + bytes(padding)
    return struct.pack(">H", 2 + len(data)) + bytes(2) + data


def drascula_data(english: dict[str, list[str]]) -> bytes:
    """`drascula.dat` in two languages. Args: english: texts by the letters of their sound files."""
    data = bytes(7_251) + struct.pack(">H", 2)
    for prefix in ("", "D", "B", "BJ", "E", "I", "L", "P", "T", "VB"):
        texts = ["", *english.get(prefix, [])]
        data += (
            struct.pack(">H", len(texts)) + texts_of_one_language(texts) + texts_of_one_language(["Hola"] * len(texts))
        )
    return data


def test_each_sound_of_drascula_has_the_english_text_of_its_number():
    data = drascula_data({"": ["GO", "THE FIRE"], "I": ["YES, MY MASTER"], "VB": ["NOW"]})
    assert drascula_subtitles(data) == {
        "1": ("GO", "John Hacker"),
        "2": ("THE FIRE", "John Hacker"),
        "I1": ("YES, MY MASTER", "Igor"),
        "VB1": ("NOW", "Von Braun"),
    }


def test_sound_of_drascula_is_8_bit_and_may_have_no_subtitle(tmp_path):
    (tmp_path / "drascula.dat").write_bytes(drascula_data({"I": ["GO"]}))
    for name in ("I1.ALS", "S7.ALS"):
        (tmp_path / name).write_bytes(bytes([128]) * 11_025)
    (tmp_path / "I1.ALG").write_bytes(b"a picture")
    found = list(drascula_recordings(tmp_path))
    assert [(line.name, line.voice, line.subtitle) for line in found] == [
        ("drascula_I1", "Igor", "GO"),
        ("drascula_S7", "unknown", None),
    ]
    samples = found[0].samples()
    assert len(samples) == 16_000 and not samples.any()


# ---- other games ----


def ogg(seconds: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full((round(22_050 * seconds), 2), 0.25), 22_050, format="OGG")
    return file.getvalue()


def test_speech_of_warzone_is_all_sound_but_effects(tmp_path):
    with zipfile.ZipFile(tmp_path / "base.wz", "w") as archive:
        for name in ("audio/tutorial/tut1.ogg", "audio/sfx/weapons/boom.ogg", "sequenceaudio/np1.ogg", "audio/a.cfg"):
            archive.writestr(name, ogg(0.5))
    found = list(warzone_recordings(tmp_path / "base.wz"))
    assert [line.name for line in found] == ["warzone_tutorial_tut1", "warzone_sequenceaudio_np1"]
    assert len(found[0].samples()) == 8000  # two channels at 22,050 Hz became one at 16 kHz


def test_a_stamp_is_described_by_the_first_line_of_its_text(tmp_path):
    folder = tmp_path / "animals" / "birds"
    folder.mkdir(parents=True)
    for name in ("owl_desc.ogg", "owl_desc_fr.ogg", "owl.ogg", "hen_en_GB.ogg", "lost_desc.ogg"):
        (folder / name).write_bytes(b"sound")
    (folder / "owl.txt").write_text("An owl.\nfr.utf8=Un hibou.\n", encoding="utf-8")
    (folder / "hen.txt").write_text("A hen.\n", encoding="utf-8")
    found = [(line.name, line.subtitle, line.voice) for line in stamp_recordings(tmp_path)]
    assert found == [
        ("stamp_birds_owl_desc", "An owl.", "tuxpaint"),
        ("stamp_birds_hen_en_GB", "A hen.", "tuxpaint-british"),
    ]


# ---- texts ----


@pytest.mark.parametrize(
    ("subtitle", "text"),
    [
        ("What YOU want?", "What you want?"),
        ("...I had to INSPECT it...", "I had to inspect it."),
        ("The FIRE... is on, JOEY!", "The fire, is on, Joey!"),
        ("You want it... What now...?", "You want it. What now?"),
        ("it's LINC's - GO", "It's LINC's, go."),
        ('I\'VE the "fire",', "I've the fire."),
        ("<CRUNCH>", None),
        ("I HAD A FIRE, JOEY", "I had a fire, Joey."),
        ("Plan A is on", "Plan A is on."),
        ("24 Hours", None),
        ("`FIRE EXIT.'", None),
        ("...", None),
    ],
)
def test_a_subtitle_is_written_as_normal_text(subtitle, text):
    assert plain_subtitle(subtitle, WORDS) == text


def test_names_are_spelled_as_the_game_spells_them_inside_sentences():
    words = game_words(["Ask Hobbins now.", "Here is Hobbins.", "HOBBINS!"], {"now": "now"})
    assert plain_subtitle("It's HOBBINS.", words) == "It's Hobbins."


def test_a_loop_after_the_words_is_no_disagreement():
    assert without_loop(["go", "now.", "Go", "now.", "Go"], 1) == ["go", "now."]
    assert without_loop(["no", "no", "no"], 3) == ["no", "no", "no"]
    assert without_loop(["What", "you", "want?", "What", "yo"], 1) == ["What", "you", "want?"]
    assert agreement("I had to inspect it.", "I had to inspect it. I had to") == 1.0
    assert agreement("You want it, do you?", "You want it, do you?") == 1.0  # ends as it starts
    assert agreement("I had to inspect it now.", "I had two inspect it.") == pytest.approx(4 / 6)
    assert agreement("Foster?", "") == 0.0


def test_a_text_must_fit_the_length_of_the_clip_and_be_of_known_words():
    assert fits("What you want?", 1.0, WORDS)  # 14 characters a second
    assert not fits("What you want?", 0.4, WORDS)  # 35
    assert not fits("What you want?", 7.0, WORDS)  # 2
    assert not fits("Chunga unga what.", 1.5, WORDS)


# ---- clips and rows ----


def line(name: str, subtitle: str | None, seconds: float = 1.0, level: int = 100) -> Line:
    sound = bytes([128, level] * round(11_025 * seconds / 2))
    return Line(name, "game-sky", "unknown", subtitle, bytes(22) + sound)


@pytest.mark.parametrize(
    ("subtitle", "heard", "logprob", "kept"),
    [
        ("What you want?", None, None, ("What you want?", "subtitle", None)),
        ("What you want?", "what you had", -0.5, ("What you want?", "subtitle", 0.667)),
        ("What you want?", "a star", -2.9, ("What you want?", "subtitle", 0.0)),
        ("What you want?", "a star", -3.1, None),
        (None, "what you want", -0.1, ("What you want.", "whisper-base", None)),
        (None, "what you want", -0.4, None),
        (None, None, None, None),
    ],
)
def test_which_clips_are_kept(subtitle, heard, logprob, kept):
    found = {"clip": "sky_1", "heard": heard, "logprob": logprob} if heard else None
    row = manifest_row(line("sky_1", subtitle), 1.0, found, WORDS)
    assert (row and (row["text"], row["label"], row["agreement"])) == kept


def test_a_text_that_no_actor_read_is_kept_only_where_whisper_heard_it():
    stamp = Line("stamp_1", "game-stamps", "tuxpaint", "The fire.", b"")
    assert manifest_row(stamp, 1.0, None, WORDS) is None
    assert manifest_row(stamp, 1.0, {"heard": "fire", "logprob": -0.1}, WORDS) is None
    assert manifest_row(stamp, 1.0, {"heard": "The fire", "logprob": -0.1}, WORDS)["text"] == "The fire."


def test_clips_are_written_once_and_held_out_texts_get_no_row(tmp_path):
    lines = [
        line("sky_1", "What you want?", level=90),
        line("sky_2", "What you want?", level=90),  # the same recording
        line("sky_3", "I had to INSPECT it."),
        line("sky_4", "GO now.", seconds=0.4),
    ]
    write_clips(tmp_path, lines)
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == ["sky_1.flac", "sky_3.flac"]
    (tmp_path / "heard.jsonl").write_text(json.dumps({"clip": "sky_1", "heard": "What you want?", "logprob": -0.2}))
    rows = write_manifest(tmp_path, lines, WORDS, HeldOut(["i had to inspect it"]))
    assert rows == [json.loads(text) for text in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert rows == [
        {
            "audio": "clips/sky_1.flac",
            "text": "What you want?",
            "seconds": 1.0,
            "source": "game-sky",
            "voice": "unknown",
            "label": "subtitle",
            "logprob": -0.2,
            "agreement": 1.0,
        }
    ]


def test_eight_bit_sound_is_centred_at_128():
    samples = Line("sky_1", "game-sky", "unknown", None, bytes(22) + bytes([192]) * 11_025).samples()
    assert len(samples) == 16_000
    assert np.median(samples) == pytest.approx(0.5, abs=1e-3)
