"""`gym-bridge launch`: what it prints is whole bash, or a manifest of KubeRay's, and says early what would not start."""

import os
import subprocess

import pytest
import yaml
from jsonschema import Draft202012Validator

from tests.cluster.ray_stage import stand_in

VLLM = ["sampler.kind=vllm", "cluster.sampler.count=4", "cluster.sampler.gpus=1"]
RAY = ["cluster.kind=ray", "cluster.policy.count=2", "cluster.collectors.count=2"]
GRPO = ["--config", "rlvr/tiny", "trainer.output=runs/it's here"]


def shape(*required, **properties):
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
PROBED = shape("command", command={"type": "array", "items": TEXT})
PROBE = shape("exec", exec=PROBED, periodSeconds=COUNT, timeoutSeconds=COUNT, failureThreshold=COUNT)
MOUNTS = {"type": "array", "items": shape("name", "mountPath", name=TEXT, mountPath={"type": "string", "pattern": "^/"})}
CONTAINER = shape(
    *("name", "image", "resources"),
    name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"},
    image=TEXT,
    resources=shape(requests=TEXTS, limits=TEXTS),
    readinessProbe=PROBE,
    livenessProbe=PROBE,
    volumeMounts=MOUNTS,
)
VOLUME = shape("name", name=TEXT, emptyDir=shape(medium=TEXT), persistentVolumeClaim=shape("claimName", claimName=TEXT))
POD = shape(
    "spec",
    spec=shape(
        "containers",
        containers={"type": "array", "items": CONTAINER, "minItems": 1},
        volumes={"type": "array", "items": VOLUME},
        terminationGracePeriodSeconds=COUNT,
    ),
)
GROUP = shape(
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=TEXTS,
    template=POD,
)
RAY_JOB = shape(
    *("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=shape("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=shape(
        *("entrypoint", "rayClusterSpec"),
        entrypoint=TEXT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=shape(
            "headGroupSpec",
            rayVersion=TEXT,
            headGroupSpec=shape("rayStartParams", "template", rayStartParams=TEXTS, template=POD),
            workerGroupSpecs={"type": "array", "items": GROUP},
        ),
    ),
)
"""Of KubeRay's RayJob, ray.io/v1, the part that is used here; no other key passes."""


def parses(script: str) -> None:
    """Bash takes the whole of it."""
    found = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, "")


@pytest.mark.parametrize("cluster", [RAY, []], ids=["ray", "torchrun"])
@pytest.mark.parametrize(
    ("where", "options", "said"),
    [
        ("slurm", ["--nodes", 3, "--partition", "gpus", "--time", "1:00:00"], ["#SBATCH --nodes=3", "#SBATCH --partition=gpus"]),
        ("hosts", ["--hosts", "me@first", "--hosts", "second"], ["ssh -tt -o BatchMode=yes me@first", "BatchMode=yes second"]),
        ("local", [], ["set -euo pipefail"]),
    ],
)
def test_scripts_are_whole_bash_with_every_word_of_the_command(gym_bridge, where, options, said, cluster):
    found = gym_bridge("launch", where, "grpo", *options, *GRPO, *cluster)
    assert (found.code, found.err) == (0, "")
    parses(found.out)
    for text in (*said, "rlvr/tiny", *cluster, "-m gym_bridge" if cluster else "torch.distributed.run"):
        assert text in found.out
    assert ("ray.scripts.scripts" in found.out) == (bool(cluster) and where != "local")


def test_the_manifest_is_one_of_kuberays(gym_bridge):
    options = ["--nodes", 3, "--gpus-per-node", 8, "--image", "registry/gym-bridge:1", "--claim", "runs", "--directory", "/runs"]
    found = gym_bridge("launch", "kubernetes", "grpo", *options, *GRPO, *RAY)
    assert (found.code, found.err) == (0, "")
    manifest = yaml.safe_load(found.out)
    assert [one.message for one in Draft202012Validator(RAY_JOB).iter_errors(manifest)] == []
    parses(manifest["spec"]["entrypoint"])
    cluster = manifest["spec"]["rayClusterSpec"]
    assert [one["replicas"] for one in cluster["workerGroupSpecs"]] == [2]
    (container,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"name": "runs", "mountPath": "/runs"} in container["volumeMounts"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm", "grpo", *GRPO, "policy.learning_rate=1"], "unknown key 'policy.learning_rate'"),
        (["slurm", "grpo", *GRPO, *RAY, "cluster.policy.gpus=1"], "the roles of cluster ask for 2 GPUS"),
        (["slurm", "grpo", *GRPO, *RAY, "policy.tensor_parallel_size=3"], "cluster.policy.count=2 is no multiple of it"),
        (["slurm", "grpo", *GRPO, "policy.tensor_parallel_size=2"], "policy.tensor_parallel_size=2: 1 processes would be started"),
        (["slurm", "grpo", *GRPO, *RAY, *VLLM, "cluster.sampler.min_count=1"], "the roles of cluster ask for 1 GPUS"),
        (["slurm", "grpo", *GRPO, *RAY, *VLLM, "cluster.sampler.min_count=9"], "min_count=9 is above cluster.sampler.count=4"),
        (["kubernetes", "grpo", *GRPO, *RAY], "launch kubernetes needs --image"),
        (["kubernetes", "grpo", *GRPO, "--image", "it"], "set cluster.kind=ray"),
        (["hosts", "grpo", *GRPO], "--hosts first --hosts second"),
        (["hosts", "grpo", *GRPO, "--hosts", "a", "--nodes", 3], "leave out --nodes"),
        (["local", "grpo", *GRPO, "--nodes", 2], "this machine is one"),
        (["slrum", "grpo", *GRPO], "slrum"),
    ],
)
def test_what_would_not_start_is_one_line(gym_bridge, words, message):
    found = gym_bridge("launch", *words)
    assert (found.code, found.out) == (2, "")
    assert message in found.err
    assert len(found.err.strip().splitlines()) == 1


def test_submit_hands_the_script_over_and_tells_what_was_said(gym_bridge, tmp_path, monkeypatch):
    stand_in(tmp_path, "sbatch", f"cat > {tmp_path}/script; echo Submitted batch job 7")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    printed = gym_bridge("launch", "slurm", "grpo", *GRPO)
    found = gym_bridge("launch", "slurm", "grpo", *GRPO, "--submit")
    assert (found.code, found.out) == (0, "Submitted batch job 7\n")
    assert (tmp_path / "script").read_text() == printed.out
    stand_in(tmp_path, "sbatch", "echo invalid partition >&2; exit 1")
    found = gym_bridge("launch", "slurm", "grpo", *GRPO, "--submit")
    assert (found.code, found.out) == (1, "")
    assert "refused (exit code 1): invalid partition" in found.err


def test_submit_without_the_tool_for_it_is_one_line(gym_bridge, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = gym_bridge("launch", "slurm", "grpo", *GRPO, "--submit")
    assert (found.code, found.out) == (2, "")
    assert "--submit: no sbatch here" in found.err
