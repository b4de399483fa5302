package penstock

import (
	"net"
	"strings"
)

// RetryReadsServiceConfig retries the two calls that may be repeated for nothing, which is off by default:
// WithGRPC(grpc.WithDefaultServiceConfig(RetryReadsServiceConfig)). Generating is never retried: it would be done, and
// billed, twice.
const RetryReadsServiceConfig = `{
  "methodConfig": [{
    "name": [
      {"service": "penstock.v1.ModelService", "method": "GetModel"},
      {"service": "penstock.v1.GenerationService", "method": "CountTokens"}
    ],
    "retryPolicy": {
      "maxAttempts": 4,
      "initialBackoff": "0.2s",
      "maxBackoff": "2s",
      "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }]
}`

// isLoopback is true for targets that cannot leave this machine.
func isLoopback(target string) bool {
	if strings.HasPrefix(target, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(target[strings.LastIndex(target, "/")+1:])
	if err != nil {
		return false
	}
	address := net.ParseIP(host)
	return host == "localhost" || address != nil && address.IsLoopback()
}
