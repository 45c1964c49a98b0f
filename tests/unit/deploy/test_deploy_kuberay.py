"""The manifests for KubeRay. No package brings its CRDs, so that their fields are compared with a list of those of KubeRay 1.7.

What can be checked by others is: pods, accounts and policies by Kubernetes' own schemas (strict: no unknown field), groups of workers by
the autoscaler that Ray runs beside the head, options of `ray start` by Ray's command line, the service by Ray Serve's schema, the job by
ours. No Kubernetes has seen them.
"""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.scripts.scripts import start
from ray.serve.schema import ServeDeploySchema

from rayjobs import __version__, command
from rayjobs.experiment import load
from rayjobs.serve.settings import CACHE
from rayjobs.serve.tokens import VARIABLES

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy/kuberay"
KUBERNETES = "1.34"
IMAGE = f"REGISTRY/rayjobs:{__version__}"

FIELDS = {
    "RayCluster": {"authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "gcsFaultToleranceOptions", "headGroupSpec", "rayVersion"}
    | {"workerGroupSpecs", "upgradeStrategy", "headServiceAnnotations", "networkPolicy", "tlsOptions", "suspend", "managedBy"},
    "RayJob": {"clusterSelector", "rayClusterSpec", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "submitterConfig", "suspend"}
    | {"submitterPodTemplate", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "activeDeadlineSeconds", "backoffLimit", "metadata"},
    "RayService": {"serveConfigV2", "rayClusterConfig", "upgradeStrategy", "excludeHeadPodFromServeSvc", "serveService"},
    "authOptions": {"mode", "secretName", "enableK8sTokenAuth"},
    "gcsFaultToleranceOptions": {"backend", "redisAddress", "redisUsername", "redisPassword", "externalStorageNamespace", "storage"},
    "autoscalerOptions": {"idleTimeoutSeconds", "upscalingMode", "resources", "securityContext", "env", "envFrom", "version", "image"},
    "headGroupSpec": {"rayStartParams", "template", "headService", "serviceType", "resources", "labels"},
    "workerGroupSpecs": {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template", "priority", "numOfHosts"}
    | {"idleTimeoutSeconds", "resources", "labels"},
}
"""Fields that KubeRay 1.7 reads, of what is used here."""


def read(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


def merged(target, patch):
    """A merge patch as RFC 7396 defines it."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        result[key] = merged(result.get(key), value)
    return {key: value for key, value in result.items() if value is not None}


[CLUSTER], [JOB], [SERVICE] = read("raycluster.yaml"), read("rayjob.yaml"), read("rayservice.yaml")
EMBEDDED = merged(CLUSTER, read("gcs-rocksdb-patch.yaml")[0])
CLUSTERS = {"cluster": CLUSTER["spec"], "embedded": EMBEDDED["spec"], "service": SERVICE["spec"]["rayClusterConfig"]}
GROUPS = {
    f"{name}-{group.get('groupName', 'head')}": group
    for name, spec in CLUSTERS.items()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
}
PODS = {name: group["template"] for name, group in GROUPS.items()} | {"submitter": JOB["spec"]["submitterPodTemplate"]}
MOUNTED = {"cluster": [], "embedded": [], "service": ["/var/cache/rayjobs"], "submitter": []}


@pytest.mark.parametrize("resource", [CLUSTER, EMBEDDED, JOB, SERVICE], ids=lambda one: one["metadata"]["name"])
def test_kuberay_knows_every_field(resource):
    assert resource["apiVersion"] == "ray.io/v1"
    assert set(resource["spec"]) <= FIELDS[resource["kind"]]
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", resource["metadata"]["name"])  # KubeRay appends to it


@pytest.mark.parametrize("spec", CLUSTERS.values(), ids=CLUSTERS)
def test_kuberay_knows_every_field_of_a_cluster(spec):
    assert set(spec) <= FIELDS["RayCluster"]
    for part in ("authOptions", "gcsFaultToleranceOptions", "autoscalerOptions", "headGroupSpec"):
        assert set(spec[part]) <= FIELDS[part]
    assert all(set(group) <= FIELDS["workerGroupSpecs"] for group in spec["workerGroupSpecs"])


@pytest.mark.parametrize("template", PODS.values(), ids=PODS)
def test_kubernetes_knows_every_field_of_a_pod(template):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template["metadata"]}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    wrong = copy.deepcopy(pod)
    wrong["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePolicy"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@pytest.mark.parametrize("resource", [*read("accounts.yaml"), *read("network-policy.yaml")], ids=lambda one: one["metadata"]["name"])
def test_kubernetes_knows_what_surrounds_the_pods(resource):
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


@pytest.mark.parametrize(("name", "spec"), CLUSTERS.items(), ids=CLUSTERS)
def test_rays_autoscaler_reads_the_groups(name, spec):
    """As the container does that KubeRay puts beside the head."""
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": name, "namespace": "default"}, "spec": spec})
    types = config["available_node_types"]
    assert spec["enableInTreeAutoscaling"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["cpu"]["resources"]["CPU"] > 1
    assert "GPU" not in types["cpu"]["resources"]
    assert types["gpu"]["resources"]["GPU"] == 1
    assert types["gpu"]["min_workers"] == 0 < types["gpu"]["max_workers"]
    assert types["cpu"]["min_workers"] == (2 if name == "service" else 0)


@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_ray_start_knows_every_parameter(group):
    flags = [f"--{name}={value}" for name, value in group["rayStartParams"].items()]
    start.make_context("ray start", flags)
    assert all(isinstance(value, str) for value in group["rayStartParams"].values())


@pytest.mark.parametrize("spec", CLUSTERS.values(), ids=CLUSTERS)
def test_a_token_is_asked_for(spec):
    assert spec["authOptions"] == {"mode": "token", "secretName": "rayjobs-ray-token"}
    assert spec["rayVersion"] == ray.__version__


@pytest.mark.parametrize(("name", "template"), PODS.items(), ids=PODS)
def test_pods_may_little(name, template):
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert name.endswith("-head") or spec["automountServiceAccountToken"] is False
    accounts = {account["metadata"]["name"] for account in read("accounts.yaml")}
    assert spec["serviceAccountName"] in accounts
    assert spec["serviceAccountName"] == ("rayjobs-head" if name.endswith("-head") else "rayjobs-worker")
    for container in spec["containers"]:
        assert container["image"] == IMAGE
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        resources = container["resources"]
        assert resources["requests"].keys() == resources["limits"].keys() >= {"cpu", "memory"}
        for kind, least in resources["requests"].items():
            assert 0 < parse_quantity(least) <= parse_quantity(resources["limits"][kind])


@pytest.mark.parametrize(("name", "template"), PODS.items(), ids=PODS)
def test_no_secret_is_written_down(name, template):
    for container in template["spec"]["containers"]:
        plain = [entry["name"] for entry in container.get("env", []) if "value" in entry]
        assert not [one for one in plain if one in VARIABLES or re.search(r"TOKEN|PASSWORD|SECRET|ACCESS_KEY", one)]
        assert all(set(source) == {"secretRef"} for source in container.get("envFrom", []))


@pytest.mark.parametrize(("name", "template"), PODS.items(), ids=PODS)
def test_mounted_volumes_are_declared(name, template):
    declared = {volume["name"] for volume in template["spec"].get("volumes", [])}
    for container in template["spec"]["containers"]:
        mounts = container.get("volumeMounts", [])
        assert {mount["name"] for mount in mounts} == declared
        assert [mount["mountPath"] for mount in mounts] == MOUNTED[name.partition("-")[0]]
        cache = [entry["value"] for entry in container.get("env", []) if entry["name"] == CACHE]
        assert cache == [mount["mountPath"] for mount in mounts]


def test_what_comes_in_is_named_by_a_policy():
    [policy] = read("network-policy.yaml")
    wanted = policy["spec"]["podSelector"]["matchLabels"].items()
    assert all(wanted <= template["metadata"]["labels"].items() for template in PODS.values())
    opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule.get("ports", [])}
    held = {
        port["containerPort"]
        for template in PODS.values()
        for container in template["spec"]["containers"]
        for port in container.get("ports", [])
    }
    assert opened == {8265, 8080, 8000}
    assert opened <= held
    [monitor] = read("pod-monitor.yaml")
    assert monitor["spec"]["selector"] == policy["spec"]["podSelector"]
    ports = {port["name"]: port["containerPort"] for port in GROUPS["cluster-gpu"]["template"]["spec"]["containers"][0]["ports"]}
    assert ports[monitor["spec"]["podMetricsEndpoints"][0]["port"]] == 8080


def test_workers_have_time_to_write_a_checkpoint():
    """Ray drains for so long after SIGTERM; Kubernetes kills later."""
    for name, template in PODS.items():
        if name.partition("-")[2] in {"cpu", "gpu"}:
            [drains] = [entry["value"] for entry in template["spec"]["containers"][0]["env"] if "DRAIN_TIMEOUT" in entry["name"]]
            assert 60 <= float(drains) < template["spec"]["terminationGracePeriodSeconds"] - 10


def test_the_stores_of_ray():
    redis, embedded = (CLUSTERS[name]["gcsFaultToleranceOptions"] for name in ("cluster", "embedded"))
    assert redis == CLUSTERS["service"]["gcsFaultToleranceOptions"]
    assert set(redis) == {"redisAddress", "redisPassword"}
    assert "value" not in redis["redisPassword"]
    assert set(embedded) == {"backend", "storage"}  # KubeRay refuses Redis' fields beside it
    assert embedded["backend"] == "rocksdb"
    assert {**EMBEDDED["spec"], "gcsFaultToleranceOptions": redis} == CLUSTER["spec"]


def test_the_service_is_that_of_serve_yaml():
    told = yaml.safe_load(SERVICE["spec"]["serveConfigV2"])
    assert told == yaml.safe_load((ROOT / "deploy/serve.yaml").read_text())
    declared = ServeDeploySchema.model_validate(told)
    for name in ("service-cpu", "service-gpu"):
        ports = {port["name"]: port["containerPort"] for port in PODS[name]["spec"]["containers"][0]["ports"]}
        assert ports["serve"] == declared.http_options.port
        assert PODS[name]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "rayjobs-service-tokens"}}]


def test_the_job_is_a_command_of_ours():
    program, verb, *arguments = shlex.split(JOB["spec"]["entrypoint"])
    assert program == "rayjobs"
    options, overrides = command.parser(verb, "").parse_known_args(arguments)
    folder, name = Path(options.config).parts[:-1], Path(options.config).name
    assert folder == ("/", "opt", "rayjobs", "configs")  # where the image has them
    experiment = load(ROOT / "configs" / name, overrides)
    assert experiment.ray.gpu == "yes"
    assert experiment.train.num_workers == 2
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}


def test_the_readme_makes_every_secret():
    text = (ROOT / "deploy/README.md").read_text()
    named = set(
        re.findall(
            r"(?:secretName|secretRef|secretKeyRef)\W+(?:name: )?([a-z][a-z-]+)", "".join(p.read_text() for p in FOLDER.glob("*.yaml"))
        )
    )
    assert named == {"rayjobs-ray-token", "rayjobs-redis", "rayjobs-service-tokens"}
    assert all(f"kubectl create secret generic {name} " in text for name in named)
