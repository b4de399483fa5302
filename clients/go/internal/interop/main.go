// The cases of tests/interop on gRPC for Go, without the client. Its argument is the plan as JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"sort"
	"strings"
	"sync"
	"time"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func main() {
	var plan struct {
		Target, Ca string
		Parallel   int
	}
	if err := json.Unmarshal([]byte(os.Args[1]), &plan); err != nil {
		log.Fatal(err)
	}
	security := insecure.NewCredentials()
	if plan.Ca != "" {
		var err error
		if security, err = credentials.NewClientTLSFromFile(plan.Ca, ""); err != nil {
			log.Fatal(err)
		}
	}
	channel, err := grpc.NewClient(plan.Target, grpc.WithTransportCredentials(security))
	if err != nil {
		log.Fatal(err)
	}
	defer channel.Close()
	client := pb.NewGenerationServiceClient(channel)
	ends := map[string]string{
		"unary":    unary(client),
		"stream":   answerTo(client, context.Background(), "SHORT"),
		"bidi":     bidi(client),
		"cancel":   cancelled(client),
		"deadline": deadline(client),
		"parallel": parallel(client, plan.Parallel),
	}
	if err := json.NewEncoder(os.Stdout).Encode(ends); err != nil {
		log.Fatal(err)
	}
}

func specOf(content string) *pb.GenerationSpec {
	messages := &pb.Messages{Messages: []*pb.Message{{Role: pb.Role_ROLE_USER, Content: content}}}
	return &pb.GenerationSpec{Input: &pb.GenerationSpec_Messages{Messages: messages}}
}

// codeOf returns the status as the protocol spells it.
func codeOf(err error) string {
	switch code := status.Code(err); code {
	case codes.Canceled:
		return "CANCELLED"
	case codes.DeadlineExceeded:
		return "DEADLINE_EXCEEDED"
	default:
		return code.String()
	}
}

func unary(client pb.GenerationServiceClient) string {
	reply, err := client.Generate(context.Background(), &pb.GenerateRequest{Spec: specOf("SHORT")})
	if err != nil {
		return codeOf(err)
	}
	return reply.GetCandidates()[0].GetAnswer()
}

func answerTo(client pb.GenerationServiceClient, ctx context.Context, content string) string {
	call, err := client.StreamGenerate(ctx, &pb.StreamGenerateRequest{Spec: specOf(content)})
	if err != nil {
		return codeOf(err)
	}
	return answerOf(func() (*pb.GenerationEvent, error) {
		reply, err := call.Recv()
		return reply.GetEvent(), err
	})
}

func answerOf(next func() (*pb.GenerationEvent, error)) string {
	var answer strings.Builder
	for isFinished := false; ; {
		event, err := next()
		if err == io.EOF && isFinished {
			return answer.String()
		}
		if err == io.EOF {
			return "ended without its last event"
		}
		if err != nil {
			return codeOf(err)
		}
		answer.WriteString(event.GetAnswer().GetText())
		isFinished = event.GetFinished() != nil
	}
}

// bidi ends the thought at its first event.
func bidi(client pb.GenerationServiceClient) string {
	call, err := client.Interact(context.Background())
	if err != nil {
		return codeOf(err)
	}
	start := &pb.InteractRequest{Action: &pb.InteractRequest_Start{Start: specOf("SLOW THOUGHT")}}
	if err := call.Send(start); err != nil {
		return codeOf(err)
	}
	isSaid := false
	return answerOf(func() (*pb.GenerationEvent, error) {
		reply, err := call.Recv()
		if err == nil && reply.GetEvent().GetThought() != nil && !isSaid {
			isSaid = true
			finish := &pb.InteractRequest_FinishThinking{FinishThinking: &pb.FinishThinking{}}
			if err := call.Send(&pb.InteractRequest{Action: finish}); err != nil {
				return nil, err
			}
			err = call.CloseSend()
		}
		return reply.GetEvent(), err
	})
}

func cancelled(client pb.GenerationServiceClient) string {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	call, err := client.StreamGenerate(ctx, &pb.StreamGenerateRequest{Spec: specOf("SLOW ANSWER")})
	if err != nil {
		return codeOf(err)
	}
	return answerOf(func() (*pb.GenerationEvent, error) {
		reply, err := call.Recv()
		if reply.GetEvent().GetAnswer() != nil {
			cancel()
		}
		return reply.GetEvent(), err
	})
}

func deadline(client pb.GenerationServiceClient) string {
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	return answerTo(client, ctx, "SLOW ANSWER")
}

func parallel(client pb.GenerationServiceClient, count int) string {
	var all sync.WaitGroup
	ends := make([]string, count)
	for at := range ends {
		all.Go(func() { ends[at] = answerTo(client, context.Background(), "PARALLEL") })
	}
	all.Wait()
	seen := map[string]int{}
	for _, end := range ends {
		seen[end]++
	}
	lines := []string{}
	for end, times := range seen {
		lines = append(lines, fmt.Sprintf("%d %s", times, end))
	}
	sort.Strings(lines)
	return strings.Join(lines, ", ")
}
