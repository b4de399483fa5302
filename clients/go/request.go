package penstock

import (
	"errors"
	"net/http"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

// Option sets one field of a request. A request is a plain *pb.GenerationSpec: set fields without an option directly.
// Ranges are those of the protos; the server checks them and names the wrong field.
type Option func(*pb.GenerationSpec)

// Ask returns the request of one user message.
func Ask(prompt string, options ...Option) *pb.GenerationSpec {
	return Chat([]*pb.Message{User(prompt)}, options...)
}

// Chat returns the request of a conversation, oldest turn first.
func Chat(turns []*pb.Message, options ...Option) *pb.GenerationSpec {
	messages := &pb.Messages{Messages: turns}
	return apply(&pb.GenerationSpec{Input: &pb.GenerationSpec_Messages{Messages: messages}}, options)
}

// Text returns the request of raw text, without a chat template.
func Text(text string, options ...Option) *pb.GenerationSpec {
	return apply(&pb.GenerationSpec{Input: &pb.GenerationSpec_Text{Text: text}}, options)
}

func apply(spec *pb.GenerationSpec, options []Option) *pb.GenerationSpec {
	for _, option := range options {
		option(spec)
	}
	return spec
}

// System returns an instruction to the model. It must be the first turn.
func System(content string) *pb.Message { return turn(pb.Role_ROLE_SYSTEM, content) }

// User returns a user's turn.
func User(content string) *pb.Message { return turn(pb.Role_ROLE_USER, content) }

// UserParts returns a user's turn of texts and images, in order.
func UserParts(parts ...*pb.Part) *pb.Message {
	return &pb.Message{Role: pb.Role_ROLE_USER, Parts: parts}
}

// TextPart returns text of a turn.
func TextPart(text string) *pb.Part { return &pb.Part{Part: &pb.Part_Text{Text: text}} }

// ImagePart returns an image of a turn: PNG, JPEG or WebP, as its first bytes say. The service fetches no addresses.
func ImagePart(data []byte) (*pb.Part, error) {
	kind := http.DetectContentType(data)
	switch kind {
	case "image/png", "image/jpeg", "image/webp":
		return &pb.Part{Part: &pb.Part_Image{Image: &pb.Image{MimeType: kind, Data: data}}}, nil
	}
	return nil, errors.New("penstock: must be a PNG, JPEG or WebP image, got something else")
}

// Assistant returns the model's answer in an earlier turn.
func Assistant(content string) *pb.Message { return turn(pb.Role_ROLE_ASSISTANT, content) }

func turn(role pb.Role, content string) *pb.Message { return &pb.Message{Role: role, Content: content} }

// Fast sets the mode without thought.
func Fast() Option { return mode(pb.ThinkingMode_THINKING_MODE_FAST) }

// Thinking sets the mode that thinks up to the budget.
func Thinking() Option { return mode(pb.ThinkingMode_THINKING_MODE_THINKING) }

// Auto lets the server choose the budget, so that the answer arrives before the context's deadline.
func Auto() Option { return mode(pb.ThinkingMode_THINKING_MODE_AUTO) }

func mode(mode pb.ThinkingMode) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).Mode = mode }
}

// Budget sets the largest number of thought tokens; -1 is no limit, 0 is no thought.
func Budget(tokens int32) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).ThinkingBudget = &tokens }
}

// ThoughtStop sets texts that end the thought where they show.
func ThoughtStop(texts ...string) Option {
	return func(spec *pb.GenerationSpec) {
		stopPatterns(spec).Strings = append(stopPatterns(spec).Strings, texts...)
	}
}

// ThoughtStopRegex sets a regular expression that ends the thought where it matches.
func ThoughtStopRegex(expression string) Option {
	return func(spec *pb.GenerationSpec) { stopPatterns(spec).Regex = expression }
}

// EarlyExit sets what ends the thought before its budget, where more of it would not change the answer.
func EarlyExit(sign pb.EarlyExit) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).EarlyExit = sign }
}

// EarlyExitProbability sets from which probability on EarlyExit ends the thought.
func EarlyExitProbability(probability float64) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).EarlyExitProbability = &probability }
}

// HideThoughts makes the server generate and count thoughts without sending them.
func HideThoughts() Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).IncludeThoughts = new(bool) }
}

// MaxOutputTokens sets the largest number of output tokens, thought plus answer.
func MaxOutputTokens(tokens int32) Option {
	return func(spec *pb.GenerationSpec) { output(spec).MaxOutputTokens = &tokens }
}

// Stop sets texts before which the answer ends.
func Stop(texts ...string) Option {
	return func(spec *pb.GenerationSpec) { output(spec).StopStrings = append(output(spec).StopStrings, texts...) }
}

// Candidates sets the number of independent outputs.
func Candidates(count int32) Option {
	return func(spec *pb.GenerationSpec) { output(spec).CandidateCount = &count }
}

// JSONSchema constrains the answer; the thought is not constrained.
func JSONSchema(schema string) Option {
	return func(spec *pb.GenerationSpec) {
		output(spec).StructuredOutput = &pb.OutputConfig_JsonSchema{JsonSchema: schema}
	}
}

// Temperature sets the sampling temperature; 0 is greedy.
func Temperature(value float64) Option {
	return func(spec *pb.GenerationSpec) { sampling(spec).Temperature = &value }
}

// Seed makes sampling repeatable.
func Seed(seed int64) Option {
	return func(spec *pb.GenerationSpec) { sampling(spec).Seed = &seed }
}

func thinking(spec *pb.GenerationSpec) *pb.ThinkingConfig {
	if spec.Thinking == nil {
		spec.Thinking = &pb.ThinkingConfig{}
	}
	return spec.Thinking
}

func stopPatterns(spec *pb.GenerationSpec) *pb.StopPatterns {
	if thinking(spec).StopPatterns == nil {
		thinking(spec).StopPatterns = &pb.StopPatterns{}
	}
	return thinking(spec).StopPatterns
}

func output(spec *pb.GenerationSpec) *pb.OutputConfig {
	if spec.Output == nil {
		spec.Output = &pb.OutputConfig{}
	}
	return spec.Output
}

func sampling(spec *pb.GenerationSpec) *pb.SamplingConfig {
	if spec.Sampling == nil {
		spec.Sampling = &pb.SamplingConfig{}
	}
	return spec.Sampling
}
