"""The workshop: real small models, their settings, and the directories in which the commands of the pages are run."""

import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from gym_bridge.hub import EMBEDDED, resolve
from tests.cluster.ray_stage import stand_in
from tests.documentation.given_files import gym_bridge, write_blend, write_given_files, write_nemo_rl, write_rollouts
from tests.documentation.pages import ROOT
from tests.documentation.session import Session

# heads are as many as in the embedded model, so that what does not divide them does not divide these
SMALL = {"num_hidden_layers": 2, "hidden_size": 72, "intermediate_size": 96}
ENDING_STD = 0.75
POLICY = {"lr": 1e-4, "warmup_steps": 0, "compute_dtype": "float32"}
STEPS = {"trainer": {"max_steps": 2}}
SETTINGS = {
    "sft": {"algorithm": {"batch_size": 4}, **STEPS},
    "dpo": {"algorithm": {"batch_size": 2}, **STEPS},
    "rm": {"algorithm": {"batch_size": 2}, **STEPS},
    "rlvr": {
        "algorithm": {"tasks_per_step": 2, "group_size": 4, "overlong_buffer": 16},  # random weights earn by their lengths alone
        "sampler": {"max_tokens": 16},
        **STEPS,
    },
}
SUBMITTERS = ("sbatch", "kubectl", "ssh", "uv")
"""Programs that hand work to other machines, or to NeMo RL: here they take their input and are content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """`shop` has what the substitutions name, `start` what stands there before README.md, `readme` is where it is followed."""

    shop: Path
    environment: Mapping[str, str]

    @property
    def readme(self) -> Path:
        """Where README.md is followed."""
        return self.shop / "readme"

    def session(self, directory: Path) -> Session:
        """A reader's shell in `directory`."""
        return Session(self.shop, directory, self.environment)

    def directory_for(self, page: Path, directory: Path) -> Path:
        """What the reader of a page has: what README.md left, or what stood there before it."""
        if stands_alone(page):
            return shutil.copytree(self.shop / "start", directory, symlinks=True)
        shutil.copytree(self.readme, directory, symlinks=True)
        write_rollouts(directory)
        write_blend(directory, self.shop / "data")
        shutil.copytree(self.shop / "old-dcp", directory / "old-dcp")
        return directory


def stands_alone(page: Path) -> bool:
    """True for the pages that tell of a day of their own, begun with nothing made."""
    return page.is_relative_to(ROOT / "docs" / "results") or page.name == "tour.md"


def make_workshop(shop: Path) -> Workshop:
    """Models, settings, stand-ins, and a directory in which README.md can be followed."""
    embedded = shop / "cache" / EMBEDDED
    embedded.parent.mkdir(parents=True)
    embedded.symlink_to(resolve(EMBEDDED).parent)
    _write_tiny_model(shop / "tiny", pickled=shop / "old-dcp")
    for name, settings in SETTINGS.items():
        (shop / f"{name}.yaml").write_text(yaml.safe_dump({"policy": {**POLICY, "model": str(shop / "tiny")}, **settings}))
    (shop / "bin").mkdir()
    for name in SUBMITTERS:
        stand_in(shop / "bin", name, "cat > /dev/null")
    write_nemo_rl(shop / "home" / "RL", shop / "tiny")
    write_given_files(shop / "start", shop=shop)
    shutil.copytree(shop / "start", shop / "readme", symlinks=True)
    return Workshop(shop=shop, environment=_environment(shop))


def _environment(shop: Path) -> dict[str, str]:
    """No hub, no home but the workshop's, no thread more than these models are worth."""
    path = os.pathsep.join([str(shop / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    places = {"PATH": path, "HOME": str(shop / "home"), "GYM_BRIDGE_CACHE": str(shop / "cache")}
    return {**os.environ, **places, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}


def _write_tiny_model(directory: Path, *, pickled: Path) -> None:
    """SmolLM2 with two narrow layers of random weights, and the embedded model's own tokenizer and template.

    The token that ends a turn has a large embedding: at some places it is the likeliest by far, so that turns are short.
    `pickled` gets the same weights as torch.distributed.checkpoint writes them by itself.
    """
    import torch
    from torch.distributed.checkpoint import FileSystemWriter, save
    from transformers import AutoConfig, AutoModelForCausalLM

    gym_bridge("checkpoint", "export", EMBEDDED, "--output", directory)
    (directory / "model.safetensors").unlink()
    torch.manual_seed(7)
    config = AutoConfig.from_pretrained(directory, **SMALL, head_dim=8, dtype="float32")
    module = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        module.get_input_embeddings().weight[config.eos_token_id].normal_(std=ENDING_STD)
    module.save_pretrained(directory)
    with warnings.catch_warnings():  # of being the only process, which is meant
        warnings.simplefilter("ignore", UserWarning)
        save({"model": module.state_dict()}, storage_writer=FileSystemWriter(str(pickled)), no_dist=True)
