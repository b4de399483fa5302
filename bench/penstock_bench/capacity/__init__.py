"""Compute a plan for `penstock plan`: what fits, the speed, and the cost. docs/how-to/plan.md has the formulas.

This package imports sizes and errors, and nothing else of the service. The command gives it model, devices and layout.
"""
