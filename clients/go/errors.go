package penstock

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The kinds of errors of calls, for `errors.Is(err, penstock.ErrOverloaded)`. The service's reason selects the kind; without
// one, the status code does. ErrBudgetDoesNotFit and ErrContextOverflow are ErrInvalidRequest, too.
var (
	ErrInvalidRequest     = errors.New("invalid request")
	ErrBudgetDoesNotFit   = errors.New("the budget does not fit")
	ErrContextOverflow    = errors.New("the prompt does not fit")
	ErrFeatureOff         = errors.New("the feature is off")
	ErrNotImplementedYet  = errors.New("not implemented yet")
	ErrModelNotFound      = errors.New("model not found")
	ErrGenerationNotFound = errors.New("generation not found")
	ErrOverloaded         = errors.New("overloaded")
	ErrMessageTooLarge    = errors.New("message too large")
	ErrDeadlineExceeded   = errors.New("deadline exceeded")
	ErrUnavailable        = errors.New("unavailable")
	ErrCallerRefused      = errors.New("caller refused")
	ErrCancelled          = errors.New("cancelled")
	ErrPoisonousRequest   = errors.New("poisonous request")
	ErrServerFault        = errors.New("server fault")
	// ErrBrokenStream is a stream with missing events: the received part is not the whole reply.
	ErrBrokenStream = errors.New("broken stream")
	// ErrTurnLimitReached: the model still calls tools in the last turn of RunTools. Those calls were not executed.
	ErrTurnLimitReached = errors.New("turn limit reached")
	// ErrUnparsableAnswer: the answer does not decode, for instance because MaxOutputTokens cut it.
	ErrUnparsableAnswer = errors.New("unparsable answer")
)

var byReason = map[string]error{
	"INVALID_FIELD":        ErrInvalidRequest,
	"MISSING_FIELD":        ErrInvalidRequest,
	"CONFLICTING_FIELDS":   ErrInvalidRequest,
	"LIMIT_EXCEEDED":       ErrInvalidRequest,
	"BUDGET_DOES_NOT_FIT":  ErrBudgetDoesNotFit,
	"CONTEXT_OVERFLOW":     ErrContextOverflow,
	"FEATURE_OFF":          ErrFeatureOff,
	"NOT_IMPLEMENTED":      ErrNotImplementedYet,
	"MODEL_NOT_FOUND":      ErrModelNotFound,
	"GENERATION_NOT_FOUND": ErrGenerationNotFound,
	"OVERLOADED":           ErrOverloaded,
	"MESSAGE_TOO_LARGE":    ErrMessageTooLarge,
	"QUOTA_EXCEEDED":       ErrOverloaded,
	"CLIENT_TOO_SLOW":      ErrCancelled,
	"DEADLINE_PASSED":      ErrDeadlineExceeded,
	"DRAINING":             ErrUnavailable,
	"ENGINE_DOWN":          ErrUnavailable,
	"ENGINE_REFUSED":       ErrServerFault,
	"INTERNAL":             ErrServerFault,
	"CALLER_REFUSED":       ErrCallerRefused,
	"POISONOUS_REQUEST":    ErrPoisonousRequest,
}

var byCode = map[codes.Code]error{
	codes.InvalidArgument:   ErrInvalidRequest,
	codes.Unimplemented:     ErrNotImplementedYet,
	codes.ResourceExhausted: ErrOverloaded,
	codes.DeadlineExceeded:  ErrDeadlineExceeded,
	codes.Unavailable:       ErrUnavailable,
	codes.Unauthenticated:   ErrCallerRefused,
	codes.PermissionDenied:  ErrCallerRefused,
	codes.Canceled:          ErrCancelled,
	codes.Internal:          ErrServerFault,
	codes.Unknown:           ErrServerFault,
	codes.DataLoss:          ErrServerFault,
}

// FieldViolation describes one invalid field; Field is a proto path from the request's root.
type FieldViolation struct {
	Field, Description, Reason string
}

// Error is a call that did not succeed.
type Error struct {
	// Kind is one of the Err values of this package; nil if none fits.
	Kind    error
	Message string
	// Code is codes.OK if no status came.
	Code codes.Code
	// Reason is a penstock.v1.ErrorReason without its prefix; empty if the server sent none.
	Reason string
	// Metadata has the metadata of the reason.
	Metadata   map[string]string
	Violations []FieldViolation
	// RetryAfter is the server's estimate with ErrOverloaded, else 0.
	RetryAfter time.Duration
	// RateLimits has the caller's limits and the rest of them, such as remaining-requests, if the server sends them.
	RateLimits map[string]string
	// Run has the turns until then, where RunTools failed.
	Run *Run

	isCutShort bool
	// isOwn marks a deadline for which the clock of this client or of a proxy was first: no status came from the service.
	isOwn bool
}

func (e *Error) Error() string { return e.Message }

// Is reports whether this error is target, including context.Canceled and context.DeadlineExceeded.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrInvalidRequest:
		return e.Kind == ErrInvalidRequest || e.Kind == ErrBudgetDoesNotFit || e.Kind == ErrContextOverflow
	case context.Canceled:
		return e.Kind == ErrCancelled
	case context.DeadlineExceeded:
		return e.Kind == ErrDeadlineExceeded
	}
	return e.Kind == target
}

// count sets the metadata that the service would have sent for a passed deadline: the tokens that have arrived.
func (e *Error) count(candidates []*Candidate) {
	var thought, answer, tool int
	for _, one := range candidates {
		thought, answer, tool = thought+one.ReasoningTokens, answer+one.AnswerTokens, tool+one.ToolTokens
	}
	e.isOwn, e.Reason = true, "DEADLINE_PASSED"
	e.Metadata = map[string]string{
		"thought_tokens": strconv.Itoa(thought), "answer_tokens": strconv.Itoa(answer), "tool_tokens": strconv.Itoa(tool),
	}
}

func errClosed() *Error { return &Error{Kind: ErrCancelled, Message: "the client is closed"} }

func cutShort() *Error {
	return &Error{Kind: ErrBrokenStream, Message: "the stream ended without its last event", isCutShort: true}
}

// errorOf returns the typed error of a failed call. Invalid details are ignored.
func errorOf(err error) *Error {
	state := status.Convert(err)
	made := &Error{Message: state.Message(), Code: state.Code()}
	for _, packed := range state.Proto().GetDetails() {
		made.readDetail(packed.GetTypeUrl(), packed.GetValue())
	}
	made.Kind = byReason[made.Reason]
	if made.Kind == nil {
		made.Kind = byCode[made.Code]
	}
	// gRPC's own limit on message size has the code of overload, for which a retry would be wrong.
	if made.Kind == ErrOverloaded && made.Reason == "" && strings.Contains(made.Message, "message larger than max") {
		made.Kind = ErrMessageTooLarge
	}
	if made.Message == "" {
		made.Message = made.Code.String()
	}
	if made.Kind == ErrDeadlineExceeded && made.Reason == "" {
		made.count(nil)
	}
	return made
}
