"""Short questions with known answers, to be spoken: the user turn is the clip alone.

All facts stand in spoken_questions.json. France is not among the capitals: its question is the demo's.
"""

import json
import random
from pathlib import Path

from sentences import DAYS, MONTHS, UNITS, number_words, ordinal_words


DEMO_QUESTION, DEMO_ANSWER = "What is the capital of France?", "The capital of France is Paris."

LISTS: dict[str, dict] = json.loads((Path(__file__).parent / "spoken_questions.json").read_text(encoding="utf-8"))
CAPITALS: dict[str, str] = LISTS["capitals"]


def capital_questions() -> list[tuple[str, str]]:
    pairs = []
    for country, city in CAPITALS.items():
        answer = f"The capital of {country} is {city}."
        pairs += [(f"What is the capital of {country}?", answer), (f"Which city is the capital of {country}?", answer)]
        pairs += [(f"What is the capital city of {country}?", answer), (f"Tell me the capital of {country}.", answer)]
        pairs.append((f"{city} is the capital of which country?", f"{city} is the capital of {country}."))
        pairs.append((f"Is {city} the capital of {country}?", f"Yes, the capital of {country} is {city}."))
    return pairs


def word_questions() -> list[tuple[str, str]]:
    """Opposites, colours, animals, counts and single facts."""
    pairs = [*LISTS["facts"].items()]
    for word, opposite in LISTS["opposites"].items():
        answer = f"The opposite of {word} is {opposite}."
        pairs += [(f"What is the opposite of {word}?", answer), (f"Tell me the opposite of {word}.", answer)]
        pairs.append((f"What is the opposite of {opposite}?", f"The opposite of {opposite} is {word}."))
    for thing, color in LISTS["colors"].items():
        answer = f"The color of {thing} is {color}."
        pairs += [(f"What color is {thing}?", answer), (f"What is the color of {thing}?", answer)]
    for sound, animal in LISTS["sounds"].items():
        article = "An" if animal[0] in "aeiou" else "A"
        pairs.append((f"Which animal {sound}?", f"{article} {animal} {sound}."))
    for parent, child in LISTS["young"].items():
        pairs.append((f"What is a young {parent} called?", f"A young {parent} is called a {child}."))
        pairs.append((f"What do you call a baby {parent}?", f"A baby {parent} is called a {child}."))
    for animal, legs in LISTS["legs"].items():
        article = "an" if animal[0] in "aeiou" else "a"
        count = number_words(legs) if legs else "no"
        pairs.append(
            (f"How many legs does {article} {animal} have?", f"{article.capitalize()} {animal} has {count} legs.")
        )
    for thing, count in LISTS["counts"].items():
        pairs.append((f"How many {thing}?", f"{number_words(count).capitalize()}."))
    return pairs


def calendar_questions() -> list[tuple[str, str]]:
    pairs = []
    for kind, names in (("day", DAYS), ("month", MONTHS)):
        for i, name in enumerate(names):
            after, before = names[(i + 1) % len(names)], names[i - 1]
            pairs += [
                (f"What {kind} comes after {name}?", f"{after} comes after {name}."),
                (f"Which {kind} comes before {name}?", f"{before} comes before {name}."),
                (f"Which {kind} follows {name}?", f"{after} follows {name}."),
            ]
    for i, name in enumerate(MONTHS):
        place = ordinal_words(i + 1)
        pairs.append((f"What is the {place} month of the year?", f"The {place} month of the year is {name}."))
    return pairs


def arithmetic_questions(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """`count` different sums, differences and products of small numbers."""
    found: dict[str, str] = {}
    while len(found) < count:
        a, b = rng.randint(1, 12), rng.randint(1, 12)
        word, result = rng.choice([("plus", a + b), ("times", a * b), ("minus", a - b)])
        if result < 0 or (word == "times" and result > 100):
            continue
        problem = f"{UNITS[a]} {word} {UNITS[b]}"
        question = rng.choice(["What is {0}?", "How much is {0}?", "Calculate {0}."]).format(problem)
        found.setdefault(question, f"{problem.capitalize()} is {number_words(result)}.")
    return list(found.items())


def spoken_questions(count: int, rng: random.Random) -> list[tuple[str, str]]:
    """`count` different (question, answer) pairs in random order; every list is used before sums fill the rest.

    Raises: ValueError where `count` is smaller than the lists.
    """
    pairs = dict([*capital_questions(), *word_questions(), *calendar_questions()])
    if count < len(pairs):
        raise ValueError(
            f"count arrived as {count} and the lists alone hold {len(pairs)} questions. Ask for at least that many."
        )
    pairs.update(arithmetic_questions(count - len(pairs), rng))
    return rng.sample(list(pairs.items()), len(pairs))
