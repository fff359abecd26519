"""`make chaos`: the campaign, with a progress bar, and a table of what it found."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.chaos.campaign import Campaign, CampaignError, Report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    console, began = Console(), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="freshet-chaos-"))
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    failed = None
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(f"seed {seed}: starting", total=given.kills)

        def tell(report: Report, what: str) -> None:
            bar.update(task, completed=report.kills, description=f"seed {seed}: {what}")

        campaign = Campaign(given.kills, seed, folder, tell)
        try:
            campaign.run()
        except CampaignError as error:
            failed = error
    report = campaign.report
    console.print(faults(report))
    console.print(findings(report, time.monotonic() - began))
    for what in ("lost", "doubled", "mismatched", "unbalanced"):
        for line in getattr(report, what)[:5]:
            console.print(f"{what}: {line}", highlight=False, markup=False)
    if failed is not None:
        console.print(f"failed: {failed}\nkept: {folder}", highlight=False, markup=False)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f"again: make chaos KILLS={given.kills} SEED={seed}", highlight=False)
    return 1 if failed or not report.clean else 0


def faults(report: Report) -> Table:
    """How many faults of each kind landed."""
    table = Table("fault", "landed", title=f"{sum(report.landed.values())} faults", title_justify="left")
    kinds = Counter(report.landed)
    for kind, n in sorted(kinds.items(), key=lambda one: (not one[0].startswith("kill"), one[0])):
        table.add_row(kind, str(n))
    return table


def findings(report: Report, seconds: float) -> Table:
    """What the judge found."""
    table = Table("what", "found", title=f"seed {report.seed}, {seconds:,.0f} s", title_justify="left")
    table.add_row("kills", f"{report.kills:,}")
    table.add_row("changes in", f"{report.changes:,}")
    table.add_row("times judged, messages judged", f"{report.judged:,}, {report.messages:,}")
    for what in ("lost", "doubled", "mismatched", "unbalanced"):
        table.add_row(what, f"{len(getattr(report, what)):,}")
    for how, found in report.recovered.items():
        if found:
            ordered = sorted(found)
            p50, p99 = (ordered[min(int(len(ordered) * q), len(ordered) - 1)] for q in (0.5, 0.99))
            name = "as a command" if how == "command" else "without imports"
            told = f"p50 {p50:.1f} s, p99 {p99:.1f} s ({len(found)} times)"
            table.add_row(f"first new output, {name}", told)
    return table


if __name__ == "__main__":
    sys.exit(main())
