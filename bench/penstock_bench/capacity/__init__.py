"""`penstock plan`: what fits, how fast it can be, what it costs, worked out on paper. Formulas: docs/how-to/plan.md.

Sees sizes and errors, nothing of the service; the command says which model, devices and layout.
"""
