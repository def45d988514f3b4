"""The cold start: supervised training on chains, packed into rows."""
