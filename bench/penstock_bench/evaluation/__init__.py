"""`penstock eval`: what a running service makes of questions with known answers, at budgets and modes.

Everything is measured from outside, through the public client; nothing of the service is imported here.

    questions -> settings -> measure -> results -> checks, report, plot
"""
