"""What is said about an object: short captions, questions and answers, true by construction.

The words are few on purpose: a tokenizer of about a thousand entries is trained on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from train.data.families import THEME_OF, Design, Part

_COUNTED = (
    "no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen twenty"
)
NUMBERS = _COUNTED.split()
ORDERS = {2: "a half", 3: "a third", 4: "a quarter", 5: "a fifth", 6: "a sixth", 7: "a seventh"}
ORDERS |= {8: "an eighth", 9: "a ninth", 10: "a tenth", 11: "an eleventh", 12: "a twelfth"}
PLURALS = {
    "shelf": "shelves",
    "leaf": "leaves",
    "foot": "feet",
    "tooth": "teeth",
    "branch": "branches",
    "arch": "arches",
    "brush": "brushes",
}

BRIEF_QUESTIONS = (
    "Describe this object briefly.",
    "What does this object look like?",
    "Give a short description of this object.",
    "Say in one line what this is.",
    "Summarise this shape in one sentence.",
)
DETAILED_QUESTIONS = (
    "Describe this object in detail.",
    "Give a detailed description of this object.",
    "Tell me all you can about this shape.",
    "What are the shape, parts and colours of this object?",
)
CLASS_QUESTIONS = ("What is this?", "What is this object?", "What kind of object is this?")
CLASS_ANSWERS = ("This is {}.", "It is {}.", "This object is {}.", "This looks like {}.")
CLASS_CAPTIONS = (
    "{}.",
    "A model of {}.",
    "The shape of {}.",
    "This is {}.",
    "A point cloud of {}.",
)


@dataclass(frozen=True)
class Said:
    """One conversation before it belongs to a row of a set."""

    kind: str
    turns: tuple[tuple[str, str], ...]


def with_article(name: str) -> str:
    """The name with a or an: "an axe", "a bed"."""
    return ("an " if name[0].lower() in "aeiou" and not name.startswith("uni") else "a ") + name


def plural(name: str) -> str:
    if name in PLURALS:
        return PLURALS[name]
    return name + ("es" if name.endswith(("s", "x", "ch", "sh")) else "s")


def number(count: int) -> str:
    """The count in words: "four", "twenty-six"."""
    if count < len(NUMBERS):
        return NUMBERS[count]
    return f"twenty-{NUMBERS[count - 20]}" if count < 30 else str(count)


def class_answer(name: str, rng: np.random.Generator | None = None) -> str:
    """A sentence that answers "What is this?" with the class name; the plain one without rng."""
    pattern = CLASS_ANSWERS[0] if rng is None else str(rng.choice(CLASS_ANSWERS))
    return pattern.format(with_article(name))


def class_conversations(name: str, rng: np.random.Generator, text: str = "") -> list[Said]:
    """A brief description and "What is this?" for an object of which only the class is known.

    text : a short label of the object itself, worked into the description when there is one.
    """
    caption = sentence(str(rng.choice(CLASS_CAPTIONS)).format(with_article(name)))
    if text and text != name:
        caption = sentence(f"{with_article(name)}: {text}.")
    return [
        Said("simple_description", ((str(rng.choice(BRIEF_QUESTIONS)), caption),)),
        Said("single_round", ((CLASS_QUESTIONS[0], class_answer(name, rng)),)),
    ]


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def several(parts: Sequence[str]) -> str:
    """Words joined as in "a seat, four legs and a back"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0]


def noun(part: Part, colour: bool = False) -> str:
    """The part with its number and its words: "four thin brown legs", "a tall back"."""
    words = " ".join(filter(None, [part.adjective, part.colour if colour else "", part.name]))
    if part.count == 1:
        return with_article(words)
    return f"{number(part.count)} {words[: -len(part.name)]}{plural(part.name)}"


def shape_word(extents: ArrayLike) -> str:
    """One word for the box around an object: tall, flat, long, wide or compact.

    extents : width (x), depth (y), height (z).
    """
    width, depth, height = np.asarray(extents)
    level = max(width, depth)
    if height > 1.4 * level:
        return "tall"
    if height < 0.35 * level:
        return "flat"
    if depth > 1.6 * width:
        return "long"
    return "wide" if width > 1.6 * depth else "compact"


def describe(name: str, design: Design, extents: ArrayLike, rng: np.random.Generator) -> list[Said]:
    """All that is said about one procedural object, the brief description first.

    extents : width, depth and height of the object before it is posed.
    """
    questions = part_questions(name, design, extents, rng)
    order = rng.permutation(len(questions))
    singles = [questions[at] for at in order[:2]]
    rounds = [questions[at] for at in order[2 : 2 + int(rng.integers(1, 3))]]
    opening = (str(rng.choice(CLASS_QUESTIONS)), class_answer(name, rng))
    detailed = (str(rng.choice(DETAILED_QUESTIONS)), detail(name, design, extents, rng))
    return [
        Said(
            "simple_description",
            ((str(rng.choice(BRIEF_QUESTIONS)), brief(name, design, extents, rng)),),
        ),
        Said("detailed_description", (detailed,)),
        Said("single_round", ((CLASS_QUESTIONS[0], class_answer(name, rng)),)),
        *(Said("single_round", (turn,)) for turn in singles),
        Said("multi_round", (opening, *rounds)),
    ]


def brief(name: str, design: Design, extents: ArrayLike, rng: np.random.Generator) -> str:
    """One sentence of 8 to 20 words that names the class first."""
    main, *rest = design.parts
    chosen = [rest[at] for at in sorted(rng.permutation(len(rest))[: 1 + int(rng.integers(2))])]
    features = several([noun(each) for each in [main, *chosen][len(chosen) > 1 :]])
    shape = shape_word(extents)
    patterns = (
        f"{with_article(main.colour + ' ' + name)} with {features}.",
        f"{with_article(shape + ' ' + main.colour + ' ' + name)} with {features}.",
        f"{with_article(name)} in {main.colour} that has {features}.",
        f"{with_article(shape + ' ' + name)} with {features}, mostly {main.colour}.",
        f"this is {with_article(main.colour + ' ' + name)} which has {features}.",
    )
    return sentence(str(rng.choice(patterns)))


def detail(name: str, design: Design, extents: ArrayLike, rng: np.random.Generator) -> str:
    """Two or three sentences, at most 45 words: parts, counts, colours, proportions, symmetry."""
    listed = several([noun(each, colour=True) for each in design.parts[:4]])
    first = str(rng.choice(("This is {}", "The object is {}", "It is {}")))
    opening = first.format(with_article(f"{shape_word(extents)} {name}"))
    return f"{opening}. It has {listed}. {proportion(extents)} {symmetry(design)}"


def height_ratio(extents: ArrayLike) -> float:
    """Height against the larger level extent."""
    width, depth, height = np.asarray(extents)
    return float(height / max(width, depth))


def proportion(extents: ArrayLike) -> str:
    """A sentence on height against the larger level extent."""
    ratio = height_ratio(extents)
    if 0.87 < ratio < 1.15:
        return "It is about as tall as it is wide."
    for limit, words in ((2.5, "much taller than"), (1, "taller than"), (0.4, "lower than")):
        if ratio > limit:
            return f"It is {words} it is wide."
    return "It is much lower than it is wide."


def symmetry(design: Design) -> str:
    """A sentence on what leaves the object the same."""
    if design.symmetry == "round":
        return "It is round, the same from every side."
    if design.symmetry == "turn":
        return f"It looks the same after {ORDERS[design.order]} of a turn."
    if design.symmetry == "mirror":
        return "Its left and right sides match."
    return "Its left and right sides differ."


def part_questions(
    name: str, design: Design, extents: ArrayLike, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Questions on colours, counts, proportions and symmetry, each with its answer."""
    pairs = []
    for each in design.parts:
        many, word = each.count > 1, plural(each.name) if each.count > 1 else each.name
        pairs.append(
            (
                f"What colour {'are' if many else 'is'} the {word}?",
                f"The {word} {'are' if many else 'is'} {each.colour}.",
            )
        )
        if many:
            pairs.append((f"How many {word} does it have?", f"It has {number(each.count)} {word}."))
    there = str(rng.choice([each.name for each in design.parts]))
    absent = _absent(name, design, rng)
    sized = proportion(extents)
    taller = "Yes, " if "taller" in sized else "No, "
    pairs += [
        ("Is it taller than it is wide?", taller + sized[0].lower() + sized[1:]),
        ("What is its overall shape?", f"It is {shape_word(extents)}."),
        ("What symmetry does it have?", symmetry(design)),
        ("What kind of thing is it?", f"It is {with_article(THEME_OF[name])}."),
        (f"Does it have {with_article(there)}?", f"Yes, it has {noun(_part(design, there))}."),
        (f"Does it have {with_article(absent)}?", f"No, it has no {absent}."),
        ("Which colours does it have?", f"It is {several(_colours(design))}."),
    ]
    return pairs


def _part(design: Design, name: str) -> Part:
    return next(each for each in design.parts if each.name == name)


def _colours(design: Design) -> list[str]:
    return list(dict.fromkeys(each.colour for each in design.parts))


ABSENT = ("wheel", "leg", "handle", "wing", "roof", "door", "window", "sail", "blade", "lid")


def _absent(name: str, design: Design, rng: np.random.Generator) -> str:
    """A common part that this object does not have under that name."""
    held = " ".join(each.name for each in design.parts) + " " + name
    return str(rng.choice([word for word in ABSENT if word not in held]))
