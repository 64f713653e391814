"""The Grafana dashboard asks for metrics and labels that there are."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import REPOSITORY
from prometheus_client.parser import text_string_to_metric_families

from cleave import AsyncLLM, SamplingParams
from cleave.runtime.server.metrics import Metrics

DASHBOARD = json.loads((REPOSITORY / "deploy" / "grafana" / "cleave.json").read_text("utf-8"))
SCRAPED_LABELS = {"job", "instance"}
"""What Prometheus adds to everything it scrapes."""
WORDS = {
    *("sum", "max", "rate", "by", "histogram_quantile", "ignoring", "group_left", "label_values"),
    *("le",),
}


def panels(within: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in within["panels"]:
        yield panel
        if "panels" in panel:
            yield from panels(panel)


def queries() -> list[str]:
    found = [target["expr"] for panel in panels(DASHBOARD) for target in panel.get("targets", ())]
    found += [one["definition"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    return found


@pytest.fixture(scope="module")
def exposed(demo_artifact: Path) -> dict[str, set[str]]:
    """Sample name -> its labels, of a server that has answered something."""

    async def run() -> str:
        async with AsyncLLM(demo_artifact) as llm:
            metrics = Metrics(llm)
            metrics.responded(200)
            await llm.generate([0, 9], SamplingParams(max_tokens=3))
            return metrics.exposition()[0].decode()

    families = text_string_to_metric_families(asyncio.run(run()))
    return {sample.name: set(sample.labels) for family in families for sample in family.samples}


def test_there_is_a_query_for_every_panel() -> None:
    for panel in panels(DASHBOARD):
        assert panel["type"] == "row" or panel["targets"], panel["title"]
    assert len(queries()) > 30


@pytest.mark.parametrize("query", queries())
def test_a_query_names_metrics_and_labels_that_there_are(exposed: dict[str, set[str]], query: str) -> None:
    labels = {label for by in re.findall(r"(?:by|ignoring) ?\(([^)]*)\)", query) for label in by.split(", ")}
    bare = re.sub(r"(?:by|ignoring) ?\([^)]*\)", "by", query)
    used = re.findall(r"([a-zA-Z_:][\w:]*)(\{[^}]*\})?", re.sub(r'"[^"]*"|\[[^]]*\]', "", bare))
    names = [name for name, _ in used if name not in WORDS | SCRAPED_LABELS]
    assert names
    known: set[str] = set(SCRAPED_LABELS)
    for name in names:
        assert name in exposed, f"{name} is no metric"
        known |= exposed[name]
    matched = {label for _, matcher in used for label in re.findall(r"(\w+)\s*[=!]~?", matcher)}
    assert labels | matched <= known


def test_every_metric_of_ours_is_shown(exposed: dict[str, set[str]]) -> None:
    text = " ".join(queries())
    missing = {
        name
        for name in exposed
        if name.startswith("cleave_") and re.sub(r"_(count|sum|bucket)$", "", name) not in text
    }
    assert missing == set()


def test_what_the_documentation_lists_is_what_there_is(exposed: dict[str, set[str]]) -> None:
    text = (REPOSITORY / "docs" / "observing.md").read_text("utf-8")
    rows = re.findall(r"^\| `(cleave_\w+)` \| (\w+) \|([^|]*)\|", text, re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", labels)) for name, _, labels in rows}
    there = {}
    for name, labels in exposed.items():
        if name.startswith("cleave_") and not name.endswith(("_sum", "_count")):
            there[name.removesuffix("_bucket")] = labels - {"le"}
    assert listed == there


def test_nothing_in_it_belongs_to_one_installation() -> None:
    text = json.dumps(DASHBOARD)
    assert not re.search(r"https?://|localhost|\d+\.\d+\.\d+\.\d+", text)
    assert {json.dumps(panel["datasource"]) for panel in panels(DASHBOARD) if "datasource" in panel} == {
        json.dumps({"type": "prometheus", "uid": "${datasource}"})
    }
    identifiers = [panel["id"] for panel in panels(DASHBOARD)]
    assert len(set(identifiers)) == len(identifiers)
