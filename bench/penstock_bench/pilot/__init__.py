"""`penstock pilot`: a graded sequence of loads on a running service, and a report for decisions about GPUs.

    grades -> sequence (load, evaluation, scrape, experts) -> results -> cost, flags -> sections -> html, markdown

From outside: only the public client is imported. `results` is what is written as JSON, and all that a report needs.
"""
