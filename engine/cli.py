"""The command `freshet`: runs and checks pipelines. What it prints is made in `engine.show`."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import platform
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import orjson
import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from engine.ask import AskError, ask
from engine.audit import SAMPLE
from engine.audit import audit as audited
from engine.auditing import Audits
from engine.bind import Inputs, UnreachableError, check_alone, check_bindings, check_lags, set_policies
from engine.calibrate import calibrate as bounds_of
from engine.cluster import supervise
from engine.compare import compare as compare_policies
from engine.draw import as_json, drawing, svg, text
from engine.erase import finish
from engine.expect import ExpectationError, check_learned
from engine.export import export as write
from engine.flow import FlowError, Published, Run
from engine.forget import request
from engine.graph import Model
from engine.learnt import write as write_learnt
from engine.lines import LinesError
from engine.log import LogError, logs
from engine.logs import Form, Log
from engine.merge import MergeError
from engine.model import ModelError
from engine.page import page
from engine.past import past
from engine.pipeline import Pipeline
from engine.policy import parse
from engine.publish import outputs
from engine.recovery import State, claim, sealed
from engine.report import figures, history
from engine.seal import SealError
from engine.settings import TOKEN, Settings, SettingsError, instant, load, token_for
from engine.show import (
    audits_of,
    calibration_of,
    comparison_of,
    forgotten_of,
    freshness_of,
    graph_of,
    logs_of,
    status_of,
    summary_of,
    versions_of,
)
from engine.sink import SinkError
from engine.spec import warnings
from engine.versions import VersionError, Versions
from engine.worker import answering, heed_signals, started, url_of, watch
from operators.operator import DefinitionError

app = typer.Typer(
    name="freshet",
    help="Streaming incremental view maintenance for machine learning.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)


def _fail(error: object, code: int) -> NoReturn:
    errors.print(f"[bold red]error:[/] {_plain(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def load_pipeline(path: Path) -> tuple[Pipeline, Path]:
    """The pipeline that a file, or `pipeline.py` in a folder, declares, and that folder.

    Raises `DefinitionError` when there is none or more than one.
    """
    file = path / "pipeline.py" if path.is_dir() else path
    if not file.is_file():
        raise DefinitionError(f"no pipeline at {str(path)!r}: expected a folder with a pipeline.py, or a Python file")
    spec = importlib.util.spec_from_file_location("freshet_pipeline", file)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{str(file)!r} is not a Python file")
    sys.path.insert(0, str(file.parent.resolve()))
    module = importlib.util.module_from_spec(spec)
    sys.modules["freshet_pipeline"] = module
    spec.loader.exec_module(module)
    found = {id(v): v for v in vars(module).values() if isinstance(v, Pipeline)}
    if len(found) != 1:
        raise DefinitionError(f"{str(file)!r} declares {len(found)} pipelines at its top level; expected one")
    return next(iter(found.values())), file.parent


def _opened(path: Path) -> tuple[Pipeline, Path]:
    try:
        return load_pipeline(path)
    except DefinitionError as error:
        _fail(error, 2)
    except Exception as error:  # whatever the user's file raises
        line = traceback.extract_tb(error.__traceback__)[-1]
        place = "" if isinstance(error, SyntaxError) else f" ({line.filename}, line {line.lineno})"
        known = dir(error.obj) if isinstance(error, AttributeError) else []
        close = difflib.get_close_matches(getattr(error, "name", None) or "", known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _fail(f"{str(path)!r} cannot be loaded: {type(error).__name__}: {error}{hint}{place}", 2)


PipelineArg = Annotated[Path, typer.Argument(help="A folder with a pipeline.py, or a Python file.", show_default=False)]
RefreshOption = Annotated[
    list[str] | None,
    typer.Option(help="Another refresh policy of a view or model: name=policy.", show_default=False),
]
SinkOption = Annotated[
    list[str] | None,
    typer.Option(help="Where a sink goes instead of a file: name=kafka://HOST:PORT/TOPIC.", show_default=False),
]
StateOption = Annotated[
    Path | None, typer.Option("--state", help="Where state is kept. [default: state/NAME]", show_default=False)
]


@app.command(epilog="Example: freshet check examples/flights")
def check(pipeline: PipelineArg, refresh: RefreshOption = None) -> None:
    """Build a pipeline and print its graph and schemas, without running it."""
    p, folder = _opened(pipeline)
    try:
        settings = load(folder, {}, refreshes=refresh or [])
        set_policies(p, settings)
        check_lags(p, settings)
    except (SettingsError, DefinitionError) as error:
        _fail(error, 2)
    console.print(graph_of(p))
    _warn(p)


@app.command(epilog="Examples: freshet graph examples/flights · freshet graph examples/flights --svg flights.svg")
def graph(
    pipeline: PipelineArg,
    svg_file: Annotated[
        Path | None, typer.Option("--svg", help="Write the drawing to this file, as SVG.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with all that is known of each part.")] = False,
) -> None:
    """Draw a pipeline: sources and tables, views, models and sinks, and what each is made of."""
    p = _as_set(pipeline)
    if svg_file is not None:
        try:
            svg_file.write_text(svg(drawing(p)), encoding="utf-8")
        except OSError as error:
            _fail(f"cannot write {str(svg_file)!r}: {error.strerror}", 1)
    if json:
        print(orjson.dumps(as_json(drawing(p)), option=orjson.OPT_INDENT_2).decode())
    elif svg_file is None:
        print(text(p))


def _warn(p: Pipeline) -> None:
    for model in p.models.values():
        for line in warnings(model.spec):
            errors.print(f"[yellow]warning:[/] {_plain(line)}", highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: freshet run examples/flights --days 14 · "
    "freshet run my/pipeline --bind orders=orders.jsonl,changes --refresh \"daily=deferred(every='1h')\" --follow"
)
def run(
    pipeline: PipelineArg,
    out: Annotated[Path | None, typer.Option(help="Where outputs go. [default: out/NAME]", show_default=False)] = None,
    state: StateOption = None,
    days: Annotated[float | None, typer.Option(help="Take only the first days of the data.", min=0.001)] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on reading when a file grows, until stopped.")] = False,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a source comes from: name=path or name=kafka://HOST:PORT/TOPIC, or with ,format.",
            show_default=False,
        ),
    ] = None,
    sink: SinkOption = None,
    refresh: RefreshOption = None,
    workers: Annotated[
        int | None, typer.Option(help="Threads that run the dataflow. [default: 1]", show_default=False)
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Processes that run the dataflow. [default: 1]", show_default=False)
    ] = None,
    addresses: Annotated[
        str | None,
        typer.Option(
            help="Of processes on several machines, which share the state directory: HOST:PORT;HOST:PORT.",
            show_default=False,
        ),
    ] = None,
    process_id: Annotated[
        int, typer.Option(help="Which of --addresses this process is, from 0 on.", min=0, show_default=False)
    ] = 0,
    held: Annotated[int | None, typer.Option(hidden=True)] = None,
    shards: Annotated[int | None, typer.Option(help="Parts of keyed state. [default: 1]", show_default=False)] = None,
    batch_rows: Annotated[
        int | None, typer.Option(help="Most rows in a batch. [default: 4000]", show_default=False)
    ] = None,
    epoch: Annotated[
        str | None, typer.Option(help="How often state is saved. [default: 2s]", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="The port of /metrics; 0: none. [default: 9310]", show_default=False)
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="The address of /metrics; others need a token in FRESHET_TOKEN. [default: 127.0.0.1]",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no summary.")] = False,
    log: Annotated[
        str | None,
        typer.Option(help="Say what happens as text or json, without a progress bar. [default: text with --follow]"),
    ] = None,
) -> None:
    """Run a pipeline: to the end of its files, or for ever with --follow.

    Stopped at any moment, by a signal or a crash, the same command goes on where it was: no change is lost or doubled.
    """
    if log not in (None, "text", "json"):
        _fail(f"--log is {log!r}; expected 'text' or 'json'", 2)
    p, folder = _opened(pipeline)
    given = {
        "workers": workers,
        "processes": processes,
        "shards": shards,
        "batch_rows": batch_rows,
        "epoch": epoch,
        "port": port,
        "host": host,
    }
    where = [] if addresses is None else addresses.split(";")
    if where and process_id >= len(where):
        _fail(
            f"--process-id is {process_id}, but --addresses are {len(where)}; expected less, for they count from 0", 2
        )
    settings, out, mine = _claimed(
        p, folder, out, state, given, bind, refresh, None, sink, held is None and not process_id, bool(where)
    )
    if settings.processes > 1 and not where:
        code = supervise(settings.processes, sys.argv[1:])
        mine.release()
        raise typer.Exit(code)
    _warn(p)
    until = None if days is None else int(days * 86_400_000_000)
    live = Run(p, settings, out, mine, follow, until, lambda: time.time_ns() // 1000 if follow else None)
    if where:
        live.process, live.addresses = process_id, where
        live.published = Published(mine.folder / "published")
        settings.port += process_id if settings.port and held is not None else 0  # several on one machine
    live.audits = _audits(p, pipeline, mine, refresh)
    form = cast(Form, log or ("text" if follow and not quiet else "none"))
    _go(
        live,
        pipeline,
        mine,
        settings,
        quiet or log is not None or bool(where),
        Log(form, lambda: time.time_ns() // 1000),
        held,
    )


def _audits(p: Pipeline, pipeline: Path, held: State, refresh: list[str] | None) -> Audits | None:
    """The audits that are declared; None when there are none."""
    given = [part for text in refresh or [] for part in ("--refresh", text)]

    def command(model: str, since: int) -> list[str]:
        line = ["audit", str(pipeline), "--model", model, f"--since={since}", "--state", str(held.folder), "--json"]
        return [sys.executable, "-m", "engine", *line, *given]

    every = {m.name: (m.audit, m.spec.features) for m in p.models.values() if m.audit is not None}
    return Audits(every, command, held.folder / "audit") if every else None


def _claimed(
    p: Pipeline,
    folder: Path,
    out: Path | None,
    state: Path | None,
    given: Mapping[str, Any],
    bind: list[str] | None,
    refresh: list[str] | None,
    forget: list[str] | None = None,
    sinks: list[str] | None = None,
    alone: bool = True,
    several: bool = False,
) -> tuple[Settings, Path, State]:
    """The settings of a run, where its outputs go, and the state, held for it unless another process holds it."""
    out, state = out or Path("out") / folder.resolve().name, state or Path("state") / folder.resolve().name
    try:
        settings = load(folder, given, bind or [], refresh or [], sinks or [])
        set_policies(p, settings)
        if forget is None:
            token_for(settings)
        asked = None if forget is None else request(p, forget).where
        if p.prepare is not None and not bind:
            with errors.status(f"{p.name}: preparing the data"):
                p.prepare(folder)
        check_learned(p, f"freshet calibrate {folder}")
        check_alone(p, settings, several)
        check_bindings(p, settings)
        check_lags(p, settings)
        if not alone:
            return settings, out, State.shared(state, p.name)
        names = outputs(p, settings.sinks)
        return settings, out, claim(state, p.name, p.definition(), settings.shards, out, names, asked)
    except (SettingsError, DefinitionError) as error:
        _fail(error, 2)
    except SealError as error:
        _fail(error, 3)
    except UnreachableError as error:
        _fail(error, 1)


def _ended(failed: list[FlowError], held: State, cure: str) -> None:
    if failed:
        held.release()
        code = 3 if isinstance(failed[0].__cause__, _of_state()) else 1
        _fail(str(failed[0]) if code == 3 else f"{failed[0]} ({cure})", code)


def _of_state() -> tuple[type[Exception], ...]:
    """Errors that running again does not cure: what is there is not what the state says."""
    from engine.topics import TopicError  # the client is slow to import

    return SealError, SinkError, TopicError, MergeError, LinesError


def _go(
    live: Run, pipeline: Path, held: State, settings: Settings, quiet: bool, log: Log, parent: int | None = None
) -> None:
    heed_signals(live)
    server = None
    if settings.port:
        try:
            server = answering(live)
        except OSError as error:
            held.release()
            _fail(f"/metrics cannot be served on {settings.host!r}, port {settings.port}: {error.strerror}", 1)
    began = time.monotonic()
    log.say(
        "starts",
        pipeline=live.graph.name,
        version=metadata.version("freshet"),
        sources=" ".join(f"{name}:{settings.sources[name].place}" for name in live.graph.sources),
        sinks=" ".join(f"{n}:{settings.sinks[n].topic if n in settings.sinks else 'file'}" for n in live.graph.sinks),
        state="new" if held.fresh else "resumed",
        epoch=settings.epoch,
        metrics="none" if server is None else f"{url_of(server)}/metrics",
        page="none" if server is None else f"{url_of(server)}/",
    )
    thread, failed = started(live)
    watch(live, thread, errors, quiet, log, parent)
    if server is not None:
        server.shutdown()
    if failed:
        log.say("failed", "error", reason=str(failed[0]))
    _ended(failed, held, "what was saved is kept: run the same command again once the cause is gone")
    seconds = time.monotonic() - began
    if live.publish is None and live.addresses:  # another process has it
        return
    final = figures(live, None)
    log.say("stopped" if live.stop.is_set() else "done", changes=final["changes"], seconds=round(seconds, 1))
    final["outputs"] = {
        **{n: str(live.out / f"{n}.jsonl") for n in outputs(live.graph, settings.sinks)},
        **{n: f"topic {one.topic}" for n, one in settings.sinks.items()},
        "summary": str(live.out / "summary.json"),
    }
    (live.out / "summary.json").write_bytes(orjson.dumps(final, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    held.release()
    if not quiet:
        console.print(summary_of(live.graph, final, seconds, stopped=live.stop.is_set(), pipeline=str(pipeline)))


def _kept(pipeline: Path, state: Path | None) -> Path:
    """The folder in which the state of a pipeline is."""
    folder = pipeline if pipeline.is_dir() else pipeline.parent
    found = state or Path("state") / folder.resolve().name
    if not found.is_dir():
        _fail(f"there is no state in {str(found)!r}: run the pipeline first, or give its --state", 2)
    return found


def _as_of(text: str, option: str = "--as-of") -> datetime:
    try:
        return instant(text)
    except ValueError:
        _fail(f"{option} is {text!r}: expected a time such as '2013-02-01' or '2013-02-01T12:00:00Z'", 2)


@app.command(epilog="Examples: freshet freshness · freshet freshness http://worker:9310 --json")
def freshness(
    worker: Annotated[str, typer.Argument(help="Where the worker answers.")] = "http://127.0.0.1:9310",
    as_told: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """How fresh each view and model of a running worker is, and why not.

    Fails when one is past its error_after, or no worker answers: for cron and CI. A token comes from FRESHET_TOKEN.
    """
    try:
        told = ask(worker, os.environ.get(TOKEN, ""))
    except AskError as error:
        _fail(error, 1)
    if as_told:
        keep = ("lag_seconds", "target_lag_seconds", "warn_after_seconds", "error_after_seconds", "state")
        more = ("within_target", "frontier", "local_lag_seconds", "global_lag_seconds", "pending_changes", "causes")
        found = {kind: {n: {k: v.get(k) for k in (*keep, *more)} for n, v in told[kind].items()}
                 for kind in ("views", "models")}  # fmt: skip
        about = {k: told[k] for k in ("pipeline", "phase", "time")}
        print(orjson.dumps({**about, **found}, option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(freshness_of(told))
    past = [n for kind in ("views", "models") for n, v in told[kind].items() if v["state"] == "error"]
    if past:
        _fail(f"past error_after: {', '.join(past)}", 1)


@app.command(
    epilog="Examples: freshet export examples/flights late.training --out late.parquet · "
    "freshet export examples/flights late.training --out then.csv --as-of 2013-02-01T12:00:00Z"
)
def export(
    pipeline: PipelineArg,
    relation: Annotated[str, typer.Argument(help="A source, view or training set, such as late.training.")],
    out: Annotated[Path, typer.Option(help="The file: .parquet, .csv, .jsonl, .ndjson or .arrow.", show_default=False)],
    as_of_time: Annotated[
        str | None,
        typer.Option("--as-of", help="With what was known at that time (UTC unless it says).", show_default=False),
    ] = None,
    seq: Annotated[int | None, typer.Option(help="With the changes up to this one.", show_default=False)] = None,
    refresh: RefreshOption = None,
    state: StateOption = None,
) -> None:
    """Write a source, view or training set to a file: as it is, or as it was with what was known at some time.

    From its change log, or recomputed from the change logs of what it is made of. While a run is live, with what it
    has saved.
    """
    p = _as_set(pipeline, refresh)
    kept = _kept(pipeline, state)
    known = None if as_of_time is None else _as_of(as_of_time)
    try:
        try:
            found = past(p, kept, relation, known, seq)
        except DefinitionError:
            errors.print(logs_of(logs(kept)))
            raise
        rows = write(found.lazy(), out)
    except DefinitionError as error:
        _fail(error, 2)
    except LogError as error:
        _fail(error, 3)
    except OSError as error:
        _fail(f"cannot write {str(out)!r}: {error}", 1)
    console.print(f"{rows:,} rows of {relation} written to {out}", highlight=False, soft_wrap=True)


@app.command(epilog="Examples: freshet audit examples/flights · freshet audit examples/flights --model late --json")
def audit(
    pipeline: PipelineArg,
    model: Annotated[
        list[str] | None, typer.Option(help="Only this model. [default: each]", show_default=False)
    ] = None,
    sample: Annotated[int, typer.Option(help="Look at so many questions of each, at most.", min=1)] = SAMPLE,
    since: Annotated[int, typer.Option(help="Only those that were answered by later changes.")] = -1,
    refresh: RefreshOption = None,
    state: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON.")] = False,
) -> None:
    """Compare the features that models were served with what a recompute from the change logs gives.

    At the moment of each question, bit for bit. Fails when there is any difference.
    """
    p = _as_set(pipeline, refresh)
    if not p.models:
        _fail(f"pipeline {p.name!r} has no model, so nothing was served that could be audited", 2)
    kept = _kept(pipeline, state)
    try:
        found = [audited(p, kept, name, sample, since) for name in model or p.models]
    except DefinitionError as error:
        _fail(error, 2)
    except LogError as error:
        _fail(error, 3)
    if as_json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(audits_of(found), highlight=False)
    if wrong := sum(one["mismatches"] for one in found):
        _fail(f"{wrong:,} mismatches: what was served is not what a recompute gives", 1)


def _as_set(pipeline: Path, refresh: list[str] | None = None) -> Pipeline:
    """The pipeline with the policies that its settings, and these texts, give."""
    p, folder = _opened(pipeline)
    try:
        set_policies(p, load(folder, {}, [], refresh or []))
    except (SettingsError, DefinitionError) as error:
        _fail(error, 2)
    return p


def _found(p: Pipeline, model: str) -> Model:
    if model not in p.models:
        _fail(f"there is no model {model!r} in pipeline {p.name!r}; there are: {', '.join(p.models) or 'none'}", 2)
    return p.models[model]


@app.command(epilog="Examples: freshet models examples/flights · freshet models examples/flights late --json")
def models(
    pipeline: PipelineArg,
    model: Annotated[str | None, typer.Argument(help="Only this model.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON, with all that is known of each version.")] = False,
    state: StateOption = None,
) -> None:
    """List the versions of models: what each was fitted on and why, what became of it, and which one serves."""
    p = _as_set(pipeline)
    chosen = [_found(p, model)] if model is not None else list(p.models.values())
    if not chosen:
        _fail(f"pipeline {p.name!r} has no model; declare one with p.model", 2)
    kept = _kept(pipeline, state)
    try:
        seal = sealed(kept, p.name)
        found = [history(m, kept, seal) for m in chosen]
    except (LogError, SealError) as error:
        _fail(error, 3)
    if json:
        print(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(versions_of(found))


@app.command(
    epilog="Examples: freshet rollback examples/flights late · freshet rollback examples/flights late 5f3a90c1.81234"
)
def rollback(
    pipeline: PipelineArg,
    model: Annotated[str, typer.Argument(help="The model.", show_default=False)],
    version: Annotated[
        str | None,
        typer.Argument(help="The version. [default: the one that served before]", show_default=False),
    ] = None,
    state: StateOption = None,
) -> None:
    """Let an earlier version of a deferred model serve again, until the next one is published."""
    p = _as_set(pipeline)
    found = _found(p, model)
    try:
        kept = _kept(pipeline, state)
        versions = Versions(kept / "models" / model, sealed(kept, p.name))
        if not versions.all():
            _fail(f"model {model!r} is kept by {found.refresh}: it has no versions to go back to", 2)
        name = version or versions.before
        if name is None:
            _fail(
                f"model {model!r} has served no earlier version: name the one that is to serve "
                f"(freshet models {pipeline} {model} lists them)",
                2,
            )
        versions.want(name)
    except VersionError as error:
        _fail(error, 2)
    except SealError as error:
        _fail(error, 3)
    console.print(
        f"{model}: {name} serves from the next batch on, instead of {versions.serving}: at once if a run is live and "
        "changes come, otherwise when one is started; until the next version is published",
        highlight=False,
        soft_wrap=True,
    )


@app.command(epilog="Examples: freshet status · freshet status http://worker:9310 --json")
def status(
    url: Annotated[
        str, typer.Argument(help="Where the worker answers; its token is taken from FRESHET_TOKEN.")
    ] = "http://127.0.0.1:9310",
    json: Annotated[bool, typer.Option("--json", help="Print all figures once, as JSON.")] = False,
    once: Annotated[
        bool, typer.Option("--once", help="Print the table once, instead of keeping it up to date.")
    ] = False,
) -> None:
    """Show how a worker stands: its sources, views and models, kept up to date until Ctrl-C.

    The same and more is on the page that the worker serves at that address.
    """
    token = os.environ.get(TOKEN, "")
    try:
        told = ask(url, token)
        if json:
            print(orjson.dumps(told, option=orjson.OPT_INDENT_2).decode())
        elif once:
            console.print(status_of(told, {}))
        else:
            _keep_showing(url, token, told)
    except AskError as error:
        _fail(error, 1)


def _keep_showing(url: str, token: str, told: dict[str, Any]) -> None:
    """The table, once a second, with the rates since the look before; it ends by Ctrl-C, or when the worker is gone."""
    with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as shown:
        before, at, rates = told, time.monotonic(), dict[str, float]()
        while True:
            shown.update(status_of(told, rates), refresh=True)
            time.sleep(1)
            told, now = ask(url, token), time.monotonic()
            if told["started"] == before["started"]:
                rates = {
                    n: (s["changes"] - before["sources"][n]["changes"]) / (now - at) for n, s in told["sources"].items()
                }
            before, at = told, now


@app.command(epilog="Examples: freshet forget cards card=4711 · freshet forget cards customer=17 --remove")
def forget(
    pipeline: PipelineArg,
    what: Annotated[
        list[str], typer.Argument(help="The rows: column=value; of several all must be met.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Where outputs are. [default: out/NAME]", show_default=False)] = None,
    state: StateOption = None,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a source comes from: name=path or name=kafka://HOST:PORT/TOPIC, or with ,format.",
            show_default=False,
        ),
    ] = None,
    sink: SinkOption = None,
    refresh: RefreshOption = None,
    shards: Annotated[int | None, typer.Option(help="Parts of keyed state. [default: 1]", show_default=False)] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the learners of old versions that had seen any of it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Forget a key: take its rows back from views, training sets and models, for good.

    The rows of every source that has the columns. Stop the run before. Reports what was repaired, what was fitted
    anew, and what remains. Cut off, it is to be finished by the same command.
    """
    p, folder = _opened(pipeline)
    state = _kept(pipeline, state)
    settings, out, held = _claimed(p, folder, out, state, {"shards": shards}, bind, refresh, what, sink)
    live = Run(p, settings, out, held, forget=request(p, what))
    thread, failed = started(live)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), console=errors, transient=True
    ) as bar:
        task = bar.add_task(f"{p.name}: searching", total=1.0)
        while thread.is_alive():
            thread.join(0.1)
            done = live.found is not None
            bar.update(task, completed=live.share, description=f"{p.name}: {'repairing' if done else 'searching'}")
    _ended(failed, held, "finish it by the same command once the cause is gone")
    try:
        report = finish(live, remove)
    except (LogError, SealError) as error:
        _fail(error, 3)
    held.forgotten()
    held.release()
    if as_json:
        print(orjson.dumps(report, option=orjson.OPT_INDENT_2).decode())
    else:
        console.print(forgotten_of(report))


@app.command(
    epilog="Example: freshet compare examples/flights --model late --days 14 "
    "--policy 'immediate()' --policy \"deferred(every='1d', window='30d')\""
)
def compare(
    pipeline: PipelineArg,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A refresh policy; to be given several times. [default: the usual ones]", show_default=False),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model to compare them on. [default: each]", show_default=False)
    ] = None,
    days: Annotated[float | None, typer.Option(help="Take only the first days of the data.", min=0.001)] = None,
    second_costs: Annotated[
        float | None,
        typer.Option(help="Price of a second of the processor, in units of the loss.", min=0.0, show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The report. [default: out/NAME/compare.html]", show_default=False)
    ] = None,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a source comes from: name=path or name=kafka://HOST:PORT/TOPIC, or with ,format.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")] = False,
) -> None:
    """Compare refresh policies of models on history: what each would have been worth, how stale, and at what cost.

    One pass over the files; nothing is kept but the report, an HTML file.
    """
    p, folder = _opened(pipeline)
    out = out or Path("out") / folder.resolve().name / "compare.html"
    try:
        settings = load(folder, {}, bind or [])
        if p.prepare is not None and not bind:
            with errors.status(f"{p.name}: preparing the data"):
                p.prepare(folder)
        set_policies(p, settings)
        check_learned(p, f"freshet calibrate {folder}")
        check_bindings(p, settings)
        told = [parse(text, "--policy") for text in policy or []]
        if not (names := model or list(p.models)):
            raise DefinitionError(f"pipeline {p.name!r} has no model to compare policies of; declare one with p.model")
        with Progress(
            *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>5.1f} %")),
            *(TextColumn("{task.fields[changes]:>11,} changes"), TimeRemainingColumn()),
            console=errors,
            transient=True,
            auto_refresh=False,  # a thread that draws would be counted as work of the policies
        ) as bar:
            task = bar.add_task(f"{p.name}: comparing", total=1.0, changes=0)

            def progress(done: float, changes: int) -> None:
                bar.update(task, completed=done, changes=changes, refresh=True)

            began = time.monotonic()
            until = None if days is None else int(days * 86_400_000_000)
            with Inputs(p, settings) as inputs:
                found = compare_policies(
                    p,
                    inputs.parts,
                    dict.fromkeys(names, told),
                    batch_rows=settings.batch_rows,
                    until=until,
                    second_costs=second_costs,
                    progress=progress,
                )
    except (SettingsError, DefinitionError) as error:
        _fail(error, 2)
    except (ModelError, UnreachableError, ExpectationError) as error:
        _fail(error, 1)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(found, _about(time.monotonic() - began)))
    if as_json:
        sys.stdout.write(orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode())
        return
    for one in found:
        console.print(comparison_of(one), highlight=False)
    console.print(f"\nReport: {out}", highlight=False, soft_wrap=True)


@app.command(epilog="Examples: freshet calibrate examples/flights · freshet calibrate my/pipeline --until 2026-07-01")
def calibrate(
    pipeline: PipelineArg,
    until: Annotated[
        str | None,
        typer.Option(help="Only rows before it count, such as 2026-07-01 or 2026-07-01T12:00Z.", show_default=False),
    ] = None,
    budget: Annotated[float, typer.Option(help="False alarms per check-day: expectation, key and day.")] = 0.001,
    bind: Annotated[
        list[str] | None,
        typer.Option(
            help="Where a source comes from: name=path or name=kafka://HOST:PORT/TOPIC, or with ,format.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find the bounds of learned expectations from history, and write them beside the pipeline.

    Reads the sources from their beginning to what is there now, or counts only what comes before --until.
    """
    p, folder = _opened(pipeline)
    try:
        settings = load(folder, {}, bind or [])
        if p.prepare is not None and not bind:
            with errors.status(f"{p.name}: preparing the data"):
                p.prepare(folder)
        set_policies(p, settings)
        check_bindings(p, settings)
        before = None if until is None else round(_as_of(until, "--until").timestamp() * 1e6)
        with Progress(
            *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>5.1f} %")),
            *(TextColumn("{task.fields[changes]:>11,} changes"), TimeRemainingColumn()),
            console=errors,
            transient=True,
        ) as bar:
            task = bar.add_task(f"{p.name}: calibrating", total=1.0, changes=0)
            with Inputs(p, settings) as inputs:
                table, found = bounds_of(
                    p,
                    inputs.parts,
                    budget,
                    settings.batch_rows,
                    before,
                    lambda done, changes: bar.update(task, completed=done, changes=changes),
                )
    except (SettingsError, DefinitionError) as error:
        _fail(error, 2)
    except UnreachableError as error:
        _fail(error, 1)
    assert p.learned is not None
    try:
        write_learnt(p.learned, found, budget, until)
    except OSError as error:
        _fail(f"cannot write {str(p.learned)!r}: {error.strerror}", 1)
    console.print(calibration_of(table, budget), highlight=False)
    console.print(f"\nBounds: {p.learned}", highlight=False, soft_wrap=True)


def _about(seconds: float) -> dict[str, str]:
    """What was measured where."""
    names = ("freshet", "river", "scikit-learn", "lightgbm", "usearch", "numpy", "numba", "polars")
    return {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "took": f"{seconds:,.0f} s",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "versions": f"Python {platform.python_version()}, "
        + ", ".join(f"{d.name} {d.version}" for n in names for d in metadata.distributions(name=n)),
    }


def main(args: Any = None) -> None:
    """The entry point of the command."""
    app(args)


if __name__ == "__main__":
    main()
