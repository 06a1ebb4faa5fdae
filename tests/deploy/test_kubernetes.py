"""The manifests: right by Kubernetes' own schemas, and right about the program that they start."""
import os
import pathlib
import subprocess

import httpx
import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
# The oldest that has the preStop sleep switched on, and the newest that the package knows.
VERSIONS = ["1.30", kubernetes_validate.latest_version()]
CUSTOM = {"InferencePool", "Gateway", "HTTPRoute"}


def objects():
    return [(path.name, document) for path in FILES for document in yaml.safe_load_all(path.read_text())]


def one(kind, name):
    found = [document for _, document in objects() if (document["kind"], document["metadata"]["name"]) == (kind, name)]
    assert len(found) == 1, f"{kind} {name}: {len(found)} of them"
    return found[0]


def named(document):
    return f"{document['kind']}-{document['metadata']['name']}"


@pytest.fixture(scope="module")
def pod():
    return one("Deployment", "deepinfer")["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def container(pod):
    return pod["containers"][0]


@pytest.fixture(scope="module")
def settings(deepinfer, tmp_path_factory):
    """What the program makes of the settings of the manifest: {section: {key: value}}."""
    path = tmp_path_factory.mktemp("kubernetes") / "settings.yaml"
    path.write_text(one("ConfigMap", "deepinfer")["data"]["settings.yaml"])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DEEPINFER_")}
    result = subprocess.run([deepinfer, "config", "--config", path], env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    return yaml.safe_load(result.stdout)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", [d for _, d in objects() if d["kind"] not in CUSTOM], ids=named)
def test_kubernetes_takes_it(document, version):
    kubernetes_validate.validate(document, version, strict=True)


def test_a_slip_is_found():
    """The validator says no to a field that does not exist, wherever it stands."""
    document = one("Deployment", "deepinfer")
    document["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def _closed(schema):
    """A custom resource's schema, in which unknown fields are errors."""
    if isinstance(schema, dict):
        schema = {key: _closed(value) for key, value in schema.items()}
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields") \
                and schema["properties"].get("apiVersion") is None:
            schema.setdefault("additionalProperties", False)
        return schema
    return [_closed(value) for value in schema] if isinstance(schema, list) else schema


@pytest.mark.parametrize("document", [d for _, d in objects() if d["kind"] in CUSTOM], ids=named)
def test_custom_resources_take_it(document):
    """DEEPINFER_CRDS: a folder with the definitions (YAML) of Gateway API and its inference extension."""
    folder = os.environ.get("DEEPINFER_CRDS")
    if not folder:
        pytest.skip("DEEPINFER_CRDS names no folder with the definitions of Gateway API and its inference extension")
    group, version = document["apiVersion"].split("/")
    for path in pathlib.Path(folder).glob("*.yaml"):
        for definition in yaml.safe_load_all(path.read_text()):
            spec = (definition or {}).get("spec", {})
            if spec.get("group") == group and spec["names"]["kind"] == document["kind"]:
                served = {v["name"]: v for v in spec["versions"] if v["served"]}
                jsonschema.validate(document, _closed(served[version]["schema"]["openAPIV3Schema"]))
                return
    raise AssertionError(f"{folder}: no definition of {document['kind']} in {group}")


def test_the_settings_are_what_the_pod_expects(settings, container, pod):
    assert settings["server"]["host"] == "0.0.0.0"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": settings["server"]["port"]}
    keys = pathlib.PurePosixPath(settings["server"]["api_key_file"])
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert str(keys.parent) in mounts
    assert str(pathlib.PurePosixPath(settings["model"]["name"]).parent) in mounts
    config = container["args"][container["args"].index("--config") + 1]
    assert str(pathlib.PurePosixPath(config).parent) in mounts
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
    assert settings["server"]["open_routes"] >= ["/health", "/health/ready"] and settings["server"]["vllm_metric_names"]


def test_the_grace_period_is_above_the_drain(settings, container, pod):
    wait = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain = settings["server"]["drain_timeout"]
    assert pod["terminationGracePeriodSeconds"] >= wait + drain + 5, "SIGKILL would cut the last requests off"
    ready = container["readinessProbe"]
    assert wait > ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"]
    picker = one("Deployment", "deepinfer-picker")["spec"]["template"]["spec"]
    assert picker["terminationGracePeriodSeconds"] >= pod["terminationGracePeriodSeconds"]
    route = one("HTTPRoute", "deepinfer")["spec"]["rules"][0]["timeouts"]["request"]
    assert int(route.removesuffix("s")) > settings["server"]["timeout"], "the gateway would give up first"
    live = container["livenessProbe"]
    assert live["periodSeconds"] * live["failureThreshold"] + settings["server"]["stall_timeout"] < 90


def test_the_probes_ask_routes_of_the_program(container, server):
    """Each probe's path answers 200 once the model is loaded, and a path that is none does not."""
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert paths == {"startupProbe": "/health/ready", "livenessProbe": "/health", "readinessProbe": "/health/ready"}
    for path in {*paths.values(), "/metrics"}:
        assert httpx.get(server.url + path).status_code == 200, path
    assert httpx.get(server.url + "/healthz").status_code == 404
    template = one("Deployment", "deepinfer")["spec"]["template"]["metadata"]["annotations"]
    assert template["prometheus.io/path"] == "/metrics"


def test_the_names_fit_together(container):
    labels = one("Deployment", "deepinfer")["spec"]["template"]["metadata"]["labels"]
    for document in (one("Deployment", "deepinfer"), one("PodDisruptionBudget", "deepinfer"), one("InferencePool", "deepinfer")):
        assert document["spec"]["selector"]["matchLabels"].items() <= labels.items(), named(document)
    service = one("Service", "deepinfer")["spec"]
    assert service["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in service["ports"]} <= {port["name"] for port in container["ports"]}
    pool = one("InferencePool", "deepinfer")["spec"]
    assert [port["number"] for port in pool["targetPorts"]] == [port["containerPort"] for port in container["ports"]]
    picker = one("Service", pool["endpointPickerRef"]["name"])["spec"]
    assert pool["endpointPickerRef"]["port"]["number"] in {port["port"] for port in picker["ports"]}
    route = one("HTTPRoute", "deepinfer")["spec"]
    one("Gateway", route["parentRefs"][0]["name"])
    for backend in route["rules"][0]["backendRefs"]:
        one(backend["kind"], backend["name"])
    arguments = one("Deployment", "deepinfer-picker")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--pool-name=deepinfer" in arguments
    config = yaml.safe_load(one("ConfigMap", "deepinfer-picker")["data"]["picker.yaml"])
    known = {plugin["type"] for plugin in config["plugins"]}
    assert {plugin["pluginRef"] for plugin in config["schedulingProfiles"][0]["plugins"]} <= known


def test_the_picker_finds_its_metrics(server):
    """The names that the inference extension's protocol for model servers gives for vLLM, of the right kind."""
    text = httpx.get(server.url + "/metrics").text
    for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
                 "vllm:cache_config_info", "vllm:lora_requests_info"):
        assert f"# TYPE {name} gauge" in text, name
    sample = next(line for line in text.splitlines() if line.startswith("vllm:cache_config_info{"))
    assert 'block_size="' in sample and 'num_gpu_blocks="' in sample


def test_nothing_runs_as_root():
    for _, document in objects():
        if document["kind"] != "Deployment":
            continue
        pod = document["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"] != 0
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] and container["resources"]["limits"]
