"""Policy and image tokenizer, and how they are loaded."""

from realsr_r1.models.families import new_config, new_policy
from realsr_r1.models.loading import load_image_tokenizer, load_policy

__all__ = ["load_image_tokenizer", "load_policy", "new_config", "new_policy"]
