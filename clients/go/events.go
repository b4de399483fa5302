package penstock

import (
	"fmt"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

// eventReader reads the events of one stream, each exactly once and in order, and extends the response.
type eventReader struct {
	response     Response
	lastSequence uint64
	finished     bool
}

// read reports whether the event is for the user: not a repeated one, and of a kind that this client knows.
func (r *eventReader) read(event *pb.GenerationEvent) (bool, error) {
	if event.Sequence <= r.lastSequence {
		return false, nil
	}
	if event.Sequence != r.lastSequence+1 {
		message := fmt.Sprintf("event %d is missing: the next one was %d", r.lastSequence+1, event.Sequence)
		return false, &Error{Kind: ErrBrokenStream, Message: message}
	}
	r.lastSequence = event.Sequence
	response := &r.response
	switch kind := event.Event.(type) {
	case *pb.GenerationEvent_Started:
		response.GenerationID, response.Model = kind.Started.GenerationId, kind.Started.Model
		response.ResumeToken = kind.Started.ResumeToken
		response.EffectiveSettings = kind.Started.EffectiveSettings
	case *pb.GenerationEvent_Thought:
		response.candidate(kind.Thought.CandidateIndex).add(kind.Thought, true)
	case *pb.GenerationEvent_Answer:
		response.candidate(kind.Answer.CandidateIndex).add(kind.Answer, false)
	case *pb.GenerationEvent_ThinkingFinished:
		candidate := response.candidate(kind.ThinkingFinished.CandidateIndex)
		candidate.ThinkingOutcome = kind.ThinkingFinished.Outcome
		candidate.ReasoningTokens = int(kind.ThinkingFinished.ReasoningTokens)
	case *pb.GenerationEvent_ToolCallStarted:
		begun := kind.ToolCallStarted
		call := response.candidate(begun.CandidateIndex).call(begun.CallIndex, begun.TokenCount).call
		call.Id, call.Name = begun.Id, begun.Name
	case *pb.GenerationEvent_ToolCallArguments:
		more := kind.ToolCallArguments
		response.candidate(more.CandidateIndex).call(more.CallIndex, more.TokenCount).arguments.WriteString(more.JsonFragment)
	case *pb.GenerationEvent_ToolCallFinished:
		ended := kind.ToolCallFinished
		if call := response.candidate(ended.CandidateIndex).call(ended.CallIndex, ended.TokenCount); ended.Call != nil {
			call.call = ended.Call
		}
	case *pb.GenerationEvent_Interrupted, *pb.GenerationEvent_Continued:
		// The user sees it; the response does not change.
	case *pb.GenerationEvent_Finished:
		for _, result := range kind.Finished.Results {
			response.candidate(result.CandidateIndex).finish(result)
		}
		response.Usage, response.Cost = kind.Finished.Usage, kind.Finished.Cost
		response.Timing, response.EffectiveSettings = kind.Finished.Timing, kind.Finished.EffectiveSettings
		r.finished = true
	default:
		return false, nil
	}
	return true, nil
}
