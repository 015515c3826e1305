"""What the terminal is told: pages and data on standard output, all else on standard error.

This is the one place that turns errors into messages and exit statuses.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from ..store.errors import ExitCode, ScopenoteError


def answer(command: Callable[[], object]) -> int:
    """Runs a command; the exit status that the contract gives to how it ended."""
    try:
        command()
        sys.stdout.flush()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else ExitCode.FAILED
    except ScopenoteError as error:
        complain(f"Error: {error}")
        _forget_frames(error)
        return error.exit_code
    except KeyboardInterrupt:
        complain("Stopped.")
        return ExitCode.FAILED
    except BrokenPipeError:
        # Whoever read us has gone, as `head` does: there is nobody left to tell.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except Exception:
        # What nobody foresaw is shown whole.
        traceback.print_exc()
        complain(
            "This is a defect of Scopenote, not of yours. Please report it with the lines above; "
            "what was finished is kept."
        )
        return ExitCode.FAILED
    return ExitCode.DONE


def _forget_frames(error: BaseException | None) -> None:
    """Lets go of what the frames held that an error came through.

    Prefect's threads keep the error until the interpreter ends, and DuckDB prints a page of
    warnings about any connection that is still there by then.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def complain(text: str) -> None:
    """Says something on standard error, if anybody still reads it."""
    with suppress(OSError):
        typer.echo(text, err=True)


def program() -> str:
    """How this program was called, to be typed again from here."""
    called = Path(sys.argv[0])
    if called.suffix == ".py" or not called.exists():
        return "scopenote"
    found = shutil.which("scopenote")
    if found is not None and Path(found).resolve() == called.resolve():
        return "scopenote"
    absolute = called.absolute()
    here = Path.cwd()
    shown = absolute.relative_to(here) if absolute.is_relative_to(here) else absolute
    return shlex.quote(str(shown))


def print_page(page: Any) -> None:
    """Lays something of rich's out on standard output."""
    from rich.console import Console

    # Cropped, a command that is longer than a line could not be copied.
    Console(highlight=False).print(page, crop=False)


def print_json(content: Any) -> None:
    """Writes data to standard output as JSON."""
    import json

    typer.echo(json.dumps(content, ensure_ascii=False, indent=2, default=str))
