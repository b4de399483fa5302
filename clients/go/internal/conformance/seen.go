package main

import (
	"encoding/json"
	"fmt"
	"log"
	"sort"
	"strings"

	penstock "github.com/penstock/penstock/clients/go"
	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

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
	case *pb.GenerationEvent_Interrupted:
		seen["kind"] = "interrupted"
		seen["reason"] = short(event.GetInterrupted().Reason, "INTERRUPTION_REASON_")
	case *pb.GenerationEvent_Continued:
		seen["kind"] = "continued"
	case *pb.GenerationEvent_ToolCallStarted:
		begun := event.GetToolCallStarted()
		seen["kind"], seen["candidate"], seen["call"] = "tool_call_started", begun.CandidateIndex, begun.CallIndex
		seen["name"], seen["tokens"] = begun.Name, begun.TokenCount
	case *pb.GenerationEvent_ToolCallArguments:
		more := event.GetToolCallArguments()
		seen["kind"], seen["candidate"], seen["call"] = "tool_call_arguments", more.CandidateIndex, more.CallIndex
		seen["json"], seen["tokens"] = more.JsonFragment, more.TokenCount
	case *pb.GenerationEvent_ToolCallFinished:
		ended := event.GetToolCallFinished()
		seen["kind"], seen["candidate"], seen["call"] = "tool_call_finished", ended.CandidateIndex, ended.CallIndex
		seen["tokens"] = ended.TokenCount
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
		calls := []object{}
		for _, call := range candidate.ToolCalls() {
			calls = append(calls, object{
				"name": call.Name, "arguments_json": call.ArgumentsJson, "status": short(call.Status, "TOOL_CALL_STATUS_"),
			})
		}
		candidates = append(candidates, object{
			"thought":           candidate.Thought(),
			"answer":            candidate.Answer(),
			"finish_reason":     short(candidate.Result.GetFinishReason(), "FINISH_REASON_"),
			"thinking_outcome":  short(candidate.ThinkingOutcome, "THINKING_OUTCOME_"),
			"matched_stop":      candidate.Result.GetMatchedStop(),
			"reasoning_tokens":  candidate.ReasoningTokens,
			"answer_tokens":     candidate.AnswerTokens,
			"tool_tokens":       candidate.ToolTokens,
			"tool_calls":        calls,
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
	made["effort"] = unset(short(settings.Effort, "EFFORT_"))
	made["tool_mode"] = unset(short(settings.ToolMode, "TOOL_MODE_"))
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

// unset is the word of all drivers for what is not set.
func unset(name string) string {
	if name == "unspecified" {
		return "unknown"
	}
	return name
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
