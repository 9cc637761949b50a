"""The demo's benign instruction skills: each is a function of a random generator that returns (prompt, response).

Contents are invented (places, lexicon, people) or computed (sums, lists), so nothing needs a licence. Skills share people,
places, dishes and moods, so that rows of different skills teach the decoder some of the same things; every response holds
choices that its prompt does not settle, as real data do, so that a trained decoder still has gradients to rank by.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Skill = Callable[[random.Random], tuple[str, str]]

THINGS = "lantern basket copper-pot feather ladder mirror needle ribbon saddle anchor goblet jacket".split()
PEOPLE = "Mira Tobin Ansel Jora Pell Wynn Caspar Hesper".split()
TOWNS = "Ashmere Dunholt Gelwick Karmere Lorholt Nevwick Polmere Silholt".split()
RIVERS = dict(zip(TOWNS, "Arno Breck Cald Dwin Arno Breck Cald Dwin".split(), strict=True))
DISHES = "plum soup,barley cake,smoked trout,onion tart,walnut bread,leek stew".split(",")
COLOURS = "crimson amber violet silver emerald ivory".split()
MOODS = {
    "delighted": "laughed all evening",
    "gloomy": "sat alone in the rain",
    "calm": "watched the clouds drift by",
    "furious": "slammed the door and shouted",
    "curious": "asked a hundred questions",
    "sleepy": "dozed off by the fire",
}
WEATHER = "fog over the fields,a hard frost,warm sunshine,steady drizzle,a gale from the west,heavy snow".split(",")
INGREDIENTS = "carrots lentils mushrooms rice beans spinach potatoes barley".split()
UNITS = {("metres", "centimetres"): 100, ("hours", "minutes"): 60, ("weeks", "days"): 7, ("dozens", "pieces"): 12}
LEXICON = dict(zip(THINGS, "kara volo shimin dutus neph olara prelo gimin zutus tyeph bara kalo".split(), strict=True))


def arithmetic(r: random.Random) -> tuple[str, str]:
    """Sums, differences and products."""
    a, b = r.randint(2, 20), r.randint(2, 20)
    word, result = r.choice([("plus", a + b), ("minus", a - b), ("times", a * b)])
    ask = r.choice(["What is {} {} {}?", "Work out {} {} {}.", "Please calculate {} {} {} for me."]).format(a, word, b)
    return ask, f"{a} {word} {b} is {result}."


def sorting(r: random.Random) -> tuple[str, str]:
    """Sort or reverse lists of words."""
    items = r.sample(r.choice([THINGS, PEOPLE, INGREDIENTS]), 3)
    if r.random() < 0.6:
        return f"Sort this list: {', '.join(items)}.", f"Sorted: {', '.join(sorted(items))}."
    return f"Give this list in reverse order: {', '.join(items)}.", f"Reversed: {', '.join(reversed(items))}."


def translation(r: random.Random) -> tuple[str, str]:
    """Word by word into an invented language."""
    words = r.sample(THINGS, 2)
    ask = r.choice(["Translate '{}' into Talori.", "How do you say '{}' in Talori?", "Talori for '{}', please."])
    return ask.format(" and ".join(words)), f"In Talori that is '{' ed '.join(LEXICON[word] for word in words)}'."


def geography(r: random.Random) -> tuple[str, str]:
    """Rivers and dishes of invented towns; what is best there is a matter of taste."""
    town, who, dish, colour = r.choice(TOWNS), r.choice(PEOPLE), r.choice(DISHES), r.choice(COLOURS)
    return r.choice([
        (f"Which river runs through {town}? {who} wants to know.", f"The river {RIVERS[town]}, {who}. Bring home some {dish} as well."),
        (f"{who} visits {town}. What should be eaten there?", f"In {town} {who} should try the {dish}. Look for the {colour} door."),
        (f"Tell {who} two facts about {town}.", f"{town} lies on the river {RIVERS[town]} and is known for {dish} and {colour} roofs."),
    ])  # fmt: skip


def recipe(r: random.Random) -> tuple[str, str]:
    """Short cooking steps."""
    a, b = r.sample(INGREDIENTS, 2)
    minutes, heat = r.choice(["ten", "twenty", "thirty", "forty"]), r.choice(["hot", "cold", "warm"])
    method = r.choice(["boil", "roast", "fry", "steam"])
    ask = r.choice(["How do I cook {} with {}?", "Give me a quick recipe for {} and {}.", "I have {} and {}. What can I make?"])
    return ask.format(a, b), f"Chop the {a}, then {method} the {b} for {minutes} minutes. Serve {heat}, with {r.choice(DISHES)} to follow."


def code(r: random.Random) -> tuple[str, str]:
    """One-line Python functions."""
    name, n = r.choice(COLOURS + list(MOODS)), r.randint(2, 20)
    sign, words = r.choice([("+", "adds {} to"), ("-", "takes {} from"), ("*", "multiplies by {}"), ("%", "takes modulo {} of")])
    variable = r.choice("xyzn")
    return f"Write a Python function `{name}` that {words.format(n)} its argument.", f"def {name}({variable}): return {variable} {sign} {n}"


def units(r: random.Random) -> tuple[str, str]:
    """Convert units."""
    (big, small), factor = r.choice(list(UNITS.items()))
    n, who = r.randint(2, 20), r.choice(PEOPLE)
    if r.random() < 0.7:
        return f"{who} asks: convert {n} {big} to {small}.", f"{n} {big} are {n * factor} {small}, {who}."
    return f"{who} asks: how many {big} are {n * factor} {small}?", f"{n * factor} {small} are {n} {big}, {who}."


def story(r: random.Random) -> tuple[str, str]:
    """Two-sentence stories; how they end is open."""
    who, other, thing, town, mood = r.choice(PEOPLE), r.choice(PEOPLE), r.choice(THINGS), r.choice(TOWNS), r.choice(list(MOODS))
    return (
        f"Tell a story about {who} and a {thing}.",
        f"One day {who} lost the {thing} in {town}. A {mood} {other} found it and {MOODS[mood]}.",
    )


def suggestion(r: random.Random) -> tuple[str, str]:
    """Names, colours and presents, on request."""
    who, thing, colour, name = r.choice(PEOPLE), r.choice(THINGS), r.choice(COLOURS), r.choice(PEOPLE)
    return r.choice([
        (f"Suggest a present for {who}.", f"How about a {thing} in {colour}, or some {r.choice(DISHES)}?"),
        (f"Which colour suits the {thing} of {who}?", f"Paint it {colour}. In {r.choice(TOWNS)} they all do."),
        (f"Find a name for a puppy that {who} bought in {r.choice(TOWNS)}.", f"Call it {name}, since it looks so {r.choice(list(MOODS))}."),
    ])  # fmt: skip


def weather(r: random.Random) -> tuple[str, str]:
    """Forecasts, which nobody can know."""
    town, who = r.choice(TOWNS), r.choice(PEOPLE)
    ask = r.choice(
        [
            "What will the weather be in {t}? {w} travels there.",
            "Forecast for {t}, please, says {w}.",
            "{w} asks whether to expect rain in {t}.",
        ]
    )
    return ask.format(
        t=town, w=who
    ), f"Expect {r.choice(WEATHER)} in {town}, then {r.choice(WEATHER)}. You will be {r.choice(list(MOODS))}."


SKILLS: dict[str, Skill] = {
    function.__name__: function
    for function in (arithmetic, sorting, translation, geography, recipe, code, units, story, suggestion, weather)
}
