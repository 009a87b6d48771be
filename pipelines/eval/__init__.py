"""The evaluation pipeline: sample a checkpoint on fixed prompts, grade what it shows, say how sure the grades are."""
