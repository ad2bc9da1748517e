"""Speech and subtitles in the data files of three adventure games from the 1990s, in the form that ScummVM reads.

`Flight of the Amazon Queen`, file `queen.1c`: a table of members at the start. Speech is MP3, one member for each part
of a line; subtitles are in dialogues (.DOG), cut scenes (.CUT) and a list of remarks (QUEEN2.JAS).
`Beneath a Steel Sky`, files `sky.dsk` and `sky.dnr`: numbered members, packed by RNC (method 1). Speech is 8-bit
sound; subtitles are in prefix codes. The code tables are in ScummVM's program, not in the data files.
`Drascula`: a file of 8-bit sound for each line; subtitles of all languages are in `drascula.dat`.
"""

import bisect
import re
import struct
from collections.abc import Iterator
from pathlib import Path


# ---- Flight of the Amazon Queen ----

QUEEN_HEADER = struct.Struct(">4s8sBH")  # `QTBL`, version, compression, number of members
QUEEN_MEMBER = struct.Struct(">12sBII")  # name, bundle, offset, bytes
SCRIPT_HEADER_BYTES = 20  # before the data of dialogues and cut scenes
RESPONSES = 40  # remarks with the numbers 1 to 40; descriptions of things follow
SILENT_COMMANDS = ("GD", "GM")  # the hero grabs something; no speech belongs to that part


def read_queen(path: Path) -> dict[str, bytes]:
    """Members of `queen.1c` by name.

    Raises: ValueError where the file has no table or sound that is not MP3.
    """
    data = path.read_bytes()
    magic, _, compression, count = QUEEN_HEADER.unpack_from(data)
    if magic != b"QTBL" or compression != 1:
        raise ValueError(
            f"{path} starts with {magic!r} and compression {compression}; expected b'QTBL' and 1 (MP3). "
            "Take the file of Debian's package flight-of-the-amazon-queen."
        )
    members = {}
    for number in range(count):
        name, _, offset, size = QUEEN_MEMBER.unpack_from(data, QUEEN_HEADER.size + number * QUEEN_MEMBER.size)
        members[name.rstrip(b"\0").decode("ascii")] = data[offset : offset + size]
    return members


def queen_subtitles(members: dict[str, bytes]) -> dict[str, tuple[str, str]]:
    """Text and speaker of each speech member that has a subtitle, by name without `.SB`."""
    lines: dict[str, tuple[str, str]] = {}
    for name, content in members.items():
        stem, _, kind = name.partition(".")
        script = content[SCRIPT_HEADER_BYTES:]
        found = dialogue_lines(script) if kind == "DOG" else cut_scene_lines(script, stem) if kind == "CUT" else ()
        for prefix, text in found:
            speaker = "Joe King" if kind == "DOG" and prefix.endswith("J") else stem.rstrip("0123456789")
            add_parts(lines, members, prefix, text, speaker if kind == "DOG" else "unknown")
    for prefix, text in remarks(members["QUEEN2.JAS"].decode("cp437").split("\r\n")):
        add_parts(lines, members, prefix, text, "Joe King")
    return lines


def add_parts(lines: dict, members: dict[str, bytes], prefix: str, text: str, speaker: str) -> None:
    """Give each part of a line to its speech member: `prefix` and the part's number in hexadecimal."""
    for number, part in enumerate(spoken_parts(text), start=1):
        name = f"{prefix}{number:x}".replace(" ", "0").upper()
        if part and f"{name}.SB" in members:
            lines.setdefault(name, (part, speaker))


def spoken_parts(text: str) -> list[str | None]:
    """A line cut at its commands: `*` and two characters, `*XY` with a place. None for a part without speech."""
    parts: list[str | None] = []
    start = 0
    for command in re.finditer(r"\*(?:XY.{11}|..?|$)", text):
        parts.append(None if command[0][1:3] in SILENT_COMMANDS else text[start : command.start()].strip())
        start = command.end()
    return [*parts, text[start:].strip()]


def read_string(script: bytes, offset: int, align: int = 2) -> tuple[str, int]:
    """A string with its length in front, and the offset of what follows it."""
    size = script[offset]
    offset += 1
    if not size:
        return "", offset
    text = script[offset : offset + size].decode("cp437")
    return text, (offset + size + align - 1) // align * align


def dialogue_lines(script: bytes) -> Iterator[tuple[str, str]]:
    """Prefix and text of the lines of a dialogue: the hero's (`J`) and the other person's (`P`)."""
    levels, _, key, hero_count, person_count = struct.unpack_from(">5h", script)
    person_at, _, again_at = struct.unpack_from(">3H", script, 22)
    for offset, count, who in ((32 + abs(levels) * 96, hero_count, "J"), (person_at, person_count, "P")):
        for _ in range(count):
            number = struct.unpack_from(">H", script, offset + 2)[0]
            text, offset = read_string(script, offset + 4, align=4)
            first = who == "J" and number == 0
            yield f"{key:2d}{'SSSS' if first else f'{number:4x}'}{who}", text
    for who in "PJ":  # what the two say when they meet again
        text, again_at = read_string(script, again_at)
        yield f"{key:2d}XXXX{who}", text


def cut_scene_lines(script: bytes, name: str) -> Iterator[tuple[str, str]]:
    """Prefix and text of the lines of a cut scene."""
    count, offset = abs(struct.unpack_from(">h", script, 2)[0]), struct.unpack_from(">H", script, 8)[0]
    _, offset = read_string(script, offset)  # says how the hero stands
    for number in range(1, count + 1):
        if offset >= len(script):
            return
        text, offset = read_string(script, offset)
        yield f"{name:_<5}{number:02d}", text


def remarks(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Prefix and text of the hero's remarks: 40 responses, which follow the words `on` and `to`, then descriptions."""
    responses = next(i for i in range(1, len(lines)) if lines[i - 1 : i + 1] == ["on", "to"]) + 1
    for number, text in enumerate(lines[responses : responses + RESPONSES], start=1):
        yield f"JOE{number:04d}", text
    for number, text in enumerate(lines[:responses], start=RESPONSES + 1):
        yield f"JOE{number:04d}", text


# ---- Beneath a Steel Sky ----

SKY_HEADER_BYTES = 22
SKY_SPEECH = range(50_000, 60_000)  # numbers of members with speech
SKY_TEXTS = 60_600  # first of eight members with British subtitles
SKY_SECTION_STARTS = (0, 600, 1100, 2430, 3380, 4530, 5080, 5230)  # of the speech members, above 50,000
LONGEST_SUBTITLE = 600


class SkyDisk:
    """Members of `sky.dsk` by number."""

    def __init__(self, folder: Path):
        """Args: folder: holds `sky.dsk` and its index `sky.dnr`: a count, then 8 bytes a member."""
        self.data = (folder / "sky.dsk").read_bytes()
        index = (folder / "sky.dnr").read_bytes()
        entries = (index[start : start + 8] for start in range(4, 4 + 8 * struct.unpack_from("<I", index)[0], 8))
        self.entries = {struct.unpack_from("<H", entry)[0]: entry for entry in entries}

    def member(self, number: int) -> bytes:
        """A member as it is stored.

        An entry holds the number (16 bits), the offset (24 bits; the top one says: in units of 16 bytes) and the size
        (22 bits, then two flags).
        """
        place = int.from_bytes(self.entries[number][2:5], "little")
        size = int.from_bytes(self.entries[number][5:8], "little") & 0x3FFFFF
        offset = (place & 0x7FFFFF) * (16 if place >> 23 else 1)
        return self.data[offset : offset + size]


def sky_sound(member: bytes) -> bytes:
    """8-bit unsigned samples at 11,025 Hz of a member with speech: a header of 22 bytes, then the sound, packed."""
    sound = member[SKY_HEADER_BYTES:]
    return unpack_rnc(sound) if sound.startswith(b"RNC\x01") else sound


def sky_subtitles(disk: SkyDisk, codes: dict[str, int]) -> dict[int, str]:
    """Subtitles of speech members, by number of the member; speech of the introduction has none."""
    sections = [disk.member(SKY_TEXTS + section) for section in range(len(SKY_SECTION_STARTS))]
    lines = {}
    for number in sorted(set(SKY_SPEECH) & set(disk.entries)):
        section = bisect.bisect_right(SKY_SECTION_STARTS, number - SKY_SPEECH.start) - 1
        index = number - SKY_SPEECH.start - SKY_SECTION_STARTS[section]
        try:
            lines[number] = sky_text(sections[section], index, codes)
        except (IndexError, struct.error, ValueError):
            continue  # no such line in the section
    return {number: text for number, text in lines.items() if text}


def sky_text(section: bytes, index: int, codes: dict[str, int]) -> str:
    """One subtitle of a section.

    A section has lengths of the lines in units of two bits: sums of 32 lines each, then a byte a line.
    """
    byte_lengths, texts = struct.unpack_from("<2H", section)
    blocks, rest = divmod(index, 32)
    position = sum(struct.unpack_from(f"<{blocks}H", section, 4)) if blocks else 0
    for length in section[byte_lengths + 32 * blocks :][:rest]:
        position += (length & 0x7F) << 3 if length & 0x80 else length
    return decode_text(section, 8 * texts + 2 * position, codes)


def decode_text(data: bytes, bit: int, codes: dict[str, int]) -> str:
    """Characters up to a zero, by prefix codes; the highest bit of a byte comes first.

    Raises: ValueError where no zero comes.
    """
    text, code = bytearray(), ""
    while len(text) < LONGEST_SUBTITLE:
        code += str(data[bit >> 3] >> (7 - (bit & 7)) & 1)
        bit += 1
        if code in codes:
            if not codes[code]:
                return text.decode("cp437")
            text.append(codes[code])
            code = ""
    raise ValueError(f"no end of the text within {LONGEST_SUBTITLE} characters")


def code_tables(program: bytes, fewest: int = 60) -> list[dict[str, int]]:
    """Tables of prefix codes in ScummVM's program, one for each version of the game.

    A table is a binary tree with the root first and three bytes a node: number of the left and of the right node,
    character. A leaf has no nodes; the left node stands behind its parent.
    """
    tables = []
    for start in re.finditer(rb"(?=\x01[\x02-\xff]\x00)", program):
        try:
            table = read_tree(program[start.start() : start.start() + 3 * 256])
        except ValueError:
            continue
        if len(table) >= fewest and 0 in table.values():
            tables.append(table)
    return tables


def read_tree(data: bytes) -> dict[str, int]:
    """Codes (as strings of 0 and 1) of the leaves of a tree at the start of `data`. Raises: ValueError for no tree."""
    codes: dict[str, int] = {}
    open_branches = [(0, "")]  # expected number of the node, its code
    number = 0
    while open_branches:
        expected, code = open_branches.pop()
        node = data[3 * number : 3 * number + 3]
        if expected != number or len(node) < 3:
            raise ValueError("the nodes are not in order")
        left, right, character = node
        if left == right == 0:
            codes[code] = character
        elif left == number + 1 and right > left and not character:
            open_branches += [(right, code + "1"), (left, code + "0")]
        else:
            raise ValueError(f"node {number} has the branches {left} and {right}")
        number += 1
    return codes


# ---- Drascula ----

DRASCULA_TEXTS_AT = 7_251  # in `drascula.dat`: number of languages, then the lists of texts
# The lists in their order, by the letters in front of the numbers of their sound files; the hero has none. The lists
# that follow have no speech.
DRASCULA_VOICES = {
    "": "John Hacker",
    "D": "Drascula",
    "B": "drunkard",
    "BJ": "B.J.",
    "E": "dead man",
    "I": "Igor",
    "L": "werewolf",
    "P": "piano player",
    "T": "bartender",
    "VB": "Von Braun",
}


def drascula_subtitles(data: bytes) -> dict[str, tuple[str, str]]:
    """English text and speaker of each sound file, by name without `.ALS`.

    A list of texts: their number, then for each language (English first) the size of its texts, two bytes that are
    not used, and the texts.

    Args: data: of `drascula.dat`.
    """
    languages, position = struct.unpack_from(">H", data, DRASCULA_TEXTS_AT)[0], DRASCULA_TEXTS_AT + 2
    lines = {}
    for prefix, speaker in DRASCULA_VOICES.items():
        count = struct.unpack_from(">H", data, position)[0]
        texts = padded_texts(data, position + 6, count)
        lines |= {f"{prefix}{number}": (text, speaker) for number, text in enumerate(texts) if text}
        position += 2
        for _ in range(languages):
            position += 2 + struct.unpack_from(">H", data, position)[0]
    return lines


def padded_texts(data: bytes, position: int, count: int) -> Iterator[str]:
    """Texts with their size in front, which counts its own two bytes and the zeros behind the text."""
    for _ in range(count):
        size = struct.unpack_from(">H", data, position)[0]
        yield data[position + 2 : position + size].rstrip(b"\0").decode("cp437")
        position += size


# ---- RNC, method 1 ----


class BitReader:
    """Bits of little-endian 16-bit words, lowest first, mixed with whole bytes."""

    def __init__(self, data: bytes, position: int):
        self.data, self.position = data, position
        self.bits, self.count = 0, 0
        self.fill()

    def fill(self) -> None:
        self.bits |= int.from_bytes(self.data[self.position : self.position + 2], "little") << self.count
        self.count += 16

    def drop(self, count: int) -> None:
        self.bits >>= count
        self.count -= count
        if self.count < 16:
            self.position += 2
            self.fill()

    def read(self, count: int) -> int:
        value = self.bits & ((1 << count) - 1)
        self.drop(count)
        return value

    def take(self, count: int) -> bytes:
        """Whole bytes from behind the words in use, without the one that was only looked at."""
        taken = self.data[self.position : self.position + count]
        self.position += count
        self.count -= 16
        self.bits &= (1 << self.count) - 1
        self.fill()
        return taken


def read_code_lengths(reader: BitReader) -> list[tuple[int, int, int]]:
    """Length, code and value of the codes of one table, from the lengths alone (canonical codes, lowest bit first)."""
    lengths = [reader.read(4) for _ in range(reader.read(5))]
    codes, code = [], 0
    for length in range(1, 17):
        for value, found in enumerate(lengths):
            if found == length:
                codes.append((length, int(f"{code:0{length}b}"[::-1], 2), value))
                code += 1
        code <<= 1
    return codes


def read_value(reader: BitReader, codes: list[tuple[int, int, int]]) -> int:
    for length, code, value in codes:
        if reader.bits & ((1 << length) - 1) == code:
            reader.drop(length)
            return value if value < 2 else 1 << (value - 1) | reader.read(value - 1)
    raise ValueError("RNC data hold a code that no table has: the file is damaged. Fetch it again.")


def unpack_rnc(data: bytes) -> bytes:
    """Unpack data with the header `RNC` 1: sizes, checksums, then chunks of literals and repetitions.

    Raises: ValueError where size or checksum of the result are not those of the header.
    """
    size, _, checksum = struct.unpack_from(">2IH", data, 4)
    reader, out = BitReader(data, 18), bytearray()
    reader.drop(2)
    for _ in range(data[17]):
        literals, distances, lengths = (read_code_lengths(reader) for _ in range(3))
        for left in range(reader.read(16), 0, -1):
            if count := read_value(reader, literals):
                out += reader.take(count)
            if left > 1:
                distance, length = read_value(reader, distances) + 1, read_value(reader, lengths) + 2
                repeated = bytes(out[-distance:])
                out += (repeated * (length // distance + 1))[:length]
    if len(out) != size or crc16(out) != checksum:
        raise ValueError(
            f"RNC data unpacked to {len(out)} bytes of {size} or with another checksum: the file is damaged. Fetch it."
        )
    return bytes(out)


def crc16_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
        table.append(value)
    return tuple(table)


CRC16 = crc16_table()


def crc16(data: bytes) -> int:
    """The checksum CRC-16/ARC."""
    checksum = 0
    for byte in data:
        checksum = CRC16[checksum & 0xFF ^ byte] ^ checksum >> 8
    return checksum
