package penstock

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Tool is a tool that the model may ask for. NewTool makes one of a function with typed arguments.
type Tool struct {
	// Name has letters, digits, `_`, `-` and `.`, at most 64, the first a letter or `_`.
	Name string
	// Description says what it does and when to use it, for the model.
	Description string
	// Parameters is the JSON schema (draft 2020-12) of the arguments, of type object. Empty: a tool without arguments.
	Parameters string
	// Strict has a grammar hold the arguments to the schema while the model writes them.
	Strict bool
	// Execute is given the arguments, a JSON object, and returns the text for the model. RunTools needs it. It may run
	// beside other calls of the same reply, unless Parallel(false) is asked for.
	Execute func(ctx context.Context, arguments json.RawMessage) (string, error)
}

// ToolError is what a tool returns to tell the model why it failed. The texts of other errors stay here: they may hold
// what the model must not repeat.
type ToolError struct{ Message string }

func (e ToolError) Error() string { return e.Message }

// errInvalidArguments marks what the model wrote wrong, which it is told.
type errInvalidArguments struct{ error }

// NewTool makes a tool of a function whose arguments are decoded from JSON: unknown fields are refused, and the model is
// told. A string goes to the model as it is, other values as JSON.
//
//	weather := penstock.NewTool("weather", "Return the temperature in a city.",
//		`{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}`,
//		func(ctx context.Context, arguments struct{ City string }) (string, error) { ... })
func NewTool[Arguments, Value any](
	name, description, parameters string, function func(context.Context, Arguments) (Value, error),
) Tool {
	execute := func(ctx context.Context, raw json.RawMessage) (string, error) {
		var arguments Arguments
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&arguments); err != nil {
			return "", errInvalidArguments{err}
		}
		value, err := function(ctx, arguments)
		if err != nil {
			return "", err
		}
		if text, is := any(value).(string); is {
			return text, nil
		}
		text, err := json.Marshal(value)
		return string(text), err
	}
	return Tool{Name: name, Description: description, Parameters: parameters, Execute: execute}
}

// Tools lets the model ask for these.
func Tools(tools ...Tool) Option {
	return func(spec *pb.GenerationSpec) {
		for _, tool := range tools {
			spec.Tools = append(spec.Tools, &pb.Tool{
				Name: tool.Name, Description: tool.Description, ParametersJsonSchema: tool.Parameters, Strict: tool.Strict,
			})
		}
	}
}

// ToolMode says whether the model calls tools; without it, the model decides.
func ToolMode(mode pb.ToolMode) Option {
	return func(spec *pb.GenerationSpec) { toolConfig(spec).Mode = mode }
}

// AllowedTools are the only ones that may be called.
func AllowedTools(names ...string) Option {
	return func(spec *pb.GenerationSpec) {
		toolConfig(spec).AllowedNames = append(toolConfig(spec).AllowedNames, names...)
	}
}

// Parallel says whether one output may have several calls; without it, it may.
func Parallel(parallel bool) Option {
	return func(spec *pb.GenerationSpec) { toolConfig(spec).Parallel = &parallel }
}

// MaxToolCalls is the most calls of one output.
func MaxToolCalls(calls int32) Option {
	return func(spec *pb.GenerationSpec) { toolConfig(spec).MaxCalls = &calls }
}

// Effort is how hard to think; the server's table makes it a budget. A Budget wins.
func Effort(effort pb.Effort) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).Effort = effort }
}

// History says which earlier thoughts the model is given again; without it, those since the last user message.
func History(history pb.ThoughtHistory) Option {
	return func(spec *pb.GenerationSpec) { thinking(spec).History = history }
}

func toolConfig(spec *pb.GenerationSpec) *pb.ToolConfig {
	if spec.ToolConfig == nil {
		spec.ToolConfig = &pb.ToolConfig{}
	}
	return spec.ToolConfig
}

// Result is what a tool returned for a call.
func Result(callID, text string) *pb.ToolResult { return resultOf(callID, text, false) }

// Failed is the result of a call that failed; text says how, for the model.
func Failed(callID, text string) *pb.ToolResult { return resultOf(callID, text, true) }

func resultOf(callID, text string, isError bool) *pb.ToolResult {
	made := &pb.ToolResult{CallId: callID, IsError: isError}
	if text != "" {
		valid := strings.ToValidUTF8(text, "\uFFFD")
		made.Content = []*pb.Part{{Part: &pb.Part_Text{Text: valid}}}
	}
	return made
}

// Results is the message with the results of the tool calls in the message before.
func Results(results ...*pb.ToolResult) *pb.Message {
	made := &pb.Message{Role: pb.Role_ROLE_TOOL}
	for _, result := range results {
		made.Parts = append(made.Parts, &pb.Part{Part: &pb.Part_ToolResult{ToolResult: result}})
	}
	return made
}

// Turn is one question to the model, and the results of the calls that it answered with.
type Turn struct {
	Reply   *Response
	Results []*pb.ToolResult
}

// Run is what RunTools did.
type Run struct {
	Turns []Turn
	// Messages is the conversation: the prompt, then the replies and the results of all turns. It can be continued.
	Messages []*pb.Message
}

// Reply is the last one; nil where there is none yet.
func (r *Run) Reply() *Response {
	if len(r.Turns) == 0 {
		return nil
	}
	return r.Turns[len(r.Turns)-1].Reply
}

// Answer is the last reply's.
func (r *Run) Answer() string {
	if r.Reply() == nil {
		return ""
	}
	return r.Reply().Answer()
}

// Usage is of all turns together: each turn's prompt counts, as it is billed.
func (r *Run) Usage() *pb.Usage {
	sum := &pb.Usage{}
	for _, turn := range r.Turns {
		add(sum, turn.Reply.Usage)
	}
	return sum
}

// Cost is of all turns together; nil where the server has no price list.
func (r *Run) Cost() *pb.Cost {
	var sum *pb.Cost
	for _, turn := range r.Turns {
		if cost := turn.Reply.Cost; cost != nil {
			if sum == nil {
				sum = &pb.Cost{}
			}
			add(sum, cost)
		}
	}
	return sum
}

// add adds the numbers of a message to those of another of its kind.
func add(sum, part proto.Message) {
	fields := sum.ProtoReflect().Descriptor().Fields()
	for at := range fields.Len() {
		field := fields.Get(at)
		if part.ProtoReflect().Has(field) {
			total := sum.ProtoReflect().Get(field).Int() + part.ProtoReflect().Get(field).Int()
			if field.Kind() == protoreflect.Int32Kind {
				sum.ProtoReflect().Set(field, protoreflect.ValueOfInt32(int32(total)))
			} else {
				sum.ProtoReflect().Set(field, protoreflect.ValueOfInt64(total))
			}
		}
	}
}

// RunOption changes how RunTools works.
type RunOption func(*toolLoop)

// MaxTurns is the most replies of a run; 8 without it.
func MaxTurns(turns int) RunOption { return func(l *toolLoop) { l.maxTurns = turns } }

// OnEvent sees each event of each turn.
func OnEvent(see func(*pb.GenerationEvent)) RunOption { return func(l *toolLoop) { l.onEvent = see } }

// OnResult sees each call with its result, in the order of the calls.
func OnResult(see func(*pb.ToolCall, *pb.ToolResult)) RunOption {
	return func(l *toolLoop) { l.onResult = see }
}

// OnToolError gives the text that the model is told of an error that a tool returned. Goroutines may call it at once.
func OnToolError(tell func(*pb.ToolCall, error) string) RunOption {
	return func(l *toolLoop) { l.onToolError = tell }
}

// RunTools asks, executes the tool calls of the reply, sends the results, and repeats until a reply has no calls.
//
//	run, err := client.RunTools(ctx, penstock.Ask("How warm is it in Oslo?"), []penstock.Tool{weather})
//
// Only complete calls of these tools (and of AllowedTools) are executed, each once, also where the connection drops. For
// other calls, and for a tool that returns an error, the model is given an error result: the text of a ToolError, of
// other errors the type only. With TOOL_MODE_REQUIRED the first reply must call; later ones are as with VALIDATED. The
// context's deadline is that of all turns and tools together. It fails with ErrTurnLimitReached where the last turn
// still has calls; Error.Run has the turns before any failure.
func (c *Client) RunTools(
	ctx context.Context, spec *pb.GenerationSpec, tools []Tool, options ...RunOption,
) (*Run, error) {
	loop, err := newToolLoop(spec, tools, options)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		reply, err := c.turn(ctx, loop)
		if err != nil {
			return nil, loop.failed(err)
		}
		calls, err := loop.callsOf(reply)
		if err != nil {
			return nil, loop.failed(err)
		}
		if len(calls) == 0 {
			return loop.run, nil
		}
		results, err := loop.execute(ctx, calls)
		if err != nil {
			return nil, loop.failed(err)
		}
		loop.answer(reply, results)
	}
}

func (c *Client) turn(ctx context.Context, loop *toolLoop) (*Response, error) {
	stream := c.Stream(ctx, loop.next())
	defer stream.Close()
	for {
		event, err := stream.Recv()
		if err == io.EOF {
			return stream.Response(), nil
		}
		if err != nil {
			return nil, err
		}
		if loop.onEvent != nil {
			loop.onEvent(event)
		}
	}
}

// toolLoop is the state of one run.
type toolLoop struct {
	run         *Run
	spec        *pb.GenerationSpec
	tools       map[string]Tool
	allowed     []string
	maxTurns    int
	onEvent     func(*pb.GenerationEvent)
	onResult    func(*pb.ToolCall, *pb.ToolResult)
	onToolError func(*pb.ToolCall, error) string
}

func newToolLoop(spec *pb.GenerationSpec, tools []Tool, options []RunOption) (*toolLoop, error) {
	made := &toolLoop{spec: proto.CloneOf(spec), tools: map[string]Tool{}, maxTurns: 8}
	for _, option := range options {
		option(made)
	}
	if made.maxTurns < 1 {
		return nil, fmt.Errorf("MaxTurns must be at least 1, got %d", made.maxTurns)
	}
	if spec.GetMessages() == nil {
		return nil, errors.New("a run needs messages: Ask or Chat, not Text")
	}
	if spec.GetOutput().GetCandidateCount() > 1 {
		return nil, errors.New("a run follows one candidate: leave Candidates out")
	}
	if len(spec.Tools) > 0 {
		return nil, errors.New("pass the tools to RunTools, and not in the request too")
	}
	Tools(tools...)(made.spec)
	for _, tool := range tools {
		if tool.Execute == nil {
			return nil, fmt.Errorf("the tool %q has no Execute", tool.Name)
		}
		if _, twice := made.tools[tool.Name]; twice {
			return nil, fmt.Errorf("two tools have the name %q", tool.Name)
		}
		made.tools[tool.Name] = tool
		made.allowed = append(made.allowed, tool.Name)
	}
	if names := spec.GetToolConfig().GetAllowedNames(); len(names) > 0 {
		made.allowed = slices.Clone(names)
	}
	if spec.GetToolConfig().GetMode() == pb.ToolMode_TOOL_MODE_NONE {
		made.allowed = nil
	}
	slices.Sort(made.allowed)
	made.run = &Run{Messages: slices.Clone(spec.GetMessages().Messages)}
	return made, nil
}

// next is the request of the next turn. REQUIRED is for the first one: a model that must call never answers.
func (l *toolLoop) next() *pb.GenerationSpec {
	l.spec.Input = &pb.GenerationSpec_Messages{Messages: &pb.Messages{Messages: slices.Clone(l.run.Messages)}}
	if len(l.run.Turns) > 0 && l.spec.GetToolConfig().GetMode() == pb.ToolMode_TOOL_MODE_REQUIRED {
		l.spec.ToolConfig.Mode = pb.ToolMode_TOOL_MODE_VALIDATED
	}
	return l.spec
}

func (l *toolLoop) callsOf(reply *Response) ([]*pb.ToolCall, error) {
	l.run.Turns = append(l.run.Turns, Turn{Reply: reply})
	calls := reply.ToolCalls()
	switch reply.candidate(0).Result.GetFinishReason() {
	case pb.FinishReason_FINISH_REASON_CANCELLED, pb.FinishReason_FINISH_REASON_DRAINED:
		calls = nil
	}
	if len(calls) == 0 {
		l.run.Messages = append(l.run.Messages, reply.Message())
	} else if len(l.run.Turns) >= l.maxTurns {
		message := fmt.Sprintf("the model still calls tools after %d turns (MaxTurns): see Run for what there is", l.maxTurns)
		return nil, &Error{Kind: ErrTurnLimitReached, Message: message}
	}
	return calls, nil
}

func (l *toolLoop) answer(reply *Response, results []*pb.ToolResult) {
	l.run.Turns[len(l.run.Turns)-1].Results = results
	l.run.Messages = append(l.run.Messages, reply.Message(), Results(results...))
}

// execute runs the calls at once; their results are in the order of the calls. It ends early with the context.
func (l *toolLoop) execute(ctx context.Context, calls []*pb.ToolCall) ([]*pb.ToolResult, error) {
	done := make([]chan *pb.ToolResult, len(calls))
	for at, call := range calls {
		done[at] = make(chan *pb.ToolResult, 1)
		go func() { done[at] <- l.executeOne(ctx, call) }()
	}
	results := make([]*pb.ToolResult, 0, len(calls))
	for at, call := range calls {
		select {
		case result := <-done[at]:
			if l.onResult != nil {
				l.onResult(call, result)
			}
			results = append(results, result)
		case <-ctx.Done():
			ended := contextError(ctx)
			if ended.isOwn {
				var spent []*Candidate
				for _, turn := range l.run.Turns {
					spent = append(spent, turn.Reply.Candidates...)
				}
				ended.count(spent)
			}
			return nil, ended
		}
	}
	return results, nil
}

func (l *toolLoop) executeOne(ctx context.Context, call *pb.ToolCall) (result *pb.ToolResult) {
	if call.Status != pb.ToolCallStatus_TOOL_CALL_STATUS_COMPLETE {
		return Failed(call.Id, "the call was cut before its end, and was not executed")
	}
	tool, there := l.tools[call.Name]
	if !there || !slices.Contains(l.allowed, call.Name) {
		names := strings.Join(l.allowed, ", ")
		if names == "" {
			names = "none"
		}
		return Failed(call.Id, "no such tool, not executed; the tools are: "+names)
	}
	arguments := call.ArgumentsJson
	if arguments == "" {
		arguments = "{}"
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal([]byte(arguments), &object); err != nil {
		return Failed(call.Id, "invalid arguments, not executed: they are no JSON object")
	}
	// A panic in another goroutine would end the process, at a word of the model.
	defer func() {
		if cause := recover(); cause != nil {
			result = Failed(call.Id, l.words(call, fmt.Errorf("panic: %v", cause)))
		}
	}()
	text, err := tool.Execute(ctx, json.RawMessage(arguments))
	if err != nil {
		return Failed(call.Id, l.words(call, err))
	}
	return Result(call.Id, text)
}

// words is what the model is told of an error.
func (l *toolLoop) words(call *pb.ToolCall, err error) string {
	var told ToolError
	if errors.As(err, &told) {
		return told.Message
	}
	var invalid errInvalidArguments
	if errors.As(err, &invalid) {
		return "invalid arguments, not executed: " + invalid.Error()
	}
	if l.onToolError != nil {
		return l.onToolError(call, err)
	}
	return fmt.Sprintf("the tool failed: %T", err)
}

// failed has the error carry the turns until then.
func (l *toolLoop) failed(err error) error {
	var failure *Error
	if errors.As(err, &failure) {
		failure.Run = l.run
	}
	return err
}
