// Stops a thought that takes too long: the answer starts at once.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	penstock "github.com/penstock/penstock/clients/go"
)

func main() {
	target := os.Getenv("PENSTOCK_TARGET")
	if target == "" {
		target = "127.0.0.1:50051"
	}
	client, err := penstock.Dial(target)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	question := penstock.Ask("What is 48 + 27 + 36 + 15?", penstock.Thinking(), penstock.Budget(-1))
	interaction := client.Interact(ctx, question)
	defer interaction.Close()
	for {
		event, err := interaction.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		if event.GetThought() != nil && interaction.Response().Candidates[0].ReasoningTokens == 10 {
			interaction.FinishThinking()
		}
	}
	response := interaction.Response()
	fmt.Printf("%v: %s\n", response.Candidates[0].ThinkingOutcome, response.Answer())
}
