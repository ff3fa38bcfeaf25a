"""The ``mailtide`` command. Facts go to stdout, everything else to stderr; 0 done, 1 failed (one line), 2 wrong usage."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from mailtide import settings as reading_settings
from mailtide.cli.console import console
from mailtide.process import failure_reason, logs
from schemas.config import Settings
from schemas.errors import SettingsError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
topics_app = typer.Typer(no_args_is_help=True, help="The topics as declared, and how a cluster differs.")
customer_app = typer.Typer(no_args_is_help=True, help="What is known of a customer.")
config_app = typer.Typer(no_args_is_help=True, help="The configuration and its mistakes.")
phrasebook_app = typer.Typer(no_args_is_help=True, help="The approved language.")
train_app = typer.Typer(help="The training service, and the search for its settings.")
release_app = typer.Typer(no_args_is_help=True, help="The published models of each cluster.")
for name, group in {
    "topics": topics_app,
    "customer": customer_app,
    "config": config_app,
    "phrasebook": phrasebook_app,
    "release": release_app,
    "train": train_app,
}.items():
    app.add_typer(group, name=name)

err = console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Clock = Annotated[str, typer.Option(help="Which time the timers follow: event or wall.")]


def _settings(clock: str = "", service: bool = False) -> Settings:
    found = reading_settings.load()
    logs.configure(found.log_level, service)
    if not clock:
        return found
    if clock not in ("event", "wall"):
        raise typer.BadParameter(f"{clock!r} is no clock; choose event or wall", param_hint="--clock")
    return msgspec.structs.replace(found, clock=clock)


def _serving(clock: str = "", service: bool = False) -> Settings:
    """Settings with triggers that can work: a mistake is told now, not by a service that dies again and again."""
    from models.customer.local_time import Quiet
    from models.triggers.rules import Rules

    found = _settings(clock, service)
    try:
        Rules(found.trigger)
        Quiet(found.sending.quiet_start, found.sending.quiet_end, found.shop.timezone)
    except SettingsError as error:
        raise SettingsError(f"{error} (`mailtide config check` names every mistake)") from None
    return found


def _print(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@app.command()
def demo(
    days: Annotated[int | None, typer.Option(min=1, max=364, help="Days of the panel's year.")] = None,
    customers: Annotated[int | None, typer.Option(min=1, help="Households.")] = None,
    as_json: Json = False,
) -> None:
    """Replay real purchases through every service, and say what came of it."""
    from mailtide.demo.run import main as run_demo

    summary = run_demo(_serving(), days, customers, err if as_json else console())
    if as_json:
        _print(summary)


@app.command()
def up(clock: Clock = "") -> None:
    """Every service on this machine, supervised, until Ctrl-C or SIGTERM."""
    from mailtide.services.up import main as run_up

    run_up(_serving(clock))


@app.command()
def worker(
    stages: Annotated[str, typer.Option(help="Comma-separated.")] = "intake,clusters,writer,sender",
    clock: Clock = "",
) -> None:
    """One stream worker; start more, anywhere, to scale out."""
    from mailtide.services.worker import main as run_worker
    from mailtide.services.worker import stages as named

    try:
        named(stages)
    except SettingsError as error:
        raise typer.BadParameter(str(error), param_hint="--stages") from error
    run_worker(_serving(clock, service=True), stages)


@app.command()
def replay(
    source: Annotated[str, typer.Argument(help="complete-journey, cdnow or a .jsonl file of events.")],
    days: Annotated[int | None, typer.Option(min=1)] = None,
    customers: Annotated[int | None, typer.Option(min=1)] = None,
    speed: Annotated[float | None, typer.Option(min=0.0, help="Event seconds in each second; as fast as it goes without.")] = None,
    reader: Annotated[bool, typer.Option("--reader", help="Simulated readers answer what is sent, each event marked so.")] = False,
) -> None:
    """Publish events in time order."""
    from mailtide.cli.replay import main as run_replay

    _print(run_replay(_settings(), source, days, customers, speed, err, reader))


@topics_app.command("create")
def topics_create() -> None:
    """Make what is missing."""
    from mailtide.local import broker
    from transport import topics

    with broker.running(_settings()) as ready:
        made = topics.create(ready)
    err.print(f"{len(made)} topics made" + (": " + ", ".join(made) if made else ""))


@topics_app.command("check")
def topics_check(as_json: Json = False) -> None:
    """Say how the cluster differs from the declaration; exit 1 where it does."""
    from mailtide.local import broker
    from transport import topics

    with broker.reading(_settings()) as ready:
        found = topics.differences(ready)
    if as_json:
        _print({"differences": found})
    else:
        for line in found:
            typer.echo(line)
    raise typer.Exit(1 if found else 0)


@customer_app.command("show")
def customer_show(customer: str, as_json: Json = False) -> None:
    """Counts, features, cluster, predictions, timers, and each intent with its outcome."""
    from mailtide.cli.customer import show
    from mailtide.local import broker

    with broker.reading(_settings()) as ready:
        known = show(ready, customer)
    if as_json:
        _print(known)
        return
    out = console()
    for key, value in known.items():
        if key != "intents":
            out.print(Text(key, style="bold"), value)
    table = Table("trigger", "due", "status", "reason", "intent", title="intents", title_justify="left")
    for intent in known["intents"]:
        table.add_row(intent["trigger"], intent["due"], intent["status"], intent["reason"] or "", intent["intent_id"])
    out.print(table)


@config_app.command("check")
def config_check(file: Annotated[Path | None, typer.Argument()] = None, as_json: Json = False) -> None:
    """Every mistake in the configuration and the phrase book, with file, line and mend; exit 1 on any."""
    from mailtide.cli.config_check import configuration

    found = configuration(file)
    if as_json:
        _print({"mistakes": found})
    else:
        for line in found:
            typer.echo(line)
    err.print(f"{len(found)} mistake{'s' * (len(found) > 1)}" if found else "no mistakes")
    raise typer.Exit(1 if found else 0)


@phrasebook_app.command("check")
def phrasebook_check(as_json: Json = False) -> None:
    """Coverage, clashes and the number of different mails for each trigger; exit 1 on a problem."""
    from mailtide.cli.config_check import coverage, phrasebook

    rows, found = coverage(), phrasebook()
    if as_json:
        _print({"triggers": rows, "problems": found})
    else:
        table = Table("trigger", "clauses", "different mails")
        for row in rows:
            table.add_row(row["trigger"], f"{row['clauses']:,}", f"{row['mails']:,}")
        console().print(table)
        for line in found:
            typer.echo(line)
    raise typer.Exit(1 if found else 0)


@phrasebook_app.command("sample")
def phrasebook_sample(
    trigger: Annotated[str | None, typer.Option()] = None,
    tone: Annotated[str | None, typer.Option()] = None,
    n: Annotated[int, typer.Option("--n", min=1)] = 3,
    seed: Annotated[int, typer.Option()] = 0,
    as_json: Json = False,
) -> None:
    """Whole mails composed from the phrase book, to read."""
    from mailtide.cli.config_check import samples

    try:
        rows = samples(trigger, tone, n, seed)
        if as_json:
            _print(list(rows))
            return
        for row in rows:
            typer.echo(f"── {row['trigger']} · {row['tone']} · {row['number']}\n{row['mail']}\n")
    except SettingsError as error:
        raise typer.BadParameter(str(error)) from error


@app.command()
def audit(as_json: Json = False) -> None:
    """Read the topics alone and prove the promises, or name each breach; exit 1 on one."""
    from mailtide.audit.proofs import audit as run_audit
    from mailtide.local import broker

    with broker.reading(_settings()) as ready:
        report = run_audit(ready)
    if not report.records and not report.events:
        sys.stderr.write("mailtide: nothing to audit: no topic of Mailtide's holds a record here\n")
    document = msgspec.to_builtins(report)
    if as_json:
        _print(document)
    else:
        for key, value in document.items():
            typer.echo(f"{key}: {value}")
    raise typer.Exit(1 if document.get("breaches") else 0)


@train_app.callback(invoke_without_command=True)
def train(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="One round, then exit.")] = False,
    cluster: Annotated[str | None, typer.Option(help="Only this cluster (with --once).")] = None,
    demo: Annotated[bool, typer.Option("--demo", hidden=True)] = False,
) -> None:
    """The training service: refit each cluster's model and publish what passes the gate."""
    from mailtide.cli.training import train as run_train

    if context.invoked_subcommand is not None:
        return
    if cluster is not None and not once:
        raise typer.BadParameter("goes with --once", param_hint="--cluster")
    judged = run_train(_settings(service=not once), once, cluster, demo, err)
    if once:
        _print(judged)


@train_app.command("search")
def train_search(
    cluster: Annotated[str | None, typer.Option(help="On its examples; the one with most without.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Fits to try.")] = 6,
    steps: Annotated[int, typer.Option(min=1, help="Of each fit.")] = 10,
) -> None:
    """Try learning rate, rank and perturbation, and print the best as TOML for mailtide.toml. Publishes nothing."""
    from mailtide.cli.training import search

    typer.echo(search(_settings(), cluster, trials, steps, err))


@app.command()
def monitor() -> None:
    """Consumer lag and its verdicts; Prometheus at the monitor's port, /metrics."""
    from mailtide.cli.lag import monitor as run_monitor

    run_monitor(_settings(service=True))


@app.command()
def lag(
    group: Annotated[str | None, typer.Option(help="Only this consumer group.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="A live table until Ctrl-C.")] = False,
    mail: Annotated[bool, typer.Option("--mail", help="With --json: the mail that waits instead, by stage and trigger.")] = False,
    as_json: Json = False,
) -> None:
    """How far each consumer group is behind, and what that means for mail."""
    from mailtide.cli import lag as telling

    if watch:
        telling.watch(_settings(), group, console())
        return
    rows, waiting = telling.look(_settings(), group)
    if as_json:
        _print(telling.plain(waiting if mail else rows))
        return
    console(width=None if sys.stdout.isatty() else 160).print(telling.tables(rows, waiting))


@release_app.command("list")
def release_list(as_json: Json = False) -> None:
    """The release that serves each cluster."""
    from mailtide.cli.training import listing

    _releases(listing(_settings()), as_json)


@release_app.command("show")
def release_show(cluster: str, as_json: Json = False) -> None:
    """Every release of one cluster, oldest first."""
    from mailtide.cli.training import show

    _releases(show(_settings(), cluster), as_json)


@release_app.command("rollback")
def release_rollback(cluster: str, as_json: Json = False) -> None:
    """Serve the release before the present one again."""
    from mailtide.cli.training import rollback

    _releases([rollback(_settings(), cluster)], as_json)


def _releases(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        _print(found)
        return
    table = Table("cluster", "release", "epoch", "parent", "examples", "clauses with newer odds", "at")
    for one in found:
        row = (one["cluster"], one["release_id"], one["epoch"], one["parent"] or "", one["examples"], one["odds"] or "", one["at"])
        table.add_row(*map(str, row))
    console().print(table)


def main() -> None:
    """Entry point: turns every error that a user can cause into one line."""
    os.umask(0o077)  # what we write may hold somebody's data: profiles, kept mails, logs, examples; our children inherit it
    try:
        app(standalone_mode=True)
    except KeyboardInterrupt:
        sys.stderr.write("mailtide: stopped\n")
        sys.exit(130)
    except BrokenPipeError:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.exit(0)
    except Exception as error:
        if not (said := failure_reason.words(error)):
            raise
        sys.stderr.write(f"mailtide: {said}\n")
        sys.exit(1)
