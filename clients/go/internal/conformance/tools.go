package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"
	"strings"
	"sync"
	"time"

	penstock "github.com/penstock/penstock/clients/go"
	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

const citySchema = `{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}`

// showTools tells what user code sees of tools, for the way named; the service is the environment's.
func showTools(how string) {
	client, err := penstock.Dial("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	var mutex sync.Mutex
	executed := []string{}
	type city struct{ City string }
	warmth := penstock.NewTool("warmth", "Return the temperature.", citySchema,
		func(_ context.Context, given city) (object, error) {
			mutex.Lock()
			defer mutex.Unlock()
			executed = append(executed, given.City+" 1")
			return object{"city": given.City, "celsius": 21}, nil
		})
	fails := penstock.NewTool("fails", "", "", func(context.Context, struct{}) (string, error) {
		return "", errors.New("secret")
	})
	tells := penstock.NewTool("tells", "", "", func(context.Context, struct{}) (string, error) {
		return "", penstock.ToolError{Message: "no city \xff"}
	})
	hangs := penstock.NewTool("hangs", "", "", func(context.Context, struct{}) (string, error) { select {} })
	panics := penstock.NewTool("panics", "", "", func(context.Context, struct{}) (string, error) { panic("secret") })
	seen := toolWays(client, how, []penstock.Tool{warmth, fails, tells, hangs, panics})
	seen["executed"] = executed
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		log.Fatal(err)
	}
}

func toolWays(client *penstock.Client, how string, tools []penstock.Tool) object {
	ctx := context.Background()
	switch how {
	case "run":
		return runTools(ctx, client, tools)
	case "told":
		tell := func(call *pb.ToolCall, err error) string { return call.Name + ": " + err.Error() }
		run, err := client.RunTools(ctx, penstock.Ask("hi"), tools, penstock.OnToolError(tell))
		return ranOrFailed(run, err)
	case "limit":
		run, err := client.RunTools(ctx, penstock.Ask("hi"), tools, penstock.MaxTurns(2))
		return ranOrFailed(run, err)
	case "deadline":
		ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
		defer cancel()
		run, err := client.RunTools(ctx, penstock.Ask("hi"), tools)
		return ranOrFailed(run, err)
	case "events":
		return callEvents(ctx, client)
	case "history":
		talk := penstock.NewConversation("s")
		stream := client.Stream(ctx, talk.Ask("one"))
		for _, err := range stream.Text() {
			log.Fatal(err)
		}
		talk.Add(stream.Response())
		talk.AddResults(penstock.Result("call-0", "21"))
		reply, err := client.Generate(ctx, penstock.Chat(talk.Turns()))
		if err != nil {
			log.Fatal(err)
		}
		talk.Add(reply)
		last := talk.Turns()[4]
		return object{"last": object{"role": short(last.Role, "ROLE_"), "content": last.Content}}
	}
	reply, err := client.Generate(ctx, penstock.Ask("hi", penstock.JSONSchema(citySchema)))
	if err != nil {
		log.Fatal(err)
	}
	parsed := struct {
		City string `json:"city"`
		Days int    `json:"days"`
	}{Days: 1}
	if err := reply.Decode(&parsed); err != nil {
		failed := ranOrFailed(nil, err)
		failed["message"] = err.Error()
		return failed
	}
	return object{"city": parsed.City, "days": parsed.Days}
}

func runTools(ctx context.Context, client *penstock.Client, tools []penstock.Tool) object {
	finished, results := 0, [][]any{}
	spec := penstock.Ask("How warm?",
		penstock.ToolMode(pb.ToolMode_TOOL_MODE_REQUIRED), penstock.AllowedTools("warmth", "fails", "tells"))
	run, err := client.RunTools(ctx, spec, tools,
		penstock.OnEvent(func(event *pb.GenerationEvent) {
			if event.GetFinished() != nil {
				finished++
			}
		}),
		penstock.OnResult(func(call *pb.ToolCall, result *pb.ToolResult) {
			text := ""
			for _, part := range result.Content {
				text += part.GetText()
			}
			results = append(results, []any{call.Id, text, result.IsError})
		}))
	if err != nil {
		log.Fatal(err)
	}
	roles := []string{}
	for _, message := range run.Messages {
		roles = append(roles, short(message.Role, "ROLE_"))
	}
	seen := ranOrFailed(run, nil)
	seen["finished"], seen["results"], seen["answer"], seen["roles"] = finished, results, run.Answer(), roles
	return seen
}

func callEvents(ctx context.Context, client *penstock.Client) object {
	stream := client.Stream(ctx, penstock.Ask("hi"))
	defer stream.Close()
	kinds, pieces := []any{}, []string{}
	for {
		event, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		kinds = append(kinds, eventOf(event)["kind"])
		if more := event.GetToolCallArguments(); more != nil {
			pieces = append(pieces, more.JsonFragment)
		}
	}
	calls := [][]string{}
	for _, call := range stream.Response().ToolCalls() {
		calls = append(calls, []string{call.Id, call.Name, call.ArgumentsJson, short(call.Status, "TOOL_CALL_STATUS_")})
	}
	first := stream.Response().Candidates[0]
	return object{
		"kinds": kinds, "pieces": pieces, "calls": calls, "tokens": first.ToolTokens,
		"finish": short(first.Result.GetFinishReason(), "FINISH_REASON_"),
	}
}

func ranOrFailed(run *penstock.Run, err error) object {
	seen := object{}
	var failure *penstock.Error
	if errors.As(err, &failure) {
		run = failure.Run
		kinds := map[error]string{
			penstock.ErrTurnLimitReached: "TurnLimitReached", penstock.ErrUnparsableAnswer: "UnparsableAnswer",
			penstock.ErrDeadlineExceeded: "DeadlineExceeded",
		}
		metadata := failure.Metadata
		if metadata == nil {
			metadata = map[string]string{}
		}
		seen["error"], seen["metadata"] = kinds[failure.Kind], metadata
	} else if err != nil {
		seen["error"] = strings.TrimSpace(err.Error())
	}
	if run != nil {
		seen["turns"], seen["ticks"] = len(run.Turns), run.Cost().GetTotalUsdTicks()
		seen["tool_tokens"], seen["prompt_tokens"] = run.Usage().ToolTokens, run.Usage().PromptTokens
	}
	return seen
}
