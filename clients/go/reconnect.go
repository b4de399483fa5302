package penstock

import (
	"context"
	"log/slog"
	"math/rand"
	"strings"
	"time"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/grpc/codes"
)

// Reconnect bounds the attempts to resume a stream. Each event that comes resets them. The wait doubles from FirstWait to
// MaxWait, with jitter. Choose MaxTime a little less than the server's resume.grace_seconds (60 by default): after the
// grace period the generation is gone.
type Reconnect struct {
	MaxAttempts        int
	MaxTime            time.Duration
	FirstWait, MaxWait time.Duration
}

// DefaultReconnect has the bounds that Dial uses by default; see WithReconnect.
var DefaultReconnect = Reconnect{20, 50 * time.Second, 100 * time.Millisecond, 5 * time.Second}

// recovery is the state of one stream over its connections. Without a policy, it does not resume.
type recovery struct {
	reader        *eventReader
	policy        *Reconnect
	logger        *slog.Logger
	attempts      int
	reconnections int
	cutAt         time.Time
	drained       *pb.GenerationEvent
}

// isOrphan reports whether the server continues a generation that this client will not resume.
func (r *recovery) isOrphan() bool {
	return (r.drained != nil || r.reader.response.ResumeToken != "") && !r.reader.finished
}

// take reports whether the event is for the user: not a repeated one, and not the end of a drained stream that another
// server can continue.
func (r *recovery) take(event *pb.GenerationEvent) (bool, error) {
	r.attempts = 0
	if r.policy != nil && event.GetFinished().GetResumeToken() != "" && event.Sequence > r.reader.lastSequence {
		r.drained = event
		return false, nil
	}
	if r.drained != nil {
		// The other server knows the stream by the token with which it was resumed.
		r.reader.lastSequence, r.reader.response.ResumeToken = r.drained.Sequence, r.drained.GetFinished().ResumeToken
		r.drained = nil
	}
	return r.reader.read(event)
}

// lastEvent returns the last event of a drained server if no other server continued.
func (r *recovery) lastEvent() *pb.GenerationEvent {
	drained := r.drained
	r.drained = nil
	if drained != nil {
		if news, err := r.reader.read(drained); !news || err != nil {
			return nil
		}
	}
	return drained
}

// wait sleeps until request may be sent. It returns failure if the stream cannot be resumed.
func (r *recovery) wait(ctx context.Context, failure *Error) error {
	if failure.isOwn {
		failure.count(r.reader.response.Candidates)
	}
	if r.policy == nil || !r.mayGoOn(failure) {
		return failure
	}
	if r.attempts == 0 {
		r.cutAt = time.Now()
	} else if r.attempts >= r.policy.MaxAttempts || time.Since(r.cutAt) > r.policy.MaxTime {
		return failure
	}
	wait := r.policy.FirstWait << uint(r.attempts)
	if wait > r.policy.MaxWait || wait <= 0 {
		wait = r.policy.MaxWait
	}
	wait = wait/2 + time.Duration(rand.Int63n(int64(wait)/2+1))
	if wait < failure.RetryAfter {
		wait = failure.RetryAfter
	}
	if r.attempts == 0 && r.drained == nil {
		wait = 0 // The connection may be cut while the server is well.
	}
	if r.attempts == 0 {
		r.reconnections++ // counts lost connections, not attempts
	}
	r.attempts++
	why, _, _ := strings.Cut(failure.Message, "\n")
	r.logger.Info("connection lost", "why", why[:min(len(why), 100)], "resuming_in", wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		ended := contextError(ctx)
		if ended.isOwn {
			ended.count(r.reader.response.Candidates)
		}
		return ended
	}
}

func (r *recovery) mayGoOn(failure *Error) bool {
	hasToken := r.drained != nil || r.reader.response.ResumeToken != ""
	if failure.Kind == ErrBrokenStream {
		return failure.isCutShort && hasToken
	}
	// Status codes of a lost connection, from gRPC itself and from proxies; the service's own errors have a reason.
	cut := failure.Reason == "" &&
		(failure.Code == codes.Unavailable || failure.Code == codes.Unknown || failure.Code == codes.Internal)
	if r.drained != nil {
		// Any server that shares the key will do, and the next attempt may reach one.
		return cut || failure.Kind == ErrUnavailable || failure.Kind == ErrOverloaded
	}
	return hasToken && (cut || failure.Reason == "DRAINING")
}

func (r *recovery) request() *pb.ResumeRequest {
	response := &r.reader.response
	if r.drained != nil {
		return &pb.ResumeRequest{
			GenerationId: response.GenerationID,
			ResumeToken:  r.drained.GetFinished().ResumeToken,
			LastSequence: r.drained.Sequence,
		}
	}
	return &pb.ResumeRequest{
		GenerationId: response.GenerationID, ResumeToken: response.ResumeToken, LastSequence: r.reader.lastSequence,
	}
}

func contextError(ctx context.Context) *Error {
	if ctx.Err() == context.DeadlineExceeded {
		passed := &Error{Kind: ErrDeadlineExceeded, Code: codes.DeadlineExceeded, Message: "the deadline passed"}
		passed.count(nil)
		return passed
	}
	return &Error{Kind: ErrCancelled, Code: codes.Canceled, Message: "cancelled"}
}
