"""VLCoT-GRPO: TRL's trainer with rollouts of interleaved text and images."""
