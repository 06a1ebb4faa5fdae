"""Prometheus' own checker reads /metrics and deploy/; each metric that deploy/ asks for exists."""
import json
import pathlib
import re
import subprocess

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# vLLM's names, which dashboards know, are not what promtool would choose.
EXPECTED_FINDINGS = ("metric names should not contain ':'",
                     'iteration_tokens_total non-counter metrics should not have "_total" suffix')


@pytest.fixture(scope="session")
def promtool():
    done = subprocess.run([ROOT / "tools/promtool.sh"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def check(promtool, *args, text=None):
    return subprocess.run([promtool, "check", *map(str, args)], input=text, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def metrics(server):
    httpx.get(server.url + "/health")  # so that there is a reply to be counted
    return httpx.get(server.url + "/metrics").text


def test_promtool_reads_the_metrics(promtool, metrics):
    done = check(promtool, "metrics", text=metrics)
    findings = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert findings, "promtool found nothing to say of the colons: did it read the text?"
    assert not [line for line in findings if not line.endswith(EXPECTED_FINDINGS)]
    broken = check(promtool, "metrics", text=metrics.replace('le="+Inf"', 'le="+Inf', 1))
    assert broken.returncode != 0 and "error while linting" in broken.stdout + broken.stderr


def test_promtool_reads_rules_and_configuration(promtool):
    for args in (("rules", DEPLOY / "prometheus/alerts.yml"), ("config", DEPLOY / "prometheus/prometheus.yml")):
        done = check(promtool, *args)
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should(promtool):
    done = subprocess.run([promtool, "test", "rules", ROOT / "tests/server/alerts_test.yml"], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def names_in(text):
    return set(re.findall(r"\b(?:deepinfer|vllm):\w+", text))


def test_each_metric_that_deploy_asks_for_exists(metrics):
    samples = {s.name for f in text_string_to_metric_families(metrics) for s in f.samples}
    files = [path for path in DEPLOY.rglob("*") if path.suffix in (".json", ".yml")]
    assert len(files) >= 3
    for path in files:
        text = path.read_text()
        assert names_in(text) - samples == set(), path
    rules = (DEPLOY / "prometheus/alerts.yml").read_text()
    assert len(names_in(rules)) >= 6


def test_the_dashboard_shows_what_matters():
    dashboard = json.loads((DEPLOY / "grafana/deepinfer.json").read_text())
    panels = dashboard["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    expressions = [t["expr"] for p in panels for t in p["targets"]]
    for name in ("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds",
                 "generation_tokens_total", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_hits_total",
                 "http_requests_total", "requests_rejected_total", "num_preemptions_total"):
        assert any("deepinfer:" + name in e for e in expressions), name
    for quantile in ("0.5", "0.95", "0.99"):
        assert any(f"histogram_quantile({quantile}," in e for e in expressions)
    for panel in panels:
        grid = panel["gridPos"]
        assert 0 <= grid["x"] and grid["x"] + grid["w"] <= 24
