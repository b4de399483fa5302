// Streams thought and answer apart, then says what it cost.
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

	stream := client.Stream(ctx, penstock.Ask("What is 48 + 27 + 36 + 15?", penstock.Auto()))
	defer stream.Close()
	for {
		event, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		fmt.Print(event.GetThought().GetText(), event.GetAnswer().GetText())
	}
	usage := stream.Response().Usage
	fmt.Printf("\n%d thought and %d answer tokens\n", usage.GetReasoningTokens(), usage.GetAnswerTokens())
	if cost := stream.Response().Cost; cost != nil {
		fmt.Printf("%.10f USD\n", float64(cost.TotalUsdTicks)/1e10)
	}
}
