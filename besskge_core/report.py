"""How the command shows things: tables for people, TSV and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from besskge_core.config import to_mapping
from besskge_core.predict import Answer

Query = Tuple[Optional[str], Optional[str], Optional[str]]
Row = Dict[str, Any]
Metrics = Mapping[str, float]

TRIPLE = ("head", "relation", "tail")
TITLES = {
    "mrr": "MRR",
    "hits@1": "Hits@1",
    "hits@3": "Hits@3",
    "hits@10": "Hits@10",
    "mean_rank": "MR",
    "amri": "AMRI",
}


def make_console() -> Console:
    """Standard output; wide where nobody watches, so that tables stay whole."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def settings_table(config: Any) -> Table:
    """A line for each section; what differs from the default stands out."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    usual = to_mapping(type(config)())
    for section, values in to_mapping(config).items():
        line = Text()
        for name, value in values.items():
            changed = usual[section].get(name) != value
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            line.append(f"{name}={shown}  ", style="bold" if changed else "dim")
        table.add_row(Text(section, style="cyan"), line)
    return table


def metrics_table(title: str, key: str, rows: Mapping[str, Metrics]) -> Table:
    """A row for each side or relation, a column for each metric."""
    names = list(next(iter(rows.values()), {}))
    table = Table(title=Text(title), title_justify="left")
    table.add_column(key)
    for name in names:
        table.add_column(TITLES.get(name, name), justify="right")
    for label, metrics in rows.items():
        table.add_row(Text(label), *(_number(name, metrics[name]) for name in names))
    return table


def _number(name: str, value: float) -> str:
    if name == "n_triple":
        return f"{value:,}"
    return f"{value:,.1f}" if name == "mean_rank" else f"{value:.4f}"


def facts_table(facts: Mapping[str, Any]) -> Table:
    """A row for each fact."""
    table = Table(show_header=False, box=None, padding=(0, 1))
    for name, value in facts.items():
        listed = ", ".join(value) if isinstance(value, list) else value
        table.add_row(Text(name, style="cyan"), Text("-" if listed is None else str(listed)))
    return table


def answer_rows(asked: Sequence[Query], answers: Sequence[Sequence[Answer]]) -> List[Row]:
    """Triples with the answer filled in, for TSV."""
    return [
        {
            "query": number,
            **{part: label or answer.label for part, label in zip(TRIPLE, query)},
            **_fields(answer),
        }
        for number, (query, found) in enumerate(zip(asked, answers), start=1)
        for answer in found
    ]


def answer_lists(asked: Sequence[Query], answers: Sequence[Sequence[Answer]]) -> List[Row]:
    """Queries, each with its answers, for JSON."""
    return [
        {"query": dict(zip(TRIPLE, query)), "answers": [_fields(answer) for answer in found]}
        for query, found in zip(asked, answers)
    ]


def _fields(answer: Answer) -> Row:
    """With the digits that a score in single precision has."""
    return {**dataclasses.asdict(answer), "score": float(f"{answer.score:.7g}")}


def answer_table(query: Query, found: Sequence[Answer]) -> Table:
    """The answers of one query."""
    title = ", ".join("?" if label is None else label for label in query)
    table = Table(title=Text(f"({title})"), title_justify="left")
    table.add_column("rank", justify="right")
    table.add_column("relation" if query[1] is None else "entity", overflow="fold")
    has_names = any(answer.name not in (None, answer.label) for answer in found)
    if has_names:
        table.add_column("name", overflow="fold")
    table.add_column("score", justify="right")
    table.add_column("known")
    for answer in found:
        name = [Text(answer.name or "")] if has_names else []
        end = f"{answer.score:.4f}", answer.known or ""
        table.add_row(str(answer.rank), Text(answer.label), *name, *end)
    return table


def echo_tsv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Print a header and rows; a tab or line break inside a label becomes a space."""
    click.echo("\t".join(columns))
    for row in rows:
        values = ("" if row[name] is None else str(row[name]) for name in columns)
        click.echo("\t".join(re.sub(r"[\t\r\n]", " ", value) for value in values))


def echo_json(content: Any) -> None:
    """Print as JSON, which has no NaN: null instead."""
    click.echo(json.dumps(_without_nan(content), ensure_ascii=False, indent=1))


def _without_nan(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
