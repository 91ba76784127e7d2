"""The keys of NeMo RL that its override files may hold, read in NVIDIA-NeMo/RL; each with the commit it was read at."""

CONFIG_KEYS: dict[str, set[str]] = {
    # examples/configs/sft.yaml at 00455ac0
    "sft": {
        "sft.val_period",
        "sft.val_at_start",
        "checkpointing.metric_name",
        "policy.model_name",
        "policy.tokenizer.name",
        "policy.tokenizer.chat_template",
        "policy.train_global_batch_size",
        "policy.max_total_sequence_length",
        "data.max_input_seq_length",
        "data.add_bos",
        "data.add_eos",
        "data.add_generation_prompt",
        "data.shuffle",
        "data.num_workers",
        "data.train",
        "data.validation",
        "data.default.prompt_file",
        "data.default.system_prompt_file",
        "data.default.processor",
        "logger.wandb.name",
        "logger.swanlab.name",
        "logger.tensorboard.log_dir",
        "logger.mlflow.run_name",
    },
    # examples/configs/dpo.yaml at 00455ac0
    "dpo": {
        "dpo.val_period",
        "dpo.val_at_start",
        "checkpointing.metric_name",
        "policy.model_name",
        "policy.tokenizer.name",
        "policy.train_global_batch_size",
        "policy.max_total_sequence_length",
        "data.max_input_seq_length",
        "data.shuffle",
        "data.num_workers",
        "data.train",
        "data.validation",
        "data.default.prompt_file",
        "data.default.system_prompt_file",
    },
    # examples/configs/rm.yaml at b761dd14; data.train and data.validation from setup_preference_data (nemo_rl/data/utils.py at
    # 029dfa48), which dpo and rm share
    "rm": {
        "rm.val_period",
        "rm.val_at_start",
        "checkpointing.metric_name",
        "policy.model_name",
        "policy.tokenizer.name",
        "policy.tokenizer.chat_template",
        "policy.train_global_batch_size",
        "policy.max_total_sequence_length",
        "data.max_input_seq_length",
        "data.shuffle",
        "data.num_workers",
        "data.train",
        "data.validation",
        "data.default.prompt_file",
        "data.default.system_prompt_file",
        "logger.wandb.name",
        "logger.swanlab.name",
        "logger.tensorboard.log_dir",
    },
    # examples/configs/grpo_math_1B.yaml at b26cfeb3; env, generation and the two validation keys from
    # examples/nemo_gym/grpo_workplace_assistant_nemotron_nano_v2_9b.yaml at 0b95f5b5
    "grpo": {
        "grpo.val_period",
        "grpo.val_at_start",
        "grpo.max_val_samples",
        "grpo.val_batch_size",
        "grpo.num_prompts_per_step",
        "checkpointing.metric_name",
        "policy.model_name",
        "policy.tokenizer.name",
        "policy.max_total_sequence_length",
        "policy.generation.vllm_cfg.async_engine",
        "policy.generation.vllm_cfg.expose_http_server",
        "data.max_input_seq_length",
        "data.shuffle",
        "data.num_workers",
        "data.train",
        "data.validation",
        "data.default.prompt_file",
        "data.default.system_prompt_file",
        "data.default.processor",
        "data.default.env_name",
        "env.should_use_nemo_gym",
    },
}

CODE_KEYS = {
    "defaults",  # load_config_with_inheritance in nemo_rl/utils/config.py at 017238e5
    "data._override_",  # merge_with_override, the same file: at a file's top level only
    "data.use_multiple_dataloader",  # setup_response_data in nemo_rl/data/utils.py at 029dfa48
    "policy.tokenizer.chat_template",  # sft.yaml and rm.yaml; get_tokenizer reads it for every algorithm
}

DATASET_KEYS = {
    "openai_format": {"data_path", "chat_key", "tool_key", "use_preserving_dataset"},  # oai_format_dataset.py at 13de9e4c
    "ResponseDataset": {"data_path", "input_key", "output_key"},  # response_dataset.py at 6230afd2
    "BinaryPreferenceDataset": {"data_path", "prompt_key", "chosen_key", "rejected_key"},  # comments of dpo.yaml at 00455ac0
    "PreferenceDataset": {"data_path"},  # preference_dataset.py at 566c178e
    "NemoGymDataset": {"data_path"},  # nemogym_dataset.py
}
