"""The method: channel statistics, FCS and the baseline criteria, plans, surgery and merging."""

from fcs_utils.pruning import baselines, fcs, linear, pruners

__all__ = ["baselines", "fcs", "linear", "pruners"]  # importing them enters their criteria into the registry
