//go:build linux

package load

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Direction is seen from the side that runs the generator, which is the client's.
type Direction string

// The directions.
const (
	Up   Direction = "up"   // to the server
	Down Direction = "down" // from the server, once the client has opened the way for it
)

// Flood sends UDP datagrams of one size, numbered, for a time, and counts at the receiver which of them arrive. Both ends
// talk to each other by TCP beside it, and are silent there while the flood lasts.
type Flood struct {
	To        string        `json:"-"`         // a Server's address and port
	Direction Direction     `json:"direction"` // zero: Up
	Size      int           `json:"size"`      // payload bytes of a datagram, at least FloodMinSize; zero: 64
	Segments  int           `json:"segments"`  // datagrams in one message to the kernel, which cuts them apart; 1: plain datagrams; zero: 16, or what fits
	Rate      float64       `json:"rate"`      // datagrams per second; zero: as many as will go
	Warmup    time.Duration `json:"warmup"`    // goes before, and does not count in rates
	Length    time.Duration `json:"length"`    // zero: 5 s
}

// FloodResult is what a flood brought. Sent, Received and what follows are about all of it, warm-up included; the rates of
// what was received are about Length, which begins Warmup after the arrival of the first datagram.
type FloodResult struct {
	Direction Direction `json:"direction"`
	Size      int       `json:"size"`
	Segments  int       `json:"segments"`

	Sent       int64   `json:"sent"`
	Received   int64   `json:"received"` // different ones
	Lost       int64   `json:"lost"`     // Sent - Received
	Duplicates int64   `json:"duplicates"`
	Reordered  int64   `json:"reordered"` // arrived after one with a higher number
	Corrupt    int64   `json:"corrupt"`   // of another length or content; lost, too
	LossRatio  float64 `json:"loss_ratio"`

	SentPerSecond float64 `json:"sent_pps"`
	PerSecond     float64 `json:"received_pps"`
	Mbps          float64 `json:"received_mbps"` // of payload

	// SocketDrops are messages that the receiver was too slow for: a reason to doubt the other figures.
	SocketDrops int64 `json:"receiver_socket_drops"`
	// SendErrors are messages that the sender's kernel refused. They are no part of Sent.
	SendErrors int64 `json:"send_errors"`
}

func (f Flood) withDefaults() (Flood, error) {
	if f.Direction == "" {
		f.Direction = Up
	}
	if f.Size == 0 {
		f.Size = 64
	}
	if f.Length == 0 {
		f.Length = 5 * time.Second
	}
	if f.Size < FloodMinSize || f.Size > floodMaxSize {
		return f, fmt.Errorf("flood: datagrams of %d bytes: %d to %d are possible", f.Size, FloodMinSize, floodMaxSize)
	}
	fit := min(maxSegments, floodMaxSize/f.Size)
	if f.Segments == 0 {
		f.Segments = min(16, fit)
	}
	switch {
	case f.Segments < 1 || f.Segments > fit:
		return f, fmt.Errorf("flood: %d datagrams of %d bytes in one message: 1 to %d are possible", f.Segments, f.Size, fit)
	case f.Direction != Up && f.Direction != Down:
		return f, fmt.Errorf("flood: direction %q: it is %s or %s", f.Direction, Up, Down)
	case f.Rate < 0 || f.Warmup < 0 || f.Length < 0:
		return f, errors.New("flood: rate, warm-up and length are not negative")
	}
	return f, nil
}

// Run runs the flood. That nothing arrived is an error.
func (f Flood) Run(ctx context.Context) (r FloodResult, err error) {
	if f, err = f.withDefaults(); err != nil {
		return r, err
	}
	to, err := target(f.To)
	if err != nil {
		return r, err
	}
	conn, err := dialService(ctx, to, floodService)
	if err != nil {
		return r, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if r, err = f.run(ctx, floodTalk{conn, json.NewDecoder(conn)}, to.Addr()); err != nil {
		return r, fmt.Errorf("flood %v: %w", to, errors.Join(err, ctx.Err()))
	}
	if r.Received == 0 {
		return r, fmt.Errorf("flood %v: nothing arrived of %d datagrams; %d were of another content", to, r.Sent, r.Corrupt)
	}
	return r, nil
}

func (f Flood) run(ctx context.Context, talk floodTalk, to netip.Addr) (r FloodResult, err error) {
	var id session
	rand.Read(id[:])
	if err := talk.say(floodMessage{Flood: &f, Session: hex.EncodeToString(id[:])}); err != nil {
		return r, err
	}
	answer, err := talk.hear(talkLimit)
	if err != nil {
		return r, err
	}
	socket, err := openSocket(netip.AddrPort{}, netip.AddrPortFrom(to, answer.Port))
	if err != nil {
		return r, err
	}
	defer socket.conn.Close()
	if err := greet(ctx, socket, id); err != nil {
		return r, err
	}
	if f.Direction == Up {
		return f.clientSends(ctx, talk, socket, id)
	}
	return f.clientReceives(talk, socket, id)
}

func (f Flood) clientSends(ctx context.Context, talk floodTalk, socket *datagramSocket, id session) (r FloodResult, err error) {
	if err := talk.say(floodMessage{Start: true}); err != nil {
		return r, err
	}
	// Until then the server may take datagrams for greetings.
	if answer, err := talk.hear(talkLimit); err != nil || !answer.Start {
		return r, errors.Join(err, errors.New("the server does not begin"))
	}
	s, err := f.send(ctx, socket, id)
	if err != nil {
		return r, err
	}
	if err := talk.say(floodMessage{Sent: f.sent(s)}); err != nil {
		return r, err
	}
	answer, err := talk.hear(talkLimit)
	if err == nil && answer.Got == nil {
		err = errors.New("the server does not say what arrived")
	}
	if err != nil {
		return r, err
	}
	return f.combine(*f.sent(s), *answer.Got), nil
}

func (f Flood) clientReceives(talk floodTalk, socket *datagramSocket, id session) (r FloodResult, err error) {
	if err := talk.say(floodMessage{Start: true}); err != nil {
		return r, err
	}
	var answer floodMessage
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		answer, failed = talk.hear(f.Warmup + f.Length + talkLimit)
	}()
	c := newCounter(f, id)
	err = c.receive(socket, ended, drain)
	if err != nil {
		talk.conn.Close() // so that the other one ends, too
	}
	<-ended
	if failed == nil && answer.Sent == nil {
		failed = errors.New("the server does not say what it sent")
	}
	if err = errors.Join(err, failed); err != nil {
		return r, err
	}
	return f.combine(*answer.Sent, *c.result()), nil
}

func (f Flood) sent(s sent) *FloodResult {
	return &FloodResult{Sent: s.packets, SendErrors: s.errors, SentPerSecond: float64(s.packets) / s.took.Seconds()}
}

func (c *counter) result() *FloodResult {
	perSecond := float64(c.window) / c.spec.Length.Seconds()
	return &FloodResult{
		Received: c.received, Duplicates: c.duplicates, Reordered: c.reordered, Corrupt: c.corrupt, SocketDrops: c.drops,
		PerSecond: perSecond, Mbps: perSecond * float64(c.spec.Size) * 8 / 1e6,
	}
}

// combine makes one result of what the sender and the receiver know.
func (f Flood) combine(sent, got FloodResult) FloodResult {
	r := got
	r.Direction, r.Size, r.Segments = f.Direction, f.Size, f.Segments
	r.Sent, r.SendErrors, r.SentPerSecond = sent.Sent, sent.SendErrors, sent.SentPerSecond
	r.Lost = r.Sent - r.Received
	if r.Sent > 0 {
		r.LossRatio = float64(r.Lost) / float64(r.Sent)
	}
	return r
}
