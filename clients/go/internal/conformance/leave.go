package main

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	penstock "github.com/penstock/penstock/clients/go"
	pb "github.com/penstock/penstock/clients/go/penstockv1"
)

// leaveTime bounds the wait for the end of a generation after its stream was left; it would run for 150 s.
const leaveTime = 30 * time.Second

var sequencesRunning = regexp.MustCompile(`(?m)^penstock_sequences_running(?:{.*})? (\S+)`)

// running returns the number of generations on the server, once it is as wanted or stays different.
func running(metrics string, wanted float64) float64 {
	late := time.Now().Add(leaveTime)
	for {
		reply, err := http.Get(metrics)
		if err != nil {
			log.Fatal(err)
		}
		page, err := io.ReadAll(reply.Body)
		reply.Body.Close()
		if err != nil {
			log.Fatal(err)
		}
		count := 0.0
		if found := sequencesRunning.FindSubmatch(page); found != nil {
			count, _ = strconv.ParseFloat(string(found[1]), 64)
		}
		if count == wanted || time.Now().After(late) {
			return count
		}
		runtime.GC() // collects the dropped stream
		time.Sleep(50 * time.Millisecond)
	}
}

// leave leaves a stream as the case says; the client stays open.
func leave(
	ctx context.Context, client *penstock.Client, metrics string, spec *pb.GenerationSpec, one testCase, seen object,
) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	counts := object{}
	there := func() { counts["before"] = running(metrics, 1) }
	seen["running"] = counts
	if strings.HasSuffix(one.How, "_reply") {
		failed := make(chan error)
		go func() {
			_, err := client.Generate(ctx, spec)
			failed <- err
		}()
		there()
		if one.How == "cancel_reply" {
			cancel()
		} else {
			client.Close()
		}
		seen["error"] = errorOf(<-failed)
		counts["after"] = running(metrics, 0)
		return
	}
	stream := client.Stream(ctx, spec)
	switch one.How {
	case "break":
		func() {
			defer stream.Close()
			for read := 0; read < 3; read++ {
				receive(stream)
			}
			there()
		}()
	case "text":
		for _, err := range stream.Text() {
			if err != nil {
				log.Fatal(err)
			}
			there()
			break
		}
	case "raise":
		func() {
			defer func() { _ = recover() }()
			defer stream.Close()
			receive(stream)
			there()
			panic("while a stream is read")
		}()
	case "cancel":
		failed := make(chan error)
		go func() {
			for {
				if _, err := stream.Recv(); err != nil {
					failed <- err
					return
				}
			}
		}()
		there()
		cancel()
		err := <-failed
		if !errors.Is(err, context.Canceled) {
			log.Fatal("cancelled, and it failed with ", err)
		}
		seen["error"] = errorOf(err)
	case "unread":
		there()
		stream.Close()
	case "close":
		receive(stream)
		there()
		stream.Close()
	case "close_client":
		receive(stream)
		there()
		client.Close()
	case "drop":
		receive(stream)
		there()
	}
	if one.How != "drop" {
		defer runtime.KeepAlive(stream)
	}
	counts["after"] = running(metrics, 0)
}

func receive(stream *penstock.Stream) {
	if _, err := stream.Recv(); err != nil {
		log.Fatal(err)
	}
}

// untilInterrupted reads a stream until Ctrl-C, as a program that cleans up.
func untilInterrupted(target string) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	client, err := penstock.Dial(target)
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	stream := client.Stream(ctx, penstock.Ask("hi"))
	for err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, penstock.ErrCancelled) {
		log.Fatal(err)
	}
}
