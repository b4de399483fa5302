package penstock

import pb "github.com/penstock/penstock/clients/go/penstockv1"

// Option sets one field of a request. A request is a plain *pb.GenerationSpec: what has no option here is set on it
// directly. Ranges are the protos'; the server checks them, and names the field that is wrong.
type Option func(*pb.GenerationSpec)

// Ask is the request of one user message.
func Ask(prompt string, options ...Option) *pb.GenerationSpec {
	return Chat([]*pb.Message{User(prompt)}, options...)
}

// Chat is the request of a conversation, oldest turn first.
func Chat(turns []*pb.Message, options ...Option) *pb.GenerationSpec {
	messages := &pb.Messages{Messages: turns}
	return apply(&pb.GenerationSpec{Input: &pb.GenerationSpec_Messages{Messages: messages}}, options)
}

// Text is the request of raw text: no chat template.
func Text(text string, options ...Option) *pb.GenerationSpec {
	return apply(&pb.GenerationSpec{Input: &pb.GenerationSpec_Text{Text: text}}, options)
}

func apply(spec *pb.GenerationSpec, options []Option) *pb.GenerationSpec {
	for _, option := range options {
		option(spec)
	}
	return spec
}

// System is an instruction to the model; the first turn only.
func System(content string) *pb.Message { return turn(pb.Role_ROLE_SYSTEM, content) }

// User is a user's turn.
func User(content string) *pb.Message { return turn(pb.Role_ROLE_USER, content) }

// Assistant is the model's answer in an earlier turn.
func Assistant(content string) *pb.Message { return turn(pb.Role_ROLE_ASSISTANT, content) }

func turn(role pb.Role, content string) *pb.Message { return &pb.Message{Role: role, Content: content} }

// Fast answers without thought.
func Fast() Option { return mode(pb.ThinkingMode_THINKING_MODE_FAST) }

// Thinking thinks up to the budget.
func Thinking() Option { return mode(pb.ThinkingMode_THINKING_MODE_THINKING) }

// Auto lets the server pick the budget, so that the answer arrives before the context's deadline.
func Auto() Option { return mode(pb.ThinkingMode_THINKING_MODE_AUTO) }

func mode(mode pb.ThinkingMode) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).Mode = mode }
}

// Budget is the most thought tokens; -1 is no limit, 0 is none.
func Budget(tokens int32) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).ThinkingBudget = &tokens }
}

// HideThoughts has thoughts generated and counted, but not sent.
func HideThoughts() Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).IncludeThoughts = new(bool) }
}

// MaxOutputTokens is the most output tokens, thought plus answer.
func MaxOutputTokens(tokens int32) Option {
	return func(spec *pb.GenerationSpec) { output(spec).MaxOutputTokens = &tokens }
}

// Stop ends the answer before the first of these.
func Stop(texts ...string) Option {
	return func(spec *pb.GenerationSpec) { output(spec).StopStrings = append(output(spec).StopStrings, texts...) }
}

// Candidates asks for independent outputs.
func Candidates(count int32) Option {
	return func(spec *pb.GenerationSpec) { output(spec).CandidateCount = &count }
}

// JSONSchema constrains the answer; the thought stays free.
func JSONSchema(schema string) Option {
	return func(spec *pb.GenerationSpec) {
		output(spec).StructuredOutput = &pb.OutputConfig_JsonSchema{JsonSchema: schema}
	}
}

// Temperature 0 is greedy.
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
