"""The `cleave` command: one verb a room, and one way to end for all errors."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from cleave.errors import CleaveError
from cleave.export.cli import export
from cleave.plan import plan
from cleave.runtime.bench.cli import bench
from cleave.runtime.cli import run
from cleave.runtime.compare.cli import compare
from cleave.runtime.doctor.cli import doctor
from cleave.runtime.engine_cache.cli import engines
from cleave.runtime.engines.cli import build
from cleave.runtime.server.cli import serve
from cleave.threads import own_process
from cleave.version import version

USAGE_ERROR = 2
INTERRUPTED = 130


def _print_version(is_asked_for: bool) -> None:
    if is_asked_for:
        typer.echo(f"cleave {version()}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """A compiler-runtime for LLMs: the model is cut at attention, the rest compiled ahead of time."""


def application() -> typer.Typer:
    """The command with all its verbs."""
    app = typer.Typer(
        name="cleave",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    app.command()(export)
    app.command()(build)
    app.command()(run)
    app.command()(serve)
    app.command()(plan)
    app.command()(compare)
    app.command()(doctor)
    app.add_typer(engines, name="engines")
    app.add_typer(bench, name="bench")
    return app


def single(verb: Callable[..., Any]) -> typer.Typer:
    """A command that is one verb, for the scripts."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(verb)
    return app


def main(app: typer.Typer | None = None) -> None:
    """Run a command: errors that a user can mend are one sentence and exit code 2."""
    try:
        (app or application())()
    except CleaveError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(USAGE_ERROR)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as ended:
        if ended.code != INTERRUPTED:
            raise
        _interrupted()  # typer has made an exit of it


def _interrupted() -> NoReturn:
    sys.stderr.write("\ninterrupted\n")  # the cursor stands behind what was said so far, and ^C
    sys.exit(INTERRUPTED)


def process(app: typer.Typer | None = None) -> None:
    """`main` for a process that does nothing else."""
    own_process()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # models say what a terminal's encoding may lack
    main(app)


if __name__ == "__main__":
    process()
