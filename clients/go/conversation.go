package penstock

import pb "github.com/penstock/penstock/clients/go/penstockv1"

// Conversation holds the turns of a conversation, oldest first: penstock.Chat(talk.Turns()). It keeps answers only,
// because a thought is not a part of the history.
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

// Add adds the answer of a reply's first candidate as the assistant's turn.
func (c *Conversation) Add(reply *Response) {
	c.turns = append(c.turns, Assistant(reply.Answer()))
}

// Turns returns a copy of the turns so far.
func (c *Conversation) Turns() []*pb.Message {
	return append([]*pb.Message(nil), c.turns...)
}
