package penstock

import pb "github.com/penstock/penstock/clients/go/penstockv1"

// Conversation holds the turns of a conversation, oldest first: penstock.Chat(talk.Turns()). It keeps answers and tool
// calls; a thought only if the reply has tool calls, because the model needs it until it has answered.
type Conversation struct {
	turns []*pb.Message
}

// NewConversation starts a conversation; an empty system message is none.
func NewConversation(system string) *Conversation {
	made := &Conversation{}
	if system != "" {
		made.turns = append(made.turns, System(system))
	}
	return made
}

// Ask adds a user's turn and returns the request of the whole conversation.
func (c *Conversation) Ask(text string, options ...Option) *pb.GenerationSpec {
	c.turns = append(c.turns, User(text))
	return Chat(c.Turns(), options...)
}

// Add adds the answer and the tool calls of a reply's first candidate as the assistant's turn.
func (c *Conversation) Add(reply *Response) {
	if len(reply.ToolCalls()) > 0 {
		c.turns = append(c.turns, reply.Message())
		return
	}
	c.turns = append(c.turns, Assistant(reply.Answer()))
}

// AddResults adds the results of the last reply's tool calls, one for each.
func (c *Conversation) AddResults(results ...*pb.ToolResult) {
	c.turns = append(c.turns, Results(results...))
}

// AddRun takes the turns of a run that began with this conversation.
func (c *Conversation) AddRun(run *Run) {
	c.turns = append([]*pb.Message(nil), run.Messages...)
}

// Turns returns a copy of the turns so far.
func (c *Conversation) Turns() []*pb.Message {
	return append([]*pb.Message(nil), c.turns...)
}
