"""Run a graded sequence of loads on a running service and report on it, for `penstock pilot`.

    scenario -> sequence (load, evaluation, scrape, experts) -> results -> cost, flags -> sections -> html, markdown

It imports only the public client. `results` defines the JSON file, which has everything that a report needs.
"""
