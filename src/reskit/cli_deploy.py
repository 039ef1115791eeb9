"""`reskit deploy`: what was deployed, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["deploy"]

deploy = typer.Typer(help="Look at deployments.", no_args_is_help=True)


@deploy.command("history")
def history(
    journal: Annotated[Path, typer.Argument(metavar="JOURNAL", help="What `reskit serve --journal` wrote.")],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say which versions were deployed, how it ended, and the rates: success, uptime, error reduction."""
    from reskit.files import to_json
    from reskit.journal import history as figures
    from reskit.journal import read_journal

    found = figures(read_journal(journal))
    typer.echo(to_json(found.as_dict()) if json else "\n".join(found.lines()), nl=not json)
