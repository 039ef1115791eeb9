"""`reskit deploy`: what a platform needs to serve a bundle, and what became of deployments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(invoke_without_command=True)


@app.callback()
def deploy(
    context: typer.Context,
    to: Annotated[
        Literal["kserve", "sagemaker", "vertex", "azureml"] | None, typer.Option(help="The platform.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The bundle's folder; a copy is taken.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write; new, or empty.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of model and endpoint; that of the bundle's folder when absent.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Name of the container image in your registry, with its tag.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Write image, manifests and commands that serve a bundle on a platform; nothing is sent."""
    if context.invoked_subcommand is not None:
        return
    if to is None or bundle is None or out is None:
        given = {"--to": to, "--bundle": bundle, "--out": out}
        missing = ", ".join(option for option, value in given.items() if value is None)
        raise typer.BadParameter(f"give {missing} too", ctx=context)
    from reskit.deploying import deploy as run
    from reskit.files import to_json

    done = run(bundle, to=to, out=out, name=name, image=image)
    if json:
        typer.echo(to_json(done.as_dict()), nl=False)
        return
    if done.facts.made_up:
        typer.echo(f"no --image was given: {done.facts.image} is an example", err=True)
    for file in done.files:
        typer.echo(done.folder / file)
    typer.echo(f"the commands are in {done.folder / 'README.md'}", err=True)


@app.command("history")
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
