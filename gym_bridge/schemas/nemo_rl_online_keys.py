"""The settings of NeMo RL's online training beside ours: grpo, ppo, distillation, their loss, their sampler.

The sections `ppo` and `distillation` are read as `grpo` where a key has the same name there.
"""

from gym_bridge.schemas.nemo_rl_key import ANY, ONLINE, NemoRLKey, absent, below, mapped

_UPDATES = "updates are counted here: the batches there times the updates of one"
_IN_STEP = "the groups of a batch in so many parts: its rollouts divided by this"
_GAP = "w = exp(trainer - sampler) weighs each token"
_TEACHER = "the difference of log-probs at each sampled token; there the KL over the teacher's likeliest ones for distillation"

_GRPO_MAPPED = mapped(
    ONLINE,
    (
        ("ALGORITHM.max_num_steps", "trainer.max_steps", _UPDATES),
        ("ALGORITHM.val_period", "trainer.validate_every", f"0 there is null here; {_UPDATES}"),
        ("checkpointing.save_period", "trainer.save_every", _UPDATES),
        ("grpo.num_prompts_per_step", "algorithm.tasks_per_step", ""),
        ("grpo.num_generations_per_prompt", "algorithm.group_size", ""),
        ("grpo.max_rollout_turns", "env.max_turns", "model calls of a rollout"),
        ("policy.train_global_batch_size", "algorithm.minibatches", _IN_STEP),
        ("grpo.normalize_rewards", "algorithm.scale", "true there is std here, the whole group's, false none"),
        ("grpo.use_leave_one_out_baseline", "algorithm.baseline", "true there is leave_one_out here, false mean"),
        ("grpo.adv_estimator.name", "algorithm.estimator", "grpo there is group here, gdpo components, opd teacher"),
        ("grpo.adv_estimator.normalize_rewards", "algorithm.scale", "true there is std here, the whole group's, false none"),
        ("grpo.adv_estimator.use_leave_one_out_baseline", "algorithm.baseline", "true there is leave_one_out here, false mean"),
        ("grpo.adv_estimator.minus_baseline", "algorithm.baseline", "true there is mean here, false none"),
        ("grpo.adv_estimator.normalize_advantages", "algorithm.whiten", ""),
        ("grpo.adv_estimator.gae_lambda", "algorithm.critic.lam", ""),
        ("grpo.adv_estimator.gae_gamma", "algorithm.critic.gamma", ""),
        ("grpo.overlong_filtering", "algorithm.overlong_filter", ""),
        ("grpo.use_dynamic_sampling", "algorithm.dynamic_sampling", "groups are told by the rewards that train, there as verified"),
        (
            "grpo.dynamic_sampling_max_gen_batches",
            "algorithm.max_refills",
            "one less, the first play is no refill; only what is missing is played, and then trained with what there is: no error",
        ),
        *(
            (f"grpo.reward_scaling.{theirs}", f"algorithm.reward_scale.{ours}", "")
            for theirs, ours in (
                ("source_min", "source"),
                ("source_max", "source"),
                ("target_min", "target"),
                ("target_max", "target"),
            )
        ),
        ("grpo.reward_shaping.overlong_buffer_length", "algorithm.overlong_buffer", "of the longest completion, there the first"),
        ("grpo.reward_shaping.overlong_buffer_penalty", "algorithm.overlong_penalty", ""),
        ("grpo.reward_shaping.stop_properly_penalty_coef", "algorithm.truncated_factor", ""),
        ("grpo.val_num_generations_per_prompt", "data.validation_repeats", "beside one greedy rollout of each task"),
        ("data.validation.repeat", "data.validation_repeats", "beside one greedy rollout of each task"),
        ("grpo.async_grpo.enabled", "overlap.max_staleness", "0 where rollouts and steps take turns"),
        ("grpo.async_grpo.max_trajectory_age_steps", "overlap.max_staleness", "in batches, as there"),
        ("grpo.async_grpo.in_flight_weight_updates", "overlap.in_flight_updates", ""),
        ("ppo.ppo_epochs", "algorithm.epochs_per_batch", ""),
        ("ppo.policy_training_start_step", "algorithm.critic.warmup_steps", _UPDATES),
        ("value.optimizer.kwargs.lr", "algorithm.critic.lr", ""),
        ("value.megatron_cfg.optimizer.lr", "algorithm.critic.lr", ""),
        ("value_loss_fn.cliprange", "algorithm.critic.clip", ""),
        ("teacher.model_name", "algorithm.teacher", _TEACHER),
        ("on_policy_distillation.teacher_model_by_agent_name", "algorithm.teacher", "one teacher for all tasks"),
    ),
)

_LOSS_MAPPED = mapped(
    ONLINE,
    (
        ("loss_fn.ratio_clip_min", "algorithm.clip_low", ""),
        ("loss_fn.ratio_clip_max", "algorithm.clip_high", ""),
        ("loss_fn.ratio_clip_c", "algorithm.dual_clip", ""),
        ("loss_fn.disable_ppo_ratio", "algorithm.loss", "true there is reinforce here"),
        ("loss_fn.force_on_policy_ratio", "algorithm.loss", "true there is reinforce here, which has the same gradient"),
        ("loss_fn.use_cispo", "algorithm.loss", "true there is cispo here"),
        ("loss_fn.sequence_level_importance_ratios", "algorithm.ratio", "true there is sequence here"),
        (
            "loss_fn.token_level_loss",
            "algorithm.normalise_by",
            "true there is tokens here, false sequences, of groups that have a signal: there those without count as well",
        ),
        ("loss_fn.reference_policy_kl_penalty", "algorithm.beta", ""),
        ("loss_fn.reference_policy_kl_type", "algorithm.kl", "the gradient of k2 is its own alone, there also that of sampling"),
        (
            "loss_fn.use_kl_in_reward",
            "algorithm.kl_in",
            "true there is reward here; without a value model each token loses the KL from it on, there its own alone",
        ),
        (
            "loss_fn.use_importance_sampling_correction",
            "algorithm.correction",
            f"with algorithm.old_logprobs=trainer, as there; {_GAP}, without a bound by tis with a very large one",
        ),
        (
            "loss_fn.truncated_importance_sampling_type",
            "algorithm.correction",
            f"{_GAP}; seq-mask-tis there is seq_mask here, which only leaves sequences out: kept tokens are not weighed by w",
        ),
        ("loss_fn.truncated_importance_sampling_ratio", "algorithm.correction_high", ""),
        ("loss_fn.truncated_importance_sampling_ratio_min", "algorithm.correction_low", ""),
    ),
)

_PLAY_MAPPED = mapped(
    ONLINE,
    (
        ("policy.max_total_sequence_length", "env.max_total_tokens", "of a conversation; what reaches it is truncated"),
        ("policy.generation.max_new_tokens", "sampler.max_tokens", "tokens of one completion"),
        ("policy.generation.backend", "sampler.kind", "vllm: servers that you start with vllm serve, at sampler.url"),
        (
            "policy.generation.colocated.enabled",
            "sampler.sleep",
            'vLLM on the trainer\'s GPU, started with --enable-sleep-mode and --weight-transfer-config \'{"backend": "ipc"}\'',
        ),
        (
            "env.nemo_gym.config_paths",
            "env.gym_configs",
            "NeMo Gym is started from its own venv, which GYM_BRIDGE_NEMO_GYM_VENV names",
        ),
    ),
)

ONLINE_MAPPED: tuple[NemoRLKey, ...] = (*_GRPO_MAPPED, *_LOSS_MAPPED, *_PLAY_MAPPED)

_GRPO_ABSENT = [
    *absent("validation comes every trainer.validate_every steps from the first on", "grpo.val_start_at", at=(0, -1, None)),
    *absent("all tasks of data.validation are played", "grpo.max_val_samples", at=(None,)),
    *absent("env.concurrency rollouts are in flight", "grpo.val_batch_size", at=ANY),
    *absent(
        "trainer.patience ends a run that gets no better; no value of a metric does",
        *below("grpo", "stop_at_validation_metric stop_at_validation_threshold"),
        at=(None,),
    ),
    *absent("tasks are played over and over until trainer.max_steps", "grpo.max_num_epochs", verbs=ONLINE),
    *absent(
        "components weigh by name: algorithm.component_weights.NAME, there in the order of the names",
        "grpo.adv_estimator.reward_weights",
        at=(None,),
    ),
    *absent(
        "one lambda serves values and policy: algorithm.critic.lam",
        *below("grpo.adv_estimator", "gae_lambda_value gae_lambda_policy"),
        at=(None,),
    ),
    *absent("lambda is the same for every length", "grpo.adv_estimator.length_adaptive_alpha", at=(0, None)),
    *absent("a setting of an estimator that is not here", "grpo.adv_estimator.*", at=(None,)),
    *absent("as many groups are played as are missing", "grpo.batch_multiplier", at=(None, 1)),
    *absent("algorithm.reward_scale is the map itself", "grpo.reward_scaling.enabled", at=ANY),
    *absent("algorithm.overlong_buffer and truncated_factor say what is shaped", "grpo.reward_shaping.enabled", at=ANY),
    *absent("the overlong penalty counts back from sampler.max_tokens", "grpo.reward_shaping.max_response_length", at=(None,)),
    *absent(
        "algorithm.reward_shaping names a function of yours, which can do it",
        *("grpo.reward_scaling.*", "grpo.reward_shaping.*", "reward_penalties.*"),
        at=(False, None, []),
    ),
    *absent("advantages are not clipped", *below("grpo", "advantage_clip_low advantage_clip_high"), at=(None,)),
    *absent(
        "algorithm.correction=seq_mask leaves sequences out by the mean of their gap, not by its size",
        "grpo.seq_logprob_error_threshold",
        at=(None,),
    ),
    *absent(
        "no sample is given another advantage for this",
        *below("grpo", "invalid_tool_call_advantage malformed_thinking_advantage"),
        at=(None,),
    ),
    *absent("vLLM forgets its cache with every update", "grpo.async_grpo.recompute_kv_cache_after_weight_updates", at=ANY),
    *absent("env.max_attempts and max_failure_rate bound failures", "grpo.async_grpo.max_generation_failures", at=ANY),
    *absent("groups half played are played again", "grpo.async_grpo.drop_incomplete_targets_on_restore", at=(False,)),
    *absent("overlap has max_staleness and in_flight_updates", "grpo.async_grpo.*", at=(None,)),
    *absent("a setting of NeMo RL's single controller; ours are overlap", "async_rl.*", "data_plane.*"),
    *absent("there is a reference only for algorithm.beta > 0", "grpo.skip_reference_policy_logprobs_calculation", at=ANY),
    *absent("the value model takes as many passes as the policy", "ppo.critic_ppo_epochs", "ppo.critic_train_epochs", at=(None,)),
    *absent("the value model begins as the policy with a new head", "ppo.warm_start_value_checkpoint", at=(None,)),
    *absent("the value model begins as the policy with a new head", "value.model_name"),
    *absent("the value model has one output", "value.reward_model_cfg.*", at=ANY),
    *absent("the value model takes all but algorithm.critic.lr from policy", "value.*"),
    *absent("the value model's loss is half the squared error", "value_loss_fn.scale", at=(1,)),
    *absent("of the value model's loss only algorithm.critic.clip is set", "value_loss_fn.*"),
    *absent("the teacher says the log-probs of what was sampled, computed as policy says", "teacher.*", at=ANY),
    *absent("the teacher speaks of sampled tokens, not of its likeliest ones", "distillation.topk_logits_k"),
    *absent("the KL to the teacher is the reverse one", "loss_fn.kl_type", at=("reverse",)),
    *absent("the KL to the teacher is the reverse one", *below("loss_fn", "mixed_kl_weight zero_outside_topk"), at=(False,)),
    *absent("algorithm.estimator=teacher", "on_policy_distillation.enabled", at=ANY),
    *absent(
        "one teacher speaks of all tasks, in this process",
        *below("on_policy_distillation", "default_teacher_alias strict_agent_name_match deduplicate_shared_teacher_checkpoints"),
        "on_policy_distillation.non_colocated_teachers.*",
        at=ANY,
    ),
    *absent(
        "the teacher speaks of sampled tokens alone",
        *below("on_policy_distillation", "student_topk teacher_topk"),
        at=(None,),
    ),
    *absent("of on-policy distillation only algorithm.teacher and teacher_weight are set", "on_policy_distillation.*", at=(None,)),
]

_LOSS_ABSENT = [
    *absent("exponents of log-ratios are at most 20", "loss_fn.kl_input_clamp_value", at=(20, None)),
    *absent("a token's KL has no bound", "loss_fn.kl_output_clamp_value", at=(None,)),
    *absent("the KL is weighed by the ratio to the policy before the update", "loss_fn.use_on_policy_kl_approximation"),
    *absent("right answers get no extra likelihood", "loss_fn.positive_example_nll_weight", at=(0,)),
]

_WHOLE = "completions are sampled from the policy's whole distribution at temperature 1, which the ratios are of"
_HELD_OUT = "held-out tasks are played greedily, and from the whole distribution at temperature 1"

_GENERATION_ABSENT = [
    *absent(_WHOLE, "policy.generation.temperature", at=(1,)),
    *absent(_WHOLE, "policy.generation.top_p", at=(1, None)),
    *absent(_WHOLE, "policy.generation.top_k", at=(None, -1)),
    *absent(_HELD_OUT, "policy.generation.val_temperature", at=(1, 0, None)),
    *absent(_HELD_OUT, "policy.generation.val_top_p", at=(1, None)),
    *absent(_HELD_OUT, "policy.generation.val_top_k", at=(None, -1)),
    *absent(
        "a completion ends with the model's end tokens",
        *below("policy.generation", "stop_token_ids stop_strings"),
        at=(None, []),
    ),
    *absent("sampler.max_batch completions are sampled side by side in this process", "policy.generation_batch_size", at=ANY),
    *absent("sampler.url says where the servers are", "policy.generation.colocated.*", at=ANY),
    *absent(
        "a setting of the engine: give it to vllm serve",
        *below("policy.generation", "vllm_cfg.* vllm_kwargs.* vllm_kwargs"),
        at=ANY,
    ),
    *absent(
        "a setting of an engine that is not here",
        *(f"policy.generation.{engine}.*" for engine in ("sglang_cfg", "trtllm_cfg", "mcore_generation_config")),
        at=ANY,
    ),
    *absent(
        "sampler.transfer says how weights travel",
        *below("policy", "refit_buffer_size_gb generation.refit_transport"),
        *below("policy.generation", "port_range_low port_range_high"),
        at=ANY,
    ),
    *absent("a rollout with mask_sample leaves its group, its baseline too", "env.should_mask_flagged_samples"),
]

ONLINE_ABSENT: tuple[NemoRLKey, ...] = (*_GRPO_ABSENT, *_LOSS_ABSENT, *_GENERATION_ABSENT)
