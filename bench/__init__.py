"""Compare the service with other servers, and measure its parts. Run from a checkout; not part of the service."""
