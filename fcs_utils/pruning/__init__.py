"""The method: channel statistics, FCS and the baseline criteria, plans, surgery and merging."""
