"""What trials leave on a cluster is given back; what is in use, or belongs to another job, is not."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OTHER_JOB = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
group = ray.util.placement_group([{"CPU": 1}], lifetime="detached")
ray.get(group.ready())
print(group.id.hex())
"""
JOB = """
import json, sys, time
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from rayjobs.tune.leftovers import given_back

ray.init(address=sys.argv[1], log_to_driver=False)
others = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(sys.argv[2])))

@ray.remote(num_cpus=1)
class Worker:
    def here(self):
        return True

def group(**bundle):
    made = placement_group([bundle])
    ray.get(made.ready())
    return made

groups = {"left": group(CPU=1), "used": group(CPU=1), "place": group(**{f"node:{ray.util.get_node_ip_address()}": 0.1}), "others": others}
groups["waits"] = placement_group([{"CPU": 1}])
worker = Worker.options(scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=groups["used"])).remote()
ray.get(worker.here.remote())

def states():
    return {name: placement_group_table(made)["state"] for name, made in groups.items()}

told = [states()]
with given_back(every_s=0.5):
    until = time.monotonic() + 60
    while states()["left"] != "REMOVED" and time.monotonic() < until:
        time.sleep(0.2)
    told.append(states())
told.append(states())
remove_placement_group(others)
print(json.dumps(told))
"""


def python(cluster, code, *arguments):
    command = [sys.executable, "-c", code, cluster.address, *arguments]
    done = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_groups_in_which_nothing_runs_are_given_back_and_at_the_end_all_of_the_job(cluster):
    before, meanwhile, after = json.loads(python(cluster, JOB, python(cluster, OTHER_JOB)))
    assert before == {"left": "CREATED", "used": "CREATED", "place": "CREATED", "others": "CREATED", "waits": "PENDING"}
    assert meanwhile["left"] == "REMOVED"
    assert {name: meanwhile[name] for name in ("used", "place", "others")} == dict.fromkeys(("used", "place", "others"), "CREATED")
    assert after == {**meanwhile, "used": "REMOVED", "waits": "REMOVED"}
