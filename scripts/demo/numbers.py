"""Sums, products, counting, the alphabet, and the calendar."""

from collections.abc import Iterator
from itertools import chain, pairwise

from demo.documents import Document, asked, capitalised, conversation, listed, statement

LARGEST_TERM = 20
LARGEST_FACTOR = 12

WORDS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen"),
    *("sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
]

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]

MONTH_LENGTHS = ("31", "28", "31", "30", "31", "30", "31", "31", "30", "31", "30", "31")

ALPHABET = [chr(code) for code in range(ord("A"), ord("Z") + 1)]


def documents() -> Iterator[Document]:
    """Yield every wording of every fact of this module."""
    yield from _arithmetic()
    yield from _counting()
    yield from _calendar()
    yield from _alphabet()


def _arithmetic() -> Iterator[Document]:
    terms = range(LARGEST_TERM + 1)
    factors = range(LARGEST_FACTOR + 1)
    yield from chain.from_iterable(_equation(f"{a} + {b}", a + b) for a in terms for b in terms)
    yield from chain.from_iterable(_equation(f"{a} - {b}", a - b) for a in terms for b in range(a + 1))
    yield from chain.from_iterable(_equation(f"{a} x {b}", a * b) for a in factors for b in factors)
    yield from chain.from_iterable(
        _equation(f"{a * b} / {b}", a)
        for a in range(1, LARGEST_FACTOR + 1)
        for b in range(1, LARGEST_FACTOR + 1)
    )
    for a in range(11):
        for b in range(11):
            text = f"{capitalised(WORDS[a])} plus {WORDS[b]} is {WORDS[a + b]}."
            yield statement(f"{WORDS[a]} plus {WORDS[b]}", "words", text)
    for factor in range(1, LARGEST_FACTOR + 1):
        lines = [f"{factor} x {other} = {factor * other}" for other in range(1, LARGEST_FACTOR + 1)]
        yield from _list(f"table of {factor}", lines, f"What is the {factor} times table?")
    for number in range(1, LARGEST_FACTOR + 1):
        answer = f"The square of {number} is {number * number}."
        yield statement(f"square of {number}", "statement", answer)
        yield from asked(f"square of {number}", answer, f"What is the square of {number}?")


def _equation(left: str, right: int) -> Iterator[Document]:
    answer = f"{left} = {right}."
    yield statement(left, "equation", answer)
    yield from asked(left, answer, f"What is {left}?")


def _counting() -> Iterator[Document]:
    for start in range(41):
        yield statement(f"count from {start}", "list", listed([str(start + i) for i in range(10)]))
    for start in range(11):
        words = WORDS[start : start + 10]
        yield statement(f"count from {WORDS[start]}", "list", listed([capitalised(words[0]), *words[1:]]))
    for last in (5, 10, 20, 30, 50, 100):
        numbers = [str(number) for number in range(1, last + 1)]
        yield conversation(f"count to {last}", "asked", f"Count from 1 to {last}.", listed(numbers))
    yield from _list("even numbers", [str(n) for n in range(2, 21, 2)], "What are the even numbers up to 20?")
    yield from _list("odd numbers", [str(n) for n in range(1, 20, 2)], "What are the odd numbers up to 20?")
    yield from _list("multiples of ten", [str(n) for n in range(10, 101, 10)], "Count to 100 in tens.")
    yield from _list(
        "powers of two", [str(2**n) for n in range(11)], "What are the powers of two up to 1024?"
    )
    primes = [n for n in range(2, 50) if all(n % d for d in range(2, n))]
    yield from _list("primes", [str(n) for n in primes], "What are the prime numbers below 50?")
    down = [str(n) for n in range(10, -1, -1)]
    yield from _list("countdown", down, "Count down from 10.")


def _list(fact: str, items: list[str], question: str) -> Iterator[Document]:
    yield statement(fact, "list", listed(items))
    yield from asked(fact, listed(items), question)


def _calendar() -> Iterator[Document]:
    for names, unit, whole in ((DAYS, "day", "week"), (MONTHS, "month", "year")):
        answer = f"The {unit}s of the {whole} are {listed(names)}"
        yield statement(f"{unit}s of the {whole}", "statement", answer)
        yield from asked(
            f"{unit}s of the {whole}", answer, f"What are the {unit}s of the {whole}?", f"List the {unit}s."
        )
        for index, name in enumerate(names):
            after = names[(index + 1) % len(names)]
            yield statement(f"{unit}s from {name}", "list", listed(names[index:] + names[:index]))
            yield from _neighbour(unit, "after", name, after)
            yield from _neighbour(unit, "before", after, name)
    for index, (name, length) in enumerate(zip(MONTHS, MONTH_LENGTHS, strict=True)):
        days = f"{name} has {length} days."
        if name == "February":
            days = "February has 28 days, and 29 in a leap year."
        yield statement(f"length of {name}", "statement", days)
        yield from asked(f"length of {name}", days, f"How many days does {name} have?")
        place = f"{name} is month number {index + 1} of the year."
        yield statement(f"place of {name}", "statement", place)
        yield from asked(f"place of {name}", place, f"Which month of the year is {name}?")


def _neighbour(unit: str, side: str, name: str, neighbour: str) -> Iterator[Document]:
    fact = f"{unit} {side} {name}"
    answer = f"The {unit} {side} {name} is {neighbour}."
    yield statement(fact, "statement", answer)
    yield statement(fact, "comes", f"{neighbour} comes {side} {name}.")
    yield from asked(fact, answer, f"Which {unit} comes {side} {name}?")


def _alphabet() -> Iterator[Document]:
    yield from _list("alphabet", ALPHABET, "What are the letters of the alphabet?")
    for letter, following in pairwise(ALPHABET):
        fact = f"letter after {letter}"
        answer = f"The letter after {letter} is {following}."
        yield statement(fact, "statement", answer)
        yield from asked(fact, answer, f"Which letter comes after {letter}?")
