"""The whole loop on an embedded model: collect, transform, SFT, GRPO, evaluation before and after."""
