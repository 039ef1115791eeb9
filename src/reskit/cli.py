"""The command line: one command a verb. Parse, call the API, print; no logic.

Exit codes: 0 done, 1 a failure that is the user's to mend (one line on standard error), 2 wrong usage.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reskit import cli_deploy
from reskit.errors import ConfigError, ReskitError

_USERS_TO_MEND = {errno.EACCES, errno.EDQUOT, errno.ENAMETOOLONG, errno.ENOSPC, errno.EPERM, errno.EROFS}

app = typer.Typer(
    name="reskit",
    help="Residual networks from labelled data to a monitored service: measured, not guessed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(cli_deploy.app, name="deploy")

_FILE = re.compile(r"\S+\.(txt|csv|tsv|csv\.gz|tsv\.gz|parquet)", re.IGNORECASE)
"""What was meant for a file, though it is not there."""

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A bundle's folder.")]
Data = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="PATH", help="Folder of files, CSV, Parquet, Arrow, WebDataset or Hub name."
    ),
]

Pictures = Annotated[
    str | None,
    typer.Option("--pictures", metavar="PATH", help="Pictures without labels, to calibrate int8 with."),
]
Engine = Annotated[
    Literal["auto", "eager", "latency", "throughput", "memory", "size"],
    typer.Option(help="What answers: auto is the choice of `reskit optimize` where it ran here."),
]
Precision = Literal["fp32", "bf16", "fp16", "int8"]


@app.command()
def train(
    recipe: Annotated[str | None, typer.Argument(help="A packaged recipe or a YAML file.")] = None,
    data: Data = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="FILE",
            help="Start from these: a file, a bundle, hf:OWNER/NAME, torchvision:...; repeat for more files.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The run's folder.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in --out.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a network and write a bundle."""
    from reskit.training import train as run

    result = run(recipe, data=data, weights=weights or (), out=out, overrides=overrides or (), resume=resume)
    if os.environ.get("RANK", "0") != "0":  # launched by torchrun: one process speaks for all
        return
    if json:
        _print_json(result.as_dict())
        return
    _print_metrics(result.task, f"{result.split} split", result.metrics)
    _print_paths({"bundle": result.bundle, **result.files})
    typer.echo(f"to serve it: {_serving(result.bundle)}")


@app.command()
def evaluate(
    bundle: BundlePath,
    data: Data = None,
    split: Annotated[str | None, typer.Option(help="Which split; the held-out one when absent.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write report, plots and rows here.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at once.")] = 256,
    skip_corrupt: Annotated[bool, typer.Option(help="Leave out examples that cannot be read.")] = False,
    engine: Engine = "eager",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure a bundle on labelled data."""
    from reskit.evaluation import evaluate as run

    result = run(
        bundle,
        data,
        split=split,
        out=out,
        batch_size=batch_size,
        on_corrupt="skip" if skip_corrupt else "refuse",
        engine=engine,
    )
    if json:
        _print_json(result.as_dict())
        return
    _print_metrics(
        result.task, f"{result.split} split, {len(result.examples['index'])} examples", result.metrics
    )
    _print_paths(result.files)


@app.command()
def predict(
    bundle: BundlePath,
    inputs: Annotated[
        list[str],
        typer.Argument(help="Files, folders or globs, or texts; - reads a list from standard input."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write the table: .csv, .json, .jsonl or .parquet."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option("--save", metavar="DIR", help="Write masks, restored images and the like.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples at once.")] = 32,
    engine: Engine = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict for images, recordings, texts or rows; one that cannot be read becomes a row with an error."""
    from reskit.prediction import OUTPUT_FORMATS
    from reskit.prediction import predict as run

    if out and out.suffix.lower() not in OUTPUT_FORMATS:  # said before the work, not after it
        raise ConfigError(f"cannot tell a format from {str(out)!r}: end it in {', '.join(OUTPUT_FORMATS)}")
    names = [name for given in inputs for name in (_lines_of_stdin() if given == "-" else [given])]
    items = [Path(name) if os.path.lexists(name) or _FILE.fullmatch(name) else name for name in names]
    predictions = run(bundle, items, batch_size=batch_size, engine=engine, save=save)
    if out:
        predictions.write(out)
    if json:
        _print_json({"predictions": list(predictions), "out": str(out) if out else None})
    elif out:
        _print_paths({"predictions": out})
    else:
        _console().print(predictions)


@app.command("import")
def import_(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Weights of any format, a bundle, hf:... or torchvision:..."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="BUNDLE", help="The bundle's folder.")],
    model: Annotated[str | None, typer.Option(help="The network; found out when absent.")] = None,
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Class names, one a line.")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Side of the network's input in pixels.")] = None,
    statistics: Annotated[
        Literal["imagenet", "unit", "raw", "signed"] | None,
        typer.Option(help="How pixels are scaled: as ImageNet's, to [0, 1], not at all, to [-1, 1]."),
    ] = None,
    bgr: Annotated[bool, typer.Option("--bgr", help="The network was made for BGR.")] = False,
    task: Annotated[
        str | None,
        typer.Option(
            help="What it answers, a name or {name: ..., arguments: ...}; what it is made for when absent."
        ),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a bundle of published weights, with a report of what matched."""
    from reskit.files import read_lines
    from reskit.importing import import_bundle
    from reskit.recipes import load_yaml

    names = read_lines(labels) if labels else None
    question = load_yaml(task, "the value of --task") if task else None
    bundle, imported = import_bundle(
        files, to, model=model, labels=names, size=size, statistics=statistics, bgr=bgr, task=question
    )
    checkpoint, report = imported.checkpoint, imported.report
    name = bundle.model.architecture["name"]
    if json:
        _print_json(
            {
                "bundle": str(bundle.path),
                "model": name,
                "format": checkpoint.format,
                "report": report.as_dict(),
                "notes": list(checkpoint.notes),
            }
        )
        return
    for line in (f"{checkpoint.format}: {name}", *report.lines(), *checkpoint.notes):
        typer.echo(line)
    _print_paths({"bundle": bundle.path})


@app.command()
def export(
    bundle: BundlePath,
    to: Annotated[
        str,
        typer.Option(
            "--to", help="onnx, openvino, litert or executorch: files that run; torch or keras-h5: weights."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")],
    precision: Annotated[Precision, typer.Option(help="What a file that runs computes in.")] = "fp32",
    pictures: Pictures = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a bundle as a file that runs elsewhere, or its weights for another library."""
    from reskit.exporting import export as run

    result = run(bundle, out, to=to, precision=precision, pictures=pictures)
    if json:
        _print_json(result.as_dict())
        return
    for batch, difference in result.differences.items():
        typer.echo(f"batch {batch}: differs from float32 by {difference:.1e} of the largest output")
    _print_paths({to: result.path})


@app.command()
def optimize(
    bundle: BundlePath,
    goal: Annotated[
        Literal["latency", "throughput", "memory", "size"], typer.Option("--for", help="What to choose by.")
    ] = "latency",
    data: Data = None,
    pictures: Pictures = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0, help="What an engine may lose of the main metric: 0.5 points, 0.1 dB by default."
        ),
    ] = None,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", metavar="NAME", help="Try only this one; repeatable.")
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", help="Try only this one; repeatable."),
    ] = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Time this batch size; repeatable.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Processors to use.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Measure though this machine's plan still holds.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the fastest way to run a bundle that answers as well as float32, and use it from then on."""
    from reskit.optimization import BATCHES, Watch, choices_table, engines_table
    from reskit.optimization import optimize as run

    with Watch() as watch:
        result = run(
            bundle,
            goal=goal,
            data=data,
            pictures=pictures,
            max_drop=max_drop,
            backends=backends,
            precisions=precisions,
            batches=batches or BATCHES,
            threads=threads,
            again=again,
            say=watch.say,
            step=watch.step,
        )
    if json:
        _print_json(result.as_dict())
        return
    _console().print(engines_table(result.plan), choices_table(result.plan), sep="\n")
    _print_paths({"plan": result.folder})


@app.command()
def serve(
    bundles: Annotated[
        list[str],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundles, folders of versions or of bundles, or URLs of buckets with such; NAME=BUNDLE.",
        ),
    ],
    host: Annotated[str, typer.Option(help="Address; of this machine alone by default.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Of REST; 0 takes a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Of gRPC; 0 takes a free one.")] = 8001,
    no_grpc: Annotated[bool, typer.Option("--no-grpc", help="Leave gRPC out.")] = False,
    engine: Engine = "auto",
    max_batch: Annotated[
        int | None, typer.Option(help="Most examples at once; what `reskit optimize` found best, else 16.")
    ] = None,
    max_delay_ms: Annotated[
        float, typer.Option(help="How long an example may wait for others though a worker rests.")
    ] = 0.0,
    queue: Annotated[int, typer.Option(help="Most examples that wait; more are told to come again.")] = 256,
    workers: Annotated[int | None, typer.Option(help="Batches at the same time.")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds an answer may take.")] = 30.0,
    body_timeout: Annotated[float, typer.Option(help="Seconds a request may take to arrive.")] = 30.0,
    grace: Annotated[float, typer.Option(help="Seconds a stop waits for what is being answered.")] = 30.0,
    drain: Annotated[float, typer.Option(help="Seconds a stop goes on answering, not ready.")] = 0.0,
    max_body: Annotated[float, typer.Option(help="Largest body in MiB, decompressed.")] = 64.0,
    max_pixels: Annotated[int, typer.Option(help="Largest image.")] = 50_000_000,
    max_connections: Annotated[int, typer.Option(help="Most connections at once.")] = 2048,
    drift_window: Annotated[
        int, typer.Option(help="Images of which drift is told together: 50, 100, 200, 500 or 1000.")
    ] = 200,
    drift_rate: Annotated[
        float, typer.Option(help="Most examples a second that are looked at for drift; 0 turns it off.")
    ] = 5.0,
    token_file: Annotated[
        Path | None, typer.Option(help="Hashes of the tokens that may ask; anyone may without it.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="Ask clients for certificates that these signed, PEM.")
    ] = None,
    platform: Annotated[
        Literal["sagemaker", "vertex", "azureml"] | None,
        typer.Option(help="Answer at its routes too; told from its environment variables when absent."),
    ] = None,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="json: a line for every request, for machines.")
    ] = "text",
    journal: Annotated[
        Path | None, typer.Option(help="Write deployments and signs of life to this file.")
    ] = None,
    watch: Annotated[
        float, typer.Option(help="Seconds between looks for new versions; 0: only when told to load.")
    ] = 0.0,
    rollout: Annotated[
        Literal["at-once", "canary", "shadow"], typer.Option(help="How a new version takes over.")
    ] = "at-once",
    rollout_share: Annotated[
        float, typer.Option(help="Part of the requests that old and new are both asked on trial.")
    ] = 0.1,
    rollout_requests: Annotated[int, typer.Option(help="So many of them decide.")] = 100,
    rollout_seconds: Annotated[float, typer.Option(help="Decide after so long with what was seen.")] = 600.0,
    rollout_errors: Annotated[float, typer.Option(help="Part of them the new one may fail.")] = 0.01,
    rollout_disagreement: Annotated[float, typer.Option(help="Part of them it may answer otherwise.")] = 0.2,
    rollout_slowdown: Annotated[
        float, typer.Option(help="Its median time may be so many times the old one's.")
    ] = 2.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer over REST and gRPC by the Open Inference Protocol until told to stop."""
    from reskit.serving import Server
    from reskit.serving import serve as run

    def started(server: Server) -> None:
        if json:
            _print_json(server.as_dict())
            sys.stdout.flush()
        for line in server.lines() if log_format == "text" else []:
            typer.echo(line, err=True)

    run(
        [_named(given) for given in bundles],
        started=started,
        host=host,
        port=port,
        grpc_port=None if no_grpc else grpc_port,
        engine=engine,
        max_batch=max_batch,
        max_delay_ms=max_delay_ms,
        queue=queue,
        workers=workers,
        timeout_s=timeout,
        body_timeout_s=body_timeout,
        grace_s=grace,
        drain_s=drain,
        max_body_mib=max_body,
        max_pixels=max_pixels,
        max_connections=max_connections,
        drift_window=drift_window,
        drift_rate=drift_rate,
        token_file=token_file,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        platform=platform,
        log_format=log_format,
        journal=journal,
        watch_s=watch,
        rollout=rollout,
        rollout_share=rollout_share,
        rollout_requests=rollout_requests,
        rollout_s=rollout_seconds,
        rollout_errors=rollout_errors,
        rollout_disagreement=rollout_disagreement,
        rollout_slowdown=rollout_slowdown,
    )


@app.command()
def profile(
    bundle: BundlePath,
    data: Data = None,
    false_alarms: Annotated[
        float, typer.Option(help="Share of windows of unchanged traffic that may raise an alarm.")
    ] = 0.01,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write into a bundle what its data are like, so that a service can tell when they change."""
    from reskit.drift.making import add_profile

    profile = add_profile(bundle, data, false_alarms=false_alarms)
    if json:
        _print_json({"bundle": str(bundle), **profile.as_dict()})
        return
    _print_rows(profile.as_dict()["thresholds"])
    _print_paths({"bundle": bundle})


@app.command()
def monitoring(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write alert rules, settings of Prometheus and Alertmanager, and a Grafana dashboard."""
    from reskit.monitoring import write_monitoring

    paths = write_monitoring(out)
    _print_json({name: str(path) for name, path in paths.items()}) if json else _print_paths(paths)


@app.command()
def watch(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of a service, such as http://127.0.0.1:8000.")],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Tell of one interval, then end.")] = False,
    credentials: Annotated[
        Path | None, typer.Option(help="A file with the token; that in RESKIT_TOKEN when absent.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="Certificates the service must have one signed by, PEM.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="Certificate to show the service, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what a service does: requests, errors, latencies, queues; until Ctrl-C."""
    from rich.live import Live

    from reskit.watching import Scraper
    from reskit.watching import watch as run
    from reskit.watching.view import render

    looks = run(Scraper(url, credentials=credentials, ca=ca, cert=cert, key=key), interval=interval)
    if json:
        _print_json(next(looks)[0].as_dict())
        return
    if once or not sys.stdout.isatty():
        _console().print(render(*next(looks)))
        return
    with contextlib.suppress(KeyboardInterrupt):
        first = render(*next(looks))
        with Live(first, console=_console(), screen=True, auto_refresh=False) as live:
            for look in looks:
                live.update(render(*look), refresh=True)


@app.command()
def bench(
    target: Annotated[str, typer.Argument(help="A bundle's folder, or the name of a network.")],
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Time this batch size; repeatable.")
    ] = None,
    peers: Annotated[
        list[str] | None, typer.Option("--peer", metavar="NAME", help="Only this peer; repeatable.")
    ] = None,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", metavar="NAME", help="Only this backend; repeatable.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="Side of the images, with a network's name.")
    ] = None,
    pictures: Pictures = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each contender.")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="Processors to use.")] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Time single layers too.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write tables, figures and plots here.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time a network beside its peers and against what this machine can do."""
    from reskit.benchmarking import PEERS
    from reskit.benchmarking import bench as run
    from reskit.optimization import Watch

    with Watch() as watch:
        report = run(
            target,
            batches=batches or (1, 16),
            peers=PEERS if peers is None else peers,
            backends=backends,
            size=size,
            pictures=pictures,
            rounds=rounds,
            threads=threads,
            layers=layers,
            out=out,
            say=watch.say,
            step=watch.step,
        )
    _print_json(report.as_dict()) if json else _console().print(report)


@app.command()
def lesion(
    bundle: BundlePath,
    data: Data = None,
    split: Annotated[
        str | None, typer.Option(help="Which split; validation where there is one, else train.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="At most so many.")] = 1024,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write figures and plot here.")
    ] = None,
    skip_corrupt: Annotated[bool, typer.Option(help="Leave out examples that cannot be read.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what each residual block is worth: the loss without it, and the size of what it adds."""
    from reskit.insight import lesion_study

    on_corrupt: Literal["refuse", "skip"] = "skip" if skip_corrupt else "refuse"
    study = lesion_study(bundle, data, split=split, examples=examples, out=out, on_corrupt=on_corrupt)
    if json:
        _print_json(study.as_dict())
        return
    _print_rows(study.rows)
    _print_paths(study.files)


@app.command()
def prune(
    bundle: BundlePath,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")],
    data: Data = None,
    share: Annotated[float, typer.Option(min=0, max=1, help="Part of the residual blocks that goes.")] = 0.25,
    blocks: Annotated[
        list[str] | None, typer.Option("--block", metavar="NAME", help="This one goes; repeatable.")
    ] = None,
    by: Annotated[Literal["lesion", "ratio"], typer.Option(help="What blocks are ranked by.")] = "lesion",
    split: Annotated[str | None, typer.Option(help="Where the examples to choose by are from.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="At most so many to choose by.")] = 1024,
    epochs: Annotated[int, typer.Option(min=0, help="Of learning on.")] = 3,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key of it; repeatable."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Leave out the residual blocks a network can best do without, and train the rest briefly."""
    from reskit.insight import prune as run

    result = run(
        bundle,
        out,
        data=data,
        share=share,
        blocks=blocks or (),
        by=by,
        split=split,
        examples=examples,
        epochs=epochs,
        overrides=overrides or (),
    )
    if json:
        _print_json(result.as_dict())
        return
    _print_rows(result.rows)
    for stage, metrics in result.metrics.items():
        typer.echo(f"{stage:<8} {result.metric_name} {metrics[result.metric_name]:.4f}")
    typer.echo(f"latency  {result.latency_ratio:.3f} of the whole network's")
    _print_paths({"bundle": result.bundle, **result.files})


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="NAME=RUN...", help="Folders of runs, and their names.")
    ],
    key: Annotated[
        str | None, typer.Option(help="A column of log.csv; the held-out top-1 when absent.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PNG", help="Draw the convergence here.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs: what each reached, by epoch and by second; runs of one name are averaged."""
    from reskit.evaluation import compare as run

    named: dict[str, list[str]] = {}
    for given in runs:
        name, _, folder = given.rpartition("=")
        named.setdefault(name or Path(folder).name, []).append(folder)
    result = run(named, key=key, out=out)
    if json:
        _print_json(result.as_dict())
        return
    typer.echo(f"{result.key}; target {result.target:.4f}, the best of the one that got least far")
    _print_rows(result.rows)
    if result.plot:
        _print_paths({"convergence": result.plot})


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(help="A shell pattern, such as '*resnet*'.")] = "*",
    task: Annotated[str | None, typer.Option(help="Only those made for this task.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the networks, their parameters and sources."""
    from reskit.models import MODELS, list_models

    entries = [MODELS.get(name) for name in list_models(pattern, task=task)]
    if not entries:
        wanted = f"model for the task {task!r}" if task else "model"
        raise ReskitError(f"no {wanted} matches {pattern!r}; `reskit models` lists all {len(MODELS)}")
    rows = [
        {
            "name": entry.name,
            "parameters": entry.parameters,
            "task": entry.task,
            "classes": entry.num_classes,
            "input": "x".join(map(str, entry.input_size)),
            "paper": entry.paper,
        }
        for entry in entries
    ]
    _print_json(rows) if json else _print_rows(rows)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List the packaged recipes, or show one."""
    from reskit.recipes import list_recipes, load_recipe

    if name is not None:
        import yaml

        values = load_recipe(name).model_dump(mode="json")
        _print_json(values) if json else typer.echo(yaml.safe_dump(values, sort_keys=False), nl=False)
        return
    known = [load_recipe(recipe) for recipe in list_recipes()]
    rows = [
        {"name": r.name, "model": r.model.name, "epochs": r.training.epochs, "description": r.description}
        for r in known
    ]
    _print_json(rows) if json else _print_rows(rows)


@app.command()
def doctor(json: Json = False, debug: Debug = False) -> None:
    """Say what this machine has, what is installed, and what is missing for which extra."""
    from reskit.environment import extras, machine, versions

    report = {"machine": machine(), "versions": versions(), "missing": extras()}
    if json:
        _print_json(report)
        return
    _print_rows([{"machine": key, "found": _plain(value)} for key, value in report["machine"].items()])
    _print_rows([{"package": key, "version": value} for key, value in report["versions"].items()])
    _print_rows(
        [
            {
                "extra": extra,
                "missing": ", ".join(absent) or "nothing",
                "install": f"pip install 'reskit[{extra}]'",
            }
            for extra, absent in report["missing"].items()
        ]
    )


def main() -> None:
    """Run the command line; turn what is the user's to mend into one line and exit code 1."""
    try:
        app()
    except ReskitError as error:
        _fail(error)
    except OSError as error:
        if error.errno not in _USERS_TO_MEND:
            raise
        _fail(error)


def _fail(error: Exception) -> None:
    if "--debug" in sys.argv:
        raise error
    sys.exit(f"error: {' '.join(str(error).split())}")


def _lines_of_stdin() -> list[str]:
    """Return the lines that are not blank; a file name need not be UTF-8."""
    return [os.fsdecode(line) for line in sys.stdin.buffer.read().splitlines() if line.strip()]


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _print_json(document: Any) -> None:
    from reskit.files import to_json

    typer.echo(to_json(document), nl=False)


def _print_metrics(task: str, title: str, metrics: dict[str, float]) -> None:
    from reskit.evaluation.report import metrics_table

    _console().print(metrics_table(task, metrics, title))


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(header_style="bold", box=None, pad_edge=False)
    for place, name in enumerate(rows[0]):
        numeric = any(isinstance(row[name], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold", no_wrap=place == 0)
    for row in rows:
        table.add_row(*(Text(_plain(value)) for value in row.values()))
    _console().print(table)


def _print_paths(paths: dict[str, Path]) -> None:
    width = max((len(name) for name in paths), default=0)
    for name, path in paths.items():
        typer.echo(f"{name:<{width}}  {path}")


def _named(given: str) -> tuple[str | None, str]:
    """Return the name and the folder or URL of NAME=BUNDLE, the name None where there is none."""
    start, scheme_end, rest = given.partition("://")  # behind it, = is part of the URL
    name, equals, place = start.rpartition("=")
    if equals and not name:
        raise ConfigError(f"{given!r} has no name before the =: give NAME=BUNDLE, or the bundle alone")
    return name or None, f"{place}{scheme_end}{rest}"


def _serving(bundle: Path) -> str:
    """Return the command that serves a bundle, after that which installs what serving needs."""
    called = Path(sys.argv[0])
    found = shutil.which("reskit")
    here = called.name != "reskit" or (found is not None and called.exists() and called.samefile(found))
    reskit, pip = ("reskit", "pip") if here else (str(called), str(called.with_name("pip")))
    command = f"{reskit} serve {shlex.quote(str(bundle))}"
    missing = any(find_spec(name) is None for name in ("fastapi", "grpc", "uvicorn", "uvloop"))
    return f"{pip} install 'reskit[serve]' && {command}" if missing else command


def _plain(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)
