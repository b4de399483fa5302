"""Evaluate a running service on questions with known answers, by budget and mode, for `penstock eval`.

It measures from outside, through the public client, and imports nothing of the service.

    questions -> settings -> measure -> results -> checks, report, plot
"""
