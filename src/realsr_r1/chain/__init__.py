"""The vision-language chain of thought: as text, as settings of a model folder, and as tokens."""

from realsr_r1.chain.processor import ChainProcessor
from realsr_r1.chain.spec import ChainSpec, Section
from realsr_r1.chain.text import SECTIONS, Chain, parse_chain

__all__ = ["SECTIONS", "Chain", "ChainProcessor", "ChainSpec", "Section", "parse_chain"]
