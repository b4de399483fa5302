"""Admit calls: the queue, request memory and the quotas of callers."""
