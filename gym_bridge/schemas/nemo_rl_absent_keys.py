"""The settings of NeMo RL that have no counterpart here, and why."""

from gym_bridge.schemas.nemo_rl_key import ANY, OFFLINE, ONLINE, NemoRLKey, absent, below

_ALGORITHMS = [
    *absent("train dpo weighs the preference with 1 and algorithm.sft_weight against it", "dpo.preference_loss_weight", at=(1,)),
    *absent("the chosen side's likelihood is always a mean over its tokens", "dpo.sft_average_log_probs", at=(True,)),
    *absent(
        "validation comes before the first step, every trainer.validate_every steps and after the last",
        *below("ALGORITHM", "val_at_start val_at_end"),
        at=(True,),
        verbs=OFFLINE,
    ),
    *absent("all rows of data.validation are read", "ALGORITHM.val_batches", at=(-1,), verbs=OFFLINE),
    *absent(
        "validation is packed as training is",
        *below("ALGORITHM", "val_global_batch_size val_micro_batch_size"),
        at=ANY,
        verbs=OFFLINE,
    ),
]

_GRPO = [
    *absent(
        "train grpo validates on nothing: gym-bridge eval plays held-out tasks with a checkpoint",
        *below("grpo", "val_period val_at_start val_at_end val_start_at max_val_samples val_batch_size"),
        *below("grpo", "val_num_generations_per_prompt stop_at_validation_metric stop_at_validation_threshold"),
        at=(0, -1, None, False),
        verbs=ONLINE,
    ),
    *absent("tasks are played over and over until trainer.max_steps", "grpo.max_num_epochs", verbs=ONLINE),
    *absent("the baseline is the whole group's mean", "grpo.use_leave_one_out_baseline", at=(False,)),
    *absent("the estimator is GRPO's", "grpo.adv_estimator.name", at=("grpo",)),
    *absent(
        "a setting of the estimator",
        "grpo.adv_estimator.normalize_rewards",
        "grpo.adv_estimator.use_leave_one_out_baseline",
        "grpo.adv_estimator.*",
    ),
    *absent("groups without a signal are skipped and no others are played for them", "grpo.use_dynamic_sampling", at=(False,)),
    *absent(
        "a setting of dynamic sampling", *below("grpo", "dynamic_sampling_max_gen_batches batch_multiplier"), at=(None, 1, 1.0)
    ),
    *absent("a truncated rollout trains as any other", "grpo.overlong_filtering", at=(False,)),
    *absent("rewards are taken as the server gives them", "grpo.reward_scaling.*", "grpo.reward_shaping.*", "reward_penalties.*"),
    *absent("advantages are taken as they are", *below("grpo", "advantage_clip_low advantage_clip_high"), at=(None,)),
    *absent(
        "no sample is left out or given another advantage for this",
        *below("grpo", "seq_logprob_error_threshold invalid_tool_call_advantage malformed_thinking_advantage"),
        at=(None,),
    ),
    *absent("training and sampling take turns", "grpo.async_grpo.*", "async_rl.*", "data_plane.*"),
    *absent("there is no reference policy in it", "grpo.skip_reference_policy_logprobs_calculation", at=ANY),
    *absent("the loss has no KL term", "loss_fn.reference_policy_kl_penalty", at=(0,)),
    *absent(
        "a setting of the KL term",
        *below("loss_fn", "reference_policy_kl_type kl_input_clamp_value kl_output_clamp_value use_on_policy_kl_approximation"),
        "loss_fn.use_kl_in_reward",
        at=ANY,
    ),
    *absent(
        "the loss is the clipped surrogate alone",
        *below("loss_fn", "disable_ppo_ratio force_on_policy_ratio use_cispo sequence_level_importance_ratios"),
        at=(False,),
    ),
    *absent("no second bound clips it", "loss_fn.ratio_clip_c", at=(None,)),
    *absent("the loss is the mean over the step's tokens", "loss_fn.token_level_loss", at=(True,)),
    *absent(
        "the ratio is against the sampler's own log-probs, which corrects the same gap",
        "loss_fn.use_importance_sampling_correction",
        at=ANY,
    ),
    *absent(
        "ratios are clipped, never cut off otherwise",
        *below("loss_fn", "truncated_importance_sampling_type truncated_importance_sampling_ratio"),
        "loss_fn.truncated_importance_sampling_ratio_min",
        at=(None,),
    ),
    *absent("right answers get no extra likelihood", "loss_fn.positive_example_nll_weight", at=(0,)),
]

_CHECKPOINTING = [
    *absent(
        "train grpo has no validation metric to rank checkpoints by",
        *below("checkpointing", "metric_name higher_is_better"),
        at=(None,),
        verbs=ONLINE,
    ),
    *absent("the last step is always saved", "checkpointing.enabled", at=(True,)),
    *absent("a checkpoint is a Hugging Face directory in safetensors", "checkpointing.model_save_format", at=("safetensors", None)),
    *absent("a checkpoint is always one whole Hugging Face directory", "checkpointing.save_consolidated", at=ANY),
    *absent("the optimizer is always saved", "checkpointing.save_optimizer", at=(True,)),
    *absent("trainer.save_every and keep_last are all", *below("checkpointing", "ft_save_period ft_keep_latest_k"), at=(None,)),
    *absent("gym-bridge checkpoint import makes a model of other formats", "checkpointing.pretrained_checkpoint.*", at=(None,)),
]

_POLICY = [
    *absent(
        "one update a step, of all its rollouts",
        "policy.train_global_batch_size",
        verbs=ONLINE,
    ),
    *absent(
        "the model's context bounds a rollout, sampler.max_tokens a completion", "policy.max_total_sequence_length", verbs=ONLINE
    ),
    *absent("the model's own tokenizer is taken; to change it, change the model's directory", "policy.tokenizer.name"),
    *absent(
        "the model's own chat template is taken; to change it, change chat_template.jinja of its directory",
        "policy.tokenizer.chat_template",
        at=("default",),
    ),
    *absent("tokenizers are always fast ones", "policy.tokenizer.use_fastokens", at=ANY),
    *absent(
        "log-probs are computed in microbatches of policy.microbatch_tokens too",
        *below("policy", "logprob_batch_size logprob_chunk_size offload_optimizer_for_logprob"),
        *below("policy", "sequence_packing.logprob_mb_tokens dynamic_batching.logprob_mb_tokens"),
        at=ANY,
    ),
    *absent(
        "sequences are always packed, without padding",
        *below("policy.sequence_packing", "enabled algorithm sequence_length_round microbatch_order"),
        *below("policy.dynamic_batching", "enabled sequence_length_round"),
        "policy.make_sequence_length_divisible_by",
        at=ANY,
    ),
    *absent("a kernel's choice", *below("policy.optimizer.kwargs", "foreach fused"), at=ANY),
    *absent("AdamW's epsilon is 1e-8", "policy.optimizer.kwargs.eps", "policy.megatron_cfg.optimizer.adam_eps", at=(1e-8,)),
    *absent("AdamW takes nothing else", "policy.optimizer.kwargs.*"),
    *absent("train rm trains a Bradley-Terry model", "policy.reward_model_cfg.enabled", at=ANY),
    *absent("train rm trains a Bradley-Terry model", "policy.reward_model_cfg.reward_model_type", at=("bradley_terry",)),
    *absent("the model's config is taken as it is", "policy.hf_config_overrides", "policy.hf_config_overrides.*", at=({}, None)),
    *absent("training is one process on one device", *below("policy.dtensor_cfg", "cpu_offload sequence_parallel"), at=(False,)),
    *absent(
        "training is one process on one device",
        *below("policy.dtensor_cfg", "tensor_parallel_size context_parallel_size expert_parallel_size data_parallel_size"),
        *below("policy.dtensor_cfg", "custom_parallel_plan dp_replicate_size"),
        at=(1, None),
    ),
    *absent("policy.lora trains adapters as peft makes them", "policy.dtensor_cfg.lora_cfg.enabled", at=ANY),
    *absent("adapters stand on the layers of policy.lora.target_modules", "policy.dtensor_cfg.lora_cfg.match_all_linear", at=ANY),
    *absent("no layer is left out", "policy.dtensor_cfg.lora_cfg.exclude_modules", at=([],)),
    *absent("adapters drop nothing out", "policy.dtensor_cfg.lora_cfg.dropout", at=(0,)),
    *absent("adapters begin and compute as peft's", "policy.dtensor_cfg.lora_cfg.*", at=ANY),
    *absent("adapters begin and compute as peft's", "policy.megatron_cfg.peft.*"),
    *absent("a setting of NeMo RL's DTensor backend", "policy.dtensor_cfg.*", at=ANY),
    *absent("the backend is policy.backend", "policy.megatron_cfg.enabled", at=ANY),
    *absent("a setting of NeMo RL's Megatron backend", "policy.megatron_cfg.*"),
    *absent("there is no draft model", "policy.draft.*"),
    *absent("experts are routed anew in training", "policy.router_replay.*"),
]

_GENERATION = [
    *absent("the sampler is sampler.kind", "policy.generation.backend", at=ANY),
    *absent("completions are sampled at temperature 1", "policy.generation.temperature", at=(1,)),
    *absent("completions are sampled from the whole distribution", "policy.generation.top_p", at=(1, None)),
    *absent("completions are sampled from the whole distribution", "policy.generation.top_k", at=(None, -1)),
    *absent(
        "a completion ends with the model's end tokens",
        *below("policy.generation", "stop_token_ids stop_strings"),
        at=(None, []),
    ),
    *absent("train grpo has no validation", *below("policy.generation", "val_temperature val_top_p"), at=ANY),
    *absent("the policy answers in the training process: sampler.max_batch side by side", "policy.generation_batch_size", at=ANY),
    *absent("the policy answers in the training process, on its device", "policy.generation.colocated.enabled", at=(True,)),
    *absent("the policy answers in the training process, on its device", "policy.generation.colocated.*", at=ANY),
    *absent(
        "a setting of NeMo RL's engines",
        *(
            f"policy.generation.{engine}.*"
            for engine in ("vllm_cfg", "vllm_kwargs", "sglang_cfg", "trtllm_cfg", "mcore_generation_config")
        ),
        "policy.generation.vllm_kwargs",
        at=ANY,
    ),
    *absent("the weights are the sampler's own", "policy.refit_buffer_size_gb", at=ANY),
]

_HUB_DATA = "rows are told by their columns, and none is fetched from the hub"
_COLUMNS = "rows are told by their columns, which have the names of the default"
_FILE_KEYS = [f"data.{part}" for part in ("train", "validation", "default")]

_DATA = [
    *absent(
        "train grpo validates on nothing: gym-bridge eval plays held-out tasks with a checkpoint",
        *below("data", "validation validation.* val_data_path val_data_paths val_data_paths.*"),
        at=(None,),
        verbs=ONLINE,
    ),
    *absent(
        _HUB_DATA,
        *(f"{part}.dataset_name" for part in _FILE_KEYS),
        "data.dataset_name",
    ),
    *absent(
        "a part of a data set of the hub; a file is read whole",
        *(f"{part}.{name}" for part in _FILE_KEYS for name in ("split", "subset", "download_dir", "seed")),
        *below("data", "train_split val_split"),
        at=(None, "train"),
    ),
    *absent(
        "no rows are split off for validation: gym-bridge transform --split does that",
        *(f"{part}.split_validation_size" for part in _FILE_KEYS),
        at=(0, None),
    ),
    *(
        key
        for name, column in (
            ("input_key", "input"),
            ("output_key", "output"),
            ("chat_key", "messages"),
            ("tool_key", "tools"),
            ("prompt_key", "prompt"),
            ("chosen_key", "chosen"),
            ("rejected_key", "rejected"),
        )
        for key in absent(_COLUMNS, *(f"{part}.{name}" for part in (*_FILE_KEYS, "data")), at=(column, None))
    ),
    *absent(
        "prompts are in the rows: a system message, not a setting",
        *(f"{part}.{name}" for part in (*_FILE_KEYS, "data") for name in ("prompt_file", "system_prompt_file")),
        *(f"{part}.{name}" for part in (*_FILE_KEYS, "data") for name in ("system_key", "system_prompt")),
        at=(None,),
    ),
    *absent(
        "rows are told by their columns",
        *(f"{part}.{name}" for part in _FILE_KEYS for name in ("processor", "use_preserving_dataset")),
        at=ANY,
    ),
    *absent(
        "env.server names the resource server",
        *(f"{part}.env_name" for part in (*_FILE_KEYS, "data")),
        at=(None, "nemo_gym"),
    ),
    *absent("validation files are read once", "data.validation.repeat", at=(None, 1)),
    *absent("data.max_length is the only bound", "data.max_input_seq_length", at=(None,)),
    *absent("rows are always shuffled, by trainer.seed", "data.shuffle", at=(True,)),
    *absent("rows are tokenised once and cached", "data.num_workers", at=ANY),
    *absent("files are mixed by their weights", "data.use_multiple_dataloader", at=(False,)),
    *absent("files are mixed by their weights", *below("data", "num_prompts_per_dataloader custom_dataloader"), at=(None,)),
    *absent(
        "the chat template alone says where a text begins and ends",
        *below("data", "add_bos add_eos add_generation_prompt add_system_prompt"),
        at=ANY,
    ),
]

_SURROUNDINGS = [
    *absent("tasks are played against the resource server env.server", "env.should_use_nemo_gym", at=ANY),
    *absent("start NeMo Gym's servers yourself and put the URL of one into env.server", "env.nemo_gym.config_paths"),
    *absent("a setting of NeMo RL's environments; ours is env.server", "env.*"),
    *absent(
        "numbers go to metrics.jsonl in the run directory",
        *below("logger", "wandb_enabled tensorboard_enabled mlflow_enabled swanlab_enabled monitor_gpus"),
        at=(False,),
    ),
    *absent("no answers are printed", "logger.num_val_samples_to_print", at=(0,)),
    *absent("numbers go to metrics.jsonl in the run directory", "logger.*", at=ANY),
    *absent("training is one process on one device", "cluster.num_nodes", at=(1,)),
    *absent("training is one process on one device", "cluster.*"),
    *absent("there is no value model, teacher or distillation", "value.*", "teacher.*", "on_policy_distillation.*"),
]

ABSENT: tuple[NemoRLKey, ...] = (
    *_ALGORITHMS,
    *_GRPO,
    *_CHECKPOINTING,
    *_POLICY,
    *_GENERATION,
    *_DATA,
    *_SURROUNDINGS,
)
