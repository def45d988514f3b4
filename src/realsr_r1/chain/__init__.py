"""The vision-language chain of thought: its sections as text, as settings of a model folder, and as tokens."""

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.text import SECTIONS, Chain, parse_chain

__all__ = ["SECTIONS", "Chain", "ChainProcessor", "parse_chain"]
