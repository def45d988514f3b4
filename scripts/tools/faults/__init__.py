"""The parts of the fault campaign (scripts/tools/fault_campaign.py)."""
