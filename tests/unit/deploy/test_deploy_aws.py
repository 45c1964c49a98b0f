"""`cluster.yaml` beyond Ray's schema: what EC2's own parameters allow, and which workers Ray's autoscaler asks for.

AWS is asked nothing: parameters are compared with botocore's model of EC2, and workers are chosen by the scheduler of the head.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import botocore.session
import botocore.validate
import pytest
import yaml
from ray.autoscaler._private import util
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent
from ray.scripts.scripts import start

WRITTEN = yaml.safe_load(Path(__file__).parents[3].joinpath("cluster.yaml").read_text())
TYPES = WRITTEN["available_node_types"]
MACHINES = {"head": {"CPU": 8}, "cpu": {"CPU": 16}, "gpu": {"CPU": 16, "GPU": 1}}
"""What Ray reads from AWS for the machines of each type."""


@pytest.mark.parametrize("name", TYPES)
def test_ec2_knows_every_parameter(name):
    asked = {**TYPES[name]["node_config"], "MinCount": 1, "MaxCount": 1}
    model = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    assert not botocore.validate.ParamValidator().validate(asked, model).generate_report()
    assert asked["InstanceMarketOptions" if name.endswith("-spot") else "ImageId"]
    assert asked["MetadataOptions"]["HttpTokens"] in model.members["MetadataOptions"].members["HttpTokens"].enum
    assert asked["MetadataOptions"]["HttpTokens"] == "required"


@pytest.fixture(scope="module")
def types():
    """The node types as the autoscaler on the head has them."""
    filled = {name: {**kind, "resources": MACHINES[name.removesuffix("-spot")]} for name, kind in TYPES.items()}
    return AutoscalingConfig({**WRITTEN, "available_node_types": filled}, skip_content_hash=True).get_node_type_configs()


def launched(types, wanted, count, **known):
    """Return how many nodes of each type Ray's autoscaler would start for so many tasks, beyond the head."""
    requests = ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(wanted)] * count)
    asked = SchedulingRequest(
        disable_launch_config_check=True, node_type_configs=types, max_num_nodes=WRITTEN["max_workers"], resource_requests=requests, **known
    )
    reply = ResourceDemandScheduler().schedule(asked)
    return {launch.instance_type: launch.count for launch in reply.to_launch if launch.instance_type != "head"}


WORK = {"cpu": {"CPU": 16}, "gpu": {"CPU": 4, "GPU": 1}}


@pytest.mark.parametrize("kind", WORK)
def test_spot_comes_first(types, kind):
    assert launched(types, WORK[kind], 2) == {f"{kind}-spot": 2}


@pytest.mark.parametrize("kind", WORK)
def test_others_come_where_spot_nodes_are_used_up(types, kind):
    most = TYPES[f"{kind}-spot"]["max_workers"]
    assert launched(types, WORK[kind], most + 2) == {f"{kind}-spot": most, kind: 2}


def told(status, kind):
    """Return what Ray thinks of the types after an instance of one took this turn."""
    monitor = CloudResourceMonitor()
    monitor.notify([InstanceUpdateEvent(instance_id="i", new_instance_status=status, instance_type=kind)])
    return {
        "cloud_resource_availabilities": monitor.get_resource_availabilities(),
        "recoverable_resource_availabilities": monitor.get_recoverable_resource_availabilities(),
    }


@pytest.mark.parametrize("kind", WORK)
def test_others_come_where_a_spot_node_did_not_come_up(types, kind):
    assert launched(types, WORK[kind], 1, **told(Instance.ALLOCATION_TIMEOUT, f"{kind}-spot")) == {kind: 1}


@pytest.mark.parametrize("kind", WORK)
def test_a_refusal_by_ec2_changes_nothing_as_the_file_says(types, kind):
    """Should this fail, Ray has learnt it: the head of `cluster.yaml` and docs/operations.md can promise more."""
    assert launched(types, WORK[kind], 1, **told(Instance.ALLOCATION_FAILED, f"{kind}-spot")) == {f"{kind}-spot": 1}


def test_without_spot_the_others_come(types):
    """What the head of the file advises: `max_workers: 0`."""
    none = util.prepare_config({**WRITTEN, "available_node_types": {**TYPES, "gpu-spot": {**TYPES["gpu-spot"], "max_workers": 0}}})
    util.validate_config(none)
    filled = {name: {**kind, "resources": MACHINES[name.removesuffix("-spot")]} for name, kind in none["available_node_types"].items()}
    changed = AutoscalingConfig({**none, "available_node_types": filled}, skip_content_hash=True).get_node_type_configs()
    assert launched(changed, WORK["gpu"], 1) == {"gpu": 1}


@pytest.mark.parametrize("command", [*WRITTEN["head_start_ray_commands"], *WRITTEN["worker_start_ray_commands"]])
def test_ray_start_knows_every_option(command):
    words = shlex.split(command)
    assert "RAY_AUTH_MODE=token" in words
    if "start" in words:
        context = start.make_context("ray start", words[words.index("start") + 1 :])
        assert context.params["head"] == ("RAY_gcs_storage=rocksdb" in words)
        assert context.params["head"] or context.params["address"] == "$RAY_HEAD_IP:6379"


def test_a_node_that_died_is_known_after_five_seconds():
    [head] = [command for command in WRITTEN["head_start_ray_commands"] if "--head" in command]
    assert "RAY_health_check_period_ms=1000" in shlex.split(head)


def test_ray_keeps_on_disk_what_it_knows():
    [head] = [command for command in WRITTEN["head_start_ray_commands"] if "--head" in command]
    settings = dict(word.split("=", 1) for word in shlex.split(head) if word.startswith("RAY_gcs"))
    assert settings == {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": "$HOME/ray-gcs"}
