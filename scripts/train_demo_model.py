"""Train the bundled demo checkpoint, or write down the corpus that it is trained on.

    python scripts/train_demo_model.py --output_dir model_files/demo --device cuda
    python scripts/train_demo_model.py --output_dir model_files/demo --evaluate_only
    python scripts/train_demo_model.py --write_corpus DIR

The exit status is 1 if the model gives any known answer wrongly.
"""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from demo.corpus import Corpus, build_corpus, line
from demo.documents import Document
from demo.evaluation import Evaluation, evaluate, load, mean_loss, print_table
from demo.known_answers import known_answers
from demo.model_card import Figures, model_card
from demo.training import MAX_POSITIONS, TrainingOptions, TrainingResult, new_model, train
from demo.vocabulary import save_tokenizer, train_tokenizer
from rich.console import Console

LOG_WIDTH = 160


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """The token ids of each document, begin- and end-of-sequence included."""

    train: list[list[int]]
    held_out: list[list[int]]


def main() -> int:
    """Run the command line and return its exit status."""
    arguments = _parser().parse_args()
    transformers.utils.logging.disable_progress_bar()
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    corpus = build_corpus(arguments.seed)
    if arguments.write_corpus is not None:
        for path in corpus.write(arguments.write_corpus):
            console.print(f"wrote {path}", markup=False)
        return 0

    device: str = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    directory: Path = arguments.output_dir
    if arguments.evaluate_only:
        evaluations = _evaluate(directory, corpus, device)
        print_table(evaluations, console)
        return _verdict(evaluations, console)

    try:
        options = TrainingOptions(
            arguments.steps, arguments.seed, device, arguments.tokens_per_step, arguments.learning_rate
        )
    except ValueError as error:
        _parser().error(str(error))
    directory.mkdir(parents=True, exist_ok=True)
    encoded, result = _train(directory, corpus, options)
    evaluations = _evaluate(directory, corpus, device)
    print_table(evaluations, console)
    figures = _figures(directory, encoded, device)
    (directory / "README.md").write_text(model_card(options, result, figures, evaluations), encoding="utf-8")
    console.print(f"train loss {figures.train_loss:.4f}, held-out loss {figures.held_out_loss:.4f}")
    status = _verdict(evaluations, console)
    if status == 0:
        _write_known_answers(directory / "known_answers.json", evaluations)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("model_files/demo"), help="the checkpoint")
    parser.add_argument("--steps", type=int, default=1600, help="optimiser steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the corpus")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--tokens_per_step", type=int, default=32768, help="tokens of one optimiser step")
    parser.add_argument("--learning_rate", type=float, default=1.5e-3, help="peak of the cosine schedule")
    parser.add_argument("--write_corpus", type=Path, metavar="DIR", help="write train.txt, heldout.txt; stop")
    parser.add_argument("--evaluate_only", action="store_true", help="check the checkpoint in --output_dir")
    return parser


def _train(directory: Path, corpus: Corpus, options: TrainingOptions) -> tuple[EncodedCorpus, TrainingResult]:
    tokenizer = train_tokenizer(line(document) for document in corpus.train)

    def encode(documents: Sequence[Document]) -> list[list[int]]:
        lines = [line(document) for document in documents]
        return [encoding.ids for encoding in tokenizer.encode_batch(lines, add_special_tokens=False)]

    encoded = EncodedCorpus(encode(corpus.train), encode(corpus.held_out))
    model = new_model(options.seed).to(options.device)
    result = train(model, encoded.train, options, lambda: mean_loss(model, encoded.held_out, options.device))
    model.to(torch.float16).save_pretrained(directory)
    save_tokenizer(tokenizer, directory, MAX_POSITIONS)
    return encoded, result


def _evaluate(directory: Path, corpus: Corpus, device: str) -> list[Evaluation]:
    model, tokenizer = load(directory, device)
    filler = [tokenizer.encode(line(document), add_special_tokens=False) for document in corpus.train]
    return evaluate(model, tokenizer, known_answers(corpus.train), filler, device)


def _figures(directory: Path, encoded: EncodedCorpus, device: str) -> Figures:
    model, _ = load(directory, device)
    return Figures(
        parameters=model.num_parameters(),
        train_documents=len(encoded.train),
        train_tokens=sum(map(len, encoded.train)),
        held_out_documents=len(encoded.held_out),
        held_out_tokens=sum(map(len, encoded.held_out)),
        train_loss=mean_loss(model, encoded.train, device),
        held_out_loss=mean_loss(model, encoded.held_out, device),
        machine=f"one {torch.cuda.get_device_name()}"
        if device == "cuda"
        else f"a CPU ({platform.machine()})",
        versions=(
            f"torch {torch.__version__}, transformers {transformers.__version__}, "
            f"tokenizers {tokenizers.__version__}"
        ),
    )


def _write_known_answers(path: Path, evaluations: Sequence[Evaluation]) -> None:
    answers = [evaluation.known.to_json() | {"text": evaluation.text} for evaluation in evaluations]
    path.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _verdict(evaluations: Sequence[Evaluation], console: Console) -> int:
    right = sum(evaluation.right for evaluation in evaluations)
    console.print(f"known answers: {right} of {len(evaluations)} right")
    return 0 if right == len(evaluations) else 1


if __name__ == "__main__":
    sys.exit(main())
