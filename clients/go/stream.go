package penstock

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"runtime"
	"sync"
	"time"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/grpc/metadata"
)

// startTime is the time that an abandoned stream waits for its first event, which has the token that ends the generation.
const startTime = time.Second

var errNoToken = errors.New("the stream has no resume token: receive its first event, and do not start it with StreamOnce; " +
	"Interact starts one that can be steered without")

// receiver is the reading side of any of the streaming calls.
type receiver interface {
	receive() (*pb.GenerationEvent, error)
	trailers() metadata.MD
}

// Stream has the events of one generation. Close it: that ends a running generation. These end it, too: cancelling the
// context, closing the client, and garbage collection of the stream.
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

// running is the running part of a Stream. It does not refer to the Stream, so that an unused one is collected.
type running struct {
	client    *Client
	user, ctx context.Context
	cancel    context.CancelFunc
	reader    *eventReader
	recovery  *recovery
	receive   receiver
	failure   error
	// start makes the call again after a refusal with a retry delay.
	start     func(context.Context) (receiver, error)
	retries   int
	logger    *slog.Logger
	resumable bool
	leaving   sync.Once
	unwatch   func() bool
	// turn is held by the reader of the call: the user's goroutine, or the one that waits for the token.
	turn sync.Mutex
	// state guards recovery and its knowledge of the stream.
	state sync.Mutex
}

func newStream(
	ctx context.Context, client *Client, resumable bool, policy *Reconnect, start func(context.Context) (receiver, error),
) *Stream {
	// A cancelled context does not cancel the call itself: the token that ends the generation may be on its way.
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
		run.failure = errClosed()
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
		if ctx.Err() == context.Canceled { // At a deadline, the server ends it and sends a status.
			run.close()
		}
	})
	runtime.AddCleanup(made, func(left *running) { left.close() }, run)
	return made
}

// Response returns the reply so far; it grows with Recv.
func (s *Stream) Response() *Response { return &s.run.reader.response }

// LastSequence returns the number of the newest event. Client.Resume needs it with Response().GenerationID and ResumeToken.
func (s *Stream) LastSequence() uint64 { return s.run.reader.lastSequence }

// Reconnections returns the number of lost connections.
func (s *Stream) Reconnections() int { return s.run.recovery.reconnections }

// Recv returns the next event, io.EOF after the last one, or an *Error.
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

// FinishThinking ends the thought now and starts the answer, by a call of its own: see Client.Steer. Any goroutine may call
// it once the first event of a resumable stream was received.
func (s *Stream) FinishThinking(ctx context.Context) (*pb.SteerResponse, error) {
	return s.steer(ctx, &pb.SteerRequest{Action: &pb.SteerRequest_FinishThinking{FinishThinking: &pb.FinishThinking{}}})
}

// ChangeBudget changes the budget of the current thought, counted from its start; -1 is no limit. See FinishThinking.
func (s *Stream) ChangeBudget(ctx context.Context, budget int32) (*pb.SteerResponse, error) {
	change := &pb.ChangeBudget{ThinkingBudget: budget}
	return s.steer(ctx, &pb.SteerRequest{Action: &pb.SteerRequest_ChangeBudget{ChangeBudget: change}})
}

func (s *Stream) steer(ctx context.Context, request *pb.SteerRequest) (*pb.SteerResponse, error) {
	s.run.state.Lock()
	place := s.run.recovery.request()
	s.run.state.Unlock()
	if place.ResumeToken == "" {
		return nil, errNoToken
	}
	request.GenerationId, request.ResumeToken = place.GenerationId, place.ResumeToken
	return s.run.client.Steer(ctx, request)
}

// Close leaves the stream and ends a running generation, without waiting.
func (s *Stream) Close() { s.run.close() }

// Detach leaves the stream; a resumable generation continues, and Client.Resume can read it in the grace period.
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
		if r.reader.finished { // errors after the last event do not matter
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

// read handles one event. It returns whether it is for the user, or the failure of the call or stream.
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

// goOn resumes over another connection, or stores the failure. A returned event ends a drained stream.
func (r *running) goOn(failure *Error) *pb.GenerationEvent {
	err := r.recovery.wait(r.ctx, failure)
	if err == nil {
		r.receive, err = r.client.resume(r.ctx, r.recovery.request())
		if err != nil { // Nothing was sent: the next Recv retries.
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

// again retries a refused start if the client has retries.
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

// failed returns a stream for a call that could not be made.
type failed struct{ err error }

func (f failed) receive() (*pb.GenerationEvent, error) { return nil, f.err }
func (f failed) trailers() metadata.MD                 { return nil }

func (r *running) giveUp(failure error) error {
	r.failure = failure
	r.close()
	return failure
}

// leave ends the stream, once.
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

// end cancels the call and, if the server would continue it, the generation: with the known token, or the given one.
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

// endWhenStarted waits a bounded time for the token in the first event, and ends the generation with it. To cancel the
// call is not enough: if the event is on its way, the server sees a lost connection.
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

// Interaction is a stream that can be controlled while it runs. One goroutine may control it while another receives.
type Interaction struct {
	*Stream
	mutex sync.Mutex
	send  func(*pb.InteractRequest) error
}

// FinishThinking ends the thought now and starts the answer. It has no effect after the start of the answer.
func (i *Interaction) FinishThinking() {
	i.say(&pb.InteractRequest{Action: &pb.InteractRequest_FinishThinking{FinishThinking: &pb.FinishThinking{}}})
}

// ChangeBudget changes the budget of the current thought, counted from its start; -1 is no limit.
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
		_ = i.send(request) // Recv returns the error of a stream that has ended.
	}
}
