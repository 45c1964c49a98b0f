"""What Prometheus and Grafana are told to ask for exists: by Ray's own exporter, by Ray's own dashboards, and by a parser of PromQL."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import promql_parser
import pytest
import ray.util.metrics
import yaml
from ray._common import utils
from ray._private import ray_constants
from ray.dashboard.modules.metrics import dashboards

from rayjobs.serve import haproxy, observe

ROOT = Path(__file__).parents[3]
BOARD = json.loads((ROOT / "deploy/grafana.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())["groups"] for rule in group["rules"]]
ASKED = [target["expr"] for panel in PANELS for target in panel["targets"]] + [rule["expr"] for rule in RULES]
OURS = {metric.info["name"]: metric for metric in vars(observe).values() if isinstance(metric, ray.util.metrics.Metric)}

EXPORT = """
import json, sys
import prometheus_client
from ray._private.telemetry.open_telemetry_metric_recorder import OpenTelemetryMetricRecorder
recorder = OpenTelemetryMetricRecorder(gauge_metric_ttl_seconds=600)
for name, kind, bounds, labels in json.loads(sys.argv[1]):
    tags = dict.fromkeys(labels, "x")
    if kind == "Histogram":
        recorder.register_histogram_metric(name, "", bounds)
        recorder.record_histogram_aggregated_batch(name, [{"tags": tags, "bucket_counts": [1] * (len(bounds) + 1)}])
    else:
        getattr(recorder, f"register_{kind.lower()}_metric")(name, "")
        recorder.set_metric_value(name, tags, 1.0)
samples = [sample for family in prometheus_client.REGISTRY.collect() for sample in family.samples]
print(json.dumps({sample.name: list(sample.labels) for sample in samples if "rayjobs" in sample.name}))
"""
"""What a node's agent does with the metrics of its processes; in a process of its own, since it sets up OpenTelemetry for good."""


@pytest.fixture(scope="module")
def exported():
    """Names under which our metrics leave a node, with their labels."""
    told = [(name, type(metric).__name__, getattr(metric, "boundaries", []), metric.info["tag_keys"]) for name, metric in OURS.items()]
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", EXPORT, json.dumps(told)], capture_output=True, text=True, check=True)
    return {name: set(labels) for name, labels in json.loads(done.stdout.strip().splitlines()[-1]).items()}


@pytest.fixture(scope="module")
def of_ray():
    """Names that Ray's own dashboards ask for."""
    folder = Path(dashboards.__file__).parent
    return set(re.findall(r"\bray_[a-z_]+", "".join(path.read_text() for path in folder.glob("*_panels.py"))))


def parts(expression):
    """Walk a query of PromQL."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector", "param"):
        if isinstance(below := getattr(expression, name, None), promql_parser.Expr):
            yield from parts(below)
    for argument in getattr(expression, "args", []):
        yield from parts(argument)


def selectors(text):
    return [part for part in parts(promql_parser.parse(text)) if isinstance(part, promql_parser.VectorSelector)]


@pytest.mark.parametrize("text", ASKED)
def test_every_name_that_is_asked_for_is_told(text, exported, of_ray):
    found = selectors(text)
    assert found
    for selector in found:
        if "rayjobs" in selector.name:
            assert selector.name in exported
            assert {matcher.name for matcher in selector.matchers.matchers} <= exported[selector.name]
        else:
            assert selector.name in of_ray | {"up"}


@pytest.mark.parametrize("text", [text for text in ASKED if "rayjobs" in text])
def test_sums_are_by_labels_that_exist(text, exported):
    for part in parts(promql_parser.parse(text)):
        if isinstance(part, promql_parser.AggregateExpr) and part.modifier:
            labels = set(part.modifier.labels)
            for selector in selectors(str(part.expr)):
                assert labels <= exported[selector.name]


def test_every_metric_of_ours_is_on_the_board(exported):
    shown = {selector.name for panel in PANELS for target in panel["targets"] for selector in selectors(target["expr"])}
    assert len(OURS) == 5
    for name in OURS:
        assert any(one.startswith(f"ray_{name}") for one in shown), name
    assert {one for one in shown if "rayjobs" in one} <= set(exported)


def test_docs_name_every_metric():
    text = (ROOT / "docs/operations.md").read_text()
    assert all(f"`{name}`" in text for name in OURS)
    assert all(f"`{rule['alert']}`" in text for rule in RULES)


def test_panels_have_room_and_a_source():
    taken = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    [source] = BOARD["templating"]["list"]
    assert {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]} == {f"${{{source['name']}}}"}


def test_prometheus_reads_what_ray_and_haproxy_leave():
    written = yaml.safe_load((ROOT / "deploy/prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in written["scrape_configs"]}
    discovered = Path(utils.get_default_ray_temp_dir(), ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE)
    assert jobs["ray"]["file_sd_configs"] == [{"files": [str(discovered)]}]
    port = haproxy.environment(binary="x", max_body_bytes=1)["RAY_SERVE_HAPROXY_METRICS_PORT"]
    assert jobs["haproxy"]["static_configs"] == [{"targets": [f"127.0.0.1:{port}"]}]
    assert all((ROOT / "deploy" / name).is_file() for name in written["rule_files"])
    assert {selector.matchers.matchers[0].value for rule in RULES for selector in selectors(rule["expr"]) if selector.name == "up"} <= set(
        jobs
    )
