package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"log/slog"
	"os"
	"strings"

	penstock "github.com/penstock/penstock/clients/go"
)

// showOptions prints what user code sees of a client from the environment. "refused" calls a server that refuses, "lost"
// reads a stream whose connection is lost, "another" calls as another caller and closes the client.
func showOptions(how string) {
	ctx := context.Background()
	seen := object{}
	if _, err := penstock.Dial("", penstock.WithMetadata("Authorization", "x")); err != nil {
		seen["reserved"] = err.Error()
	}
	said := &strings.Builder{}
	base, err := penstock.Dial("", penstock.WithLogger(slog.New(slog.NewTextHandler(said, nil))))
	if err != nil {
		log.Fatal(err)
	}
	defer base.Close()
	client := base.With(penstock.WithRetries(2), penstock.WithMetadata("X-Team", "a"))
	talk := penstock.NewConversation("s")
	if how == "refused" {
		_, err := client.Generate(ctx, talk.Ask("one"))
		seen["generate"] = refusal(err)
		for _, err := range client.Stream(ctx, talk.Ask("two")).Text() {
			seen["stream"] = refusal(err)
		}
	} else if how == "another" {
		another(ctx, base, seen)
	} else if how == "lost" {
		for _, err := range client.Stream(ctx, talk.Ask("two")).Text() {
			if err != nil {
				log.Fatal(err)
			}
		}
	} else {
		reply, err := client.Generate(ctx, talk.Ask("one"))
		if err != nil {
			log.Fatal(err)
		}
		talk.Add(reply)
		stream, text := client.Stream(ctx, talk.Ask("two")), ""
		for part, err := range stream.Text() {
			if err != nil {
				log.Fatal(err)
			}
			text += part
		}
		seen["text"], seen["limits"], seen["stream_limits"] = text, reply.RateLimits, stream.Response().RateLimits
	}
	seen["said"] = strings.Split(strings.TrimSuffix(said.String(), "\n"), "\n")
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		log.Fatal(err)
	}
}

func another(ctx context.Context, base *penstock.Client, seen object) {
	for _, key := range []string{"", "another"} {
		if _, err := base.With(penstock.WithAPIKey(key)).Model(ctx, ""); err != nil {
			log.Fatal(err)
		}
	}
	seen["connection"] = misuse(func() { base.With(penstock.WithTLS(nil)) })
	base.Close()
	_, err := base.With(penstock.WithRetries(2)).Generate(ctx, penstock.Ask("x"))
	seen["closed"] = err.Error()
	os.Setenv("PENSTOCK_CA_FILE", os.Args[0])
	_, err = penstock.Dial("")
	seen["certificate"] = strings.Replace(err.Error(), os.Args[0], "FILE", 1)
	os.Unsetenv("PENSTOCK_CA_FILE")
	distant, err := penstock.Dial("service.example:1", penstock.WithAPIKey(""))
	if err != nil {
		log.Fatal(err)
	}
	seen["network"] = misuse(func() { distant.With(penstock.WithAPIKey("k")) })
}

// misuse returns what a call panics with.
func misuse(call func()) (said string) {
	defer func() { said = recover().(error).Error() }()
	call()
	return ""
}

func refusal(err error) object {
	var failure *penstock.Error
	if !errors.As(err, &failure) {
		log.Fatal(err)
	}
	return object{"reason": failure.Reason, "limits": failure.RateLimits}
}
