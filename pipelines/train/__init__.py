"""The training pipeline: Ray Train starts the workers, DeepSpeed steps the optimizer, the plan says what is in a step."""
