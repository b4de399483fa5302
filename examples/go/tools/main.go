// Lets the model call a function, and prints each call, the answer, and what all turns used.
package main

import (
	"context"
	"fmt"
	"log"
	"time"

	penstock "github.com/penstock/penstock/clients/go"
	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

type place struct{ City string }

func main() {
	temperature := penstock.NewTool("temperature", "Return the temperature in a city.",
		`{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}`,
		func(_ context.Context, where place) (string, error) {
			return fmt.Sprintf("It is 21 degrees in %s.", where.City), nil
		})

	client, err := penstock.Dial("")
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	run, err := client.RunTools(ctx, penstock.Ask("How warm is it in Oslo?"), []penstock.Tool{temperature},
		penstock.MaxTurns(4),
		penstock.OnResult(func(call *pb.ToolCall, result *pb.ToolResult) {
			fmt.Println(call.Name, call.ArgumentsJson, "->", result.Content[0].GetText())
		}))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(run.Answer())
	fmt.Println(run.Usage().ToolTokens, "tokens of tool calls")
}
