"""Trainings started elsewhere: scripts and manifests out of their settings, handed to Slurm, Kubernetes or the hosts."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gym_bridge.api.clustered import check_processes
from gym_bridge.cluster.launch_scripts import Launch, hosts_script, kubernetes_manifest, local_script, slurm_script
from gym_bridge.errors import ConfigError, ServerError
from gym_bridge.schemas.cluster_settings import OnlineClusterSettings
from gym_bridge.schemas.launch_settings import LaunchSettings, Where
from gym_bridge.schemas.settings import TrainSettings

SUBMITTED: Mapping[Where, Sequence[str]] = {
    "slurm": ("sbatch",),
    "kubernetes": ("kubectl", "apply", "-f", "-"),
}
"""What takes the text on its stdin."""


def launch_text(where: Where, settings: LaunchSettings, training: TrainSettings, words: Sequence[str]) -> str:
    """The script or manifest that starts `words`, such as train sft ..., whose settings are `training`.

    Raises ConfigError for what cannot be started there.
    """
    directory = str((settings.directory or Path.cwd()).absolute())
    launch = Launch(
        name=settings.name,
        words=words,
        on_ray=training.cluster.kind == "ray",
        python=settings.python or ("python3" if where == "kubernetes" else sys.executable),
        directory=directory,
        logs=str(Path(directory, training.trainer.output, "logs")),
        nodes=len(settings.hosts) or settings.nodes,
        gpus_per_node=settings.gpus_per_node,
        cpus_per_node=settings.cpus_per_node,
    )
    _check_room(launch, training)
    if where == "slurm":
        return slurm_script(launch, time=settings.time, partition=settings.partition, account=settings.account)
    if where == "local":
        if launch.nodes > 1:
            raise ConfigError(f"--nodes {launch.nodes}: this machine is one; choose slurm, kubernetes or hosts")
        return local_script(launch)
    if where == "hosts":
        if not settings.hosts:
            raise ConfigError("launch hosts needs the machines: --hosts first --hosts second")
        return hosts_script(launch, settings.hosts)
    if not launch.on_ray:
        raise ConfigError("on Kubernetes Ray starts the processes: set cluster.kind=ray, and cluster.policy.count")
    if settings.image is None:
        raise ConfigError("launch kubernetes needs --image, built from the repository's Dockerfile")
    manifest = kubernetes_manifest(launch, image=settings.image, memory=settings.memory, claim=settings.claim)
    return yaml.safe_dump(manifest, sort_keys=False)


def submit(where: Where, text: str) -> str:
    """Hand it over, and return what was said; a script for the hosts or this machine takes the place of this process.

    Raises ConfigError where the tool for it is not here, ServerError when it refuses.
    """
    if where in ("hosts", "local"):
        os.execvp("bash", ["bash", "-c", text])
    command = SUBMITTED[where]
    if shutil.which(command[0]) is None:
        raise ConfigError(f"--submit: no {command[0]} here; leave it out, and take the text to a machine that has it")
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"refused (exit code {done.returncode}): {(done.stderr or done.stdout).strip()}", url=command[0])
    return done.stdout


def _check_room(launch: Launch, training: TrainSettings) -> None:
    """Raises ConfigError where the machines are too small for the roles, or for a layer's processes."""
    policy = training.policy
    if not launch.on_ray:
        count = launch.nodes * launch.num_processes
        if count % policy.together:
            raise ConfigError(f"{policy.together_told}: {count} processes would be started; change --gpus-per-node")
        return
    check_processes(training)
    cluster: Any = training.cluster
    roles = [cluster.policy]
    if isinstance(cluster, OnlineClusterSettings):
        roles += [cluster.sampler, cluster.collectors]
    for name, there in (("gpus", launch.gpus_per_node), ("cpus", launch.cpus_per_node)):
        asked = sum(role.required * getattr(role, name) for role in roles)
        if asked > launch.nodes * there:
            flag = f"--{name}-per-node {there}"
            raise ConfigError(f"the roles of cluster ask for {asked:g} {name.upper()}, {launch.nodes} x {flag} are fewer; raise it")
