"""Where the processes of a training run, and how many there are of each role."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from gym_bridge.config import StrictModel


class RoleSettings(StrictModel):
    """Processes of one kind."""

    count: int = Field(default=0, ge=0)
    """How many there are."""
    cpus: NonNegativeFloat = 1.0
    """CPUs that Ray sets aside for each."""
    gpus: NonNegativeFloat = 0.0
    """GPUs that Ray sets aside for each, and lets it see; with a fraction several share one."""
    python: str | None = None
    """Its interpreter, such as that of another venv: /opt/vllm/bin/python. null: that of the command."""
    image: str | None = None
    """Container image in which Ray starts it; null: none."""
    env: dict[str, str] = Field(default={})
    """Environment variables of its own."""

    @property
    def required(self) -> int:
        """How many must have a place before anything begins."""
        return self.count


class PolicyRole(RoleSettings):
    """Processes that train."""

    count: PositiveInt = 1
    """How many there are: weights, gradients and moments lie in shards over them."""


class SamplerRole(RoleSettings):
    """vLLM servers, each started as `vllm serve` with the policy's model; GRPO with sampler.kind=vllm."""

    args: tuple[str, ...] = ()
    """What vLLM is told besides, such as [--dtype, bfloat16]."""
    min_count: int | None = Field(default=None, ge=1)
    """So many must have a place before the training begins; the others join when Ray has room for them, and give way to those who
    train. null: all of `count`."""

    @property
    def required(self) -> int:
        """How many must have a place before anything begins."""
        return self.count if self.min_count is None else self.min_count

    @model_validator(mode="after")
    def _ordered(self) -> "SamplerRole":
        """Raises ValueError for a least number above the largest."""
        if self.required > self.count:
            sizes = f"cluster.sampler.min_count={self.min_count} is above cluster.sampler.count={self.count}"
            raise ValueError(f"{sizes}; lower it, or raise that")
        return self


class ClusterSettings(StrictModel):
    """Ray places the processes, keeps their logs in the run's directory and replaces those that die."""

    kind: Literal["none", "ray"] = "none"
    """none: this process alone, or those that torchrun starts."""
    address: str = "auto"
    """Ray's cluster: auto, the one of which this machine is part; local, one that is started here for this run; or HOST:PORT."""
    policy: PolicyRole = PolicyRole()
    """Who trains."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's strategy: together on few machines, or apart."""
    env: dict[str, str] = Field(default={})
    """Environment variables of all roles."""
    max_restarts: int = Field(default=3, ge=0)
    """How often those who train are started again without a checkpoint in between before the run is given up."""

    @model_validator(mode="after")
    def _in_use(self) -> "ClusterSettings":
        """Raises ValueError for settings of a cluster that is not asked for."""
        idle = [name for name, field in type(self).model_fields.items() if name != "kind" and getattr(self, name) != field.default]
        if self.kind == "none" and idle:
            raise ValueError(f"cluster.{idle[0]} has no effect with cluster.kind=none; set cluster.kind=ray, or leave it out")
        return self


class OnlineClusterSettings(ClusterSettings):
    """As for all training, and who plays."""

    sampler: SamplerRole = SamplerRole()
    """Who samples; with none, the first of those who train, or the servers of sampler.url."""
    collectors: RoleSettings = RoleSettings()
    """Who plays: renders, calls tools, verifies; with none, the first of those who train."""
