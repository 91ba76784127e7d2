"""The override file that hands a dataset to NeMo RL: which keys, for which rows, and what NeMo RL would do in silence.

The `data` section replaces the base config's whole (`_override_: true`): keys of another dataset that stay behind, such as
`split: validation` or `split_validation_size`, would apply to ours. Everything else is merged over the base.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gym_bridge.errors import ConfigError, nearest
from gym_bridge.schemas.nemo_rl_rows import RowKind

Algorithm = Literal["sft", "dpo", "grpo", "rm"]
Config = dict[str, Any]

KINDS: dict[Algorithm, tuple[RowKind, ...]] = {
    "sft": (RowKind.SFT, RowKind.RESPONSE),
    "dpo": (RowKind.DPO, RowKind.PREFERENCE),
    "grpo": (RowKind.RESPONSE, RowKind.TASKS),
    "rm": (RowKind.DPO, RowKind.PREFERENCE),
}
"""The rows that each algorithm of NeMo RL trains on."""

SEQUENCE_MULTIPLE = 64
"""Sequence lengths are rounded up to a multiple of this: NeMo RL's own sequence_length_round."""
ANSWER_TOKENS = 1024
"""Room for the answer to the longest prompt of a grpo dataset, whose rows do not tell how long answers get."""
GROUND_TRUTH_CHARACTERS = 200
"""A grpo row whose output is longer than this hardly holds a reference answer."""
SEQUENCE_LENGTH = "${policy.max_total_sequence_length}"
GYM_MODEL = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
FREE_SECTIONS = ("data", "env", "logger", "defaults")
"""Sections whose keys the base config does not list in full."""
ROWS_PER_STEP = {"sft": 32, "dpo": 128, "rm": 128, "grpo": 32}
GYM_PROMPTS_PER_STEP = 64
"""Rows of one step in NeMo RL's example configs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """What was found in the files."""

    kind: RowKind
    train: tuple[str, ...]
    """Absolute paths."""
    validation: tuple[str, ...] = ()
    num_train: int
    longest: int | None
    """Tokens of the longest row as NeMo RL counts them; of the longest prompt for grpo. None where nothing tells it."""
    num_rewritten: int = 0
    """Rows in which the template writes earlier turns anew."""
    num_with_tools: int = 0
    num_with_object_arguments: int = 0
    """Rows with tool calls whose arguments are objects."""
    num_long_completions: int = 0
    """Rows with a completion of more than one message."""
    longest_output: int = 0
    """Characters."""
    max_positions: int | None = None
    """Positions of the model, from its config.json."""
    dated_template: bool = False
    """The chat template writes today's date."""
    agents: tuple[str, ...] = ()
    """Names in agent_ref."""


def check_pairing(algorithm: Algorithm, kind: RowKind) -> None:
    """Raises ConfigError for rows that the algorithm cannot train on, with what to run instead."""
    if kind in KINDS[algorithm]:
        return
    fitting = " or ".join(name for name, kinds in KINDS.items() if kind in kinds)
    wanted = {"sft": "sft", "dpo": "dpo", "rm": "preference", "grpo": "tasks"}[algorithm]
    raise ConfigError(
        f"{kind} rows do not train {algorithm}: run gym-bridge nemo-rl {fitting} with them, "
        f"or make rows for {algorithm} with gym-bridge transform --to {wanted}"
    )


def base_config_path(algorithm: Algorithm, kind: RowKind) -> str:
    """NeMo RL's example config for it, within a checkout."""
    if kind is RowKind.TASKS:
        return "examples/nemo_gym/grpo_workplace_assistant_nemotron_nano_v2_9b.yaml"
    return f"examples/configs/{'grpo_math_1B' if algorithm == 'grpo' else algorithm}.yaml"


def script_path(algorithm: Algorithm, kind: RowKind) -> str:
    """The script that trains, within a checkout."""
    return "examples/nemo_gym/run_grpo_nemo_gym.py" if kind is RowKind.TASKS else f"examples/run_{algorithm}.py"


def override_config(algorithm: Algorithm, facts: DatasetFacts, *, model: str, base: str) -> Config:
    """The override file for `model`, over the config at `base`."""
    policy: Config = {
        "model_name": model,
        "tokenizer": {"name": "${policy.model_name}", "chat_template": "default"},
    }
    if (length := sequence_length(algorithm, facts)) is not None:
        policy["max_total_sequence_length"] = length
    config: Config = {"defaults": base, "policy": policy}
    if not facts.validation:
        config[algorithm] = {"val_period": 0, "val_at_start": False}
        config["checkpointing"] = {"metric_name": None}
    config["data"] = _data_section(algorithm, facts)
    if facts.kind is RowKind.TASKS:
        _add_nemo_gym(config, facts)
    if algorithm in ("sft", "rm"):  # the base's names are made of the dataset's, whose place there differs between versions
        config["logger"] = {
            "wandb": {"name": f"{algorithm}-gym-bridge"},
            "swanlab": {"name": f"{algorithm}-gym-bridge"},
            "tensorboard": {"log_dir": f"tb_logs-{algorithm}-gym-bridge"},
        }
        if algorithm == "sft":
            config["logger"]["mlflow"] = {"run_name": "sft-gym-bridge"}
    return config


def sequence_length(algorithm: Algorithm, facts: DatasetFacts) -> int | None:
    """`max_total_sequence_length` that holds every row: NeMo RL neutralises a row that reaches it. None: the base's stays."""
    if facts.longest is None or facts.kind is RowKind.TASKS:
        return None
    needed = facts.longest + (ANSWER_TOKENS if algorithm == "grpo" else 1)
    return -(-needed // SEQUENCE_MULTIPLE) * SEQUENCE_MULTIPLE


def _data_section(algorithm: Algorithm, facts: DatasetFacts) -> Config:
    section: Config = {"_override_": True, "max_input_seq_length": SEQUENCE_LENGTH, "shuffle": True, "num_workers": 1}
    default: Config = {"prompt_file": None, "system_prompt_file": None}
    if facts.kind is RowKind.TASKS:
        section["max_input_seq_length"] = None
        default |= {"processor": "nemo_gym_data_processor", "env_name": "nemo_gym"}
    elif algorithm == "grpo":
        default |= {"processor": "math_hf_data_processor", "env_name": "math"}
    elif algorithm == "sft":
        section |= {"add_bos": True, "add_eos": True, "add_generation_prompt": False}
        default |= {"processor": "sft_processor"}
    if algorithm in ("sft", "grpo"):
        section["use_multiple_dataloader"] = False
    section["train"] = _files(algorithm, facts.kind, facts.train)
    section["validation"] = _files(algorithm, facts.kind, facts.validation) if facts.validation else None
    section["default"] = default
    return section


_DATASETS: dict[RowKind, Config] = {
    RowKind.SFT: {
        "dataset_name": "openai_format",
        "chat_key": "messages",
        "tool_key": "tools",
        "use_preserving_dataset": True,
    },
    RowKind.RESPONSE: {"dataset_name": "ResponseDataset", "input_key": "input", "output_key": "output"},
    RowKind.DPO: {
        "dataset_name": "BinaryPreferenceDataset",
        "prompt_key": "prompt",
        "chosen_key": "chosen",
        "rejected_key": "rejected",
    },
    RowKind.PREFERENCE: {"dataset_name": "PreferenceDataset"},
    RowKind.TASKS: {"dataset_name": "NemoGymDataset"},
}


def _files(algorithm: Algorithm, kind: RowKind, paths: Sequence[str]) -> Any:
    entries = [_DATASETS[kind] | {"data_path": path} for path in paths]
    if len(entries) == 1:
        return entries[0]
    if algorithm in ("dpo", "rm"):
        raise ConfigError(f"NeMo RL takes one file of preferences, found {', '.join(paths)}; join them, or name one")
    return entries


def _add_nemo_gym(config: Config, facts: DatasetFacts) -> None:
    config.setdefault("grpo", {}).update({"max_val_samples": None, "val_batch_size": None})
    config["policy"]["generation"] = {"vllm_cfg": {"async_engine": True, "expose_http_server": True}}
    config["env"] = {"should_use_nemo_gym": True}


def warnings(algorithm: Algorithm, facts: DatasetFacts, config: Mapping[str, Any], base: Mapping[str, Any] | None) -> list[str]:
    """What NeMo RL would do without a word, or with words that nobody reads."""
    return [*_data_warnings(algorithm, facts), *_config_warnings(algorithm, facts, config, base)]


def _data_warnings(algorithm: Algorithm, facts: DatasetFacts) -> Iterator[str]:
    if facts.num_with_tools and facts.kind is RowKind.PREFERENCE:
        yield f"{facts.num_with_tools} rows have tools: NeMo RL does not give them to the chat template of preference data"
    if facts.num_with_object_arguments and facts.kind is RowKind.PREFERENCE:
        yield (
            f"{facts.num_with_object_arguments} rows have tool calls with arguments as objects: some versions of Hugging Face's "
            "JSON loader fill keys of other rows in as null; write them with transform --arguments string"
        )
    if facts.num_rewritten:
        yield (
            f"in {facts.num_rewritten} rows the chat template writes earlier turns anew, as those do that drop old reasoning: "
            "NeMo RL repeats text in the tokens of such rows (its issue 2821); train on single turns or change the template"
        )
    if algorithm == "rm" and facts.dated_template:
        yield "the chat template writes today's date: the reward model's scores would depend on it; change the template"
    if algorithm == "grpo" and facts.kind is RowKind.RESPONSE and facts.longest_output > GROUND_TRUTH_CHARACTERS:
        yield (
            f"the longest 'output' has {facts.longest_output} characters: grpo takes it as the ground truth, not as an answer; "
            "transform --to grpo writes the task's reference there"
        )
    if algorithm == "dpo" and facts.num_long_completions:
        yield f"{facts.num_long_completions} rows have completions of several messages: NeMo RL's dpo trains the last message only"


def _config_warnings(
    algorithm: Algorithm, facts: DatasetFacts, config: Mapping[str, Any], base: Mapping[str, Any] | None
) -> Iterator[str]:
    length = get(config, "policy.max_total_sequence_length", get(base, "policy.max_total_sequence_length"))
    if isinstance(length, int) and facts.longest is not None:
        room = length - (1 if algorithm == "sft" else 0)
        if facts.longest > room:
            yield (
                f"the longest row has {facts.longest} tokens, more than max_total_sequence_length {length} holds: "
                "NeMo RL cuts such rows to a few tokens and gives them no weight"
            )
        if facts.max_positions and length > facts.max_positions:
            yield f"max_total_sequence_length {length} is more than the model's {facts.max_positions} positions"
    key = "grpo.num_prompts_per_step" if algorithm == "grpo" else "policy.train_global_batch_size"
    usual = GYM_PROMPTS_PER_STEP if facts.kind is RowKind.TASKS else ROWS_PER_STEP[algorithm]
    rows = get(config, key, get(base, key, usual))
    if isinstance(rows, int) and facts.num_train < rows:
        yield (
            f"{facts.num_train} rows are fewer than one step's {key} of {rows}: NeMo RL drops the last, incomplete batch and "
            f"trains on nothing; add {key}={facts.num_train}"
        )
    if base is not None and "train" not in base.get("data", {}):
        yield "the base config has no data.train: its NeMo RL is older than its pull requests 1649 and 1763, and than these keys"
    if facts.kind is RowKind.TASKS:
        yield from _gym_warnings(facts, config)


def _gym_warnings(facts: DatasetFacts, config: Mapping[str, Any]) -> Iterator[str]:
    if not get(config, "env.nemo_gym.config_paths"):
        agents = ", ".join(facts.agents) or "none"
        yield (
            f"the rows name the agents {agents}: list the NeMo Gym configs that define them, {GYM_MODEL} first, "
            "with env.nemo_gym.config_paths=[...]; those of the base stay otherwise"
        )
    if facts.num_with_tools and not get(config, "policy.generation.vllm_cfg.http_server_serving_chat_kwargs.tool_parser"):
        yield (
            f"{facts.num_with_tools} tasks have tools: set "
            "policy.generation.vllm_cfg.http_server_serving_chat_kwargs.tool_parser to the model's (the base's is nemotron_json)"
        )


def get(config: Mapping[str, Any] | None, dotted: str, default: Any = None) -> Any:
    """The value at a dotted key; `default` where there is none."""
    here: Any = config
    for key in dotted.split("."):
        if not isinstance(here, Mapping) or key not in here:
            return default
        here = here[key]
    return here


def check_keys(config: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that the base config does not have, outside its open sections, with the nearest one.

    NeMo RL takes any key in a YAML file and heeds only those that it knows.
    """
    for section, values in config.items():
        if section in FREE_SECTIONS:
            continue
        if section not in base:
            raise ConfigError(f"the base config has no section {section!r}{nearest(section, map(str, base))}")
        _check_section(values, base[section], section)


_OPEN_KEYS = ("kwargs", "vllm_kwargs", "env_vars", "automodel_kwargs", "hf_config_overrides", "chat_template_kwargs")


def _check_section(values: Any, base: Any, path: str) -> None:
    if not isinstance(values, Mapping) or not isinstance(base, Mapping):
        return
    for key, value in values.items():
        if key not in base and f"{path}.{key}" not in OWN_KEYS:
            raise ConfigError(f"the base config has no key {path}.{key}{nearest(key, map(str, base))}")
        if key not in _OPEN_KEYS:
            _check_section(value, base.get(key), f"{path}.{key}")


OWN_KEYS = ("policy.tokenizer.chat_template", "policy.generation.vllm_cfg.expose_http_server")
"""Keys that NeMo RL reads though not every example config lists them."""
