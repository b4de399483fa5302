// The Go client's conformance driver: runs all cases and tells, one line of JSON per case, what user code saw.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sort"
	"strings"
	"time"

	penstock "github.com/penstock/penstock/clients/go"
	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

type testCase struct {
	Name, Server, Call, Model, Leave string
	Spec                             json.RawMessage
	Resumable                        *bool
	TimeoutSeconds                   float64 `json:"timeout_seconds"`
	FlushIntervalSeconds             float64 `json:"flush_interval_seconds"`
	Read                             int
	LastSequence                     *uint64 `json:"last_sequence"`
	ResumeToken                      *string `json:"resume_token"`
	GenerationID                     *string `json:"generation_id"`
	Steps                            []struct {
		After  int
		Do     string
		Budget int32
	}
}

type object = map[string]interface{}

func main() {
	if os.Args[1] == "--stubs" {
		printStubs()
		return
	}
	var plan struct {
		Targets map[string]string
		Cases   []testCase
	}
	data, err := os.ReadFile(os.Args[1])
	if err == nil {
		err = json.Unmarshal(data, &plan)
	}
	if err != nil {
		log.Fatal(err)
	}
	printer := json.NewEncoder(os.Stdout)
	for _, one := range plan.Cases {
		if one.Server == "" {
			one.Server = "default"
		}
		seen := object{"name": one.Name}
		if err := run(one, plan.Targets[one.Server], seen); err != nil {
			seen["error"] = errorOf(err)
		}
		if err := printer.Encode(seen); err != nil {
			log.Fatal(err)
		}
	}
}

func deliveryOf(one testCase) []penstock.StreamOption {
	if one.FlushIntervalSeconds == 0 {
		return nil
	}
	return []penstock.StreamOption{penstock.FlushEvery(time.Duration(one.FlushIntervalSeconds * float64(time.Second)))}
}

func run(one testCase, target string, seen object) error {
	ctx := context.Background()
	if one.TimeoutSeconds > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(one.TimeoutSeconds*float64(time.Second)))
		defer cancel()
	}
	spec := &pb.GenerationSpec{}
	if one.Spec != nil {
		if err := protojson.Unmarshal(one.Spec, spec); err != nil {
			log.Fatal(one.Name, ": ", err)
		}
	}
	client := dial(target)
	defer client.Close()
	switch one.Call {
	case "stream":
		if one.Resumable != nil && !*one.Resumable {
			return events(client.StreamOnce(ctx, spec, deliveryOf(one)...), nil, one, seen)
		}
		return events(client.Stream(ctx, spec, deliveryOf(one)...), nil, one, seen)
	case "interact":
		interaction := client.Interact(ctx, spec, deliveryOf(one)...)
		return events(interaction.Stream, interaction, one, seen)
	case "resume":
		return resume(ctx, client, target, spec, one, seen)
	case "generate":
		response, err := client.Generate(ctx, spec)
		if err == nil {
			seen["reply"] = replyOf(response)
		}
		return err
	case "count":
		count, err := client.Count(ctx, spec)
		if err == nil {
			countOf(count, seen)
		}
		return err
	}
	card, err := client.Model(ctx, one.Model)
	if err == nil {
		seen["model"] = cardOf(card)
	}
	return err
}

func dial(target string) *penstock.Client {
	client, err := penstock.Dial(target)
	if err != nil {
		log.Fatal(err)
	}
	return client
}

func events(stream *penstock.Stream, steered *penstock.Interaction, one testCase, seen object) error {
	defer stream.Close()
	list := []object{}
	for {
		event, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		list = append(list, eventOf(event))
		for _, step := range one.Steps {
			if step.After != len(list) {
				continue
			}
			switch step.Do {
			case "finish_thinking":
				steered.FinishThinking()
			case "change_budget":
				steered.ChangeBudget(step.Budget)
			case "cancel":
				steered.Cancel()
			}
		}
	}
	seen["events"], seen["reply"] = list, replyOf(stream.Response())
	seen["reconnections"] = stream.Reconnections()
	return nil
}

func resume(
	ctx context.Context, client *penstock.Client, target string, spec *pb.GenerationSpec, one testCase, seen object,
) error {
	first := client.Stream(ctx, spec, deliveryOf(one)...)
	for read := 0; read < one.Read; read++ {
		if _, err := first.Recv(); err != nil {
			return err
		}
	}
	if one.Leave == "cancel" {
		first.Close()
	} else {
		first.Detach()
	}
	client.Close() // waits until the server knows
	id, token, last := first.Response().GenerationID, first.Response().ResumeToken, first.LastSequence()
	if one.GenerationID != nil {
		id = *one.GenerationID
	}
	if one.ResumeToken != nil {
		token = *one.ResumeToken
	}
	if one.LastSequence != nil {
		last = *one.LastSequence
	}
	another := dial(target)
	defer another.Close()
	return events(another.Resume(ctx, id, token, last), nil, one, seen)
}

func eventOf(event *pb.GenerationEvent) object {
	seen := object{"sequence": event.Sequence}
	delta := event.GetThought()
	switch event.Event.(type) {
	case *pb.GenerationEvent_Started:
		seen["kind"] = "started"
	case *pb.GenerationEvent_Thought:
		seen["kind"] = "thought"
	case *pb.GenerationEvent_Answer:
		seen["kind"], delta = "answer", event.GetAnswer()
	case *pb.GenerationEvent_ThinkingFinished:
		seen["kind"] = "thinking_finished"
	case *pb.GenerationEvent_Finished:
		seen["kind"] = "finished"
	}
	if delta != nil {
		seen["candidate"], seen["text"], seen["tokens"] = delta.CandidateIndex, delta.Text, delta.TokenCount
	}
	return seen
}

func replyOf(response *penstock.Response) object {
	candidates := []object{}
	for _, candidate := range response.Candidates {
		candidates = append(candidates, object{
			"thought":           candidate.Thought(),
			"answer":            candidate.Answer(),
			"finish_reason":     short(candidate.Result.GetFinishReason(), "FINISH_REASON_"),
			"thinking_outcome":  short(candidate.ThinkingOutcome, "THINKING_OUTCOME_"),
			"matched_stop":      candidate.Result.GetMatchedStop(),
			"reasoning_tokens":  candidate.ReasoningTokens,
			"answer_tokens":     candidate.AnswerTokens,
			"thought_token_ids": candidate.ThoughtTokenIDs,
			"answer_token_ids":  candidate.AnswerTokenIDs,
		})
	}
	reply := object{"candidates": candidates, "usage": plain(response.Usage), "cost_usd_ticks": nil}
	reply["effective"] = effectiveOf(response.EffectiveSettings)
	if response.Cost != nil {
		reply["cost_usd_ticks"] = response.Cost.TotalUsdTicks
	}
	return reply
}

func effectiveOf(settings *pb.EffectiveSettings) interface{} {
	if settings == nil {
		return nil
	}
	made := plain(settings)
	made["thinking_mode"] = short(settings.ThinkingMode, "THINKING_MODE_")
	made["requested_thinking_mode"] = short(settings.RequestedThinkingMode, "THINKING_MODE_")
	return made
}

func countOf(count *pb.CountTokensResponse, seen object) {
	made := plain(count)
	made["dropped_tokens"], made["dropped_messages"] = count.Dropped.GetTokens(), count.Dropped.GetMessages()
	seen["count"], seen["effective"] = made, effectiveOf(count.EffectiveSettings)
}

func cardOf(card *pb.GetModelResponse) object {
	modes := []string{}
	for _, mode := range card.ThinkingModes {
		modes = append(modes, short(mode, "THINKING_MODE_"))
	}
	sort.Strings(modes)
	made := plain(card)
	made["thinking_modes"] = modes
	made["default_thinking_mode"] = short(card.DefaultThinkingMode, "THINKING_MODE_")
	return made
}

func short(value fmt.Stringer, prefix string) string {
	return strings.ToLower(strings.TrimPrefix(value.String(), prefix))
}

// plain gives a message's fields by proto name.
func plain(message proto.Message) object {
	data, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(message)
	if err != nil {
		log.Fatal(err)
	}
	made := object{}
	if err := json.Unmarshal(data, &made); err != nil {
		log.Fatal(err)
	}
	return made
}

// The most special first: some errors are two of these.
var kinds = []struct {
	name string
	kind error
}{
	{"BudgetDoesNotFit", penstock.ErrBudgetDoesNotFit},
	{"ContextOverflow", penstock.ErrContextOverflow},
	{"InvalidRequest", penstock.ErrInvalidRequest},
	{"FeatureOff", penstock.ErrFeatureOff},
	{"NotImplementedYet", penstock.ErrNotImplementedYet},
	{"ModelNotFound", penstock.ErrModelNotFound},
	{"GenerationNotFound", penstock.ErrGenerationNotFound},
	{"Overloaded", penstock.ErrOverloaded},
	{"MessageTooLarge", penstock.ErrMessageTooLarge},
	{"DeadlineExceeded", penstock.ErrDeadlineExceeded},
	{"Unavailable", penstock.ErrUnavailable},
	{"CallerRefused", penstock.ErrCallerRefused},
	{"Cancelled", penstock.ErrCancelled},
	{"PoisonousRequest", penstock.ErrPoisonousRequest},
	{"ServerFault", penstock.ErrServerFault},
	{"BrokenStream", penstock.ErrBrokenStream},
}

func errorOf(err error) object {
	var failure *penstock.Error
	if !errors.As(err, &failure) {
		log.Fatal(err)
	}
	fields := []string{}
	for _, violation := range failure.Violations {
		fields = append(fields, violation.Field)
	}
	seen := object{
		"code":                snakeUpper(failure.Code.String()),
		"reason":              failure.Reason,
		"fields":              fields,
		"metadata":            failure.Metadata,
		"retry_after_seconds": failure.RetryAfter.Seconds(),
	}
	for _, one := range kinds {
		if errors.Is(err, one.kind) {
			seen["type"] = one.name
			break
		}
	}
	return seen
}

// snakeUpper turns Go's names of status codes into everybody else's.
func snakeUpper(name string) string {
	var made strings.Builder
	for at, letter := range name {
		if at > 0 && letter >= 'A' && letter <= 'Z' {
			made.WriteByte('_')
		}
		made.WriteRune(letter)
	}
	return strings.ToUpper(made.String())
}
