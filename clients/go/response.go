package penstock

import (
	"strings"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

// Candidate is one output. It grows in a stream; Result comes with the last event.
type Candidate struct {
	ReasoningTokens, AnswerTokens   int
	ThoughtTokenIDs, AnswerTokenIDs []int32
	ThoughtLogprobs, AnswerLogprobs []*pb.TokenLogprobs
	ThinkingOutcome                 pb.ThinkingOutcome
	// Result has the reason of its end; nil before.
	Result *pb.CandidateResult

	thought, answer strings.Builder
}

// Thought returns the thought so far.
func (c *Candidate) Thought() string { return c.thought.String() }

// Answer returns the answer so far.
func (c *Candidate) Answer() string { return c.answer.String() }

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

// candidate returns the candidate. It makes it, and those before it, if the stream has not named it yet.
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
		one.finish(candidate.Result)
		made.Candidates = append(made.Candidates, one)
	}
	return made
}
