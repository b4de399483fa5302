package penstock

import (
	"context"
	"io"
	"iter"
	"log/slog"
	"runtime"
	"sync"
	"time"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/grpc/metadata"
)

// startTime is how long a stream that was left before its first event waits for it: it carries the token that ending
// the generation needs.
const startTime = time.Second

// receiver is the reading side of any of the streaming calls.
type receiver interface {
	receive() (*pb.GenerationEvent, error)
	trailers() metadata.MD
}

// Stream is the events of one generation. Close it: that ends the generation, if it still runs. So do cancelling the
// context, closing the client, and, when the garbage collector finds it, forgetting the stream.
//
//	stream := client.Stream(ctx, penstock.Ask("What is 48 + 27 + 36 + 15?", penstock.Budget(64)))
//	defer stream.Close()
//	for {
//		event, err := stream.Recv()
//		if err == io.EOF {
//			break
//		}
//		...
//	}
type Stream struct {
	run *running
}

// running is what a Stream holds and what does not hold the Stream, so that a forgotten one is found.
type running struct {
	client    *Client
	user, ctx context.Context
	cancel    context.CancelFunc
	reader    *eventReader
	recovery  *recovery
	receive   receiver
	failure   error
	// start makes the call again after a refusal for now, so often.
	start     func(context.Context) (receiver, error)
	retries   int
	logger    *slog.Logger
	resumable bool
	leaving   sync.Once
	unwatch   func() bool
	// turn is of who reads the call: the user's goroutine, or the one that waits for the token.
	turn sync.Mutex
	// state guards recovery and what it knows of the stream.
	state sync.Mutex
}

func newStream(
	ctx context.Context, client *Client, resumable bool, policy *Reconnect, start func(context.Context) (receiver, error),
) *Stream {
	// The user's cancelling does not reach the call itself: the token that ends the generation may be on its way.
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if deadline, there := ctx.Deadline(); there {
		cancel()
		own, cancel = context.WithDeadline(context.WithoutCancel(ctx), deadline)
	}
	reader := &eventReader{}
	run := &running{client: client, user: ctx, ctx: own, cancel: cancel, reader: reader, resumable: resumable}
	run.start, run.retries, run.logger = start, client.retries, client.logger
	run.recovery = &recovery{reader: reader, policy: policy, logger: client.logger}
	if client.isClosed() {
		run.failure = &Error{Kind: ErrCancelled, Message: "the client is closed"}
	} else if receive, err := start(own); err != nil {
		run.failure = errorOf(err)
	} else {
		run.receive = receive
	}
	made := &Stream{run: run}
	client.opened(run)
	run.state.Lock()
	defer run.state.Unlock()
	run.unwatch = context.AfterFunc(ctx, func() {
		if ctx.Err() == context.Canceled { // at a deadline the server ends it by itself, and tells
			run.close()
		}
	})
	runtime.AddCleanup(made, func(left *running) { left.close() }, run)
	return made
}

// Response is what has come so far; it grows with Recv.
func (s *Stream) Response() *Response { return &s.run.reader.response }

// LastSequence is the newest event's; with Response().GenerationID and ResumeToken what Client.Resume needs.
func (s *Stream) LastSequence() uint64 { return s.run.reader.lastSequence }

// Reconnections counts the connections that were lost on the way.
func (s *Stream) Reconnections() int { return s.run.recovery.reconnections }

// Recv gives the next event, io.EOF after the last one, or an *Error.
func (s *Stream) Recv() (*pb.GenerationEvent, error) {
	event, err := s.run.next()
	runtime.KeepAlive(s)
	return event, err
}

// Text iterates over the first candidate's answer as it comes: for text, err := range stream.Text(). Leaving the loop
// ends the generation.
func (s *Stream) Text() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		defer s.Close()
		for {
			event, err := s.Recv()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield("", err)
				return
			}
			answer := event.GetAnswer()
			if answer.GetText() != "" && answer.GetCandidateIndex() == 0 && !yield(answer.GetText(), nil) {
				return
			}
		}
	}
}

// Close leaves: it ends the generation if it still runs, without waiting for anything.
func (s *Stream) Close() { s.run.close() }

// Detach leaves and lets a resumable generation go on, for Client.Resume to read within the server's grace.
func (s *Stream) Detach() { s.run.leave(s.run.cancel) }

func (r *running) next() (*pb.GenerationEvent, error) {
	for r.failure == nil {
		event, news, err, broken := r.read()
		if broken != nil {
			return nil, r.giveUp(broken)
		}
		if err == nil {
			if news {
				return event, nil
			}
			continue
		}
		if r.reader.finished { // whatever happens after the last event is of no concern
			r.failure = io.EOF
			r.reader.response.RateLimits = rateLimitsOf(r.receive.trailers())
			r.close()
			break
		}
		failure := cutShort()
		if r.user.Err() == context.Canceled {
			failure = contextError(r.user)
		} else if err != io.EOF {
			failure = errorOf(err)
			failure.RateLimits = rateLimitsOf(r.receive.trailers())
		}
		if r.again(failure) {
			continue
		}
		if last := r.goOn(failure); last != nil {
			return last, nil
		}
	}
	return nil, r.failure
}

// read takes in one event: is it for the user, did the call fail, is the stream broken?
func (r *running) read() (event *pb.GenerationEvent, news bool, failed error, broken error) {
	r.turn.Lock()
	defer r.turn.Unlock()
	event, failed = r.receive.receive()
	if failed == nil {
		r.state.Lock()
		defer r.state.Unlock()
		news, broken = r.recovery.take(event)
	}
	return event, news, failed, broken
}

// goOn resumes over another connection, or notes why that cannot be; an event ends a drained stream.
func (r *running) goOn(failure *Error) *pb.GenerationEvent {
	err := r.recovery.wait(r.ctx, failure)
	if err == nil {
		r.receive, err = r.client.resume(r.ctx, r.recovery.request())
		if err != nil { // nothing was sent: the next Recv tries again
			r.receive = failed{err}
		}
		return nil
	}
	r.state.Lock()
	last := r.recovery.lastEvent()
	r.state.Unlock()
	if last != nil {
		return last
	}
	_ = r.giveUp(err)
	return nil
}

// again starts anew what was refused for now, where the client has retries.
func (r *running) again(failure *Error) bool {
	if r.retries <= 0 || r.reader.lastSequence > 0 || !waitAgain(r.user, failure, r.logger) {
		return false
	}
	r.retries--
	receive, err := r.start(r.ctx)
	if err != nil {
		receive = failed{err}
	}
	r.receive = receive
	return true
}

// failed is a call that could not be made.
type failed struct{ err error }

func (f failed) receive() (*pb.GenerationEvent, error) { return nil, f.err }
func (f failed) trailers() metadata.MD                 { return nil }

func (r *running) giveUp(failure error) error {
	r.failure = failure
	r.close()
	return failure
}

// leave does what is left to do, once.
func (r *running) leave(last func()) {
	r.leaving.Do(func() {
		r.state.Lock()
		r.unwatch()
		r.state.Unlock()
		r.client.over(r)
		last()
	})
}

func (r *running) close() {
	r.leave(func() {
		r.state.Lock()
		hasStarted := r.reader.lastSequence > 0
		r.state.Unlock()
		if hasStarted || !r.resumable || r.receive == nil {
			r.end("", "")
			return
		}
		r.client.apart(r.endWhenStarted)
	})
}

// end cancels the call and, where the server would go on, the generation: by the token that is known, or the one given.
func (r *running) end(generationID, token string) {
	r.cancel()
	r.state.Lock()
	defer r.state.Unlock()
	if r.recovery.isOrphan() {
		request := r.recovery.request()
		generationID, token = request.GenerationId, request.ResumeToken
	}
	if token != "" {
		r.client.abandon(&pb.CancelRequest{GenerationId: generationID, ResumeToken: token})
	}
}

// endWhenStarted waits, a bounded time, for the token that the first event brings, and ends the generation with it.
// Cancelling the call is not enough: where the event is on its way, the server takes it for a lost connection.
func (r *running) endWhenStarted() {
	timer := time.AfterFunc(startTime, r.cancel)
	defer timer.Stop()
	r.turn.Lock()
	defer r.turn.Unlock()
	r.state.Lock()
	hasStarted := r.reader.lastSequence > 0
	r.state.Unlock()
	var started *pb.GenerationStarted
	if !hasStarted {
		event, _ := r.receive.receive()
		started = event.GetStarted()
	}
	r.end(started.GetGenerationId(), started.GetResumeToken())
}

// Interaction is a stream that is steered while it runs. One goroutine may steer while another receives.
type Interaction struct {
	*Stream
	mutex sync.Mutex
	send  func(*pb.InteractRequest) error
}

// FinishThinking ends the thought now and starts the answer. Without effect once the answer has begun.
func (i *Interaction) FinishThinking() {
	i.say(&pb.InteractRequest{Action: &pb.InteractRequest_FinishThinking{FinishThinking: &pb.FinishThinking{}}})
}

// ChangeBudget changes the budget of the thought under way, counted from its start; -1 is no limit.
func (i *Interaction) ChangeBudget(budget int32) {
	change := &pb.ChangeBudget{ThinkingBudget: budget}
	i.say(&pb.InteractRequest{Action: &pb.InteractRequest_ChangeBudget{ChangeBudget: change}})
}

// Cancel ends the generation; the stream still gets its last event, with usage and cost. Close does not wait for it.
func (i *Interaction) Cancel() {
	i.say(&pb.InteractRequest{Action: &pb.InteractRequest_Cancel{Cancel: &pb.Cancel{}}})
}

func (i *Interaction) say(request *pb.InteractRequest) {
	i.mutex.Lock()
	defer i.mutex.Unlock()
	if i.send != nil {
		_ = i.send(request) // a stream that is over tells why at Recv
	}
}
