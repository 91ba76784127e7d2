"""The scripts and manifests that start a training on Slurm, Kubernetes, bare hosts or this machine. Text alone, nothing is started.

With cluster.kind=ray a Ray is started on all machines and the command runs on the first; else torchrun starts the same command on
each of them.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RAY_PORT, MEETING_PORT = 6379, 29500
RAY_VERSION = "2.60.0"
"""Of the image that the Dockerfile makes."""
SAVING_S = 120
"""Before the end of its time, and when it is stopped, a training has so long to save."""
COMING_S = 600
"""How long the machines may take to join."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A training and the machines for it."""

    name: str
    words: Sequence[str]
    """The command after the interpreter and `-m gym_bridge`, without the cluster's address."""
    on_ray: bool
    """Whether Ray places the processes; else torchrun starts them."""
    python: str
    directory: str
    logs: str
    """Directory of the run's logs."""
    nodes: int
    gpus_per_node: int
    cpus_per_node: int

    @property
    def num_processes(self) -> int:
        """Of a machine, under torchrun."""
        return max(1, self.gpus_per_node)

    def command(self, *words: str) -> str:
        """The training as a line of a script; `words` are written as they are."""
        return " ".join([shlex.join([self.python, "-m", "gym_bridge", *self.words]), *words])

    def torchrun(self, *options: str) -> str:
        """The training under torchrun as a line of a script; `options` are written as they are."""
        processes = ["--nproc-per-node", str(self.num_processes)]
        start = shlex.join([self.python, "-m", "torch.distributed.run", *processes])
        return " ".join([start, *options, shlex.join(["-m", "gym_bridge", *self.words])])

    @property
    def token(self) -> str:
        """File of the token that Ray's machines show each other."""
        return f"{self.logs}/ray_token"

    @property
    def with_token(self) -> str:
        """What Ray reads it by."""
        return f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={shlex.quote(self.token)}"

    def making_token(self) -> str:
        """A line of a script that makes one which only the user can read."""
        path, logs = shlex.quote(self.token), shlex.quote(self.logs)
        return f"(umask 077; mkdir -p {logs}; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > {path})"

    def ray(self, *words: str) -> str:
        """Ray's command; `words` are written as they are."""
        return " ".join([shlex.join([self.python, "-m", "ray.scripts.scripts"]), *words])


def local_script(launch: Launch) -> str:
    """Bash for this machine."""
    line = launch.command("cluster.address=local") if launch.on_ray else launch.torchrun("--standalone")
    return f"#!/usr/bin/env bash\nset -euo pipefail\ncd {shlex.quote(launch.directory)}\nexec {line}\n"


def slurm_script(launch: Launch, *, time: str, partition: str | None, account: str | None) -> str:
    """Bash for sbatch. Slurm's SIGTERM reaches the training, which saves."""
    options = {
        "job-name": launch.name,
        "nodes": launch.nodes,
        "ntasks-per-node": 1,
        "cpus-per-task": launch.cpus_per_node,
        "gpus-per-node": launch.gpus_per_node or None,
        "time": time,
        "partition": partition,
        "account": account,
        "output": f"{launch.directory}/{launch.name}-%j.log",
        "signal": f"B:TERM@{SAVING_S}",
    }
    head = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    lines = [
        "#!/usr/bin/env bash",
        *head,
        "set -euo pipefail",
        f"export SRUN_CPUS_PER_TASK={launch.cpus_per_node}",
        f"mkdir -p {shlex.quote(launch.logs)}",
        f"cd {shlex.quote(launch.directory)}",
        'mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'first="${machines[0]}"',
        'address="$(srun --nodes=1 --ntasks=1 --nodelist="$first" hostname -I | awk \'{print $1}\')"',
    ]
    return "\n".join([*lines, *(_slurm_ray(launch) if launch.on_ray else _slurm_torchrun(launch)), ""])


def _slurm_torchrun(launch: Launch) -> list[str]:
    meeting = f'--rdzv-endpoint "$address:{MEETING_PORT}"'
    line = launch.torchrun(f"--nnodes {launch.nodes}", '--rdzv-id "$SLURM_JOB_ID"', "--rdzv-backend c10d", meeting)
    return [f"srun --kill-on-bad-exit=1 {line} &", *_handing_on_sigterm('scancel --signal=TERM "$SLURM_JOB_ID"')]


def _slurm_ray(launch: Launch) -> list[str]:
    size = f"--num-cpus {launch.cpus_per_node} --num-gpus {launch.gpus_per_node} --block"
    at_port = f'"$address:{RAY_PORT}"'
    on_first = 'srun --overlap --nodes=1 --ntasks=1 --nodelist="$first"'
    on_machine = 'srun --overlap --nodes=1 --ntasks=1 --nodelist="$machine"'
    head = launch.ray("start", "--head", '--node-ip-address "$address"', f"--port {RAY_PORT}", size)
    health = launch.ray("health-check", f"--address {at_port}")
    return [
        launch.making_token(),
        f"export {launch.with_token}",
        f"{on_first} {head} &",
        *_until(f"{on_first} {health} > /dev/null 2>&1", "Ray's head"),
        'for machine in "${machines[@]:1}"; do',
        f"    {on_machine} {launch.ray('start', f'--address {at_port}', size)} &",
        "done",
        f"{launch.command(f'cluster.address={at_port}')} &",  # here: srun would end it at SIGTERM
        *_handing_on_sigterm('kill -TERM "$training"'),
    ]


def _handing_on_sigterm(hand_on: str) -> list[str]:
    """Waits for what was started last, to which `hand_on` hands on SIGTERM, and ends the rest."""
    return [
        "training=$!",
        f"trap '{hand_on}' TERM",
        "code=0",
        'wait "$training" || code=$?',
        'while kill -0 "$training" 2> /dev/null; do code=0; wait "$training" || code=$?; done',
        "kill $(jobs -p) 2> /dev/null || true",
        "wait || true",
        'exit "$code"',
    ]


def _until(check: str, what: str) -> list[str]:
    return [
        f"for ((waited = 0; ; waited += 2)); do  # {what} answers",
        f"    {check} && break",
        f'    ((waited < {COMING_S})) || {{ echo "{what} does not answer" >&2; exit 1; }}',
        "    sleep 2",
        "done",
    ]


def hosts_script(launch: Launch, hosts: Sequence[str]) -> str:
    """Bash that starts the training on bare hosts over ssh, waits for it, collects what it says and ends what was started."""
    first = hosts[0]
    address = first.rpartition("@")[2]
    lines = ["#!/usr/bin/env bash", "set -euo pipefail", f"mkdir -p {shlex.quote(launch.logs)}"]
    for host in hosts:
        lines.append(
            _ssh(host, f"test -d {shlex.quote(launch.directory)}") + f" || {{ echo '{host}: no such directory' >&2; exit 1; }}"
        )
    if launch.on_ray:
        gpus = f"--num-gpus {launch.gpus_per_node}" if launch.gpus_per_node else ""
        own = f"env {launch.with_token}"
        stops = [f"{_ssh(host, launch.ray('stop'))} || true" for host in hosts]
        lines += ["end() {", *(f"    {one}" for one in stops), "}", _ssh(first, launch.making_token())]
        head = launch.ray("start", "--head", f"--node-ip-address {address}", f"--port {RAY_PORT}", gpus)
        lines += [_ssh(first, f"{own} {head}"), "trap end EXIT"]
        lines += _until(_ssh(first, f"{own} {launch.ray('health-check', f'--address {address}:{RAY_PORT}')}"), "Ray's head")
        lines += [_ssh(host, f"{own} {launch.ray('start', f'--address {address}:{RAY_PORT}', gpus)}") for host in hosts[1:]]
        lines.append(_ssh(first, f"{own} {launch.command(f'cluster.address={address}:{RAY_PORT}')}", launch, tty=True))
        return "\n".join([*lines, ""])
    job, meeting = shlex.quote(launch.name), f"{address}:{MEETING_PORT}"
    together = f"--nnodes {len(hosts)} --rdzv-id {job} --rdzv-backend c10d --rdzv-endpoint {meeting}"
    lines.append("started=()")
    for host in hosts:
        log = shlex.quote(f"{launch.logs}/{host.rpartition('@')[2]}.log")
        lines += [f"{_ssh(host, launch.torchrun(together), launch, tty=True)} > {log} 2>&1 &", "started+=($!)"]
    lines += [
        "trap 'kill -TERM \"${started[@]}\" 2> /dev/null || true' EXIT",
        "code=0",
        'for one in "${started[@]}"; do wait "$one" || code=$?; done',
        'exit "$code"',
    ]
    return "\n".join([*lines, ""])


def _ssh(host: str, line: str, launch: Launch | None = None, *, tty: bool = False) -> str:
    """The line on a host; with `tty` it ends with the connection."""
    inside = line if launch is None else f"cd {shlex.quote(launch.directory)} && {line}"
    return f"ssh {'-tt' if tty else '-n'} -o BatchMode=yes {shlex.quote(host)} {shlex.quote(inside)}"


def kubernetes_manifest(launch: Launch, *, image: str, memory: str, claim: str | None) -> dict[str, Any]:
    """KubeRay's RayJob: the head runs the training, one machine a pod; the operator ends the machines when it is done."""
    template = _pod(launch, image=image, memory=memory, claim=claim)
    head = {"rayStartParams": {"dashboard-host": "0.0.0.0"}, "template": template}
    others = {
        "groupName": "machines",
        "replicas": launch.nodes - 1,
        "minReplicas": launch.nodes - 1,
        "maxReplicas": launch.nodes - 1,
    }
    workers = [{**others, "rayStartParams": {}, "template": template}] if launch.nodes > 1 else []
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": launch.name},
        "spec": {
            "entrypoint": f"cd {shlex.quote(launch.directory)} && {launch.command('cluster.address=auto')}",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": SAVING_S,
            "backoffLimit": 2,
            "rayClusterSpec": {"rayVersion": RAY_VERSION, "headGroupSpec": head, "workerGroupSpecs": workers},
        },
    }


def _pod(launch: Launch, *, image: str, memory: str, claim: str | None) -> dict[str, Any]:
    resources = {"cpu": str(launch.cpus_per_node), "memory": memory}
    if launch.gpus_per_node:
        resources["nvidia.com/gpu"] = str(launch.gpus_per_node)
    healthy = {"exec": {"command": ["bash", "-c", f"{launch.python} -m ray.scripts.scripts health-check"]}}
    probe = {**healthy, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 30}
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    if claim is not None:
        mounts.append({"name": "runs", "mountPath": launch.directory})
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": claim}})
    container = {
        "name": "gym-bridge",
        "image": image,
        "resources": {"requests": resources, "limits": resources},
        "readinessProbe": probe,
        "livenessProbe": probe,
        "volumeMounts": mounts,
    }
    return {"spec": {"terminationGracePeriodSeconds": SAVING_S, "containers": [container], "volumes": volumes}}
