"""Exit code 0 while the gateway reaches the service: the container's own health check, where no kubelet asks."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request


def main() -> int:
    address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/readyz", timeout=5) as answer:
            said = answer.read(200).decode()
    except urllib.error.HTTPError as refused:
        print(f"{address}: {refused.code} {refused.read(200).decode()}")
        return 1
    except OSError as error:
        print(f"{address}: {error}")
        return 1
    print(f"{address}: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
