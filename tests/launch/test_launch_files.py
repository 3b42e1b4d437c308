"""The examples in launch/: valid by their schemas, closed to strangers, with commands that this project takes."""

import json
import re
import shlex
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from make_jobs import make_config

from fresco_dist.evaluate.methods import KEYS

LAUNCH = Path(__file__).parents[2] / "launch"
RAYJOB = LAUNCH / "kubernetes" / "rayjob.yaml"
CLOUD = LAUNCH / "cloud" / "aws.yaml"

TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


def _object(required: str = "", /, **properties: dict) -> dict:
    """A closed object; `required` names the properties that must be there."""
    return {"type": "object", "properties": properties, "required": required.split(), "additionalProperties": False}


def _list(items: dict) -> dict:
    return {"type": "array", "items": items, "minItems": 1}


# The part of the ray.io/v1 RayJob resource that the example uses, as KubeRay's custom resource definition has it.
_QUANTITIES = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9]+([KMGT]i)?$"}}
_VOLUME = _object(
    "name",
    name=TEXT,
    persistentVolumeClaim=_object("claimName", claimName=TEXT),
    emptyDir=_object(medium={"enum": ["", "Memory"]}, sizeLimit=TEXT),
)
_CONTAINER = _object(
    "name image resources",
    name=TEXT,
    image=TEXT,
    resources=_object("limits requests", limits=_QUANTITIES, requests=_QUANTITIES),
    volumeMounts=_list(_object("name mountPath", name=TEXT, mountPath=TEXT)),
)
_POD = _object("spec", spec=_object("containers", containers=_list(_CONTAINER), volumes=_list(_VOLUME)))
_START = {"type": "object", "additionalProperties": TEXT}
_WORKERS = _object(
    "groupName template rayStartParams",
    groupName=TEXT, replicas=NUMBER, minReplicas=NUMBER, maxReplicas=NUMBER, rayStartParams=_START, template=_POD,
)  # fmt: skip
_HEAD = _object("template", serviceType={"enum": ["ClusterIP"]}, rayStartParams=_START, template=_POD)
_CLUSTER = _object(
    "rayVersion authOptions headGroupSpec",
    rayVersion=TEXT,
    authOptions=_object("mode", mode={"const": "token"}),
    headGroupSpec=_HEAD,
    workerGroupSpecs=_list(_WORKERS),
)
RAYJOB_SCHEMA = _object(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=_object("name", name={"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=_object(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=_CLUSTER,
    ),
)


def _overrides(command: str) -> list[str]:
    """The overrides of the one command of ours in a text."""
    (found,) = re.findall(r"python -m fresco_dist\.launch\s+([^']*)", command)
    return shlex.split(found)


def _faults(path: Path, schema: dict) -> list[str]:
    """What a YAML file has that its schema does not allow, or lacks."""
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))]


def test_rayjob_has_only_fields_of_the_resource_and_their_types():
    assert _faults(RAYJOB, RAYJOB_SCHEMA) == []


def test_rayjob_has_the_nodes_that_its_command_asks_for():
    spec = yaml.safe_load(RAYJOB.read_text())["spec"]
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    cluster = make_config("cluster.executor=ray", *_overrides(spec["entrypoint"])).cluster
    (container,) = workers["template"]["spec"]["containers"]
    per_node = cluster.num_workers // cluster.num_nodes
    assert workers["minReplicas"] == workers["replicas"] == cluster.num_nodes
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == per_node
    assert int(container["resources"]["limits"]["cpu"]) >= per_node * cluster.cpus_per_worker
    assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in (spec["rayClusterSpec"]["headGroupSpec"], workers):  # every mount has its volume
        pod = group["template"]["spec"]
        mounted = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_cloud_file_is_valid_by_rays_schema():
    schema = json.loads((files("ray") / "autoscaler" / "ray-schema.json").read_text())
    assert _faults(CLOUD, schema) == []


def test_cloud_file_starts_ray_with_a_private_token_and_a_local_dashboard():
    cluster = yaml.safe_load(CLOUD.read_text())
    assert cluster["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])
    starts = [c for key in ("head", "worker") for c in cluster[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_cloud_file_has_the_nodes_that_its_command_asks_for():
    text = CLOUD.read_text()
    cluster = make_config("cluster.executor=ray", *_overrides(re.sub(r"\n#\s*", " ", text))).cluster
    workers = yaml.safe_load(text)["available_node_types"]["h100"]
    assert workers["min_workers"] == cluster.num_nodes
    assert workers["resources"]["GPU"] == cluster.num_workers // cluster.num_nodes


@pytest.mark.parametrize("path", sorted((LAUNCH / "slurm").glob("*.sbatch")), ids=lambda path: path.name)
def test_slurm_example_has_the_nodes_that_its_command_asks_for(path):
    text = path.read_text()
    (command,) = re.findall(r"^#   sbatch launch/slurm/(.*)$", text, flags=re.MULTILINE)
    script, *overrides = shlex.split(command)
    assert script == path.name
    single = [re.sub(r"=([^,=]+),.*", r"=\1", override) for override in overrides]  # the first value of a sweep
    of_a_run = [override for override in single if override.partition("=")[0] not in KEYS]
    cluster = make_config("cluster.executor=ray", *of_a_run).cluster
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, flags=re.MULTILINE))
    assert int(options["nodes"]) == cluster.num_nodes
    per_node = cluster.num_workers // cluster.num_nodes
    assert int(options["gpus-per-node"]) == per_node
    assert int(options["cpus-per-task"]) >= per_node * cluster.cpus_per_worker
    assert options["signal"].startswith("B:USR1@")
