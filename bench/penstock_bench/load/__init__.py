"""Put load on a running service and compute its figures, for `penstock bench`. It imports only the public client.

    workload, arrivals, trace -> prompts -> calls -> run -> statistics -> report; beside them: processes, machine

Latency counts from the moment when a call was *meant* to be sent. So a generator that a slow service delays includes
that wait in its figures (no coordinated omission). Open loops never wait for a reply before they send the next call.
"""
