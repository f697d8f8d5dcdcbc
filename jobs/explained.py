"""What the drafter "auto" went by, as tables: costs of passes, lookup's acceptance, choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs.console import printable
from jobs.terminal import numbers_table, terminal

if TYPE_CHECKING:
    from rich.table import Table

# More actors than this tell the same over and over: the file has them all.
MOST_SHOWN = 4


def rounds_line(rounds: Mapping[str, int]) -> str:
    """Rounds by choice, the most frequent first: plain 120 (60 %), lookup 80 (40 %)."""
    total = sum(rounds.values())
    by_count = sorted(rounds.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {n} ({n / total:.0%})" for name, n in by_count) or "none yet"


def all_rounds(choices: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rounds by choice, of all actors together."""
    total: dict[str, int] = {}
    for one in choices:
        for name, rounds in one["rounds"].items():
            total[name] = total.get(name, 0) + rounds
    return total


def explanation_table(title: str, found: Mapping[str, Any]) -> Table:
    """One controller's table; `found` has the fields of `admg.explanation.Explanation`."""
    columns = ("sequences", "context", "tokens each", "ms")
    table = numbers_table(_headline(title, found), "pass", columns)
    for kind, points in found["costs"].items():
        for sequences, context, tokens, seconds in points:
            row = (str(sequences), str(context), str(tokens), f"{1000 * seconds:.1f}")
            table.add_row(printable(kind), *row)
    table.add_section()
    for matched, chance in found["lookup"].items():
        shares = f"{chance['first']:.2f}, then {chance['later']:.2f}"
        table.add_row(f"lookup by {printable(matched)} is right", "", "", "", shares)
    return table


def _headline(title: str, found: Mapping[str, Any]) -> str:
    parts = [printable(title), f"rounds: {rounds_line(found['rounds'])}"]
    if found["trust"]:
        trust = ", ".join(f"{choice} {share:.2f}" for choice, share in found["trust"].items())
        parts.append(f"tokens/s of drafts, of what was expected: {trust}")
    if found.get("released_bytes"):
        mib = found["released_bytes"] / 2**20
        parts.append(f"self-drafts cannot pay here: {mib:.0f} MiB of smaller weights given back")
    return printable("; ".join(parts))


def print_choices(output: str) -> None:
    """Print what an output's last run went by, actor by actor.

    Raises:
        ValueError: what is kept of it was changed by somebody else.
    """
    import click

    from pipeline.choices import CHOICES, read_choices
    from pipeline.storage import Store

    choices = read_choices(Store(output))
    if not choices:
        click.echo("No choices to explain: nothing was decoded here with --drafter auto.")
        return
    console = terminal()
    for number, found in enumerate(choices[:MOST_SHOWN], 1):
        who = "drafter auto" if len(choices) == 1 else f"drafter auto, actor {number}"
        console.print(explanation_table(who, found))
    if len(choices) > MOST_SHOWN:
        console.print(f"and {len(choices) - MOST_SHOWN} more actors, in {CHOICES} of the output")
