// The Go client's conformance driver: runs all cases and prints what user code sees, a line of JSON per case.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log"
	"os"
	"strings"
	"time"

	penstock "github.com/penstock/penstock/clients/go"
	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
)

type testCase struct {
	Name, Server, Call, Model, Leave, How string
	Spec                                  json.RawMessage
	Resumable                             *bool
	TimeoutSeconds                        float64 `json:"timeout_seconds"`
	FlushIntervalSeconds                  float64 `json:"flush_interval_seconds"`
	LateSeconds                           float64 `json:"late_seconds"`
	Read                                  int
	LastSequence                          *uint64 `json:"last_sequence"`
	ResumeToken                           *string `json:"resume_token"`
	GenerationID                          *string `json:"generation_id"`
	APIKey                                string  `json:"api_key"`
	ResumeAPIKey                          string  `json:"resume_api_key"`
	Experts                               struct {
		WindowSeconds   *float64 `json:"window_seconds"`
		IntervalSeconds *float64 `json:"interval_seconds"`
		Ranks           *int32
	}
	Steps []step
}

type step struct {
	After        int
	Do           string
	Budget       int32
	GenerationID *string `json:"generation_id"`
	ResumeToken  *string `json:"resume_token"`
	APIKey       string  `json:"api_key"`
}

type object = map[string]interface{}

func main() {
	if os.Args[1] == "--stubs" {
		printStubs()
		return
	}
	if os.Args[1] == "--options" {
		showOptions(os.Args[2])
		return
	}
	if os.Args[1] == "--tools" {
		showTools(os.Args[2])
		return
	}
	if os.Args[1] == "--until-interrupted" {
		untilInterrupted(os.Args[2])
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
		if err := run(one, plan.Targets, seen); err != nil {
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

func run(one testCase, targets map[string]string, seen object) error {
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
	client := dial(one, targets, one.APIKey)
	defer client.Close()
	switch one.Call {
	case "stream":
		if one.Resumable != nil && !*one.Resumable {
			return events(client.StreamOnce(ctx, spec, deliveryOf(one)...), nil, one, seen)
		}
		return events(client.Stream(ctx, spec, deliveryOf(one)...), nil, one, seen)
	case "steer":
		return steered(ctx, client, targets, spec, one, seen)
	case "interact":
		interaction := client.Interact(ctx, spec, deliveryOf(one)...)
		return events(interaction.Stream, interaction, one, seen)
	case "leave":
		leave(ctx, client, targets["leaving.metrics"], spec, one, seen)
		return nil
	case "resume":
		return resume(ctx, client, targets, spec, one, seen)
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
	if one.Call == "experts" || one.Call == "watch_experts" {
		return experts(ctx, client, one, seen)
	}
	card, err := client.Model(ctx, one.Model)
	if err == nil {
		seen["model"] = cardOf(card)
	}
	return err
}

func experts(ctx context.Context, client *penstock.Client, one testCase, seen object) error {
	see := func(load *pb.ExpertLoad) bool {
		seen["tokens"] = load.GetTokenCount()
		return false
	}
	asked := one.Experts
	if one.Call == "watch_experts" {
		request := &pb.WatchExpertLoadRequest{RankCount: asked.Ranks}
		request.Window, request.Interval = durationOf(asked.WindowSeconds), durationOf(asked.IntervalSeconds)
		return client.WatchExpertLoad(ctx, request, see)
	}
	load, err := client.ExpertLoad(ctx, &pb.GetExpertLoadRequest{
		Window: durationOf(asked.WindowSeconds), RankCount: asked.Ranks,
	})
	if err == nil {
		see(load)
	}
	return err
}

func durationOf(seconds *float64) *durationpb.Duration {
	if seconds == nil {
		return nil
	}
	return durationpb.New(time.Duration(*seconds * float64(time.Second)))
}

func dial(one testCase, targets map[string]string, key string) *penstock.Client {
	options := []penstock.DialOption{}
	if key != "" {
		options = append(options, penstock.WithAPIKey(key))
	}
	if file := targets[one.Server+".ca"]; file != "" {
		pem, err := os.ReadFile(file)
		roots := x509.NewCertPool()
		if err != nil || !roots.AppendCertsFromPEM(pem) {
			log.Fatal("no certificate in ", file, ": ", err)
		}
		options = append(options, penstock.WithTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	client, err := penstock.Dial(targets[one.Server], options...)
	if err != nil {
		log.Fatal(err)
	}
	return client
}

// steered reads a resumable stream and takes each step by the RPC Steer.
func steered(
	ctx context.Context, client *penstock.Client, targets map[string]string, spec *pb.GenerationSpec, one testCase, seen object,
) error {
	stream := client.Stream(ctx, spec, deliveryOf(one)...)
	replies := []object{}
	err := each(stream, one, seen, func(step step) error {
		reply, err := take(ctx, stream, step, one, targets)
		if err == nil {
			replies = append(replies, object{
				"applied": reply.Applied, "reasoning_tokens": reply.ReasoningTokens, "thinking_budget": reply.ThinkingBudget,
				"phase": strings.ToLower(strings.TrimPrefix(reply.Phase.String(), "GENERATION_PHASE_")),
			})
		}
		return err
	})
	seen["steered"] = replies
	return err
}

// take takes a step over the stream, or as another client where the case says who and what.
func take(
	ctx context.Context, stream *penstock.Stream, step step, one testCase, targets map[string]string,
) (*pb.SteerResponse, error) {
	if step.Do != "cancel" && step.GenerationID == nil && step.ResumeToken == nil && step.APIKey == "" {
		if step.Do == "finish_thinking" {
			return stream.FinishThinking(ctx)
		}
		return stream.ChangeBudget(ctx, step.Budget)
	}
	request := &pb.SteerRequest{GenerationId: stream.Response().GenerationID, ResumeToken: stream.Response().ResumeToken}
	if step.GenerationID != nil {
		request.GenerationId = *step.GenerationID
	}
	if step.ResumeToken != nil {
		request.ResumeToken = *step.ResumeToken
	}
	switch step.Do {
	case "finish_thinking":
		request.Action = &pb.SteerRequest_FinishThinking{FinishThinking: &pb.FinishThinking{}}
	case "change_budget":
		request.Action = &pb.SteerRequest_ChangeBudget{ChangeBudget: &pb.ChangeBudget{ThinkingBudget: step.Budget}}
	default:
		request.Action = &pb.SteerRequest_Cancel{Cancel: &pb.Cancel{}}
	}
	another := dial(one, targets, cmp.Or(step.APIKey, one.APIKey))
	defer another.Close()
	return another.Steer(ctx, request)
}

func events(stream *penstock.Stream, steered *penstock.Interaction, one testCase, seen object) error {
	return each(stream, one, seen, func(step step) error {
		switch step.Do {
		case "finish_thinking":
			steered.FinishThinking()
		case "change_budget":
			steered.ChangeBudget(step.Budget)
		case "cancel":
			steered.Cancel()
		}
		return nil
	})
}

// each reads a stream to its end and takes the steps of the case.
func each(stream *penstock.Stream, one testCase, seen object, take func(step) error) error {
	defer stream.Close()
	list := []object{}
	time.Sleep(time.Duration(one.LateSeconds * float64(time.Second)))
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
			if err := take(step); err != nil {
				return err
			}
		}
	}
	seen["events"], seen["reply"] = list, replyOf(stream.Response())
	seen["reconnections"] = stream.Reconnections()
	return nil
}

func resume(
	ctx context.Context, client *penstock.Client, targets map[string]string, spec *pb.GenerationSpec,
	one testCase, seen object,
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
	key := one.APIKey
	if one.ResumeAPIKey != "" {
		key = one.ResumeAPIKey
	}
	another := dial(one, targets, key)
	defer another.Close()
	return events(another.Resume(ctx, id, token, last), nil, one, seen)
}
