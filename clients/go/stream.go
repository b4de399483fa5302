package penstock

import (
	"context"
	"io"
	"sync"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

// receiver is the reading side of any of the streaming calls.
type receiver func() (*pb.GenerationEvent, error)

// Stream is the events of one generation. Close it: that ends the generation, if it still runs.
//
//	stream := client.Stream(ctx, penstock.Ask("What is 17 + 25?", penstock.Budget(64)))
//	defer stream.Close()
//	for {
//		event, err := stream.Recv()
//		if err == io.EOF {
//			break
//		}
//		...
//	}
type Stream struct {
	client   *Client
	ctx      context.Context
	cancel   context.CancelFunc
	reader   *eventReader
	recovery *recovery
	receive  receiver
	failure  error
	leaving  sync.Once
}

func newStream(ctx context.Context, client *Client, start func(context.Context) (receiver, error)) *Stream {
	ctx, cancel := context.WithCancel(ctx)
	reader := &eventReader{}
	made := &Stream{client: client, ctx: ctx, cancel: cancel, reader: reader}
	made.recovery = &recovery{reader: reader, policy: client.reconnect}
	receive, err := start(ctx)
	if err != nil {
		made.failure = errorOf(err)
	}
	made.receive = receive
	return made
}

// Response is what has come so far; it grows with Recv.
func (s *Stream) Response() *Response { return &s.reader.response }

// LastSequence is the newest event's; with Response().GenerationID and ResumeToken what Client.Resume needs.
func (s *Stream) LastSequence() uint64 { return s.reader.lastSequence }

// Reconnections counts how often the connection was made up for.
func (s *Stream) Reconnections() int { return s.recovery.reconnections }

// Recv gives the next event, io.EOF after the last one, or an *Error.
func (s *Stream) Recv() (*pb.GenerationEvent, error) {
	for s.failure == nil {
		event, err := s.receive()
		if err == nil {
			news, broken := s.recovery.take(event)
			if broken != nil {
				return nil, s.giveUp(broken)
			}
			if news {
				return event, nil
			}
			continue
		}
		if s.reader.finished { // whatever happens after the last event is of no concern
			s.failure = io.EOF
			s.cancel()
			break
		}
		failure := cutShort()
		if err != io.EOF {
			failure = errorOf(err)
		}
		if last := s.goOn(failure); last != nil {
			return last, nil
		}
	}
	return nil, s.failure
}

// goOn resumes over another connection, or notes why that cannot be; an event ends a drained stream.
func (s *Stream) goOn(failure *Error) *pb.GenerationEvent {
	err := s.recovery.wait(s.ctx, failure)
	if err == nil {
		s.receive, err = s.client.resume(s.ctx, s.recovery.request())
		if err != nil { // nothing was sent: the next Recv tries again
			s.receive = func() (*pb.GenerationEvent, error) { return nil, err }
		}
		return nil
	}
	if last := s.recovery.lastEvent(); last != nil {
		return last
	}
	_ = s.giveUp(err)
	return nil
}

func (s *Stream) giveUp(failure error) error {
	s.failure = failure
	s.Close()
	return failure
}

// Close leaves: it ends the generation if it still runs, without waiting for anything.
func (s *Stream) Close() {
	s.leaving.Do(func() {
		s.cancel()
		if s.recovery.isOrphan() {
			response := &s.reader.response
			s.client.abandon(&pb.CancelRequest{GenerationId: response.GenerationID, ResumeToken: response.ResumeToken})
		}
	})
}

// Detach leaves and lets a resumable generation go on, for Client.Resume to read within the server's grace.
func (s *Stream) Detach() {
	s.leaving.Do(s.cancel)
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
