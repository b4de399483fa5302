// Package penstock is the Go client of Penstock.
package penstock

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	pb "github.com/penstock/penstock/clients/go/penstockv1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	maxReceiveBytes = 256 * 1024 * 1024
	// cancelTime bounds a Cancel call while the client is in use, closeTime the wait of Close.
	cancelTime, closeTime = 5 * time.Second, time.Second
	// readTime is the default timeout of calls that generate nothing.
	readTime = 30 * time.Second
)

// Client is a client of one Penstock service; goroutines may share it. A call has the deadline of its context: the
// server stops at it, and Auto plans so that the answer arrives before it. Failures are *Error. A stream whose connection
// is lost resumes over another one; nothing else is retried by default.
type Client struct {
	conn       *grpc.ClientConn
	generation pb.GenerationServiceClient
	model      pb.ModelServiceClient
	routing    pb.RoutingServiceClient
	reconnect  *Reconnect
	apiKey     string
	retries    int
	more       map[string]string
	logger     *slog.Logger
	// refusesKeys: a key would be sent over a network without encryption, and nobody allowed that.
	refusesKeys bool
	*open
}

// open is the state that clients over the same connection share.
type open struct {
	mutex   sync.Mutex
	closed  bool
	streams map[*running]bool
	leaving sync.WaitGroup
}

// With returns a client with other defaults over the same connection: those of WithRetries, WithMetadata, WithLogger,
// WithReconnect and WithAPIKey. Closing one closes both. It panics for what Dial refuses, and for an option of the
// connection itself.
func (c *Client) With(options ...DialOption) *Client {
	s := &settings{apiKey: c.apiKey, retries: c.retries, more: maps.Clone(c.more), logger: c.logger, reconnect: c.reconnect}
	for _, option := range options {
		option(s)
	}
	if s.misuse == nil && (s.tls != nil || s.inClear || s.dial != nil) {
		s.misuse = errors.New("WithTLS, WithPlaintext and WithGRPC are options of the connection: give them to Dial")
	}
	if s.misuse == nil {
		s.misuse = checkKey(s.apiKey)
	}
	if s.misuse == nil && s.apiKey != "" && c.refusesKeys {
		s.misuse = keyInClear(c.conn.Target())
	}
	if s.misuse != nil {
		panic(s.misuse)
	}
	other := *c
	other.apiKey, other.retries, other.more = s.apiKey, s.retries, s.more
	other.logger, other.reconnect = s.logger, s.reconnect
	return &other
}

func keyInClear(target string) error {
	return fmt.Errorf("the API key would be sent to %s without encryption: use WithTLS, or WithPlaintext to allow it", target)
}

type settings struct {
	apiKey    string
	keyGiven  bool
	retries   int
	more      map[string]string
	tls       *tls.Config
	inClear   bool
	reconnect *Reconnect
	logger    *slog.Logger
	misuse    error
	dial      []grpc.DialOption
}

// DialOption changes how Dial connects.
type DialOption func(*settings)

// WithAPIKey authenticates the caller. Dial refuses to send a key without encryption over a network, unless
// WithPlaintext allows it. An empty key is none, and the environment is ignored.
func WithAPIKey(key string) DialOption {
	return func(s *settings) { s.apiKey, s.keyGiven = key, true }
}

// WithRetries sets the number of retries of a call that the server refused with a retry delay, within the context's
// deadline. Default: 0.
func WithRetries(most int) DialOption { return func(s *settings) { s.retries = most } }

// WithMetadata sends additional gRPC metadata with each call, such as x-request-id. For names that the client itself sets
// (authorization, grpc-...), Dial returns an error and With panics.
func WithMetadata(name, value string) DialOption {
	return func(s *settings) {
		lower := strings.ToLower(name)
		if lower == "authorization" || strings.HasPrefix(lower, "grpc-") || strings.HasPrefix(lower, ":") {
			s.misuse = fmt.Errorf("metadata %s is set by the client: use WithAPIKey or the context's deadline instead", name)
			return
		}
		if s.more == nil {
			s.more = map[string]string{}
		}
		s.more[lower] = value
	}
}

// WithTLS encrypts the connection; nil uses the system's roots.
func WithTLS(config *tls.Config) DialOption {
	return func(s *settings) {
		if config == nil {
			config = &tls.Config{MinVersion: tls.VersionTLS12}
		}
		s.tls = config
	}
}

// WithPlaintext allows a connection without encryption.
func WithPlaintext() DialOption { return func(s *settings) { s.inClear = true } }

// WithReconnect bounds the attempts to resume a stream after a lost connection; nil: streams are not resumable.
func WithReconnect(policy *Reconnect) DialOption { return func(s *settings) { s.reconnect = policy } }

// WithLogger logs lost connections and retries at level Info, without prompt and output. Default, and nil: no log.
func WithLogger(logger *slog.Logger) DialOption {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return func(s *settings) { s.logger = logger }
}

// WithGRPC passes options to gRPC.
func WithGRPC(options ...grpc.DialOption) DialOption {
	return func(s *settings) { s.dial = append(s.dial, options...) }
}

// Dial makes a client, which connects at the first call. Absent options come from the environment: PENSTOCK_TARGET for an
// empty target (else DefaultTarget), PENSTOCK_API_KEY or PENSTOCK_API_KEY_FILE, PENSTOCK_CA_FILE or PENSTOCK_TLS.
func Dial(target string, options ...DialOption) (*Client, error) {
	policy := DefaultReconnect
	s := &settings{reconnect: &policy, logger: slog.New(slog.DiscardHandler)}
	for _, option := range options {
		option(s)
	}
	if s.misuse != nil {
		return nil, s.misuse
	}
	if err := s.fromEnvironment(); err != nil {
		return nil, err
	}
	if target == "" {
		target = cmp.Or(os.Getenv("PENSTOCK_TARGET"), DefaultTarget)
	}
	refusesKeys := s.tls == nil && !s.inClear && !isLoopback(target)
	if s.apiKey != "" && refusesKeys {
		return nil, keyInClear(target)
	}
	transport := insecure.NewCredentials()
	if s.tls != nil {
		transport = credentials.NewTLS(s.tls)
	}
	dial := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReceiveBytes)),
		// Detects a connection that is lost without a signal, so that the stream can resume over another one.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
	}
	if isLoopback(target) {
		dial = append(dial, grpc.WithNoProxy())
	}
	conn, err := grpc.NewClient(target, append(dial, s.dial...)...)
	if err != nil {
		return nil, err
	}
	made := &Client{conn: conn, reconnect: s.reconnect, apiKey: s.apiKey, retries: s.retries, more: s.more}
	made.logger, made.refusesKeys = s.logger, refusesKeys
	made.open = &open{streams: map[*running]bool{}}
	made.generation, made.model = pb.NewGenerationServiceClient(conn), pb.NewModelServiceClient(conn)
	made.routing = pb.NewRoutingServiceClient(conn)
	return made, nil
}

// Close ends the running generations, waits at most a second until the server knows, and disconnects.
func (c *Client) Close() error {
	c.mutex.Lock()
	c.closed = true
	left := make([]*running, 0, len(c.streams))
	for run := range c.streams {
		left = append(left, run)
	}
	c.mutex.Unlock()
	for _, run := range left {
		run.close()
	}
	known := make(chan struct{})
	go func() {
		c.leaving.Wait()
		close(known)
	}()
	select {
	case <-known:
	case <-time.After(closeTime):
	}
	return c.conn.Close()
}

func (c *Client) isClosed() bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.closed
}

func (c *Client) opened(run *running) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	c.streams[run] = true
}

func (c *Client) over(run *running) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	delete(c.streams, run)
}

// apart runs work for which Close waits.
func (c *Client) apart(work func()) {
	c.leaving.Add(1)
	go func() {
		defer c.leaving.Done()
		work()
	}()
}

// StreamOption changes how events are delivered.
type StreamOption func(*delivery)

type delivery struct{ flushInterval *durationpb.Duration }

// FlushEvery coalesces deltas for at most this time into fewer, larger events. First and last ones are not held.
func FlushEvery(interval time.Duration) StreamOption {
	return func(d *delivery) { d.flushInterval = durationpb.New(interval) }
}

func deliver(options []StreamOption) delivery {
	var asked delivery
	for _, option := range options {
		option(&asked)
	}
	return asked
}

// Stream starts a generation, whose events Recv returns. It is resumable, so it survives lost connections, unless the
// client has no Reconnect.
func (c *Client) Stream(ctx context.Context, spec *pb.GenerationSpec, options ...StreamOption) *Stream {
	return c.stream(ctx, spec, c.reconnect != nil, options)
}

// StreamOnce is a Stream whose events the server does not keep: a lost connection ends it.
func (c *Client) StreamOnce(ctx context.Context, spec *pb.GenerationSpec, options ...StreamOption) *Stream {
	return c.stream(ctx, spec, false, options)
}

func (c *Client) stream(ctx context.Context, spec *pb.GenerationSpec, resumable bool, options []StreamOption) *Stream {
	request := &pb.StreamGenerateRequest{Spec: spec, Resumable: resumable, FlushInterval: deliver(options).flushInterval}
	return newStream(ctx, c, resumable, c.reconnect, func(ctx context.Context) (receiver, error) {
		call, err := c.generation.StreamGenerate(c.outgoing(ctx), request)
		if err != nil {
			return nil, err
		}
		return incoming[*pb.StreamGenerateResponse]{call, call}, nil
	})
}

// Interact starts a generation that can be controlled while its events come. A lost connection ends it.
func (c *Client) Interact(ctx context.Context, spec *pb.GenerationSpec, options ...StreamOption) *Interaction {
	made := &Interaction{}
	start := &pb.InteractRequest{
		Action:        &pb.InteractRequest_Start{Start: spec},
		FlushInterval: deliver(options).flushInterval,
	}
	// Not resumable, and a generation on another server could not be controlled: so there is no policy.
	made.Stream = newStream(ctx, c, false, nil, func(ctx context.Context) (receiver, error) {
		call, err := c.generation.Interact(c.outgoing(ctx))
		if err != nil {
			return nil, err
		}
		// An error here is io.EOF: the first Recv returns the call's own error.
		if err := call.Send(start); err != nil && err != io.EOF {
			return nil, err
		}
		made.send = call.Send
		return incoming[*pb.InteractResponse]{call, call}, nil
	})
	return made
}

// Resume resumes a stream, of this process or another one, after lastSequence; 0 replays all events.
func (c *Client) Resume(ctx context.Context, generationID, resumeToken string, lastSequence uint64) *Stream {
	request := &pb.ResumeRequest{GenerationId: generationID, ResumeToken: resumeToken, LastSequence: lastSequence}
	made := newStream(ctx, c, false, c.reconnect, func(ctx context.Context) (receiver, error) {
		return c.resume(ctx, request)
	})
	reader := made.run.reader
	made.run.state.Lock()
	defer made.run.state.Unlock()
	reader.lastSequence = lastSequence
	reader.response.GenerationID, reader.response.ResumeToken = generationID, resumeToken
	return made
}

func (c *Client) resume(ctx context.Context, request *pb.ResumeRequest) (receiver, error) {
	call, err := c.generation.Resume(c.outgoing(ctx), request)
	if err != nil {
		return nil, err
	}
	return incoming[*pb.ResumeResponse]{call, call}, nil
}

// incoming is the reading side of one call.
type incoming[Reply interface{ GetEvent() *pb.GenerationEvent }] struct {
	call interface{ Recv() (Reply, error) }
	grpc.ClientStream
}

func (i incoming[Reply]) receive() (*pb.GenerationEvent, error) {
	reply, err := i.call.Recv()
	return reply.GetEvent(), err
}

func (i incoming[Reply]) trailers() metadata.MD { return i.Trailer() }

// abandon ends a generation on the server, without waiting.
func (c *Client) abandon(request *pb.CancelRequest) {
	c.apart(func() {
		ctx, cancel := context.WithTimeout(context.Background(), cancelTime)
		defer cancel()
		_, _ = c.generation.Cancel(c.outgoing(ctx), request) // If it fails, the server ends the generation after its grace period.
	})
}

// Steer steers a resumable generation that runs, by one action, which takes effect at the next engine step: for callers
// that cannot hold an Interact stream, and for another process than the one that reads the stream. It goes to the server
// where the generation runs. It fails with ErrGenerationNotFound if the generation is unknown, expired, on another server or
// another caller's, or has ended (Metadata["state"] is then "finished").
func (c *Client) Steer(ctx context.Context, request *pb.SteerRequest) (*pb.SteerResponse, error) {
	ctx, cancel := reading(ctx)
	defer cancel()
	reply, _, err := unary(ctx, c, func(ctx context.Context, o ...grpc.CallOption) (*pb.SteerResponse, error) {
		return c.generation.Steer(ctx, request, o...)
	})
	return reply, err
}

// Generate returns one complete reply.
func (c *Client) Generate(ctx context.Context, spec *pb.GenerationSpec) (*Response, error) {
	request := &pb.GenerateRequest{Spec: spec}
	reply, limits, err := unary(ctx, c, func(ctx context.Context, o ...grpc.CallOption) (*pb.GenerateResponse, error) {
		return c.generation.Generate(ctx, request, o...)
	})
	if err != nil {
		return nil, err
	}
	response := responseOf(reply)
	response.RateLimits = limits
	return response, nil
}

// Count counts tokens and cost without generating. The result says what the overflow policy would drop.
func (c *Client) Count(ctx context.Context, spec *pb.GenerationSpec) (*pb.CountTokensResponse, error) {
	ctx, cancel := reading(ctx)
	defer cancel()
	request := &pb.CountTokensRequest{Spec: spec}
	reply, _, err := unary(ctx, c, func(ctx context.Context, o ...grpc.CallOption) (*pb.CountTokensResponse, error) {
		return c.generation.CountTokens(ctx, request, o...)
	})
	return reply, err
}

// Model returns the model's card, profile, prices and limits. An empty name is the served model.
func (c *Client) Model(ctx context.Context, name string) (*pb.GetModelResponse, error) {
	ctx, cancel := reading(ctx)
	defer cancel()
	request := &pb.GetModelRequest{Model: name}
	reply, _, err := unary(ctx, c, func(ctx context.Context, o ...grpc.CallOption) (*pb.GetModelResponse, error) {
		return c.model.GetModel(ctx, request, o...)
	})
	return reply, err
}

// ExpertLoad returns the tokens per expert and layer over the window that ends now; nil uses the server's defaults. It
// fails with ErrFeatureOff if they are not counted.
func (c *Client) ExpertLoad(ctx context.Context, request *pb.GetExpertLoadRequest) (*pb.ExpertLoad, error) {
	ctx, cancel := reading(ctx)
	defer cancel()
	reply, _, err := unary(ctx, c, func(ctx context.Context, o ...grpc.CallOption) (*pb.GetExpertLoadResponse, error) {
		return c.routing.GetExpertLoad(ctx, request, o...)
	})
	return reply.GetLoad(), err
}

// WatchExpertLoad calls see with the expert load at intervals, until see returns false or ctx ends.
func (c *Client) WatchExpertLoad(
	ctx context.Context, request *pb.WatchExpertLoadRequest, see func(*pb.ExpertLoad) bool,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if c.isClosed() {
		return errClosed()
	}
	call, err := c.routing.WatchExpertLoad(c.outgoing(ctx), request)
	if err != nil {
		return errorOf(err)
	}
	for {
		reply, err := call.Recv()
		if err != nil {
			return errorOf(err)
		}
		if !see(reply.GetLoad()) {
			return nil
		}
	}
}

func (c *Client) outgoing(ctx context.Context) context.Context {
	for name, value := range c.more {
		ctx = metadata.AppendToOutgoingContext(ctx, name, value)
	}
	if c.apiKey == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.apiKey)
}
