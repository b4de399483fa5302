package penstock

import (
	"cmp"
	"encoding/json"
	"strings"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

// Candidate is one output. It grows in a stream; Result comes with the last event.
type Candidate struct {
	ReasoningTokens, AnswerTokens   int
	ToolTokens                      int
	ThoughtTokenIDs, AnswerTokenIDs []int32
	ThoughtLogprobs, AnswerLogprobs []*pb.TokenLogprobs
	ThinkingOutcome                 pb.ThinkingOutcome
	// Result has the reason of its end; nil before.
	Result *pb.CandidateResult

	thought, answer strings.Builder
	calls           []*growingCall
}

// growingCall is a tool call while its arguments come.
type growingCall struct {
	call      *pb.ToolCall
	arguments strings.Builder
}

// Thought returns the thought so far.
func (c *Candidate) Thought() string { return c.thought.String() }

// Answer returns the answer so far.
func (c *Candidate) Answer() string { return c.answer.String() }

// ToolCalls are the calls so far, in order. Execute only those whose status is COMPLETE.
func (c *Candidate) ToolCalls() []*pb.ToolCall {
	made := make([]*pb.ToolCall, 0, len(c.calls))
	for _, one := range c.calls {
		call := one.call
		if call.Status != pb.ToolCallStatus_TOOL_CALL_STATUS_COMPLETE && one.arguments.Len() > 0 {
			call = &pb.ToolCall{Id: call.Id, Name: call.Name, ArgumentsJson: one.arguments.String(), Status: call.Status}
		}
		made = append(made, call)
	}
	return made
}

// Message is the output as a message of the history, with its thought and its tool calls. An incomplete call is in it with
// empty arguments, because no request can hold half of one: answer it with an error result.
func (c *Candidate) Message() *pb.Message {
	calls := c.ToolCalls()
	if c.Thought() == "" && len(calls) == 0 {
		return Assistant(c.Answer())
	}
	made := &pb.Message{Role: pb.Role_ROLE_ASSISTANT}
	if c.Thought() != "" {
		made.Parts = append(made.Parts, &pb.Part{Part: &pb.Part_Thought{Thought: c.Thought()}})
	}
	if c.Answer() != "" {
		made.Parts = append(made.Parts, &pb.Part{Part: &pb.Part_Text{Text: c.Answer()}})
	}
	for _, call := range calls {
		if call.Status != pb.ToolCallStatus_TOOL_CALL_STATUS_COMPLETE {
			complete := pb.ToolCallStatus_TOOL_CALL_STATUS_COMPLETE
			call = &pb.ToolCall{Id: call.Id, Name: cmp.Or(call.Name, "unknown"), ArgumentsJson: "{}", Status: complete}
		}
		made.Parts = append(made.Parts, &pb.Part{Part: &pb.Part_ToolCall{ToolCall: call}})
	}
	return made
}

// call is the call with this index, made if the stream has not spoken of it yet.
func (c *Candidate) call(index, tokens int32) *growingCall {
	c.ToolTokens += int(tokens)
	at := min(int(index), len(c.calls))
	if at == len(c.calls) {
		incomplete := pb.ToolCallStatus_TOOL_CALL_STATUS_INCOMPLETE
		c.calls = append(c.calls, &growingCall{call: &pb.ToolCall{Status: incomplete}})
	}
	return c.calls[at]
}

func (c *Candidate) add(delta *pb.Delta, isThought bool) {
	if isThought {
		c.thought.WriteString(delta.Text)
		c.ReasoningTokens += int(delta.TokenCount)
		c.ThoughtTokenIDs = append(c.ThoughtTokenIDs, delta.TokenIds...)
		c.ThoughtLogprobs = append(c.ThoughtLogprobs, delta.Logprobs...)
		return
	}
	c.answer.WriteString(delta.Text)
	c.AnswerTokens += int(delta.TokenCount)
	c.AnswerTokenIDs = append(c.AnswerTokenIDs, delta.TokenIds...)
	c.AnswerLogprobs = append(c.AnswerLogprobs, delta.Logprobs...)
}

func (c *Candidate) finish(result *pb.CandidateResult) {
	c.Result = result
	c.ThinkingOutcome = result.GetThinkingOutcome()
	c.ReasoningTokens = int(result.GetUsage().GetReasoningTokens())
	c.AnswerTokens = int(result.GetUsage().GetAnswerTokens())
	c.ToolTokens = int(result.GetUsage().GetToolTokens())
}

// Response is a reply. From Generate it is complete; in a Stream it grows. Usage, Cost and Timing are nil until the end.
// Cost stays nil if the server has no price list.
type Response struct {
	GenerationID, Model, ResumeToken string
	Candidates                       []*Candidate
	Usage                            *pb.Usage
	Cost                             *pb.Cost
	Timing                           *pb.Timing
	EffectiveSettings                *pb.EffectiveSettings
	// RateLimits has the caller's limits and the rest of them, such as remaining-requests, at the end.
	RateLimits map[string]string
}

// Thought returns the first candidate's thought.
func (r *Response) Thought() string { return r.candidate(0).Thought() }

// Answer returns the first candidate's answer.
func (r *Response) Answer() string { return r.candidate(0).Answer() }

// ToolCalls are the first candidate's, as is Message.
func (r *Response) ToolCalls() []*pb.ToolCall { return r.candidate(0).ToolCalls() }

// Message is the first candidate's output as a message of the history.
func (r *Response) Message() *pb.Message { return r.candidate(0).Message() }

// Decode reads the first candidate's answer, which is JSON, into value. It fails with ErrUnparsableAnswer; the error holds
// nothing of the answer. With JSONSchema the answer decodes wherever it was not cut.
func (r *Response) Decode(value any) error {
	if err := json.Unmarshal([]byte(r.Answer()), value); err != nil {
		reason := r.candidate(0).Result.GetFinishReason().String()
		return &Error{Kind: ErrUnparsableAnswer, Message: "the answer does not decode; the output ended by " + reason}
	}
	return nil
}

// candidate makes the candidate (and those before it) if the stream has not spoken of it yet.
func (r *Response) candidate(index int32) *Candidate {
	for len(r.Candidates) <= int(index) {
		r.Candidates = append(r.Candidates, &Candidate{})
	}
	return r.Candidates[index]
}

func responseOf(reply *pb.GenerateResponse) *Response {
	made := &Response{
		GenerationID:      reply.GenerationId,
		Model:             reply.Model,
		Usage:             reply.Usage,
		Cost:              reply.Cost,
		Timing:            reply.Timing,
		EffectiveSettings: reply.EffectiveSettings,
	}
	for _, candidate := range reply.Candidates {
		one := &Candidate{
			ThoughtTokenIDs: candidate.ThoughtTokenIds,
			AnswerTokenIDs:  candidate.AnswerTokenIds,
			ThoughtLogprobs: candidate.ThoughtLogprobs,
			AnswerLogprobs:  candidate.AnswerLogprobs,
		}
		one.thought.WriteString(candidate.Thought)
		one.answer.WriteString(candidate.Answer)
		for index, call := range candidate.ToolCalls {
			one.call(int32(index), 0).call = call
		}
		one.finish(candidate.Result)
		made.Candidates = append(made.Candidates, one)
	}
	return made
}
