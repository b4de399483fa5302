"""`penstock bench`: load on a running service, and what comes of it. From outside: only the public client is imported.

    workload, arrivals, trace -> prompts -> calls -> run -> statistics -> report; processes and machine beside them

Latency counts from the moment a call was *meant* to be sent, so that a generator that is held up by a slow service does
not leave the wait out (coordinated omission). Open loops never wait for replies before they send the next call.
"""
