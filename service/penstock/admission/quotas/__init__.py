"""Count each caller's use and compare it with its limits. `quotas.Quotas` decides; the other modules count."""
