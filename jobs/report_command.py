"""`admg-batch report`. Beside the package, whose import brings pyarrow."""

from __future__ import annotations

import click

from jobs.console import json_text
from jobs.failures import verbose_option
from jobs.options import ExampleCommand
from pipeline.redaction import redacted_values

_EXAMPLE = """\
admg-batch report demo-output
admg-batch report demo-output --explain
admg-batch report demo-output --html report.html
admg-batch report summaries-monday summaries-tuesday
"""


@click.command(cls=ExampleCommand, example=_EXAMPLE)
@click.argument("output")
@click.argument("other", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--html", metavar="FILE", help="Write a page with plots, which needs nothing beside itself."
)
@click.option(
    "--explain", is_flag=True, help="Also what --drafter auto went by: costs, and its choices."
)
@verbose_option
def report(output: str, other: str | None, as_json: bool, html: str | None, explain: bool) -> None:
    """Show what an output holds, or how two differ.

    Rows, errors, tokens, acceptance, speedup, and one row to read. OUTPUT is the folder or URI
    that was given to `admg-batch run --output`. It need not be complete. With OTHER, a second
    output, the rows that both hold are compared by their ids: which completions are the same, and
    what of speedup, acceptance, tokens and settings differs.
    """
    if other is None:
        _one(output, as_json, html, explain)
    else:
        if explain:
            raise ValueError("--explain goes with one output, not with two")
        _two(output, other, as_json, html)


def _one(output: str, as_json: bool, html: str | None, explain: bool) -> None:
    from jobs.explained import print_choices
    from jobs.report import print_summary, read_output

    if html is None:
        whole = read_output(output)
    else:
        from jobs.report.details import read_details
        from jobs.report.page import check_place, details_page, write_page

        check_place(html, output)
        details = read_details(output)
        write_page(html, details_page(details, html))
        whole = details.report
    if as_json:
        click.echo(json_text(whole.to_dict()))
    else:
        print_summary(whole)
        if explain:
            print_choices(output)
    _say_where(html)


def _two(output: str, other: str, as_json: bool, html: str | None) -> None:
    from jobs.report.compare import compare
    from jobs.report.compare_views import print_comparison

    if html is not None:
        from jobs.report.page import check_place

        check_place(html, output, other)
    comparison = compare(output, other)
    if html is not None:
        from jobs.report.page import comparison_page, write_page

        write_page(html, comparison_page(comparison))
    if as_json:
        click.echo(json_text(redacted_values(comparison.to_dict())))
    else:
        print_comparison(comparison)
    _say_where(html)


def _say_where(html: str | None) -> None:
    if html is not None:
        click.echo(f"The page is {html}", err=True)
