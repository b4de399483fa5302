"""Who calls, and what they may do. Plain Python: the border (`interceptor`) hands in what the call carries."""
