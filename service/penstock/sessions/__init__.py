"""Keep resumable streams, and hand drained ones to other replicas."""
