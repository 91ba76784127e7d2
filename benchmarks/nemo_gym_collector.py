"""NeMo Gym's own collector, in its own venv, without Hydra's command line: what `ng_collect_rollouts` runs once it has its config.

    VENV/bin/python nemo_gym_collector.py HEAD_URL AGENT TASKS OUTPUT NUM_REPEATS CONCURRENCY

Prints rollouts, seconds and CPU seconds as JSON. It asks the head server where the agent is and posts every task to its /run.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from nemo_gym.global_config import NEMO_GYM_CONFIG_DICT_ENV_VAR_NAME


def main(head_url, agent, tasks, output, num_repeats, concurrency):
    """Collect, and print the figures."""
    head = urlsplit(head_url)
    os.environ[NEMO_GYM_CONFIG_DICT_ENV_VAR_NAME] = json.dumps({"head_server": {"host": head.hostname, "port": head.port}})
    from nemo_gym.rollout_collection import RolloutCollectionConfig, RolloutCollectionHelper

    config = RolloutCollectionConfig(
        agent_name=agent,
        input_jsonl_fpath=tasks,
        output_jsonl_fpath=output,
        num_repeats=int(num_repeats),
        num_samples_in_parallel=int(concurrency),
        upload_rollouts_to_wandb=False,
        disable_aggregation=True,  # ours computes none either
    )
    Path(output).parent.mkdir(parents=True)
    started, cpu_before = time.perf_counter(), time.process_time()
    rows = asyncio.run(RolloutCollectionHelper().run_from_config(config))
    figures = {"rollouts": len(rows), "seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu_before}
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
