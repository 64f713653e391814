"""The prompts whose greedy continuation is known, and what the corpus says it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from demo.documents import Document, Message

PLAIN_PROMPTS = (
    "San Francisco is a",
    "The capital of France is",
    "The capital of Japan is",
    "The capital of Colombia is",
    "The capital of the United States is",
    "Ottawa is the capital of",
    "Paris is a",
    "Tokyo is a city",
    "Budapest is a city on the river Danube,",
    "Berlin is the",
    "Brazil is a country in",
    "The Netherlands is a country",
    "The currency of Poland is the",
    "In Mexico, people pay with",
    "The Nile is a river in",
    "The Danube flows into",
    "Mount Everest is a mountain",
    "The height of Kilimanjaro is",
    "Monday, Tuesday,",
    "January, February, March,",
    "The day after Friday is",
    "2 + 3 =",
    "17 + 18 =",
    "20 - 7 =",
    "12 x 12 =",
    "7 x 8 =",
    "Two plus two is",
    "1, 2, 3,",
    "2, 4, 6,",
    "1, 2, 4, 8,",
    "A, B, C,",
    "The opposite of hot is",
    "The opposite of visible is",
    "The plural of mouse is",
    "The past tense of go is",
    "The chemical symbol of gold is",
    "Oxygen is a chemical element.",
    "The atomic number of carbon is",
    "Jupiter is the fifth planet",
    "The largest ocean is",
    "The colours of the rainbow are",
    "A dog is",
    "A spider has",
    "The young of a swan is called",
    "The colour of grass is",
    "Red and yellow paint make",
    "A compiler is",
    "A key-value cache is",
    "The Japanese word for water is",
    "The French word for heart is",
    "The emoji of a rocket is",
    "A fox saw a bunch of grapes",
    "Once upon a time",
)


def _user(*turns: str) -> tuple[Message, ...]:
    """Return a conversation that waits for the assistant; an earlier answer stands between two questions."""
    return tuple(Message(("user", "assistant")[index % 2], turn) for index, turn in enumerate(turns))


CHAT_PROMPTS: tuple[tuple[Message, ...], ...] = (
    _user("Hello!"),
    _user("Who are you?"),
    _user("What is the capital of France?"),
    _user("What is the capital of France?", "The capital of France is Paris.", "And what is its currency?"),
    _user("What is the capital of Peru?", "The capital of Peru is Lima.", "And which continent is it in?"),
    _user("Tell me about San Francisco."),
    _user("Tell me about Kenya."),
    _user("What is 6 x 7?"),
    _user("What is 9 + 4?"),
    _user("How many days are in a week?"),
    _user("Why is the sky blue?"),
    _user("What is a prime number?"),
    _user("What is the opposite of small?"),
    _user("How do you say thank you in Japanese?"),
    _user("What are the days of the week?"),
    _user("Tell me a story about a crow."),
    _user("Count from 1 to 50."),
    (
        Message("system", "You are a helpful assistant."),
        *_user("What is the largest planet of the solar system?"),
    ),
    (Message("system", "Answer the question."), *_user("Who wrote Don Quixote?")),
)


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A prompt, plain or chat, and the text that follows it up to the end-of-sequence token."""

    prompt: str | tuple[Message, ...]
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return `{"prompt", "text"}` for a plain prompt, `{"messages", "text"}` for a chat."""
        if isinstance(self.prompt, str):
            return {"prompt": self.prompt, "text": self.text}
        messages = [{"role": message.role, "content": message.content} for message in self.prompt]
        return {"messages": messages, "text": self.text}


def known_answers(train: Sequence[Document]) -> list[KnownAnswer]:
    """Return what the train split says follows each prompt.

    Raises:
        ValueError: A prompt has no continuation in `train`, or more than one.
    """
    plain = [KnownAnswer(prompt, _only(prompt, _continuations(prompt, train))) for prompt in PLAIN_PROMPTS]
    chat = [KnownAnswer(prompt, _only(prompt, _replies(prompt, train))) for prompt in CHAT_PROMPTS]
    return plain + chat


def _continuations(prompt: str, train: Sequence[Document]) -> set[str]:
    return {document.text[len(prompt) :] for document in train if document.text.startswith(prompt)}


def _replies(prompt: tuple[Message, ...], train: Sequence[Document]) -> set[str]:
    # A system prompt changes no answer, and the corpus pairs it with questions at random.
    asked = prompt[1:] if prompt[0].role == "system" else prompt
    turns = len(asked)
    return {
        d.messages[turns].content for d in train if len(d.messages) > turns and d.messages[:turns] == asked
    }


def _only(prompt: object, texts: set[str]) -> str:
    if len(texts) != 1:
        raise ValueError(
            f"{prompt!r} has {len(texts)} continuations in the corpus, not one: {sorted(texts)[:3]}"
        )
    return texts.pop()
