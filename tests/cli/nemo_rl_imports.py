"""NeMo RL's configs as tests import them."""

from pathlib import Path
from typing import Any

import yaml

from gym_bridge.api.nemo_rl_import import SETTINGS, Imported, import_nemo_rl_config
from gym_bridge.config import load_config
from gym_bridge.schemas.nemo_rl_key import VERBS

CONFIGS = Path(__file__).parent / "nemo_rl_configs"
STILL_NEEDED = {"sft": (), "rm": (), "dpo": ("data.train=a.jsonl", "data.validation.default=b.jsonl")}
STILL_NEEDED["grpo"] = ("data.train=a.jsonl", "env.server=math", "sampler.url=http://127.0.0.1:8000")
STILL_NEEDED["ppo"] = STILL_NEEDED["distillation"] = (*STILL_NEEDED["grpo"], "data.validation.default=b.jsonl")
STILL_NEEDED["grpo_async_gym"] = ("sampler.url=http://127.0.0.1:8000",)
VERB_OF = {**{verb: verb for verb in VERBS}, **dict.fromkeys(("ppo", "distillation", "grpo_async_gym"), "grpo")}
"""By the names of the configs."""


def imported(tmp_path: Path, verb: str, **sections: Any) -> Imported:
    """What becomes of a config of NeMo RL with these sections and the verb's own."""
    file = tmp_path / "theirs.yaml"
    file.write_text(yaml.safe_dump({verb: {}} | sections))
    return import_nemo_rl_config(file)


def imported_settings(name: str) -> Any:
    """What `train` makes of the imported config, with what the user has to say."""
    values = import_nemo_rl_config(CONFIGS / f"{name}.yaml").settings
    return load_config(SETTINGS[VERB_OF[name]], values=values, overrides=STILL_NEEDED[name])
