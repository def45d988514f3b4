"""RealSR-R1: VLCoT-GRPO, reinforcement learning for a policy that restores photos step by step."""

__version__ = "0.1.0"
