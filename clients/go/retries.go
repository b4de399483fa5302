package penstock

import (
	"cmp"
	"context"
	"log/slog"
	"math/rand"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

const rateLimit = "x-ratelimit-"

// rateLimitsOf returns the x-ratelimit-* trailers by the rest of their names.
func rateLimitsOf(trailers metadata.MD) map[string]string {
	found := map[string]string{}
	for name, values := range trailers {
		if rest, is := strings.CutPrefix(name, rateLimit); is && len(values) > 0 {
			found[rest] = values[0]
		}
	}
	return found
}

// waitAgain sleeps until a refused call may be retried. It returns false if it may not, or not in time.
func waitAgain(ctx context.Context, failure *Error, logger *slog.Logger) bool {
	if failure.RetryAfter <= 0 {
		return false
	}
	wait := failure.RetryAfter + time.Duration(rand.Int63n(int64(failure.RetryAfter)/5+1)) // so that not all callers retry at once
	if deadline, there := ctx.Deadline(); there && time.Until(deadline) <= wait {
		return false
	}
	why := cmp.Or(failure.Reason, failure.Code.String())
	logger.Info("refused", "why", why, "retrying_in", wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// unary makes one call, with retries if the client has them and the server sends a delay. It returns the rate limits.
func unary[Reply any](
	ctx context.Context, c *Client, call func(context.Context, ...grpc.CallOption) (Reply, error),
) (Reply, map[string]string, error) {
	if c.isClosed() {
		var none Reply
		return none, nil, errClosed()
	}
	ctx = c.outgoing(ctx)
	for left := c.retries; ; left-- {
		var trailers metadata.MD
		reply, err := call(ctx, grpc.Trailer(&trailers))
		limits := rateLimitsOf(trailers)
		if err == nil {
			return reply, limits, nil
		}
		failure := errorOf(err)
		failure.RateLimits = limits
		if left <= 0 || !waitAgain(ctx, failure, c.logger) {
			return reply, limits, failure
		}
	}
}

// reading bounds the time of calls that generate nothing, if the context does not.
func reading(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, there := ctx.Deadline(); there {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, readTime)
}
