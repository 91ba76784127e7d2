"""A config of NeMo RL that is being translated: its values, and what several of them mean together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gym_bridge.schemas.nemo_rl_key import NemoRLKey, Verb
from gym_bridge.transforms.nemo_rl_config import get

REQUIRED = "???"
"""A value that OmegaConf asks the user for."""
DEFAULT_BETA = 0.01
"""Weight of the KL where a config of theirs does not say."""
UNTRUNCATED = "untruncated"
CORRECTIONS = {"tis": "tis", "icepop": "icepop", "seq-mask-tis": "seq_mask"}
ESTIMATORS = {
    "grpo": "group",
    "gdpo": "components",
    "reinforce_plus_plus": "group",
    "raw_reward": "group",
    "gae": "gae",
    "opd": "teacher",
    "distillation": "teacher",
}
"""Our estimator for each of theirs; their section distillation has one of its own."""


class NoCounterpartError(Exception):
    """This value has no counterpart; the message says why."""


class NoEffectError(Exception):
    """This value changes nothing there, or nothing here either; the message says why."""


@dataclass(frozen=True, slots=True)
class Source:
    """A config of NeMo RL, resolved, and the verb that it is for."""

    config: Mapping[str, Any]
    verb: Verb
    section: str = ""
    """Its section of the algorithm; empty: as the verb is called."""

    def get(self, dotted: str, default: Any = None) -> Any:
        """The value at a dotted key."""
        return get(self.config, dotted, default)

    def own(self, name: str, default: Any = None) -> Any:
        """The value of a key of the algorithm's section."""
        return self.get(f"{self.section or self.verb}.{name}", default)

    def is_off(self, dotted: str) -> bool:
        """True when a section that holds the key says `enabled: false`, or is for the backend that is not used."""
        parts = dotted.split(".")
        sections = [".".join(parts[:count]) for count in range(1, len(parts))]
        for model in ("policy", "value"):
            if self.get(f"{model}.megatron_cfg.enabled") and dotted.startswith((f"{model}.optimizer.", f"{model}.scheduler")):
                return True
        return any(self.get(f"{one}.enabled") is False for one in sections if dotted != f"{one}.enabled")

    def switches_off(self, key: NemoRLKey, dotted: str) -> bool:
        """True for the `enabled: false` of a section that has no counterpart."""
        return key.theirs.endswith(".*") and dotted.endswith(".enabled") and self.get(dotted) is False

    @property
    def validates(self) -> bool:
        """Whether it names a validation set."""
        return any(self.get(f"data.{key}") for key in ("validation", "val_data_path", "val_data_paths"))

    @property
    def minibatches(self) -> int:
        """Updates of one pass over a batch of rollouts; 1 for other training, and where they cannot be the same here."""
        prompts, batch = self.own("num_prompts_per_step", 0), self.get("policy.train_global_batch_size") or 0
        rollouts = prompts * self.own("num_generations_per_prompt", 0)
        if self.verb != "grpo" or not batch or rollouts % batch or rollouts // batch > prompts:
            return 1
        return max(1, rollouts // batch)

    @property
    def updates(self) -> int:
        """Updates of one step of theirs."""
        return self.minibatches * (self.own("ppo_epochs", 1) if self.section == "ppo" else 1)

    @property
    def estimator(self) -> str:
        """Their name of the advantage estimator."""
        default = {"ppo": "gae", "distillation": "distillation"}.get(self.section, "grpo")
        return self.own("adv_estimator.name", default)

    @property
    def loss(self) -> str:
        """Our name of the loss."""
        if self.get("loss_fn.disable_ppo_ratio") or self.get("loss_fn.force_on_policy_ratio"):
            return "reinforce"
        return "cispo" if self.get("loss_fn.use_cispo") else "clipped"

    @property
    def correction(self) -> str:
        """What corrects for the sampler: none, untruncated, or one of our names. Raises NoCounterpartError for other ones."""
        if not self.get("loss_fn.use_importance_sampling_correction"):
            return "none"
        bound = self.get("loss_fn.truncated_importance_sampling_ratio")
        kind = self.get("loss_fn.truncated_importance_sampling_type", "tis" if bound is not None else None)
        if self.get("loss_fn.sequence_level_importance_ratios"):
            raise NoCounterpartError("the weight of a whole sequence is the product over its tokens there; here w is each token's")
        if kind is not None and kind not in CORRECTIONS:
            raise NoCounterpartError("algorithm.correction may be tis, icepop or seq_mask")
        return UNTRUNCATED if kind is None or bound is None else CORRECTIONS[kind]

    @property
    def has_kl(self) -> bool:
        """Whether a KL to the reference counts: in the reward it does only for estimators that take it off."""
        in_reward = self.get("loss_fn.use_kl_in_reward") and self.estimator not in ("reinforce_plus_plus", "gae")
        return bool(self.get("loss_fn.reference_policy_kl_penalty", DEFAULT_BETA)) and not in_reward

    @property
    def staleness(self) -> int:
        """Batches by which the weights that sampled may be older; 0 where rollouts and steps take turns."""
        section = "async_ppo" if self.section == "ppo" else "async_grpo"
        return self.own(f"{section}.max_trajectory_age_steps", 1) if self.own(f"{section}.enabled") else 0
