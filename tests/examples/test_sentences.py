"""Texts: how a sentence is cleaned for reading aloud, and that the lists are the same at every call."""

import random
import re

import pytest
from human_speech import held_out_texts
from sentences import (
    clean_sentence,
    fortune_sentences,
    menu_prompt,
    normalized,
    number_words,
    ordinal_words,
    phone_prompts,
    spell_numbers,
    split_sentences,
    without,
    year_words,
)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (1005, "one thousand five"),
        (20_117, "twenty thousand one hundred seventeen"),
        (3_000_001, "three million one"),
    ],
)
def test_numbers_in_words(number, words):
    assert number_words(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "first"), (2, "second"), (12, "twelfth"), (20, "twentieth"), (21, "twenty-first"), (100, "one hundredth")],
)
def test_ordinals_in_words(number, words):
    assert ordinal_words(number) == words


@pytest.mark.parametrize(
    ("year", "words"),
    [
        (1984, "nineteen eighty-four"),
        (1905, "nineteen oh five"),
        (1900, "nineteen hundred"),
        (2007, "two thousand seven"),
    ],
)
def test_years_in_words(year, words):
    assert year_words(year) == words


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Collect $200 now.", "Collect two hundred dollars now."),
        ("It cost $3 million.", "It cost three million dollars."),
        ("A 50% rise", "A fifty percent rise"),
        ("The 2nd of 1,500 calls", "The second of fifteen hundred calls"),
        ("Pi is 3.14.", "Pi is three point one four."),
    ],
)
def test_money_percentages_and_decimals_are_spelled(text, spoken):
    assert spell_numbers(text) == spoken


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Wait... Is it true?!", "Wait, Is it true?"),
        ('"Don\'t panic," he said.', "Don't panic, he said."),
        ("You will have PEANUT BUTTER!", "You will have peanut butter!"),
        ("Mr. Jones & Dr. Smith agree.", "Mister Jones and Doctor Smith agree."),
        ("He -- of all people -- knew.", "He, of all people, knew."),
        ("See http://x.org now.", None),
        ("x = y + 1.", None),
        ("A heading", None),
        ("bore, n: A person who talks.", None),
    ],
)
def test_a_sentence_is_cleaned_or_refused(text, cleaned):
    assert clean_sentence(text) == cleaned


def test_harmless_words_that_contain_coarse_ones_stay():
    text = "Hello, I assume the title of this class is by Dickens."
    assert clean_sentence(text) == text


def test_initials_and_titles_end_no_sentence():
    text = "Mr. J. Smith came\nhome.  He slept.\nQ:\tWhy?"
    assert split_sentences(text) == ["Mr. J. Smith came home.", "He slept.", "Why?"]


def test_fortunes_lose_attribution_repeats_nonsense_and_length(tmp_path):
    entries = [
        "The cat sat there all day.\n\t\t-- A. Nonymous",
        "The cat sat there, all day!",
        "Too short.",
        "Xq zzv rr cat.",
    ]
    (tmp_path / "wisdom").write_text("\n%\n".join(entries))
    (tmp_path / "ethnic").write_text("The cat sat there all night.\n")
    words = frozenset(["the", "cat", "sat", "there", "all", "day", "too", "short", "night"])
    assert fortune_sentences(tmp_path, words) == ["The cat sat there all day."]


def test_prompts_are_the_same_at_every_call_and_all_different():
    prompts = phone_prompts(300, random.Random(5))
    assert prompts == phone_prompts(300, random.Random(5))
    assert len({normalized(prompt) for prompt in prompts}) == 300
    assert not any(".." in prompt or "  " in prompt for prompt in prompts)


def test_texts_of_the_validation_sets_are_left_out():
    texts = ["Agents.", "one more, please", "Thank you.", "He was not an ill disposed young man!"]
    texts += ["So he was not an ill-disposed young man?", "An ill-disposed young man!"]
    held_out = held_out_texts() | {normalized("Thank you")}
    assert without(texts, held_out) == ["Agents.", "one more, please"]
    prompts = without(phone_prompts(1500, random.Random(0)), held_out)
    assert not {normalized(prompt) for prompt in prompts} & held_out


def test_a_menu_says_press_once_and_its_keys_go_up():
    numbers = {number_words(number): number for number in range(1, 10)}
    menus = [menu_prompt(random.Random(seed)) for seed in range(200)]
    for menu in menus:
        keys = [
            numbers[word]
            for words in re.findall(r"(\w+)(?: or (\w+))? to ", menu)
            for word in words
            if word in numbers
        ]
        assert menu.split().count("press") == 1 and len(keys) >= 3 and keys == sorted(set(keys))
    assert any(re.search(r"\w+ or \w+ to ", menu) for menu in menus)
