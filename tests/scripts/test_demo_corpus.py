"""The corpus of the demo checkpoint, and the tracked checkpoint that was trained on it."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
from tokenizers import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "model_files" / "demo"
LARGEST_FOLDER = 12_000_000


@pytest.fixture(scope="module")
def demo() -> Any:
    """The modules of `scripts/demo`, found as `scripts/train_demo_model.py` finds them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        for name in ("corpus", "documents", "known_answers", "language", "vocabulary"):
            importlib.import_module(f"demo.{name}")
        yield sys.modules["demo"]


@pytest.fixture(scope="module")
def corpus(demo: Any) -> Any:
    return demo.corpus.build_corpus(seed=0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))


def test_the_bundled_calibration_text_is_that_of_the_corpus(corpus: Any) -> None:
    """`python scripts/train_demo_model.py --write_corpus DIR` writes it; copy it to export/."""
    assert (ROOT / "export" / "calibration.txt").read_text("utf-8") == corpus.calibration_text()


def test_the_same_seed_gives_the_same_corpus(demo: Any, corpus: Any) -> None:
    assert demo.corpus.build_corpus(seed=0) == corpus


def test_another_seed_moves_no_document_to_the_other_split(demo: Any, corpus: Any) -> None:
    assert demo.corpus.build_corpus(seed=1).held_out == corpus.held_out


def test_held_out_text_is_not_in_the_train_split(demo: Any, corpus: Any) -> None:
    assert not {demo.corpus.line(d) for d in corpus.train} & {demo.corpus.line(d) for d in corpus.held_out}


def test_every_held_out_fact_can_be_learned_from_the_train_split(corpus: Any) -> None:
    assert {d.fact for d in corpus.held_out} <= {d.fact for d in corpus.train}


def test_a_written_corpus_holds_one_document_a_line(demo: Any, corpus: Any, tmp_path: Path) -> None:
    train, held_out, _ = corpus.write(tmp_path)
    assert train.read_text(encoding="utf-8").splitlines() == [demo.corpus.line(d) for d in corpus.train]
    assert len(held_out.read_text(encoding="utf-8").splitlines()) == len(corpus.held_out)


def test_no_word_has_two_opposites(demo: Any) -> None:
    words = demo.language.OPPOSITES.replace(",", " ").split()
    assert sorted(words) == sorted(set(words))


def test_a_question_with_two_answers_is_refused(demo: Any) -> None:
    conversation = demo.documents.conversation
    documents = [
        conversation("a", "x", "What is it?", "This."),
        conversation("b", "x", "What is it?", "That."),
    ]
    with pytest.raises(ValueError, match="is answered by"):
        demo.corpus._answers(documents)


def test_a_prompt_with_two_continuations_is_refused(demo: Any) -> None:
    statement = demo.documents.statement
    train = [statement("a", "x", "San Francisco is a city."), statement("b", "x", "San Francisco is a bay.")]
    with pytest.raises(ValueError, match="2 continuations"):
        demo.known_answers.known_answers(train)


def test_the_tracked_known_answers_are_what_the_corpus_says(demo: Any, corpus: Any) -> None:
    tracked = json.loads((CHECKPOINT / "known_answers.json").read_text(encoding="utf-8"))
    assert tracked == [answer.to_json() for answer in demo.known_answers.known_answers(corpus.train)]


def test_a_known_prompt_is_tokenized_as_it_was_in_training(
    demo: Any, corpus: Any, tokenizer: Tokenizer
) -> None:
    for answer in demo.known_answers.known_answers(corpus.train):
        if isinstance(answer.prompt, str):
            prompt = tokenizer.encode(answer.prompt).ids
            assert tokenizer.encode(answer.prompt + answer.text).ids[: len(prompt)] == prompt


def test_the_tracked_tokenizer_has_the_special_tokens_that_generation_ends_at(
    demo: Any, tokenizer: Tokenizer
) -> None:
    vocabulary = demo.vocabulary
    assert [tokenizer.token_to_id(t) for t in vocabulary.SPECIAL_TOKENS] == list(range(7))
    generation = json.loads((CHECKPOINT / "generation_config.json").read_text(encoding="utf-8"))
    ends = (vocabulary.EOS, vocabulary.END_OF_TURN)
    assert generation["eos_token_id"] == [tokenizer.token_to_id(token) for token in ends]


def test_the_chat_template_renders_what_the_model_was_trained_on(demo: Any, corpus: Any) -> None:
    config = json.loads((CHECKPOINT / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = jinja2.Environment(autoescape=False).from_string(config["chat_template"])
    chat = next(d for d in corpus.train if d.messages and d.messages[0].role == "system")
    messages = [{"role": m.role, "content": m.content} for m in chat.messages]
    assert template.render(messages=messages, bos_token=config["bos_token"]) == demo.vocabulary.render(
        chat.messages
    )


def test_the_tracked_checkpoint_stays_small() -> None:
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= LARGEST_FOLDER
