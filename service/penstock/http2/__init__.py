"""gRPC over HTTP/2 on the event loop that everything else runs on: what is spoken with clients, and nothing of the API.

grpc.aio wakes a thread of its own and the event loop for every message; here a message is one write. Decision 17 says
what that gains and what stays a library's (HPACK, TLS). RFC 9113, RFC 7541, and gRPC's PROTOCOL-HTTP2.md.
"""
