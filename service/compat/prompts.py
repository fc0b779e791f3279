"""Prompts of OpenAI's API: the class that one names."""

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from service.engine.catalog import Model, fold_name
from service.errors import InvalidParameter
from service.generation.labels import suggestion

DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = {name: digit for digit, word in enumerate(DIGIT_WORDS) for name in (word, str(digit))}
OTHER_NUMBERS = {
    "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred", "thousand", "million",
}  # fmt: skip
ANY = {"any", "anything", "random"}
"""Words of a prompt that asks for any class."""
ANY_DIGIT = ANY | {"digit", "digits", "number", "numbers", "numeral", "numerals", "mnist"}
SIZES = re.compile(r"(?<![0-9])[0-9]++ ?(?:(?:x|×|by) ?[0-9]++|(?:px|pixels?|dpi|bits?|k|%)(?![a-z0-9]))")
"""Sizes and the like in a prompt, whose numbers are no digits to generate. It takes linear time: a long number is tried
once, from its start."""
TOKENS = re.compile(r"[a-z0-9]+(?:[-.][a-z0-9]+)*")
WORDS = re.compile(r"[^\W_]+")
FILLERS = {"a", "an", "and", "of", "the"}
"""Words that a class's name and a prompt may leave out: `travel and places` names the class `travel-places`."""
ONE_DIGIT = 'prompt: name one digit from 0 to 9, as a word or a numeral, or ask for "any"'


def labels_in(prompt: str, model: Model | None) -> list[str]:
    """The label of the class that a prompt names, in a list; an empty list if it asks for any.

    Without a model the classes are the digits. Raises InvalidParameter if the prompt names several classes, or nothing
    that the model can generate.
    """
    if model is None or model.classes_are_digits:
        return [str(digit) for digit in digits_in(prompt)]
    if not model.classes:
        if prompt.strip() and (_numbers(prompt) or not ANY_DIGIT.intersection(_tokens(prompt))):
            raise InvalidParameter(f'prompt: {model.name} is not conditional; ask for "any"')
        return []
    named = classes_in(prompt, model)
    if len(named) == 1 or (not named and (not prompt.strip() or ANY.intersection(_tokens(prompt)))):
        return named
    problem = f"this prompt names {', '.join(named)}" if named else suggestion(model, prompt)
    raise InvalidParameter(f'prompt: name one class of {model.name}, or ask for "any"; {problem}')


def classes_in(prompt: str, model: Model) -> list[str]:
    """The classes that a prompt names, each once.

    A class is named by its words, in the singular or plural and with any signs between them. Where names overlap, the
    longest counts: `a hot dog` names no `dog`. Of names that differ in case alone, the prompt's spelling decides.
    """
    if prompt.strip() in model.classes:
        return [prompt.strip()]
    spelled = WORDS.findall(unicodedata.normalize("NFC", prompt))
    # Classes whose names are fillers, such as letters, count only where the prompt names no other class.
    for words in (_without_fillers(spelled), spelled):
        if found := list(dict.fromkeys(_longest_matches(words, _vocabulary(model.classes)))):
            return found
    return []


class _Vocabulary(NamedTuple):
    """The words of a model's classes."""

    words: dict[str, str]
    """The words by all their forms."""
    classes: dict[tuple[str, ...], list[str]]
    """The classes by their words. Those of one entry differ in case or signs alone."""

    def word(self, spelled: str) -> str:
        """The class's word of which this is a form; otherwise the word itself."""
        forms = list(_forms(fold_name(spelled)))
        return next((self.words[form] for form in forms if form in self.words), forms[0])


@lru_cache(maxsize=32)
def _vocabulary(classes: tuple[str, ...]) -> _Vocabulary:
    names = {name: tuple(map(fold_name, _words(name))) for name in classes}
    words = dict.fromkeys(word for parts in names.values() for word in parts)
    forms = {form: word for word in words for form in _forms(word)} | {word: word for word in words}
    by_words: dict[tuple[str, ...], list[str]] = {}
    for name, parts in names.items():
        by_words.setdefault(parts, []).append(name)
    return _Vocabulary(forms, by_words)


def _longest_matches(spelled: list[str], vocabulary: _Vocabulary) -> Iterator[str]:
    """The classes that the words name from left to right, the longest first at each place."""
    words = tuple(map(vocabulary.word, spelled))
    longest = max(map(len, vocabulary.classes), default=0)
    start = 0
    while start < len(words):
        for end in range(min(start + longest, len(words)), start, -1):
            if names := vocabulary.classes.get(words[start:end]):
                yield from [name for name in names if _is_spelled(name, spelled[start:end])] or names
                break
        else:
            end = start + 1
        start = end


def _is_spelled(name: str, words: list[str]) -> bool:
    """Whether the words are those of the name in the same case."""
    return all(word in _forms(spelled) for word, spelled in zip(_words(name), words, strict=True))


def _words(name: str) -> list[str]:
    """The words of a class's name, without fillers unless it has no others."""
    words = WORDS.findall(unicodedata.normalize("NFC", name))
    return _without_fillers(words) or words


def _without_fillers(words: list[str]) -> list[str]:
    return [word for word in words if fold_name(word) not in FILLERS]


def _forms(word: str) -> Iterator[str]:
    """The word, and what may be its singular."""
    yield word
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]
        if word.endswith("ies"):
            yield f"{word[:-3]}y"
        if word.endswith("es"):
            yield word[:-2]


def digits_in(prompt: str) -> list[int]:
    """The digit that a prompt names, in a list; an empty list if it asks for any.

    Raises InvalidParameter if it names several digits, another number, or nothing that can be generated.
    """
    numbers = _numbers(prompt)
    if len({DIGITS.get(number) for number in numbers}) > 1 or any(number not in DIGITS for number in numbers):
        raise InvalidParameter(ONE_DIGIT)
    if prompt.strip() and not numbers and not ANY_DIGIT.intersection(_tokens(prompt)):
        raise InvalidParameter(f"{ONE_DIGIT}; this prompt does neither")
    return [DIGITS[number] for number in numbers][:1]


def _tokens(prompt: str) -> list[str]:
    """The words and numbers of a prompt in lower case, without sizes."""
    return TOKENS.findall(SIZES.sub(" ", prompt.lower()))


def _numbers(prompt: str) -> set[str]:
    """The digits and other numbers among the tokens of a prompt."""
    return {token for token in _tokens(prompt) if token in DIGITS or _is_other_number(token)}


def _is_other_number(token: str) -> bool:
    """Whether a token is a number that is not a digit: 12, 1.5, twelve, twenty-one."""
    parts = re.split("[-.]", token)
    return all(part.isdigit() or part in OTHER_NUMBERS or part in DIGIT_WORDS for part in parts) and token not in DIGITS
