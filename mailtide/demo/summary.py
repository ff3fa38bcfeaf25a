"""The demo's last words: what went in, what came out, and one email to open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from models.learning.clusters import EACH, FIRST, K
from schemas.config import Settings


def missing(customers: int, clusters: int, releases: int, taught: int, enough: int) -> list[str]:
    """Why a replay came to no clusters or releases, a line each.

    ``taught``: mails sent to the cluster that got most; ``enough``: those from which a refit is waited for.
    """
    if not clusters:
        needs = f"the first come with {FIRST} feature vectors of {EACH * K} customers, and {customers} were replayed"
        return [f"no clusters: {needs}; ask for more with --customers or --days", "no releases: each is fitted to one cluster's mails"]
    if releases:
        return []
    if taught < enough:
        return [f"no releases: a refit needs {enough} mails to one cluster, and the most were {taught}; ask for more --customers or --days"]
    return ["no releases: no refit passed the gate in time; logs/trainer.log in the home says why"]


def print_summary(summary: dict[str, Any], settings: Settings, console: Console) -> None:
    """Tables for people; ``demo.json`` has the same for programs."""
    console.print()
    console.print(f"{summary['events']:,} events of {summary['customers']:,} customers in {summary['seconds']:.0f} s")
    clusters = Table("cluster", "customers", "who they are", title="Clusters", title_justify="left")
    for cluster in summary["clusters"]:
        clusters.add_row(cluster["id"], f"{cluster['size']:,}", cluster["description"])
    if summary["clusters"]:
        console.print(clusters)
    mails = Table("trigger", "intents", "sent", "other outcomes", title="Emails", title_justify="left")
    for trigger, count in summary["intents"].items():
        outcomes = dict(summary["outcomes"].get(trigger, {}))
        sent = outcomes.pop("sent", 0)
        mails.add_row(trigger, f"{count:,}", f"{sent:,}", ", ".join(f"{reason} {number:,}" for reason, number in outcomes.items()))
    console.print(mails)
    if summary["releases"]:
        releases = Table(
            "cluster", "release", "epoch", "examples", "metrics", title="Releases published while mail flowed", title_justify="left"
        )
        for release in summary["releases"]:
            metrics = ", ".join(f"{name} {value:.3g}" for name, value in list(release.get("metrics", {}).items())[:4])
            releases.add_row(release["cluster"], release["release_id"], str(release["epoch"]), str(release.get("examples", "")), metrics)
        console.print(releases)
    for line in summary["notes"]:
        console.print(line)
    console.print(
        f"words: {summary['generated_share']:.0%} written by the model, {summary['pool_share']:.0%} from its pool, "
        f"{summary['template_share']:.0%} template · {summary['tokens_per_second']:.0f} tokens/s · lag {summary['lag']} · "
        f"peak memory {summary['peak_memory_bytes'] / 1e9:.1f} GB"
    )
    if reader := summary.get("simulated_reader"):
        did = ", ".join(f"{name} {count:,}" for name, count in reader.items() if name not in ("simulated", "mails_read", "in_taste"))
        console.print(f"simulated reader (no person's doing): {reader['mails_read']:,} mails read, {did or 'none answered'}")
    newest = max((Path(settings.home) / "outbox").glob("*.eml"), key=lambda mail: mail.stat().st_mtime, default=None)
    if newest is not None:
        console.print(f"an email to open: {newest}")
