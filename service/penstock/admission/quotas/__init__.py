"""How much each caller has used, and what is left. `quotas.Quotas` decides; the other modules count."""
