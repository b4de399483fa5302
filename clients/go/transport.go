package penstock

import (
	"net"
	"strings"
)

// RetryReadsServiceConfig is a service config that retries the two calls that can be repeated without cost. It is off by
// default: WithGRPC(grpc.WithDefaultServiceConfig(RetryReadsServiceConfig)). A generation is never retried: it would run,
// and be billed, twice.
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

// isLoopback reports whether the target is on this machine.
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
